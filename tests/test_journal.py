"""Tasks whose results are files: who runs them, what is kept, what is counted. No Paddle in here."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from resnet48.evaluation import journal_plan
from resnet48.evaluation.journal import Journal
from resnet48.system.errors import UserError
from resnet48.system.locks import try_lock
from resnet48.system.shared_work import run_tasks

INPUTS = {"weights": "w", "validation": "v"}
CODES = [["arch1", "c1"], ["arch2", "c2"], ["arch3", "c3"]]


def open_journal(root, inputs=INPUTS, codes=CODES, images=10, chunk=4, shards=2, fresh=False, piece=None):
    return Journal.open(str(root), inputs, codes, images, chunk, shards, fresh, piece)


def rows(task):
    """Counts for a task over CODES in two shards: archs 2 and 0, then arch 1."""
    return whole([[2, 1, 2], [0, 1, 1]] if task.shard == 0 else [[1, 2, 2]], task.last - task.first)


def whole(counts, images=4):
    """Rows with cross-entropies and the first half, an image large; counts: [archs, 3], index, top-1 and top-5."""
    counts = np.array(counts)
    counts[:, 1:] = np.minimum(counts[:, 1:], images)
    more = np.array([[5 << 24, 1, min(top1, 1), 1 << 24] for top1 in counts[:, 1]])
    return np.concatenate([counts, more], axis=1)


def fill(journal, tasks):
    for task in tasks:
        journal.write(task, rows(task))


def holder(path):
    """A process that holds the lock of a path until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", f"""
import time
from resnet48.system.locks import try_lock
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


def test_the_folder_and_its_files_are_named_as_they_have_been_since_there_are_cross_entropies(tmp_path):
    journal = open_journal(tmp_path)
    assert journal.folder == str(tmp_path / "ab882eb13277d8f3")
    with open(os.path.join(journal.folder, "plan.json")) as file:
        assert file.read().startswith(
            '{"inputs": {"weights": "w", "validation": "v"}, "codes": [["arch1", "c1"], ["arch2", "c2"], '
            '["arch3", "c3"]], "images": 10, "chunk": 4, "shards": 2, "sha256": "')
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


def test_chunk_piece_and_shards_stay_those_of_whoever_began(tmp_path):
    open_journal(tmp_path, chunk=4, shards=2)  # also what an earlier version began, before there were pieces
    plan = open_journal(tmp_path, chunk=2, shards=3, piece=6).plan
    assert (plan["chunk"], plan["piece"], plan["shards"]) == (4, 4, 2)
    open_journal(tmp_path / "pieces", chunk=2, piece=6)
    plan = open_journal(tmp_path / "pieces", chunk=4).plan
    assert (plan["chunk"], plan["piece"]) == (2, 6)


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
    assert journal.pieces() == expected
    assert len(set(journal.counts_tasks())) == 2 * len(expected)


@pytest.mark.parametrize("piece, expected", [(4, [(0, 4), (4, 8), (8, 10)]), (6, [(0, 6), (6, 10)]), (10, [(0, 10)]),
                                             (12, [(0, 10)])])
def test_pieces_take_every_image_once(tmp_path, piece, expected):
    assert open_journal(tmp_path, chunk=2, piece=piece).pieces() == expected


def test_what_there_is_of_a_piece_is_a_result_until_there_is_more_and_counts_for_nothing_yet(tmp_path):
    journal = open_journal(tmp_path, chunk=2, piece=6)
    task = journal.counts_tasks()[1]
    assert [each.name for each in journal.beginnings(task)] == ["counts-0000000-0000004-0001",
                                                                "counts-0000000-0000002-0001"]
    assert [each.name for each in journal.beginnings(journal.counts_tasks()[2])] == ["counts-0000006-0000008-0000"]
    assert journal.beginnings(journal.statistics_tasks()[0]) == []
    fill(journal, [journal.counts_tasks()[0]])
    for each in [*journal.beginnings(task)[::-1], task]:
        assert journal.counts()[1] == 0
        fill(journal, [each])
        assert sorted(name for name in os.listdir(journal.folder) if name.endswith("1.npy")) == [each.name + ".npy"]
    assert journal.counts()[1] == 6


