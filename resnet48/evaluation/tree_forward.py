"""The forward pass of a batch of images through a prefix tree: every shared block is computed once."""

import collections
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn

from ..images.datasets import normalize
from ..nets import conv_algorithms, layers, norm_statistics
from ..nets.supernet import Supernet, forward_node
from ..space.nodes import Head
from . import prefix_tree

BYTES = 4  # of a float32


class Cost(NamedTuple):
    """What a traversal costs. macs: multiply-adds per image of all of it, classifiers included.

    nodes: those that are computed. path_bytes: float32 activations per image that are alive at the worst point, the
    image and all temporary ones included. statistics_bytes: mean and variance of every batch norm of every node.
    waiting_bytes, temporary_bytes: of `measure_tree`, what is alive at once for each image, and beside it for each
    image of the part that is run.
    """

    macs: int
    nodes: int
    path_bytes: int
    statistics_bytes: int
    waiting_bytes: int
    temporary_bytes: int

    def calibration_bytes(self, images: int, image_size: int) -> int:
        """Bytes of activations that `measure_tree` needs at most for so many images of image_size pixels."""
        part = min(images, norm_statistics.images_per_part(image_size))
        return images * self.waiting_bytes + part * self.temporary_bytes


def cost(steps: list[prefix_tree.Step], image_size: int, num_classes: int) -> Cost:
    """The `Cost` of a traversal for images of image_size pixels."""
    macs = statistics = waiting = most_temporary = 0
    image = 3 * image_size ** 2 * BYTES
    most = 2 * image + image // BYTES  # while it is normalised
    path = [(image_size, image)]  # (output size in pixels, bytes of the output, 0 when it is dropped) of each node
    for step, later in zip(steps, prefix_tree.resumed(steps)):
        del path[1 + step.kept:]
        for node in step.added:
            size = path[-1][0]
            found, size = node.layers(size), node.out_size(size)
            macs += sum(conv.macs for conv in found)
            statistics += sum(math.prod(shape) for conv in found for shape in conv.statistics().values()) * BYTES
            temporary = max(_temporary_values(conv) for conv in found) * BYTES
            kept = sum(part for _, part in path)
            waiting = max(waiting, kept + _waiting_values(found) * BYTES)
            path.append((size, node.out_width * size ** 2 * BYTES))
            # Whoever calls holds the images. The output stands for the features that wait for the shortcut.
            most = max(most, kept - path[0][1] + image + path[-1][1] + temporary)
            most_temporary = max(most_temporary, temporary)
            if len(path) - 2 not in later:
                path[-2] = path[-2][0], 0
        macs += sum(linear.macs for linear in Head(node.out_width, num_classes).layers())
    return Cost(macs, prefix_tree.nodes(steps), most, statistics, waiting, most_temporary)


def cost_of_shards(parts: list[list[prefix_tree.Step]], image_size: int, num_classes: int) -> Cost:
    """The `Cost` of the parts of a traversal one after the other: bytes of activations are those of the worst part."""
    each = Cost(*zip(*(cost(part, image_size, num_classes) for part in parts)))
    return Cost(sum(each.macs), sum(each.nodes), max(each.path_bytes), sum(each.statistics_bytes),
                max(each.waiting_bytes), max(each.temporary_bytes))


def _temporary_values(conv):
    """Values per image alive in a convolution or in its normalisation, without the input, at the worst point."""
    return max(conv_algorithms.temporary_values(conv.in_width, conv.out_width, conv.kernel, conv.size),
               3 * conv.out_width * conv.size ** 2)  # what the convolution gives and two steps of its normalisation


def _waiting_values(found):
    """Values per image that wait for a batch norm of a node with these layers, or with the second for the shortcut."""
    values = [conv.out_width * conv.size ** 2 for conv in found]
    return max(values[0], sum(values[1:], 0))


