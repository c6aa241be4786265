"""Against forgetting: what new subnets teach the shared weights is not to spoil them for others."""

from dataclasses import dataclass

import numpy as np
import paddle

from ...nets import layers
from ...space.arch import STEM_DIGIT, ArchConfig
from ...system import runtime
from ...system.errors import UserError, quoted
from .distillation import InPlaceDistillation, soft_cross_entropy
from .objective import CrossEntropy

LOOK_STREAM = 0x100C  # keeps these draws apart from those of other users of (seed, step)
LEFT_OUT = 8  # a block that a depth leaves out, among the digits 1 to 7 of widths: one beyond the narrowest


@dataclass
class NoveltyArchive(CrossEntropy):
    """Each subnet by cross-entropy, together with an archive of earlier ones that differ the most (NSAS, CVPR 2020).

    For n subnets of a step and an archive of M: (1 - weight) sum l + weight n / M sum l over the archive. The archive
    is a greedy search for novelty, the mean distance of an arch to the others of the archive; the distance of two
    archs is the mean difference of their digits, without the depths, which show as blocks left out. Each new arch
    points at the one in the archive that is nearest to it, which gives its place to the most novel of the last `recent`
    archs, if one is more novel; while there are places, the most novel one takes one. What a step trains anyway, the
    largest and the smallest of a sandwich, stays outside.
    A step costs n + M forward and backward passes. The published code (RandomNAS_NSAS_demo.py: n = 1, M = 8, recent =
    50) fills the archive with random archs, may keep an arch twice, and passes no gradient to the archive's loss. The
    second place of 2022 does (arch_nsas.py: M = 10, recent = 100, nearly this distance, a new archive every 500 steps).
    """

    weight: float = 0.5
    size: int = 8
    recent: int = 50

    roles = ("archive",)
    logits_only = False

    def prepare(self, candidates, teacher):
        super().prepare(candidates, teacher)
        for name, allowed in (("weight", 0 <= self.weight <= 1), ("size", self.size > 0), ("recent", self.recent > 0)):
            if not allowed:
                what = "a number from 0 to 1" if name == "weight" else "1 or more"
                raise UserError(f"--objective nsas: {name} takes {what}; got {quoted(getattr(self, name))}")
        self._candidates, self.archive, self._last = candidates, [], []

    def step(self, net, archs, images, labels, gradients, moment):
        if moment.part == 0:
            for role, arch in archs:
                if role not in ("largest", "smallest"):
                    self.meet(arch)
        own = 1 - self.weight if self.archive else 1.0
        for role, arch in archs:
            loss = self.cross_entropy(net(images, arch), labels)
            gradients.add(role, loss, weight=own)
        for arch in self.archive:
            loss = self.cross_entropy(net(images, arch), labels)
            gradients.add("archive", loss, weight=self.weight * len(archs) / len(self.archive))

    def trained(self, archs):
        return [*archs, *(("archive", arch) for arch in self.archive)]

    def meet(self, arch: ArchConfig) -> None:
        """Update the archive with an arch that is trained now."""
        self._last = [*self._last, arch][-self.recent:]
        pool = [each for each in self._last if each not in self.archive]
        if len(self.archive) < self.size:
            self.archive += [max(pool, key=lambda each: novelty(each, self.archive))] if pool else []
            return
        place = int(np.argmin(distances(arch, self.archive)))
        others = self.archive[:place] + self.archive[place + 1:]
        self.archive[place] = max([self.archive[place], *pool], key=lambda each: novelty(each, others))

    def state(self):
        return {"archive": [arch.code for arch in self.archive], "recent": [arch.code for arch in self._last]}

    def load(self, state):
        self.archive, self._last = ([self._candidates.parse(code) for code in state[name]]
                                    for name in ("archive", "recent"))


def distances(arch: ArchConfig, others: list[ArchConfig]) -> np.ndarray:
    """How far an arch is from each of others: the mean difference of the 47 digits of stem and blocks."""
    return np.abs(np.stack([_digits(other) for other in others]) - _digits(arch)).mean(axis=1)


def novelty(arch: ArchConfig, others: list[ArchConfig]) -> float:
    """The mean distance of an arch to others; 0 where there are none."""
    return float(distances(arch, others).mean()) if others else 0.0


def _digits(arch):
    digits = np.array([int(digit) for digit in arch.code[STEM_DIGIT:]])
    return np.where(digits == 0, LEFT_OUT, digits)


@dataclass
class LookBack(InPlaceDistillation):
    """In-place distillation, and a second update for subnets that the first one has spoiled (best of 2021).

    Of `count` random archs, in few-shot training of any group, the soft loss, cross-entropy to the first subnet's
    logits, is measured before and after the update of a step on the same batch; where any has risen, their gradients
    are summed and another update is taken, at the same rate. All that as in the published code (train_spn_dtkl_gs.py),
    which trains the largest and 8 random subnets with a fifth of cross-entropy to the labels in it, and whose looking
    moves the running statistics. Ours: with several processes or parts of a batch, the mean over all decides.
    A step costs `count` forward passes without gradient before, as many after, and a backward pass for each that rose.
    """

    count: int = 5

    roles = ("look_back",)
    logits_only = False

    def prepare(self, candidates, teacher):
        super().prepare(candidates, teacher)
        if self.count < 1:
            raise UserError(f"--objective look_back: count takes 1 or more; got {self.count}")
        self._candidates = candidates

    def step(self, net, archs, images, labels, gradients, moment):
        if moment.part == 0:
            streams = [(LOOK_STREAM, moment.seed, moment.step, i) for i in range(self.count)]
            self._archs = [self._candidates.sample(np.random.default_rng(stream)) for stream in streams]
            self._parts, self._before = [], [0.0] * self.count
        teacher_logits = self.distil(net, archs, images, labels, gradients, moment)
        self._parts.append((images, teacher_logits))
        with paddle.no_grad():
            self._before = [before + _look(net, images, teacher_logits, arch)
                            for before, arch in zip(self._before, self._archs)]

    def after(self, net, gradients, moment):
        risen = []
        whole = len(self._parts) == 1
        for arch, before in zip(self._archs, self._before):
            with paddle.set_grad_enabled(whole):  # of several parts, not all graphs are to be in memory at once
                losses = [_look(net, *part, arch) for part in self._parts]
            if runtime.all_reduce_sum([float(sum(losses) - before)])[0] > 0:
                risen.append(("look_back", arch))
                for part in self._parts:
                    gradients.add("look_back", losses[0] if whole else _look(net, *part, arch))
        self._parts = []
        return risen


def _look(net, images, teacher_logits, arch):
    """The soft loss of a subnet, without a trace in the running statistics."""
    return soft_cross_entropy(net(images, arch, layers.batch_norm_of_batch), teacher_logits)
