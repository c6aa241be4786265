"""What samplers draw from: a `SearchSpace`, an `ArchList`, or `Strata` of one of them. No Paddle in here."""

from collections.abc import Iterable

import numpy as np

from ..space.arch import ArchConfig, SearchSpace
from ..system.errors import UserError, quoted

ARCH_STREAM, STRATA_STREAM = 0xA2C4, 0x57A7  # keep these draws apart from those of other users of (seed, step)
BINS = 5  # of `Strata`
ARCHS_PER_BIN = 8  # whose loss says how fast a bin learns
LEAST_SHARE = 0.5  # of 1 / BINS, that a bin keeps
ARCHS_FOR_EDGES = 1000  # drawn from a space to tell where its bins end
TRIES = 200  # draws for one arch in a bin, which takes BINS on average


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
        return self._by_macs[in_turn(len(self._by_macs), draw, (ARCH_STREAM, seed))]


class Strata:
    """Candidates in bins of MACs that are equally probable at first, with weights that follow what still learns.

    Every bin has ARCHS_PER_BIN archs whose losses `observe` is given after each epoch. A bin's weight is LEAST_SHARE of
    the uniform one, and the rest is shared out in proportion to how far its mean loss has fallen since the epoch
    before. (In the spirit of ShiftNAS, arXiv 2307.08300, which shifts the probability of a range of FLOPs by how its
    subnets' performance changes, and AttentiveNAS, arXiv 2011.09011, which draws FLOPs first and then an arch of them.
    The formula, the bins and the rejection are ours; ShiftNAS trains a generator of archs.)
    """

    def __init__(self, candidates: SearchSpace | ArchList):
        self._candidates = candidates
        if isinstance(candidates, ArchList):
            archs = candidates.archs
        else:
            rng = np.random.default_rng(STRATA_STREAM)
            archs = sorted((candidates.sample(rng) for _ in range(ARCHS_FOR_EDGES)), key=ArchConfig.macs)
        places = np.array_split(np.arange(len(archs)), min(BINS, len(archs)))
        self._bins = [[archs[place] for place in each] for each in places]
        self._edges = [each[0].macs() for each in self._bins[1:]]
        self._losses, self.weights = None, [1 / len(self._bins)] * len(self._bins)

    @property
    def observed(self) -> list[list[ArchConfig]]:
        """The fixed archs of each bin, spread evenly over it."""
        return [[each[place] for place in np.linspace(0, len(each) - 1, ARCHS_PER_BIN).round().astype(int)]
                for each in self._bins]

    def observe(self, losses: list[list[float]]) -> None:
        """The losses of the archs of `observed` after an epoch. From the second time on the weights follow them."""
        now = [float(np.mean(each)) for each in losses]
        if self._losses is not None:
            falls = [max(0.0, before - after) for before, after in zip(self._losses, now)]
            least, total = LEAST_SHARE / len(now), sum(falls)
            self.weights = [least + (1 - LEAST_SHARE) * (fall / total if total > 0 else 1 / len(now)) for fall in falls]
        self._losses = now

    def bin_of(self, arch: ArchConfig) -> int:
        return int(np.searchsorted(self._edges, arch.macs(), side="right"))

    def sample(self, rng: np.random.Generator) -> ArchConfig:
        """A random arch: first a bin by the weights, then uniform in it."""
        chosen = int(rng.choice(len(self._bins), p=np.array(self.weights) / sum(self.weights)))
        if not isinstance(self._candidates, ArchList):
            for _ in range(TRIES):
                arch = self._candidates.sample(rng)
                if self.bin_of(arch) == chosen:
                    return arch
        return self._bins[chosen][int(rng.integers(len(self._bins[chosen])))]  # in a space: one without such archs

    def largest(self) -> ArchConfig:
        return self._candidates.largest()

    def smallest(self) -> ArchConfig:
        return self._candidates.smallest()

    def state(self) -> dict:
        """What a checkpoint needs to resume, as plain data."""
        return {"weights": self.weights, "losses": self._losses}

    def load(self, state: dict) -> None:
        """The inverse of `state`; nothing changes for an empty one. Raises `ValueError` for what is not of its form."""
        if not state:
            return
        weights, losses = state["weights"], state["losses"]
        for values in (weights, losses or weights):
            if np.shape(values) != (len(self._bins),) or not np.isfinite(np.array(values, float)).all():
                raise ValueError("not one number for each bin")
        if min(weights) <= 0:
            raise ValueError("a weight that is not positive")
        self.weights, self._losses = weights, losses


Candidates = SearchSpace | ArchList | Strata


def in_turn(count: int, draw: int, stream: tuple) -> int:
    """Which of `count` choices a draw (from 0) is: one permutation after the other."""
    return int(np.random.default_rng((*stream, draw // count)).permutation(count)[draw % count])
