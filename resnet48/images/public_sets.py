"""Fashion-MNIST, CIFAR-10 and CIFAR-100, from files in the formats that they are published in.

Paddle downloads them and compares their MD5; what is there already is used as it is. The files are read here and not by
Paddle, whose reader takes seconds for Fashion-MNIST at every start, and runs what the pickles in an archive of CIFAR
ask for: of those, `pickles` reads arrays, numbers and text.
"""

import gzip
import os
import struct
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

from ..system import locks, pickles
from ..system.errors import UserError, quoted, shown
from ..system.runtime import log_main

SIZE = 32  # height and width in pixels; the 28 of Fashion-MNIST get a black margin of 2
MOST_BYTES = 2 ** 28  # of an unpacked file; the largest of these has 154 million
PADDLE_HOME = "~/.cache/paddle/dataset"  # where Paddle puts what it downloads
UNREADABLE = OSError, EOFError, zlib.error, tarfile.TarError, pickles.Malformed, ValueError, KeyError, TypeError, \
    IndexError, AttributeError, struct.error, MemoryError


class Published(NamedTuple):
    """A data set. paddle: its class in `paddle.vision.datasets`; folders: where its files may be, the last of them is
    Paddle's; files: all of them."""

    title: str
    paddle: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    classes: tuple[str, ...]


IDX = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
       "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}
SETS = {
    "fashion-mnist": Published(
        "Fashion-MNIST", "FashionMNIST", ("/usr/share/datasets/fashion-mnist", PADDLE_HOME + "/fashion-mnist"),
        IDX["train"] + IDX["test"], ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                                     "Sneaker", "Bag", "Ankle boot")),
    "cifar10": Published(
        "CIFAR-10", "Cifar10", (PADDLE_HOME + "/cifar",), ("cifar-10-python.tar.gz",),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")),
    "cifar100": Published(
        "CIFAR-100", "Cifar100", (PADDLE_HOME + "/cifar",), ("cifar-100-python.tar.gz",), tuple(map(str, range(100)))),
}
#: Data set and split -> the pickles of an archive that hold it.
MEMBERS = {("cifar10", "train"): tuple(f"data_batch_{number}" for number in range(1, 6)),
           ("cifar10", "test"): ("test_batch",), ("cifar100", "train"): ("train",), ("cifar100", "test"): ("test",)}


def read(name: str, folder: str | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": (images, labels), "test": (images, labels)} of a set of SETS, as it is published.

    images: uint8 [N, 32, 32] of grey ones, [N, 32, 32, 3] of others; labels: int64 [N], the fine ones of CIFAR-100.
    folder: where the files are, or None to look in the usual places and to download what is in none of them.
    Raises `UserError` for files that are missing, cannot be downloaded or are not of their format.
    """
    about = SETS[name]
    folder = _folder(about, folder)
    return {split: _idx(folder, IDX[split], about) if name == "fashion-mnist" else
            _cifar(os.path.join(folder, about.files[0]), MEMBERS[name, split], about) for split in ("train", "test")}


# --- where the files are ----------------------------------------------------------------------------------------------

def _folder(about, given):
    listed = ", ".join(about.files)
    if given:
        missing = _missing(about, given)
        if missing:
            raise UserError(f"--dataset_dir {shown(given)} lacks {missing[0]}; for {about.title} it must hold {listed}")
        return given
    home = os.path.expanduser(about.folders[-1])
    for place in map(os.path.expanduser, about.folders):
        if not _missing(about, place):
            return place
    with locks.locked(os.path.join(os.path.dirname(home), f"{about.paddle}.lock")):  # one rank or program downloads
        if _missing(about, home):
            log_main(f"downloading {about.title}")
            try:
                return _download(about)
            except Exception as error:  # of Paddle's, of sockets, of assertions
                raise UserError(f"cannot download {about.title} ({quoted(str(error))}); --dataset_dir names a folder "
                                f"that holds {listed}") from error
    return home


def _missing(about, folder):
    return [name for name in about.files if not os.path.isfile(os.path.join(folder, name))]


def _download(about):
    """Paddle's folder with the files, after it has downloaded and checked them."""
    from paddle.vision import datasets  # here: most runs download nothing

    found = [getattr(datasets, about.paddle)(mode=mode) for mode in ("train", "test")][0]
    return os.path.dirname(getattr(found, "data_file", None) or found.image_path)


# --- what is in them --------------------------------------------------------------------------------------------------

def _idx(folder, names, about):
    """Images and labels of two idx files: a magic number, the size along each axis, bytes."""
    arrays = []
    for name, axes in zip(names, (3, 1)):
        path = os.path.join(folder, name)
        try:
            with gzip.open(path) as file:
                content = file.read(MOST_BYTES + 1)
            magic, *shape = struct.unpack_from(f">{1 + axes}I", content)
            if magic != 0x800 + axes or len(content) > MOST_BYTES:
                raise ValueError(f"it begins with {magic:#x}, not with {0x800 + axes:#x}")
            arrays.append(np.frombuffer(content, "uint8", offset=4 + 4 * axes).reshape(shape))
        except UNREADABLE as error:
            raise _not_published(path, about, error) from error
    images, labels = arrays
    if images.shape[1:] != (28, 28):
        raise _not_published(os.path.join(folder, names[0]), about, f"its images are {images.shape[1:]} pixels")
    _require_labels(os.path.join(folder, names[1]), about, images, labels)
    return np.pad(images, ((0, 0), (2, 2), (2, 2))), labels.astype("int64")


def _cifar(path, members, about):
    """Images and labels of some pickles in an archive: dictionaries with data [N, 3072] and labels or fine_labels."""
    images, labels = {}, {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if name in members and member.isfile():
                    if member.size > MOST_BYTES:
                        raise ValueError(f"{name} has {member.size:,} bytes")
                    content = pickles.interpret(archive.extractfile(member).read())
                    pixels = content["data"].finished()
                    if pixels.dtype != "uint8" or pixels.shape[1:] != (3 * SIZE ** 2,):
                        raise ValueError(f"the data of {name} are {pixels.dtype} {pixels.shape}")
                    images[name] = pixels.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
                    labels[name] = np.array(content["labels" if "labels" in content else "fine_labels"])
        images, labels = (np.concatenate([found[name] for name in members]) for found in (images, labels))
    except UNREADABLE as error:
        raise _not_published(path, about, error) from error
    _require_labels(path, about, images, labels)
    return images, labels.astype("int64")


def _require_labels(path, about, images, labels):
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or not len(labels) or \
            not 0 <= labels.min() <= labels.max() < len(about.classes):
        raise _not_published(path, about, f"it needs {len(images)} labels of 0 to {len(about.classes) - 1}")


def _not_published(path, about, reason):
    if isinstance(reason, pickles.Malformed):
        reason = reason.reason
    elif isinstance(reason, KeyError):
        reason = f"{reason} is missing"
    return UserError(f"{shown(path)} is not a file of {about.title}, or is damaged ({str(reason)[:200]}); what Paddle "
                     "has downloaded can be deleted, it is then downloaded again")
