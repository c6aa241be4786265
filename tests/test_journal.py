"""Tasks whose results are files: who runs them, what is kept, what is counted. No Paddle in here."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from resnet48.evaluation.journal import Journal, run_tasks, try_lock
from resnet48.system.errors import UserError

INPUTS = {"weights": "w", "validation": "v"}
CODES = [["arch1", "c1"], ["arch2", "c2"], ["arch3", "c3"]]


def open_journal(root, inputs=INPUTS, codes=CODES, images=10, chunk=4, shards=2, fresh=False):
    return Journal.open(str(root), inputs, codes, images, chunk, shards, fresh)


def rows(task):
    """Counts for a task over CODES in two shards: archs 2 and 0, then arch 1."""
    return np.array([[2, 1, 2], [0, 1, 3]] if task.shard == 0 else [[1, 2, 2]])


def fill(journal, tasks):
    for task in tasks:
        journal.write(task, rows(task))


def holder(path):
    """A process that holds the lock of a path until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", f"""
import time
from resnet48.evaluation.journal import try_lock
with try_lock({path!r}) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


# ---- what a journal is named by

def test_the_same_inputs_find_the_same_journal_again(tmp_path):
    first = open_journal(tmp_path).counts_tasks()[0]
    fill(open_journal(tmp_path), [first])
    assert open_journal(tmp_path).has(first)


def test_the_folder_and_its_files_are_named_as_they_have_always_been(tmp_path):
    journal = open_journal(tmp_path)
    assert journal.folder == str(tmp_path / "0bfb5fada5b82cfa")
    with open(os.path.join(journal.folder, "plan.json")) as file:
        assert file.read() == (
            '{"inputs": {"weights": "w", "validation": "v"}, "codes": [["arch1", "c1"], ["arch2", "c2"], '
            '["arch3", "c3"]], "images": 10, "chunk": 4, "shards": 2}')
    assert [os.path.relpath(journal.path(task), journal.folder)
            for task in (*journal.statistics_tasks(), *journal.counts_tasks())] == [
        "statistics-0000.npy", "statistics-0001.npy", "counts-0000000-0000004-0000.npy",
        "counts-0000000-0000004-0001.npy", "counts-0000004-0000008-0000.npy", "counts-0000004-0000008-0001.npy",
        "counts-0000008-0000010-0000.npy", "counts-0000008-0000010-0001.npy"]


@pytest.mark.parametrize("change", [
    {"inputs": {**INPUTS, "weights": "others"}}, {"inputs": {**INPUTS, "one more": None}}, {"inputs": {"weights": "w"}},
    {"codes": CODES[:2]}, {"codes": CODES[::-1]}, {"codes": [*CODES[:2], ["arch3", "c4"]]},
    {"codes": [*CODES[:2], ["arch4", "c3"]]}, {"images": 9}], ids=str)
def test_a_change_of_anything_that_counts_depend_on_is_another_journal(tmp_path, change):
    before = open_journal(tmp_path)
    fill(before, before.counts_tasks())
    changed = open_journal(tmp_path, **change)
    assert changed.folder != before.folder
    assert not any(map(changed.has, changed.counts_tasks()))
    assert before.counts()[1] == 10


def test_chunk_and_shards_stay_those_of_whoever_began(tmp_path):
    open_journal(tmp_path, chunk=4, shards=2)
    plan = open_journal(tmp_path, chunk=7, shards=3).plan
    assert (plan["chunk"], plan["shards"]) == (4, 2)


def test_many_that_begin_at_once_work_by_one_and_the_same_plan(tmp_path):
    begin = ("import sys; from resnet48.evaluation.journal import Journal; chunk = int(sys.argv[1]); print('ready', "
             "flush=True); "
             f"sys.stdin.readline(); print(Journal.open({str(tmp_path)!r}, {{}}, [], 100, chunk, 1).plan['chunk'])")
    processes = [subprocess.Popen([sys.executable, "-c", begin, str(chunk)], cwd=ROOT, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True) for chunk in range(1, 7)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert len({process.communicate()[0] for process in processes}) == 1


def test_fresh_forgets_this_evaluation_and_no_other(tmp_path):
    this, other = open_journal(tmp_path), open_journal(tmp_path, images=9)
    for journal in (this, other):
        fill(journal, journal.counts_tasks())
    again = open_journal(tmp_path, chunk=5, fresh=True)
    assert again.folder == this.folder and again.plan["chunk"] == 5
    assert not any(map(again.has, again.counts_tasks()))
    assert other.counts()[1] == 9


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="^cannot write .*: there is a file where the folder .* should be$"):
        open_journal(tmp_path / "file")


