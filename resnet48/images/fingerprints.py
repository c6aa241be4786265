"""Which images these are, by their content: the same files copied again are the same, a changed byte is another image.

Every file is read once. Its digest is remembered with its path, size and times, so that a second start reads only what
has changed since. What this misses is a disk that changes bytes by itself.
"""

import hashlib
import os
import time
from collections.abc import Sequence

import numpy as np

from ..system import arrays, files, locks
from ..system.errors import UserError
from . import datasets, transforms

NEVER = -1  # as a time: the digest is not remembered
COLUMNS = 5  # of what is remembered of a file: size, time of the content, time of change, two halves of a digest


def fingerprint(transform: str, split: datasets.Split, indices: Sequence[int], folder: str | None = None,
                threads: int = 1) -> str:
    """A digest of what transformed images depend on: names, contents and labels of the files, and the transform.

    transform: its name and settings; the library that resizes is added. folder: where digests of files are remembered;
    threads: that read files.
    """
    digest = hashlib.sha256(f"{transform} {transforms.resizer()}".encode())
    paths = [split.images[index] for index in indices if isinstance(split.images[index], str)]
    contents = iter(_contents(paths, folder, threads))
    for index in indices:
        image = split.images[index]
        if isinstance(image, str):
            name = os.path.join(os.path.basename(os.path.dirname(image)), os.path.basename(image))
            digest.update(f"{name} {next(contents)} {split.labels[index]}\n".encode(errors="surrogateescape"))
        else:
            digest.update(image.tobytes() + bytes([split.labels[index] % 256]))
    return digest.hexdigest()


def _contents(paths, folder, threads):
    """Size and digest of each file as text; "missing" for one that is gone or cannot be read."""
    if not paths:
        return []
    key = hashlib.sha256("\0".join(map(os.path.abspath, paths)).encode(errors="surrogateescape")).hexdigest()[:32]
    kept, of = folder and os.path.join(folder, key + ".digests.npy"), {"files": key}
    found = _remembered(kept, of, len(paths))
    states = [arrays.signature(path) for path in paths]
    changed = [place for place, state in enumerate(states) if state is None or tuple(found[place, :3]) != state]

    def read(number):
        place = changed[number]
        found[place] = (NEVER,) * COLUMNS
        try:
            halves = np.frombuffer(_digest(paths[place]), "int64")
        except OSError:  # deleted since it was listed, or a dangling link: decoding it raises the error
            return
        state = states[place]
        if state and state == arrays.signature(paths[place]):
            found[place] = (*state, *halves)

    datasets.in_threads(read, len(changed), threads, "reading image files")
    texts = ["missing" if size == NEVER else f"{size} {first & (2 ** 64 - 1):016x}{second & (2 ** 64 - 1):016x}"
             for size, _, _, first, second in found.tolist()]
    if folder and changed:
        # What has changed just now may change again without another time of change.
        young = found[:, 2] > (time.time() - arrays.SECONDS_UNTIL_TRUSTED) * 1e9
        found[young, 1:3] = NEVER
        try:
            with locks.locked(os.path.join(folder, key + ".lock")):
                arrays.write(kept, found, of)
        except UserError:  # they are computed again, which costs time and nothing else
            pass
    return texts


def _remembered(path, of, count):
    """int64 [count, COLUMNS], NEVER where nothing is known."""
    try:
        found = arrays.read(path, of) if path else None
    except (FileNotFoundError, arrays.Damaged):
        found = None
    return found if found is not None and found.shape == (count, COLUMNS) else np.full((count, COLUMNS), NEVER)


def _digest(path):
    digest = hashlib.sha256()
    with files.open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()[:16]
