"""Where the largest net's gradient opposes the subnets', per tensor."""

import numpy as np
import paddle
import pytest
from small_runs import SANDWICH, SPACE, at, losses_of_step

from resnet48.nets.supernet import Supernet
from resnet48.training import objectives, optim


class Pulled(paddle.nn.Layer):
    """Two tensors; as a net it gives a loss whose gradients are given: {arch: one array (or None) per tensor}."""

    def __init__(self, pulls):
        super().__init__()
        self.tensors = paddle.nn.ParameterList([paddle.create_parameter([4], "float32") for _ in range(2)])
        self.pulls = pulls

    def forward(self, images, arch):
        return sum((tensor * paddle.to_tensor(pull)).sum() for tensor, pull in zip(self.tensors, self.pulls[arch])
                   if pull is not None)


class OfLoss(objectives.ConflictAware):
    """Takes what such a net gives as the loss."""

    def cross_entropy(self, logits, labels):
        return logits * 1

    def distillation(self, logits, teacher_logits):
        return logits * 1


def step(pulls, objective=OfLoss(), parts=1):
    """The gradient that is left in each tensor by one part of a step."""
    net = Pulled(pulls)
    archs = [("largest" if place == 0 else "random", arch) for place, arch in enumerate(pulls)]
    objective.step(net, archs, None, None, objectives.Gradients(net, parts=parts), at(0))
    return [None if tensor.grad is None else tensor.grad.numpy() for tensor in net.tensors]


def pulls_of(rng, opposed):
    """Those of three subnets on two tensors; in those of `opposed`, the first pulls against the sum of the others."""
    found = {arch: [rng.standard_normal(4).astype("float32") for _ in range(2)] for arch in "abc"}
    for tensor in range(2):
        rest = found["b"][tensor] + found["c"][tensor]
        if (found["a"][tensor] @ rest < 0) != (tensor in opposed):
            found["a"][tensor] = -found["a"][tensor]
    return found


def plain_sum(pulls, tensor):
    return (pulls["a"][tensor] + pulls["b"][tensor]) + pulls["c"][tensor]


@pytest.mark.parametrize("opposed", [(), (0,), (1,), (0, 1)], ids=str)
def test_what_opposes_the_subnets_is_taken_from_the_largest_in_each_tensor_and_nothing_else_is_touched(rng, opposed):
    for _ in range(20):
        pulls = pulls_of(rng, opposed)
        left = step(pulls)
        for tensor in range(2):
            rest = pulls["b"][tensor] + pulls["c"][tensor]
            if tensor not in opposed:
                assert np.array_equal(left[tensor], plain_sum(pulls, tensor))
                continue
            of_largest, part = left[tensor] - rest, -(pulls["a"][tensor] @ rest) / (rest @ rest)
            assert np.allclose(left[tensor], pulls["a"][tensor] + (1 + min(part, 2)) * rest, rtol=1e-4, atol=1e-5)
            if part < 2:
                assert abs(of_largest @ rest) < 1e-4 * np.linalg.norm(pulls["a"][tensor]) * np.linalg.norm(rest)
            else:
                assert pulls["a"][tensor] @ rest < of_largest @ rest < 0


def test_tensors_that_one_side_does_not_use_keep_what_the_other_gives(rng):
    one, other = rng.standard_normal((2, 4)).astype("float32")
    first, second = step({"a": [one, None], "b": [None, other]})
    assert np.array_equal(first, one) and np.array_equal(second, other)
    alone, absent = step({"a": [one, None]})
    assert np.array_equal(alone, one) and absent is None
    zeros, _ = step({"a": [one, None], "b": [0 * one, None]})
    assert np.array_equal(zeros, one)


def test_gradients_are_compared_in_each_part_of_a_batch(rng):
    first, second = pulls_of(rng, (0,)), pulls_of(rng, (1,))
    net, objective = Pulled(first), OfLoss()
    gradients = objectives.Gradients(net, parts=2)
    for net.pulls in (first, second):
        objective.step(net, [("largest", "a"), ("random", "b"), ("random", "c")], None, None, gradients, at(0))
    for tensor, one, other in zip(net.tensors, step(first, parts=2), step(second, parts=2)):
        assert np.allclose(tensor.grad.numpy(), one + other, rtol=1e-5)


def test_a_loss_scale_makes_no_difference(rng):
    pulls = pulls_of(rng, (0, 1))
    net = Pulled(pulls)
    archs = [("largest", "a"), ("random", "b"), ("random", "c")]
    OfLoss().step(net, archs, None, None, objectives.Gradients(net, lambda loss: loss * 2.0 ** 16), at(0))
    for tensor, expected in zip(net.tensors, step(pulls)):
        assert np.array_equal(tensor.grad.numpy(), expected * 2.0 ** 16)


def test_on_a_supernet_it_is_in_place_distillation_bit_for_bit_in_every_tensor_without_conflict():
    paddle.seed(0)
    net, rng = Supernet(SPACE, 3), np.random.default_rng(0)
    images = paddle.to_tensor(rng.standard_normal((8, 3, 16, 16)).astype("float32"))
    batch = [SANDWICH.archs(0), images, paddle.to_tensor(rng.integers(0, 3, 8))]

    def left(objective, moment=at(0)):
        losses = losses_of_step(objective, net, *batch, moment)
        found = [parameter.grad.numpy() for parameter in optim.trainable(net)]
        for parameter in optim.trainable(net):
            parameter.clear_gradient(False)
        return {role: float(loss) for role, loss in losses.items()}, found

    (losses, plain), (same_losses, aware) = left(objectives.InPlaceDistillation()), left(objectives.ConflictAware())
    assert losses == same_losses
    loss = paddle.nn.functional.cross_entropy(net(images, batch[0][0][1]), batch[2])
    largest = objectives.Gradients(net).of(loss)
    unchanged = 0
    for one, other, first in zip(plain, aware, largest, strict=True):
        rest = one - first.numpy()
        if float((first.numpy() * rest).sum()) > 1e-6 * float((rest ** 2).sum()):
            unchanged += 1
            assert np.array_equal(one, other)
        elif float((first.numpy() * rest).sum()) < -1e-3 * float((rest ** 2).sum()):
            assert not np.array_equal(one, other)
    assert 10 < unchanged < len(plain) - 10
    before, after = at(0, epoch=2.9), at(0, epoch=3.0)
    assert all(map(np.array_equal, left(objectives.ConflictAware(start=3.0), before)[1], plain))
    assert all(map(np.array_equal, left(objectives.ConflictAware(start=3.0), after)[1], aware))