# ---- tasks

@pytest.mark.parametrize("images, chunk, expected", [
    (10, 4, [(0, 4), (4, 8), (8, 10)]), (10, 10, [(0, 10)]), (10, 99, [(0, 10)]), (3, 1, [(0, 1), (1, 2), (2, 3)])])
def test_chunks_take_every_image_once(tmp_path, images, chunk, expected):
    journal = open_journal(tmp_path, images=images, chunk=chunk)
    assert journal.chunks() == expected
    assert len(set(journal.counts_tasks())) == 2 * len(expected)


def test_counts_are_those_of_the_chunks_that_are_done_for_all_archs(tmp_path):
    journal = open_journal(tmp_path)
    assert journal.counts()[1] == 0 and journal.progress()[:3] == ([], 0, 6)
    first, second, third = (journal.counts_tasks(chunk) for chunk in journal.chunks())
    fill(journal, [*first, second[0], third[1]])
    counts, images = journal.counts()
    assert images == 4 and counts.tolist() == [[1, 3], [2, 2], [1, 2]]
    assert journal.progress()[:3] == ([(0, 4)], 4, 6)
    fill(journal, [third[0]])
    counts, images = journal.counts()
    assert images == 6 and counts.tolist() == [[2, 6], [4, 4], [2, 4]]
    fill(journal, [second[1]])
    assert journal.counts()[1] == 10 and journal.progress()[1:3] == (6, 6)


def test_the_rate_is_that_of_the_work_and_not_of_the_pauses(tmp_path):
    journal = open_journal(tmp_path, chunk=1)
    assert journal.progress()[3] is None
    tasks = journal.counts_tasks()[:12]
    fill(journal, tasks)
    for place, task in enumerate(tasks):  # one in two seconds, and after six an hour's pause
        os.utime(journal.path(task), (0, 2 * place + 3600 * (place >= 6)))
    assert journal.progress()[3] == pytest.approx(0.5)


class Interrupting:
    """Interrupts whoever writes it to a file."""

    def __reduce__(self):
        raise KeyboardInterrupt


def test_half_written_tasks_count_for_nothing(tmp_path):
    journal = open_journal(tmp_path)
    task = journal.counts_tasks()[0]
    half = np.array([Interrupting()], dtype=object)
    with pytest.raises(KeyboardInterrupt):
        journal.write(task, half)
    assert os.listdir(journal.folder) == ["plan.json"]
    left_by_a_killed_process = os.path.join(journal.folder, f".{task.name}.npy.abc123.npy")
    with open(left_by_a_killed_process, "wb") as file:
        file.write(b"half")
    assert not journal.has(task) and journal.progress()[1] == 0


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("tear", [lambda content: b"", lambda content: content[:40], lambda content: content[:-5],
                                  lambda content: b"x" * len(content)], ids=["empty", "head", "tail", "noise"])
def test_a_corrupt_task_is_named_and_one_is_told_to_delete_it(tmp_path, tear, mapped):
    journal = open_journal(tmp_path)
    fill(journal, journal.counts_tasks())
    task = journal.counts_tasks()[3]
    with open(journal.path(task), "rb") as file:
        content = file.read()
    with open(journal.path(task), "wb") as file:
        file.write(tear(content))
    for read in (journal.counts, lambda: journal.read(task, mapped)):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value).startswith(f"{journal.path(task)} is not readable (")
        assert str(caught.value).endswith("); delete it and it is made again")


def test_without_an_evaluation_the_error_says_what_begins_one(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "folder").mkdir(parents=True)
    for root in ("missing", "empty", "other"):
        with pytest.raises(UserError) as caught:
            Journal.newest(str(tmp_path / root))
        assert str(caught.value) == f"there is no evaluation in {tmp_path / root}; `eval_supernet.py run` starts one"


