"""The ResNet48 nets: `Supernet(space)` takes the arch as an argument, `ResNet48(arch)` is one subnet on its own.

Both are the same nodes under the same parameter names (`blocks.0` the stem, 1..23, `blocks.24` the classifier), so a
subnet is extracted by slicing and no name is ever changed.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence

import paddle
from paddle import nn
import paddle.nn.functional as F

from ..space.arch import ArchConfig, SearchSpace
from ..space.nodes import OUTER, Block, Head, Stem
from ..space.split import Split
from . import layers


class PReLU(nn.PReLU):
    """One slope for all channels, .25 at first (arXiv 1502.01852), in whichever precision the features are."""

    def forward(self, x):
        return F.prelu(x, self._weight if self._weight.dtype == x.dtype else self._weight.astype(x.dtype))


#: What follows the sum of a block, as in the third place of CVPR 2022's first track (arXiv 2206.13329); Mish is arXiv
#: 1908.08681. The other activation of a block and that of the stem are always ReLUs.
ACTIVATIONS = {"relu": nn.ReLU, "prelu": PReLU, "mish": nn.Mish}
Path = Sequence[tuple[Stem | Block | Head, nn.LayerDict]]  # the nodes of a net in order, each with its layers


@paddle.jit.not_to_static  # nor is there in the next one: an export records what they do
def between_norms(node: Stem | Block, layer: nn.LayerDict, x: paddle.Tensor,
                  conv: Callable) -> Generator[paddle.Tensor, Callable, None]:
    """Run one node of a net but for its batch norms, so that several batches can wait for each other there.

    Yields the output of each convolution, in the order of the node's layers, is sent the function that normalises it,
    and yields the features in the end. Arguments as for `forward_node`.
    """
    def convolved(x, each):
        return conv(x, layer[each.name], each.out_width, each.stride)

    first, *others = node.layers()
    y = convolved(x, first)
    y = (yield y)(y)
    y = F.relu(y)
    if isinstance(node, Stem):
        y = F.max_pool2d(y, 3, 2, padding=1)
    else:
        second, *shortcut = others
        y = convolved(y, second)
        y = (yield y)(y)
        if shortcut:
            x = convolved(x, *shortcut)
            x = (yield x)(x)
        y = layer[OUTER](x + y)
    yield y


@paddle.jit.not_to_static
def forward_node(node: Stem | Block | Head, layer: nn.LayerDict, x: paddle.Tensor, norm: Callable,
                 conv: Callable, linear: Callable) -> paddle.Tensor:
    """Run one node of a net.

    x: images [N, 3, H, W] for a `Stem`, which gives features [N, width, ceil(H / 4), ceil(W / 4)]; features
    [N, in, H, W] for a `Block`, which gives [N, out, ceil(H / stride), ceil(W / stride)], and for a `Head`, which gives
    logits [N, classes]. layer: its layers by their names in the node, in a supernet with more channels than the node.
    norm: how a batch norm is done, as `layers.batch_norm`; conv: how a convolution is done, as `layers.conv`; linear:
    how the classifier is done, as `layers.linear`.
    """
    if isinstance(node, Head):
        return linear(x.mean(axis=[2, 3]), layer[node.layers()[0].name])
    between = between_norms(node, layer, x, conv)
    found = next(between)
    for each in node.layers():
        found = None  # else it would stay until the next is there
        found = between.send(lambda y: norm(y, layer[each.norm]))
    return found


class Supernet(nn.Layer):
    """All subnets of a space in one set of weights.

    space: which widths and depths; num_classes: outputs of the classifier; split: of the few-shot net that it is to be.
    nodes: what the weights are for: the nodes of the largest net, and the copies of blocks that a split makes.
    """

    def __init__(self, space: SearchSpace, num_classes: int, split: Split | None = None):
        super().__init__()
        self.space, self.num_classes, self.split = space, num_classes, None
        self.nodes, self.blocks = _build(space.largest(), num_classes)
        if split:
            self.divide(split)

    def divide(self, split: Split) -> dict[str, str]:
        """Give every group of a split its own weights of the stage, equal to those there are, running statistics too.

        The first group keeps these under their names; `blocks.19-1` is what the second has of block 19. Returns what
        each of the new parameters is a copy of, by name. For a net that is not split yet.
        """
        *nodes, head = self.nodes
        copies, copied = split.copies(nodes), {}
        for node in copies:
            given, layer = self.blocks[str(node.index)].state_dict(), nn.LayerDict(dict(_layers(node)))
            for name, own in layer.state_dict().items():
                own.set_value(given[name])
                own.stop_gradient = given[name].stop_gradient
                copied[f"blocks.{node.key}.{name}"] = f"blocks.{node.index}.{name}"
            layer.train() if self.training else layer.eval()
            self.blocks[node.key] = layer
        self.nodes, self.split = (*nodes, *copies, head), split
        return copied

    def forward(self, images: paddle.Tensor, arch: ArchConfig, norm: Callable | None = None,
                linear: Callable | None = None) -> paddle.Tensor:
        """Logits [N, classes] of the subnet `arch` for images [N, 3, H, W].

        norm: how a batch norm is done [`layers.batch_norm`], see also `norm_statistics.Statistics`; linear: how the
        classifier is done [`layers.linear`].
        Raises `ArchError` for an arch that the shared weights cannot serve.
        """
        return _forward(self.path(arch), images, norm or layers.batch_norm, linear)

    def path(self, arch: ArchConfig) -> Path:
        """The nodes of a subnet in order, each with its layers here. Raises `ArchError` as `forward` does."""
        arch.require_tied()
        nodes = (*arch.nodes(self.split), arch.head(self.num_classes))
        return [(node, self.blocks[node.key]) for node in nodes]


class ResNet48(nn.Layer):
    """One arch with weights of its own, of just its widths; widths that differ along a stage get a projection."""

    def __init__(self, arch: ArchConfig, num_classes: int):
        super().__init__()
        self.arch, self.num_classes = arch, num_classes
        self.nodes, self.blocks = _build(arch, num_classes)

    def forward(self, images: paddle.Tensor, norm: Callable | None = None,
                linear: Callable | None = None) -> paddle.Tensor:
        """Logits [N, classes] for images [N, 3, H, W]. norm [`layers.own_batch_norm`], linear: as for `Supernet`."""
        return _forward(self.path(), images, norm or layers.own_batch_norm, linear)

    def path(self) -> Path:
        """The nodes in order, each with its layers."""
        return [(node, self.blocks[node.key]) for node in self.nodes]


def shapes(what: SearchSpace | ArchConfig, num_classes: int, split: Split | None = None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that the `state_dict` of a `Supernet` of a space, or a `ResNet48` of an arch, will hold."""
    arch = what.largest() if isinstance(what, SearchSpace) else what
    nodes = (*arch.nodes(), *(split.copies(arch.nodes()) if split else ()), arch.head(num_classes))
    return {f"blocks.{node.key}.{name}": shape for node in nodes
            for each in node.layers() for name, shape in (each.weights() | each.statistics()).items()}


