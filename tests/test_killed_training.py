"""A training that is killed again and again ends with the weights and the optimizer of one that ran undisturbed."""

import glob
import os
import signal
import subprocess
import time

import numpy as np
import paddle
import pytest
from commands import NARROW, PATIENCE, command, environment
from small_runs import newest, same, table

RANDOM, AIMED = 15, 10  # kills at any moment, and kills while a checkpoint is being written
#: Six epochs of five steps, a checkpoint after each.
TRAINING = ("train_supernet.py", "run", *NARROW, "--batch_size", 256, "--max_epoch", 6, "--dyna_batch_size", 2,
            "--lr", 0.05, "--warmup", 0, "--calib_images", 16, "--eval_freq", 0, "--num_workers", 1, "--log_freq", 1)
STEPS = 30


def begin(folder):
    """Start the training as a program and wait for its first line: from then on it runs our code."""
    life = subprocess.Popen(command(*TRAINING, "--save_dir", folder), env=environment(), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    assert life.stdout.readline()
    return life


def finish(life):
    said = life.communicate(timeout=PATIENCE)[0]
    assert life.returncode == 0, said


def writing(folder):
    """Checkpoints that are being written, or that a killed run has left half written."""
    return glob.glob(os.path.join(folder, "checkpoints", ".writing-*"))


def last_name(folder):
    return max(os.listdir(os.path.join(folder, "checkpoints")))  # names that begin with a dot come first


def kill_while_writing(life, folder, delay):
    left = set(writing(folder))
    while life.poll() is None and left.issuperset(writing(folder)):
        time.sleep(0.0002)
    time.sleep(delay)
    life.kill()


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
def test_killed_at_25_random_moments_it_ends_with_the_same_weights_and_optimizer(tmp_path):
    """Each life goes on where the one before was killed; the moments reach from its first line to its last."""
    undisturbed, rng, step, runs = str(tmp_path / "undisturbed"), np.random.default_rng(0), 0, 0
    life, started = begin(undisturbed), time.monotonic()
    finish(life)
    seconds = time.monotonic() - started
    moments = rng.permutation([True] * AIMED + [False] * RANDOM).tolist()  # whether it is aimed
    folder, killed, torn_writes = str(tmp_path / "0"), 0, 0
    while moments:
        life = begin(folder)
        if moments[0]:
            kill_while_writing(life, folder, rng.uniform(0, 0.02))
        else:
            try:
                life.wait(rng.uniform(0, seconds / 2))  # resumed ones reach their end with it
            except subprocess.TimeoutExpired:
                life.kill()
        said = life.communicate(timeout=PATIENCE)[0]
        if life.returncode == 0:  # it came to its end first: begin anew
            assert_as_undisturbed(folder, undisturbed)
            runs, step = runs + 1, 0
            assert runs <= RANDOM + AIMED, "the kills come too late"
            folder = str(tmp_path / str(runs))
            continue
        assert life.returncode == -signal.SIGKILL, said
        moments.pop(0)
        killed, torn_writes = killed + 1, torn_writes + bool(writing(folder))
        assert len(writing(folder)) <= 1  # each checkpoint removes what is left of the one before
        found = newest(folder)
        before, step = step, found.state["step"] if found else 0
        assert step >= before  # the last good checkpoint is there
        if found:
            assert last_name(folder) == f"step-{step:08d}"  # and nothing torn bears a checkpoint's name
    print(f"{killed} kills, {torn_writes} of them while a checkpoint was written; {runs} runs came to their end first")
    assert killed == RANDOM + AIMED and torn_writes >= 3
    finish(begin(folder))
    assert_as_undisturbed(folder, undisturbed)
