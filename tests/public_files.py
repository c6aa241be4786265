"""Small files in the formats in which Fashion-MNIST, CIFAR-10 and CIFAR-100 are published."""

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np

from resnet48.images import public_sets


class Python2Pickler(pickle._Pickler):  # the one in Python, for the other cannot be told how to write bytes
    """Writes bytes as Python 2 wrote its strings, of which the archives of CIFAR are made."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) +
                   value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def pickled(content):
    """An archive's member with this content; texts are given as bytes."""
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(content)
    return out.getvalue()


def idx(folder, train=200, test=100, seed=0):
    """Write Fashion-MNIST's four files; {split: (images [N, 28, 28], labels [N])}."""
    rng, made = np.random.default_rng(seed), {}
    os.makedirs(folder, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        images, labels = rng.integers(0, 256, (count, 28, 28), "uint8"), rng.permutation(count).astype("uint8") % 10
        for name, array in zip(public_sets.IDX[split], (images, labels)):
            with gzip.open(os.path.join(folder, name), "wb") as file:
                file.write(struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes())
        made[split] = images, labels.astype("int64")
    return made


def cifar(folder, name="cifar10", per_batch=40, seed=0, change=lambda member, content: content):
    """Write the archive of cifar10 or cifar100; {split: (images [N, 32, 32, 3], labels [N])}.

    change(member, content): what is written instead; bytes as they are.
    """
    rng, made = np.random.default_rng(seed), {}
    os.makedirs(folder, exist_ok=True)
    classes, place = (10, "cifar-10-batches-py") if name == "cifar10" else (100, "cifar-100-python")
    with tarfile.open(os.path.join(folder, public_sets.SETS[name].files[0]), "w:gz") as archive:
        for split in ("test", "train"):
            images, labels = [], []
            for member in public_sets.MEMBERS[name, split]:
                data = rng.integers(0, 256, (per_batch, 3072), "uint8")
                own = (rng.permutation(per_batch) % classes).tolist()
                content = {b"data": data, b"filenames": [b"a.png"] * per_batch, b"batch_label": b"1 of 5"}
                content |= {b"labels": own} if name == "cifar10" else {b"fine_labels": own, b"coarse_labels": own[::-1]}
                content = change(member, content)
                content = content if isinstance(content, bytes) else pickled(content)
                about = tarfile.TarInfo(f"{place}/{member}")
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
                images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
                labels += own
            made[split] = np.concatenate(images), np.array(labels)
    return made
