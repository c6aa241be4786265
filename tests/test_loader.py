import multiprocessing
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from commands import PATIENCE
from PIL import Image

from resnet48.images import datasets, loader


def numbered(count=24, size=8, workers=0):
    """Training images of random pixels whose labels number them."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 10)).astype("uint8")
    return datasets.ImageSet("test images", ("only",), datasets.Split(pixels, np.arange(count)), None, size,
                             workers=workers)


def on_disk(folder, count, broken=()):
    """The same from PNG files, some of them unreadable."""
    images = numbered(count)
    paths = [str(folder / f"{i}.png") for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(images.train.images[i]).save(path)
        if i in broken:
            with open(path, "w") as file:
                file.write("no image")
    return datasets.ImageSet("test images", ("only",), datasets.Split(paths, np.arange(count)), None, 8)


def run(images, first=0, last=6, batch_size=4, seed=0, rank=0, ranks=1, workers=0, report=lambda text: None):
    """All batches as (pixels [B, 3, S, S], labels [B]), stacked over the steps."""
    images = replace(images, workers=workers)
    taken = list(loader.batches(images, first, last, batch_size, seed, rank, ranks, report))
    return tuple(np.stack([batch[i].numpy() for batch in taken]) for i in (0, 1))


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other))


# ---- what a step sees

def test_a_batch_is_uint8_images_and_int64_labels():
    pixels, labels = run(numbered())
    assert pixels.dtype == np.uint8 and pixels.shape == (6, 4, 3, 8, 8)
    assert labels.dtype == np.int64 and labels.shape == (6, 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    assert same(run(numbered(), last=14, workers=workers), run(numbered(), last=14))


def test_what_is_kept_for_the_next_net_is_what_it_would_see_and_is_not_made_again(monkeypatch):
    alone = {seed: run(numbered(), last=14, seed=seed) for seed in (0, 1)}
    images, made = replace(numbered(), shown={}), []
    transform = loader.transformed
    monkeypatch.setattr(loader, "transformed", lambda *given: made.append(1) or transform(*given))
    for seed in (0, 1, 0, 1):
        assert same(run(images, last=14, seed=seed), alone[seed])
    assert len(made) == 2 * 14 * 4
    assert not datasets.subset(replace(images, val=images.train), 8, 8).shown  # which numbers its images anew


def test_no_more_is_kept_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(loader, "MOST_SHOWN", 10 * 3 * 8 * 8)
    images = replace(numbered(), shown={})
    assert same(run(images, last=14), run(numbered(), last=14)) and len(images.shown) <= 11


def test_batches_depend_on_the_seed_and_on_nothing_else():
    images = numbered()
    first = run(images)
    np.random.seed(3)
    assert same(run(images), first)
    other = run(images, seed=1)
    assert not np.array_equal(other[1], first[1])
    crops = [dict(zip(labels.flat, pixels.reshape(-1, 3, 8, 8))) for pixels, labels in (first, other)]
    assert not any(np.array_equal(crops[0][image], crops[1][image]) for image in range(24))


def test_every_epoch_has_its_own_order_and_its_own_crops():
    pixels, labels = run(numbered(), last=12)
    pixels, labels = pixels.reshape(2, 24, 3, 8, 8), labels.reshape(2, 24)
    assert sorted(labels[0]) == sorted(labels[1]) == list(range(24))
    assert not np.array_equal(labels[0], labels[1])
    places = labels.argsort(axis=1)
    assert not any(np.array_equal(pixels[0, a], pixels[1, b]) for a, b in zip(*places))


def test_ranks_share_out_what_one_process_sees_without_repeats():
    images = numbered(26)  # two are left over
    whole = run(images, last=8, batch_size=12)
    parts = [run(images, last=8, batch_size=4, rank=rank, ranks=3, workers=rank) for rank in range(3)]
    assert same([np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1)], whole)
    for epoch in whole[1].reshape(4, 24):
        assert len(set(epoch)) == 24


@pytest.mark.parametrize("first", [1, 6, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_starting_at_a_step_gives_the_batches_of_running_through(first, workers):
    through = run(numbered(), last=13)
    assert same(run(numbered(), first, last=13, workers=workers), [part[first:] for part in through])


def test_nothing_is_left_to_do_at_the_last_step():
    assert list(loader.batches(numbered(workers=2), 6, 6, 4, 0, 0, 1, print)) == []


# ---- worker processes

def test_stopping_early_ends_the_workers():
    found = loader.batches(numbered(workers=2), 0, 10 ** 6, 4, 0, 0, 1, print)
    next(found)
    assert len(multiprocessing.active_children()) == 2
    found.close()
    assert multiprocessing.active_children() == []


def test_an_interrupt_on_the_keyboard_is_left_to_the_main_process():
    found = loader.batches(numbered(workers=1), 0, 10 ** 6, 4, 0, 0, 1, print)
    next(found)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(worker.pid, number)
    for _ in range(20):
        next(found)
    found.close()


WITH_A_KILLED_WORKER = """
import multiprocessing, os, signal, time
from resnet48.images import datasets, loader
from resnet48.system.errors import exit_on_user_error
from test_loader import numbered

def main():
    found = loader.batches(numbered(workers=2), 0, 10 ** 6, 4, 0, 0, 1, print)
    with loader.dead_workers_named():
        next(found)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        while True:
            next(found)

exit_on_user_error(main)
"""


@pytest.mark.slow
def test_a_worker_that_dies_is_one_clear_sentence():
    here = os.path.dirname(os.path.abspath(__file__))
    ended = subprocess.run([sys.executable, "-c", WITH_A_KILLED_WORKER], capture_output=True, text=True,
                           timeout=PATIENCE,
                           env={**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(here), here])})
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and re.match("error: a process that decodes training images has died.*--num_workers", said[0])


# ---- bad images

@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_once_counted_and_replaced_by_others(tmp_path, workers):
    images, said = on_disk(tmp_path, 12, broken=(3, 7, 8, 11)), []
    pixels, labels = run(images, last=6, workers=workers, report=said.append)
    assert not set(labels.flat) & {3, 7, 8, 11} and labels.shape == (6, 4)
    assert len(said) == 4 and [text.rsplit("(")[-1] for text in said] == [f"{i} so far)" for i in (1, 2, 3, 4)]
    for i in (3, 7, 8, 11):
        assert sum(f"skipped the unreadable image {tmp_path}/{i}.png " in text for text in said) == 1
    assert same(run(images, last=6), (pixels, labels))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", [(0, 2, 4), range(6, 12), range(12)], ids=["scattered", "in a row", "all"])
def test_too_many_unreadable_images_stop_the_training(tmp_path, monkeypatch, workers, broken):
    monkeypatch.setattr(loader, "BAD_IMAGES_ALLOWED", 2)
    with pytest.raises(datasets.BadImage,
                       match="^too many training images of test images are unreadable: [0-9]+ so far, "
                             "allowed are 2$"):
        run(on_disk(tmp_path, 12, broken), workers=workers)


def test_a_small_set_without_a_readable_image_stops_the_training(tmp_path):
    with pytest.raises(datasets.BadImage, match="unreadable: 4 so far"):
        run(on_disk(tmp_path, 4, range(4)))
