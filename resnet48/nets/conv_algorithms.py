"""Convolution algorithms, and which one is used for which feature size. The nets need not know.

All of them compute the same sums; they differ in what they multiply and move. Measured in benchmarks/convolution.py.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import paddle
import paddle.nn.functional as F

DENSE_UP_TO = 2  # pixels: a 3x3 convolution of a map this small is one matrix over all its inputs and outputs
DENSE_ONCE_UP_TO = 1  # the same where the matrix is made for one call, and its gradient taken apart again
DENSE_VALUES = 256  # inputs or outputs of an image: for so few, the matrix is always small enough
UNFOLD_UP_TO = 16  # pixels: above, the library's own convolution is as fast
IMAGES_UP_TO = 64  # pixels: larger images, unfolded and kept, would take much memory for little
NARROW_UP_TO = 4  # channels: for so few, Winograd's spends more on its many steps than it saves in products
NARROW_ON_LARGE_UP_TO = 16  # channels: the same above UNFOLD_UP_TO

# Where Winograd's algorithm evaluates the filter's polynomial, beside infinity, by the outputs along a tile. A set that
# holds 1 / p for each p gives the turned filter at the same places. Of the sets of five, this one is among the most
# exact: the largest error is four times that of the three, where 0, 1, -1, 2, -2 give twenty times.
POINTS = {2: (0, 1, -1), 4: (0, 3 / 2, 2 / 3, -3 / 2, -2 / 3)}


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
    - up to 2 x 2, and where an image has few values: one matrix product of all inputs of an image with all its outputs.
      It leaves out what would be multiplied with padding (8/9 of the work at 1 x 1, 5/9 at 2 x 2) and, on larger maps,
      multiplies many zeros, but moves nothing.
    - 3x3 on larger maps: Winograd's, which multiplies 2.25 times for an output instead of 9 (4 times up to 4 x 4).
    - with a stride or few channels, on small maps: unfolding and one product per image.
    - 7x7 in training: unfolding and one product, done once for all subnets of a step where it is the same (see
      `shared_images`).
    """
    kernel = weight.shape[-1]

    def library(x):
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2)

    if paddle.in_dynamic_mode() and weight.place.is_cpu_place() and weight.dtype == paddle.float32:
        if _suits_dense(weight, size, stride, dense_up_to):
            return _dense(weight, size, stride)
        if _suits_winograd(weight, size, stride):
            return _winograd(weight, size)
        if kernel < 7 and (kernel, stride) != (1, 1) and size <= UNFOLD_UP_TO:
            return _unfolded(weight, size, stride)
        if kernel == 7 and size <= IMAGES_UP_TO and paddle.is_grad_enabled() and not weight.stop_gradient:
            return lambda x: _OfImages.apply(weight, x, stride) if x.stop_gradient else library(x)
    return library


def temporary_values(in_width: int, width: int, kernel: int, size: int) -> int:
    """The most values per image that `conv2d` has at once besides its input, whichever algorithm it takes.

    size: height and width of the output in pixels.
    """
    if kernel != 3:  # a 1x1 kernel with a stride unfolds to one input per output
        return (in_width + width) * size ** 2
    # Winograd's has for every input, with those that fill up the tiles, a copy, four (2.25 in tiles of 4 x 4) in tiles
    # and as many transformed; then the transformed ones, as many products for every output, the output itself and that
    # in another order, twice. (Where it unfolds, the nine copies of an input are the most.)
    tile = _tile(size)
    copies = (tile + 2) ** 2 / tile ** 2
    tiled = (size + -size % tile) ** 2 if size > 1 else 1
    return int(max((1 + 2 * copies) * in_width, copies * in_width + (copies + 3) * width) * tiled)


