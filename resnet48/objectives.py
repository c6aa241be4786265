"""What a step minimises. Each objective runs the forward and backward passes of one step and returns its losses.

An objective is called as objective(net, archs, images, labels, backward): net(images[, arch]) gives float32 logits
[N, classes], archs are (role, arch) pairs from `sampling`, images float32 [N, 3, H, W], labels int64 [N]. It hands each
loss to `backward`, which leaves the summed gradients in the parameters, and returns detached scalar losses by role. The
graph of one subnet is freed before the next one is built.
"""

import paddle
import paddle.nn.functional as F


def soft_cross_entropy(logits, teacher_logits):
    """Cross-entropy to the teacher's distribution, mean over the batch; both [N, classes]. No gradient to the teacher.

    Knowledge distillation at temperature 1 (arXiv 1503.02531).
    """
    target = F.softmax(teacher_logits.detach())
    return -(target * F.log_softmax(logits)).sum(axis=1).mean()


def standalone(net, _archs, images, labels, backward=paddle.Tensor.backward, label_smoothing=0.0):
    """Cross-entropy of one net on its own. label_smoothing: see arXiv 1512.00567, section 7."""
    losses = _Losses(backward)
    losses.add("loss", F.cross_entropy(net(images), labels, label_smoothing=label_smoothing))
    return losses.means()


def sandwich(net, archs, images, labels, backward=paddle.Tensor.backward, label_smoothing=0.0):
    """The largest by cross-entropy, the others by in-place distillation from its logits (BigNAS, arXiv 2003.11142)."""
    losses = _Losses(backward)
    (role, largest), *others = archs
    teacher_logits = net(images, largest)
    losses.add(role, F.cross_entropy(teacher_logits, labels, label_smoothing=label_smoothing))
    teacher_logits = teacher_logits.detach()
    for role, arch in others:
        losses.add(role, soft_cross_entropy(net(images, arch), teacher_logits))
    return losses.means()


def distil_from(teacher):
    """Objective of the official demo: each subnet by cross-entropy plus soft cross-entropy to a fixed teacher.

    teacher(images) gives logits [N, classes]; it runs once per step.
    """
    def demo(net, archs, images, labels, backward=paddle.Tensor.backward, label_smoothing=0.0):
        losses = _Losses(backward)
        with paddle.no_grad():
            teacher_logits = teacher(images)
        for role, arch in archs:
            logits = net(images, arch)
            losses.add(role, F.cross_entropy(logits, labels, label_smoothing=label_smoothing) +
                       soft_cross_entropy(logits, teacher_logits))
        return losses.means()

    return demo


class _Losses:
    def __init__(self, backward):
        self._backward, self._of_role = backward, {}

    def add(self, role, loss):
        self._backward(loss)
        self._of_role.setdefault(role, []).append(loss.detach())

    def means(self):
        return {role: sum(losses) / len(losses) for role, losses in self._of_role.items()}
