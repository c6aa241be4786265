"""Samplers: which subnets a step trains.

A sampler is a pure function of (candidates, seed, step, total steps, count), so that every rank and every resume agree
and no other random draw is disturbed; it gives (role, arch) pairs. Candidates are a `SearchSpace` or an `ArchList`.
A new one is a function here, a line in SAMPLERS and a YAML file that names it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ..space.arch import ArchConfig, SearchSpace
from ..system.errors import UserError

ARCH_STREAM = 0xA2C4  # keeps these draws apart from those of other users of (seed, step)

Pairs = list[tuple[str, ArchConfig]]


class ArchList:
    """The archs of a list as candidates: what a sampler asks of a `SearchSpace`, with sizes compared by MACs."""

    def __init__(self, archs: Iterable[ArchConfig]):
        self._by_macs = sorted(archs, key=ArchConfig.macs)

    def largest(self) -> ArchConfig:
        return self._by_macs[-1]

    def smallest(self) -> ArchConfig:
        return self._by_macs[0]

    def sample(self, rng: np.random.Generator) -> ArchConfig:
        return self._by_macs[int(rng.integers(len(self._by_macs)))]


def uniform(candidates: SearchSpace | ArchList, seed: int, step: int, total_steps: int, count: int) -> Pairs:
    """`count` random archs, drawn independently."""
    return [("random", _draw(candidates, seed, step, i)) for i in range(count)]


def sandwich(candidates: SearchSpace | ArchList, seed: int, step: int, total_steps: int, count: int) -> Pairs:
    """The largest, the smallest and `count - 2` random ones (the sandwich rule, arXiv 1903.05134, section 3.1).

    Raises `UserError` for a count under 2.
    """
    if count < 2:
        raise UserError(f"--dyna_batch_size must be 2 or more for the sandwich rule, got {count}")
    return [("largest", candidates.largest()), ("smallest", candidates.smallest()),
            *uniform(candidates, seed, step, total_steps, count - 2)]


class Sampler(NamedTuple):
    """A sampler, and every role that it can give."""

    draw: Callable[..., Pairs]
    roles: tuple[str, ...]


SAMPLERS = {
    "uniform": Sampler(uniform, ("random",)),
    "sandwich": Sampler(sandwich, ("largest", "smallest", "random")),
}


def _draw(candidates, seed, step, i):
    return candidates.sample(np.random.default_rng((ARCH_STREAM, seed, step, i)))
