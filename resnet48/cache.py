"""Decoded images on disk: memory-mapped uint8 arrays, made once and shared by every process that needs them."""

import contextlib
import fcntl
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
            about = os.stat(image)
            name = os.path.join(os.path.basename(os.path.dirname(image)), os.path.basename(image))
            digest.update(f"{name} {about.st_size} {about.st_mtime_ns} {split.labels[index]}\n".encode())
        else:
            digest.update(image.tobytes() + bytes([split.labels[index] % 256]))
    return digest.hexdigest()


def decoded(split, indices, size, config, what):
    """`data.decode`, kept in `config.cache_dir` if that is set: (uint8 [n, 3, size, size], int64 [n]).

    Two processes that need the same images at once: one decodes, the other waits for it.
    """
    arguments = split, indices, size, config.num_workers, config.skip_bad_images, what
    if not config.cache_dir:
        return data.decode(*arguments)
    path = os.path.join(config.cache_dir, fingerprint(split, indices, size, config.skip_bad_images)[:32])
    pixels_path, labels_path = path + ".pixels.npy", path + ".labels.npy"
    files.require_writable(pixels_path)
    os.makedirs(config.cache_dir, exist_ok=True)
    with _lock(path + ".lock"):
        if not os.path.exists(labels_path):  # written last
            with files.replacing(pixels_path) as temporary:
                buffer = np.lib.format.open_memmap(temporary, "w+", "uint8", (len(indices), 3, size, size))
                pixels, labels = data.decode(*arguments, into=buffer)
                buffer.flush()
                if len(pixels) < len(indices):  # without those that could not be read
                    with open(temporary, "wb") as file:
                        np.save(file, pixels)
            with files.replacing(labels_path) as temporary:
                np.save(temporary, labels)
    return np.load(pixels_path, mmap_mode="r"), np.load(labels_path)


@contextlib.contextmanager
def _lock(path):
    """Wait for, then hold, a lock that the system lets go of however the process ends."""
    with open(path, "w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: both decode, with the same result
            fcntl.lockf(lock, fcntl.LOCK_EX)
        yield
