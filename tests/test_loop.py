import dataclasses
import os
import signal

import numpy as np
import paddle
import pytest
from small_runs import (CLASSES, PER_EPOCH, SANDWICH, SETTINGS, SPACE, STANDALONE, STEPS, checkpoints, content,
                        fit, images, newest, same, table, values)

from resnet48.evaluation import accuracy
from resnet48.system import config, signals
from resnet48.system.errors import Stopped, UserError
from resnet48.training import checkpoint, loop, objectives, optim
from resnet48.training.loop import Diverged


def settings(folder):
    return dataclasses.replace(SETTINGS, save_dir=str(folder))


def spoiled(kind, at, spoil):
    """The same kind, but spoil(net, gradients) at step `at` (from 1), after the backward pass."""
    calls = []

    class Spoiled(type(kind.objective)):
        def step(self, net, archs, images, labels, gradients, moment):
            super().step(net, archs, images, labels, gradients, moment)
            calls.append(None)
            if len(calls) == at:
                spoil(net, gradients)

    return kind._replace(objective=Spoiled())


def nan_loss(_net, gradients):
    for role in gradients.means():
        gradients.note(role, paddle.to_tensor(float("nan")))


def infinite_gradients(net, _gradients):
    for parameter in optim.trainable(net):
        if parameter.grad is not None:
            paddle.assign(paddle.full_like(parameter.grad, float("inf")), parameter.grad)


# ---- what a run leaves behind

