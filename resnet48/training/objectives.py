"""Objectives: what a step minimises.

An objective is a dataclass whose fields are its hyper-parameters. Its `step` runs the forward passes of one batch and
hands losses to a `Gradients`; what it must remember from step to step is plain data that goes into the checkpoint.
A new one is a class here, a line in OBJECTIVES and a YAML file that names it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F

from .optim import trainable


class Gradients:
    """Sums gradients in the parameters of a net, over the losses of a step and over the parts of its batch.

    scale(loss): a factor against underflow, see `precision.Precision.scale`. parts: how many parts the batch is run in;
    a loss is a mean over the images of one part, so it counts for that share of the batch.
    """

    def __init__(self, net: paddle.nn.Layer, scale: Callable = lambda loss: loss, parts: int = 1):
        self._parameters, self._scale, self._parts = trainable(net), scale, parts
        self._losses = {}

    def add(self, role: str, loss: paddle.Tensor) -> None:
        """Add the gradients of a scalar loss and free its graph. Several subnets may be in one graph."""
        self._weighed(loss).backward()
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

    def step(self, net: Callable, archs: list, images: paddle.Tensor, labels: paddle.Tensor,
             gradients: Gradients) -> None:
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

    def step(self, net, archs, images, labels, gradients):
        gradients.add("loss", self.cross_entropy(net(images), labels))


class CrossEntropy(Objective):
    """Each subnet by cross-entropy to the labels."""

    def step(self, net, archs, images, labels, gradients):
        for role, arch in archs:
            gradients.add(role, self.cross_entropy(net(images, arch), labels))


class InPlaceDistillation(Objective):
    """The first subnet by cross-entropy, the others by distillation from its logits (BigNAS, arXiv 2003.11142)."""

    def step(self, net, archs, images, labels, gradients):
        (role, largest), *others = archs
        logits = net(images, largest)
        gradients.add(role, self.cross_entropy(logits, labels))
        teacher_logits = logits.detach()
        for role, arch in others:
            gradients.add(role, soft_cross_entropy(net(images, arch), teacher_logits))


class FixedTeacher(Objective):
    """Each subnet by cross-entropy plus soft cross-entropy to a fixed teacher, as in the official demo."""

    needs_teacher = True

    def step(self, net, archs, images, labels, gradients):
        with paddle.no_grad():
            teacher_logits = self.teacher(images)
        for role, arch in archs:
            logits = net(images, arch)
            gradients.add(role, self.cross_entropy(logits, labels) + soft_cross_entropy(logits, teacher_logits))


OBJECTIVES = {
    "cross_entropy": CrossEntropy,
    "in_place_distillation": InPlaceDistillation,
    "fixed_teacher": FixedTeacher,
}
