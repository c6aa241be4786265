"""How a convolution is run. One place, so that the nets can be read without knowing it."""

import paddle.nn.functional as F


def conv2d(x, weight, stride=1):
    """Convolution without bias, padded so that stride 1 keeps the size.

    x: [N, C, H, W]; weight: [O, C, K, K] with odd K. Returns [N, O, ceil(H / stride), ceil(W / stride)].
    """
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
