"""Objectives: what a step minimises.

An objective is a dataclass whose fields are its hyper-parameters. Its `step` runs the forward passes of one batch and
hands losses to a `Gradients`; what it must remember from step to step is plain data that goes into the checkpoint.
A new one is a class here, a line in OBJECTIVES and a YAML file that names it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F

from ..space.arch import ArchConfig
from ..system.errors import UserError, quoted
from .optim import trainable
from .samplers import Candidates, Pairs


class Gradients:
    """Sums gradients in the parameters of a net, over the losses of a step and over the parts of its batch.

    scale(loss): a factor against underflow, see `precision.Precision.scale`. parts: how many parts the batch is run in;
    a loss is a mean over the images of one part, so it counts for that share of the batch.
    """

    def __init__(self, net: paddle.nn.Layer, scale: Callable = lambda loss: loss, parts: int = 1):
        self._parameters, self._scale, self._parts = trainable(net), scale, parts
        self._losses = {}

    def add(self, role: str, loss: paddle.Tensor, others: paddle.Tensor | float = 0.0) -> None:
        """Add the gradients of a scalar loss and free its graph. Several subnets may be in one graph.

        others: losses that share the graph and are logged under roles of their own.
        """
        self._weighed(loss + others).backward()
        self.note(role, loss)

    def note(self, role: str, loss: paddle.Tensor) -> None:
        """Only log a scalar loss under a role."""
        self._losses.setdefault(role, []).append(loss.detach())

    def of(self, loss: paddle.Tensor) -> list[paddle.Tensor | None]:
        """The gradients of one loss alone, one per trainable parameter, None where it does not reach; frees its graph.

        Nothing is added: the caller may change them and hand them to `put`.
        """
        return paddle.grad(self._weighed(loss), self._parameters, allow_unused=True)

    def put(self, gradients: list[paddle.Tensor | None]) -> None:
        """Add gradients of the form that `of` gives."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def means(self) -> dict[str, paddle.Tensor]:
        """Scalar losses by role, means over the subnets and the parts of the batch."""
        return {role: sum(losses) / len(losses) for role, losses in self._losses.items()}

    def _weighed(self, loss):
        return self._scale(loss if self._parts == 1 else loss / self._parts)


class Moment(NamedTuple):
    """Where a step is in its stage. step: from 0; steps: of the stage; epoch: passes over the images, a fraction.

    warming_up: whether the learning rate still rises.
    """

    step: int
    steps: int
    epoch: float
    warming_up: bool = False


