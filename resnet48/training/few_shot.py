"""Few-shot training: all archs of a step are of one group of a split, and train its copy of a stage (2006.06863).

The groups take turns, so each gets as many steps as any other; inside a group any sampler draws, as from a space or a
list of its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..space.arch import SearchSpace
from ..space.split import KEYS, Split
from ..system.errors import UserError
from .samplers import ArchList, Candidates, Moment, Pairs

GROUP_STREAM = 0x6E07  # keeps these draws apart from those of other users of (seed, step)


@dataclass(frozen=True)
class WidthGroup(SearchSpace):
    """A space of which the second convolutions take a part of the digits. outer: those of stages 1..4."""

    outer: tuple = ()

    @property
    def outer_codes(self) -> tuple[str, ...]:
        return self.outer


def width(candidates: Candidates, stage: int = 4) -> tuple[Split, list[Candidates]]:
    """The split of a stage (1..4) by the width of its outputs in channels, and the candidates of each of its groups.

    Raises `UserError` for a stage that has one width only, or is none.
    """
    return _by("width", candidates, stage)


def depth(candidates: Candidates, stage: int = 4) -> tuple[Split, list[Candidates]]:
    """The split of a stage (1..4) by its depth in blocks, and the candidates of each of its groups.

    Raises `UserError` for a stage that has one depth only, or is none.
    """
    return _by("depth", candidates, stage)


SPLITS = {"width": width, "depth": depth}


def grouped(draw: Callable[[Candidates, int, Moment], Pairs],
            groups: Sequence[Candidates]) -> Callable[[int, Moment], Pairs]:
    """A sampler of (seed, moment) whose pairs are, at each step, those that `draw` gives for one of the groups.

    Every group comes once, in random order, before one comes again. `draw` counts the steps of the group, so that what
    it does in turns (`samplers.fair`, lists) it does in turns in each group.
    """
    def sample(seed, moment):
        turn, place = divmod(moment.step, len(groups))
        group = int(np.random.default_rng((GROUP_STREAM, seed, turn)).permutation(len(groups))[place])
        own_seed = int(np.random.SeedSequence((GROUP_STREAM, seed, 1 + group)).generate_state(1)[0])
        return draw(groups[group], own_seed, moment._replace(step=turn, steps=-(-moment.steps // len(groups))))

    return sample


def _by(by, candidates, stage):
    if not 1 <= stage <= 4:
        raise UserError(f"split: {by}(stage=...) takes a stage of 1 to 4, got {stage}")
    groups = _groups_of_list(candidates, by, stage) if isinstance(candidates, ArchList) else \
        _depth_groups(candidates, stage) if by == "depth" else _width_groups(candidates, stage)
    if len(groups) < 2:
        raise UserError(f"split: {by}(stage={stage}) makes no groups, all subnets have one {by} there")
    keys = sorted(groups)
    return Split(stage, by, tuple(keys)), [groups[key] for key in keys]


def _groups_of_list(candidates, by, stage):
    groups = {}
    for arch in candidates.archs:
        groups.setdefault(KEYS[by](arch, stage), []).append(arch)
    return {key: ArchList(archs) for key, archs in groups.items()}


def _depth_groups(space, stage):
    fewest, most = space.depths[stage - 1]
    return {blocks: dataclasses.replace(space, depths=_with(space.depths, stage, (blocks, blocks)))
            for blocks in range(fewest, most + 1)}


def _width_groups(space, stage):
    digits = {}  # several may mean the same width
    for digit in space.outer_codes[stage - 1]:
        channels = space.width(stage, digit)
        digits[channels] = digits.get(channels, "") + digit
    whole = [getattr(space, item.name) for item in dataclasses.fields(SearchSpace)]
    return {channels: WidthGroup(*whole, _with(space.outer_codes, stage, some)) for channels, some in digits.items()}


def _with(values, stage, value):
    return (*values[:stage - 1], value, *values[stage:])