def layout_bytes(weight: paddle.Tensor, size: int, stride: int = 1, dense_up_to: int = DENSE_UP_TO) -> int:
    """The most bytes that `convolution` with these arguments lays a weight [O, C, K, K] out in."""
    values = int(weight.size)
    if _suits_dense(weight, size, stride, dense_up_to):
        values = weight.shape[0] * weight.shape[1] * (size * -(-size // stride)) ** 2
    elif _suits_winograd(weight, size, stride):
        values = values * (_tile(size) + 2) ** 2 // 9
    return weight.element_size() * values


def _suits_dense(weight, size, stride, dense_up_to):
    width, in_width, kernel = weight.shape[:3]
    if kernel == 7 or (kernel, stride) == (1, 1):
        return False
    few = max(in_width * size ** 2, width * -(-size // stride) ** 2) <= DENSE_VALUES
    return few or kernel == 3 and size <= (dense_up_to if stride == 1 else DENSE_UP_TO)


def _suits_winograd(weight, size, stride):
    narrow = NARROW_UP_TO if size <= UNFOLD_UP_TO else NARROW_ON_LARGE_UP_TO
    return weight.shape[-1] == 3 and stride == 1 and min(weight.shape[:2]) > narrow


def _dense(weight, size, stride):
    """The convolution as a matrix [C * size^2, O * out^2].

    In this order, because with [O, C * size^2] MKL rounds the rows of some products differently: what is the same for
    all images no longer comes out the same, and batch norms multiply the difference by up to 300 a layer.
    """
    width, in_width, kernel = weight.shape[:3]
    out = -(-size // stride)
    matrix = paddle.matmul(weight.reshape([-1, kernel ** 2]), _taps(kernel, size, stride))
    matrix = matrix.reshape([width, in_width, size * size, out * out]).transpose([1, 2, 0, 3])
    matrix = matrix.reshape([in_width * size * size, width * out * out])
    return lambda x: paddle.matmul(x.flatten(1), matrix).reshape([-1, width, out, out])


@functools.lru_cache(maxsize=64)
def _taps(kernel, size, stride):
    """Ones where a tap of the kernel carries an input of a map to an output, else zeros: [K^2, size^2 * out^2].

    A product with it chooses the taps, because the gradient of an index is many times as slow.
    """
    carries = np.zeros([kernel, kernel, size, size, -(-size // stride), -(-size // stride)], "float32")
    for y, x, v, u in np.ndindex(carries.shape[2:]):
        row, column = y - stride * v + kernel // 2, x - stride * u + kernel // 2
        if 0 <= row < kernel and 0 <= column < kernel:
            carries[row, column, y, x, v, u] = 1
    return paddle.to_tensor(carries.reshape(kernel ** 2, -1))


def _unfolded(weight, size, stride):
    width, kernel, out = weight.shape[0], weight.shape[-1], (size + stride - 1) // stride
    matrix = weight.flatten(1)
    return lambda x: paddle.matmul(matrix, F.unfold(x, kernel, stride, kernel // 2)).reshape([-1, width, out, out])


_shared = []  # the images of `shared_images` and what has been made of them, by kernel and stride


@contextlib.contextmanager
def shared_images(images: paddle.Tensor) -> Iterator[None]:
    """A block in which `images` [N, 3, H, W] do not change and go through several nets.

    They are unfolded once, and convolved once with filters that have been among the first of others.
    """
    _shared[:] = images, {}
    try:
        yield
    finally:
        _shared.clear()


class _OfImages(paddle.autograd.PyLayer):
    """A convolution, by unfolding and one product per image, of images that need no gradient."""

    @staticmethod
    def forward(context, weight, x, stride):
        made = _made_of(x, weight.shape[-1], stride)
        context.save_for_backward(made["unfolded"])
        context.shape = weight.shape
        if "filters" in made and _begins_with(made["filters"], weight):
            return made["outputs"][:, :weight.shape[0]].clone()
        out = -(-x.shape[2] // stride)
        y = paddle.matmul(weight.flatten(1), made["unfolded"]).reshape([-1, weight.shape[0], out, out])
        made.update(filters=weight.clone(), outputs=y.detach())
        return y

    @staticmethod
    def backward(context, y_gradient):
        unfolded, = context.saved_tensor()
        of_images = paddle.matmul(y_gradient.flatten(2), unfolded, transpose_y=True)
        return of_images.sum(axis=0).reshape(context.shape), None


def _made_of(x, kernel, stride):
    """"unfolded": the images as `F.unfold` gives them, [N, C * K^2, out^2].

    Of shared images also the "filters" that they were convolved with last, and the "outputs" of these.
    """
    made = _shared[1] if _shared and _shared[0] is x else {}
    if (kernel, stride) not in made:
        made[kernel, stride] = {"unfolded": F.unfold(x, kernel, stride, kernel // 2)}
    return made[kernel, stride]


def _begins_with(filters, others):
    width = others.shape[0]
    return width <= filters.shape[0] and bool(paddle.equal_all(filters[:width], others))


def _tile(size):
    """Outputs along a tile. With 4 there are fewer products, but a filter has 36 values, too many for small maps."""
    return 4 if size > 4 else 2


def _winograd(weight, size):
    tile = _tile(size)
    transformed = paddle.matmul(_both_axes("filter", tile), weight.reshape([-1, 9]), transpose_y=True)
    transformed = transformed.reshape([-1, *weight.shape[:2]])
    return lambda x: _Winograd.apply(x, transformed)


class _Winograd(paddle.autograd.PyLayer):
    """A 3x3 convolution by Winograd's F(m x m, 3 x 3) (Lavin and Gray, arXiv 1509.09308), and its gradients likewise.

    The maps are cut into tiles of m x m outputs, m = 2 or 4, each of which needs (m + 2) x (m + 2) inputs. Both, and
    the filter, are carried by small matrices to (m + 2)^2 places where the convolution is a product of matrices over
    the channels: [tiles, C] x [C, O]. The gradient to x is a convolution with the turned filter, whose transform is
    that of the filter in another order.
    transformed: the filters at the places, [places, O, C].
    """

    @staticmethod
    def forward(context, x, transformed):
        count, _, size = x.shape[:3]
        tile = math.isqrt(transformed.shape[0]) - 2
        inputs = _transform("in", tile, _pixels(x), _input_rows(count, size, tile))
        # Kept, though larger than x: to make them again would take a fifth of the time of the gradients.
        context.save_for_backward(inputs, transformed)
        context.size, context.tile = size, tile
        context.wanted = [not given.stop_gradient for given in (x, transformed)]
        return _maps("out", tile, paddle.matmul(inputs, transformed, transpose_y=True), count, size)

    @staticmethod
    def backward(context, y_gradient):
        inputs, transformed = context.saved_tensor()
        count, size, tile = y_gradient.shape[0], context.size, context.tile
        pixels = _pixels(y_gradient)
        to_x = to_transformed = None
        if context.wanted[0]:
            turned = _transform("in, turned", tile, pixels, _input_rows(count, size, tile))
            to_x = _maps("out, turned", tile, paddle.matmul(turned, transformed), count, size)
        if context.wanted[1]:
            of_products = _transform("out, gradient", tile, pixels, _output_rows(count, size, tile))
            to_transformed = paddle.matmul(of_products, inputs, transpose_x=True)
        return to_x, to_transformed


@functools.lru_cache(maxsize=None)
def _one_axis(tile):
    """What gives the neighbouring outputs of a tile for a filter g from inputs d: OUT @ ((FILTER @ g) * (IN @ d)).

    Matrices by name (arXiv 1509.09308, 4.1). Each evaluates polynomials at the points, and the last row or column at
    infinity; IN, the other way round, has the coefficients of the polynomials that are 0 at all points but one.
    """
    points = POINTS[tile]
    into, filters = [np.poly(points)[::-1]], [[0, 0, 1]]
    for point in reversed(points):
        others, scale = [other for other in points if other != point], abs(point) or 1
        into.insert(0, [*np.poly(others)[::-1] * scale / np.prod([point - other for other in others]), 0])
        filters.insert(0, [1 / scale, point / scale, point ** 2 / scale])
    out = np.array([[*(float(point) ** power for point in points), power == tile - 1] for power in range(tile)])
    turned = [tile + 1, *(points.index(1 / point) for point in points[1:]), 0]  # the place of g is that of g[::-1]
    into = np.array(into)
    return {"in": into, "filter": np.array(filters), "out": out, "out, gradient": out.T, "in, turned": into[turned],
            "out, turned": out[:, turned]}


@functools.lru_cache(maxsize=None)
def _both_axes(name, tile):
    """A transform of the rows and of the columns of a tile, as one matrix over all its pixels."""
    one = _one_axis(tile)[name]
    return paddle.to_tensor(np.kron(one, one).astype("float32"))


def _transform(name, tile, pixels, rows):
    """The tiles whose pixels are the given rows, transformed: [places, tiles, C]."""
    matrix = _both_axes(name, tile)
    tiles = paddle.gather(pixels, rows).reshape([matrix.shape[1], -1])
    return paddle.matmul(matrix, tiles).reshape([matrix.shape[0], -1, pixels.shape[1]])


def _pixels(x):
    """[N, C, H, W] as [N * H * W + 1, C], one row per pixel; the last row is the zeros beyond every border."""
    width = x.shape[1]
    return paddle.concat([x.flatten(2).transpose([0, 2, 1]).reshape([-1, width]), _zeros(width)])


@functools.lru_cache(maxsize=None)
def _zeros(width):
    return paddle.zeros([1, width])


def _maps(name, tile, products, count, size):
    """Products [places, tiles, O] transformed to outputs and put together: [N, O, H, W]."""
    width = products.shape[2]
    outputs = paddle.matmul(_both_axes(name, tile), products.flatten(1)).reshape([-1, width])
    pixels = paddle.gather(outputs, _pixel_rows(count, size, tile)).reshape([count, size * size, width])
    return pixels.transpose([0, 2, 1]).reshape([count, width, size, size])


@functools.lru_cache(maxsize=64)
def _input_rows(count, size, tile):
    """The rows of `_pixels` in the order [places, N, tiles, tiles]: a tile begins one pixel before its outputs."""
    rows = _numbered(count, size, before=1, after=1 + -size % tile)
    end = size + -size % tile
    return _indices([rows[:, y:y + end:tile, x:x + end:tile] for y in range(tile + 2) for x in range(tile + 2)])


@functools.lru_cache(maxsize=64)
def _output_rows(count, size, tile):
    """The rows of `_pixels` in the order [tile x tile, N, tiles, tiles]."""
    rows = _numbered(count, size, before=0, after=-size % tile)
    return _indices([rows[:, y::tile, x::tile] for y in range(tile) for x in range(tile)])


@functools.lru_cache(maxsize=64)
def _pixel_rows(count, size, tile):
    """Where the outputs [tile x tile, N, tiles, tiles] have each pixel of [N, H, W]."""
    tiles = -(-size // tile)
    rows = np.arange(count * (tile * tiles) ** 2).reshape(tile, tile, count, tiles, tiles).transpose(2, 3, 0, 4, 1)
    return _indices(rows.reshape(count, tile * tiles, tile * tiles)[:, :size, :size])


def _numbered(count, size, before, after):
    """The rows of `_pixels` as maps [N, before + size + after, ...] with a border of zeros."""
    nowhere = count * size * size
    border = (0, 0), (before, after), (before, after)
    return np.pad(np.arange(nowhere).reshape(count, size, size), border, constant_values=nowhere)


def _indices(rows):
    return paddle.to_tensor(np.stack(rows).reshape(-1).astype("int32"))
