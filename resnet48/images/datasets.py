"""Image sets: a folder in ImageNet's layout, a public set or the built-in digits, and decoding for evaluation.

Images stay uint8 [N, 3, S, S] until they are on the device; `normalize` is the first thing a step does.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import paddle
import paddle.nn.functional as F
from PIL import Image

from ..system import files
from ..system.errors import UserError
from ..system.options import TrainSettings
from ..system.runtime import log_main, log_rank, progress
from . import folder, public_sets, transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on the scale 0..1
DIGITS_SIZE, DIGITS_VALIDATION = 32, 360


class BadImage(UserError):
    """An image file that cannot be decoded."""


@dataclass(frozen=True)
class Split:
    """Images and labels. images: paths, or uint8 arrays [H, W] or [H, W, 3]; labels: int64 [N].

    of: the public set that they are of; empty for files and for the built-in digits.
    """

    images: Sequence[str] | np.ndarray
    labels: np.ndarray
    of: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def encoded_image(self, index: int) -> transforms.EncodedImage:
        """The image, not yet decoded. Raises one of `transforms.UNREADABLE` for a file that is no image."""
        image = self.images[index]
        return transforms.read_image(image) if isinstance(image, str) else transforms.from_array(image)

    def name(self, index: int) -> str:
        """What a message calls the image: its path, if it has one."""
        image = self.images[index]
        return image if isinstance(image, str) else f"{self.of or 'built-in digit'} {index}"

    def names_digest(self) -> str:
        """A digest of the file names and class folders in order, independent of where the folder lies.

        Of a public set, whose images have no names, a digest of pixels and labels.
        """
        if self.of:
            digest = hashlib.sha256(self.labels.tobytes())
            digest.update(np.ascontiguousarray(self.images))
            return digest.hexdigest()[:16]
        names = (os.path.join(*image.split(os.sep)[-2:]) for image in self.images if isinstance(image, str))
        return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class ImageSet:
    """A training and a validation split over the same classes, how they are shown and how their files are read.

    size: height and width in pixels; crop_scale: smallest part of the area that a training crop takes; flip: whether a
    mirrored image keeps its label; augment: what training and evaluation see, a name in `transforms.AUGMENTATIONS`.
    workers: processes that decode training images (0: none), threads that decode others; skip_bad: leave unreadable
    validation and calibration images out; cache_dir: the folder that keeps decoded images, or None to keep none.
    shown: a dictionary for what training sees of each image, where several nets are trained on the same; else None.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    size: int
    crop_scale: float = 0.08
    flip: bool = True
    workers: int = 1
    skip_bad: bool = False
    cache_dir: str | None = None
    augment: str = "crop"
    shown: dict | None = None

    @property
    def whole(self) -> bool:
        """Whether evaluation sees the whole image, as `decode` takes it."""
        return transforms.AUGMENTATIONS[self.augment].whole


def load(image_dir: str | None = None, size: int | None = None, crop_scale: float | None = None, workers: int = 1,
         skip_bad: bool = False, cache_dir: str | None = None, dataset: str | None = None,
         dataset_dir: str | None = None, augment: str | None = None, train_images: int | None = None) -> ImageSet:
    """The images below `image_dir`, in train/<class>/ and val/<class>/, or of a `dataset` of `options.DATASETS`.

    Without either the built-in handwritten digits. dataset_dir: as for `public_sets.read`. size, crop_scale, augment:
    as in `ImageSet`; None means 224, 0.08 and "crop", for the digits 32 and 0.6, for a public set 32 and "shift".
    train_images: as for `first_images`. No image of a folder is read yet.
    Raises `UserError` for a folder of another layout, missing or damaged files, a `cache_dir` that cannot be written,
    and arguments that exclude each other.
    """
    if image_dir and dataset:
        raise UserError(f"--image_dir {image_dir} and --dataset {dataset} are two sources of images; give one of them")
    if dataset_dir and dataset in (None, "digits"):
        raise UserError("--dataset_dir holds the files of a --dataset that is not built in: "
                        f"{', '.join(public_sets.SETS)}")
    if cache_dir:
        files.require_writable(os.path.join(cache_dir, "images"))
    if image_dir:
        images = _folder(image_dir, size or 224)
    else:
        images = _digits(size or DIGITS_SIZE) if dataset in (None, "digits") else _public(dataset, dataset_dir, size)
    augment = augment or images.augment
    if crop_scale is not None and augment != "crop":
        raise UserError(f"--crop_scale is of --augment crop, not of {augment}")
    return replace(images, crop_scale=images.crop_scale if crop_scale is None else crop_scale, workers=workers,
                   skip_bad=skip_bad, cache_dir=cache_dir, augment=augment,
                   train=first_images(images.train, train_images) if train_images else images.train)


def for_settings(settings: TrainSettings) -> ImageSet:
    """The images that the settings of a training name; raises as `load` does."""
    return load(settings.image_dir, settings.image_size, settings.crop_scale, settings.num_workers,
                settings.skip_bad_images, settings.cache_dir, settings.dataset, settings.dataset_dir, settings.augment,
                settings.train_images)


def first_images(split: Split, count: int) -> Split:
    """The first `count` images, as many of each class as possible, in their order: a pure function.

    Raises `UserError` where there are fewer.
    """
    if count > len(split):
        raise UserError(f"--train_images {count} is more than the {len(split)} training images that there are")
    place_in_class = np.zeros(len(split), "int64")
    for label in np.unique(split.labels):
        own = np.flatnonzero(split.labels == label)
        place_in_class[own] = np.arange(len(own))
    return _part(split, np.sort(np.lexsort((split.labels, place_in_class))[:count]))


