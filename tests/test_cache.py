import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import processes
import pytest
from commands import PATIENCE, call, good, image_folder
from conftest import ROOT

from resnet48.images import cache, datasets, fingerprints
from resnet48.system.errors import UserError

SIZE = 20


@pytest.fixture
def images(tmp_path):
    """An `ImageSet` over a folder of nine validation images in three classes."""
    return load(image_folder(tmp_path / "images"))


def load(folder, size=SIZE):
    return datasets.load(str(folder), size)


def decoded(images, folder, indices=range(9), size=SIZE, skip_bad=False, workers=1):
    images = replace(images, size=size, cache_dir=folder and str(folder), skip_bad=skip_bad, workers=workers)
    return cache.decoded(images, images.val, indices, "images")


def assert_decoded(found, images, indices=range(9), size=SIZE):
    """That these are exactly the pixels and labels that decoding gives."""
    pixels, labels = datasets.decode(images.val, list(indices), size)
    assert found[0].dtype == np.uint8 and np.array_equal(found[0], pixels)
    assert found[1].dtype == np.int64 and np.array_equal(found[1], labels)


def forbid_decoding(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr(datasets, "decode", fail)


def spoil(path):
    with open(path, "wb") as file:
        file.write(b"not an image")


# ---- what is found again

def test_the_kept_arrays_are_what_decoding_gives_and_are_not_read_into_memory(images, tmp_path):
    for _ in range(2):
        found = decoded(images, tmp_path / "cache")
        assert_decoded(found, images)
        assert isinstance(found[0], np.memmap)


def test_the_second_call_decodes_nothing(images, tmp_path, monkeypatch):
    pixels, labels = decoded(images, tmp_path / "cache")
    kept = np.array(pixels)
    forbid_decoding(monkeypatch)
    again = decoded(images, tmp_path / "cache", workers=3)
    assert np.array_equal(again[0], kept) and np.array_equal(again[1], labels)


def test_without_a_folder_nothing_is_written(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.listdir(tmp_path)
    assert_decoded(decoded(images, None), images)
    assert os.listdir(tmp_path) == before


def test_built_in_images_are_kept_too(tmp_path, monkeypatch):
    digits = datasets.load()
    assert_decoded(decoded(digits, tmp_path / "cache", size=32), digits, size=32)
    forbid_decoding(monkeypatch)
    decoded(digits, tmp_path / "cache", size=32)


@pytest.mark.parametrize("copied", [False, True])
def test_the_same_files_under_another_path_are_the_same_source(images, tmp_path, monkeypatch, copied):
    decoded(images, tmp_path / "cache")
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "images", moved) if copied else os.rename(tmp_path / "images", moved)  # keep the times
    forbid_decoding(monkeypatch)
    decoded(load(moved), tmp_path / "cache")


# ---- what is not taken for the same

def changed_content(path):
    """One byte in the middle, with the times that it had."""
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(times.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def changed_size(path):
    times = os.stat(path)
    with open(path, "ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def changed_name(path):
    os.rename(path, path.replace("1.png", "1a.png"))  # at the same place in the order


def age(monkeypatch):
    """Let all files be old enough for their digests to be remembered."""
    now = time.time() + 60
    monkeypatch.setattr("time.time", lambda: now)


def fingerprint(images, split, indices=range(9), **more):
    return cache.fingerprint(replace(images, **more), split, indices)


def test_a_changed_file_is_decoded_again(images, tmp_path):
    old = np.array(decoded(images, tmp_path / "cache")[0])
    shutil.copyfile(images.val.images[0], images.val.images[4])
    found = decoded(images, tmp_path / "cache")
    assert_decoded(found, images)
    assert not np.array_equal(found[0], old)


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("change", [changed_content, changed_size, changed_name])
def test_content_size_and_name_of_each_file_are_in_the_fingerprint(images, tmp_path, monkeypatch, change,
                                                                     remembered):
    folder = {"cache_dir": str(tmp_path / "cache")} if remembered else {}
    age(monkeypatch)
    before = fingerprint(images, images.val, **folder)
    change(images.val.images[4])
    assert fingerprint(images, load(tmp_path / "images").val, **folder) != before


def test_times_of_files_are_not_in_the_fingerprint(images, tmp_path):
    before = fingerprint(images, images.val, cache_dir=str(tmp_path / "cache"))
    for path in images.val.images:
        os.utime(path, ns=(0, 1))
    assert fingerprint(images, images.val, cache_dir=str(tmp_path / "cache")) == before
    shutil.copytree(tmp_path / "images", tmp_path / "copied", copy_function=shutil.copyfile)
    assert fingerprint(images, load(tmp_path / "copied").val) == before


def test_a_second_start_reads_only_files_that_have_changed(images, tmp_path, monkeypatch):
    folder, read, original = {"cache_dir": str(tmp_path / "cache")}, [], fingerprints._digest
    monkeypatch.setattr(fingerprints, "_digest", lambda path: (read.append(path), original(path))[1])
    before = fingerprint(images, images.val, **folder)
    assert sorted(read) == images.val.images
    fingerprint(images, images.val, **folder)  # files that have just been made are read again
    assert len(read) == 18
    age(monkeypatch)
    fingerprint(images, images.val, **folder)
    read.clear()
    assert fingerprint(images, images.val, **folder) == before and read == []
    os.utime(images.val.images[4])
    assert fingerprint(images, images.val, **folder) == before and read == [images.val.images[4]]


@pytest.mark.parametrize("damage", [b"", b"x" * 500, "shape"])
def test_digests_that_are_remembered_wrongly_are_not_believed(images, tmp_path, monkeypatch, damage):
    folder = {"cache_dir": str(tmp_path / "cache")}
    age(monkeypatch)
    before = fingerprint(images, images.val, **folder)
    path, = (tmp_path / "cache").glob("*.digests.npy")
    np.save(path, np.zeros((9, 5), "int64")) if damage == "shape" else path.write_bytes(damage)
    assert fingerprint(images, images.val, **folder) == before


def test_which_images_in_which_order_and_how_they_are_shown_are_in_the_fingerprint(images, monkeypatch):
    def of(indices=(0, 1, 2), split=images.val, **more):
        return fingerprint(images, split, indices, **more)

    relabelled = datasets.Split(images.val.images, images.val.labels[::-1])
    found = [of(), of((0, 1)), of((1, 0, 2)), of((0, 1, 3)), of(size=21), of(split=images.train),
             of(split=relabelled), of(skip_bad=True)]
    monkeypatch.setattr(cache, "EVAL_TRANSFORM", "evaluation view of tomorrow")
    found.append(of())
    assert len(set(found)) == len(found)


def test_built_in_images_are_told_apart_by_their_pixels_and_labels(images):
    pixels, labels = np.zeros((2, 8, 8), "uint8"), np.array([0, 1])
    others = pixels.copy()
    others[1, 7, 7] = 1
    found = {fingerprint(images, datasets.Split(*split), range(2))
             for split in ((pixels, labels), (others, labels), (pixels, labels[::-1]))}
    assert len(found) == 3


# ---- images that cannot be read

def test_an_unreadable_image_is_named_and_nothing_is_kept(images, tmp_path):
    spoil(images.val.images[4])
    with pytest.raises(datasets.BadImage, match=images.val.images[4]):
        decoded(images, tmp_path / "cache")
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith((".lock", ".digests.npy"))] == []


def test_images_that_are_left_out_are_left_out_of_what_is_kept(images, tmp_path, monkeypatch, capsys):
    spoil(images.val.images[4])
    os.unlink(images.val.images[0])
    good = [1, 2, 3, 5, 6, 7, 8]
    found = decoded(images, tmp_path / "cache", skip_bad=True)
    assert_decoded(found, images, good)
    assert "left out 2 unreadable images" in capsys.readouterr().out
    expected = np.array(found[0])
    forbid_decoding(monkeypatch)
    again = decoded(images, tmp_path / "cache", skip_bad=True)
    assert np.array_equal(again[0], expected) and np.array_equal(again[1], images.val.labels[good])


def test_a_link_to_nothing_is_named_too(images, tmp_path):
    path = images.val.images[4]
    os.unlink(path)
    os.symlink(tmp_path / "gone.png", path)
    with pytest.raises(datasets.BadImage, match=path):
        decoded(images, tmp_path / "cache")
    assert len(decoded(images, tmp_path / "cache", skip_bad=True)[1]) == 8


@pytest.mark.parametrize("cached", [True, False])
def test_if_no_image_is_left_that_is_an_error(images, tmp_path, cached):
    for path in images.val.images:
        spoil(path)
    with pytest.raises(UserError, match="^none of the 9 images is readable$"):
        decoded(images, tmp_path / "cache" if cached else None, skip_bad=True)


# ---- crashes, full disks, several processes

class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("call, when", [("decode", 1), ("replace", 1), ("replace", 2)])
@pytest.mark.parametrize("before", [True, False])
def test_a_crash_leaves_nothing_that_is_taken_for_whole(images, tmp_path, monkeypatch, call, when, before):
    owner = datasets if call == "decode" else os
    original, calls = getattr(owner, call), []

    def crash(*arguments, **more):
        calls.append(call)
        if len(calls) == when and before:
            raise Crash
        result = original(*arguments, **more)
        if len(calls) == when:
            raise Crash
        return result

    monkeypatch.setattr(owner, call, crash)
    monkeypatch.setattr(os, "unlink", lambda _path: None)  # as with SIGKILL, temporary files stay
    with pytest.raises(Crash):
        decoded(images, tmp_path / "cache")
    monkeypatch.undo()
    assert_decoded(decoded(images, tmp_path / "cache"), images)


def test_a_crash_in_the_middle_of_decoding_leaves_nothing_that_is_taken_for_whole(images, tmp_path, monkeypatch):
    def half(split, indices, size, *_, into, whole):
        into[:4] = 1
        into.flush()
        raise Crash

    monkeypatch.setattr(datasets, "decode", half)
    with pytest.raises(Crash):
        decoded(images, tmp_path / "cache")
    monkeypatch.undo()
    assert_decoded(decoded(images, tmp_path / "cache"), images)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="^cannot write .*pixels.npy: No space left on device$"):
        decoded(images, tmp_path / "cache")
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith((".lock", ".digests.npy"))] == []


