import dataclasses
import os
import re
import shutil

import pytest
from small_runs import (CLASSES, FIXED_TEACHER, SANDWICH, SETTINGS, SPACE, STANDALONE, STEPS, checkpoints, content, fit,
                        images, newest, same, table)

from resnet48.nets.supernet import ResNet48
from resnet48.system.errors import UserError, shown
from resnet48.training import checkpoint, resume

KINDS = {"standalone": STANDALONE, "sandwich": SANDWICH, "subnets that leave blocks out": FIXED_TEACHER}


def settings(folder):
    return dataclasses.replace(SETTINGS, save_dir=str(folder))


def stopped_run(folder, after=8):
    assert fit(STANDALONE, settings(folder), stop_after=after) is None
    return settings(folder)


# ---- exact

@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_stopping_and_resuming_gives_bit_for_bit_what_running_through_gives(tmp_path, kind):
    through = fit(kind, settings(tmp_path / "through"))
    config = dataclasses.replace(settings(tmp_path / "parts"), num_workers=2)
    assert fit(kind, config, stop_after=2) is None
    assert fit(kind, config, stop_after=9, build_first=True) is None  # in the middle of the second epoch
    assert same(fit(kind, dataclasses.replace(config, num_workers=1), build_first=True), through)
    one, other = newest(tmp_path / "through"), newest(tmp_path / "parts")
    assert one.state["step"] == other.state["step"] == STEPS
    assert same(one.weights, other.weights)
    # A parameter that has not been used yet has no state or, after a resume, zeros.
    assert same(*({name: value for name, value in each.optimizer.items() if value.any()} for each in (one, other)))


def test_a_run_resumes_from_the_checkpoint_before_a_corrupt_one(tmp_path):
    through = fit(STANDALONE, settings(tmp_path / "through"))
    config = stopped_run(tmp_path / "parts")
    with open(tmp_path / "parts" / "checkpoints" / "step-00000008" / "net.pdopt", "r+b") as file:
        file.truncate(100)
    assert same(fit(STANDALONE, config), through)


def test_a_run_resumes_from_an_older_checkpoint_by_path_also_into_another_folder(tmp_path):
    through = fit(STANDALONE, settings(tmp_path / "through"))
    config = stopped_run(tmp_path / "parts")
    older = str(tmp_path / "parts" / "checkpoints" / "step-00000006")
    assert same(fit(STANDALONE, dataclasses.replace(settings(tmp_path / "new"), resume=older)), through)
    assert same(fit(STANDALONE, dataclasses.replace(config, resume=older)), through)


def test_a_checkpoint_of_another_run_is_not_mixed_into_a_folder_that_holds_one(tmp_path):
    one, other = stopped_run(tmp_path / "one"), stopped_run(tmp_path / "other")
    older = os.path.join(one.save_dir, "checkpoints", "step-00000006")
    before = content(tmp_path)
    sentence = f"--resume {shown(older)} lies outside --save_dir {shown(other.save_dir)}, which"
    with pytest.raises(UserError, match=re.escape(sentence)):
        fit(STANDALONE, dataclasses.replace(other, resume=older))
    assert content(tmp_path) == before
    os.symlink(one.save_dir, tmp_path / "link")  # another name of the same folder
    fit(STANDALONE, dataclasses.replace(one, resume=str(tmp_path / "link" / "checkpoints" / "step-00000006")))


def test_the_best_accuracy_is_remembered(tmp_path):
    config = dataclasses.replace(settings(tmp_path), max_epoch=3)
    accuracies = iter([70.0, 60.0, 50.0])
    assert fit(STANDALONE, config, stop_after=8, validate=lambda net: {"val": next(accuracies)}) is None
    fit(STANDALONE, config, validate=lambda net: {"val": next(accuracies)})
    assert (newest(tmp_path).state["best"], newest(tmp_path).state["best_step"]) == (70.0, 6)


def test_a_finished_run_is_not_trained_again_and_still_knows_its_accuracies(tmp_path):
    through = fit(STANDALONE, settings(tmp_path), validate=lambda net: {"val": 50.0})
    before = content(tmp_path)

    def validate(net):
        raise AssertionError("it was evaluated again")

    assert same(fit(STANDALONE, settings(tmp_path), validate=validate), through)
    assert content(tmp_path) == before


