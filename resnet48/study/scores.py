"""Ways to score archs: by what a supernet's evaluation has counted, and by what costs no training.

A new way is a function and a line in its dictionary. A higher score means a better arch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..nets.zen_score import zen_score
from ..ranking import rankings, smoothing
from ..space.arch import ArchConfig


class Evaluated(NamedTuple):
    """What a supernet gave: counts by name, each [n] in the order of archs, of so many validation images."""

    archs: Sequence[ArchConfig]
    counts: dict[str, np.ndarray]
    images: int
    image_size: int
    classes: int


def top1(found: Evaluated) -> np.ndarray:
    """Top-1 in percent [n]."""
    return 100 * found.counts["top1"] / found.images


def cross_entropy(found: Evaluated) -> np.ndarray:
    """The mean cross-entropy to the labels in nats, with a minus [n]: it takes more values than top-1."""
    return -found.counts["cross_entropy"] / found.images


def smoothed(found: Evaluated) -> np.ndarray:
    """Top-1 drawn towards an additive fit by as much as is noise, see `smoothing` [n]."""
    first = found.counts["first_images"]
    sizes = np.stack([first, found.images - first], axis=1)
    halves = 100 * np.stack([found.counts["first_top1"], found.counts["top1"] - found.counts["first_top1"]], 1) / sizes
    return smoothing.smooth(found.archs, top1(found), halves, sizes[0]).scores


def macs_hybrid(found: Evaluated) -> np.ndarray:
    """Top-1 with a little of what MACs say, see `rankings.hybrid` [n]."""
    return rankings.hybrid(top1(found), [arch.macs(found.image_size, found.classes) for arch in found.archs])


#: How supernets are scored: function(Evaluated) -> float64 [n].
SCORES: dict[str, Callable[[Evaluated], np.ndarray]] = {
    "top1": top1, "cross_entropy": cross_entropy, "smoothed": smoothed, "macs_hybrid": macs_hybrid}

#: Rankings that need no training: function(arch, image size, classes) -> number.
FREE: dict[str, Callable[[ArchConfig, int, int], float]] = {
    "macs": lambda arch, size, classes: arch.macs(size, classes),
    "params": lambda arch, size, classes: arch.params(classes),
    "depth": lambda arch, size, classes: sum(arch.depths),
    "zen_score": lambda arch, size, classes: zen_score(arch, size),
}
