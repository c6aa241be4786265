import hashlib
import os
import re
import stat
import subprocess
import sys

import pytest
from conftest import ROOT

from resnet48.system import files, locks
from resnet48.system.errors import UserError


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


# ---- replacing

def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("old")
    with files.atomic_write(str(path)) as temporary:
        write(temporary, "new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["list.json"]


@pytest.mark.parametrize("error", [RuntimeError, UserError, KeyboardInterrupt, SystemExit])
def test_the_old_file_stays_whole_when_the_block_raises(tmp_path, error):
    path = tmp_path / "list.json"
    path.write_text("old")
    with pytest.raises(error):
        with files.atomic_write(str(path)) as temporary:
            write(temporary, "half")
            raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["list.json"]


def test_a_new_file_is_not_there_at_all_when_the_block_raises(tmp_path):
    with pytest.raises(RuntimeError):
        with files.atomic_write(str(tmp_path / "list.json")) as temporary:
            write(temporary, "half")
            raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "list.json"
    path.write_text("old")
    with pytest.raises(UserError, match=f"^cannot write {re.escape(str(path))}: No space left on device$"):
        with files.atomic_write(str(path)):
            raise OSError(28, os.strerror(28))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["list.json"]


def test_missing_folders_are_made_and_the_file_can_be_read_by_others(tmp_path):
    path = tmp_path / "a" / "b" / "list.json"
    files.write_text(str(path), "text")
    assert path.read_text() == "text"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_bare_name_is_written_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.require_writable("list.json")
    files.write_text("list.json", "text")
    assert os.listdir(tmp_path) == ["list.json"]


def test_the_temporary_file_keeps_the_ending(tmp_path):
    with files.atomic_write(str(tmp_path / "plot.png")) as temporary:
        assert temporary.endswith(".png") and os.path.dirname(temporary) == str(tmp_path)


def test_a_folder_is_not_overwritten_by_a_file(tmp_path):
    (tmp_path / "output").mkdir()
    with pytest.raises(UserError, match="^cannot write "):
        files.write_text(str(tmp_path / "output"), "text")
    assert os.listdir(tmp_path) == ["output"]


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "list.json"
    files.write_json(str(path), {"acc": 1.5})
    with pytest.raises(TypeError):
        files.write_json(str(path), {"acc": object()})
    assert files.read_json(str(path), "list") == {"acc": 1.5}
    assert os.listdir(tmp_path) == ["list.json"]


# ---- require_writable

def test_a_writable_path_passes_and_nothing_is_made_not_even_its_folder(tmp_path):
    files.require_writable(str(tmp_path / "a" / "b" / "list.json"))
    assert os.listdir(tmp_path) == []


def test_an_existing_file_passes_untouched(tmp_path):
    (tmp_path / "list.json").write_text("old")
    files.require_writable(str(tmp_path / "list.json"))
    assert (tmp_path / "list.json").read_text() == "old"


@pytest.mark.parametrize("check", [files.require_writable, lambda path: files.write_text(path, "text")],
                         ids=["require_writable", "write_text"])
@pytest.mark.parametrize("below", ["list.json", "a/list.json", "a/b/list.json"])
def test_a_path_below_a_file_is_refused_and_says_which_folder_cannot_be_made(tmp_path, check, below):
    (tmp_path / "file").write_text("here")
    path = str(tmp_path / "file" / below)
    with pytest.raises(UserError) as caught:
        check(path)
    assert str(caught.value) == \
        f"cannot write {path}: there is a file where the folder {os.path.dirname(path)} should be"
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize("length", [243, 255, 300])
def test_a_name_whose_temporary_name_is_too_long_is_refused_before_the_work(tmp_path, length):
    with pytest.raises(UserError, match="^cannot write .*: File name too long$"):
        files.require_writable(str(tmp_path / ("x" * length + ".json")))
    files.require_writable(str(tmp_path / ("x" * 200 + ".json")))


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"^cannot write {re.escape(str(tmp_path))}: it is a folder$"):
        files.require_writable(str(tmp_path))


# ---- read_json

def test_json_reads_back_in_the_order_it_was_written(tmp_path):
    path = str(tmp_path / "list.json")
    files.write_json(path, {"arch2": 1, "arch1": [2.5, None, "é"]})
    assert list(files.read_json(path, "list").items()) == [("arch2", 1), ("arch1", [2.5, None, "é"])]


@pytest.mark.parametrize("content, words", [
    (b'{"a": 1,\n "b": }', "arch list {path} is not JSON: Expecting value in line 2"),
    (b"", "arch list {path} is not JSON: Expecting value in line 1"),
    (b'{"a": 1} x', "arch list {path} is not JSON: Extra data in line 1"),
    (b'{"a": "\xff"}', "arch list {path} is not a text file: invalid start byte at byte 7"),
    (b'{"a": 1, "a": 2}', "arch list {path}: the key 'a' occurs twice"),
    (b'{"a": {"acc": 1, "acc": 1}}', "arch list {path}: the key 'acc' occurs twice"),
    (b"[" * 100_000 + b"]" * 100_000, "arch list {path} is nested too deeply to be read"),
    (b'{"a": ' * 100_000, "arch list {path} is nested too deeply to be read"),
    (b'{"a": -' + b"9" * 5000 + b"}", "arch list {path} holds a number that is too long to be read"),
], ids=["no value", "empty", "two values", "not text", "key twice", "key twice below", "arrays", "objects", "number"])
def test_malformed_json_is_refused_by_name_and_place(tmp_path, content, words):
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(str(path), "arch list")
    assert str(caught.value) == words.format(path=path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(UserError) as caught:
        files.read_json(str(tmp_path / "no.json"), "arch list")
    assert str(caught.value) == f"cannot read arch list {tmp_path / 'no.json'}: No such file or directory"
    with pytest.raises(UserError, match="^cannot read arch list .*: Is a directory$"):
        files.read_json(str(tmp_path), "arch list")


# ---- locked

def test_a_lock_makes_its_folder_and_is_held_until_the_block_ends(tmp_path):
    path = str(tmp_path / "a" / "b" / "lock")
    try_it = f"import fcntl; fcntl.lockf(open({path!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def is_free():
        return subprocess.run([sys.executable, "-c", try_it], stderr=subprocess.DEVNULL).returncode == 0

    with locks.locked(path):
        assert not is_free()
    assert is_free()


def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="^cannot write .*: there is a file where the folder .* should be$"):
        with locks.locked(str(tmp_path / "file" / "lock")):
            pass