@pytest.mark.parametrize("killed_before", ["final.pdparams", "final.pdopt", "final.json"])
def test_a_kill_between_the_final_files_is_mended_by_the_same_command(tmp_path, monkeypatch, killed_before):
    through = fit(STANDALONE, settings(tmp_path))  # the final files of a run that is then continued
    expected, config = content(tmp_path), dataclasses.replace(settings(tmp_path), max_epoch=3)
    replace = os.replace

    def killed(source, target):
        if os.path.basename(target) == killed_before:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killed)
        fit(STANDALONE, config)
    (tmp_path / ".final.pdparams.8xq2.pdparams").write_text("half written")
    trained = fit(STANDALONE, config)
    found = checkpoint.load(str(tmp_path / "final.pdparams"))
    assert same(found.weights, trained) and found.state["step"] == 18 and not same(trained, through)
    assert sorted(os.listdir(tmp_path)) == sorted({name.split(os.sep)[0] for name in expected})
    assert (tmp_path / "final.pdopt").read_bytes() == \
        (tmp_path / "checkpoints" / "step-00000018" / "net.pdopt").read_bytes()


@pytest.mark.parametrize("without", [(), ("finished",), ("finished", "steps")],
                         ids=["today", "", "of earlier versions"])
def test_a_checkpoint_says_whether_its_training_was_finished(tmp_path, without):
    config = stopped_run(tmp_path)
    states = [newest(tmp_path).state]
    fit(STANDALONE, config)
    states.append(newest(tmp_path).state)
    assert [state["finished"] for state in states] == [False, True]
    left = [{name: value for name, value in state.items() if name not in without} for state in states]
    assert [resume.unfinished(state) for state in left] == [f"step 8 of {STEPS}", None]


@pytest.mark.parametrize("state", [{}, {"net": {}}, {"step": 3}, {"step": "3", "steps": 8},
                                   {"step": 3, "settings": {"max_epoch": 2, "batch_size": 0}, "images": 3, "ranks": 1}])
def test_of_weights_without_a_run_nobody_says_that_they_are_unfinished(state):
    assert resume.unfinished(state) is None


# ---- metrics.csv

def test_metrics_hold_every_step_once_after_a_stop(tmp_path):
    fit(STANDALONE, settings(tmp_path / "through"))
    config = stopped_run(tmp_path / "parts", after=8)
    fit(STANDALONE, config)
    rows, expected = table(tmp_path / "parts"), table(tmp_path / "through")
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [(row["lr"], row["loss_loss"]) for row in rows] == [(row["lr"], row["loss_loss"]) for row in expected]


