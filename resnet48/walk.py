"""The tree of a list of archs, walked for one batch of images: every shared block is computed once."""

import collections

import numpy as np
import paddle

from . import engine, layers
from .arch import HEAD, Stem
from .models import basic_block, stem
from .tree import BYTES


class Tape:
    """The statistics of every batch norm that a walk meets, in the order in which it meets them.

    values: float32, mean then variance of one layer after the other; a walk over the same steps reads them in the order
    in which `Measuring` wrote them.
    """

    def __init__(self, values):
        self.values, self.position = values, 0

    def __call__(self, y, layer):
        width = y.shape[1]
        end = self.position + 2 * width
        mean, variance = paddle.to_tensor(self.values[self.position:end]).reshape([2, width])
        self.position = end
        return layers.normalise(y, layer, mean, variance)


class Measuring:
    """Computes the statistics of each layer over the batch, as `layers.Statistics` does, and keeps them in order."""

    def __init__(self):
        self.parts = []

    def __call__(self, y, layer):
        mean, variance = layers.moments(y)
        self.parts += [mean.numpy(), variance.numpy()]
        return layers.normalise(y, layer, mean, variance)

    def values(self):
        """What a `Tape` reads."""
        return np.concatenate(self.parts)


class Weights:
    """Slices of the supernet's convolutions, laid out for the engine and kept for the next node that needs them.

    bytes_kept: how much may be kept; the least recently used go first. dtype: of the computation. dense_up_to: see
    `engine.convolution`; fixed for a whole evaluation, because the layout shows in the last digits of the logits.
    """

    def __init__(self, net, bytes_kept, dtype="float32", dense_up_to=engine.DENSE_UP_TO):
        self.net, self.bytes_kept, self.dtype, self.dense_up_to = net, bytes_kept, dtype, dense_up_to
        self._kept, self._bytes = collections.OrderedDict(), 0

    def conv(self, x, layer, width, stride=1):
        """`layers.conv`, with the slice kept."""
        key = id(layer), width, x.shape[1], x.shape[2]
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0](x)
        weight = paddle.assign(layer.weight[:width, :x.shape[1]]).astype(self.dtype)
        made = engine.convolution(weight, x.shape[2], stride, self.dense_up_to), BYTES * int(weight.size) * 16 // 9
        self._kept[key] = made  # its bytes are those of the largest layout
        self._bytes += made[1]
        while self._bytes > self.bytes_kept and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1][1]
        return made[0](x)


@paddle.no_grad()
def run(weights, steps, images, norm, leaf=None):
    """Walk the steps of `tree.walk` with a batch of images (float32 [N, 3, S, S]), all at once.

    weights: `Weights`. norm(y, layer): normalises convolution outputs: a `Tape`, `Measuring`, or `layers.batch_norm`
    of a net in evaluation mode, which inherits the running statistics.
    leaf(index, logits [N, classes]): called at each arch. At most one path of activations is alive.
    """
    blocks, path, images = weights.net.blocks, [], images.astype(weights.dtype)
    for step in steps:
        del path[step.kept:]
        for node in step.added:
            path.append(stem(blocks["0"], images, node.width, norm, weights.conv) if isinstance(node, Stem) else
                        basic_block(blocks[str(node.index)], path[-1], node, norm, weights.conv))
        if leaf:
            leaf(step.leaf, layers.linear(path[-1].astype("float32").mean(axis=[2, 3]), blocks[str(HEAD)].fc))
