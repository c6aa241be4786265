"""Exact batch-norm statistics of a net over images that need not all go through it at once.

A layer's mean and variance are those of all images, and the next layer sees features that were normalised by them. So
the images go through a net in parts, side by side: each part up to the next batch norm, whose statistics are merged
from those of the parts, then each part on to the one after it. What waits for a batch norm is one map of features per
image; what a convolution needs beside it, which is several times as much, one part needs at a time. At full width and
224 pixels an image waits with up to 3.8 MB, in the tree of the published list (shards of 500 archs) with up to 4.8 MB,
and 64 images need 0.6 GB beside: at most 2.6 and 3.1 GB for 512 images (7.3 GB as one batch).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import paddle
from paddle import nn

from ..space.nodes import Block, Stem
from . import layers
from .supernet import Path, between_norms, forward_node

#: Pixels of the images of a part. A fixed number, and not what memory allows, because how images are divided shows in
#: the last digits of the statistics. With 64 images of 224 x 224 pixels a convolution needs up to 0.6 GB.
PART_PIXELS = 64 * 224 ** 2


def images_per_part(image_size: int) -> int:
    """The most images of image_size pixels that go through a net at once."""
    return max(1, PART_PIXELS // image_size ** 2)


def in_parts(pixels: np.ndarray, prepare: Callable[[paddle.Tensor], paddle.Tensor]) -> Iterator[paddle.Tensor]:
    """Images [N, 3, S, S], prepared, in as few parts as `images_per_part` allows, which differ by one image at most."""
    for part in np.array_split(pixels, max(1, -(-len(pixels) // images_per_part(pixels.shape[-1])))):
        yield prepare(paddle.to_tensor(np.array(part)))


def moments(parts: Sequence[paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Mean and biased variance of each channel over all of the parts, each [N, C, H, W] of its own N: both [C].

    Those of the parts are merged in float64 (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979); of one part they are `layers.moments`.
    """
    if len(parts) == 1:
        return layers.moments(parts[0])
    means, variances = (paddle.stack(each).astype("float64") for each in zip(*map(layers.moments, parts)))
    share = paddle.to_tensor([[part.shape[0]] for part in parts], "float64") / sum(part.shape[0] for part in parts)
    mean = (share * means).sum(axis=0)
    variance = (share * (variances + (means - mean).square())).sum(axis=0)
    return mean.astype("float32"), variance.astype("float32")


def forward_in_parts(node: Stem | Block, layer: nn.LayerDict, parts: Iterable[paddle.Tensor], keep: Callable,
                     conv: Callable = layers.conv) -> list[paddle.Tensor]:
    """`supernet.forward_node` of all parts of a set of images, with the batch-norm statistics of the whole set.

    parts: images or features, each [N, C, H, W] of its own N. keep(batch norm, mean [C], variance [C]) is called for
    each batch norm, in the order of the node's layers.
    """
    nodes = [between_norms(node, layer, x, conv) for x in parts]
    waiting = [next(each) for each in nodes]
    for each in node.layers():
        norm, found = layer[each.norm], moments(waiting)
        keep(norm, *found)
        for place, part in enumerate(nodes):
            waiting[place] = None  # else it would stay until the next is there
            waiting[place] = part.send(lambda y: layers.batch_norm_with(y, norm, *found))
    return waiting


@paddle.no_grad()
def forward(path: Path, parts: Iterable[paddle.Tensor], keep: Callable) -> paddle.Tensor:
    """Logits [N, classes] of all images of a set, normalised by the statistics of the whole set.

    path: of `Supernet.path` or `ResNet48.path`; parts: images, each float32 [N, 3, S, S] of its own N; keep: as for
    `forward_in_parts`.
    """
    *path, (head, classifier) = path
    for node, layer in path:
        parts = forward_in_parts(node, layer, parts, keep)
    return paddle.concat([forward_node(head, classifier, x, None, layers.conv, layers.linear) for x in parts])


class Statistics:
    """Batch-norm statistics of one subnet: computed exactly on a set of images, then used instead of the running ones.

    `forward(net.path(arch), parts, statistics.keep)` computes them: every layer sees inputs that were normalised by the
    exact statistics of the layers before, which is what a subnet trained alone converges to. `net(images, arch,
    norm=statistics.apply)` evaluates with them. The net itself is not changed.
    """

    def __init__(self):
        self._of_layer = {}  # batch-norm layer -> (mean, biased variance), each [C]

    def keep(self, layer: nn.BatchNorm2D, mean: paddle.Tensor, variance: paddle.Tensor) -> None:
        self._of_layer[layer] = mean, variance

    def apply(self, x: paddle.Tensor, layer: nn.BatchNorm2D) -> paddle.Tensor:
        return layers.batch_norm_with(x, layer, *self._of_layer[layer])

    def __getitem__(self, layer: nn.BatchNorm2D) -> tuple[paddle.Tensor, paddle.Tensor]:
        return self._of_layer[layer]

    def store(self) -> None:
        """Write the statistics into the running ones of the layers they were measured for (a net of its own)."""
        for layer, (mean, variance) in self._of_layer.items():
            layer._mean.set_value(mean)
            layer._variance.set_value(variance)