class ReplayedStatistics:
    """Batch norm with stored statistics, in the order in which a traversal reaches the layers.

    values: float32, mean then variance of one layer after the other; a traversal of the same steps reads them in the
    order in which `measure_tree` wrote them.
    """

    def __init__(self, values: np.ndarray):
        self.values, self.position = values, 0

    def __call__(self, y, layer):
        width = y.shape[1]
        end = self.position + 2 * width
        mean, variance = paddle.to_tensor(self.values[self.position:end]).reshape([2, width])
        self.position = end
        return layers.batch_norm_with(y, layer, mean, variance)


class SlicedWeightCache:
    """Slices of the supernet's convolutions, laid out by `conv_algorithms` and kept for the next node that needs them.

    bytes_kept: how much may be kept; the least recently used go first. dtype: of the computation. dense_up_to: see
    `conv_algorithms.convolution`; fixed for a whole evaluation, because the layout shows in the last digits of the
    logits.
    """

    def __init__(self, net: Supernet, bytes_kept: float, dtype: str = "float32",
                 dense_up_to: int = conv_algorithms.DENSE_UP_TO):
        self.net, self.bytes_kept, self.dtype, self.dense_up_to = net, bytes_kept, dtype, dense_up_to
        self._kept, self._bytes = collections.OrderedDict(), 0

    def conv(self, x: paddle.Tensor, layer: nn.Conv2D, width: int, stride: int = 1) -> paddle.Tensor:
        """`layers.conv`, with the slice kept."""
        key = id(layer), width, x.shape[1], x.shape[2]
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0](x)
        weight = paddle.assign(layer.weight[:width, :x.shape[1]]).astype(self.dtype)
        how = weight, x.shape[2], stride, self.dense_up_to
        made = conv_algorithms.convolution(*how), conv_algorithms.layout_bytes(*how)
        self._kept[key] = made
        self._bytes += made[1]
        while self._bytes > self.bytes_kept and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1][1]
        return made[0](x)


@paddle.no_grad()
def forward_tree(weights: SlicedWeightCache, steps: list[prefix_tree.Step], images: paddle.Tensor, norm: Callable,
                 leaf: Callable | None = None) -> None:
    """Run a batch of images (float32 [N, 3, S, S]) through the steps of `prefix_tree.traversal`.

    weights: `SlicedWeightCache`. norm(y, layer): normalises convolution outputs: a `ReplayedStatistics`, or
    `layers.batch_norm` of a net in evaluation mode, which inherits the running statistics.
    leaf(index, logits [N, classes]): called at each arch.
    """
    def forward(node, x):
        return forward_node(node, weights.net.blocks[node.key], x, norm, weights.conv,
                            layers.linear)

    head = weights.net.nodes[-1]
    _walk(steps, [images.astype(weights.dtype)], forward,
          leaf and (lambda index, x: leaf(index, forward(head, x.astype("float32")))))


@paddle.no_grad()
def measure_tree(weights: SlicedWeightCache, steps: list[prefix_tree.Step], pixels: np.ndarray) -> np.ndarray:
    """The batch-norm statistics of every node of a traversal, exact over all of `pixels` (uint8 [N, 3, S, S]).

    Returns what `ReplayedStatistics` reads: float32, mean then variance of one layer after the other. The images go
    through each node in parts, see `norm_statistics`.
    """
    values = []

    def forward(node, parts):
        return norm_statistics.forward_in_parts(node, weights.net.blocks[node.key], parts,
                                                lambda _, *found: values.extend(each.numpy() for each in found),
                                                weights.conv)

    _walk(steps, [list(norm_statistics.in_parts(pixels, normalize))], forward)
    return np.concatenate(values)


def _walk(steps, path, forward, leaf=None):
    """Go through the steps, from a path that holds the images; of it only what later steps resume from is kept."""
    for step, later in zip(steps, prefix_tree.resumed(steps)):
        del path[1 + step.kept:]
        for node in step.added:
            path.append(forward(node, path[-1]))
            if len(path) - 2 not in later:
                path[-2] = None
        if leaf:
            leaf(step.leaf, path[-1])
