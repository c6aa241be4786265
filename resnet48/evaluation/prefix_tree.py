"""The prefix tree of a list of archs: nodes that they share are computed once. No Paddle in here.

A node is one of `nodes` with its widths, given all nodes before it: two archs share a node if their nets are the same
up to there. Sorted by their nodes, archs with a common prefix are neighbours, so a depth-first traversal of the tree
goes along the sorted list and keeps, at each arch, what it shares with the one before.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ..space.arch import ArchConfig
from ..space.split import Split


class Step(NamedTuple):
    """From one arch to the next: keep the first `kept` nodes of the path and append `added` to reach arch `leaf`.

    added: of `ArchConfig.nodes`, from the first where nothing is kept. leaf: index in the list.
    """

    kept: int
    added: tuple
    leaf: int


def traversal(archs: Iterable[ArchConfig], split: Split | None = None) -> list[Step]:
    """The steps of a depth-first traversal that visits every arch of a list once. archs: tied `ArchConfig` objects.

    split: of the supernet, in which archs of different groups share no blocks of the stage.
    """
    paths = sorted((arch.nodes(split), index) for index, arch in enumerate(archs))
    steps, before = [], ()
    for path, index in paths:
        kept = 0
        while kept < min(len(before), len(path)) and before[kept] == path[kept]:
            kept += 1
        steps.append(Step(kept, path[kept:], index))
        before = path
    return steps


def shards(steps: list[Step], count: int) -> list[list[Step]]:
    """The traversal in `count` parts of about equal length, each of which begins with a complete path."""
    count = max(1, min(count, len(steps)))
    parts, path = [], ()
    bounds = [len(steps) * i // count for i in range(count + 1)]
    for first, last in zip(bounds, bounds[1:]):
        part = []
        for step in steps[first:last]:
            path = path[:step.kept] + step.added
            part.append(step if part else Step(0, path, step.leaf))
        parts.append(part)
    return parts


def resumed(steps: list[Step]) -> list[set[int]]:
    """For each step the lengths to which later steps cut the path: what lies elsewhere on it is not needed any more.

    Only lengths of the path as it is after the step, so at most that of its end.
    """
    found, later = [], set()
    for step in reversed(steps):
        found.append(later)
        later = {length for length in later if length < step.kept} | {step.kept}
    return found[::-1]


def nodes(steps: list[Step]) -> int:
    """How many nodes a traversal computes."""
    return sum(len(step.added) for step in steps)


def separate_macs(archs: Iterable[ArchConfig], image_size: int, num_classes: int) -> int:
    """Multiply-adds per image if every arch is run on its own."""
    return sum(arch.macs(image_size, num_classes) for arch in archs)
