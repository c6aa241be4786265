"""A few-shot split: a stage of a supernet whose weights are in copies, each for a group of archs. No Paddle in here."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..system.errors import UserError, quoted
from .checks import CAPACITY, MAX_WIDTH, is_tuple, is_whole
from .nodes import Block

#: What tells the groups apart: a function of (arch, stage 1..4).
KEYS = {"width": lambda arch, stage: arch.stages[stage - 1][-1][1], "depth": lambda arch, stage: arch.depths[stage - 1]}


@dataclass(frozen=True)
class Split:
    """Which weights a supernet has in copies, as data (few-shot NAS, arXiv 2006.06863, there of the whole net).

    stage: 1..4. by: `width`, that of the stage's outputs in channels, or `depth`, its blocks. groups: these widths or
    depths, ascending, one for each copy. Raises `UserError` for what is not of this form.
    """

    stage: int
    by: str
    groups: tuple

    def __post_init__(self):
        if not is_whole(self.stage, 1, 4):
            raise UserError(f"stage must be 1, 2, 3 or 4 in a split, got {quoted(self.stage)}")
        if not isinstance(self.by, str) or self.by not in KEYS:
            raise UserError(f"a split is by {' or '.join(KEYS)}, got {quoted(self.by)}")
        most = MAX_WIDTH if self.by == "width" else CAPACITY[self.stage - 1]
        if not is_tuple(self.groups) or not 2 <= len(self.groups) <= 9 or not all(
                is_whole(group, 1, most) for group in self.groups) or list(self.groups) != sorted(set(self.groups)):
            raise UserError(f"the groups of a split are two to nine {self.by}s of stage {self.stage}, ascending, up to "
                            f"{most}; got {quoted(self.groups)}")

    def __str__(self):
        return f"{self.by} of stage {self.stage} ({', '.join(map(str, self.groups))})"

    def copy_of(self, arch) -> int:
        """Which copy (from 0) an `ArchConfig` uses: that of its group, or of the next larger, or the last."""
        key = KEYS[self.by](arch, self.stage)
        return next((copy for copy, group in enumerate(self.groups) if group >= key), len(self.groups) - 1)

    def assigned(self, arch) -> tuple[Block, ...]:
        """The blocks of an `ArchConfig`, those of the stage in its copy."""
        return self._in_copy(arch.blocks(), self.copy_of(arch))

    def copies(self, nodes: Iterable) -> tuple[Block, ...]:
        """The blocks of every copy but the first, which a net without copies has, too. nodes: of such a net.

        A copy for a depth has no blocks beyond it, except the last, which serves all that is deeper.
        """
        stage = [node for node in nodes if isinstance(node, Block) and node.stage == self.stage]
        return tuple(block for copy in range(1, len(self.groups)) for block in self._in_copy(stage, copy)
                     if self.by == "width" or copy == len(self.groups) - 1 or block.position <= self.groups[copy])

    def to_dict(self) -> dict:
        """Plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> "Split":
        """The inverse of `to_dict`, also after a trip through JSON. Raises `UserError` for what is not of this form."""
        if not isinstance(data, dict) or data.keys() != {"stage", "by", "groups"}:
            raise UserError(f"a split is an object with stage, by and groups; got {quoted(data)}")
        groups = data["groups"]
        return cls(data["stage"], data["by"], tuple(groups) if isinstance(groups, list) else groups)

    def _in_copy(self, blocks, copy):
        return tuple(block._replace(copy=copy) if block.stage == self.stage else block for block in blocks)