# ---- sha256_of

def test_the_digest_is_that_of_the_whole_file(tmp_path):
    content = b"0123456789" * 300_000  # more than one block of reading
    (tmp_path / "weights").write_bytes(content)
    assert files.sha256_of(str(tmp_path / "weights")) == hashlib.sha256(content).hexdigest()


HOLDER = """
import sys
from resnet48.system import locks
with locks.held(sys.argv[1], "it is taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path):
    """A process that holds the lock file until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", [lambda process: process.communicate(""), lambda process: process.kill()],
                         ids=["ends", "is killed"])
def test_what_one_process_holds_another_is_refused_until_the_first_is_gone(tmp_path, end):
    path = str(tmp_path / "new" / ".lock")
    process = holder(path)
    try:
        with pytest.raises(UserError, match="^it is taken$"), locks.held(path, "it is taken"):
            raise AssertionError
    finally:
        end(process)
        process.communicate()
    with locks.held(path, "it is taken"):
        assert os.path.exists(path)
    assert not os.path.exists(path)
    with locks.held(str(tmp_path / "a" / "b" / ".lock"), ""):
        pass
    assert not os.path.exists(tmp_path / "a")  # a folder that was made for it, and stayed empty


def test_of_processes_that_hold_a_file_again_and_again_never_two_do_so_at_once(tmp_path):
    """Each removes the file in the end, and may do so between two moments of another's opening and locking it."""
    program = """
import os, sys
from resnet48.system import errors, locks
path, mark, done = sys.argv[1], sys.argv[1] + ".mark", 0
while done < 100:
    try:
        with locks.held(path, ""):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            os.unlink(mark)
            done += 1
    except errors.UserError:
        pass
"""
    workers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / ".lock")], cwd=ROOT) for _ in range(3)]
    assert [worker.wait(600) for worker in workers] == [0, 0, 0]
    assert os.listdir(tmp_path) == []


# ---- require_output, beside

def paths_to(folder, name):
    """The file under other names: as it is, relative, by a link to it and by a link to its folder."""
    os.symlink(folder / name, folder / "link.json")
    os.link(folder / name, folder / "hard.json")
    os.symlink(folder, folder / "other")
    return [str(folder / name), name, os.path.join(".", name), "link.json", "hard.json", os.path.join("other", name)]


def test_an_output_may_not_be_an_input_under_any_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("{}")
    for path in paths_to(tmp_path, "list.json"):
        with pytest.raises(UserError, match=r"^--output .* is also the file of --archs, which would be lost"):
            files.require_output("--output", path, {"--checkpoint": None, "--archs": "list.json"})
    files.require_output("--output", "new.json", {"--archs": "list.json"})


def test_two_outputs_that_are_not_there_yet_may_not_be_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--report a.png is also the file of --plot"):
        files.require_output("--report", "a.png", {"--plot": str(tmp_path / "a.png")})


def test_an_output_that_is_there_is_replaced_unless_there_is_a_reason_to_keep_it(tmp_path):
    path = tmp_path / "list.json"
    files.require_output("--output", str(path), {}, lambda path: "is never asked")
    path.write_text("{}")
    files.require_output("--output", str(path), {}, lambda path: None)
    with pytest.raises(UserError, match="list.json is a truth; give another name, or move that file away$"):
        files.require_output("--output", str(path), {}, lambda path: "is a truth")
    with pytest.raises(UserError, match="it is a folder"):
        files.require_output("--output", str(tmp_path), {})


def test_what_belongs_to_a_file_has_a_name_of_its_own():
    assert files.beside("out/sub.json", ".manifest.json") == "out/sub.manifest.json"
    names = ("sub", "sub.v1.0", "sub.v1.1", "sub.txt", "out.d/sub", ".json.x")
    assert len({files.beside(name, ".journal") for name in names}) == len(names)
    assert files.beside("sub.v1.0.json", ".journal") == files.beside("sub.v1.0", ".journal") == "sub.v1.0.journal"


@pytest.mark.parametrize("name, words", [("a\0b", "cannot read list"), ("x" * 5000, "cannot read list")])
def test_a_name_that_no_file_can_have_is_not_called_a_number(name, words):
    with pytest.raises(UserError) as caught:
        files.read_json(name, "list")
    assert str(caught.value).startswith(words) and "number" not in str(caught.value)
    assert "\0" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_byte_order_mark_is_no_json_and_is_passed_over(tmp_path):
    (tmp_path / "list.json").write_bytes(b"\xef\xbb\xbf{}")
    assert files.read_json(str(tmp_path / "list.json"), "list") == {}
