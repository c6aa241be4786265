"""Objectives against forgetting: an archive of novel archs, and looking back after an update."""

import dataclasses
import json

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from small_runs import (CLASSES, SANDWICH, SETTINGS, SPACE, STEPS, at, checkpoints, fit, images, losses_of_step, same,
                        table)
from test_numerics import EightfoldScaler

from resnet48.nets.supernet import Supernet
from resnet48.space.arch import ArchConfig
from resnet48.system import runtime
from resnet48.system.errors import UserError
from resnet48.training import checkpoint, loop, objectives, optim, samplers
from resnet48.training.objectives import forgetting


@pytest.fixture
def net():
    paddle.seed(0)
    return Supernet(SPACE, len(CLASSES))


def batch(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return (paddle.to_tensor(rng.standard_normal((count, 3, 16, 16)).astype("float32")),
            paddle.to_tensor(rng.integers(0, len(CLASSES), count)))


def prepared(kind, candidates=SPACE, **values):
    objective = kind(**values)
    objective.prepare(candidates, None)
    return objective


def archs_of(seed, count):
    rng = np.random.default_rng(seed)
    return [SPACE.sample(rng) for _ in range(count)]


def settings(folder, **changes):
    return dataclasses.replace(SETTINGS, save_dir=str(folder), batch_size=8, **changes)


def left(net):
    return [parameter.grad for parameter in optim.trainable(net)]


def assert_same_gradients(net, loss):
    expected = paddle.grad(loss, optim.trainable(net), allow_unused=True)
    for got, wanted in zip(left(net), expected, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            assert float((got - wanted).norm()) < 1e-3 * float(wanted.norm()) + 1e-6


# ---- the archive

def test_the_distance_of_two_archs_is_the_mean_difference_of_their_digits_with_blocks_left_out_beyond_the_narrowest():
    one = "22221" + "11110000001111000000" + "1111000000000000" + "1111000000"
    other = "23221" + "12110000001111110000" + "1111000000000000" + "1111000000"
    one, other = ArchConfig.parse(one, SPACE), ArchConfig.parse(other, SPACE, allow_untied=True)
    assert forgetting.distances(one, [one, other]).tolist() == [0.0, pytest.approx((1 + 7 + 7) / 47)]
    assert forgetting.distances(other, [one]) == forgetting.distances(one, [other])


def pairwise(archs):
    return sum(forgetting.distances(arch, archs).sum() for arch in archs)


def test_the_archive_holds_archs_that_were_trained_once_each_and_grows_ever_more_diverse():
    objective, seen, before = prepared(objectives.NoveltyArchive, size=5, recent=10), archs_of(0, 80), 0.0
    for count, arch in enumerate(seen, 1):
        objective.meet(arch)
        assert len(set(objective.archive)) == len(objective.archive) == min(count, 5)
        assert set(objective.archive) <= set(seen[:count])
        assert (now := pairwise(objective.archive)) >= before
        before = now
    apart = [pairwise(archs_of(seed, 5)) for seed in range(1, 200)]
    assert before > max(apart)


def test_the_arch_that_gives_its_place_is_the_nearest_and_the_one_that_takes_it_the_most_novel_of_the_recent():
    objective = prepared(objectives.NoveltyArchive, size=2, recent=2)
    large, small, near_large, middle = SPACE.largest(), SPACE.smallest(), *archs_of(3, 2)
    objective.meet(large)
    objective.meet(middle)
    assert objective.archive == [large, middle]
    objective.meet(small)  # nearer to the middle, and further from the largest than it
    assert objective.archive == [large, small]
    objective.meet(near_large)
    assert objective.archive == [large, small]
    assert objective.state()["recent"] == [small.code, near_large.code]


def test_an_arch_is_in_the_archive_once_even_where_another_copy_would_be_more_novel():
    objective = prepared(objectives.NoveltyArchive, size=4)
    wide = SPACE.assemble((5, 5, 8, 5), "7777", ["1" * depth for depth in (5, 5, 8, 5)])
    middle, near = (SPACE.assemble((5, 5, 8, 5), "4444", [inner * depth for depth in (5, 5, 8, 5)]) for inner in "45")
    for arch in (SPACE.largest(), SPACE.smallest(), wide, middle):
        objective.meet(arch)
    assert forgetting.novelty(SPACE.smallest(), objective.archive[:3]) > forgetting.novelty(middle, objective.archive[:3])
    objective.meet(near)
    assert len(set(objective.archive)) == 4


def test_the_loss_is_shared_between_the_subnets_of_the_step_and_the_archive(net):
    (pixels, labels), old, new = batch(), archs_of(0, 3), archs_of(1, 2)
    objective = prepared(objectives.NoveltyArchive, weight=0.25, size=3, recent=1)
    for arch in old:
        objective.meet(arch)
    archive = [*objective.archive]
    objective.meet = lambda arch: None
    losses = losses_of_step(objective, net, [("random", arch) for arch in new], pixels, labels)
    own, kept = ([F.cross_entropy(net(pixels, arch), labels) for arch in some] for some in (new, archive))
    assert_same_gradients(net, 0.75 * sum(own) + 0.25 * 2 / 3 * sum(kept))
    assert float(losses["random"]) == pytest.approx(float(sum(own)) / 2, rel=1e-4)
    assert float(losses["archive"]) == pytest.approx(float(sum(kept)) / 3, rel=1e-4)


def test_what_every_step_trains_takes_no_place_in_the_archive_and_a_step_in_parts_meets_its_archs_once(net):
    objective, random = prepared(objectives.NoveltyArchive), archs_of(0, 1)[0]
    archs = [("largest", SPACE.largest()), ("smallest", SPACE.smallest())]
    losses = losses_of_step(objective, net, archs, *batch())
    loss = sum(F.cross_entropy(net(batch()[0], arch), batch()[1]) for _, arch in archs)
    assert_same_gradients(net, loss)  # with nothing in the archive, the subnets count in full
    assert objective.archive == [] and losses.keys() == {"largest", "smallest"}
    archs.append(("random", random))
    gradients = objectives.Gradients(net, parts=2)
    for part in range(2):
        objective.step(net, archs, *batch(), gradients, at(0)._replace(part=part))
    assert objective.state() == {"archive": [random.code], "recent": [random.code]}
    assert objective.trained(archs) == [*archs, ("archive", random)]


@pytest.mark.parametrize("candidates", [SPACE, samplers.ArchList(archs_of(0, 40))], ids=["space", "list"])
def test_the_archive_goes_on_after_a_trip_through_a_checkpoint(candidates):
    objective, again = (prepared(objectives.NoveltyArchive, candidates) for _ in range(2))
    for arch in archs_of(0, 20):
        objective.meet(arch)
    again.load(json.loads(json.dumps(objective.state())))
    for arch in archs_of(0, 40)[20:]:
        assert again.archive == objective.archive
        objective.meet(arch)
        again.meet(arch)
    assert again.state() == objective.state()
    for state in ({"archive": ["nothing"], "recent": []}, {"archive": [], "recent": [SPACE.largest().code + "1"]}):
        with pytest.raises(UserError):
            again.load(state)


def nsas_kind(count=1):
    """Uniform sampling of one subnet."""
    return SANDWICH._replace(objective=prepared(objectives.NoveltyArchive, size=2),
                             archs=lambda step: samplers.uniform(SPACE, 3, at(step), count),
                             roles=("random", "archive"))


def test_a_checkpoint_with_another_state_is_refused_by_name(tmp_path):
    assert fit(nsas_kind(), settings(tmp_path), stop_after=1) is None
    look_back = SANDWICH._replace(objective=objectives.InPlaceDistillation())
    assert fit(look_back, settings(tmp_path / "other"), stop_after=1) is None
    with pytest.raises(checkpoint.CheckpointError, match="does not hold the state of this objective"):
        fit(nsas_kind(), settings(tmp_path / "other"))


@pytest.mark.parametrize("make", [nsas_kind, lambda: look_kind()], ids=["archive", "look back"])
def test_what_an_objective_trains_beside_the_subnets_of_a_step_is_not_frozen_with_the_unused(tmp_path, make):
    """Without momentum and decay nothing else moves, so freezing the unused changes nothing."""
    plain = dict(momentum=0.0, weight_decay=0.0, lr=0.5)
    free = fit(make(), settings(tmp_path / "free", **plain))
    assert same(fit(make(), settings(tmp_path / "frozen", freeze_unused=True, **plain)), free)


# ---- looking back

def look_kind(count=3):
    return SANDWICH._replace(objective=prepared(objectives.LookBack, count=count),
                             roles=("largest", "smallest", "random", "look_back"))


def looked_at(count, step=0, seed=0):
    return [SPACE.sample(np.random.default_rng((forgetting.LOOK_STREAM, seed, step, i))) for i in range(count)]


def soft_loss(net, pixels, teacher, arch):
    return -(paddle.to_tensor(teacher) * F.log_softmax(net(pixels, arch))).sum(axis=1).mean()


def buffers(net):
    return {name: value.numpy() for name, value in net.state_dict().items() if name.endswith(("_mean", "_variance"))}


def stepped(net, objective, lr, parts=1):
    """A step and its update; then what `after` gives: (archs, gradients, buffers before and after it)."""
    optimizer = optim.make_optimizer(net, momentum=0.0)
    optimizer.set_lr(lr)
    gradients, moment = objectives.Gradients(net, parts=parts), at(0)
    for part in range(parts):
        objective.step(net, SANDWICH.archs(0), *batch(seed=part), gradients, moment._replace(part=part))
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)
    before = buffers(net)
    again = objectives.Gradients(net, parts=parts)
    found = objective.after(net, again, moment)
    return found, again.means(), before, buffers(net)


@pytest.mark.parametrize("parts", [1, 2])
def test_those_whose_soft_loss_has_risen_and_no_others_are_corrected_with_the_sum_of_their_gradients(net, parts):
    twin = Supernet(SPACE, len(CLASSES))
    twin.set_state_dict(net.state_dict())
    archs, pixels = looked_at(8), [batch(seed=part)[0] for part in range(parts)]
    teachers = [F.softmax(twin(each, SPACE.largest())).numpy() for each in pixels]

    def losses(net):
        return [sum(soft_loss(net, *part, arch) for part in zip(pixels, teachers)) / parts for arch in archs]

    before = losses(twin)
    risen, means, *_ = stepped(net, prepared(objectives.LookBack, count=8), 0.05, parts)
    gradients = [None if each is None else each.clone() for each in left(net)]
    twin.set_state_dict(net.state_dict())
    after = losses(twin)
    worse = [place for place in range(8) if float(after[place]) > float(before[place])]
    assert 0 < len(worse) < 8
    assert risen == [("look_back", archs[place]) for place in worse]
    expected = paddle.grad(sum(after[place] for place in worse), optim.trainable(twin), allow_unused=True)
    for got, wanted in zip(gradients, expected, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            assert float((got - wanted).norm()) < 1e-3 * float(wanted.norm()) + 1e-6
    assert float(means["look_back"]) == pytest.approx(np.mean([float(after[place]) for place in worse]), rel=1e-4)


def test_looking_leaves_no_trace(net):
    twin = Supernet(SPACE, len(CLASSES))
    twin.set_state_dict(net.state_dict())
    losses_of_step(objectives.InPlaceDistillation(), twin, SANDWICH.archs(0), *batch())
    risen, means, before, after = stepped(net, prepared(objectives.LookBack), 0.0)
    assert same(before, after) and same(before, buffers(twin))
    assert risen == [] and means == {} and all(each is None for each in left(net))  # at rate 0 nothing has risen


@pytest.mark.parametrize("of_another_rank, count", [(100.0, 5), (-100.0, 0)])
def test_the_mean_over_all_ranks_decides(net, monkeypatch, of_another_rank, count):
    monkeypatch.setattr(runtime, "all_reduce_sum", lambda values: [value + of_another_rank for value in values])
    risen, *_ = stepped(net, prepared(objectives.LookBack), 0.3)
    assert len(risen) == count


class Again(objectives.LookBack):
    """Looks back in every second step, always with the same result."""

    updates = 0

    def after(self, net, gradients, moment):
        if moment.step % 2:
            return []
        arch = SPACE.smallest()
        gradients.add("look_back", 0.01 * net(batch()[0], arch).square().sum())
        return [("look_back", arch)]


def test_another_update_is_no_other_step(tmp_path, monkeypatch):
    taken, averaged = [], []
    monkeypatch.setattr(loop, "_update", lambda run, archs, lr, update=loop._update: (
        taken.append(lr), update(run, archs, lr)))
    monkeypatch.setattr(optim.Ema, "update", lambda ema, step: averaged.append(step))
    kind = look_kind()._replace(objective=prepared(Again))
    fit(kind, dataclasses.replace(SETTINGS, save_dir=str(tmp_path), ema=0.9, log_freq=1))
    assert len(taken) == STEPS * 3 // 2 and taken[0] == taken[1] != taken[2]
    assert averaged == list(range(1, STEPS + 1)) and checkpoints(tmp_path) == [6, 12]
    assert [bool(row["loss_look_back"]) for row in table(tmp_path)] == [True, False] * (STEPS // 2)


@pytest.mark.filterwarnings("ignore:amp_guard")
def test_in_half_precision_the_loss_of_another_update_is_scaled_too(tmp_path, monkeypatch):
    found = []
    for precision in ("fp32", "fp16"):
        kind = look_kind()._replace(objective=prepared(Again))
        found.append(fit(kind, settings(tmp_path / precision, precision=precision, max_epoch=1, lr=0.05)))
        monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")  # where precision counts
        monkeypatch.setattr(paddle.amp, "GradScaler", EightfoldScaler)
    assert all(found[1][name] == pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in found[0].items())


@pytest.mark.parametrize("make", [nsas_kind, look_kind], ids=["archive", "look back"])
def test_runs_with_every_option_resume_bit_for_bit(tmp_path, make):
    options = dict(ema=0.9, accumulate=2, clip_norm=0.5, no_decay_norm=True, freeze_unused=True, lr=0.3)
    through = fit(make(), settings(tmp_path / "through", **options), image_set=images(32))
    parts = settings(tmp_path / "parts", **options)
    for stop in (2, 5):
        assert fit(make(), parts, stop_after=stop, image_set=images(32)) is None
    assert same(fit(make(), parts, image_set=images(32)), through)


@pytest.mark.parametrize("kind, values, sentence", [
    (objectives.NoveltyArchive, {"size": 0}, "--objective nsas: size takes 1 or more; got 0"),
    (objectives.NoveltyArchive, {"recent": 0}, "--objective nsas: recent takes 1 or more; got 0"),
    (objectives.NoveltyArchive, {"weight": 1.5}, "--objective nsas: weight takes a number from 0 to 1; got 1.5"),
    (objectives.LookBack, {"count": 0}, "--objective look_back: count takes 1 or more; got 0")])
def test_hyper_parameters_that_make_no_sense_are_refused(kind, values, sentence):
    with pytest.raises(UserError, match=sentence):
        prepared(kind, **values)
