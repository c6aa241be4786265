"""The ResNet48 nets: `Supernet(space)` takes the arch as an argument, `ResNet48(arch)` is one subnet on its own.

Both are the same blocks under the same parameter names (`blocks.0` the stem, 1..23, `blocks.24` the classifier), so a
subnet is extracted by slicing and no name is ever changed.
"""

import paddle
from paddle import nn
import paddle.nn.functional as F

from . import layers
from .arch import HEAD


class Supernet(nn.Layer):
    """All subnets of a space in one set of weights.

    space: which widths and depths; num_classes: outputs of the classifier.
    """

    def __init__(self, space, num_classes):
        super().__init__()
        self.space, self.num_classes = space, num_classes
        self.blocks = _build(space.largest(), num_classes)

    def forward(self, images, arch, norm=None):
        """Logits [N, classes] of the subnet `arch` for images [N, 3, H, W].

        norm: how a batch norm is done [`layers.batch_norm`], see also `layers.Statistics`.
        Raises `ArchError` for an arch that the shared weights cannot serve.
        """
        arch.require_tied()
        return _run(self.blocks, images, arch, norm)


class ResNet48(nn.Layer):
    """One arch with weights of its own, of just its widths; widths that differ along a stage get a projection."""

    def __init__(self, arch, num_classes):
        super().__init__()
        self.arch, self.num_classes = arch, num_classes
        self.blocks = _build(arch, num_classes)

    def forward(self, images, norm=None):
        """Logits [N, classes] for images [N, 3, H, W]."""
        return _run(self.blocks, images, self.arch, norm)


class _Stem(nn.Layer):
    def __init__(self, width):
        super().__init__()
        self.conv = _conv(3, width, 7, stride=2)
        self.bn = nn.BatchNorm2D(width)


class _Block(nn.Layer):
    """conv3x3, bn, relu, conv3x3, bn, add the shortcut, relu (the basic block of ResNet, arXiv 1512.03385)."""

    def __init__(self, block):
        super().__init__()
        self.conv1 = _conv(block.in_width, block.inner_width, 3, block.stride)
        self.bn1 = nn.BatchNorm2D(block.inner_width)
        self.conv2 = _conv(block.inner_width, block.out_width, 3)
        self.bn2 = nn.BatchNorm2D(block.out_width)
        if block.projects:
            self.downsample = nn.Sequential(_conv(block.in_width, block.out_width, 1, block.stride),
                                            nn.BatchNorm2D(block.out_width))


class _Head(nn.Layer):
    def __init__(self, width, num_classes):
        super().__init__()
        self.fc = nn.Linear(width, num_classes)


def _conv(in_width, out_width, kernel, stride=1):
    return nn.Conv2D(in_width, out_width, kernel, stride, padding=kernel // 2, bias_attr=False)


def _build(arch, num_classes):
    blocks = {"0": _Stem(arch.stem)}
    blocks.update({str(block.index): _Block(block) for block in arch.blocks()})
    blocks[str(HEAD)] = _Head(arch.out_width, num_classes)
    return nn.LayerDict(blocks)


def _run(blocks, images, arch, norm):
    norm = norm or layers.batch_norm
    x = stem(blocks["0"], images, arch.stem, norm, layers.conv)
    for block in arch.blocks():
        x = basic_block(blocks[str(block.index)], x, block, norm, layers.conv)
    return layers.linear(x.mean(axis=[2, 3]), blocks[str(HEAD)].fc)


def stem(layer, images, width, norm, conv):
    """Images [N, 3, H, W] to features [N, width, ceil(H / 4), ceil(W / 4)]. conv: how a convolution is done."""
    x = F.relu(norm(conv(images, layer.conv, width, stride=2), layer.bn))
    return F.max_pool2d(x, 3, 2, padding=1)


def basic_block(layer, x, block, norm, conv):
    """Features [N, in, H, W] to [N, out, ceil(H / stride), ceil(W / stride)]. conv: how a convolution is done."""
    y = F.relu(norm(conv(x, layer.conv1, block.inner_width, block.stride), layer.bn1))
    y = norm(conv(y, layer.conv2, block.out_width), layer.bn2)
    if block.projects:
        projection, projection_norm = layer.downsample
        x = norm(conv(x, projection, block.out_width, block.stride), projection_norm)
    return F.relu(x + y)


def leading_sizes(arch):
    """How much of each trainable weight a subnet uses: parameter name -> sizes of its first axes, the rest is whole."""
    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    sizes = {"blocks.0.conv.weight": (arch.stem,), **norm("blocks.0.bn", arch.stem)}
    for block in arch.blocks():
        name, inner, out = f"blocks.{block.index}", block.inner_width, block.out_width
        sizes |= {f"{name}.conv1.weight": (inner, block.in_width), **norm(f"{name}.bn1", inner),
                  f"{name}.conv2.weight": (out, inner), **norm(f"{name}.bn2", out)}
        if block.projects:
            sizes |= {f"{name}.downsample.0.weight": (out, block.in_width),
                      **norm(f"{name}.downsample.1", out)}
    return sizes | {f"blocks.{HEAD}.fc.weight": (arch.out_width,), f"blocks.{HEAD}.fc.bias": ()}


def zero_residuals(net):
    """Start every block as its shortcut: weight 0 in its last batch norm (arXiv 1706.02677, section 5.1).

    Narrow nets as deep as these hardly learn in a few hundred steps without it.
    """
    for block in net.blocks.values():
        if isinstance(block, _Block):
            block.bn2.weight.set_value(paddle.zeros_like(block.bn2.weight))


def extract(supernet, arch):
    """A `ResNet48` with the weights that `arch` uses in the supernet: the leading part of every tensor."""
    arch.require_tied()
    subnet = ResNet48(arch, supernet.num_classes)
    shared = supernet.state_dict()
    with paddle.no_grad():
        for name, own in subnet.state_dict().items():
            own.set_value(shared[name][tuple(slice(size) for size in own.shape)])
    subnet.train() if supernet.training else subnet.eval()
    return subnet


def sort_channels(net):
    """Put the most important inner channels of every block first, so that narrow subnets start with them.

    Importance is the L1 norm of the second convolution's filters over that channel (Once-for-All, arXiv 1908.09791).
    The order of inner channels is free, so the function of the full net is unchanged.
    """
    with paddle.no_grad():
        for name, block in net.blocks.items():
            if not isinstance(block, _Block):
                continue
            importance = block.conv2.weight.abs().sum(axis=[0, 2, 3])
            order = paddle.argsort(importance, descending=True)
            for tensor in (block.conv1.weight, *(getattr(block.bn1, part) for part in
                                                 ("weight", "bias", "_mean", "_variance"))):
                tensor.set_value(paddle.index_select(tensor, order, axis=0))
            block.conv2.weight.set_value(paddle.index_select(block.conv2.weight, order, axis=1))
