"""A training that is killed again and again ends with the weights and the optimizer of one that ran undisturbed."""

import glob
import itertools
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import paddle
import processes
import pytest
from commands import NARROW, PATIENCE
from small_runs import newest, same, table

#: Six epochs of five steps, a checkpoint after each.
TRAINING = ("run", *NARROW, "--batch_size", "256", "--max_epoch", "6", "--dyna_batch_size", "2", "--lr", "0.05",
            "--warmup", "0", "--calib_images", "16", "--eval_freq", "0", "--num_workers", "1", "--log_freq", "1")
STEPS = 30


def train(folder, log, dies_at):
    """In a process of its own: train, but die in the midst of the `dies_at`-th step of writing checkpoints.

    A checkpoint takes three: its weights, its optimizer, its name.
    """
    import train_supernet  # here: imported already where this is called, and slow to import where it is not

    multiprocessing.set_start_method("fork", force=True)  # as in a program, for the processes that decode images
    sys.stdout = sys.stderr = open(log, "w", buffering=1)
    save, rename, count = paddle.save, os.rename, itertools.count(1)

    def save_or_die(content, path):
        save(content, path)
        if next(count) == dies_at:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def rename_or_die(source, target):
        if next(count) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    paddle.save, os.rename = save_or_die, rename_or_die
    train_supernet.main([*TRAINING, "--save_dir", folder])


def begin(folder, dies_at=0):
    return processes.start(train, folder, folder + ".log", dies_at)


def said(folder):
    """What the last life in a folder has printed."""
    if not os.path.exists(folder + ".log"):
        return ""
    with open(folder + ".log") as file:
        return file.read()


def finish(life, folder):
    life.join(PATIENCE)
    assert life.exitcode == 0, said(folder)


def kill_at(life, folder, steps, delay):
    """Kill a life after so many of its steps and a while, unless it ends first."""
    while life.is_alive() and said(folder).count("  step ") < steps:
        time.sleep(0.002)
    life.join(delay)
    life.kill()


def writing(folder):
    """Checkpoints that are being written, or that a killed run has left half written."""
    return glob.glob(os.path.join(folder, "checkpoints", ".writing-*"))


def last_name(folder):
    return max(os.listdir(os.path.join(folder, "checkpoints")))  # names that begin with a dot come first


def assert_as_undisturbed(folder, undisturbed):
    for name in ("final.pdparams", "final.pdopt"):
        one, other = (paddle.load(os.path.join(each, name), return_numpy=True) for each in (folder, undisturbed))
        assert same(one, other), name
    rows = [[(row["step"], row["lr"], row["loss_largest"]) for row in table(each)] for each in (folder, undisturbed)]
    assert rows[0] == rows[1] and len(rows[0]) == STEPS
    names = [sorted(os.path.relpath(path, each) for path in glob.glob(os.path.join(each, "**"), recursive=True,
                                                                      include_hidden=True))
             for each in (folder, undisturbed)]
    assert names[0] == names[1]  # and nothing half written is left


@pytest.mark.slow
@pytest.mark.parametrize("kills", [8, pytest.param(25, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_weights_and_optimizer(tmp_path, kills):
    """Each run resumes where the one before was killed; the kills range from its first line to its last."""
    undisturbed, rng, step, runs = str(tmp_path / "undisturbed"), np.random.default_rng(0), 0, 0
    finish(begin(undisturbed), undisturbed)
    started = time.monotonic()
    finish(begin(undisturbed + " again"), undisturbed + " again")  # the first time waits for the server that forks
    seconds = time.monotonic() - started
    aimed = range(1, 1 + kills * 2 // 5)  # two in five die while a checkpoint is written, the others at any moment
    left = rng.permutation([*aimed, *[0] * (kills - len(aimed))]).tolist()
    folder, corrupt_writes = str(tmp_path / "0"), 0
    while left:
        life = begin(folder, left[0])
        if not left[0]:
            kill_at(life, folder, rng.integers(0, 9), rng.uniform(0, seconds / STEPS))
        life.join(PATIENCE)
        if life.exitcode == 0:  # it finished first: start a new run
            assert_as_undisturbed(folder, undisturbed)
            runs, step = runs + 1, 0
            folder = str(tmp_path / str(runs))
            continue
        assert life.exitcode == -signal.SIGKILL, said(folder)
        left.pop(0)
        corrupt_writes += bool(writing(folder))
        assert len(writing(folder)) <= 1  # each checkpoint removes what is left of the one before
        found = newest(folder)
        before, step = step, found.state["step"] if found else 0
        assert step >= before  # the last good checkpoint is there
        if found:
            assert last_name(folder) == f"step-{step:08d}"  # and nothing corrupt bears a checkpoint's name
    assert corrupt_writes >= len(aimed)
    finish(begin(folder), folder)
    assert_as_undisturbed(folder, undisturbed)