SPOILT = {
    "cut off": lambda path, content: path.write_bytes(content[:-5]),
    "empty": lambda path, content: path.write_bytes(b""),
    "zeros": lambda path, content: path.write_bytes(bytes(len(content))),
    "one bit": lambda path, content: path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:]),
    "one bit of the checksum": lambda path, content: path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) +
                                                                      content[-8:]),
    "values zeroed": lambda path, content: path.write_bytes(content[:128] + bytes(72) + content[200:]),
    "without a checksum": lambda path, content: np.save(path, np.load(path)),
    "one row less": lambda path, content: np.save(path, np.load(path)[1:]),
    "another dtype": lambda path, content: np.save(path, np.load(path).astype("float64")),
    "objects": lambda path, content: np.save(path, np.array([{}, None]))}


@pytest.mark.parametrize("part", ["pixels", "labels"])
@pytest.mark.parametrize("spoil_it", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("remembered", [False, True])
def test_a_file_that_is_not_what_was_written_is_made_again(images, tmp_path, monkeypatch, capsys, part, spoil_it,
                                                           remembered):
    if remembered:
        age(monkeypatch)
    decoded(images, tmp_path / "cache")
    assert bool(list((tmp_path / "cache").glob("*.checked"))) == remembered
    path, = (tmp_path / "cache").glob(f"*.{part}.npy")
    spoil_it(path, path.read_bytes())
    assert_decoded(decoded(images, tmp_path / "cache"), images)
    assert "is not to be believed (" in capsys.readouterr().out
    decoded(images, tmp_path / "cache")
    assert capsys.readouterr().out == ""


def test_files_of_other_images_are_not_believed(images, tmp_path):
    decoded(images, tmp_path / "cache")
    first = {path.name.split(".")[1]: path for path in (tmp_path / "cache").glob("*.*.npy")}
    decoded(images, tmp_path / "cache", indices=range(8, -1, -1))
    for path in (tmp_path / "cache").glob("*.*.npy"):
        shutil.copyfile(first[path.name.split(".")[1]], path) if path not in first.values() else None
    assert_decoded(decoded(images, tmp_path / "cache", indices=range(8, -1, -1)), images, range(8, -1, -1))


def test_what_killed_processes_have_left_goes_with_the_next_build_unless_its_lock_is_held(images, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    dead, alive = (folder / f".{letter * 32}.pixels.npy.abc12_34.npy" for letter in "ab")
    for path in (dead, alive):
        path.write_bytes(b"half")
    holding = subprocess.Popen([sys.executable, "-c", f"""
import time
from resnet48.system import locks
with locks.locked({str(folder / ("b" * 32 + ".lock"))!r}):
    print("held", flush=True)
    time.sleep(600)
"""], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holding.stdout.readline() == "held\n"
    decoded(images, folder)
    assert not dead.exists() and alive.exists()
    holding.kill()
    holding.wait()
    holding.stdout.close()
    decoded(images, folder, indices=range(3))
    assert not alive.exists()


def test_the_command_lists_what_is_kept_and_removes_it(images, tmp_path):
    folder = tmp_path / "cache"
    decoded(images, folder)
    decoded(images, folder, indices=range(3))
    listed = good(call("-m resnet48", "cache", "--cache_dir", folder)).out.splitlines()
    names = [line.split()[0] for line in listed[1:] if line.endswith("decoded images")]
    assert len(names) == 2
    good(call("-m resnet48", "cache", "--cache_dir", folder, "--days", 1, "--remove", "all"))
    assert len(list(folder.glob("*.pixels.npy"))) == 2
    good(call("-m resnet48", "cache", "--cache_dir", folder, "--remove", names[0]))
    assert [path.name.split(".")[0] for path in folder.glob("*.pixels.npy")] == names[1:]
    good(call("-m resnet48", "cache", "--cache_dir", folder, "--remove", "all"))
    assert os.listdir(folder) == []
    assert_decoded(decoded(images, folder), images)
    assert "lists nothing of this name" in call("-m resnet48", "cache", "--cache_dir", folder, "--remove", "x").err


def build(folder, cache_folder, together, results):
    """In a process of its own: decode as soon as all are ready; say what came of it and how often it decoded."""
    images, original, calls = load(folder), datasets.decode, []
    datasets.decode = lambda *arguments, **more: (calls.append(1), original(*arguments, **more))[1]
    together.wait()
    pixels, labels = decoded(images, cache_folder)
    results.put((len(calls), pixels.tobytes(), labels.tobytes()))


def test_of_several_processes_that_need_images_at_once_one_decodes_and_all_get_them(images, tmp_path):
    together, results = processes.barrier(3), processes.queue()
    started = [processes.start(build, tmp_path / "images", tmp_path / "cache", together, results) for _ in range(3)]
    found = [results.get(timeout=PATIENCE) for _ in started]
    for process in started:
        process.join()
    assert sorted(decodings for decodings, *_ in found) == [0, 0, 1]
    pixels, labels = datasets.decode(images.val, range(9), SIZE)
    assert {each[1:] for each in found} == {(pixels.tobytes(), labels.tobytes())}
