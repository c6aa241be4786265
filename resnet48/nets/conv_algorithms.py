"""Convolution algorithms, and which one is used for which feature size. The nets need not know.

All of them compute the same sums; they differ in what they multiply and move. Measured in benchmarks/convolution.py.
"""

import functools
from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F

DENSE_UP_TO = 2  # pixels: a 3x3 convolution of a map this small is one matrix over all its inputs and outputs
DENSE_ONCE_UP_TO = 1  # the same where the matrix is made for one call, and its gradient taken apart again
UNFOLD_UP_TO = 16  # pixels: above, the library's own convolution is as fast
NARROW_UP_TO = 16  # channels: for so few, Winograd's spends more on its many steps than it saves in products

# Winograd's F(2 x 2, 3 x 3) in one dimension (arXiv 1509.09308, 4.1): what gives two neighbouring outputs of a filter
# g from four inputs d is OUT @ ((FILTER @ g) * (IN @ d)).
IN = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], "float32")
FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], "float32")
OUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], "float32")
TURNED = [3, 1, 2, 0]  # FILTER @ g[::-1] is (FILTER @ g)[TURNED]


@paddle.jit.not_to_static  # an export records what it does, there is nothing in it to translate
def conv2d(x: paddle.Tensor, weight: paddle.Tensor, stride: int = 1) -> paddle.Tensor:
    """Convolution without bias, padded so that stride 1 keeps the size.

    x: [N, C, H, W]; weight: [O, C, K, K] with odd K. Returns [N, O, ceil(H / stride), ceil(W / stride)].
    """
    return convolution(weight, x.shape[2], stride, DENSE_ONCE_UP_TO)(x)


