"""Arrays on disk that can be made again: each says what it is and carries a checksum, and is not believed without it.

A file is a .npy file, readable and mappable by numpy, with one line of JSON behind the data: what the array belongs to
(`of`) and the SHA-256 of everything before the line. Whoever reads a file says what it must belong to.
"""

import contextlib
import hashlib
import json
import math
import os
import time

import numpy as np

from . import files
from .errors import UserError

LONGEST_LINE = 4096  # bytes
DTYPES = ("uint8", "int64", "float32")
REMEMBERED = ".checked"  # what is added to a path for the file that remembers that it was checked
#: A file may change without another time of change within one tick of its clock: a younger one is checked again.
SECONDS_UNTIL_TRUSTED = 2


class Damaged(UserError):
    """A file is not the array that it should be. The message says why, without the path."""


def write(path: str, array: np.ndarray, of: dict) -> None:
    """Write an array of one of DTYPES, whole or not at all. of: plain data, what it belongs to.

    Raises `UserError` where the file cannot be written, `ValueError` for another dtype.
    """
    if array.dtype.name not in DTYPES:
        raise ValueError(f"an array of {array.dtype} cannot be kept")
    with files.atomic_write(path) as temporary:
        np.save(temporary, np.ascontiguousarray(array, array.dtype.name))
        seal(temporary, of)


def seal(path: str, of: dict) -> None:
    """Add the line with the checksum to a .npy file that is complete."""
    line = _line(_digest(path, os.path.getsize(path)), of)
    with open(path, "ab") as file:
        file.write(line)


def read(path: str, of: dict, mapped: bool = False, remember: bool = False) -> np.ndarray:
    """The array that `write` was given with the same `of`; mapped: read-only, by memory mapping.

    remember: keep beside the file that it was checked, so that the next start need not read all of it again; it is
    checked again when its size or one of its times is another. What this misses is a disk that changes bytes by itself.
    Raises `FileNotFoundError` where there is no file and `Damaged` where it is not that array.
    """
    data, end = _described(path)
    with open(path, "rb") as file:
        file.seek(end)
        line = file.read(LONGEST_LINE + 1)
    if not line:
        raise Damaged("it has no checksum, an earlier version wrote it")
    try:
        stated = json.loads(line)
        about, digest = stated["of"], stated["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damaged("its checksum is not readable") from None
    if about != json.loads(json.dumps(of)):
        raise Damaged("it belongs to something else")
    before = _signature(path)
    if not (remember and _remembered(path) == [*before, digest]):
        if line != _line(_digest(path, end), of):
            raise Damaged("its checksum is that of another content")
        if remember and time.time() - before[2] / 1e9 > SECONDS_UNTIL_TRUSTED:
            with contextlib.suppress(UserError):  # a folder that may only be read
                files.write_json(path + REMEMBERED, [*before, digest])
    dtype, shape, start = data
    if not mapped or not math.prod(shape):
        with open(path, "rb") as file:
            file.seek(start)
            return np.frombuffer(bytearray(file.read(end - start)), dtype).reshape(shape)
    return np.memmap(path, dtype, "r", start, shape)


def signature(path: str) -> tuple[int, int, int] | None:
    """(size, time of the content, time of change in ns) of a file, by which a change is noticed; None without one."""
    with contextlib.suppress(OSError):
        return _signature(path)
    return None


def _signature(path):
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _described(path):
    """((dtype, shape, where the data begin), where they end) of a .npy file of a plain array."""
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise Damaged("it is no array")
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy's own words for a torn header, and whatever its parser makes of noise
        raise Damaged("it is no array") from error
    if in_columns or dtype not in map(np.dtype, DTYPES) or not all(type(side) is int and side >= 0 for side in shape):
        raise Damaged("it is an array of another kind")
    end = start + math.prod(shape) * dtype.itemsize
    if end > size:
        raise Damaged("it is cut off")
    return (dtype, shape, start), end


def _digest(path, count):
    """SHA-256 of the first `count` bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while count and (block := file.read(min(count, 1 << 20))):
            digest.update(block)
            count -= len(block)
    return digest.hexdigest()


def _line(digest, of):
    return (json.dumps({"of": of, "sha256": digest}, sort_keys=True) + "\n").encode()


def _remembered(path):
    try:
        return files.read_json(path + REMEMBERED, "what was checked")
    except UserError:
        return None
