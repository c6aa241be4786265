"""What a net is made of: a stem, blocks and a head, each of which says once what layers it has. No Paddle in here.

Names and shapes of weights, counting, building, running and slicing follow from `layers(size)`, for an input of
`size` x `size` pixels, which only the multiply-adds depend on. `index` is the node's number, `key` its name in the
parameter names, which tells copies of its weights apart (see `split`).
"""

import math
from typing import NamedTuple

HEAD = 24  # the number of the classifier
OUTER = "relu2"  # the name in a block of the activation behind its sum, whichever it is
SLOPE = f"{OUTER}._weight"  # of a PReLU there


def used_shapes(arch, num_classes: int, split=None) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of what a subnet uses of each trainable weight, the leading part along every axis.

    split: of the supernet, a `split.Split`, if it has one.
    """
    return {f"blocks.{node.key}.{name}": shape for node in (*arch.nodes(split), arch.head(num_classes))
            for layer in node.layers() for name, shape in layer.weights().items()}


def smallest_map(image_size: int) -> int:
    """Height and width in pixels of the features of the last stage: five times halved and rounded up."""
    for _ in range(5):
        image_size = _reduced(image_size, 2)
    return image_size


class Layer(NamedTuple):
    """A convolution without bias and the batch norm behind it, or with no `norm` a linear layer with bias.

    has_slope: whether a PReLU follows the sum that this convolution ends in; it has one slope for all channels.
    """

    name: str  # in the node, as `norm`
    norm: str | None
    in_width: int  # in channels
    out_width: int
    kernel: int = 1
    stride: int = 1
    size: int = 1  # height and width of the output in pixels
    stage: int = 0  # 1..4, 0 for the stem
    has_slope: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.in_width * self.out_width * self.kernel ** 2 * self.size ** 2

    @property
    def params(self) -> int:
        """Trainable parameters, with those of the batch norm."""
        return sum(map(math.prod, self.weights().values()))

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name in the node -> shape of each trainable weight."""
        vector = (self.out_width,)
        if self.norm is None:
            return {f"{self.name}.weight": (self.in_width, self.out_width), f"{self.name}.bias": vector}
        slope = {SLOPE: (1,)} if self.has_slope else {}
        return {f"{self.name}.weight": (self.out_width, self.in_width, self.kernel, self.kernel),
                f"{self.norm}.weight": vector, f"{self.norm}.bias": vector, **slope}

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Name in the node -> shape of each running statistic."""
        vector = (self.out_width,)
        return {f"{self.norm}._mean": vector, f"{self.norm}._variance": vector} if self.norm else {}


class Stem(NamedTuple):
    """conv7x7 of stride 2, bn, relu, max pool of stride 2. out_width: in channels."""

    out_width: int
    index, key = 0, "0"

    def layers(self, size: int = 1) -> tuple[Layer, ...]:
        return (Layer("conv", "bn", 3, self.out_width, 7, 2, _reduced(size, 2)),)

    def out_size(self, size: int) -> int:
        """Height and width of the output in pixels."""
        return _reduced(size, 4)


class Block(NamedTuple):
    """conv3x3, bn, relu, conv3x3, bn, add the shortcut, relu (the basic block of ResNet, arXiv 1512.03385).

    activation: of `checks.ACTIVATIONS`, in place of the relu behind the sum.
    """

    index: int  # 1..23
    stage: int  # 1..4
    position: int  # 1.. within the stage
    in_width: int
    inner_width: int
    out_width: int
    stride: int
    activation: str = "relu"
    copy: int = 0  # which copy of the weights it uses

    @property
    def key(self) -> str:
        return f"{self.index}-{self.copy}" if self.copy else str(self.index)

    @property
    def projects(self) -> bool:
        """Whether the shortcut is a 1x1 convolution: the shape changes on the way through the block."""
        return self.stride != 1 or self.in_width != self.out_width

    def layers(self, size: int = 1) -> tuple[Layer, ...]:
        at = self.out_size(size), self.stage
        main = (Layer("conv1", "bn1", self.in_width, self.inner_width, 3, self.stride, *at),
                Layer("conv2", "bn2", self.inner_width, self.out_width, 3, 1, *at,
                      has_slope=self.activation == "prelu"))
        shortcut = Layer("downsample.0", "downsample.1", self.in_width, self.out_width, 1, self.stride, *at)
        return (*main, shortcut) if self.projects else main

    def out_size(self, size: int) -> int:
        """Height and width of the output in pixels."""
        return _reduced(size, self.stride)


class Head(NamedTuple):
    """The classifier: mean over height and width, then a linear layer."""

    in_width: int
    num_classes: int
    index, key = HEAD, str(HEAD)

    def layers(self, size: int = 1) -> tuple[Layer, ...]:
        return (Layer("fc", None, self.in_width, self.num_classes),)


def _reduced(size, stride):
    """Output size of convolutions and pools, all padded to 'same': ceil(size / stride)."""
    return -(-size // stride)