def subset(images: ImageSet, train: int, val: int) -> ImageSet:
    """The same set with only so many images in each split, spread over the classes and kept nowhere: for a dry run."""
    def part(split, count):
        return _part(split, balanced_sample(split.labels, count, seed=0))

    return replace(images, train=part(images.train, train), val=part(images.val, val), cache_dir=None,
                   shown=None)


def _part(split, chosen):
    return Split([split.images[index] for index in chosen], split.labels[chosen], split.of)


def _folder(root, size):
    train, val, left_out = folder.images_by_class(root)
    if note := left_out.note(root):
        log_main(f"note: {note}")
    return ImageSet(os.path.abspath(root), tuple(train), _split(train), _split(val), size)


def _split(classes):
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    return Split(list(itertools.chain(*classes.values())), labels.astype("int64"))


def _public(name, folder, size):
    title = public_sets.SETS[name].title
    train, val = (Split(*split, title) for split in public_sets.read(name, folder).values())
    return ImageSet(title, public_sets.SETS[name].classes, train, val, size or public_sets.SIZE, augment="shift")


def _digits(size):
    """Scikit-learn's 1,797 handwritten digits (UCI, 8 x 8), drawn 28 pixels wide in the middle of a 37-pixel square.

    The evaluation transform to 32 pixels then shows the whole digit. A fixed 360 of them are for validation.
    """
    from sklearn.datasets import load_digits  # here: only the built-in set needs it, and it is slow to import

    raw = load_digits()
    small = (raw.images * (255 / 16)).astype("uint8")
    drawn = np.zeros((len(small), 37, 37), "uint8")
    for canvas, digit in zip(drawn, small):
        canvas[4:32, 4:32] = np.asarray(Image.fromarray(digit).resize((28, 28), Image.BILINEAR))
    order = np.random.default_rng(0).permutation(len(small))  # not the user's seed: the split is part of the data
    val, train = order[:DIGITS_VALIDATION], order[DIGITS_VALIDATION:]
    labels = raw.target.astype("int64")
    return ImageSet("built-in digits", tuple("0123456789"), Split(drawn[train], labels[train]),
                    Split(drawn[val], labels[val]), size, crop_scale=0.6, flip=False)


# --- one image --------------------------------------------------------------------------------------------------------

def transformed(split: Split, index: int, make: Callable, *arguments) -> object:
    """`make(image, *arguments)` for one image, not yet decoded; raises `BadImage` naming the file if it cannot be
    decoded.
    """
    try:
        return make(split.encoded_image(index), *arguments)
    except transforms.UNREADABLE as error:
        raise BadImage(f"cannot read the image {split.name(index)}: {error}") from error


def normalize(images: paddle.Tensor) -> paddle.Tensor:
    """uint8 [N, 3, S, S] on any device to float32, normalised by ImageNet's mean and standard deviation."""
    mean = paddle.to_tensor([255 * value for value in MEAN], "float32")
    variance = paddle.to_tensor([(255 * value) ** 2 for value in STD], "float32")
    # The batch-norm kernel, because broadcasting is far slower on a CPU.
    return F.batch_norm(images.astype("float32"), mean, variance, training=False, epsilon=0.0)


# --- images that are decoded once -------------------------------------------------------------------------------------

def in_threads(do: Callable[[int], object], count: int, threads: int, what: str) -> None:
    """Call `do(place)` for every place below `count`, with progress. Decoding releases the interpreter's lock."""
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        for _ in progress(pool.map(do, range(count)), count, what):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # an error or a signal does not wait for all that is left


def decode(split: Split, indices: Sequence[int], size: int, threads: int = 1, skip_bad: bool = False,
           what: str = "images", into: np.ndarray | None = None,
           whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The given images under the evaluation transform, and their labels: (uint8 [n, 3, size, size], int64 [n]).

    what: how messages name the images. into: an array of that shape to fill, such as a memory-mapped one. whole: under
    `transforms.whole_transform` instead.
    Raises `BadImage` for the first unreadable one; with skip_bad, leaves such images out and logs it.
    """
    pixels = np.empty((len(indices), 3, size, size), "uint8") if into is None else into
    good, view = np.ones(len(indices), bool), transforms.whole_transform if whole else transforms.eval_transform

    def one(place):
        try:
            pixels[place] = transformed(split, indices[place], view, size)
        except BadImage as error:
            if not skip_bad:
                raise BadImage(f"{error} (--skip_bad_images leaves such images out)") from error
            good[place] = False

    in_threads(one, len(indices), threads, f"decoding {what}")
    if not good.all():
        skipped = [split.name(index) for index, fine in zip(indices, good) if not fine]
        log_rank(f"left out {len(skipped)} unreadable {what}, the first is {skipped[0]}")
        pixels = pixels[good]
    return pixels, split.labels[np.asarray(indices, "int64")][good]


def balanced_sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of `count` images (all, if there are fewer), as many of each class as possible: a pure function.

    Which classes get one more than others (or, with fewer images than classes, one at all) is drawn too.
    """
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    order = rng.permutation(len(by_class))
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*(by_class[place] for place in order)))
    return np.array([index for index in itertools.islice((i for i in rounds if i is not None), count)], "int64")