def test_a_half_written_beginning_stays_as_long_as_a_process_holds_its_task(tmp_path):
    journal = open_journal(tmp_path, chunk=2, piece=6)
    tasks = journal.counts_tasks()
    left = {task: os.path.join(journal.folder, f".{journal.beginnings(task)[-1].name}.npy.abc12_34.npy")
            for task in (tasks[1], tasks[3])}
    for path in left.values():
        with open(path, "wb") as file:
            file.write(b"half")
    other = holder(journal.path(tasks[3]))
    open_journal(tmp_path)
    assert [os.path.exists(path) for path in left.values()] == [False, True]
    end(other)


def test_counts_are_those_of_the_chunks_that_are_done_for_all_archs(tmp_path):
    journal = open_journal(tmp_path)
    assert journal.counts()[1] == 0 and journal.progress()[:3] == ([], 0, 6)
    first, second, third = (journal.counts_tasks(chunk) for chunk in journal.pieces())
    fill(journal, [*first, second[0], third[1]])
    counts, images = journal.counts()
    assert images == 4 and counts.tolist() == [[1, 1, 5, 1, 1, 1], [2, 2, 5, 1, 1, 1], [1, 2, 5, 1, 1, 1]]
    assert journal.progress()[:3] == ([(0, 4)], 4, 6)
    fill(journal, [third[0]])
    counts, images = journal.counts()
    assert images == 6 and counts[:, :3].tolist() == [[2, 2, 10], [4, 4, 10], [2, 4, 10]]
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


