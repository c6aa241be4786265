"""Training images that are kept shrunk."""

import os
import subprocess
import sys

import numpy as np
import pytest
from commands import image_folder
from conftest import ROOT
from PIL import Image
from test_batches import run, same

from resnet48 import cache, data, views
from resnet48.options import TrainSettings
from resnet48.errors import UserError

SIZE = 8


def images(folder):
    return data.load(TrainSettings(image_dir=str(folder), image_size=SIZE))


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")


def kept(folder, tmp_path, workers=1, found=None):
    config = TrainSettings(cache_dir=str(tmp_path / "cache"), train_cache=True, num_workers=workers)
    return cache.for_training(found or images(folder), config)


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
    assert views.shrunk_size((20, 9), 16) == (20, 9) and views.shrunk_size((500, 375), 128) == (171, 128)


def test_kept_images_are_mapped_and_made_once(folder, tmp_path, monkeypatch):
    first = kept(folder, tmp_path)
    assert isinstance(first.train.images.pixels, np.memmap)
    monkeypatch.setattr(views, "shrunk", lambda *_: pytest.fail("shrunk again"))
    assert same(run(kept(folder, tmp_path)), run(first))


SLOWLY = """
import hashlib, sys, time
from resnet48 import cache, data, views
from resnet48.options import TrainSettings
count, real = 0, views.shrunk
def shrunk(*given):
    global count
    count += 1
    time.sleep(0.05)
    return real(*given)
views.shrunk = shrunk
config = TrainSettings(image_dir=sys.argv[1], image_size=8, cache_dir=sys.argv[2], train_cache=True, num_workers=1)
train = cache.for_training(data.load(config), config).train
print(count, hashlib.sha256(train.images.pixels.tobytes()).hexdigest())
"""


def test_of_processes_that_need_them_at_once_one_makes_them_and_the_others_wait(folder, tmp_path):
    started = [subprocess.Popen([sys.executable, "-c", SLOWLY, str(folder), str(tmp_path / "cache")], cwd=ROOT,
                                stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts, digests = zip(*(process.communicate(timeout=120)[0].splitlines()[-1].split() for process in started))
    assert sorted(map(int, counts)) == [0, 0, len(images(folder).train)]
    assert len(set(digests)) == 1


def test_batches_from_kept_images_are_the_same_for_any_number_of_workers(folder, tmp_path):
    assert same(run(kept(folder, tmp_path), workers=0), run(kept(folder, tmp_path, workers=2), workers=2))


def test_without_the_setting_nothing_is_kept(folder, tmp_path):
    found = images(folder)
    assert cache.for_training(found, TrainSettings(cache_dir=str(tmp_path / "cache"))) is found
    assert not os.path.exists(tmp_path / "cache")


def test_a_changed_file_makes_all_anew(folder, tmp_path):
    before = np.array(kept(folder, tmp_path).train.images[3])
    path = images(folder).train.images[3]
    Image.new("RGB", (40, 30), (1, 2, 3)).save(path)
    after = kept(folder, tmp_path).train.images[3]
    assert np.abs(after.astype("int64") - (1, 2, 3)).max() <= 2 and after.mean() < before.mean()


@pytest.mark.parametrize("content", [b"no image", "torn"])
def test_an_unreadable_image_is_found_out_in_training_as_without_a_cache(folder, tmp_path, content):
    path = images(folder).train.images[3]
    with open(path, "rb") as file:
        whole = file.read()
    with open(path, "wb") as file:
        file.write(whole[:len(whole) // 2] if content == "torn" else content)
    said = []
    run(kept(folder, tmp_path), report=said.append)
    assert said == [f"skipped the unreadable image {path} (1 so far)"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="^cannot write .*train.npy: No space left on device$"):
        kept(folder, tmp_path)
    assert [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_the_setting_without_a_folder_is_an_error_that_says_so():
    with pytest.raises(UserError, match="--train_cache needs --cache_dir"):
        data.load(TrainSettings(train_cache=True))
