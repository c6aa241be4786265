"""What every objective is made of: where a step is, how gradients are summed, and the two plainest objectives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from ...nets import layers
from ...system import runtime
from ..optim import trainable
from ..samplers import Candidates, Moment, Pairs

DROPOUT_STREAM = 0xD209  # keeps these draws apart from those of other users of (seed, step)


def dropout(rate: float, moment: Moment) -> Callable:
    """A classifier with dropout of its input (arXiv 1207.0580): `layers.linear` where a part `rate` of it is zeroed and
    the rest multiplied by 1 / (1 - rate).

    What is zeroed is a pure function of (seed, step, part of the batch, rank) and disturbs no other random draw.
    """
    def linear(x, layer):
        rng = np.random.default_rng((DROPOUT_STREAM, moment.seed, moment.step, moment.part, runtime.rank()))
        kept = paddle.to_tensor(rng.random(x.shape, "float32") >= rate)
        return layers.linear(x * (kept.astype(x.dtype) / (1 - rate)), layer)

    return linear


class Gradients:
    """Sums gradients in the parameters of a net, over the losses of a step and over the parts of its batch.

    scale(loss): a factor against underflow, see `precision.Precision.scale`. parts: how many parts the batch is run in;
    a loss is a mean over the images of one part, so it counts for that share of the batch.
    """

    def __init__(self, net: paddle.nn.Layer, scale: Callable = lambda loss: loss, parts: int = 1):
        self.net, self._parameters, self._scale, self._parts = net, trainable(net), scale, parts
        self._losses = {}

    def add(self, role: str, loss: paddle.Tensor, others: paddle.Tensor | float = 0.0, weight: float = 1.0) -> None:
        """Add the gradients of a scalar loss and free its graph. Several subnets may be in one graph.

        others: losses that share the graph and are logged under roles of their own. weight: what the loss counts; it is
        logged without.
        """
        self._weighed(weight * loss + others).backward()
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

    roles: names of losses beside the roles of the sampler. views: how many crops of each image a step sees.
    logits_only: whether a step runs each of its subnets once, needs nothing of them but their logits, and hands each
    loss to `Gradients.add`; then processes can share the subnets out.
    needs_teacher: whether it distils from a fixed net, which it finds in `teacher`: images [N, 3, H, W] to logits
    [N, classes].
    """

    label_smoothing: float = 0.0

    roles = ()
    views = 1
    logits_only = False
    needs_teacher = False
    teacher = None

    def prepare(self, candidates: Candidates, teacher: Callable | None) -> None:
        """Once before training. candidates: what the sampler draws from; teacher: the fixed net, if there is one."""
        self.teacher = teacher

    def step(self, net: Callable, archs: Pairs, images: paddle.Tensor, labels: paddle.Tensor, gradients: Gradients,
             moment: Moment) -> None:
        """One batch, or one part of it. net(images[, arch]) gives float32 logits [N, classes].

        archs: (role, arch) pairs; images: float32 [views * N, 3, H, W], the views of an image one after the other;
        labels: int64 [N]. `gradients.net` is the net as a layer.
        """
        raise NotImplementedError

    def trained(self, archs: Pairs) -> Pairs:
        """Whose gradients the last `step` has left: those of the archs it was given, and what an objective adds."""
        return archs

    def after(self, net: Callable, gradients: Gradients, moment: Moment) -> Pairs:
        """Once after the update of a step: leave gradients for another update, and return whose they are.

        None for no other update; the same on every rank. `gradients` is a new one, `moment` is that of the step.
        """
        return []

    def state(self) -> dict:
        """What a checkpoint needs to resume, as plain data."""
        return {}

    def load(self, state: dict) -> None:
        """The inverse of `state`."""

    def tensors(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs beside, too large for plain data, by name; the same on every rank, read on rank 0."""
        return {}

    def load_tensors(self, tensors: dict[str, np.ndarray], path: str) -> None:
        """The inverse of `tensors`. path: what errors name. Raises `CheckpointError` for what does not fit."""

    def end(self) -> None:
        """After the last step of the stage: let go of what is remembered."""

    def cross_entropy(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """To the labels, mean over the batch; logits [N, classes], labels int64 [N]."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


@dataclass
class Standalone(Objective):
    """Cross-entropy of one net on its own, which takes no arch. dropout: part of the classifier's input that is zeroed.
    """

    dropout: float = 0.0

    roles = ("loss",)

    def step(self, net, archs, images, labels, gradients, moment):
        logits = net(images, None, dropout(self.dropout, moment)) if self.dropout else net(images)
        gradients.add("loss", self.cross_entropy(logits, labels))


class CrossEntropy(Objective):
    """Each subnet by cross-entropy to the labels."""

    logits_only = True

    def step(self, net, archs, images, labels, gradients, moment):
        for role, arch in archs:
            gradients.add(role, self.cross_entropy(net(images, arch), labels))
