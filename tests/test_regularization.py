"""Dropout before the classifier and label smoothing: what they act on, and that nothing else is disturbed."""

import dataclasses

import numpy as np
import paddle
import pytest
from small_runs import CLASSES, SANDWICH, SETTINGS, SPACE, at, fit, losses_of_step, same

from resnet48.nets import layers
from resnet48.nets.supernet import ResNet48, Supernet
from resnet48.system import runtime
from resnet48.system.errors import UserError
from resnet48.training import objectives, recipes

IN_PLACE = [name for name, kind in objectives.OBJECTIVES.items() if issubclass(kind, objectives.InPlaceDistillation)]


@pytest.fixture
def net():
    paddle.seed(0)
    return Supernet(SPACE, len(CLASSES))


def batch(count=8):
    rng = np.random.default_rng(0)
    return (paddle.to_tensor(rng.standard_normal((count, 3, 16, 16)).astype("float32")),
            paddle.to_tensor(rng.integers(0, len(CLASSES), count)))


def classified(rate, moment, features):
    """What a classifier that passes its input on makes of it."""
    width = features.shape[1]
    layer = paddle.nn.Linear(width, width)
    layer.weight.set_value(np.eye(width, dtype="float32"))
    layer.bias.set_value(np.zeros(width, "float32"))
    return objectives.objective.dropout(rate, moment)(features, layer).numpy()


def test_dropout_zeroes_its_part_of_the_features_and_scales_the_rest_up():
    features = paddle.to_tensor(np.random.default_rng(0).standard_normal((64, 50)).astype("float32"))
    found = classified(0.2, at(0), features)
    assert (found == 0).mean() == pytest.approx(0.2, abs=0.02)
    assert np.allclose(found[found != 0], features.numpy()[found != 0] / 0.8, rtol=1e-5)


def test_what_is_dropped_is_a_function_of_seed_step_part_and_rank(monkeypatch):
    features, moment = paddle.ones([8, 40]), at(3)
    found = classified(0.5, moment, features)
    assert np.array_equal(classified(0.5, moment._replace(epoch=7.0, warming_up=True), features), found)
    others = [classified(0.5, moment._replace(**{name: 9}), features) for name in ("seed", "step", "part")]
    monkeypatch.setattr(runtime, "rank", lambda: 1)
    others.append(classified(0.5, moment, features))
    assert not any(np.array_equal(each, found) for each in others)


def test_dropout_disturbs_no_other_random_draw():
    layer, draws = paddle.nn.Linear(40, 2), []
    for linear in (layers.linear, objectives.objective.dropout(0.5, at(3))):
        paddle.seed(0)
        np.random.seed(0)
        linear(paddle.ones([8, 40]), layer)
        draws.append((paddle.rand([3]).tolist(), np.random.rand()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("name", IN_PLACE)
def test_dropout_is_for_the_largest_only_and_the_others_learn_from_what_it_gives(net, name):
    objective, calls = objectives.OBJECTIVES[name](dropout=0.5), []
    objective.prepare(SPACE, None)

    def run(images, arch, norm=None, linear=None):
        if paddle.is_grad_enabled():
            calls.append((arch, linear is not None))
        return net(images, arch, norm, linear)

    archs = SANDWICH.archs(0)
    gradients = objectives.Gradients(net)
    objective.step(run, archs, *batch(), gradients, at(3, epoch=5.0))
    assert calls == [(arch, place == 0) for place, (_, arch) in enumerate(archs)]
    logits = net(batch()[0], archs[0][1], None, objectives.objective.dropout(0.5, at(3)))
    if name in ("in_place_distillation", "conflict_aware", "look_back"):
        expected = objectives.soft_cross_entropy(net(batch()[0], archs[1][1]), logits)
        assert float(gradients.means()["smallest"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_of_everything_is_refused(rate):
    with pytest.raises(UserError, match=f"dropout takes a number from 0 to below 1, got {rate}"):
        objectives.LookBack(dropout=rate).prepare(SPACE, None)


def settings(folder, **changes):
    return dataclasses.replace(SETTINGS, save_dir=str(folder), batch_size=8, accumulate=2, **changes)


def test_trainings_with_dropout_resume_bit_for_bit(tmp_path):
    kind, plain = SANDWICH._replace(objective=objectives.InPlaceDistillation(dropout=0.5)), settings(tmp_path / "plain")
    through, parts = fit(kind, settings(tmp_path / "through")), settings(tmp_path / "parts")
    assert fit(kind, parts, stop_after=2) is None
    assert same(fit(kind, parts), through) and not same(fit(SANDWICH, plain), through)


def test_a_standalone_net_takes_dropout_too(tmp_path):
    (pixels, labels), net = batch(), ResNet48(SPACE.largest(), len(CLASSES))
    (stage,) = recipes.standalone(settings(tmp_path, dropout=0.5))
    loss = losses_of_step(stage.objective, net, [], pixels, labels, at(3))["loss"]
    logits = net(pixels, None, objectives.objective.dropout(0.5, at(3)))
    assert float(loss) == pytest.approx(float(paddle.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in IN_PLACE if name not in ("ranking", "complexity_aware")])
def test_label_smoothing_acts_on_cross_entropy_to_labels_only(net, name):
    losses = []
    for smoothing in (0.0, 0.3):
        objective = objectives.OBJECTIVES[name](label_smoothing=smoothing)
        objective.prepare(SPACE, None)
        losses.append(losses_of_step(objective, net, SANDWICH.archs(0), *batch()))
    plain, smooth = losses
    assert float(plain["largest"]) != float(smooth["largest"])
    assert all(float(plain[role]) == float(smooth[role]) for role in ("smallest", "random"))
