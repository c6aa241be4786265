"""The arch list: reading and selecting. No Paddle in here.

An arch list and a submission have one format, `{"arch1": {"acc": 0.0, "arch": "1252..."}, ...}`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..system import files
from ..system.errors import UserError, quoted, shown
from .arch import FULL, ArchConfig, ArchError, SearchSpace

FIELDS = ("acc", "arch")
RANKING_FORMAT = "resnet48 ranking"  #: what files of `ranking.rankings` hold as `format`: no list, and refused by name


class Entry(NamedTuple):
    """One arch of a list: its key, its code exactly as the file has it (51 or 52 digits), and the parsed arch."""

    key: str
    code: str
    arch: ArchConfig


def read_list(path: str, space: SearchSpace = FULL) -> list[Entry]:
    """The arch list at `path`: a list of `Entry`, in the file's order.

    Raises `UserError` naming the file and the key for a malformed entry or code and for an arch that is listed twice.
    """
    return read_accuracies(path, "arch list", space)[0]


def select(entries: Sequence[Entry], limit: int | None = None, every: int = 1, keys: str | None = None) -> list[Entry]:
    """Part of a list, in its order: every K-th entry or those with the given keys (comma-separated), then the first N.

    Raises `UserError` for a key that is not in the list, and for both at once.
    """
    chosen = entries[::every]
    if keys is not None:
        if every > 1:
            raise UserError("--every and --keys each say which archs; only one of them can be given")
        wanted = dict.fromkeys(key.strip() for key in keys.split(","))
        unknown = wanted.keys() - {entry.key for entry in entries}
        if unknown:
            raise UserError(f"--keys: {quoted(sorted(unknown)[0])} is not in the list")
        chosen = [entry for entry in entries if entry.key in wanted]
    return chosen[:limit]


def read_accuracies(path: str, what: str, space: SearchSpace = FULL) -> tuple[list[Entry], list[float]]:
    """Entries and accuracies of a file in the list's format: (list of `Entry`, list of float), in the file's order.

    what: what to call the file in errors. The accuracies are as written: percent, or fractions from some teams.
    Raises `UserError` as `read_list` does.
    """
    content = read_object(path, what)
    if not content:
        raise UserError(f"{what} {shown(path)} is empty; it must hold at least one arch")
    entries, accuracies, key_of = [], [], {}
    for key, value in content.items():
        problem = entry_problem(value)
        if problem:
            raise UserError(f"{what} {shown(path)}, key {quoted(key)}: {problem}")
        try:
            arch = ArchConfig.parse(value["arch"], space)
        except ArchError as error:
            raise UserError(f"{what} {shown(path)}, key {quoted(key)}: {error}") from error
        if arch.code in key_of:
            raise UserError(f"{what} {shown(path)}: keys {quoted(key_of[arch.code])} and {quoted(key)} hold the same "
                            f"arch {arch.code}; each arch may occur once, in 51 or in 52 digits")
        key_of[arch.code] = key
        entries.append(Entry(key, value["arch"], arch))
        accuracies.append(float(value["acc"]))
    return entries, accuracies


def read_object(path, what):
    content = files.read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f'{what} {shown(path)} must be one object {{"arch1": {{"acc": 0.0, "arch": "1252..."}}, ...}}, '
                        f"found {json_kind(content)}")
    if content.get("format") == RANKING_FORMAT:
        raise UserError(f"{what} {shown(path)} is a ranking that `eval_supernet.py rank` wrote, and holds no "
                        "accuracies; rule 6 of the contest forbids to submit what a predictor says")
    return content


def entry_problem(value):
    """What is wrong with one entry, its digits aside; None if nothing is."""
    if not isinstance(value, dict):
        return f"must be an object with `acc` and `arch`, found {json_kind(value)}"
    for name in value:
        if name not in FIELDS:
            return f"unknown field {quoted(name)}, allowed are `acc` and `arch`"
    for name in FIELDS:
        if name not in value:
            return f"the field `{name}` is missing"
    if not isinstance(value["arch"], str):
        return f"`arch` must be a string of digits, found {json_kind(value['arch'])}"
    if _is_finite(value["acc"]):
        return None
    acc = value["acc"]
    too_large = isinstance(acc, int) and not isinstance(acc, bool)
    found = acc if isinstance(acc, float) else "one that is too large" if too_large else json_kind(acc)
    return f"`acc` must be a finite number, found {found}"


def _is_finite(value):
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond the range of a float
        return False


def json_kind(value):
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
