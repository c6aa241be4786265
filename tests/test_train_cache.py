"""Training images that are kept shrunk."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from commands import PATIENCE, image_folder
from conftest import ROOT
from PIL import Image
from small_runs import SETTINGS, STANDALONE, fit
from test_loader import run, same

from resnet48.images import cache, datasets, transforms
from resnet48.system.errors import UserError
from resnet48.training import loop

SIZE = 8


def images(folder):
    return datasets.load(str(folder), SIZE)


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")


def kept(folder, tmp_path, workers=1, found=None):
    return cache.for_training(replace(found or images(folder), cache_dir=str(tmp_path / "cache"), workers=workers))


def test_a_kept_image_is_the_whole_image_with_a_short_side_of_two_image_sizes(folder, tmp_path):
    original, train = images(folder).train, kept(folder, tmp_path).train
    for index, path in enumerate(original.images):
        with Image.open(path) as image:
            width, height = image.size
        assert min(train.images[index].shape[:2]) == 2 * SIZE
        assert abs(train.images[index].shape[1] / train.images[index].shape[0] - width / height) < 0.1
        assert abs(train.images[index].mean() - np.asarray(Image.open(path)).mean()) < 3
    assert np.array_equal(train.labels, original.labels)


def test_a_small_image_is_kept_as_it_is():
    assert transforms.shrunk_size((20, 9), 16) == (20, 9) and transforms.shrunk_size((500, 375), 128) == (171, 128)


def test_kept_images_are_mapped_and_made_once(folder, tmp_path, monkeypatch):
    first = kept(folder, tmp_path)
    assert isinstance(first.train.images.pixels, np.memmap)
    monkeypatch.setattr(transforms, "shrunk", lambda *_: pytest.fail("shrunk again"))
    assert same(run(kept(folder, tmp_path)), run(first))


SLOWLY = """
import hashlib, sys, time
from resnet48.images import cache, datasets, transforms
count, real = 0, transforms.shrunk
def shrunk(*given):
    global count
    count += 1
    time.sleep(0.05)
    return real(*given)
transforms.shrunk = shrunk
train = cache.for_training(datasets.load(sys.argv[1], 8, cache_dir=sys.argv[2])).train
print(count, hashlib.sha256(train.images.pixels.tobytes()).hexdigest())
"""


def test_of_processes_that_need_them_at_once_one_makes_them_and_the_others_wait(folder, tmp_path):
    started = [subprocess.Popen([sys.executable, "-c", SLOWLY, str(folder), str(tmp_path / "cache")], cwd=ROOT,
                                stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts, digests = zip(*(process.communicate(timeout=PATIENCE)[0].splitlines()[-1].split() for process in started))
    assert sorted(map(int, counts)) == [0, 0, len(images(folder).train)]
    assert len(set(digests)) == 1


def test_batches_from_kept_images_are_the_same_for_any_number_of_workers(folder, tmp_path):
    assert same(run(kept(folder, tmp_path), workers=0), run(kept(folder, tmp_path), workers=2))


@pytest.mark.parametrize("train_cache", [False, True])
def test_a_training_keeps_images_with_the_setting_and_nothing_without_it(folder, tmp_path, train_cache):
    found = datasets.load(str(folder), 16, workers=0, cache_dir=str(tmp_path / "cache"))
    config = replace(SETTINGS, max_epoch=1, save_dir=str(tmp_path / "run"), train_cache=train_cache)
    fit(STANDALONE, config, image_set=found)
    assert os.path.exists(tmp_path / "cache") == train_cache


def test_built_in_images_which_are_in_memory_are_kept_nowhere(tmp_path):
    found = datasets.load(cache_dir=str(tmp_path / "cache"))
    assert cache.for_training(found) is found and not os.path.exists(tmp_path / "cache")


def test_a_changed_file_makes_all_anew(folder, tmp_path):
    before = np.array(kept(folder, tmp_path).train.images[3])
    path = images(folder).train.images[3]
    Image.new("RGB", (40, 30), (1, 2, 3)).save(path)
    after = kept(folder, tmp_path).train.images[3]
    assert np.abs(after.astype("int64") - (1, 2, 3)).max() <= 2 and after.mean() < before.mean()


@pytest.mark.parametrize("content", [b"no image", "corrupt"])
def test_an_unreadable_image_is_found_out_in_training_as_without_a_cache(folder, tmp_path, content):
    path = images(folder).train.images[3]
    with open(path, "rb") as file:
        whole = file.read()
    with open(path, "wb") as file:
        file.write(whole[:len(whole) // 2] if content == "corrupt" else content)
    said = []
    run(kept(folder, tmp_path), report=said.append)
    assert said == [f"skipped the unreadable image {path} (1 so far)"]


@pytest.mark.parametrize("part", ["train", "places"])
def test_kept_images_that_are_not_what_was_written_are_made_again(folder, tmp_path, capsys, part):
    expected = run(kept(folder, tmp_path))
    path, = (tmp_path / "cache").glob(f"*.{part}.npy")
    content = bytearray(path.read_bytes())
    content[150:158] = bytes(8)
    path.write_bytes(content)
    assert same(run(kept(folder, tmp_path)), expected)
    assert "is not to be believed (" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="^cannot write .*train.npy: No space left on device$"):
        kept(folder, tmp_path)
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith((".lock", ".digests.npy"))] == []


def test_the_setting_without_a_folder_is_an_error_that_says_so(tmp_path):
    for refused in (cache.require_folder, cache.for_training):
        with pytest.raises(UserError, match="--train_cache needs --cache_dir"):
            refused(datasets.load())
    with pytest.raises(UserError, match="--train_cache needs --cache_dir"):
        loop.require_runnable(datasets.load(), replace(SETTINGS, save_dir=str(tmp_path), train_cache=True))
