import os
import shutil
from dataclasses import replace

import numpy as np
import processes
import pytest
from commands import PATIENCE, image_folder

from resnet48.images import cache, datasets
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

def changed_time(path):
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))


def changed_size(path):
    times = os.stat(path)
    with open(path, "ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def changed_name(path):
    os.rename(path, path.replace("1.png", "1a.png"))  # at the same place in the order


def test_a_changed_file_is_decoded_again(images, tmp_path):
    old = np.array(decoded(images, tmp_path / "cache")[0])
    shutil.copyfile(images.val.images[0], images.val.images[4])
    found = decoded(images, tmp_path / "cache")
    assert_decoded(found, images)
    assert not np.array_equal(found[0], old)


@pytest.mark.parametrize("change", [changed_time, changed_size, changed_name])
def test_time_size_and_name_of_each_file_are_in_the_fingerprint(images, tmp_path, change):
    before = cache.fingerprint(images.val, range(9), SIZE)
    change(images.val.images[4])
    assert cache.fingerprint(load(tmp_path / "images").val, range(9), SIZE) != before


def test_which_images_in_which_order_and_how_they_are_shown_are_in_the_fingerprint(images, monkeypatch):
    def of(indices=(0, 1, 2), size=SIZE, split=images.val, **more):
        return cache.fingerprint(split, indices, size, **more)

    relabelled = datasets.Split(images.val.images, images.val.labels[::-1])
    found = [of(), of((0, 1)), of((1, 0, 2)), of((0, 1, 3)), of(size=21), of(split=images.train),
             of(split=relabelled), of(skip_bad=True)]
    monkeypatch.setattr(cache, "EVAL_TRANSFORM", "evaluation view of tomorrow")
    found.append(of())
    assert len(set(found)) == len(found)


def test_built_in_images_are_told_apart_by_their_pixels_and_labels():
    pixels, labels = np.zeros((2, 8, 8), "uint8"), np.array([0, 1])
    others = pixels.copy()
    others[1, 7, 7] = 1
    found = {cache.fingerprint(datasets.Split(*split), range(2), SIZE)
             for split in ((pixels, labels), (others, labels), (pixels, labels[::-1]))}
    assert len(found) == 3


# ---- images that cannot be read

def test_an_unreadable_image_is_named_and_nothing_is_kept(images, tmp_path):
    spoil(images.val.images[4])
    with pytest.raises(datasets.BadImage, match=images.val.images[4]):
        decoded(images, tmp_path / "cache")
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")] == []


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
    def half(split, indices, size, *_, into):
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
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")] == []


@pytest.mark.parametrize("part", ["pixels", "labels"])
def test_a_corrupt_file_is_named_and_after_deleting_it_all_is_well(images, tmp_path, part):
    decoded(images, tmp_path / "cache")
    path, = (tmp_path / "cache").glob(f"*.{part}.npy")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"^{path} is not readable .*; delete it and it is made again$"):
        decoded(images, tmp_path / "cache")
    path.unlink()
    assert_decoded(decoded(images, tmp_path / "cache"), images)


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
