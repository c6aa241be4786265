"""Archives that depend on their content alone: no times, no users, members in the order given."""

import gzip
import io
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

from . import files
from .errors import UserError, shown

ENDINGS = (".tar.gz", ".tgz", ".zip")
FIRST_TIME = (1980, 1, 1, 0, 0, 0)  # that a .zip can say
LARGEST_FIRST = 1 << 20  # bytes that `first_member` reads


def require_ending(flag: str, path: str) -> None:
    """Raise `UserError` unless the name at `path` says which kind of archive it is."""
    if not path.endswith(ENDINGS):
        raise UserError(f"{flag} takes a name that ends with {', '.join(ENDINGS)}; got {shown(path)}")


def write(path: str, members: Mapping[str, bytes | str]) -> None:
    """Write an archive, whole or not at all. members: name -> its content, or the path of the file that holds it.

    Raises `UserError` where a file cannot be read or the archive cannot be written.
    """
    with files.atomic_write(path) as temporary:
        if path.endswith(".zip"):
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    member = zipfile.ZipInfo(name, FIRST_TIME)
                    member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                    member.create_system = 3  # Unix, which the attributes are of
                    with _opened(content) as source, archive.open(member, "w", force_zip64=True) as target:
                        shutil.copyfileobj(source, target, 1 << 20)
        else:
            with open(temporary, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed, \
                    tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, content in members.items():
                    member = tarfile.TarInfo(name)  # of nobody, at the beginning of time
                    member.size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
                    with _opened(content) as source:
                        archive.addfile(member, source)


def first_member(path: str) -> tuple[str, bytes] | None:
    """(name, the beginning of the content) of the first member of an archive; None where the file is none."""
    try:
        with files.open_regular(path) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    name = archive.namelist()[0]
                    with archive.open(name) as member:
                        return name, member.read(LARGEST_FIRST)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:gz") as archive:
                member = archive.next()
                return member.name, archive.extractfile(member).read(LARGEST_FIRST)
    except (OSError, EOFError, IndexError, AttributeError, ValueError, RuntimeError, NotImplementedError, zlib.error,
            tarfile.TarError, zipfile.BadZipFile):
        return None


def _opened(content) -> BinaryIO:
    return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")
