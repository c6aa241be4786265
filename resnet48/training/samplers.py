"""Samplers: which subnets a step trains.

A sampler is a pure function of (candidates, seed, moment, count), so that every rank and every resume agree and no
other random draw is disturbed; it gives `count` (role, arch) pairs, the larger first where it matters. Candidates are a
`SearchSpace` or an `ArchList`, or `Strata` of one of them, whose weights change while training.
A new one is a function here, a line in SAMPLERS and a YAML file that names it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..space.arch import ArchConfig
from ..system.errors import UserError
from .candidates import ARCH_STREAM, STRATA_STREAM, ArchList, Candidates, Strata, in_turn

FAIR_STREAM, BIASED_STREAM = 0xFA12, 0xB1A5  # keep these draws apart from those of other users of (seed, step)
#: What a channel of each stage counts, in the size of `biased`.
CHANNEL_WEIGHTS = (1.0, 1.1 / 2, 1.7 / 4, 1.9 / 8)

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


def largest(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """The largest alone, whatever the `count`."""
    return [("largest", candidates.largest())]


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


def stratified(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """`count` archs, each from a bin of MACs drawn by its weight, see `Strata`."""
    strata = candidates if isinstance(candidates, Strata) else _equal_strata(candidates)
    streams = [(STRATA_STREAM, seed, moment.step, i) for i in range(count)]
    return [("random", strata.sample(np.random.default_rng(stream))) for stream in streams]


def stratified_sandwich(candidates: Candidates, seed: int, moment: Moment, count: int) -> Pairs:
    """The largest, the smallest and `count - 2` stratified ones. Raises `UserError` for a count under 2."""
    return [*_extremes(candidates, count, "stratified sandwich"), *stratified(candidates, seed, moment, count - 2)]


def biased(candidates: Candidates, seed: int, moment: Moment, count: int, drawn: int = 400, every: int = 3) -> Pairs:
    """The `count` largest of `drawn` random archs, and at each step that `every` divides one more, any random one.

    The largest comes first. Their size is the sum of the widths of all convolutions but shortcuts, a channel weighed by
    its stage: see CHANNEL_WEIGHTS. As in the published code of the first place of the CVPR 2022 challenge
    (FuxiAutoML), where `drawn` is 400, `every` 3, and stages count as 64 channels times 1, 1.1, 1.7 and 1.9. There the
    widths are rounded up to multiples of 8, here they are those of the net; and there archs of equal size displace
    each other, here equal archs count once.
    """
    rng = np.random.default_rng((BIASED_STREAM, seed, moment.step))
    found = dict.fromkeys(candidates.sample(rng) for _ in range(max(drawn, count)))
    ordered = sorted(found, key=lambda arch: (-weighted_widths(arch), arch.code))
    pairs = [("large", arch) for arch in itertools.islice(itertools.cycle(ordered), count)]  # a list may have fewer
    return pairs + ([("random", candidates.sample(rng))] if moment.step % every == 0 else [])


def weighted_widths(arch: ArchConfig) -> float:
    """The size of an arch for `biased`, in channels."""
    return arch.stem + sum(weight * width for weight, blocks in zip(CHANNEL_WEIGHTS, arch.stages)
                           for widths in blocks for width in widths)


def progressive(candidates: Candidates, seed: int, moment: Moment, count: int, depth_epochs: float = 30.0,
                width_epochs: float = 15.0) -> Pairs:
    """The sandwich rule in a space that opens while training: first its depths, then its widths.

    Over the first `depth_epochs` epochs of the stage, at the largest widths, the fewest blocks of each stage go down
    from the most there are, step by step at equal intervals; over the next `width_epochs` the widths do the same; then
    all is open. While it holds one arch, that is all a step trains. (Progressive shrinking: Once-for-All, arXiv
    1908.09791, section 3.3. The defaults are when the second place of the CVPR 2022 challenge, QUARKAutoML, in 70
    epochs opened the widths, 30, and how long it took, 15; equal intervals and the sandwich are ours.)
    Of a list, whatever depths and widths occur are its choices, and the archs inside of the bounds are open, the
    largest always: of random archs few are before the widths are open. Raises `UserError` for a count under 2.
    """
    def part(since, epochs):
        return min(1.0, max(0.0, since / epochs)) if epochs > 0 else float(since >= 0)

    opened = _opened(candidates, part(moment.epoch, depth_epochs), part(moment.epoch - depth_epochs, width_epochs))
    pairs = sandwich(opened, seed, moment, count)
    return pairs if opened.largest() != opened.smallest() else pairs[:1]


class Sampler(NamedTuple):
    """A sampler.

    roles: every one that it can give. uniform: whether its archs are the largest, the smallest and others that are
    uniform over the candidates in the long run. adapts: makes of the candidates what it draws from, and what changes
    while training; None where nothing does.
    """

    draw: Callable[..., Pairs]
    roles: tuple[str, ...]
    uniform: bool = True
    adapts: Callable[[Candidates], Strata] | None = None


SAMPLERS = {
    "uniform": Sampler(uniform, ("random",)),
    "sandwich": Sampler(sandwich, ("largest", "smallest", "random")),
    "largest": Sampler(largest, ("largest",)),
    "largest_and_random": Sampler(largest_and_random, ("largest", "random")),
    "fair": Sampler(fair, ("random",)),
    "fair_sandwich": Sampler(fair_sandwich, ("largest", "smallest", "random")),
    "stratified": Sampler(stratified, ("random",), False, Strata),
    "stratified_sandwich": Sampler(stratified_sandwich, ("largest", "smallest", "random"), False, Strata),
    "biased": Sampler(biased, ("large", "random"), False),
    "progressive": Sampler(progressive, ("largest", "smallest", "random"), False),
}


def _extremes(candidates, count, rule):
    if count < 2:
        raise UserError(f"--dyna_batch_size must be 2 or more for the {rule} rule, got {count}")
    return [("largest", candidates.largest()), ("smallest", candidates.smallest())]


def _fair_draw(candidates, seed, draw):
    if isinstance(candidates, ArchList):
        return candidates.drawn(seed, draw)

    def turn(options, *variable):
        return options[in_turn(len(options), draw, (FAIR_STREAM, seed, *variable))]

    depths, outer, inner = [], [], []
    for stage, ((fewest, most), digits) in enumerate(zip(candidates.depths, candidates.codes[1:])):
        depths.append(turn(range(fewest, most + 1), stage, 0))
        outer.append(turn(candidates.outer_codes[stage], stage, 1))
        # Also for blocks that this depth leaves out: what is drawn in one block does not depend on the depths.
        inner.append([turn(digits, stage, 2 + block) for block in range(most)][:depths[-1]])
    return candidates.assemble(depths, outer, inner)


_equal_strata = functools.lru_cache(maxsize=8)(Strata)


def _opened(candidates, depth_part, width_part):
    """The candidates inside of the bounds, of which so much is open: from 0, only the largest, to 1."""
    if isinstance(candidates, ArchList):
        depths = [_open_part(each, depth_part) for each in _choices(candidates, _depths)]
        widths = [_open_part(each, width_part) for each in _choices(candidates, _narrowest)]
        return _inside(candidates, tuple(min(each) for each in depths), tuple(min(each) for each in widths))
    depths = tuple((min(_open_part(range(most, fewest - 1, -1), depth_part)), most) for fewest, most in
                   candidates.depths)
    codes = tuple(_open_part(each, width_part) for each in candidates.codes)
    if candidates.outer_codes != candidates.codes[1:]:  # one group of a net that is split by width
        codes = candidates.codes
    return dataclasses.replace(candidates, depths=depths, codes=codes)


def _open_part(choices, part):
    """The leading choices that are open; all of them before the last interval of as many as there are begins."""
    return choices[:1 + min(len(choices) - 1, int(part * len(choices)))]


@functools.lru_cache(maxsize=8)
def _choices(archs, values_of):
    """What a list of archs has of each value in each stage, from the largest: four lists."""
    return [sorted(set(each), reverse=True) for each in zip(*map(values_of, archs.archs))]


@functools.lru_cache(maxsize=2)
def _inside(archs, depths, widths):
    """The archs of a list with so many blocks and channels at least in each stage, and the largest."""
    def fits(arch):
        return all(value >= least for value, least in zip((*arch.depths, *_narrowest(arch)), (*depths, *widths)))

    return ArchList([*filter(fits, archs.archs[:-1]), archs.largest()])


def _depths(arch):
    return arch.depths


def _narrowest(arch):
    """The smallest width of each stage."""
    return tuple(min(map(min, blocks)) for blocks in arch.stages)
