"""Decoded images on disk: memory-mapped uint8 arrays, made once and shared by every process that needs them."""

import hashlib
import os

import numpy as np

from . import data, files

VIEW = "evaluation view 1"  # counts up when `data.eval_view` changes what it gives


def fingerprint(split, indices, size, skip_bad=False):
    """What the evaluation views of these images depend on: names, sizes and times of the files, and the transform."""
    digest = hashlib.sha256(f"{VIEW} {size} {skip_bad}".encode())
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
                buffer = np.lib.format.open_memmap(temporary, "w+", "uint8", (len(indices), 3, size, size))
                with open(temporary, "r+b") as file:  # a full disk shows here, not as a bus error in a mapped page
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
                pixels, labels = data.decode(*arguments, into=buffer)
                buffer.flush()
                if len(pixels) < len(indices):  # without those that could not be read
                    with open(temporary, "wb") as file:
                        np.save(file, pixels)
            with files.replacing(labels_path) as temporary:
                np.save(temporary, labels)
    return files.read_array(pixels_path, mapped=True), files.read_array(labels_path)
