"""What the tests of the training loop share: a small image set and runs of a dozen steps in this process."""

import csv
import os
import signal
from typing import NamedTuple

import numpy as np
import paddle

from resnet48.images import datasets
from resnet48.nets.supernet import ResNet48, Supernet
from resnet48.space.arch import FULL
from resnet48.system.errors import Stopped
from resnet48.system.options import StandaloneSettings
from resnet48.training import checkpoint, loop, objectives, recipes, samplers

SPACE = FULL.narrowed((2, 3, 4, 5), 1)
CLASSES = ("ant", "bee", "cat")
#: 24 images in batches of 4: 6 steps per epoch, 12 in all.
SETTINGS = StandaloneSettings(batch_size=4, max_epoch=2, warmup=0.5, lr=1.0, weight_decay=1e-3, log_freq=2,
                              num_workers=0,
                            eval_freq=1, seed=3)
STEPS, PER_EPOCH = 12, 6


class Kind(NamedTuple):
    """What is trained: make(num_classes) gives the net, archs(step) what a step trains."""

    make: object
    objective: object
    archs: object
    roles: tuple = ("largest", "smallest", "random")

    def stages(self):
        """The recipe of one stage."""
        return [recipes.Stage(lambda seed, moment: self.archs(moment.step), self.objective, self.roles)]


def at(step, steps=STEPS, epoch=0.0, warming_up=False):
    """The moment of a step."""
    return samplers.Moment(step, steps, epoch, warming_up)


def sandwich_archs(step):
    return samplers.sandwich(SPACE, SETTINGS.seed, at(step, STEPS), 3)


def smallest_then_random(step):
    """No largest one, and at first few blocks: most parameters have no gradient for some steps."""
    return [("random", SPACE.smallest())] if step < 4 else samplers.uniform(SPACE, SETTINGS.seed, at(step, STEPS), 1)


def uniform_teacher(images):
    return paddle.zeros([images.shape[0], len(CLASSES)])


def fixed_teacher(teacher=uniform_teacher):
    objective = objectives.FixedTeacher()
    objective.teacher = teacher
    return objective


STANDALONE = Kind(lambda classes: ResNet48(SPACE.smallest(), classes), objectives.Standalone(), lambda step: [],
                  ("loss",))
SANDWICH = Kind(lambda classes: Supernet(SPACE, classes), objectives.InPlaceDistillation(), sandwich_archs)
FIXED_TEACHER = Kind(lambda classes: Supernet(SPACE, classes), fixed_teacher(), smallest_then_random)


def images(count=24, classes=CLASSES, workers=0):
    rng = np.random.default_rng(0)

    def split(size):
        return datasets.Split(rng.integers(0, 256, (size, 20, 18)).astype("uint8"), np.arange(size) % len(classes))

    return datasets.ImageSet("test images", classes, split(count), split(9), 16, workers=workers)


def fit(kind, settings, stop_after=None, validate=None, image_set=None, build_first=False, number=signal.SIGTERM):
    """Train in this process; returns the net's values, or None where a signal stopped it after `stop_after` steps."""
    if build_first:
        kind.make(5)
    paddle.seed(0)
    net, asked = kind.make(len(CLASSES)), []

    def archs(step):
        if step + 1 == stop_after and not asked:
            asked.append(step)
            os.kill(os.getpid(), number)
        return kind.archs(step)

    try:
        loop.fit(net, kind._replace(archs=archs).stages(), image_set or images(workers=settings.num_workers), settings,
                 validate)
    except Stopped:
        assert asked
        return None
    assert not asked
    return values(net)


def losses_of_step(objective, net, archs, images, labels, moment=at(0)):
    """Leave the gradients of one step in the net; the losses by role."""
    gradients = objectives.Gradients(net)
    objective.step(net, archs, images, labels, gradients, moment)
    return gradients.means()


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
