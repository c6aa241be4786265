"""What lies in the folder of a cache: which files belong together, what processes have left, what may go. No Paddle.

A cache's files are called by 32 hex digits and what they hold; the lock of the same name is held while they are made,
and its time is when they were last asked for.
"""

import contextlib
import os
import re
from typing import NamedTuple

from ..system import locks
from ..system.errors import UserError

KINDS = {"pixels": "decoded images", "labels": "decoded images", "train": "training images",
         "places": "training images", "digests": "digests of files"}


class Kept(NamedTuple):
    """Files that belong together. used: when they were last asked for, in seconds since 1970."""

    name: str
    what: str
    bytes: int
    used: float
    paths: tuple[str, ...]


def owner(name: str) -> str:
    """Whose lock is held while a file of this name is written."""
    return name.partition(".")[0]


def kept(folder: str) -> list[Kept]:
    """What is kept in a folder, the longest unused first. Raises `UserError` where it cannot be read."""
    groups = {}
    try:
        for entry in os.scandir(folder):
            match = re.fullmatch(r"\.?([0-9a-f]{32})\.(lock|(pixels|labels|train|places|digests)\.npy.*)", entry.name)
            if match and entry.is_file():
                groups.setdefault(match[1], []).append((match[3], entry.stat(), entry.path))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    return sorted((Kept(name, next((KINDS[kind] for kind, *_ in parts if kind), "nothing"),
                        sum(about.st_size for _, about, _ in parts), max(about.st_mtime for _, about, _ in parts),
                        tuple(path for *_, path in parts))
                   for name, parts in groups.items()), key=lambda each: each.used)


def remove(folder: str, group: Kept) -> None:
    """Remove what belongs together; programs that use it keep what they have. Raises `UserError` if it is being made.
    """
    with locks.try_lock(os.path.join(folder, group.name)) as mine:
        if not mine:
            raise UserError(f"{group.name} in {folder} is being made by another process")
        for path in group.paths:
            if not path.endswith(".lock"):  # which is removed with the lock
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
