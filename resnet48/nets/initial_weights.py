"""Initial weights of convolutions."""

import math

import paddle
from paddle import nn


def initialize(net: nn.Layer, how: str) -> None:
    """Draw the weights of all convolutions of a net again, unless `how` is he_fan_in, which Paddle has drawn.

    With a batch norm behind every convolution, the size of the weights divides the effective learning rate.
    - he_fan_in: normal, deviation sqrt(2 / fan_in) (arXiv 1502.01852, eq. 10).
    - he_fan_out: normal, deviation sqrt(2 / fan_out) (eq. 14).
    - uniform: deviation sqrt(1 / (3 fan_in)), as PyTorch's convolutions begin.
    """
    if how == "he_fan_in":
        return
    for layer in net.sublayers():
        if isinstance(layer, nn.Conv2D):
            out_width, in_width, *kernel = layer.weight.shape
            if how == "he_fan_out":
                drawn = paddle.normal(0.0, math.sqrt(2 / (out_width * math.prod(kernel))), layer.weight.shape)
            else:
                bound = math.sqrt(1 / (in_width * math.prod(kernel)))  # the deviation is the bound / sqrt(3)
                drawn = paddle.uniform(layer.weight.shape, min=-bound, max=bound)
            layer.weight.set_value(drawn)
