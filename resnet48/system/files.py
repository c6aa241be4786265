"""Atomic writes and checked reads."""

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO, TextIO

from .errors import UserError, quoted, shown


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[str]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds and is removed otherwise.

    Missing folders are created. Raises `UserError` where the folder cannot be written or the disk is full.
    """
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.",
                                             suffix=os.path.splitext(path)[1])
        os.close(handle)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def appending(path: str) -> Iterator[TextIO]:
    """Yield a text file to which lines are added. Raises `UserError` where it cannot be written or the disk is full."""
    try:
        with open(path, "a", newline="") as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error) from error


def open_regular(path: str) -> BinaryIO:
    """Open a file to read its bytes. Raises `OSError` for what is no regular file (or a link to one): a pipe or a
    device might have no end, and is not even opened.
    """
    def require(mode):
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", path)

    require(os.stat(path).st_mode)
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # should it have become a pipe meanwhile
    try:
        require(os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def require_writable(path: str) -> None:
    """Raise `UserError` now, before hours of work, if `path` could not be written later. Creates nothing."""
    if os.path.isdir(path):
        raise UserError(f"cannot write {shown(path)}: it is a folder")
    folder, name = os.path.split(os.path.abspath(path))
    try:  # whether the temporary name that `atomic_write` will make is too long
        os.lstat(os.path.join(folder, f".{name}.12345678{os.path.splitext(name)[1]}"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except OSError as error:
        raise cannot_write(path, error) from error
    while not os.path.lexists(folder):  # missing folders will be created in the first one that exists
        folder = os.path.dirname(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folders(path: str) -> list[str]:
    """Make the missing folders above the file `path`; those that were made, the innermost first.

    Raises `UserError` where they cannot be made.
    """
    folder, missing = os.path.dirname(os.path.abspath(path)), []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return missing


def remove_empty(folders: Iterable[str]) -> None:
    """Remove folders, in this order, up to the first that is gone or holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            os.rmdir(folder)


def require_output(flag: str, path: str, inputs: Mapping[str, str | None],
                   keep: Callable[[str], str | None] = lambda path: None) -> None:
    """Raise `UserError` now if `path` could not be written later, or if writing there would lose something.

    flag: what names the path, in errors. inputs: other files of the same command by what names them, which `path` must
    not be, whatever links and relative names lead there. keep(path): why a file that is there must stay, as the end of
    a sentence that begins with its name; None if it may be replaced.
    """
    require_writable(path)
    for name, other in inputs.items():
        if other and _is_same_file(path, other):
            raise UserError(f"{flag} {shown(path)} is also the file of {name}, which would be lost; give another name")
    reason = keep(path) if os.path.lexists(path) else None
    if reason:
        raise UserError(f"{flag} {shown(path)} {reason}; give another name, or move that file away")


def beside(path: str, ending: str) -> str:
    """Where what belongs to the file at `path` lies. Only .json is taken off: `a.json` has `a` + ending, `a.v1` has
    `a.v1` + ending."""
    return path.removesuffix(".json") + ending


def _is_same_file(path, other):
    try:
        return os.path.samefile(path, other)
    except OSError:  # at least one is not there yet
        return os.path.realpath(path) == os.path.realpath(other)


def cannot_write(path: str, error: OSError) -> UserError:
    """The error of a failed write, in the user's words."""
    reason = error.strerror or error
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = f"there is a file where the folder {shown(os.path.dirname(os.path.abspath(path)))} should be"
    return UserError(f"cannot write {shown(path)}: {reason}")


def write_text(path: str, text: str) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str, data: object, indent: int | None = None) -> None:
    with atomic_write(path) as temporary, open(temporary, "w") as file:
        json.dump(data, file, indent=indent)


def read_json(path: str, what: str) -> object:
    """The content of a JSON file; `what` names it in the errors. A key that occurs twice is an error.

    Raises `UserError` for a missing, unreadable or malformed file.
    """
    named = f"{what} {shown(path)}"

    def without_duplicates(pairs):
        seen = {}
        for key, value in pairs:
            if key in seen:
                raise UserError(f"{named}: the key {quoted(key)} occurs twice")
            seen[key] = value
        return seen

    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors begin a file with a byte order mark
            text = file.read()
    except OSError as error:
        raise UserError(f"cannot read {named}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{named} is not a text file: {error.reason} at byte {error.start}") from error
    except ValueError as error:  # a NUL character, which no file has in its name
        raise UserError(f"cannot read {named}: {error}") from error
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"{named} is not JSON: {error.msg} in line {error.lineno}") from error
    except RecursionError as error:
        raise UserError(f"{named} is nested too deeply to be read") from error
    except UserError:
        raise
    except ValueError as error:  # Python refuses to convert a whole number of thousands of digits
        raise UserError(f"{named} holds a number that is too long to be read") from error


def sha256_of(path: str) -> str:
    """SHA-256 of a file as 64 hex digits. Raises `UserError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL
        raise UserError(f"cannot read {shown(path)}: {error}") from error
    return digest.hexdigest()