def test_the_newest_is_the_one_that_was_worked_on_last(tmp_path):
    journals = [open_journal(tmp_path, images=images) for images in (5, 6, 7)]
    for age, journal in zip((30, 10, 20), journals):
        os.utime(journal.folder, (1e9 - age, 1e9 - age))
    assert Journal.newest(str(tmp_path)).plan["images"] == 6


# ---- work that is shared

def test_only_tasks_that_are_not_there_are_done_and_all_are_told(tmp_path):
    journal = open_journal(tmp_path)
    tasks, done = journal.counts_tasks(), []
    fill(journal, tasks[1:3])

    def do(task):
        done.append(task)
        fill(journal, [task])

    assert sorted(run_tasks(journal, tasks, do, (0, 1))) == tasks
    assert done == [tasks[0], *tasks[3:]]
    assert sorted(run_tasks(journal, tasks, do, (0, 1))) == tasks
    assert len(done) == 4
    assert not [name for name in os.listdir(journal.folder) if name.endswith(".lock")]


def test_ranks_begin_at_different_places_and_each_would_do_all(tmp_path):
    firsts = []
    for rank in range(3):
        journal, done = open_journal(tmp_path / str(rank)), []

        def do(task):
            done.append(task)
            fill(journal, [task])

        list(run_tasks(journal, journal.counts_tasks(), do, (rank, 3)))
        assert sorted(done) == journal.counts_tasks()
        firsts.append(done[0])
    assert firsts == journal.counts_tasks()[::2]


def test_a_task_in_other_hands_is_left_alone_until_its_process_is_gone(tmp_path, monkeypatch):
    journal, done = open_journal(tmp_path), []
    tasks = journal.counts_tasks()
    other = holder(journal.path(tasks[0]))

    def do(task):
        done.append(task)
        fill(journal, [task])

    def wait(_seconds):
        assert done == tasks[1:]  # all but the one that is held, which is not there yet
        end(other)

    monkeypatch.setattr("time.sleep", wait)
    assert list(run_tasks(journal, tasks, do, (0, 1))) == [*tasks[1:], tasks[0]]
    assert done == [*tasks[1:], tasks[0]]


def test_a_task_that_another_process_finishes_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    journal, done = open_journal(tmp_path), []
    held, looked_at, *rest = journal.counts_tasks()
    other = holder(journal.path(held))

    def wait(_seconds):
        fill(journal, [held])
        end(other)

    @contextlib.contextmanager
    def locked_late(path):
        if path == journal.path(looked_at):  # finished and given back between a look at the folder and the claim
            fill(journal, [looked_at])
        with try_lock(path) as mine:
            yield mine

    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr("resnet48.evaluation.journal.try_lock", locked_late)
    list(run_tasks(journal, journal.counts_tasks(), lambda each: (done.append(each), fill(journal, [each])), (0, 1)))
    assert done == rest


def test_what_fails_gives_its_task_back(tmp_path):
    journal = open_journal(tmp_path)
    task = journal.counts_tasks()[0]

    def fail(_task):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(journal, [task], fail, (0, 1)))
    assert os.listdir(journal.folder) == ["plan.json"]
    process = holder(journal.path(task))
    end(process)


def test_a_claim_is_one_processs_at_a_time_and_free_after_its_death(tmp_path):
    path = str(tmp_path / "task")
    other = holder(path)
    with try_lock(path) as mine:
        assert not mine
    end(other)
    with try_lock(path) as mine:
        assert mine
    assert os.listdir(tmp_path) == []


def test_where_there_are_no_locks_everybody_works(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    journal = open_journal(tmp_path)
    list(run_tasks(journal, journal.counts_tasks(), lambda task: fill(journal, [task]), (0, 1)))
    assert journal.counts()[1] == 10


def test_a_journal_that_is_deleted_meanwhile_is_one_sentence(tmp_path):
    journal = open_journal(tmp_path)
    os.unlink(os.path.join(journal.folder, "plan.json"))
    os.rmdir(journal.folder)
    with pytest.raises(UserError, match="^cannot continue in .*: No such file or directory$"):
        list(run_tasks(journal, journal.counts_tasks(), None, (0, 1)))
