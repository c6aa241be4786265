"""Accuracy of a subnet: calibrate its batch-norm statistics, then count correct answers on validation images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import paddle
import paddle.nn.functional as F

from ..images import cache, datasets
from ..images.datasets import normalize
from ..nets import layers, norm_statistics
from ..nets.supernet import ResNet48, Supernet
from ..space.arch import ArchConfig, SearchSpace
from ..system import runtime
from ..system.errors import UserError
from . import counts

VALIDATED_RANDOM_ARCHS = 2


@paddle.no_grad()
def calibrate(net: Supernet, arch: ArchConfig, pixels: np.ndarray) -> norm_statistics.Statistics:
    """Batch-norm statistics of one subnet, exact over all of `pixels` (uint8 [N, 3, S, S]), layer after layer.

    The images are training images under the evaluation transform: a layer's mean and variance are those of the whole
    set, given the exact statistics of the layers before. (Recomputing the statistics of a subnet: arXiv 1903.05134,
    section 3.2.) They go through the net in parts, see `norm_statistics`; 512 of 224 x 224 pixels need 2.6 GB at most.
    """
    statistics = norm_statistics.Statistics()
    norm_statistics.forward(net.path(arch), norm_statistics.in_parts(pixels, normalize), statistics.keep)
    return statistics


@paddle.no_grad()
def count(forward: Callable[[paddle.Tensor], paddle.Tensor], pixels: np.ndarray, labels: np.ndarray,
          batch_size: int) -> np.ndarray:
    """What `counts.COLUMNS` names, summed over images: int64 [columns].

    forward: float32 [N, 3, S, S] to logits [N, classes]; pixels: uint8 [N, 3, S, S]; labels: int64 [N].
    """
    total, half = np.zeros(len(counts.COLUMNS), "int64"), counts.first_half(labels)
    for first in range(0, len(labels), batch_size):
        part = slice(first, first + batch_size)
        logits = forward(normalize(paddle.to_tensor(pixels[part])))
        total += tally(*answers(logits, paddle.to_tensor(labels[part])), paddle.to_tensor(half[part])).numpy()
    return total


def count_correct(forward: Callable[[paddle.Tensor], paddle.Tensor], pixels: np.ndarray, labels: np.ndarray,
                  batch_size: int) -> np.ndarray:
    """How many images have their label as the first, and among the first five, of the logits: int64 [2].

    Arguments as for `count`.
    """
    return count(forward, pixels, labels, batch_size)[:2]


def answers(logits: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(which of the five best classes is the label: bool [N, 5], cross-entropy to it without smoothing: float32 [N]).

    logits: float32 [N, classes]; labels: int64 [N]. With fewer than five classes, the five best are all.
    """
    best = paddle.topk(logits, min(5, logits.shape[1]), axis=1)[1] == labels.unsqueeze(1)
    return best, F.cross_entropy(logits, labels, reduction="none").reshape([-1])


def tally(best: paddle.Tensor, losses: paddle.Tensor, first: paddle.Tensor) -> paddle.Tensor:
    """What `counts.COLUMNS` names, summed over the images: an int64 tensor [..., columns].

    best: bool [..., N, 5], losses: float32 [..., N], of `answers`; first: int64 [N], of `counts.first_half`.
    """
    losses = paddle.where(losses < counts.LARGEST, losses.clip(min=0), paddle.full_like(losses, counts.LARGEST))
    units, first = (losses.astype("float64") / counts.UNIT).round().astype("int64"), first.expand(losses.shape)
    top1, top5 = best[..., 0].astype("int64"), best.astype("int64").sum(axis=-1)
    return paddle.stack([top1, top5, units, first, first * top1, first * units], axis=-1).sum(axis=-2)


@paddle.no_grad()
def calibrate_alone(net: ResNet48, pixels: np.ndarray | None) -> None:
    """Give a standalone net running statistics that are exact over `pixels` (uint8 [N, 3, S, S]).

    None leaves those that it has.
    """
    if pixels is None:
        return
    statistics = norm_statistics.Statistics()
    norm_statistics.forward(net.path(), norm_statistics.in_parts(pixels, normalize), statistics.keep)
    statistics.store()


def subnet(net: Supernet, arch: ArchConfig,
           calibration: np.ndarray | None) -> Callable[[paddle.Tensor], paddle.Tensor]:
    """A function from images to the logits of one subnet of a net in evaluation mode, as `count` takes it.

    calibration: uint8 [N, 3, S, S] for `calibrate`, or None to inherit the running statistics inside the net.
    """
    norm = layers.batch_norm if calibration is None else calibrate(net, arch, calibration).apply
    return lambda x: net(x, arch, norm=norm)


