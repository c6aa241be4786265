import dataclasses
import json
import sys
import types

import numpy as np
import paddle
import pytest
from small_runs import (FIXED_TEACHER, SANDWICH, SETTINGS, SPACE, STANDALONE, STEPS, at, checkpoints, fit,
                        images, losses_of_step, newest, same, table, values)

from resnet48.nets.supernet import ResNet48, Supernet
from resnet48.space.nodes import used_shapes
from resnet48.system.errors import UserError
from resnet48.training import checkpoint, loop, objectives, optim, recipes
from resnet48.training.precision import Precision


def settings(folder, **changes):
    return dataclasses.replace(SETTINGS, save_dir=str(folder), **changes)


def large_images():
    """Of a size at which a batch of 4 gives the batch norms enough values."""
    return dataclasses.replace(images(), size=64)


def batch(count=8):
    rng = np.random.default_rng(0)
    return paddle.to_tensor(rng.integers(0, 256, (count, 3, 16, 16)).astype("uint8")), paddle.to_tensor(
        rng.integers(0, 3, count))


def gradients(net):
    return [parameter.grad.numpy() for parameter in optim.trainable(net) if parameter.grad is not None]


# ---- gradient accumulation

@pytest.mark.parametrize("kind", [STANDALONE, SANDWICH], ids=["standalone", "sandwich"])
def test_a_batch_in_parts_gives_the_gradients_and_losses_of_the_whole(kind):
    paddle.seed(0)
    net = kind.make(3)
    net.eval()  # in training mode each part has batch-norm statistics of its own
    found = []
    for parts in (1, 2, 8):
        losses = loop._gradients(kind.objective, Precision(), net, kind.archs(0), *batch(), at(0), parts)
        found.append((gradients(net), {role: float(loss) for role, loss in losses.items()}))
        for parameter in optim.trainable(net):
            parameter.clear_gradient(False)
    for others, losses in found[1:]:
        assert losses == pytest.approx(found[0][1], rel=1e-4)
        for one, other in zip(found[0][0], others, strict=True):
            assert np.abs(one - other).max() <= 1e-3 * np.abs(one).max() + 1e-7


def test_parts_must_divide_the_batch(tmp_path):
    with pytest.raises(UserError, match="--accumulate 3 must divide --batch_size 4"):
        loop.require_runnable(large_images(), settings(tmp_path, accumulate=3))


# ---- what the gradients are made from and what is done to them

@pytest.mark.parametrize("objective, archs", [(objectives.Standalone, 0), (objectives.InPlaceDistillation, 1),
                                              (objectives.CrossEntropy, 1)])
def test_label_smoothing_spreads_part_of_the_label_over_all_classes(objective, archs):
    paddle.seed(0)
    net = Supernet(SPACE, 3) if archs else ResNet48(SPACE.smallest(), 3)
    net.eval()
    pixels, labels = batch()
    arguments = pixels.astype("float32"), labels
    chosen = [("largest", SPACE.largest())][:archs]
    logs = paddle.nn.functional.log_softmax(net(arguments[0], *[arch for _, arch in chosen])).numpy()
    right = logs[np.arange(8), labels.numpy()]
    loss = losses_of_step(objective(label_smoothing=0.3), net, chosen, *arguments)["largest" if archs else "loss"]
    assert float(loss) == pytest.approx(float(-(0.7 * right + 0.3 * logs.mean(axis=1)).mean()), rel=1e-4)


def stepped(weights, gradient, **arguments):
    """What one step of SGD makes of a linear layer's weight and bias."""
    layer = paddle.nn.Linear(2, 2)
    layer.weight.set_value(np.array(weights, "float32"))
    layer.bias.set_value(np.array([1.0, 1.0], "float32"))
    optimizer = optim.make_optimizer(layer, **arguments)
    optimizer.set_lr(1.0)
    ((layer.weight * paddle.to_tensor(np.array(gradient, "float32"))).sum() + layer.bias.sum() * 0).backward()
    optimizer.step()
    return layer.weight.numpy(), layer.bias.numpy()


@pytest.mark.parametrize("no_decay_norm, bias", [(False, 0.9), (True, 1.0)])
def test_weight_decay_may_leave_norms_and_biases_out(no_decay_norm, bias):
    weight, found = stepped([[1, 2], [3, 4]], [[0, 0], [0, 0]], weight_decay=0.1, no_decay_norm=no_decay_norm)
    assert weight == pytest.approx(np.array([[0.9, 1.8], [2.7, 3.6]])) and found == pytest.approx(bias)


