import dataclasses

import numpy as np
import paddle
import pytest
from small_runs import CLASSES, SANDWICH, SPACE, at, images
from test_recipes import small

from resnet48.images import datasets
from resnet48.nets.supernet import Supernet
from resnet48.space.arch import PUBLISHED
from resnet48.system import runtime
from resnet48.system.errors import UserError
from resnet48.training import objectives, recipes, sharing

# That processes with shared subnets train as one does, and resume: test_distributed.


@pytest.mark.parametrize("costs, processes, expected", [
    ([1.0, 0.3, 0.6, 0.5], 2, [0, 0, 1, 1]), ([5, 5, 4, 4, 3, 3, 3], 3, [0, 1, 2, 2, 0, 1, 0]),
    ([2, 1], 1, [0, 0]), ([1], 2, [0])])
def test_each_job_goes_to_who_has_the_least_to_do_the_longest_first(costs, processes, expected):
    assert sharing.owners(costs, processes) == expected


@pytest.mark.parametrize("seed", range(20))
def test_no_process_has_more_than_four_thirds_of_the_least_there_can_be(seed):
    rng = np.random.default_rng(seed)
    costs, processes = rng.random(rng.integers(1, 7)), int(rng.integers(1, 4))
    loads = np.bincount(sharing.owners(costs, processes), costs, processes)
    splits = np.indices([processes] * len(costs)).reshape(len(costs), -1).T
    best = min(max(np.bincount(split, costs, processes)) for split in splits)
    assert loads.max() <= best * 4 / 3 + 1e-12


def test_a_subnet_costs_its_sums_in_wide_nets_and_its_layers_in_narrow_ones():
    wide, narrow = PUBLISHED, PUBLISHED.narrowed((4, 8, 16, 32), 1)
    few, many = (len(arch.convolutions()) for arch in (wide.smallest(), wide.largest()))
    for space, image_size, images, counts_sums in (wide, 64, 32, True), (narrow, 16, 64, False):
        smallest, largest = space.smallest(), space.largest()
        ratio = sharing.cost(largest, images, image_size) / sharing.cost(smallest, images, image_size)
        expected = largest.macs(image_size) / smallest.macs(image_size) if counts_sums else many / few
        assert ratio == pytest.approx(expected, rel=0.03)


def shared_by_two(monkeypatch, rank, objective, archs, known, moment):
    """(losses by role, gradients) of a step of rank 0 or 1, where the other one's logits are those of `known`."""
    paddle.seed(0)
    net = Supernet(SPACE, len(CLASSES))
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    monkeypatch.setattr(runtime, "rank", lambda: rank)
    monkeypatch.setattr(runtime, "summed", lambda mine: paddle.where(mine == 0, paddle.to_tensor(known), mine))
    pixels, labels = some_images()
    gradients = objectives.Gradients(net)
    run = sharing.subnets_shared(net, archs, pixels, len(CLASSES))
    objective.step(run, archs, pixels, labels, gradients, moment)
    monkeypatch.undo()
    return gradients.means(), [each.grad for each in net.parameters()]


def some_images():
    split = images().train
    return datasets.normalize(paddle.to_tensor(np.repeat(split.images[:8, None, :16, :16], 3, 1))), paddle.to_tensor(
        split.labels[:8])


@pytest.mark.parametrize("name", ["cross_entropy", "in_place_distillation", "alpha_divergence", "complexity_aware",
                                  "ranking"])
def test_the_shares_of_two_processes_add_up_to_the_step_of_one(monkeypatch, name):
    objective, archs = objectives.OBJECTIVES[name](), [*SANDWICH.archs(0), ("random", SPACE.smallest())]
    objective.prepare(SPACE, None)
    paddle.seed(0)
    net, (pixels, labels) = Supernet(SPACE, len(CLASSES)), some_images()
    known = np.stack([net(pixels, arch).numpy() for _, arch in archs])
    gradients, moment = objectives.Gradients(net), at(0)._replace(epoch=10.0)
    assert objective.logits_only
    objective.step(net, archs, pixels, labels, gradients, moment)
    whole = [each.grad for each in net.parameters()]
    parts = [shared_by_two(monkeypatch, rank, objective, archs, known, moment) for rank in (0, 1)]
    for losses, _ in parts:
        assert {role: float(loss) for role, loss in losses.items()} == pytest.approx(
            {role: float(loss) for role, loss in gradients.means().items()}, rel=1e-5)
    for expected, *halves in zip(whole, *(grads for _, grads in parts), strict=True):
        present = [each for each in halves if each is not None]
        assert (expected is None) == (not present)
        if present:
            assert np.allclose(sum(present).numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_more_than_the_subnets_of_the_step_is_refused():
    net, (pixels, _) = Supernet(SPACE, len(CLASSES)), some_images()
    net.eval()
    archs = [("largest", SPACE.largest()), ("random", SPACE.smallest()), ("random", SPACE.smallest())]
    run = sharing.subnets_shared(net, archs, pixels, len(CLASSES))
    for _, arch in archs:
        assert np.array_equal(run(pixels, arch).numpy(), net(pixels, arch).numpy())
    for asked in ((SPACE.largest(),), (SPACE.sample(np.random.default_rng(1)),), (SPACE.largest(), None, None), ()):
        with pytest.raises(UserError, match="^--share subnets: this objective runs more than each subnet of a step"):
            run(pixels, *asked)


@pytest.mark.parametrize("objective", ["look_back", "nsas", "conflict_aware", "momentum_contrast",
                                       "in_place_distillation(dropout=0.1)"])
def test_objectives_that_need_more_than_logits_are_refused_before_anything_is_read(tmp_path, objective):
    settings = dataclasses.replace(small("sandwich.yaml", tmp_path), share="subnets", objective=objective)
    with pytest.raises(UserError, match="cannot be shared out: --share images"):
        recipes.supernet(settings, SPACE)


def test_more_processes_than_subnets_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "world_size", lambda: 4)
    settings = dataclasses.replace(small("sandwich.yaml", tmp_path), share="subnets", dyna_batch_size=3)
    with pytest.raises(UserError, match=r"4 processes are more than the 3 subnets of a step \(--dyna_batch_size\)"):
        recipes.supernet(settings, SPACE)