def convolution(weight: paddle.Tensor, size: int, stride: int = 1,
                dense_up_to: int = DENSE_UP_TO) -> Callable[[paddle.Tensor], paddle.Tensor]:
    """`conv2d` for inputs of `size` x `size` pixels as a function of x, with the weight laid out once for many calls.

    On a GPU, and in an export, always the library's own. On a CPU, in float32:
    - 3x3, up to 2 x 2: one matrix product of all inputs of an image with all its outputs. It leaves out what would be
      multiplied with padding: 8/9 of the work at 1 x 1, 5/9 at 2 x 2.
    - 3x3 on larger maps: Winograd's, which multiplies 4 times for an output instead of 9.
    - with a stride or few channels, on small maps: unfolding and one product per image.
    """
    kernel = weight.shape[-1]
    if paddle.in_dynamic_mode() and weight.place.is_cpu_place() and weight.dtype == paddle.float32:
        if kernel == 3 and size <= (dense_up_to if stride == 1 else DENSE_UP_TO):
            return _dense(weight, size, stride)
        if kernel == 3 and stride == 1 and min(weight.shape[:2]) > NARROW_UP_TO:
            return _winograd(weight)
        if kernel < 7 and (kernel, stride) != (1, 1) and size <= UNFOLD_UP_TO:
            return _unfolded(weight, size, stride)
    return lambda x: F.conv2d(x, weight, stride=stride, padding=kernel // 2)


def temporary_values(in_width: int, width: int, kernel: int, size: int) -> int:
    """The most values per image that `conv2d` has at once besides its input, whichever algorithm it takes.

    size: height and width of the output in pixels.
    """
    if kernel != 3:  # a 1x1 kernel with a stride unfolds to one input per output
        return (in_width + width) * size ** 2
    # Winograd's has for every input, with those that fill up the tiles, a copy, four in tiles and four transformed;
    # then the transformed ones, four products for every output, the output itself and that in another order, twice.
    # (Where it unfolds, the nine copies of an input are the most.)
    tiled = (size + size % 2) ** 2 if size > 1 else 1
    return max(9 * in_width, 4 * in_width + 7 * width) * tiled


def layout_bytes(weight: paddle.Tensor) -> int:
    """The most bytes that `convolution` lays a weight [O, C, K, K] out in, whichever algorithm it takes."""
    # At most 16 values for the 9 of a filter: Winograd's places, and the matrix over maps of 2 x 2.
    return weight.element_size() * int(weight.size) * (16 if weight.shape[-1] == 3 else 9) // 9


def _dense(weight, size, stride):
    """The convolution as a matrix [C * size^2, O * out^2]; every input reaches every output on maps this small."""
    width, in_width = weight.shape[:2]
    out = (size + stride - 1) // stride
    inputs = [(y, x) for y in range(size) for x in range(size)]
    outputs = [(stride * y, stride * x) for y in range(out) for x in range(out)]
    taps = [3 * (y - v + 1) + (x - u + 1) for y, x in inputs for v, u in outputs]
    # Chosen by a product with ones and zeros: the gradient of an index is many times as slow.
    matrix = paddle.matmul(weight.reshape([-1, 9]), paddle.eye(9)[:, taps])
    matrix = matrix.reshape([width, in_width, size * size, out * out]).transpose([1, 2, 0, 3])
    matrix = matrix.reshape([in_width * size * size, width * out * out])
    return lambda x: paddle.matmul(x.flatten(1), matrix).reshape([-1, width, out, out])


def _unfolded(weight, size, stride):
    width, kernel, out = weight.shape[0], weight.shape[-1], (size + stride - 1) // stride
    matrix = weight.flatten(1)
    return lambda x: paddle.matmul(matrix, F.unfold(x, kernel, stride, kernel // 2)).reshape([-1, width, out, out])


def _winograd(weight):
    transformed = paddle.matmul(_both_axes("filter"), weight.reshape([-1, 9]), transpose_y=True)
    transformed = transformed.reshape([16, *weight.shape[:2]])
    return lambda x: _Winograd.apply(x, transformed)


class _Winograd(paddle.autograd.PyLayer):
    """A 3x3 convolution by Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, arXiv 1509.09308), and its gradients likewise.

    The maps are cut into tiles of 2 x 2 outputs, each of which needs 4 x 4 inputs. Both, and the filter, are carried by
    small matrices to 16 places where the convolution is a product of matrices over the channels: [tiles, C] x [C, O].
    The gradient to x is a convolution with the turned filter, whose transform is that of the filter in another order.
    transformed: the filters at the 16 places, [16, O, C].
    """

    @staticmethod
    def forward(context, x, transformed):
        count, _, size = x.shape[:3]
        inputs = _transform("in", _pixels(x), _input_rows(count, size))
        # Kept, though four times as large as x: to make them again would take a fifth of the time of the gradients.
        context.save_for_backward(inputs, transformed)
        context.size, context.wanted = size, [not given.stop_gradient for given in (x, transformed)]
        return _maps("out", paddle.matmul(inputs, transformed, transpose_y=True), count, size)

    @staticmethod
    def backward(context, y_gradient):
        inputs, transformed = context.saved_tensor()
        count, size = y_gradient.shape[0], context.size
        pixels = _pixels(y_gradient)
        to_x = to_transformed = None
        if context.wanted[0]:
            products = paddle.matmul(_transform("in, turned", pixels, _input_rows(count, size)), transformed)
            to_x = _maps("out, turned", products, count, size)
        if context.wanted[1]:
            of_products = _transform("out, gradient", pixels, _output_rows(count, size))
            to_transformed = paddle.matmul(of_products, inputs, transpose_x=True)
        return to_x, to_transformed


@functools.lru_cache(maxsize=None)
def _both_axes(name):
    """A transform of the rows and of the columns of a tile, as one matrix over all its pixels."""
    one = {"in": IN, "filter": FILTER, "out": OUT, "out, gradient": OUT.T,
           "in, turned": IN[TURNED], "out, turned": OUT[:, TURNED]}[name]
    return paddle.to_tensor(np.kron(one, one))


def _transform(name, pixels, rows):
    """The tiles whose pixels are the given rows, transformed: [places, tiles, C]."""
    matrix = _both_axes(name)
    tiles = paddle.gather(pixels, rows).reshape([matrix.shape[1], -1])
    return paddle.matmul(matrix, tiles).reshape([matrix.shape[0], -1, pixels.shape[1]])


def _pixels(x):
    """[N, C, H, W] as [N * H * W + 1, C], one row per pixel; the last row is the zeros beyond every border."""
    width = x.shape[1]
    return paddle.concat([x.flatten(2).transpose([0, 2, 1]).reshape([-1, width]), paddle.zeros([1, width], x.dtype)])


def _maps(name, products, count, size):
    """Products [16, tiles, O] transformed to outputs and put together: [N, O, H, W]."""
    width = products.shape[2]
    outputs = paddle.matmul(_both_axes(name), products.reshape([16, -1])).reshape([-1, width])
    pixels = paddle.gather(outputs, _pixel_rows(count, size)).reshape([count, size * size, width])
    return pixels.transpose([0, 2, 1]).reshape([count, width, size, size])


@functools.lru_cache(maxsize=64)
def _input_rows(count, size):
    """The rows of `_pixels` in the order [4 x 4, N, tiles, tiles]: a tile begins one pixel before its outputs."""
    rows = _numbered(count, size, before=1, after=1 + size % 2)
    return _indices([rows[:, y:y + size:2, x:x + size:2] for y in range(4) for x in range(4)])


@functools.lru_cache(maxsize=64)
def _output_rows(count, size):
    """The rows of `_pixels` in the order [2 x 2, N, tiles, tiles]."""
    rows = _numbered(count, size, before=0, after=size % 2)
    return _indices([rows[:, y::2, x::2] for y in range(2) for x in range(2)])


@functools.lru_cache(maxsize=64)
def _pixel_rows(count, size):
    """Where the outputs [2 x 2, N, tiles, tiles] have each pixel of [N, H, W]."""
    tiles = (size + 1) // 2
    rows = np.arange(4 * count * tiles ** 2).reshape(2, 2, count, tiles, tiles).transpose(2, 3, 0, 4, 1)
    return _indices(rows.reshape(count, 2 * tiles, 2 * tiles)[:, :size, :size])


def _numbered(count, size, before, after):
    """The rows of `_pixels` as maps [N, before + size + after, ...] with a border of zeros."""
    nowhere = count * size * size
    border = (0, 0), (before, after), (before, after)
    return np.pad(np.arange(nowhere).reshape(count, size, size), border, constant_values=nowhere)


def _indices(rows):
    return paddle.to_tensor(np.stack(rows).reshape(-1).astype("int32"))