@dataclass
class Objective:
    """The base of all. label_smoothing: part of the label spread over all classes (arXiv 1512.00567, section 7).

    roles: names of losses beside the roles of the sampler. needs_teacher: whether it distils from a fixed net, which
    it finds in `teacher`: images [N, 3, H, W] to logits [N, classes].
    """

    label_smoothing: float = 0.0

    roles = ()
    needs_teacher = False
    teacher = None

    def prepare(self, candidates: Candidates, teacher: Callable | None) -> None:
        """Once before training. candidates: what the sampler draws from; teacher: the fixed net, if there is one."""
        self.teacher = teacher

    def step(self, net: Callable, archs: Pairs, images: paddle.Tensor, labels: paddle.Tensor, gradients: Gradients,
             moment: Moment) -> None:
        """One batch, or one part of it. net(images[, arch]) gives float32 logits [N, classes].

        archs: (role, arch) pairs; images: float32 [N, 3, H, W]; labels: int64 [N].
        """
        raise NotImplementedError

    def state(self) -> dict:
        """What a checkpoint needs to resume, as plain data."""
        return {}

    def load(self, state: dict) -> None:
        """The inverse of `state`."""

    def cross_entropy(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """To the labels, mean over the batch; logits [N, classes], labels int64 [N]."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


def soft_cross_entropy(logits: paddle.Tensor, teacher_logits: paddle.Tensor) -> paddle.Tensor:
    """Cross-entropy to the teacher's distribution, mean over the batch; both [N, classes]. No gradient to the teacher.

    Knowledge distillation at temperature 1 (arXiv 1503.02531).
    """
    target = F.softmax(teacher_logits.detach())
    return -(target * F.log_softmax(logits)).sum(axis=1).mean()


class Standalone(Objective):
    """Cross-entropy of one net on its own, which takes no arch."""

    roles = ("loss",)

    def step(self, net, archs, images, labels, gradients, moment):
        gradients.add("loss", self.cross_entropy(net(images), labels))


class CrossEntropy(Objective):
    """Each subnet by cross-entropy to the labels."""

    def step(self, net, archs, images, labels, gradients, moment):
        for role, arch in archs:
            gradients.add(role, self.cross_entropy(net(images, arch), labels))


class InPlaceDistillation(Objective):
    """The first subnet by cross-entropy, the others by distillation from its logits (BigNAS, arXiv 2003.11142)."""

    def step(self, net, archs, images, labels, gradients, moment):
        (role, largest), *others = archs
        logits = net(images, largest)
        gradients.add(role, self.cross_entropy(logits, labels))
        teacher_logits = logits.detach()
        for role, arch in others:
            gradients.add(role, self.distillation(net(images, arch), teacher_logits))

    def distillation(self, logits: paddle.Tensor, teacher_logits: paddle.Tensor) -> paddle.Tensor:
        """The loss of a student, mean over the batch; both [N, classes]."""
        return soft_cross_entropy(logits, teacher_logits)


class FixedTeacher(Objective):
    """Each subnet by cross-entropy plus soft cross-entropy to a fixed teacher, as in the official demo."""

    needs_teacher = True

    def step(self, net, archs, images, labels, gradients, moment):
        with paddle.no_grad():
            teacher_logits = self.teacher(images)
        for role, arch in archs:
            logits = net(images, arch)
            gradients.add(role, self.cross_entropy(logits, labels) + soft_cross_entropy(logits, teacher_logits))


def alpha_divergence(logits: paddle.Tensor, teacher_logits: paddle.Tensor, alpha: float,
                     clamp: float) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(divergence, loss) of each image [N] of a student q from its teacher p; logits and teacher_logits [N, classes].

    D = sum q (w^a - 1) / (a (a - 1)) with w = p / q, for a = 1 its limit KL(p || q) = sum q w log w. The loss has the
    gradient of D to q: -sum sg(q rho) log q with rho = w^a / a + 1 / (a (a - 1)), for a = 1 rho = w. The powers of w
    are clamped (AlphaNet, arXiv 2102.07954, eq. 4 to 7). No gradient to the teacher.
    """
    log_q, log_p = F.log_softmax(logits), F.log_softmax(teacher_logits.detach())
    q, log_w = log_q.detach().exp(), log_p - log_q.detach()
    power = (alpha * log_w).exp().clip(max=clamp)
    if alpha == 1:
        divergence, rho = (q * power * log_w).sum(axis=1), power
    else:
        divergence = (q * (power - 1)).sum(axis=1) / (alpha * (alpha - 1))
        rho = power / alpha + 1 / (alpha * (alpha - 1))
    return divergence, -(q * rho * log_q).sum(axis=1)


@dataclass
class AlphaDivergence(InPlaceDistillation):
    """In-place distillation by the larger of two alpha-divergences of each image (AlphaNet, arXiv 2102.07954).

    That of `alpha_min` punishes a student that is surer than its teacher, that of `alpha_max` one that is less sure.
    clamp: the most that a power of the ratio of probabilities counts.
    """

    alpha_min: float = -1.0
    alpha_max: float = 1.0
    clamp: float = 5.0

    def distillation(self, logits, teacher_logits):
        (low, low_loss), (high, high_loss) = (alpha_divergence(logits, teacher_logits, alpha, self.clamp)
                                              for alpha in (self.alpha_min, self.alpha_max))
        return paddle.where(low > high, low_loss, high_loss).mean()


#: What an arch's size can be told by, for a ranking loss.
PROXIES = {"macs": ArchConfig.macs, "parameters": ArchConfig.params, "depth": lambda arch: sum(arch.depths)}
RANKED_ARCHS = 1000  # drawn from a space to tell which part of it is smaller than an arch


@dataclass
class Ranking(InPlaceDistillation):
    """In-place distillation, and for pairs of the step's subnets: the larger one's loss is to be smaller.

    With z the part of the candidates that a proxy puts below an arch, a pair with z_a > z_b costs
    max(0, l_a - sg(l_b) + m), l the cross-entropy to the labels on the same batch and m = margin (z_a - z_b); nothing
    flows to the smaller one (PGONAS, arXiv 2206.13329; RD-NAS, arXiv 2301.09850). Pairs closer than min_gap are left
    out. Weight: nothing while the learning rate rises, then min(weight, epoch / 10). The graphs of all subnets of the
    step are alive at once.
    """

    margin: float = 0.1
    min_gap: float = 0.02
    weight: float = 2.0
    proxy: str = "macs"

    roles = ("ranking",)

    def prepare(self, candidates, teacher):
        super().prepare(candidates, teacher)
        if self.proxy not in PROXIES:
            raise UserError(f"--objective ranking: proxy takes {', '.join(PROXIES)}; got {quoted(self.proxy)}")
        rng = np.random.default_rng(0)
        self._sizes = np.sort([PROXIES[self.proxy](candidates.sample(rng)) for _ in range(RANKED_ARCHS)])

    def step(self, net, archs, images, labels, gradients, moment):
        weight = 0.0 if moment.warming_up else min(self.weight, moment.epoch / 10)
        if weight == 0:
            return super().step(net, archs, images, labels, gradients, moment)
        logits = [net(images, arch) for _, arch in archs]
        losses = [F.cross_entropy(each, labels) for each in logits]
        ranking = self.ranking_loss(losses, [arch for _, arch in archs])
        own = [self.cross_entropy(logits[0], labels), *(self.distillation(each, logits[0].detach())
                                                        for each in logits[1:])]
        for (role, _), loss in zip(archs, own):
            gradients.note(role, loss)
        gradients.add("ranking", weight * ranking, others=sum(own))

    def ranking_loss(self, losses: list[paddle.Tensor], archs: list[ArchConfig]) -> paddle.Tensor:
        """The sum over the pairs of scalar losses, in any order."""
        part = [np.searchsorted(self._sizes, PROXIES[self.proxy](arch)) / len(self._sizes) for arch in archs]
        costs = [F.relu(losses[a] - losses[b].detach() + self.margin * (part[a] - part[b]))
                 for a in range(len(archs)) for b in range(len(archs)) if part[a] - part[b] >= self.min_gap]
        return sum(costs) if costs else paddle.zeros([])


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

    def step(self, net, archs, images, labels, gradients, moment):
        (role, largest), *others = archs
        logits = net(images, largest)
        gradients.add(role, self.weight(largest, moment) * self.cross_entropy(logits, labels))
        teacher_logits = logits.detach()
        for role, arch in others:
            loss = self.distillation(net(images, arch), teacher_logits)
            gradients.add(role, self.weight(arch, moment) * loss)

    def weight(self, arch: ArchConfig, moment: Moment) -> float:
        """What the loss of a subnet counts."""
        low, high = self._bounds
        place = (math.log(arch.params()) - low) / (high - low) if high > low else 0.0
        power = self.smallest + (self.largest - self.smallest) * min(1.0, max(0.0, place))
        return min(4.0, (1 - moment.step / moment.steps) ** (power - 1))


OBJECTIVES = {
    "cross_entropy": CrossEntropy,
    "in_place_distillation": InPlaceDistillation,
    "fixed_teacher": FixedTeacher,
    "alpha_divergence": AlphaDivergence,
    "ranking": Ranking,
    "complexity_aware": ComplexityAware,
}