def _build(arch, num_classes):
    """The nodes of a net, and under their numbers the layers of each under their names."""
    nodes = (*arch.nodes(), arch.head(num_classes))
    return nodes, nn.LayerDict({node.key: nn.LayerDict(dict(_layers(node))) for node in nodes})


def _layers(node):
    for each in node.layers():
        if each.norm:
            yield each.name, nn.Conv2D(each.in_width, each.out_width, each.kernel, each.stride,
                                       padding=each.kernel // 2, bias_attr=False)
            yield each.norm, nn.BatchNorm2D(each.out_width)
        else:
            yield each.name, nn.Linear(each.in_width, each.out_width)
    if isinstance(node, Block):
        yield OUTER, ACTIVATIONS[node.activation]()


def _forward(path, x, norm, linear):
    for node, layer in path:
        x = forward_node(node, layer, x, norm, layers.conv, linear or layers.linear)
    return x


def _residuals(net):
    """conv1, bn1, conv2, bn2 of every basic block."""
    for node in net.nodes:
        if isinstance(node, Block):
            yield list(net.blocks[node.key].values())[:4]


def zero_residuals(net: Supernet | ResNet48) -> None:
    """Start every block as its shortcut: weight 0 in its last batch norm (arXiv 1706.02677, section 5.1).

    Narrow nets as deep as these hardly learn in a few hundred steps without it.
    """
    for *_, norm in _residuals(net):
        norm.weight.set_value(paddle.zeros_like(norm.weight))


def extract(supernet: Supernet, arch: ArchConfig) -> ResNet48:
    """A `ResNet48` with the weights that `arch` uses in the supernet: the leading part of every tensor, of its copy.

    Raises `ArchError` for an arch that the shared weights cannot serve.
    """
    arch.require_tied()
    subnet = ResNet48(dataclasses.replace(arch, activation=supernet.space.activation), supernet.num_classes)
    with paddle.no_grad():
        for node, own_node in zip((*arch.nodes(supernet.split), supernet.nodes[-1]), subnet.nodes, strict=True):
            shared = supernet.blocks[node.key].state_dict()
            for name, own in subnet.blocks[own_node.key].state_dict().items():
                own.set_value(shared[name][tuple(slice(size) for size in own.shape)])
    subnet.train() if supernet.training else subnet.eval()
    return subnet


def sort_channels(net: Supernet | ResNet48) -> None:
    """Put the most important inner channels of every block first, so that narrow subnets start with them.

    Importance is the L1 norm of the second convolution's filters over that channel (Once-for-All, arXiv 1908.09791).
    The order of inner channels is free, so the function of the full net is unchanged.
    """
    with paddle.no_grad():
        for first, norm, second, _ in _residuals(net):
            order = paddle.argsort(second.weight.abs().sum(axis=[0, 2, 3]), descending=True)
            for tensor in (first.weight, norm.weight, norm.bias, norm._mean, norm._variance):
                tensor.set_value(paddle.index_select(tensor, order, axis=0))
            second.weight.set_value(paddle.index_select(second.weight, order, axis=1))