@pytest.mark.parametrize("rest", ["", "0.5", "0.5,1", '"'], ids=["whole", "half a line", "a cut number", "a quote"])
def test_metrics_hold_every_step_once_after_a_kill_behind_the_checkpoint(tmp_path, rest):
    config = stopped_run(tmp_path, after=10)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000010")  # as if killed before it was written
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write(rest)
    fit(STANDALONE, config)
    assert [int(row["step"]) for row in table(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_a_run_that_starts_anew_starts_its_metrics_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,99\n")
    fit(STANDALONE, settings(tmp_path))
    assert [int(row["step"]) for row in table(tmp_path)] == [2, 4, 6, 8, 10, 12]


# ---- refused and allowed

def test_a_setting_that_changes_the_training_is_refused_by_name(tmp_path):
    config = stopped_run(tmp_path, after=2)
    before = content(tmp_path)
    for name, value in (("lr", 0.5), ("batch_size", 8), ("seed", 4), ("momentum", 0.8), ("weight_decay", 0.0),
                        ("warmup", 1.0), ("crop_scale", 0.5), ("image_size", 32), ("zero_residuals", True)):
        with pytest.raises(UserError, match=re.escape(f"--{name} was {getattr(config, name)} and is now {value};")):
            fit(STANDALONE, dataclasses.replace(config, **{name: value}))
        assert content(tmp_path) == before


def test_another_arch_other_classes_and_other_images_are_refused(tmp_path):
    config = stopped_run(tmp_path, after=2)
    largest = STANDALONE._replace(make=lambda classes: ResNet48(SPACE.largest(), classes))
    before = content(tmp_path)
    codes = f"{SPACE.smallest().code}.*{SPACE.largest().code}"
    with pytest.raises(UserError, match=f"--resume .*is a checkpoint of another net: standalone {codes}"):
        fit(largest, config)
    with pytest.raises(UserError, match="another net: standalone.*settings ask for supernet 2,3,4,5 wide, 3 classes"):
        fit(SANDWICH, config)
    with pytest.raises(UserError, match="the classes have changed.*'cat'.*'dog'"):
        fit(STANDALONE, config, image_set=images(classes=(*CLASSES[:2], "dog")))
    with pytest.raises(UserError, match=r"the training images have changed \(24 then, 25 now\)"):
        fit(STANDALONE, config, image_set=images(25))
    assert content(tmp_path) == before


def test_settings_that_do_not_change_the_training_may_change(tmp_path):
    config = stopped_run(tmp_path, after=4)
    fit(STANDALONE, dataclasses.replace(config, max_epoch=3, log_freq=5, num_workers=1, save_freq=2, eval_freq=0))
    assert newest(tmp_path).state["step"] == 18
    assert newest(tmp_path).state["settings"]["max_epoch"] == 3


def test_a_run_whose_checkpoints_are_all_corrupt_does_not_begin_anew(tmp_path):
    config = stopped_run(tmp_path, after=2)
    (tmp_path / "checkpoints" / "step-00000002" / "net.pdparams").write_bytes(b"corrupt")
    before = content(tmp_path)
    for resume in ("auto", "none"):
        with pytest.raises(UserError, match="none of the checkpoints in .* can be read|holds the checkpoints of a run"):
            fit(STANDALONE, dataclasses.replace(config, resume=resume))
    assert content(tmp_path) == before


def test_resume_none_refuses_a_folder_with_a_run_and_takes_an_empty_one(tmp_path):
    config = dataclasses.replace(settings(tmp_path), resume="none", max_epoch=1)
    fit(STANDALONE, config)
    before = content(tmp_path)
    with pytest.raises(UserError, match="holds the checkpoints of a run: --resume auto resumes it"):
        fit(STANDALONE, config)
    assert content(tmp_path) == before


def test_nothing_to_resume_is_said_with_auto_and_an_error_with_a_path(tmp_path, capsys):
    fit(STANDALONE, dataclasses.replace(settings(tmp_path), max_epoch=1))
    assert f"nothing to resume in {tmp_path}: starting from the beginning" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no checkpoint at"):
        fit(STANDALONE, dataclasses.replace(settings(tmp_path), resume=str(tmp_path / "absent")))


def test_weights_alone_cannot_be_resumed(tmp_path):
    fit(STANDALONE, dataclasses.replace(settings(tmp_path), max_epoch=1))
    final = str(tmp_path / "final.pdparams")
    with pytest.raises(UserError, match="final.pdparams: this holds weights only; --pretrained starts from them"):
        fit(STANDALONE, dataclasses.replace(settings(tmp_path / "new"), resume=final))
    assert not os.path.exists(tmp_path / "new" / "checkpoints")


def test_a_stop_says_how_to_go_on(tmp_path, capsys):
    stopped_run(tmp_path, after=4)
    assert checkpoints(tmp_path) == [4]
    assert f"stopped by SIGTERM after step 4 of 12; everything is in {tmp_path}, the same command with --resume auto" \
        in capsys.readouterr().out


# ---- another length

def lines(capsys, words):
    return [line for line in capsys.readouterr().out.splitlines() if words in line]


def test_a_longer_run_says_what_becomes_of_the_learning_rate(tmp_path, capsys):
    config = dataclasses.replace(settings(tmp_path), log_freq=1, warmup=0.0)
    fit(STANDALONE, config, stop_after=8)
    assert not lines(capsys, "note: ")
    fit(STANDALONE, dataclasses.replace(config, max_epoch=8))
    (note,) = lines(capsys, "note: ")
    assert "--max_epoch was 2 and is now 8" in note and "what 8 epochs from the beginning give" in note
    now, then = map(float, re.search("learning rate is (.*) where it would have been (.*?);", note).groups())
    assert now > then > 0
    fit(STANDALONE, dataclasses.replace(config, max_epoch=8))
    assert not lines(capsys, "note: ")


def test_a_schedule_that_does_not_depend_on_the_length_goes_on_without_a_word(tmp_path, capsys):
    config = dataclasses.replace(settings(tmp_path), schedule="step", warmup=0.0)
    fit(STANDALONE, config, stop_after=8)
    fit(STANDALONE, dataclasses.replace(config, max_epoch=3))
    assert not lines(capsys, "note: ")


def test_a_run_is_not_shortened_to_less_than_it_has_been_trained(tmp_path):
    config = stopped_run(tmp_path)
    before = content(tmp_path)
    with pytest.raises(UserError, match="--max_epoch 1 ends at step 6, and this has been trained to step 8; a larger"):
        fit(STANDALONE, dataclasses.replace(config, max_epoch=1))
    assert content(tmp_path) == before