def test_gradients_are_scaled_to_a_norm_or_cut_to_a_size():
    zero, gradient = [[0, 0], [0, 0]], [[3, 0], [0, -4]]
    weight, _ = stepped(zero, gradient, weight_decay=0.0, clip=optim.clipping(norm=1.0))
    assert weight == pytest.approx(np.array([[-0.6, 0], [0, 0.8]]), abs=1e-6)
    weight, _ = stepped(zero, gradient, weight_decay=0.0, clip=optim.clipping(value=3.5))
    assert weight == pytest.approx(np.array([[-3.0, 0], [0, 3.5]]))
    assert optim.clipping() is None


def test_two_ways_of_clipping_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="--clip_norm and --clip_value exclude each other"):
        loop.require_runnable(large_images(), settings(tmp_path, clip_norm=1.0, clip_value=1.0))


# ---- what no subnet of a step uses

def test_used_shapes_are_those_of_the_subnet_alone(rng):
    for arch in (SPACE.largest(), SPACE.smallest(), SPACE.sample(rng), SPACE.sample(rng)):
        net = ResNet48(arch, 3)
        shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()
                  if not parameter.stop_gradient}
        assert used_shapes(arch, 3) == shapes


def step_of(net, optimizer, archs, held):
    losses_of_step(FIXED_TEACHER.objective, net, archs, batch()[0].astype("float32") / 255, batch()[1])
    optimizer.set_lr(0.1)
    if held:
        with optim.freeze_unused(net, optimizer, archs):
            optimizer.step()
    else:
        optimizer.step()
    optimizer.clear_grad(set_to_zero=False)


@pytest.mark.parametrize("name, states", [("sgd", ["velocity_0"]), ("adamw", ["moment1_0", "moment2_0"])])
def test_frozen_weights_and_their_momentum_stay_and_the_used_ones_move_as_ever(name, states):
    archs = [("random", SPACE.smallest())]
    used, found, optimizer_name = used_shapes(archs[0][1], 3), {}, name
    for held in (False, True):
        paddle.seed(0)
        net = Supernet(SPACE, 3)
        optimizer = optim.make_optimizer(net, optimizer_name, weight_decay=0.1)
        step_of(net, optimizer, [("largest", SPACE.largest())], held)  # gives everything momentum
        before = {**values(net), **optim.state_by_name(net, optimizer)}
        step_of(net, optimizer, archs, held)
        found[held] = {**values(net), **optim.state_by_name(net, optimizer)}
    moved = 0
    for name, size in used.items():
        for key in (name, *(f"{name}/{state}" for state in states)):
            part = tuple(map(slice, size))
            assert np.array_equal(found[True][key][part], found[False][key][part]), key
            rest = np.ones(before[key].shape, bool)
            rest[part] = False
            assert np.array_equal(found[True][key][rest], before[key][rest]), key
            moved += int((found[False][key][rest] != before[key][rest]).sum())
    assert moved  # without it they would have


# ---- the moving average

def test_the_average_is_what_is_kept_watched_and_published(tmp_path):
    steps, watched = [], []

    class Noting(objectives.Standalone):
        def step(self, net, *rest):
            steps.append(values(net))  # before this step, so after the one before
            super().step(net, *rest)

    def validate(net):
        watched.append(values(net))
        return {"val": 1.0}

    trained = fit(STANDALONE._replace(objective=Noting()), settings(tmp_path, ema=0.6), validate=validate)
    average = steps[0]
    for step, after in enumerate([*steps[1:], trained], 1):
        decay = min(0.6, (1 + step) / (10 + step))
        average = {name: decay * value + (1 - decay) * after[name] for name, value in average.items()}
    published = checkpoint.load(str(tmp_path / "final.pdparams")).weights
    for name, value in average.items():
        assert published[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert same(watched[-1], published) and not same(published, trained)
    weights, state = checkpoint.trained_weights(newest(tmp_path))
    assert same(weights, trained) and all(name.endswith("/velocity_0") for name in state)


# ---- the schedule

def test_a_step_schedule_falls_by_its_factor_after_a_warm_up():
    rates = [optim.step_decay(step, 1.0, 4, 0.1, 2) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def lr_of(settings, per_epoch, world_size):
    (span,) = recipes.in_steps(STANDALONE.stages(), settings, per_epoch, world_size)
    return span.lr


def test_the_schedule_is_what_the_settings_say():
    step = lr_of(settings("", schedule="step", decay_epochs=1.5, decay_rate=0.5, warmup=0.5), 4, 2)
    base = optim.scaled_lr(SETTINGS.lr, SETTINGS.batch_size, 2)
    assert [step(n) / base for n in range(8)] == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.5, 0.5])
    cosine = lr_of(settings("", warmup_steps=3), 4, 1)
    assert [cosine(n) for n in range(8)] == [optim.cosine(n, optim.scaled_lr(1.0, 4, 1), 8, 3) for n in range(8)]


