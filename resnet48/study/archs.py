"""Which archs a study trains and ranks: one set spread over the space, one where MACs say nothing. No Paddle in here.

Both are pure functions of (space, count, seed) and of what the nets are for (image size, classes). They are chosen
among random archs by maximin: one after the other, always the candidate whose nearest chosen one is farthest (Johnson,
Moore and Ylvisaker 1990; greedily, Gonzalez 1985).
"""

from collections.abc import Sequence

import numpy as np

from ..space.arch import ArchConfig, SearchSpace
from ..system.errors import UserError

DRAWS = 4000  # archs of each of the two kinds that are chosen among
BINS = 10  # of MACs, equally probable
BANDS = 2
BAND_WIDTH = 0.03  # a band holds MACs of so much less and more than its centre
STARTS = 32  # beginnings of a band, of which the one is kept where MACs correlate least


def spread(space: SearchSpace, count: int, seed: int, image_size: int, classes: int) -> list[list[ArchConfig]]:
    """`count` different nets, as many from each tenth of the space's MACs, spread over depths and widths of stages.

    Returned are the tenths, smallest MACs first (with fewer than ten archs, as many equally probable parts). Where
    `count` is no multiple of ten, the first ones have one more.
    """
    pool = _Pool(space, seed, image_size, classes)
    bins = min(BINS, count)
    edges = np.quantile(pool.macs_of_draws, np.arange(1, bins) / bins) if bins else []
    bin_of = np.searchsorted(edges, pool.macs, side="right")
    rounds = [np.flatnonzero(bin_of == place % bins) for place in range(count)]
    chosen = _maximin(pool.features, rounds, np.random.default_rng((seed, 1)))
    return [[pool.archs[index] for index in chosen[first::bins]] for first in range(bins)]


def bands(space: SearchSpace, count: int, seed: int, image_size: int, classes: int,
          without: Sequence[ArchConfig] = ()) -> list[list[ArchConfig]]:
    """`count` different nets in two bands of MACs, around the space's thirds, that differ in what they spend them on.

    Inside a band nets are spread over depths and widths of stages, and their MACs, within 3 % of one value, hardly
    correlate with depth, width and parameters. without: nets that are not chosen again.
    Raises `UserError` for a space that has too few nets of such MACs.
    """
    pool, found = _Pool(space, seed, image_size, classes, without), []
    for band in range(BANDS):
        centre = np.quantile(pool.macs_of_draws, (band + 1) / (BANDS + 1))
        inside = np.flatnonzero(np.abs(pool.macs / centre - 1) <= BAND_WIDTH)
        size = (count + BANDS - 1 - band) // BANDS
        if len(inside) < 2 * size:
            raise UserError(f"the space has too few different nets within {BAND_WIDTH:.0%} of {centre / 1e6:.3g} "
                            f"million MACs, {len(inside)} of {len(pool.archs)} draws, to choose {size} that differ; a "
                            "study of this space needs fewer archs in --bands")
        position = (pool.macs[inside] / centre - 1) / BAND_WIDTH / 2  # of its own: MACs spread over the band, too
        features = np.column_stack([pool.features[inside], position])
        rng, everything = np.random.default_rng((seed, 2, band)), [np.arange(len(inside))] * size
        starts = [inside[_maximin(features, everything, rng)] for _ in range(STARTS if size > 2 else 1)]
        chosen = min(starts, key=pool.dependence_on_macs)
        found.append([pool.archs[index] for index in chosen])
    return found


def in_turn(parts: Sequence[Sequence[ArchConfig]]) -> list[tuple[int, int, ArchConfig]]:
    """The archs of all parts, one of each part after the other: (place in its part, number of the part, arch)."""
    return sorted(((place, number, arch) for number, part in enumerate(parts) for place, arch in enumerate(part)),
                  key=lambda each: each[:2])


def features(arch: ArchConfig) -> list[float]:
    """What archs are spread over: the depth of each stage, and the mean logarithm of its widths: 8 numbers."""
    return [*map(float, arch.depths), *(float(np.log(stage).mean()) for stage in arch.stages)]


class _Pool:
    """What archs are chosen among: random ones of the space, and as many whose stages are narrow or wide throughout.

    Of independent digits all means are alike, and no chosen arch could be wide in one stage and narrow in another.
    archs: different nets; macs, features: of each, features scaled to 0..1; macs_of_draws: of the random archs alone.
    """

    def __init__(self, space, seed, image_size, classes, without=()):
        rng, nets = np.random.default_rng((seed, 0)), {}
        drawn = [space.sample(rng) for _ in range(DRAWS)] + [_even(space, rng) for _ in range(DRAWS)]
        taken = {_net(arch) for arch in without}
        for arch in drawn:
            nets.setdefault(_net(arch), arch)
        self.archs = [arch for net, arch in nets.items() if net not in taken]
        macs = {net: float(arch.macs(image_size, classes)) for net, arch in nets.items()}
        self.macs_of_draws = [macs[_net(arch)] for arch in drawn[:DRAWS]]
        self.macs = np.array([macs[_net(arch)] for arch in self.archs])
        self.params = np.array([arch.params(classes) for arch in self.archs], "float64")
        raw = np.array([features(arch) for arch in self.archs])
        self.depth, self.width = raw[:, :4].sum(axis=1), raw[:, 4:].mean(axis=1)
        self.features = (raw - raw.min(axis=0)) / np.maximum(np.ptp(raw, axis=0), 1e-9)

    def dependence_on_macs(self, chosen):
        """The largest correlation, by size, of MACs with depth, width and parameters."""
        macs = self.macs[chosen]
        others = [each[chosen] for each in (self.depth, self.width, self.params)]
        return max((abs(np.corrcoef(macs, each)[0, 1]) for each in others if np.ptp(each) and np.ptp(macs)), default=0)


def _net(arch):
    """What tells nets apart: codes may differ where narrow widths are rounded to the same."""
    return arch.stem, arch.stages


def _even(space, rng):
    """A random arch whose digits inside a stage are neighbours."""
    depths = [int(rng.integers(fewest, most + 1)) for fewest, most in space.depths]
    outer = [digits[int(rng.integers(len(digits)))] for digits in space.codes[1:]]
    inner = []
    for digits, depth in zip(space.codes[1:], depths):
        level = rng.integers(len(digits)) + rng.integers(-1, 2, size=depth)
        inner.append([digits[index] for index in np.clip(level, 0, len(digits) - 1)])
    return space.assemble(depths, outer, inner)


def _maximin(features, candidates, rng):
    """Indices of rows of `features` [n, f], one of each list of candidates, in their order; none twice.

    """
    distance, free, chosen = np.full(len(features), np.inf), np.ones(len(features), bool), []
    for allowed in candidates:
        allowed = allowed[free[allowed]]
        if not len(allowed):
            raise UserError("the space has fewer different nets than the study asks for")
        best = rng.choice(allowed) if not chosen else allowed[np.argmax(distance[allowed])]
        chosen.append(int(best))
        free[best] = False
        distance = np.minimum(distance, ((features - features[best]) ** 2).sum(axis=1))
    return np.array(chosen, int)
