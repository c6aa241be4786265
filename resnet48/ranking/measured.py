"""Which numbers of a file are measurements, and which of them are equal. No Paddle in here.

The list's own format has `"acc": 0.0` everywhere, so a file in which some are filled in holds zeros that nobody
measured; and means of several runs that are the same on paper differ in their last bits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..space import arch_list
from ..space.arch import SearchSpace
from ..system.errors import UserError, quoted, shown

ROUNDING = 1e-9  # accuracies that differ by a smaller part of themselves are equal
SPREAD = 1.5  # how far outside the range of a file's percentages a fraction may lie and still be of the same nets


def read(path: str, what: str, space: SearchSpace) -> "Measured":
    """What the file at `path`, in the list's format, has measured.

    what: what to call it in errors. Raises `UserError` for a malformed file, accuracies outside 0..100, and two units
    in one file.
    """
    entries, accuracies = arch_list.read_accuracies(path, what, space)
    for entry, accuracy in zip(entries, accuracies):
        if not 0 <= accuracy <= 100:
            raise UserError(f"{what} {shown(path)}, key {quoted(entry.key)}: `acc` is {accuracy}, "
                            f"allowed is 0..100 (percent) or 0..1 (fractions)")
    require_one_unit(accuracies, [entry.key for entry in entries], f"{what} {shown(path)}")
    kept = is_measured(accuracies)
    pairs = [(entry.arch, accuracy) for entry, accuracy, keep in zip(entries, accuracies, kept) if keep]
    return Measured(path, what, {arch.code: arch for arch, _ in pairs},
                    {arch.code: accuracy for arch, accuracy in pairs}, len(entries) - len(pairs),
                    sum(accuracy == 0 for _, accuracy in pairs))


def is_measured(accuracies: Sequence[float]) -> np.ndarray:
    """Which of a file's accuracies (as written, [n]) were measured: bool [n].

    An accuracy of exactly 0 is the list's placeholder where at least three quarters of the file's other accuracies are
    more than half of the highest: nets of one space that mostly do well do not get every image wrong. In a file whose
    other values reach down towards 0 it is a measurement, and so it is where there are no others.
    """
    values = np.asarray(accuracies, dtype="float64")
    others = values[values != 0]
    if not len(others) or np.percentile(others, 25) <= others.max() / 2:
        return np.ones(len(values), dtype=bool)
    return values != 0


def require_one_unit(accuracies: Sequence[float], keys: Sequence[str], where: str) -> None:
    """Raise `UserError` where a file holds fractions and percentages at once.

    A number between 0 and 1 is taken for a fraction where others are above 1 and a hundred times it lies among these;
    1 % of one hundred classes, which is chance, does not. keys: of each accuracy. where: names the file.
    """
    values = np.asarray(accuracies, dtype="float64")
    percentages = values[values > 1]
    if not len(percentages):
        return
    low, high = percentages.min() / SPREAD, percentages.max() * SPREAD
    fractions = np.flatnonzero((values > 0) & (values < 1) & (100 * values >= low) & (100 * values <= high))
    if len(fractions):
        first, other = fractions[0], int(np.argmax(values > 1))
        raise UserError(f"{where} mixes fractions and percent: {quoted(keys[first])} has {values[first]:.6g} and "
                        f"{quoted(keys[other])} {values[other]:.6g} ({len(fractions)} of {len(values)} are fractions); "
                        "all must have one unit")


def without_rounding(accuracies: np.ndarray) -> np.ndarray:
    """The same accuracies [n] with those made equal that differ by rounding only.

    Neighbours in order of size that are closer than a relative `ROUNDING` take the value of the smallest of them.
    """
    if not len(accuracies):
        return accuracies
    order = np.argsort(accuracies, kind="stable")
    ordered = accuracies[order]
    begins = np.concatenate([[True], np.diff(ordered) > ROUNDING * np.abs(ordered[1:])])
    merged = np.empty_like(accuracies)
    merged[order] = ordered[np.maximum.accumulate(np.where(begins, np.arange(len(ordered)), 0))]
    return merged


class Measured(NamedTuple):
    """What a file has measured, in its order.

    archs, accuracies (as written): by arch code. unmeasured: how many more it holds with the list's own 0. zeros: how
    many accuracies of 0 were measured.
    """

    path: str
    what: str
    archs: dict
    accuracies: dict
    unmeasured: int
    zeros: int
