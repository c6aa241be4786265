"""Decoded images on disk: memory-mapped uint8 arrays, made once and shared by every process that needs them."""

import contextlib
import hashlib
import os
from dataclasses import replace

import numpy as np

from . import data, files, views

VIEW = "evaluation view 2"  # counts up when `views.eval_view` changes what it gives
SHRUNK = "shrunk 1"  # the same for `views.shrunk`
SHORT_SIDES = 2  # short side of a kept training image, in image sizes: a crop of a quarter of the area loses nothing


def fingerprint(split, indices, size, skip_bad=False):
    """What the evaluation views of these images depend on: names, sizes and times of the files, and the transform."""
    return _digest(f"{VIEW} {size} {skip_bad}", split, indices)


def _digest(transform, split, indices):
    digest = hashlib.sha256(f"{transform} {views.resizer()}".encode())
    for index in indices:
        image = split.images[index]
        if isinstance(image, str):
            name = os.path.join(os.path.basename(os.path.dirname(image)), os.path.basename(image))
            digest.update(f"{name} {_state(image)} {split.labels[index]}\n".encode())
        else:
            digest.update(image.tobytes() + bytes([split.labels[index] % 256]))
    return digest.hexdigest()


def _state(path):
    try:
        about = os.stat(path)
    except OSError:  # gone since it was listed, or a link to nothing: whoever decodes it says so
        return "missing"
    return f"{about.st_size} {about.st_mtime_ns}"


def _room(path, shape):
    """A new memory-mapped uint8 array of this shape."""
    array = np.lib.format.open_memmap(path, "w+", "uint8", shape)
    with open(path, "r+b") as file:  # a full disk shows here, not as a bus error in a mapped page
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return array


def decoded(split, indices, size, config, what):
    """`data.decode`, kept in `config.cache_dir` if that is set: (uint8 [n, 3, size, size], int64 [n]).

    Two processes that need the same images at once: one decodes, the other waits for it.
    Raises `data.BadImage` as `data.decode` does, and where no image is left.
    """
    pixels, labels = _decoded(split, indices, size, config, what)
    if len(indices) and not len(labels):
        raise data.BadImage(f"none of the {len(indices)} {what} is readable")
    return pixels, labels


def _decoded(split, indices, size, config, what):
    arguments = split, indices, size, config.num_workers, config.skip_bad_images, what
    if not config.cache_dir:
        return data.decode(*arguments)
    path = os.path.join(config.cache_dir, fingerprint(split, indices, size, config.skip_bad_images)[:32])
    pixels_path, labels_path = path + ".pixels.npy", path + ".labels.npy"
    with files.locked(path + ".lock"):
        if not (os.path.exists(pixels_path) and os.path.exists(labels_path)):
            with files.replacing(pixels_path) as temporary:
                buffer = _room(temporary, (len(indices), 3, size, size))
                pixels, labels = data.decode(*arguments, into=buffer)
                buffer.flush()
                if len(pixels) < len(indices):  # without those that could not be read
                    with open(temporary, "wb") as file:
                        np.save(file, pixels)
            with files.replacing(labels_path) as temporary:
                np.save(temporary, labels)
    return files.read_array(pixels_path, mapped=True), files.read_array(labels_path)


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


def for_training(images, config):
    """The image set with its training images kept in `config.cache_dir`, if `config.train_cache` asks for that.

    A kept image is shrunk to a short side of SHORT_SIDES times the image size. Training crops are cut from it, so they
    differ a little from those of the original, and small crops are less sharp. All processes on a machine and their
    workers map the same file. An unreadable image stays its path, so that training finds it out as without a cache.
    """
    split = images.train
    if not config.train_cache or not isinstance(split.images[0], str):  # built-in images are in memory anyway
        return images
    name = _digest(f"{SHRUNK} {SHORT_SIDES * images.size}", split, range(len(split)))[:32]
    path = os.path.join(config.cache_dir, name)
    pixels_path, places_path = path + ".train.npy", path + ".places.npy"
    with files.locked(path + ".lock"):
        if not (os.path.exists(pixels_path) and os.path.exists(places_path)):
            with files.replacing(pixels_path) as temporary:
                places = _shrink_all(split, SHORT_SIDES * images.size, config.num_workers, temporary)
            with files.replacing(places_path) as temporary:
                np.save(temporary, places)
    kept = _Shrunk(split.images, files.read_array(pixels_path, mapped=True), files.read_array(places_path))
    return replace(images, train=data.Split(kept, split.labels))


def _shrink_all(split, short, threads, path):
    """Fill the file with the shrunk images; returns their places."""
    sizes = np.zeros((len(split), 2), "int64")

    def measure(index):
        with contextlib.suppress(data.BadImage):  # which keeps a size of 0
            sizes[index] = data.view(split, index, lambda picture: views.shrunk_size(picture.size, short))

    def shrink(index):
        if sizes[index, 0]:
            try:
                pixels = data.view(split, index, views.shrunk, tuple(sizes[index].tolist()))
                buffer[ends[index] - pixels.size:ends[index]] = pixels.ravel()
            except data.BadImage:
                sizes[index] = 0

    data.in_threads(measure, len(split), threads, "measuring training images")
    ends = np.cumsum(3 * sizes.prod(axis=1))
    buffer = _room(path, (max(1, int(ends[-1])),))  # an empty file cannot be mapped
    data.in_threads(shrink, len(split), threads, "shrinking training images")
    buffer.flush()
    return np.column_stack([ends, sizes])
