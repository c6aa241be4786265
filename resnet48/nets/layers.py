"""Slicable layers: pure functions over full weights. A subnet takes the first channels of each."""

import paddle
from paddle import nn
import paddle.nn.functional as F

from ..space.nodes import smallest_map
from ..system.errors import UserError
from . import conv_algorithms

#: Values per channel that a batch norm must see at once. Four epochs of a standalone net on the digits at 32 pixels, in
#: batches of 48 run in parts, gave 84 to 86 % with 48 values, 75 % with 12, 71 and 79 % with 8, 45 and 63 % with 6,
#: 29 and 45 % with 3, 19 % with 1: below 8 the statistics are noise.
LEAST_VALUES = 8


def conv(x: paddle.Tensor, layer: nn.Conv2D, width: int, stride: int = 1) -> paddle.Tensor:
    """The first `width` filters of a convolution, over as many input channels as `x` has.

    x: [N, C, H, W]; layer: `nn.Conv2D` without bias, weight [O >= width, I >= C, K, K].
    """
    return conv_algorithms.conv2d(x, _first(layer.weight, width, x.shape[1]), stride)


def batch_norm(x: paddle.Tensor, layer: nn.BatchNorm2D) -> paddle.Tensor:
    """Batch norm of x [N, C, H, W] with the first channels of `layer`, as many as `x` has.

    In training mode: statistics of the batch, and the running ones of the used channels move (momentum .9 is the part
    that is kept). In evaluation mode: the running ones, which for a subnet are only as good as its calibration.
    """
    width, training = x.shape[1], layer.training
    running = layer._mean, layer._variance
    mean, variance, weight, bias = (_first(each, width) for each in (*running, layer.weight, layer.bias))
    if training:
        # The kernel moves them in place. Take copies and write them back: whether a slice is a view of its parent
        # depends on a flag of the framework, and the graph of another subnet may still need what it saw.
        mean, variance = mean.clone(), variance.clone()
    y = F.batch_norm(x, mean, variance, weight, bias, training=training, momentum=layer._momentum,
                     epsilon=layer._epsilon)
    if training:
        running[0][:width], running[1][:width] = mean, variance
    return y


def own_batch_norm(x: paddle.Tensor, layer: nn.BatchNorm2D) -> paddle.Tensor:
    """`batch_norm` with all channels of a layer that no subnets share: its running statistics move in place."""
    return F.batch_norm(x, layer._mean, layer._variance, layer.weight, layer.bias, training=layer.training,
                        momentum=layer._momentum, epsilon=layer._epsilon)


def batch_norm_of_batch(x: paddle.Tensor, layer: nn.BatchNorm2D) -> paddle.Tensor:
    """`batch_norm` of training mode without its trace: the running statistics stay as they are."""
    width = x.shape[1]
    return F.batch_norm(x, paddle.zeros([width]), paddle.ones([width]), _first(layer.weight, width),
                        _first(layer.bias, width), training=True, epsilon=layer._epsilon)


def linear(x: paddle.Tensor, layer: nn.Linear) -> paddle.Tensor:
    """A classifier over as many features as `x` [N, C] has; weight [I >= C, classes]."""
    return F.linear(x, _first(layer.weight, x.shape[1]), layer.bias)


def _first(weight, *widths):
    """The leading part of a weight along its first axes; the weight itself where nothing is cut.

    The weight itself, because Paddle 2.6 refuses to export what it takes for a view. A vector is cut by a slice, all
    else by `split`: its gradient is a concatenation, much cheaper than the slice's on a CPU, but for vectors.
    """
    if weight.ndim == 1:
        return weight if weight.shape[0] == widths[0] else weight[:widths[0]]
    for axis, width in enumerate(widths):
        if width != weight.shape[axis]:
            weight = paddle.split(weight, [width, weight.shape[axis] - width], axis)[0]
    return weight


def moments(x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Mean and biased variance of each channel of x [N, C, H, W], each [C].

    In two passes: E[x^2] - E[x]^2 loses digits.
    """
    if not x.place.is_cpu_place():
        mean = x.mean(axis=[0, 2, 3])
        return mean, (x - mean.reshape([1, -1, 1, 1])).square().mean(axis=[0, 2, 3])
    # On a CPU the batch-norm kernel takes the same two passes, and broadcasting is far slower than it. With
    # momentum 0 it keeps nothing of the old statistics. (cuDNN's would give the unbiased variance.)
    mean, variance = paddle.zeros([x.shape[1]]), paddle.ones([x.shape[1]])
    F.batch_norm(x, mean, variance, training=True, momentum=0.0)
    return mean, variance


def batch_norm_with(x: paddle.Tensor, layer: nn.BatchNorm2D, mean: paddle.Tensor,
                    variance: paddle.Tensor) -> paddle.Tensor:
    """Batch norm of x [N, C, H, W] in evaluation, with these statistics [C] and the first C weights of `layer`."""
    return F.batch_norm(x, mean, variance, _first(layer.weight, x.shape[1]), _first(layer.bias, x.shape[1]),
                        training=False, epsilon=layer._epsilon)


def require_values(images: int, image_size: int, what: str, remedy: str) -> None:
    """Raise `UserError` unless so many images of image_size pixels give LEAST_VALUES per channel in the last stage.

    what: the images, for the message; remedy: what to change.
    """
    side = smallest_map(image_size)
    if images * side ** 2 < LEAST_VALUES:
        raise UserError(f"{what} at {image_size} px give the batch norms of the last stage {images * side ** 2} "
                        f"value(s) per channel ({images} x {side} x {side}), of which no mean and variance can be "
                        f"computed; {LEAST_VALUES} are needed: {remedy}")
