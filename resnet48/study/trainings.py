"""What a study trains and evaluates: one task at a time, in this process, with a result that is plain data."""

import csv
import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Sequence

from ..evaluation import accuracy, counts, evaluator, prefix_tree
from ..images import datasets
from ..nets.initial_weights import initialize
from ..nets.supernet import ResNet48, Supernet, zero_residuals
from ..space import space_file
from ..space.arch import ArchConfig
from ..space.arch_list import Entry
from ..system import config, files, runtime
from ..system.options import ImageSettings, SupernetSettings, TrainSettings
from ..training import checkpoint, loop, recipes

#: What says which images there are and how they are shown.
IMAGE_SETTINGS = (*(item.name for item in dataclasses.fields(ImageSettings)), "crop_scale", "train_images")
CALIBRATION_SEED = 0  # the same images for every supernet
TRIED_IMAGES = 2000  # training images on which learning rates are compared

_images = {}  # by the values of IMAGE_SETTINGS


def load_images(settings: TrainSettings) -> datasets.ImageSet:
    """The images of a training; the same object for the same settings."""
    which = _which(settings)
    if which not in _images:
        _images[which] = datasets.for_settings(settings)
    return _images[which]


def train_arch(arch: ArchConfig, settings: TrainSettings) -> dict:
    """Train one arch on its own, or go on with it; what came out, as plain data."""
    images = load_images(settings)
    _, accuracies = _fit(lambda: ResNet48(arch, len(images.classes)), recipes.standalone(settings), images, settings,
                         _validate(_which(settings), settings.batch_size))
    return {"top1": accuracies["val"], "val_images": len(images.val), **_of_training(settings)}


def train_supernet(settings: SupernetSettings) -> dict:
    """Train a supernet, or go on with it. No accuracy of any arch is looked at."""
    _fit_supernet(settings)
    return _of_training(settings)


def try_rate(settings: SupernetSettings) -> dict:
    """Train a supernet with a learning rate; its loss on training images, as plain data.

    loss: the mean cross-entropy in nats of the largest and the smallest net, calibrated, on TRIED_IMAGES of the
    training images under the evaluation transform. No validation image is looked at, and no other arch.
    """
    net, images = _fit_supernet(settings), load_images(settings)
    calibration = accuracy.calibration_images(images, settings.calib_images, CALIBRATION_SEED)
    pixels, labels = _tried(_which(settings))
    ends = {"largest": net.space.largest(), "smallest": net.space.smallest()}
    sums = accuracy.one_by_one(net, ends.values(), calibration, pixels, labels, settings.batch_size)
    column = counts.COLUMNS.index("cross_entropy")
    losses = {name: float(counts.in_nats(each)[column]) / len(labels) for name, each in zip(ends, sums)}
    return {"loss": sum(losses.values()) / len(losses), "losses": losses, **_of_training(settings)}


def evaluate(codes: Sequence[str], settings: SupernetSettings, val_images: int, folder: str, trained: bool) -> dict:
    """Counts of archs, by their codes, with the weights in `settings.save_dir` or, unless trained, with random ones.

    folder: of the evaluation's journal, which is removed when all is counted.
    """
    images, started = load_images(settings), time.perf_counter()
    if trained:
        found = checkpoint.load(settings.save_dir)
        net, digest = checkpoint.build_supernet(found), files.sha256_of(found.weights_file)
    else:
        runtime.seed_everything(settings.seed)
        net, digest = Supernet(space_file.of(settings), len(images.classes)), f"random {settings.init} {settings.seed}"
        initialize(net, settings.init)
    sample = _sample(_which(settings), val_images, settings.calib_images)
    archs = [ArchConfig.parse(code, net.space) for code in codes]
    entries = [Entry(code, code, arch) for code, arch in zip(codes, archs)]
    steps = prefix_tree.traversal(archs, net.split)
    journal = evaluator.open_journal(folder, digest, entries, steps, net, sample)
    sums, total = evaluator.evaluate_list(net, journal, steps, sample)
    shutil.rmtree(folder, ignore_errors=True)
    return {"images": total, "weights": digest, "archs": list(codes),
            "counts": {name: column.tolist() for name, column in zip(counts.COLUMNS, sums.T)},
            "seconds": time.perf_counter() - started}


@functools.cache
def _tried(which):
    images = _images[which]
    chosen = datasets.balanced_sample(images.train.labels, TRIED_IMAGES, seed=1)
    return datasets.decode(images.train, chosen, images.size, images.workers)


@functools.cache
def _validate(which, batch_size):
    return accuracy.validate_standalone(_images[which], batch_size)


@functools.cache
def _sample(which, val_images, calib_images):
    return accuracy.Sample.of(_images[which], val_images, calib_images, CALIBRATION_SEED)


def _which(settings):
    return tuple(getattr(settings, name) for name in IMAGE_SETTINGS)


def _fit_supernet(settings):
    """Train a supernet without a validation; the net."""
    images, space = load_images(settings), space_file.of(settings)
    net, _ = _fit(lambda: Supernet(space, len(images.classes)), recipes.supernet(settings, space), images, settings,
                  None)
    return net


def _fit(make, stages, images, settings, validate):
    loop.require_runnable(images, settings)
    runtime.seed_everything(settings.seed)  # before the net is made, which draws weights
    net = make()
    initialize(net, settings.init)
    if settings.zero_residuals:
        zero_residuals(net)
    return net, loop.fit(net, stages, images, settings, validate)


def _of_training(settings):
    values = {name: value for name, value in config.as_data(settings).items() if not name.endswith("_dir")}
    return {"seconds": _seconds(settings), "settings": values, "versions": runtime.versions()}


def _seconds(settings):
    """Seconds that all steps of a run have taken, whatever processes it has been interrupted into."""
    with open(os.path.join(settings.save_dir, "metrics.csv"), newline="") as file:
        rows, last, seconds = csv.DictReader(file), 0, 0.0
        for row in rows:
            seconds += (int(row["step"]) - last) * settings.batch_size / float(row["images_per_s"])
            last = int(row["step"])
    return seconds
