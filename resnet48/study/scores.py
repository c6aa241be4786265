"""Ways to score archs: by what a supernet's evaluation has counted, and by what costs nothing. No Paddle in here.

A new way is a function and a line in its dictionary. A higher score means a better arch.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

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


#: How supernets are scored: function(Evaluated) -> float64 [n].
SCORES: dict[str, Callable[[Evaluated], np.ndarray]] = {"top1": top1}

#: Rankings that need no training: function(arch, image size, classes) -> number.
FREE: dict[str, Callable[[ArchConfig, int, int], float]] = {
    "macs": lambda arch, size, classes: arch.macs(size, classes),
    "params": lambda arch, size, classes: arch.params(classes),
    "depth": lambda arch, size, classes: sum(arch.depths),
}
