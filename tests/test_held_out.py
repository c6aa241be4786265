"""Samplers that adapt: images kept out of training, what is measured on them, and runs that resume."""

import dataclasses
import json
import os

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from small_runs import CLASSES, SPACE, newest, same
from test_recipes import settings, stage

from resnet48.evaluation import accuracy
from resnet48.images import datasets
from resnet48.nets.supernet import Supernet
from resnet48.system.errors import Stopped, UserError
from resnet48.training import candidates, checkpoint, held_out, loop, recipes, run_state
from resnet48.training.candidates import Strata
from resnet48.training.tensor_files import CheckpointError

PER_EPOCH = 3  # 24 of 32 images in batches of 8


def numbered(count, validation=9):
    """An image set whose images are told by their brightest pixel, and whose classes by how many pixels are bright."""
    def split(first, size):
        pixels = np.zeros((size, 20, 18), "uint8")
        for place in range(size):
            pixels[place, :, :6 * (place % len(CLASSES) + 1)] = first + place
        return datasets.Split(pixels, np.arange(size) % len(CLASSES))

    return datasets.ImageSet("numbered", CLASSES, split(0, count), split(count, validation), 16, workers=0, flip=False)


# ---- the images

@pytest.mark.parametrize("count, kept", [(24, 8), (32, 8), (120, 15)])
def test_an_eighth_of_the_training_images_is_kept_out_and_enough_for_the_batch_norms(count, kept):
    images = numbered(count)
    rest, (pixels, labels) = held_out.apart(images, seed=3)
    out, left = (sorted({int(image.max()) for image in some}) for some in (pixels, rest.train.images))
    assert len(out) == kept and sorted(out + left) == list(range(count))
    assert rest.val is images.val and np.bincount(labels).max() - np.bincount(labels).min() <= 1
    assert [int(image.max()) % 3 for image in rest.train.images] == rest.train.labels.tolist()
    again, (pixels_again, _) = held_out.apart(images, seed=3)
    assert np.array_equal(pixels, pixels_again) and rest.train.names_digest() == again.train.names_digest()
    assert not np.array_equal(pixels, held_out.apart(images, seed=4)[1][0])


def test_of_very_many_images_512_are_kept_out():
    many = datasets.Split(np.zeros((5000, 8, 8), "uint8"), np.arange(5000) % 3)
    images = dataclasses.replace(numbered(9), train=many)
    assert len(held_out.apart(images, 0)[1][1]) == 512


def test_too_few_images_to_measure_on_are_refused():
    with pytest.raises(UserError, match="7 held-out training image.* at 16 px give .* or a --sampler that does not"):
        held_out.apart(numbered(7), 0)


# ---- what is measured

def test_a_measurement_is_the_loss_of_calibrated_subnets_and_leaves_the_net_as_it_was():
    net, strata = Supernet(SPACE, len(CLASSES)), Strata(SPACE)
    net.train()
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (12, 3, 16, 16)).astype("uint8"), np.arange(12) % 3
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    held_out.observe(strata, net, pixels, labels)
    assert same(before, {name: value.numpy() for name, value in net.state_dict().items()}) and net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    net.eval()
    for found, archs in zip(strata.state()["losses"], strata.observed):
        logits = [accuracy.subnet(net, arch, pixels)(datasets.normalize(paddle.to_tensor(pixels))) for arch in archs]
        expected = np.mean([float(F.cross_entropy(each, paddle.to_tensor(labels))) for each in logits])
        assert found == pytest.approx(expected, rel=1e-5)


# ---- runs

