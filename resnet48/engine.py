"""How a convolution is run: which algorithm for which feature size. One place, so that the nets read without it.

All of them compute the same sums; they differ in what they multiply and move. Measured in benchmarks/convolution.py.
"""

import paddle
import paddle.nn.functional as F

DENSE_UP_TO = 2  # pixels: a 3x3 convolution of a map this small is one matrix over all its inputs and outputs
DENSE_ONCE_UP_TO = 1  # the same where the matrix is made for one call, and its gradient taken apart again
UNFOLD_UP_TO = 8  # pixels: above, the library's own convolution is faster


@paddle.jit.not_to_static  # an export records what it does, there is nothing in it to translate
def conv2d(x, weight, stride=1):
    """Convolution without bias, padded so that stride 1 keeps the size.

    x: [N, C, H, W]; weight: [O, C, K, K] with odd K. Returns [N, O, ceil(H / stride), ceil(W / stride)].
    """
    return convolution(weight, x.shape[2], stride, DENSE_ONCE_UP_TO)(x)


def convolution(weight, size, stride=1, dense_up_to=DENSE_UP_TO):
    """`conv2d` for inputs of `size` x `size` pixels as a function of x, with the weight laid out once for many calls.

    On a GPU, and in an export, always the library's own. On a CPU, for the 3x3 convolutions on small maps of the late
    stages:
    - up to 2 x 2, one matrix product of all inputs of an image with all its outputs. It leaves out what would be
      multiplied with padding: 8/9 of the work at 1 x 1, 5/9 at 2 x 2.
    - up to 8 x 8, unfolding and one product per image.
    """
    kernel = weight.shape[-1]
    if paddle.in_dynamic_mode() and weight.place.is_cpu_place() and kernel == 3:
        if size <= dense_up_to:
            return _dense(weight, size, stride)
        if size <= UNFOLD_UP_TO:
            return _unfolded(weight, size, stride)
    return lambda x: F.conv2d(x, weight, stride=stride, padding=kernel // 2)


def _dense(weight, size, stride):
    """The convolution as a matrix [C * size^2, O * out^2]; every input reaches every output on maps this small."""
    width, in_width = weight.shape[:2]
    out = (size + stride - 1) // stride
    inputs = [(y, x) for y in range(size) for x in range(size)]
    outputs = [(stride * y, stride * x) for y in range(out) for x in range(out)]
    taps = [3 * (y - v + 1) + (x - u + 1) for y, x in inputs for v, u in outputs]
    matrix = paddle.index_select(weight.flatten(2), paddle.to_tensor(taps), axis=2)
    matrix = matrix.reshape([width, in_width, size * size, out * out]).transpose([1, 2, 0, 3])
    matrix = matrix.reshape([in_width * size * size, width * out * out])
    return lambda x: paddle.matmul(x.flatten(1), matrix).reshape([-1, width, out, out])


def _unfolded(weight, size, stride):
    width, out = weight.shape[0], (size + stride - 1) // stride
    matrix = weight.flatten(1)
    return lambda x: paddle.matmul(matrix, F.unfold(x, 3, stride, 1)).reshape([-1, width, out, out])
