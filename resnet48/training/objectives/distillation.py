"""Objectives in which subnets learn from a teacher: the step's largest subnet, or a fixed net."""

from collections.abc import Callable
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F

from ...space.arch import ArchConfig
from ...system.errors import UserError
from ..samplers import Moment
from .objective import Objective, dropout


def soft_cross_entropy(logits: paddle.Tensor, teacher_logits: paddle.Tensor) -> paddle.Tensor:
    """Cross-entropy to the teacher's distribution, mean over the batch; both [N, classes]. No gradient to the teacher.

    Knowledge distillation at temperature 1 (arXiv 1503.02531).
    """
    return F.cross_entropy(logits, F.softmax(teacher_logits.detach()), soft_label=True)


@dataclass
class InPlaceDistillation(Objective):
    """The first subnet by cross-entropy, the others by distillation from its logits (BigNAS, arXiv 2003.11142).

    dropout: part of the classifier's input that is zeroed for the first subnet, and only for it. The others learn from
    the logits that this gives, for each subnet runs once.
    """

    dropout: float = 0.0

    @property
    def logits_only(self):
        return not self.dropout

    def prepare(self, candidates, teacher):
        super().prepare(candidates, teacher)
        if not 0 <= self.dropout < 1:
            raise UserError(f"--objective: dropout takes a number from 0 to below 1, got {self.dropout}")

    def step(self, net, archs, images, labels, gradients, moment):
        self.distil(net, archs, images, labels, gradients, moment)

    def distil(self, net, archs, images, labels, gradients, moment) -> paddle.Tensor:
        """All of a step; the logits [N, classes] of the first subnet, without a graph."""
        (role, largest), *others = archs
        logits = self.first_logits(net, images, largest, moment)
        gradients.add(role, self.counted(self.cross_entropy(logits, labels), largest, moment))
        teacher_logits = logits.detach()
        for role, arch in others:
            loss = self.distillation(net(images, arch), teacher_logits)
            gradients.add(role, self.counted(loss, arch, moment))
        return teacher_logits

    def counted(self, loss: paddle.Tensor, arch: ArchConfig, moment: Moment) -> paddle.Tensor:
        """A scalar loss of a subnet as it is minimised and logged."""
        return loss

    def first_logits(self, net: Callable, images: paddle.Tensor, arch: ArchConfig, moment: Moment) -> paddle.Tensor:
        """Logits [N, classes] of the first subnet of a step."""
        return net(images, arch, None, dropout(self.dropout, moment)) if self.dropout else net(images, arch)

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
    log_q, log_p = _log_softmax(logits), _log_softmax(teacher_logits.detach())
    q, log_w = log_q.detach().exp(), log_p - log_q.detach()
    power = (alpha * log_w).exp().clip(max=clamp)
    if alpha == 1:
        divergence, rho = (q * power * log_w).sum(axis=1), power
    else:
        divergence = (q * (power - 1)).sum(axis=1) / (alpha * (alpha - 1))
        rho = power / alpha + 1 / (alpha * (alpha - 1))
    return divergence, -(q * rho * log_q).sum(axis=1)


def _log_softmax(logits):
    """As `F.log_softmax`, which on a CPU takes ten times as long for 1000 classes."""
    return logits - paddle.logsumexp(logits, axis=1, keepdim=True)


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