@pytest.fixture(scope="module", autouse=True)
def few():
    """Few archs that are measured, and few that tell the bins apart, to be quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "ARCHS_PER_BIN", 2)
        patch.setattr(candidates, "ARCHS_FOR_EDGES", 100)
        yield


ADAPTING = (stage(epochs=3, sampler="stratified"), stage(epochs=1, sampler="stratified_sandwich"))


def trained(folder, stop_after=None, seen=None, image_set=None, stages=ADAPTING):
    """The stages and the net's values after a run, None where it was stopped after so many steps."""
    chosen = settings(folder, batch_size=8, max_epoch=4, stages=stages, objective="cross_entropy", lr=1.0, eval_freq=0)
    made = recipes.supernet(chosen, SPACE)
    firsts = [span.first for span in recipes.in_steps(made, chosen, PER_EPOCH, 1)]

    def watched(each, first):
        def sample(seed, moment):
            if first + moment.step + 1 == stop_after:
                os.kill(os.getpid(), 15)
            pairs = each.sampler(seed, moment)
            if seen is not None:
                seen.append([arch.code for _, arch in pairs])
            return pairs
        return dataclasses.replace(each, sampler=sample)

    paddle.seed(0)
    net = Supernet(SPACE, len(CLASSES))
    try:
        loop.fit(net, [watched(each, first) for each, first in zip(made, firsts)], image_set or numbered(32), chosen)
    except Stopped:
        return made, None
    return made, {name: value.numpy() for name, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    seen, folder = [], tmp_path_factory.mktemp("whole")
    return folder, *trained(folder, seen=seen), seen


def test_the_weights_follow_and_the_draws_follow_the_weights(whole):
    folder, stages, _, seen = whole
    weights = stages[0].strata.weights
    assert max(weights) - min(weights) > 0.01 and sum(weights) == pytest.approx(1)
    chosen = settings(folder, batch_size=8, max_epoch=4, stages=ADAPTING)
    fresh = recipes.supernet(chosen, SPACE)
    (span, _) = recipes.in_steps(fresh, chosen, PER_EPOCH, 1)
    unweighted = [[arch.code for _, arch in span.archs(step)] for step in range(9)]
    assert seen[:6] == unweighted[:6]
    fresh[0].strata.weights = [0.1, 0.1, 0.1, 0.1, 0.6]
    assert [[arch.code for _, arch in span.archs(step)] for step in range(9)] != unweighted


@pytest.mark.parametrize("stops", [(2, 6, 8), (3, 9, 11)], ids=str)
def test_a_run_resumes_bit_for_bit_inside_an_epoch_at_its_end_and_between_stages(tmp_path, whole, stops):
    seen = []
    for stop in stops:
        assert trained(tmp_path, stop, seen)[1] is None
    assert same(trained(tmp_path, None, seen)[1], whole[2]) and seen == whole[3]


def test_what_an_epoch_measures_is_in_the_checkpoint_of_its_last_step(tmp_path):
    trained(tmp_path, 3)
    state = newest(tmp_path).state
    assert state["step"] == 3 and len(state["sampler"]["losses"]) == 5 and state["images"] == 24


def test_no_step_sees_an_image_that_is_kept_out(tmp_path, monkeypatch):
    plain = np.stack([np.full((20, 18), place, "uint8") for place in range(32)])  # whatever a crop shows of them
    seen, every = set(), dataclasses.replace(numbered(32), train=datasets.Split(plain, np.arange(32) % len(CLASSES)))
    kept = {int(image.max()) for image in held_out.apart(every, seed=3)[1][0]}
    normalize = datasets.normalize

    def noted(pixels):
        if len(pixels) == 8 and pixels.shape[1:] == [3, 16, 16] and not measuring:
            seen.update(int(image.max()) for image in pixels.numpy())
        return normalize(pixels)

    measuring, observe = [], held_out.observe

    def observed(strata, net, pixels, labels):
        assert {int(image.max()) for image in pixels} == kept
        measuring.append(None)
        observe(strata, net, pixels, labels)
        measuring.pop()

    monkeypatch.setattr(datasets, "normalize", noted)
    monkeypatch.setattr(held_out, "observe", observed)
    trained(tmp_path, image_set=every, stages=(stage(epochs=1, sampler="stratified"),))
    assert len(seen) == 24 and not seen & kept and seen < set(range(32))


def test_a_checkpoint_with_another_samplers_state_is_refused(tmp_path):
    trained(tmp_path, 4)
    path = os.path.join(newest(tmp_path).path, checkpoint.STATE)
    with open(path) as file:
        state = json.load(file)
    state["sampler"]["weights"] = [1.0]
    state["sha256"][checkpoint.STATE] = run_state.digest(state)
    with open(path, "w") as file:
        json.dump(state, file)
    with pytest.raises(CheckpointError, match="does not hold the state of the sampler"):
        trained(tmp_path)


def test_a_stage_with_a_split_takes_no_sampler_that_adapts():
    split = settings("", stages=(stage(epochs=1, sampler="stratified", split="depth"),))
    with pytest.raises(UserError, match="--sampler stratified follows the losses of all archs, but a stage with"):
        recipes.supernet(split, SPACE)
    with pytest.raises(UserError, match="--channel_fairness .* and a stage with `split` exclude each other"):
        recipes.supernet(settings("", stages=(stage(epochs=1, split="depth"),), channel_fairness=True), SPACE)
