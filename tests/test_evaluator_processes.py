"""Evaluations that are killed, and evaluations that several processes share: the submission is the same to the byte."""

import io
import os
import signal
import subprocess
import time

import evaluation
import numpy as np
import processes
import pytest
from commands import PATIENCE, ROOT, command, environment

from resnet48.evaluation.journal import Journal
from resnet48.system.files import read_json

ARCHS, PER_SHARD = 23, 4


@pytest.fixture(scope="module")
def archs(tmp_path_factory):
    return evaluation.write_archs(tmp_path_factory.mktemp("list"), ARCHS)


@pytest.fixture(scope="module")
def words(weights, archs):
    """The command line that writes s.json into a folder."""
    return lambda folder, *more: evaluation.words(weights, archs, folder / "s.json", *more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, words):
    """(folder of an evaluation that nothing disturbed, the seconds it took with slow writes)."""
    folder, started = tmp_path_factory.mktemp("undisturbed"), None
    for _ in range(2):  # the first time waits for the server that forks
        started = time.monotonic()
        finish(processes.start(run_with_slow_writes, words(folder, "--fresh")))
    return folder, time.monotonic() - started


def finish(*started):
    for process in started:
        process.join(PATIENCE)
        assert process.exitcode == 0


def assert_as_undisturbed(folder, undisturbed):
    """Check that the result is the undisturbed one to the byte, and that the result of every task is valid."""
    for name in ("s.json", "s.counts.json"):
        assert (folder / name).read_bytes() == (undisturbed[0] / name).read_bytes()
    assert read_json(folder / "s.manifest.json", "")["partial"] is False
    journal = Journal.newest(str(folder / "s.journal"))
    for piece in journal.pieces():
        found = [journal.read(task) for task in journal.counts_tasks(piece)]
        assert np.sort(np.concatenate(found)[:, 0]).tolist() == list(range(ARCHS))
        assert all(((0 <= rows[:, 1]) & (rows[:, 1] <= rows[:, 2]) & (rows[:, 2] <= piece[1] - piece[0])).all()
                   for rows in found)
    assert journal.counts()[1] == journal.plan["images"] == evaluation.IMAGES