def one_by_one(net: Supernet, archs: Iterable[ArchConfig], calibration: np.ndarray | None, pixels: np.ndarray,
               labels: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the counts [columns] of each arch, each run on its own: the reference that faster ways are tested against.

    calibration: as for `subnet`; pixels, labels, batch_size: as for `count`.
    """
    net.eval()
    for arch in archs:
        yield count(subnet(net, arch, calibration), pixels, labels, batch_size)


@dataclass(frozen=True)
class Sample:
    """Which images an evaluation uses, chosen once: validation, calibration are int64 indices into the two splits.

    Both are balanced over the classes, so that every chunk of the validation images is a fair sample.
    """

    images: datasets.ImageSet
    validation: np.ndarray
    calibration: np.ndarray

    @classmethod
    def of(cls, images: datasets.ImageSet, val_images: int | None, calib_images: int, seed: int) -> "Sample":
        """A pure function of the arguments. val_images: None for all; calib_images: 0 to inherit statistics.

        Raises `UserError` for so few calibration images that statistics of the last stage cannot be computed.
        """
        count = len(images.val) if val_images is None else val_images
        calibration = datasets.balanced_sample(images.train.labels, calib_images, seed)
        if len(calibration):
            _require_enough(len(calibration), images.size)
        return cls(images, datasets.balanced_sample(images.val.labels, count, seed), calibration)

    @cached_property
    def validation_images(self) -> tuple[np.ndarray, np.ndarray]:
        """The validation images and their labels, decoded once: (uint8 [N, 3, S, S], int64 [N]).

        Raises `datasets.BadImage`; fewer than asked for where unreadable ones are left out.
        """
        return cache.decoded(self.images, self.images.val, self.validation, "validation images")

    @cached_property
    def calibration_images(self) -> np.ndarray | None:
        """The calibration images, decoded once: uint8 [N, 3, S, S], or None where there are to be none.

        Raises `datasets.BadImage`, and `UserError` where too few are readable.
        """
        if not len(self.calibration):
            return None
        pixels = cache.decoded(self.images, self.images.train, self.calibration, "calibration images")[0]
        _require_enough(len(pixels), self.images.size)  # unreadable ones may have been left out
        return pixels

    @property
    def calibration_part(self) -> int | None:
        """How many of the calibration images go through a net at once, None where it is all of them: a pure function
        of their number and size, see `norm_statistics.images_per_part`, that shows in the last digits of statistics.
        """
        part = norm_statistics.images_per_part(self.images.size)
        return part if part < len(self.calibration) else None

    def fingerprints(self, folder: str | None = None) -> dict[str, str | None]:
        """What the validation and the calibration images depend on; folder: as for `cache.fingerprint`."""
        return {"validation": cache.fingerprint(self.images, self.images.val, self.validation, folder),
                "calibration": cache.fingerprint(self.images, self.images.train, self.calibration, folder)
                if len(self.calibration) else None}

    def require(self, digests: dict[str, str | None]) -> None:
        """Raise `UserError` where `digests`, earlier fingerprints by split, are of other images."""
        found = self.fingerprints()
        for split in found.keys() & digests.keys():
            if found[split] != digests[split]:
                raise UserError(f"these are not the {split} images of the evaluation: other files, labels, image size "
                                "or number of images, or another library that resizes them")


def _require_enough(count, image_size):
    layers.require_values(count, image_size, f"{count} calibration image(s)",
                          "more --calib_images (and training images), or a larger --image_size")


def calibration_images(images: datasets.ImageSet, count: int, seed: int) -> np.ndarray | None:
    """uint8 [count, 3, S, S], the calibration images of a `Sample`; None for a count of 0."""
    return Sample.of(images, 0, count, seed).calibration_images


@dataclass(frozen=True)
class Validation:
    """This rank's share of the validation images, decoded. pixels: uint8 [n, 3, S, S]; labels: int64 [n]."""

    pixels: np.ndarray
    labels: np.ndarray
    batch_size: int

    @classmethod
    def of(cls, images: datasets.ImageSet, batch_size: int) -> "Validation":
        """Raises `datasets.BadImage`."""
        share = range(runtime.rank(), len(images.val), runtime.world_size())
        return cls(*cache.decoded(images, images.val, share, "validation images"), batch_size)

    def accuracy(self, forward: Callable[[paddle.Tensor], paddle.Tensor]) -> float:
        """Top-1 in percent over all ranks' shares."""
        counts = count_correct(forward, self.pixels, self.labels, self.batch_size)
        correct, images = runtime.all_reduce_sum([counts[0], len(self.labels)])
        return 100 * correct / images


def validate_standalone(images: datasets.ImageSet, batch_size: int) -> Callable[[ResNet48], dict[str, float]]:
    """A `validate` for `loop.fit`: the accuracy of a standalone net with its running statistics."""
    validation = Validation.of(images, batch_size)

    def validate(net):
        net.eval()
        return {"val": validation.accuracy(net)}

    return validate


def validate_supernet(images: datasets.ImageSet, space: SearchSpace, calib_images: int, seed: int,
                      batch_size: int) -> Callable[[Supernet], dict[str, float]]:
    """A `validate` for `loop.fit`: accuracies of the largest, the smallest and a few fixed archs of the space.

    Each is calibrated on the images that `calibration_images` gives; with calib_images of 0 it inherits the statistics.
    """
    rng = np.random.default_rng(0)
    archs = {"largest": space.largest(), "smallest": space.smallest(),
             **{f"random{i + 1}": space.sample(rng) for i in range(VALIDATED_RANDOM_ARCHS)}}
    validation, calibration = Validation.of(images, batch_size), calibration_images(images, calib_images, seed)

    def validate(net):
        net.eval()
        return {name: validation.accuracy(subnet(net, arch, calibration)) for name, arch in archs.items()}

    return validate
