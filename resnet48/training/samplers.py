"""Samplers: which subnets a step trains.

A sampler is a pure function of (candidates, seed, moment, count), so that every rank and every resume agree and no
other random draw is disturbed; it gives `count` (role, arch) pairs. Candidates are a `SearchSpace` or an `ArchList`.
A new one is a function here, a line in SAMPLERS and a YAML file that names it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ..space.arch import ArchConfig, SearchSpace
from ..system.errors import UserError, quoted

ARCH_STREAM, FAIR_STREAM = 0xA2C4, 0xFA12  # keep these draws apart from those of other users of (seed, step)

Pairs = list[tuple[str, ArchConfig]]


class Moment(NamedTuple):
    """Where a step is in its stage. step: from 0; steps: of the stage; epoch: passes over the images, a fraction.

    warming_up: whether the learning rate still rises. seed: of the stage's random draws. part: of the batch, from 0,
    where it is run in several.
    """

    step: int
    steps: int
    epoch: float
    warming_up: bool = False
    seed: int = 0
    part: int = 0


class ArchList:
    """The archs of a list as candidates: what a sampler asks of a `SearchSpace`, with sizes compared by MACs."""

    def __init__(self, archs: Iterable[ArchConfig]):
        self._by_macs = sorted(archs, key=ArchConfig.macs)

    @property
    def archs(self) -> tuple[ArchConfig, ...]:
        """All of them, the smallest first."""
        return tuple(self._by_macs)

    def largest(self) -> ArchConfig:
        return self._by_macs[-1]

    def smallest(self) -> ArchConfig:
        return self._by_macs[0]

    def parse(self, code: str) -> ArchConfig:
        found = [arch for arch in self._by_macs if arch.code == code]
        if not found:
            raise UserError(f"the arch code {quoted(code)} is not in the list")
        return found[0]

    def sample(self, rng: np.random.Generator) -> ArchConfig:
        return self._by_macs[int(rng.integers(len(self._by_macs)))]

    def drawn(self, seed: int, draw: int) -> ArchConfig:
        """The arch of a draw (from 0) without replacement: every arch comes once before one comes again."""
        return self._by_macs[_in_turn(len(self._by_macs), draw, (ARCH_STREAM, seed))]


Candidates = SearchSpace | ArchList


def uniform(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """`count` random archs: of a space drawn independently, of a list without replacement."""
    if isinstance(candidates, ArchList):
        return [("random", candidates.drawn(seed, moment.step * count + i)) for i in range(count)]
    streams = [(ARCH_STREAM, seed, moment.step, i) for i in range(count)]
    return [("random", candidates.sample(np.random.default_rng(stream))) for stream in streams]


def sandwich(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """The largest, the smallest and `count - 2` random ones (the sandwich rule, arXiv 1903.05134, section 3.1).

    Raises `UserError` for a count under 2.
    """
    return [*_extremes(candidates, count, "sandwich"), *uniform(candidates, seed, moment, count - 2)]


def largest_and_random(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """The largest and `count - 1` random ones."""
    return [("largest", candidates.largest()), *uniform(candidates, seed, moment, count - 1)]


def fair(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """Strictly fair draws (FairNAS, arXiv 1907.01845, section 3.3).

    Every depth of a stage, and every code of a group of tied convolutions, comes once before it comes again, by
    permutations that are independent of each other; so over K = lcm of the numbers of choices, all come equally often.
    With a `count` of K a step is the paper's (K subnets, one update); with fewer, the cycle goes on in the next step.
    """
    return [("random", _fair_draw(candidates, seed, moment.step * count + i)) for i in range(count)]


def fair_sandwich(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """The largest, the smallest and `count - 2` fair draws. Raises `UserError` for a count under 2."""
    return [*_extremes(candidates, count, "fair sandwich"), *fair(candidates, seed, moment, count - 2)]


class Sampler(NamedTuple):
    """A sampler, and every role that it can give."""

    draw: Callable[..., Pairs]
    roles: tuple[str, ...]


SAMPLERS = {
    "uniform": Sampler(uniform, ("random",)),
    "sandwich": Sampler(sandwich, ("largest", "smallest", "random")),
    "largest_and_random": Sampler(largest_and_random, ("largest", "random")),
    "fair": Sampler(fair, ("random",)),
    "fair_sandwich": Sampler(fair_sandwich, ("largest", "smallest", "random")),
}


def _extremes(candidates, count, rule):
    if count < 2:
        raise UserError(f"--dyna_batch_size must be 2 or more for the {rule} rule, got {count}")
    return [("largest", candidates.largest()), ("smallest", candidates.smallest())]


def _fair_draw(candidates, seed, draw):
    if isinstance(candidates, ArchList):
        return candidates.drawn(seed, draw)

    def turn(options, *variable):
        return options[_in_turn(len(options), draw, (FAIR_STREAM, seed, *variable))]

    depths, outer, inner = [], [], []
    for stage, ((fewest, most), digits) in enumerate(zip(candidates.depths, candidates.codes[1:])):
        depths.append(turn(range(fewest, most + 1), stage, 0))
        outer.append(turn(candidates.outer_codes[stage], stage, 1))
        # Also for blocks that this depth leaves out: what is drawn in one block does not depend on the depths.
        inner.append([turn(digits, stage, 2 + block) for block in range(most)][:depths[-1]])
    return candidates.assemble(depths, outer, inner)


def _in_turn(count, draw, stream):
    """Which of `count` choices a draw (from 0) is: one permutation after the other."""
    return int(np.random.default_rng((*stream, draw // count)).permutation(count)[draw % count])