# ---- the loop with all of it

EVERYTHING = dict(ema=0.9, accumulate=2, clip_norm=0.5, no_decay_norm=True, freeze_unused=True, schedule="step",
                  decay_epochs=0.5, warmup_steps=2, label_smoothing=0.1, save_every_steps=5)


@pytest.mark.parametrize("kind", [SANDWICH, FIXED_TEACHER], ids=["sandwich", "fixed teacher"])
def test_a_run_with_every_option_resumes_bit_for_bit(tmp_path, kind):
    through = fit(kind, settings(tmp_path / "through", **EVERYTHING))
    config = settings(tmp_path / "parts", num_workers=1, **EVERYTHING)
    assert fit(kind, config, stop_after=4) is None
    assert fit(kind, config, stop_after=9, build_first=True) is None
    assert same(fit(kind, config), through)
    one, other = newest(tmp_path / "through"), newest(tmp_path / "parts")
    assert same(one.weights, other.weights) and not same(one.weights, through)


def test_checkpoints_come_every_so_many_steps_too(tmp_path):
    fit(STANDALONE, settings(tmp_path, save_every_steps=5, save_freq=2))
    assert checkpoints(tmp_path) == [5, 10, STEPS]


def test_mixed_precision_changes_nothing_on_a_cpu_and_says_so(tmp_path, capsys):
    plain = fit(STANDALONE, settings(tmp_path / "plain"))
    mixed = settings(tmp_path / "mixed", precision="fp16")
    loop.require_runnable(large_images(), mixed)
    assert "note: --precision fp16 has no effect on a CPU" in capsys.readouterr().out
    assert same(fit(STANDALONE, mixed), plain)


class EightfoldScaler:
    """Stands for `paddle.amp.GradScaler`, which does nothing on a CPU."""

    def __init__(self):
        self.scaled, self.updates = np.array([8.0], "float32"), 0

    def scale(self, loss):
        return loss * 8

    def step(self, optimizer):
        for parameter in optimizer._parameter_list:
            if parameter.grad is not None:
                paddle.assign(parameter.grad / 8, parameter.grad)
        optimizer.step()

    def update(self):
        self.updates += 1

    def state_dict(self):
        return {"scale": self.scaled, "incr_count": self.updates}

    def load_state_dict(self, state):
        self.scaled, self.updates = state["scale"], state["incr_count"]


@pytest.mark.filterwarnings("ignore:amp_guard")
def test_half_precision_on_a_gpu_scales_its_losses_and_a_checkpoint_keeps_the_scale(monkeypatch):
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.amp, "GradScaler", EightfoldScaler)
    found = []
    for precision in map(Precision, ("fp32", "bf16", "fp16")):
        paddle.seed(0)
        net = Supernet(SPACE, 3)
        optimizer = optim.make_optimizer(net, weight_decay=0.0)
        optimizer.set_lr(0.1)
        loop._gradients(SANDWICH.objective, precision, net, SANDWICH.archs(0), *batch(), at(0), 2)
        precision.step(optimizer)
        found.append(values(net))
    for other in found[1:]:
        assert all(other[name] == pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in found[0].items())
    assert Precision("bf16").state() == {}
    state = json.loads(json.dumps(precision.state()))
    assert state == {"scale": [8.0], "incr_count": 1}
    state["scale"] = [32.0]
    again = Precision("fp16")
    again.load(state)
    assert again.state() == state


# ---- VisualDL

def test_visualdl_gets_the_rows_of_the_table(tmp_path, monkeypatch):
    written = []

    class LogWriter:
        def __init__(self, logdir):
            written.append(logdir)

        def add_scalar(self, tag, step, value):
            written.append((tag, step, value))

    monkeypatch.setitem(sys.modules, "visualdl", types.SimpleNamespace(LogWriter=LogWriter))
    fit(STANDALONE, settings(tmp_path, visualdl=True))
    assert written[0] == str(tmp_path / "visualdl")
    rows = table(tmp_path)
    for tag in ("epoch", "lr", "loss_loss"):
        found = {step: value for name, step, value in written[1:] if name == tag}
        assert found == pytest.approx({int(row["step"]): float(row[tag]) for row in rows}, rel=1e-4)


def test_visualdl_is_asked_for_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--visualdl needs the package visualdl: pip install visualdl"):
        loop.require_runnable(large_images(), settings(tmp_path, visualdl=True))
