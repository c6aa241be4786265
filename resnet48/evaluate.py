"""How good a subnet is: batch-norm statistics of its own, then correct answers counted on the validation images."""

from dataclasses import dataclass

import numpy as np
import paddle

from . import cache, data, layers, runtime
from .data import normalize

WATCHED_RANDOM_ARCHS = 2


@paddle.no_grad()
def calibrate(net, arch, pixels):
    """Batch-norm statistics of one subnet, exact over all of `pixels` (uint8 [N, 3, S, S]), layer after layer.

    The images are training images under the evaluation transform, run as one batch: a layer's mean and variance are
    those of the whole set, given the exact statistics of the layers before. (Recomputing the statistics of a subnet:
    arXiv 1903.05134, section 3.2.)
    """
    statistics = layers.Statistics()
    net(normalize(paddle.to_tensor(pixels)), arch, norm=statistics.measure)
    return statistics


@paddle.no_grad()
def count_correct(forward, pixels, labels, batch_size):
    """How many images have their label as the first, and among the first five, of the logits: int64 [2].

    forward: float32 [N, 3, S, S] to logits [N, classes]; pixels: uint8 [N, 3, S, S]; labels: int64 [N].
    """
    counts = np.zeros(2, "int64")
    for first in range(0, len(labels), batch_size):
        part = slice(first, first + batch_size)
        logits = forward(normalize(paddle.to_tensor(pixels[part])))
        counts += hits(logits, paddle.to_tensor(labels[part])).numpy()
    return counts


def hits(logits, labels):
    """Top-1 and top-5 hits of a batch as an int64 tensor [2]; with fewer than five classes all of them are the top."""
    best = paddle.topk(logits, min(5, logits.shape[1]), axis=1)[1] == labels.unsqueeze(1)
    return paddle.stack([best[:, 0].astype("int64").sum(), best.astype("int64").sum()])


@paddle.no_grad()
def calibrate_alone(net, pixels):
    """Give a standalone net running statistics that are exact over `pixels` (uint8 [N, 3, S, S])."""
    statistics = layers.Statistics()
    net(normalize(paddle.to_tensor(pixels)), norm=statistics.measure)
    statistics.store()


def one_by_one(net, archs, calibration, pixels, labels, batch_size):
    """Yield the counts [2] of each arch, each run on its own: the plain reference for every faster way.

    calibration: uint8 training images for `calibrate`, or None to use the statistics inside the net.
    """
    net.eval()
    for arch in archs:
        norm = layers.batch_norm if calibration is None else calibrate(net, arch, calibration).apply
        yield count_correct(lambda x: net(x, arch, norm=norm), pixels, labels, batch_size)


@dataclass(frozen=True)
class Validation:
    """This rank's share of the validation images, decoded. pixels: uint8 [n, 3, S, S]; labels: int64 [n]."""

    pixels: np.ndarray
    labels: np.ndarray
    batch_size: int

    @classmethod
    def of(cls, images, config):
        share = range(runtime.rank(), len(images.val), runtime.ranks())
        return cls(*cache.decoded(images.val, share, images.size, config, "validation images"), config.batch_size)

    def accuracy(self, forward):
        """Top-1 in percent over all ranks' shares."""
        counts = count_correct(forward, self.pixels, self.labels, self.batch_size)
        correct, images = runtime.total([counts[0], len(self.labels)])
        return 100 * correct / images


def calibration_images(images, config):
    """uint8 [calib_images, 3, S, S]: a seeded sample of training images, as many of each class as possible."""
    chosen = data.balanced_sample(images.train.labels, config.calib_images, config.seed)
    return cache.decoded(images.train, chosen, images.size, config, "calibration images")[0]


def watch_standalone(images, config):
    """The `watch` of `train.fit` for one net on its own: its accuracy with the running statistics."""
    validation = Validation.of(images, config)

    def watch(net):
        net.eval()
        return {"val": validation.accuracy(net)}

    return watch


def watch_supernet(images, config, space):
    """The `watch` of `train.fit` for a supernet: the largest, the smallest and a few fixed archs, calibrated."""
    rng = np.random.default_rng(0)
    archs = {"largest": space.largest(), "smallest": space.smallest(),
             **{f"random{i + 1}": space.sample(rng) for i in range(WATCHED_RANDOM_ARCHS)}}
    validation, calibration = Validation.of(images, config), calibration_images(images, config)

    def watch(net):
        net.eval()
        accuracies = {}
        for name, arch in archs.items():
            norm = calibrate(net, arch, calibration).apply
            accuracies[name] = validation.accuracy(lambda x: net(x, arch, norm=norm))
        return accuracies

    return watch