def remove(folder):
    """Everything that an evaluation has left."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


# ---- killed

def run_with_slow_writes(command_line):
    """In a process of its own: evaluate, but leave every result half-written for a while."""
    def save(path, array):
        content = io.BytesIO()
        np.lib.format.write_array(content, array)
        with open(path, "wb") as file:
            for half in np.array_split(np.frombuffer(content.getvalue(), "uint8"), 2):
                file.write(half.tobytes())
                file.flush()
                time.sleep(0.01)

    np.save = save
    evaluation.run(PER_SHARD, command_line)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [8, pytest.param(25, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_submission(tmp_path, words, undisturbed, kills):
    """Each run resumes where the one before was killed; the kills range from its first moment to its last."""
    rng, done = np.random.default_rng(0), set()
    while kills:
        process = processes.start(run_with_slow_writes, words(tmp_path))
        process.join(rng.uniform(0, undisturbed[1]))
        if process.is_alive():
            process.kill()
            process.join()
            kills -= 1
            before, done = done, {path.name for path in tmp_path.glob("s.journal/*/[!.]*.npy")}
            assert before <= done  # nothing that was done is lost
        else:  # it finished first: start a new run
            finish(process)
            assert_as_undisturbed(tmp_path, undisturbed)
            remove(tmp_path)
            done = set()
    finish(processes.start(evaluation.run, PER_SHARD, words(tmp_path)))
    assert_as_undisturbed(tmp_path, undisturbed)


def run_until(place, moment, command_line):
    """In a process of its own: evaluate, but die right before or after the `place`-th file is put in place."""
    replace, calls = os.replace, []

    def replace_or_die(source, target):
        calls.append(target)
        if len(calls) < place or moment == "after":
            replace(source, target)
        if len(calls) == place:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_or_die
    evaluation.run(12, command_line)


@pytest.mark.slow
def test_killed_right_before_and_right_after_each_file_it_ends_with_the_same_submission(tmp_path, words, undisturbed):
    line = words(tmp_path, "--chunk", 30)
    in_journal, at_the_end = 1 + 2 + 2 * 2, 3  # the plan, statistics of two shards, counts of two chunks of each
    for place in range(in_journal + at_the_end):
        for moment in ("before", "after"):
            process = processes.start(run_until, max(1, place - in_journal + 1), moment, line)
            process.join(PATIENCE)
            assert process.exitcode == -signal.SIGKILL
            there = [*tmp_path.glob("s.journal/*/[!.]*.npy"), *tmp_path.rglob("[!.]*.json")]
            assert len(there) == place + (moment == "after")
    finish(processes.start(evaluation.run, 12, line))
    assert_as_undisturbed(tmp_path, undisturbed)


# ---- shared

@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_are_started_by_hand_share_the_work(tmp_path, words, undisturbed, count):
    finish(*[processes.start(evaluation.run, PER_SHARD, words(tmp_path)) for _ in range(count)])
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_what_killed_processes_held_is_done_by_those_who_are_left(tmp_path, words, undisturbed):
    lives = [processes.start(evaluation.run, PER_SHARD, words(tmp_path)) for _ in range(3)]
    while not list(tmp_path.glob("s.journal/*/counts-*.npy")) and lives[0].is_alive():
        time.sleep(0.01)
    for process in lives[:2]:
        process.kill()
    finish(lives[2])
    assert_as_undisturbed(tmp_path, undisturbed)


def run_in_pieces(command_line):
    """In a process of its own: evaluate in pieces of two chunks."""
    from resnet48.evaluation import evaluator

    evaluator.MOST_TASKS = 2 * -(-ARCHS // PER_SHARD)
    evaluation.run(PER_SHARD, command_line)


@pytest.mark.slow
def test_pieces_that_killed_processes_have_begun_are_gone_on_with(tmp_path, words, undisturbed):
    lives = [processes.start(run_in_pieces, words(tmp_path)) for _ in range(2)]
    while not list(tmp_path.glob("s.journal/*/counts-0000000-0000016-*.npy")) and lives[0].is_alive():
        time.sleep(0.001)
    for process in lives:
        process.kill()
        process.join()
    finish(processes.start(run_in_pieces, words(tmp_path)))
    assert_as_undisturbed(tmp_path, undisturbed)
    assert Journal.newest(str(tmp_path / "s.journal")).pieces() == [(0, 32), (32, 60)]


def hold(path, held, release):
    """In a process of its own: lock a task and do nothing."""
    from resnet48.evaluation.journal import try_lock

    with try_lock(path) as mine:
        assert mine
        held.wait()
        release.wait()


@pytest.mark.slow
def test_a_task_that_a_process_holds_is_waited_for_until_that_process_is_dead(tmp_path, words, undisturbed):
    finish(processes.start(evaluation.run, PER_SHARD, words(tmp_path)))
    journal = Journal.newest(str(tmp_path / "s.journal"))
    held, *others = journal.counts_tasks()
    for task in (held, *others):
        os.unlink(journal.path(task))
    for path in tmp_path.glob("s.*json"):
        path.unlink()
    claimed, never = processes.barrier(2), processes.barrier(2)
    holder = processes.start(hold, journal.path(held), claimed, never)
    claimed.wait(PATIENCE)
    process = processes.start(evaluation.run, PER_SHARD, words(tmp_path))
    while not all(map(journal.has, others)):
        assert process.is_alive()
        time.sleep(0.05)
    assert process.is_alive() and not journal.has(held) and not (tmp_path / "s.json").exists()
    holder.kill()
    finish(process)
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_ranks_under_the_launcher_share_the_work(tmp_path, words, undisturbed):
    line = [*command("-m paddle.distributed.launch"), "--nproc_per_node", "2", os.path.join(ROOT, "eval_supernet.py"),
            *words(tmp_path)]
    ended = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    logs = [path.read_text() for path in sorted(tmp_path.glob("log/workerlog.*"))]
    assert ended.returncode == 0 and len(logs) == 2, ended.stdout + ended.stderr
    assert sum("wrote" in log for log in logs) == 1
    assert_as_undisturbed(tmp_path, undisturbed)
