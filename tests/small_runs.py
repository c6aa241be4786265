"""What the tests of the training loop share: a small image set and runs of a dozen steps in this process."""

import csv
import os
import signal
from typing import NamedTuple

import numpy as np
import paddle

from resnet48 import checkpoint, data, objectives, sampling, train
from resnet48.arch import FULL
from resnet48.config import StandaloneConfig
from resnet48.models import ResNet48, Supernet

SPACE = FULL.narrowed((2, 3, 4, 5), 1)
CLASSES = ("ant", "bee", "cat")
#: 24 images in batches of 4: 6 steps per epoch, 12 in all.
SETTINGS = StandaloneConfig(batch_size=4, max_epoch=2, warmup=0.5, lr=1.0, weight_decay=1e-3, log_freq=2, num_workers=0,
                            eval_freq=1, seed=3)
STEPS, PER_EPOCH = 12, 6


class Kind(NamedTuple):
    """What is trained: make(num_classes) gives the net."""

    make: object
    objective: object
    archs_of_step: object


def sandwich_archs(step):
    return sampling.sandwich(SPACE, SETTINGS.seed, step, 3)


def smallest_then_random(step):
    """No largest one, and at first few blocks: most parameters have no gradient for some steps."""
    return [("random", SPACE.smallest())] if step < 4 else sampling.uniform(SPACE, SETTINGS.seed, step, 1)


def uniform_teacher(images):
    return paddle.zeros([images.shape[0], len(CLASSES)])


STANDALONE = Kind(lambda classes: ResNet48(SPACE.smallest(), classes), objectives.standalone, lambda step: [])
SANDWICH = Kind(lambda classes: Supernet(SPACE, classes), objectives.sandwich, sandwich_archs)
DEMO = Kind(lambda classes: Supernet(SPACE, classes), objectives.distil_from(uniform_teacher), smallest_then_random)


def images(count=24, classes=CLASSES, workers=0):
    rng = np.random.default_rng(0)

    def split(size):
        return data.Split(rng.integers(0, 256, (size, 20, 18)).astype("uint8"), np.arange(size) % len(classes))

    return data.ImageSet("test images", classes, split(count), split(9), 16, workers=workers)


def fit(kind, config, stop_after=None, watch=None, image_set=None, build_first=False, number=signal.SIGTERM):
    """Train in this process; returns the net's values, or None where a signal stopped it after `stop_after` steps."""
    if build_first:
        kind.make(5)
    paddle.seed(0)
    net, asked = kind.make(len(CLASSES)), []

    def archs_of_step(step):
        if step + 1 == stop_after and not asked:
            asked.append(step)
            os.kill(os.getpid(), number)
        return kind.archs_of_step(step)

    try:
        train.fit(net, kind.objective, archs_of_step, image_set or images(workers=config.num_workers), config, watch)
    except SystemExit as ended:
        assert ended.code == 0 and asked
        return None
    assert not asked
    return values(net)


def values(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def checkpoints(folder):
    """Steps of the checkpoints that are there."""
    return sorted(int(name.removeprefix("step-")) for name in os.listdir(os.path.join(folder, "checkpoints")))


def newest(folder):
    return checkpoint.newest(str(folder))


def table(folder):
    """metrics.csv as a list of dictionaries."""
    with open(os.path.join(folder, "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


def content(folder):
    """Every file below a folder with its bytes."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                found[os.path.relpath(os.path.join(parent, name), folder)] = file.read()
    return found
