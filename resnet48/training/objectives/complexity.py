"""Subnets whose learning ends early or late, by their size."""

import math
from dataclasses import dataclass

from ...space.arch import ArchConfig
from ..samplers import Moment
from .distillation import InPlaceDistillation


@dataclass
class ComplexityAware(InPlaceDistillation):
    """In-place distillation in which small subnets stop learning early and large ones late (arXiv 2503.10740).

    To be used with `schedule: linear`, whose rate is lr (1 - t / T): a subnet's loss counts
    min(4, (1 - t / T)^(g - 1)), so that its own rate is lr (1 - t / T)^g, with g linear in the log of its parameters
    from `smallest` to `largest`.
    """

    smallest: float = 4.0
    largest: float = 0.25

    def prepare(self, candidates, teacher):
        super().prepare(candidates, teacher)
        self._bounds = [math.log(arch.params()) for arch in (candidates.smallest(), candidates.largest())]

    def counted(self, loss, arch, moment):
        return self.weight(arch, moment) * loss

    def weight(self, arch: ArchConfig, moment: Moment) -> float:
        """What the loss of a subnet counts."""
        low, high = self._bounds
        place = (math.log(arch.params()) - low) / (high - low) if high > low else 0.0
        power = self.smallest + (self.largest - self.smallest) * min(1.0, max(0.0, place))
        return min(4.0, (1 - moment.step / moment.steps) ** (power - 1))
