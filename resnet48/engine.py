"""How a convolution is run: which algorithm for which feature size. One place, so that the nets read without it.

All of them compute the same sums; they differ in what they multiply and move. Measured in benchmarks/convolution.py.
"""

import functools

import numpy as np
import paddle
import paddle.nn.functional as F

DENSE_UP_TO = 2  # pixels: a 3x3 convolution of a map this small is one matrix over all its inputs and outputs
DENSE_ONCE_UP_TO = 1  # the same where the matrix is made for one call, and its gradient taken apart again
SMALL_UP_TO = 16  # pixels: above, the library's own convolution is as fast


@paddle.jit.not_to_static  # an export records what it does, there is nothing in it to translate
def conv2d(x, weight, stride=1):
    """Convolution without bias, padded so that stride 1 keeps the size.

    x: [N, C, H, W]; weight: [O, C, K, K] with odd K. Returns [N, O, ceil(H / stride), ceil(W / stride)].
    """
    return convolution(weight, x.shape[2], stride, DENSE_ONCE_UP_TO)(x)


def convolution(weight, size, stride=1, dense_up_to=DENSE_UP_TO):
    """`conv2d` for inputs of `size` x `size` pixels as a function of x, with the weight laid out once for many calls.

    On a GPU, and in an export, always the library's own. On a CPU, on small maps:
    - 3x3, up to 2 x 2: one matrix product of all inputs of an image with all its outputs. It leaves out what would be
      multiplied with padding: 8/9 of the work at 1 x 1, 5/9 at 2 x 2.
    - 3x3, up to 16 x 16: one product over the neighbours of all pixels of the batch.
    - with a stride: unfolding and one product per image. (The product over the batch would have a gradient to x that
      multiplies three zeros for every value.)
    """
    kernel = weight.shape[-1]
    if paddle.in_dynamic_mode() and weight.place.is_cpu_place() and size <= SMALL_UP_TO:
        if kernel == 3 and size <= dense_up_to:
            return _dense(weight, size, stride)
        if kernel == 3 and stride == 1:
            return _by_pixel(weight)
        if stride > 1 and kernel < 7:
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
    width, kernel, out = weight.shape[0], weight.shape[-1], (size + stride - 1) // stride
    matrix = weight.flatten(1)
    return lambda x: paddle.matmul(matrix, F.unfold(x, kernel, stride, kernel // 2)).reshape([-1, width, out, out])


def _by_pixel(weight):
    matrix = weight.flatten(2).transpose([0, 2, 1]).flatten(1)
    return lambda x: _ByPixel.apply(x, matrix)


class _ByPixel(paddle.autograd.PyLayer):
    """A 3x3 convolution as one product [N * H * W, 9 * C] x [9 * C, O], and two like it for the gradients.

    With the channels of a pixel side by side, a row is gathered as nine runs of memory, which is faster than
    unfolding. The gradient to x is a convolution itself, so it is gathered too and nothing has to be summed up.
    matrix: the weight as [O, 9 * C].
    """

    @staticmethod
    def forward(context, x, matrix):
        count, size = x.shape[0], x.shape[2]
        pixels = _pixels(x)
        context.save_for_backward(pixels, matrix)
        context.wanted = [not given.stop_gradient for given in (x, matrix)]
        return _maps(paddle.matmul(_neighbours(pixels, count, size), matrix, transpose_y=True), count, size)

    @staticmethod
    def backward(context, y_gradient):
        pixels, matrix = context.saved_tensor()
        count, width, size = y_gradient.shape[:3]
        of_y = _pixels(y_gradient)
        to_x = to_matrix = None
        if context.wanted[0]:
            turned = matrix.reshape([width, 9, -1]).transpose([1, 0, 2]).reshape([9 * width, -1])
            to_x = _maps(paddle.matmul(_neighbours(of_y, count, size, -1), turned), count, size)
        if context.wanted[1]:
            # The neighbours are gathered again, not kept: they are nine times as large as x and quick to make.
            to_matrix = paddle.matmul(of_y[:-1], _neighbours(pixels, count, size), transpose_x=True)
        return to_x, to_matrix


def _pixels(x):
    """[N, C, H, W] as [N * H * W + 1, C], one row per pixel; the last row is the zeros beyond every border."""
    width = x.shape[1]
    return paddle.concat([x.flatten(2).transpose([0, 2, 1]).reshape([-1, width]), paddle.zeros([1, width], x.dtype)])


def _maps(pixels, count, size):
    """[N * H * W, C] as [N, C, H, W]."""
    return pixels.reshape([count, size * size, -1]).transpose([0, 2, 1]).reshape([count, -1, size, size])


def _neighbours(pixels, count, size, direction=1):
    """[N * H * W, 9 * C]: of each pixel the 3x3 around it, in the order of a kernel's taps or (-1) in the reverse."""
    return paddle.gather(pixels, _neighbour_rows(count, size, direction)).reshape([count * size * size, -1])


@functools.lru_cache(maxsize=64)
def _neighbour_rows(count, size, direction):
    nowhere = count * size * size
    rows = np.pad(np.arange(nowhere).reshape(count, size, size), ((0, 0), (1, 1), (1, 1)), constant_values=nowhere)
    taps = [rows[:, y:y + size, x:x + size] for y in range(3) for x in range(3)][::direction]
    return paddle.to_tensor(np.stack(taps, -1).reshape(-1).astype("int32"))