def test_half_written_tasks_count_for_nothing_and_go_when_nobody_holds_them(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    journal = open_journal(tmp_path)
    task, held = journal.counts_tasks()[:2]
    monkeypatch.setattr("numpy.save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        journal.write(task, rows(task))
    monkeypatch.undo()
    assert os.listdir(journal.folder) == ["plan.json"]
    left = [os.path.join(journal.folder, f".{name}.npy.abc12_34.npy") for name in (task.name, held.name)]
    for path in left:
        with open(path, "wb") as file:
            file.write(b"half")
    assert not journal.has(task) and journal.progress()[1] == 0
    other = holder(journal.path(held))
    open_journal(tmp_path)
    assert [os.path.exists(path) for path in left] == [False, True]
    end(other)
    open_journal(tmp_path)
    assert not os.path.exists(left[1])


# ---- what is not believed

def changed(tear):
    """What a function makes of the bytes of a file."""
    def spoil(path):
        with open(path, "rb") as file:
            content = file.read()
        with open(path, "wb") as file:
            file.write(tear(bytearray(content)))

    return spoil


def with_counts(counts):
    """A file with counts that are right in form, without a checksum of them."""
    def spoil(path):
        np.save(path, counts)

    return spoil


def flipped(place):
    def tear(content):
        content[place] ^= 4
        return content

    return changed(tear)


SPOILT = {
    "empty": changed(lambda content: b""), "head": changed(lambda content: content[:40]),
    "tail": changed(lambda content: content[:-5]), "noise": changed(lambda content: b"x" * len(content)),
    "zeros": changed(lambda content: bytes(len(content))), "more": changed(lambda content: content + b"x"),
    "without a checksum": with_counts(whole([[1, 2, 2]])), "objects": with_counts(np.array([{}, None])),
    "floats": with_counts(np.ones((1, 7))), "another shape": with_counts(np.array([1, 2, 2])),
    "one bit of the data": flipped(136), "one bit of the header": flipped(30), "one bit of the checksum": flipped(-9),
    "a folder": lambda path: [os.unlink(path), os.mkdir(path)],
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_result_that_is_not_what_was_written_counts_for_nothing_and_is_made_again(tmp_path, spoil):
    journal = open_journal(tmp_path)
    fill(journal, journal.counts_tasks())
    expected, task = journal.counts(), journal.counts_tasks()[3]
    spoil(journal.path(task))
    for mapped in (False, True):
        with pytest.raises(UserError, match=f"^{journal.path(task)} is not to be believed .*; the same command makes"):
            journal.read(task, mapped)
    assert not journal.has(task) and journal.counts()[1] == 6 and set(journal.rejected) == {task}
    if os.path.isdir(journal.path(task)):
        return
    list(run_tasks(journal, journal.counts_tasks(), lambda each: fill(journal, [each]), (0, 1)))
    assert np.array_equal(journal.counts()[0], expected[0]) and journal.counts()[1] == 10


def test_not_one_bit_of_a_result_may_change(tmp_path):
    journal = open_journal(tmp_path)
    task = journal.counts_tasks()[0]
    fill(journal, [task])
    with open(journal.path(task), "rb") as file:
        content = file.read()
    for place in range(len(content)):
        for bit in (1, 32, 128):
            torn = bytearray(content)
            torn[place] ^= bit
            with open(journal.path(task), "wb") as file:
                file.write(torn)
            with pytest.raises(UserError):
                journal.read(task)


def test_results_of_other_tasks_and_other_evaluations_are_not_believed(tmp_path):
    one, other = open_journal(tmp_path), open_journal(tmp_path, {**INPUTS, "weights": "others"})
    for journal in (one, other):
        fill(journal, journal.counts_tasks())
    first, _, third, *_ = one.counts_tasks()
    shutil.copyfile(one.path(first), one.path(third))
    shutil.copyfile(other.path(first), one.path(first))
    assert not one.has(first) and not one.has(third)
    assert set(one.rejected.values()) == {"it belongs to something else"}


@pytest.mark.parametrize("column, value", [(1, 5), (2, 5), (1, -1), (2, 1), (0, 3), (0, -1), (3, -1), (3, 2 ** 32 + 1),
                                           (4, 5), (4, -1), (5, 3), (5, -1), (6, 6 << 24), (6, -1)])
def test_counts_that_cannot_be_are_not_written(tmp_path, column, value):
    journal = open_journal(tmp_path)
    task = journal.counts_tasks()[1]
    right = whole([[1, 2, 2]])
    journal.write(task, right)
    wrong = right.copy()
    wrong[0, column] = value
    for rows in (wrong, np.concatenate([right, right]), right[:, :3], right.astype("float64")):
        with pytest.raises(UserError):
            journal.write(task, rows)
    assert np.array_equal(journal.read(task), right)


def test_counts_of_archs_of_another_shard_are_not_believed_where_the_shards_are_known(tmp_path):
    journal = open_journal(tmp_path)
    fill(journal, journal.counts_tasks())
    journal.leaves = [[0, 2], [1]]
    assert all(map(journal.has, journal.counts_tasks()))
    again = open_journal(tmp_path)
    again.leaves = [[0, 1], [2]]
    assert not any(map(again.has, again.counts_tasks()))


def test_a_result_is_not_read_again_while_its_file_stays_as_it_is(tmp_path, monkeypatch):
    journal = open_journal(tmp_path)
    fill(journal, journal.counts_tasks())
    assert all(map(journal.has, journal.counts_tasks()))
    monkeypatch.setattr("resnet48.system.arrays.read", None)
    assert all(map(journal.has, journal.counts_tasks()))


PLANS = {
    "empty": b"", "not JSON": b"{", "an array": b"[]", "a number": b"1", "null": b"null", "text": b'"plan"',
    "not text": b"\xff\xfe", "nested": b"[" * 100_000, "without keys": b"{}",
    "of other types": b'{"inputs": 1, "codes": 2, "images": "x", "chunk": null, "shards": []}',
    "with a piece that is no number of chunks": b'{"inputs": {}, "codes": [], "images": 10, "chunk": 4, "piece": 6, '
                                               b'"shards": 1}',
    "of an earlier version": b'{"inputs": {"weights": "w", "validation": "v"}, "codes": [["arch1", "c1"], ["arch2", '
                             b'"c2"], ["arch3", "c3"]], "images": 10, "chunk": 4, "shards": 2}',
}


@pytest.mark.parametrize("content", PLANS.values(), ids=PLANS)
def test_a_plan_that_is_not_the_one_that_was_written_is_made_again(tmp_path, content):
    journal = open_journal(tmp_path)
    fill(journal, journal.counts_tasks())
    with open(os.path.join(journal.folder, "plan.json"), "wb") as file:
        file.write(content)
    with pytest.raises(UserError, match="the plan of the evaluation"):
        Journal.newest(str(tmp_path))
    again = open_journal(tmp_path)
    assert again.unlike.endswith(": it is made again") and again.plan == journal.plan
    assert again.counts()[1] == 10


@pytest.mark.parametrize("key, value", [("chunk", 5), ("piece", 8), ("shards", 1), ("images", 9), ("codes", CODES[:2])])
def test_a_plan_with_one_number_changed_is_not_believed(tmp_path, key, value):
    journal = open_journal(tmp_path)
    path = os.path.join(journal.folder, "plan.json")
    with open(path) as file:
        content = json.load(file)
    with open(path, "w") as file:
        json.dump({**content, key: value}, file)
    assert open_journal(tmp_path).plan == journal.plan


@pytest.mark.parametrize("change, why", [
    ({"inputs": {**INPUTS, "weights": "others"}}, "other weights"), ({"codes": CODES[:2]}, "other arch list"),
    ({"inputs": {**INPUTS, "validation": "others"}, "images": 9}, "other validation images"),
    ({"inputs": {**INPUTS, "calibration": "c", "amp": "fp16"}}, "other precision, calibration images")], ids=str)
def test_where_a_finished_evaluation_does_not_count_the_input_that_differs_is_named(tmp_path, change, why):
    first = open_journal(tmp_path)
    assert first.unlike is None and open_journal(tmp_path).unlike is None
    said = open_journal(tmp_path, **change).unlike
    assert said == f"the evaluation in {first.folder} does not count for this one: {why}"


def test_an_evaluation_of_the_format_without_cross_entropies_is_computed_again_which_is_said(tmp_path, monkeypatch):
    fingerprint = journal_plan.fingerprint
    with monkeypatch.context() as patched:
        patched.setattr(journal_plan, "fingerprint", lambda plan: fingerprint(plan, 1))
        earlier = open_journal(tmp_path)
    with pytest.raises(UserError, match=f"^an earlier version wrote the evaluation in {earlier.folder}, without cross-"
                                        "entropies; `eval_supernet.py run` computes it again$"):
        Journal.newest(str(tmp_path))
    other = open_journal(tmp_path, {**INPUTS, "weights": "others"})
    assert other.unlike.endswith(": an earlier version wrote it, without cross-entropies; other weights")
    again = open_journal(tmp_path)
    assert again.folder != earlier.folder and again.plan == earlier.plan
    assert again.unlike == (f"the evaluation in {earlier.folder} does not count for this one: an earlier version wrote "
                            "it, without cross-entropies")


def test_what_fresh_may_not_delete_is_not_used_again_in_silence(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    open_journal(tmp_path)
    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(UserError, match="^cannot delete .*: Permission denied$"):
        open_journal(tmp_path, fresh=True)


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
    monkeypatch.setattr("resnet48.system.shared_work.try_lock", locked_late)
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


def test_evaluations_can_be_listed_and_removed_but_not_while_a_process_works_on_them(tmp_path):
    first, second = open_journal(tmp_path), open_journal(tmp_path, images=9)
    words = [sys.executable, "-m", "resnet48", "cache", "--cache_dir", str(tmp_path)]

    def command(*more):
        return subprocess.run([*words, *more], cwd=ROOT, capture_output=True, text=True)

    names = {os.path.basename(journal.folder) for journal in (first, second)}
    assert {line.split()[0] for line in command().stdout.splitlines() if "an evaluation" in line} == names
    other = holder(first.path(first.counts_tasks()[0]))
    refused = command("--remove", os.path.basename(first.folder))
    assert refused.returncode == 2 and "a process works on the evaluation in" in refused.stderr
    end(other)
    assert command("--remove", os.path.basename(first.folder)).returncode == 0
    assert not os.path.exists(first.folder) and os.path.exists(second.folder)
