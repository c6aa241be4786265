"""Image sets: a folder in ImageNet's layout or the built-in handwritten digits, and decoding for evaluation.

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
from ..system.runtime import progress
from . import transforms

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on the scale 0..1
DIGITS_SIZE, DIGITS_VALIDATION = 32, 360


class BadImage(UserError):
    """An image file that cannot be decoded."""


@dataclass(frozen=True)
class Split:
    """Images and labels. images: paths, or uint8 arrays [H, W] or [H, W, 3]; labels: int64 [N]."""

    images: Sequence[str] | np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def encoded_image(self, index: int) -> transforms.EncodedImage:
        """The image, not yet decoded. Raises one of `transforms.UNREADABLE` for a file that is no image."""
        image = self.images[index]
        return transforms.read_image(image) if isinstance(image, str) else transforms.from_array(image)

    def name(self, index: int) -> str:
        """What a message calls the image: its path, if it has one."""
        image = self.images[index]
        return image if isinstance(image, str) else f"built-in digit {index}"

    def names_digest(self) -> str:
        """A digest of the file names and class folders in order, independent of where the folder lies."""
        names = (os.path.join(*image.split(os.sep)[-2:]) for image in self.images if isinstance(image, str))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageSet:
    """A training and a validation split over the same classes, how they are shown and how their files are read.

    size: height and width in pixels; crop_scale: smallest part of the area that a training crop takes; flip: whether a
    mirrored image keeps its label.
    workers: processes that decode training images (0: none), threads that decode others; skip_bad: leave unreadable
    validation and calibration images out; cache_dir: the folder that keeps decoded images, or None to keep none.
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


def load(image_dir: str | None = None, size: int | None = None, crop_scale: float | None = None, workers: int = 1,
         skip_bad: bool = False, cache_dir: str | None = None) -> ImageSet:
    """The images below `image_dir`, in train/<class>/ and val/<class>/, or the built-in handwritten digits for None.

    size, crop_scale: as in `ImageSet`; None means 224 and 0.08, for the digits 32 and 0.6. No image is read yet.
    Raises `UserError` for a folder of another layout, or a `cache_dir` that cannot be written.
    """
    if cache_dir:
        files.require_writable(os.path.join(cache_dir, "images"))
    images = _folder(image_dir, size or 224) if image_dir else _digits(size or DIGITS_SIZE)
    return replace(images, crop_scale=images.crop_scale if crop_scale is None else crop_scale, workers=workers,
                   skip_bad=skip_bad, cache_dir=cache_dir)


def subset(images: ImageSet, train: int, val: int) -> ImageSet:
    """The same set with only so many images in each split, spread over the classes and kept nowhere: for a dry run."""
    def part(split, count):
        chosen = balanced_sample(split.labels, count, seed=0)
        return Split([split.images[index] for index in chosen], split.labels[chosen])

    return replace(images, train=part(images.train, train), val=part(images.val, val), cache_dir=None)


def _folder(root, size):
    splits = {}
    for part in ("train", "val"):
        folder = os.path.join(root, part)
        if not os.path.isdir(folder):
            raise UserError(f"--image_dir {root} has no folder {part}/; it must hold train/<class>/ and val/<class>/")
        splits[part] = {entry.name: entry.path for entry in os.scandir(folder)
                        if entry.is_dir() and not entry.name.startswith(".")}
        if not splits[part]:
            raise UserError(f"{folder} holds no class folders")
    differing = sorted(splits["train"].keys() ^ splits["val"].keys())
    if differing:
        where = "train" if differing[0] in splits["train"] else "val"
        raise UserError(f"train/ and val/ in {root} must hold the same class folders; {len(differing)} differ, "
                        f"the first is {differing[0]!r}, only in {where}/")
    classes = tuple(sorted(splits["train"]))
    train, val = (_listed(splits[part], classes) for part in ("train", "val"))
    return ImageSet(os.path.abspath(root), classes, train, val, size)


def _listed(folders, classes):
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(entry.path for entry in os.scandir(folders[name])
                       if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."))
        if not found:
            raise UserError(f"{folders[name]} holds no images ({', '.join(EXTENSIONS)})")
        paths += found
        labels += [label] * len(found)
    return Split(paths, np.array(labels, "int64"))


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
           what: str = "images", into: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The given images under the evaluation transform, and their labels: (uint8 [n, 3, size, size], int64 [n]).

    what: how messages name the images. into: an array of that shape to fill, such as a memory-mapped one.
    Raises `BadImage` for the first unreadable one; with skip_bad, leaves such images out and logs it.
    """
    pixels = np.empty((len(indices), 3, size, size), "uint8") if into is None else into
    good = np.ones(len(indices), bool)

    def one(place):
        try:
            pixels[place] = transformed(split, indices[place], transforms.eval_transform, size)
        except BadImage as error:
            if not skip_bad:
                raise BadImage(f"{error} (--skip_bad_images leaves such images out)") from error
            good[place] = False

    in_threads(one, len(indices), threads, f"decoding {what}")
    if not good.all():
        skipped = [split.name(index) for index, fine in zip(indices, good) if not fine]
        print(f"left out {len(skipped)} unreadable {what}, the first is {skipped[0]}", flush=True)
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
