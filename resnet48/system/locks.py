"""Lock files, which the system lets go of however a process ends, and what killed processes leave behind."""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator

from . import files
from .errors import UserError
from .files import cannot_write


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Wait for a lock file, then hold it; the system releases it however the process ends.

    Missing folders are created. Raises `UserError` where the file cannot be written.
    """
    while True:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            file = open(path, "w")
        except OSError as error:
            raise cannot_write(path, error) from error
        with file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(file, fcntl.LOCK_EX)
            if _is_still(file, path):
                yield
                return


@contextlib.contextmanager
def try_lock(path: str, without_locks: bool = True) -> Iterator[bool]:
    """Yield whether this process now holds `path`.lock; the system releases it however the process ends.

    without_locks: what to yield where the file system has no locks. With True every process holds it: work may then be
    done twice, with the same result. Raises `UserError` where the folder is gone or cannot be written.
    """
    name = path + ".lock"
    try:
        file = open(name, "w")
    except OSError as error:
        raise UserError(f"cannot continue in {os.path.dirname(path)}: {error.strerror}") from error
    with file as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = _is_still(lock, name)
        except BlockingIOError:
            held = False
        except OSError:
            held = without_locks
        try:
            yield held
        finally:
            if held:
                with contextlib.suppress(OSError):
                    os.unlink(name)


@contextlib.contextmanager
def held(path: str, taken: str) -> Iterator[None]:
    """Hold a lock file, or raise `UserError(taken)` where another process does; the file is removed in the end.

    Missing folders are created, and removed in the end if nothing else is in them. Processes that this one forks do not
    hold it, and the system lets go of it however this one ends. Raises `UserError` where the file cannot be written,
    too.
    """
    made = files.make_folders(path)
    try:
        file = _open_locked(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    if file is None:
        raise UserError(taken)
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
            files.remove_empty(made)


def remove_leftovers(folder: str, owner: Callable[[str], str], but: str | None = None) -> int:
    """Remove the temporary files of `atomic_write` that killed processes have left in a folder; returns their bytes.

    owner(name): whose `try_lock` a process holds, as a name in the folder, while it writes the file `name`. What is
    locked stays, and all of it where there are no locks. but: an owner whose files stay too, such as one that this
    process holds itself (to open its lock file again would release it).
    """
    removed = 0
    for path, name in _temporary(folder):
        if owner(name) == but:
            continue
        with try_lock(os.path.join(folder, owner(name)), without_locks=False) as mine, contextlib.suppress(OSError):
            if mine:
                size = os.path.getsize(path)
                os.unlink(path)
                removed += size
    return removed


def remove_temporary(*paths: str) -> None:
    """Remove what killed processes have left in making these files. For whoever holds the lock that they are made
    under.
    """
    for folder in {os.path.dirname(os.path.abspath(path)) for path in paths}:
        for temporary, name in _temporary(folder):
            if name in map(os.path.basename, paths):
                with contextlib.suppress(OSError):
                    os.unlink(temporary)


def _temporary(folder):
    """(path of a temporary file of `atomic_write`, name of the file that it was to become) for all in a folder."""
    with contextlib.suppress(OSError):
        return [(entry.path, match[1]) for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)
                and (match := re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}(\.[^.]*)?", entry.name))]
    return []


def _open_locked(path):
    """The file with its lock, or None where another process has it."""
    while True:
        file = open(path, "w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError:  # a file system without locks
            return file
        if _is_still(file, path):
            return file
        file.close()  # whoever had it before has just removed it


def _is_still(file, path):
    """Whether an open lock file has not been removed by its last holder."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False