def test_a_run_leaves_checkpoints_its_settings_its_metrics_and_the_official_files(tmp_path):
    trained = fit(SANDWICH, settings(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "config.yaml", "final.json", "final.pdopt", "final.pdparams",
                                            "metrics.csv"]
    assert checkpoints(tmp_path) == [PER_EPOCH, STEPS]
    assert (tmp_path / "config.yaml").read_text() == config.dump(settings(tmp_path))
    found = checkpoint.load(str(tmp_path / "final.pdparams"))
    assert same(found.weights, trained) and found.state["step"] == STEPS
    state = newest(tmp_path).state
    assert state["settings"] == config.as_data(settings(tmp_path))
    assert (state["classes"], state["images"], state["ranks"]) == (list(CLASSES), 24, 1)


def test_a_run_is_a_function_of_its_settings(tmp_path):
    one = fit(STANDALONE, settings(tmp_path / "one"))
    np.random.seed(9)
    assert same(fit(STANDALONE, settings(tmp_path / "two")), one)
    other = dataclasses.replace(settings(tmp_path / "three"), seed=4)  # other batches; initial weights are the script's
    assert not same(fit(STANDALONE, other), one)


def test_metrics_show_the_scheduled_rate_the_epoch_and_the_losses_by_role(tmp_path):
    fit(SANDWICH, settings(tmp_path))
    rows = table(tmp_path)
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        step = int(row["step"])
        rate = optim.cosine(step - 1, optim.scaled_lr(SETTINGS.lr, SETTINGS.batch_size, 1), STEPS, 3)
        assert float(row["lr"]) == pytest.approx(rate, rel=1e-4, abs=1e-9)
        assert float(row["epoch"]) == pytest.approx(step / PER_EPOCH, rel=1e-4)
        assert all(0 < float(row[f"loss_{role}"]) < 10 for role in ("largest", "smallest", "random"))


def test_a_row_holds_the_mean_of_the_losses_since_the_row_before(tmp_path):
    losses = []

    class Noting(objectives.Standalone):
        def step(self, *arguments):
            super().step(*arguments)
            losses.append(arguments[4].means())

    fit(STANDALONE._replace(objective=Noting()), dataclasses.replace(settings(tmp_path), log_freq=4))
    rows = table(tmp_path)
    assert [int(row["step"]) for row in rows] == [4, 6, 8, 12]  # every fourth step and the end of the epoch
    for first, row in zip((0, 4, 6, 8), rows):
        expected = np.mean([float(each["loss"]) for each in losses[first:int(row["step"])]])
        assert float(row["loss_loss"]) == pytest.approx(expected, rel=1e-4)


def test_checkpoints_come_every_save_freq_epochs_and_at_the_end(tmp_path):
    fit(STANDALONE, dataclasses.replace(settings(tmp_path), max_epoch=5, save_freq=2))
    assert checkpoints(tmp_path) == [12, 24, 30]


def test_the_newest_three_and_the_best_are_kept(tmp_path):
    accuracies = iter([40.0, 70.0, 60.0, 50.0, 30.0, 20.0])
    config = dataclasses.replace(settings(tmp_path), max_epoch=6, save_freq=1)
    fit(STANDALONE, config, validate=lambda net: {"a": next(accuracies), "b": 50.0})
    assert checkpoints(tmp_path) == [12, 24, 30, 36]
    assert (newest(tmp_path).state["best"], newest(tmp_path).state["best_step"]) == (60.0, 12)


@pytest.mark.parametrize("eval_freq, epochs", [(1, [1, 2, 3]), (2, [2, 3]), (0, [3])])
def test_accuracies_are_watched_every_eval_freq_epochs_and_at_the_end(tmp_path, capsys, eval_freq, epochs):
    config = dataclasses.replace(settings(tmp_path), max_epoch=3, eval_freq=eval_freq)
    fit(STANDALONE, config, validate=lambda net: {"val": 12.5})
    said = capsys.readouterr().out
    assert [epoch for epoch in (1, 2, 3) if f"epoch {epoch}: top-1 val 12.50 %" in said] == epochs
    assert newest(tmp_path).state["accuracies"] == {"val": 12.5}


@pytest.mark.parametrize("kind", [STANDALONE, SANDWICH], ids=["standalone", "supernet"])
def test_watching_accuracies_does_not_change_the_training(tmp_path, kind):
    config = settings(tmp_path / "watched")
    watch = accuracy.validate_standalone(images(), config.batch_size) if kind is STANDALONE else \
        accuracy.validate_supernet(images(), SPACE, 8, config.seed, config.batch_size)
    watched = fit(kind, config, validate=watch)
    assert same(watched, fit(kind, settings(tmp_path / "alone")))
    accuracies = newest(tmp_path / "watched").state["accuracies"]
    assert all(0 <= value <= 100 for value in accuracies.values())
    assert list(accuracies) == (["val"] if kind is STANDALONE else ["largest", "smallest", "random1", "random2"])


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_are_a_bar_on_a_terminal_and_only_lines_in_a_log(tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    fit(STANDALONE, settings(tmp_path))
    said, shown = capsys.readouterr()
    assert ("steps: " in shown) == terminal and "\r" not in said
    assert len([line for line in said.splitlines() if line.startswith("epoch ")]) == 6


# ---- stopping

@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_signal_ends_the_run_at_a_step_boundary_with_a_checkpoint(tmp_path, capsys, number):
    assert fit(STANDALONE, settings(tmp_path), stop_after=3, number=number) is None
    assert checkpoints(tmp_path) == [3] and newest(tmp_path).state["step"] == 3
    assert f"stopped by {number.name} after step 3 of {STEPS}" in capsys.readouterr().out
    assert not os.path.exists(tmp_path / "final.pdparams")


def test_the_end_of_the_launcher_ends_the_run_with_a_checkpoint_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signals, "launcher_is_gone", lambda: True)
    with pytest.raises(Stopped):
        loop.fit(STANDALONE.make(len(CLASSES)), STANDALONE.stages(), images(), settings(tmp_path))
    assert checkpoints(tmp_path) == [1]
    assert f"stopped by the end of its launcher after step 1 of {STEPS}" in capsys.readouterr().out


def test_signals_are_handled_as_before_when_a_run_has_ended(tmp_path):
    before = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    fit(STANDALONE, dataclasses.replace(settings(tmp_path / "whole"), max_epoch=1))
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == before
    fit(STANDALONE, settings(tmp_path / "stopped"), stop_after=1)
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == before


def test_a_dry_run_that_is_stopped_does_not_promise_to_go_on(tmp_path, capsys):
    assert fit(STANDALONE, dataclasses.replace(settings(tmp_path), dry_run=True), stop_after=3) is None
    said = capsys.readouterr().out
    assert f"stopped by SIGTERM after step 3 of {STEPS}; a dry run keeps nothing" in said and "--resume" not in said


# ---- losses that are not finite

def test_a_loss_that_is_not_finite_stops_with_everything_named(tmp_path):
    with pytest.raises(Diverged) as error:
        fit(spoiled(SANDWICH, 9, nan_loss), settings(tmp_path))
    rate = optim.cosine(8, optim.scaled_lr(SETTINGS.lr, SETTINGS.batch_size, 1), STEPS, 3)
    message = str(error.value)
    assert "the loss (largest, smallest, random) is not finite at step 9" in message
    assert f"at learning rate {rate:.4g}" in message
    for role, arch in SANDWICH.archs(8):
        assert f"{role} {arch.code}" in message
    assert f"the last good checkpoint is {tmp_path}/checkpoints/step-00000006" in message
    assert checkpoints(tmp_path) == [6] and not os.path.exists(tmp_path / "final.pdparams")


def test_without_a_checkpoint_yet_it_says_none(tmp_path):
    with pytest.raises(Diverged, match="at step 1, .* the last good checkpoint is none"):
        fit(spoiled(STANDALONE, 1, nan_loss), settings(tmp_path))
    assert not os.path.exists(tmp_path / "checkpoints")


@pytest.mark.parametrize("at", [2, 12])
def test_a_bad_step_before_a_checkpoint_is_seen_whatever_the_log_frequency(tmp_path, at):
    with pytest.raises(Diverged):
        fit(spoiled(STANDALONE, at, nan_loss), dataclasses.replace(settings(tmp_path), log_freq=1000))
    assert all(np.isfinite(value).all() for value in (newest(tmp_path).weights if at == 12 else {}).values())
    assert os.path.exists(tmp_path / "checkpoints") == (at == 12)


@pytest.mark.parametrize("kind", [STANDALONE, SANDWICH], ids=["standalone", "supernet"])
def test_weights_that_a_last_step_has_spoiled_are_not_saved_though_its_loss_was_fine(tmp_path, kind):
    with pytest.raises(Diverged, match=f"weights.*step {STEPS}.*the last good checkpoint is .*step-00000006"):
        fit(spoiled(kind, STEPS, infinite_gradients), settings(tmp_path))
    assert checkpoints(tmp_path) == [6] and not os.path.exists(tmp_path / "final.pdparams")


# ---- the dry run

@pytest.mark.parametrize("exists", [False, True])
def test_a_dry_run_says_what_a_real_one_would_do_and_leaves_its_folder_untouched(tmp_path, capsys, exists):
    config = dataclasses.replace(settings(tmp_path / "run"), max_epoch=7)
    if exists:
        fit(SANDWICH, dataclasses.replace(settings(tmp_path / "run"), max_epoch=1))
    before, net = content(tmp_path), SANDWICH.make(len(CLASSES))
    accuracies = loop.dry_run(net, SANDWICH.stages(), images(), config,
                              lambda few: accuracy.validate_supernet(few, SPACE, 8, config.seed, config.batch_size))
    assert accuracies.keys() == {"largest", "smallest", "random1", "random2"}
    assert content(tmp_path) == before and os.path.exists(tmp_path / "run") == exists
    said = capsys.readouterr().out
    assert "steps 0 to 2, 2 per epoch" in said
    assert "dry run passed. A real run: 7 epochs of 6 steps, 42 steps in all, 4 images each; up to 5 checkpo" in said


def test_a_dry_run_finds_what_would_stop_a_real_one(tmp_path):
    with pytest.raises(Diverged):
        loop.dry_run(STANDALONE.make(3), spoiled(STANDALONE, 2, nan_loss).stages(), images(),
                     settings(tmp_path), lambda few: lambda net: {"val": 1.0})
    with pytest.raises(UserError, match="--batch_size 25"):
        loop.dry_run(STANDALONE.make(3), STANDALONE.stages(), images(),
                     dataclasses.replace(settings(tmp_path), batch_size=25), lambda few: None)


def test_running_statistics_and_weights_all_train(tmp_path):
    paddle.seed(0)
    before = values(STANDALONE.make(len(CLASSES)))
    after = fit(STANDALONE, settings(tmp_path))
    assert [name for name in before if np.array_equal(before[name], after[name])] == []
