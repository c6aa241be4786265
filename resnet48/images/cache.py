"""Decoded images on disk: memory-mapped uint8 arrays, made once and shared by every process that needs them.

They are named by the fingerprint of what they depend on, and not believed without a checksum, see `arrays`.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..system import arrays, files, locks, runtime
from ..system.errors import UserError
from . import cache_files, datasets, fingerprints, transforms

EVAL_TRANSFORM = "evaluation view 3"  # to be increased when `transforms.eval_transform` gives other pixels
SHRUNK = "shrunk 2"  # the same for `transforms.shrunk`
SHORT_SIDES = 2  # short side of a kept training image, in image sizes: a crop of a quarter of the area loses nothing


def fingerprint(images: datasets.ImageSet, split: datasets.Split, indices: Sequence[int],
                folder: str | None = None) -> str:
    """A digest of what decoded images depend on: names and contents of the files, and the evaluation transform.

    folder: where digests of files are remembered if the set has no `cache_dir`.
    """
    view = f"{EVAL_TRANSFORM} {images.size} {images.skip_bad}" + (" whole" if images.whole else "")
    return fingerprints.fingerprint(view, split, indices, images.cache_dir or folder, images.workers)


def _room(path, shape):
    """A new memory-mapped uint8 array of this shape."""
    array = np.lib.format.open_memmap(path, "w+", "uint8", shape)
    with open(path, "r+b") as file:  # a full disk shows here, not as a bus error in a mapped page
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return array


def decoded(images: datasets.ImageSet, split: datasets.Split, indices: Sequence[int],
            what: str) -> tuple[np.ndarray, np.ndarray]:
    """Some images of a split under the evaluation transform, and their labels: (uint8 [n, 3, S, S], int64 [n]).

    As `datasets.decode` gives them, kept in `images.cache_dir` if that is set. what: how messages name the images. If
    two processes need the same images at once, one decodes and the other waits.
    Raises `datasets.BadImage` as `datasets.decode` does, and where no image is left.
    """
    pixels, labels = _decoded(images, split, indices, what)
    if len(indices) and not len(labels):
        raise datasets.BadImage(f"none of the {len(indices)} {what} is readable")
    return pixels, labels


def _decoded(images, split, indices, what):
    arguments = split, indices, images.size, images.workers, images.skip_bad, what
    if not images.cache_dir:
        return datasets.decode(*arguments, whole=images.whole)

    def make(pixels_path, labels_path):
        with files.atomic_write(pixels_path) as temporary:
            buffer = _room(temporary, (len(indices), 3, images.size, images.size))
            pixels, labels = datasets.decode(*arguments, into=buffer, whole=images.whole)
            buffer.flush()
            if len(pixels) < len(indices):  # without those that could not be read
                with open(temporary, "wb") as file:
                    np.save(file, pixels)
            arrays.seal(temporary, _of(pixels_path))
        arrays.write(labels_path, labels, _of(labels_path))

    return _made_once(images.cache_dir, fingerprint(images, split, indices)[:32], ("pixels", "labels"), make)


def _made_once(folder: str, name: str, parts: tuple[str, str], make: Callable[[str, str], None]):
    """The two arrays of this name, the first of them mapped, from `make(path, path)` unless they are there and good."""
    paths = [os.path.join(folder, f"{name}.{part}.npy") for part in parts]

    def read():
        return arrays.read(paths[0], _of(paths[0]), mapped=True, remember=True), arrays.read(paths[1], _of(paths[1]))

    with locks.locked(os.path.join(folder, name + ".lock")):
        try:
            return read()
        except FileNotFoundError:
            pass
        except arrays.Damaged as error:
            runtime.log_rank(f"{name} in {folder} is not to be believed ({error}) and is made again")
        for path in paths:  # a killed process has left them, or something has damaged them
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        locks.remove_leftovers(folder, cache_files.owner, but=name)
        locks.remove_temporary(*paths)
        make(*paths)
        try:
            return read()
        except (FileNotFoundError, arrays.Damaged) as error:
            raise UserError(f"{folder} does not keep what is written there: {error}") from error


def _of(path):
    return {"cache": os.path.basename(path)}


# --- training images --------------------------------------------------------------------------------------------------

class _Shrunk:
    """Kept training images as uint8 [height, width, 3] by index; for one that could not be read, its path.

    pixels: all of them one after the other, flat; places: int64 [N, 3], (end in pixels, width, height), with a width of
    0 for what is unreadable.
    """

    def __init__(self, paths, pixels, places):
        self.paths, self.pixels, self.places = paths, pixels, places

    def __getitem__(self, index):
        end, width, height = self.places[index].tolist()
        return self.pixels[end - 3 * width * height:end].reshape(height, width, 3) if width else self.paths[index]


def require_folder(images: datasets.ImageSet) -> None:
    """Raise `UserError` where training images could not be kept because the set has no `cache_dir`."""
    if not images.cache_dir:
        raise UserError("--train_cache needs --cache_dir, the folder that keeps the images")


def for_training(images: datasets.ImageSet) -> datasets.ImageSet:
    """The image set with its training images kept in `images.cache_dir`; built-in ones, in memory anyway, as they are.

    A kept image is shrunk to a short side of SHORT_SIDES times the image size. Training crops are cut from it, so they
    differ a little from those of the original, and small crops are less sharp. All processes on a machine and their
    workers map the same file. An unreadable image stays a path, so that training treats it as it does without a cache.
    Raises `UserError` as `require_folder` does, and where the folder cannot be written.
    """
    require_folder(images)
    split = images.train
    if not isinstance(split.images[0], str):
        return images
    short = SHORT_SIDES * images.size

    def make(pixels_path, places_path):
        with files.atomic_write(pixels_path) as temporary:
            places = _shrink_all(split, short, images.workers, temporary)
            arrays.seal(temporary, _of(pixels_path))
        arrays.write(places_path, places, _of(places_path))

    name = fingerprints.fingerprint(f"{SHRUNK} {short}", split, range(len(split)), images.cache_dir, images.workers)
    kept = _Shrunk(split.images, *_made_once(images.cache_dir, name[:32], ("train", "places"), make))
    return replace(images, train=datasets.Split(kept, split.labels))


def _shrink_all(split, short, threads, path):
    """Fill the file with the shrunk images; returns their places."""
    sizes = np.zeros((len(split), 2), "int64")

    def measure(index):
        with contextlib.suppress(datasets.BadImage):  # which keeps a size of 0
            sizes[index] = datasets.transformed(split, index, lambda image: transforms.shrunk_size(image.size, short))

    def shrink(index):
        if sizes[index, 0]:
            try:
                pixels = datasets.transformed(split, index, transforms.shrunk, tuple(sizes[index].tolist()))
                buffer[ends[index] - pixels.size:ends[index]] = pixels.ravel()
            except datasets.BadImage:
                sizes[index] = 0

    datasets.in_threads(measure, len(split), threads, "measuring training images")
    ends = np.cumsum(3 * sizes.prod(axis=1))
    buffer = _room(path, (max(1, int(ends[-1])),))  # an empty file cannot be mapped
    datasets.in_threads(shrink, len(split), threads, "shrinking training images")
    buffer.flush()
    return np.column_stack([ends, sizes])
