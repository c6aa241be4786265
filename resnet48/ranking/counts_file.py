"""The counts file beside a submission: the sums behind its accuracies, and those of two halves. No Paddle in here."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..space.arch import digits_of
from ..space.arch_list import Entry
from ..system import files
from ..system.errors import UserError, shown

ENDING = ".counts.json"


class NoCounts(UserError):
    """There are no counts of a submission, or not those that are asked for. The message says why."""


class Counts(NamedTuple):
    """Sums over the two halves of the images. images: how many, int64 [2]; top1: hits, int64 [archs, 2];
    cross_entropy: to the labels, in nats, float64 [archs, 2].
    """

    images: np.ndarray
    top1: np.ndarray
    cross_entropy: np.ndarray


def write(submission: str, entries: Sequence[Entry], counts: np.ndarray, images: int) -> None:
    """Keep the counts behind a submission, sums over `images` images, beside it: `out/a.counts.json` for `out/a.json`.

    counts: float64 [archs, 6]: top-1 and top-5 hits, cross-entropy in nats; then of the images in the first of two
    halves, which are each a fair sample: how many there are (the same for every arch), top-1 hits, cross-entropy.

    The file holds {"images": 60, "first_images": 30, "counts": {"arch1": {"arch": "1252...", "top1": 40, "top5": 58,
    "cross_entropy": 61.25, "first_top1": 19, "first_cross_entropy": 30.5}, ...}}, with the list's keys and order;
    the second half is the difference. What an earlier version wrote has images, top1 and top5 only.
    """
    content = {entry.key: {"arch": entry.code, "top1": int(top1), "top5": int(top5), "cross_entropy": float(loss),
                           "first_top1": int(first_top1), "first_cross_entropy": float(first_loss)}
               for entry, (top1, top5, loss, _, first_top1, first_loss) in zip(entries, counts)}
    files.write_json(files.beside(submission, ENDING), {"images": images, "first_images": int(max(counts[:, 3])),
                                                        "counts": content})


def belong(submission: str, accuracies: Mapping[str, float]) -> bool:
    """Whether the accuracies of a submission, by arch code of 51 digits, are those of the counts beside it."""
    try:
        _rows(submission, accuracies)
    except UserError:
        return False
    return True


def read(submission: str, accuracies: Mapping[str, float]) -> Counts:
    """The counts beside a submission, in the order of its `accuracies`, by arch code of 51 digits.

    Raises `NoCounts` where there are none, where they are another submission's, or without what `Counts` holds.
    """
    return _halves(*_rows(submission, accuracies))


def read_whole(submission: str, entries: Sequence[Entry], accuracies: Sequence[float]) -> tuple[np.ndarray, int]:
    """(float64 [archs, 6] as `write` took them, the number of images) of the counts beside a submission.

    entries, accuracies: of the submission, in whose order the counts are. Raises `NoCounts` as `read` does, and
    `UserError` where the counts have other keys than the submission.
    """
    by_code = {entry.arch.code: accuracy for entry, accuracy in zip(entries, accuracies)}
    path, content, rows = _rows(submission, by_code)
    _halves(path, content, rows)  # whether all but the top-5 hits are there, and possible
    rows = [content["counts"].get(entry.key) for entry in entries]
    if any(row is None or row["arch"] != entry.code for entry, row in zip(entries, rows)):
        raise UserError(f"the counts beside {shown(os.path.basename(submission))} have other keys than the submission")
    with _malformed_named(path):
        return np.array([[row["top1"], row["top5"], row["cross_entropy"], content["first_images"], row["first_top1"],
                          row["first_cross_entropy"]] for row in rows], "float64"), content["images"]


def _halves(path, content, rows):
    """`Counts` of what `_rows` gives."""
    if "first_images" not in content:
        raise NoCounts(f"an earlier version wrote {shown(path)}, without cross-entropies and halves of the images; "
                       "`eval_supernet.py run` writes it anew")
    with _malformed_named(path):
        first_images = content["first_images"]
        whole = np.array([[row["top1"], row["cross_entropy"]] for row in rows], "float64")
        first = np.array([[row["first_top1"], row["first_cross_entropy"]] for row in rows], "float64")
        images = np.array([first_images, content["images"] - first_images], "int64")
    second = whole - first
    if not np.isfinite(whole).all() or not np.isfinite(first).all() or min(first.min(), second.min(), *images) < 0:
        raise NoCounts(f"{shown(path)} holds impossible counts; `eval_supernet.py run` writes it anew")
    top1, cross_entropy = np.stack([first, second], axis=2).transpose(1, 0, 2)
    return Counts(images, top1.astype("int64"), cross_entropy)


@contextlib.contextmanager
def _malformed_named(path):
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError):
        raise NoCounts(f"{shown(path)} is malformed; `eval_supernet.py run` writes it anew") from None


def _rows(submission, accuracies):
    """(path, content, the row of each arch) of the counts file that belongs to these accuracies."""
    path = files.beside(submission, ENDING)
    if not os.path.exists(path):
        raise NoCounts(f"there are no counts {shown(path)} beside the submission")
    content = files.read_json(path, "counts")
    try:
        by_code = {digits_of(row["arch"]): row for row in content["counts"].values()}
        rows = [by_code[code] for code in accuracies]
        if all(100 * row["top1"] / content["images"] == accuracy for row, accuracy in zip(rows, accuracies.values())):
            return path, content, rows
    except (UserError, AttributeError, KeyError, TypeError, ZeroDivisionError, OverflowError):
        pass
    raise NoCounts(f"the counts {shown(path)} are not those of the submission")
