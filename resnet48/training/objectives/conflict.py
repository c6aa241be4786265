"""A subnet's gradient against that of the largest net."""

from dataclasses import dataclass

import paddle

from .distillation import InPlaceDistillation

MOST = 2.0  # that a conflict adds to the subnets' gradient, in parts of it


@dataclass
class ConflictAware(InPlaceDistillation):
    """In-place distillation where, of the largest net's gradient, nothing opposes the subnets' (NASViT, ICLR 2022).

    In each tensor, with g the gradient of the first subnet and s the sum of those of the others, the sum g + s becomes
    g + s + c s with c = min(2, max(0, -<g, s> / ||s||^2)). Up to c = 2 that leaves of g its projection on the plane
    across s wherever the two conflict; beyond, it weakens the conflict. start: epochs of plain sums before.
    The formula is that of the published code (misc/constrain_opt.py), which compares the means over all processes, adds
    1e-6 to ||s||^2 and starts after 100 of 360 epochs. Here gradients are compared where they arise: those of the part
    of a batch that one process runs at a time. Two more copies of all gradients are in memory.
    """

    start: float = 0.0

    logits_only = False

    def step(self, net, archs, images, labels, gradients, moment):
        if moment.epoch < self.start:
            return super().step(net, archs, images, labels, gradients, moment)
        (role, largest), *others = archs
        logits = self.first_logits(net, images, largest, moment)
        loss = self.cross_entropy(logits, labels)
        gradients.note(role, loss)
        first, rest = gradients.of(loss), None
        gradients.put(first)
        teacher_logits = logits.detach()
        for role, arch in others:
            loss = self.distillation(net(images, arch), teacher_logits)
            gradients.note(role, loss)
            own = gradients.of(loss)
            gradients.put(own)
            rest = own if rest is None else [_sum(*pair) for pair in zip(rest, own, strict=True)]
        if rest is not None:
            gradients.put([_correction(*pair) for pair in zip(first, rest, strict=True)])


def _sum(one, other):
    """Of two gradients, either of which may be absent."""
    return one if other is None else other if one is None else one + other


def _correction(first, rest):
    """What is to be added to the sum of two gradients of a tensor; none where either is absent."""
    if first is None or rest is None:
        return None
    against = -(first * rest).sum() / rest.square().sum().clip(min=1e-30)  # both are 0 where `rest` is
    return paddle.clip(against, 0.0, MOST) * rest
