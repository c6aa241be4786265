"""What lies beside a submission and belongs on its page: the truth, the training's metrics.csv, the manifest.

No Paddle in here.
"""

import csv
import os
from typing import NamedTuple

import numpy as np

from ..space import description
from ..space.split import Split
from ..system import files
from ..system.errors import UserError, quoted, shown
from . import score as scoring
from . import measured, submission

#: As train_supernet.sh names them.
SUBMISSION, TRUTH, METRICS, RUN = "submission.json", "truth.json", "metrics.csv", "train"
LARGEST = 1e100  # that is drawn


class Sources(NamedTuple):
    """Paths of the submission, of the truth and of the training's metrics.csv; None for what is not there."""

    submission: str
    truth: str | None
    metrics: str | None

    @property
    def run_folder(self) -> str | None:
        """Where the metrics lie."""
        return self.metrics and os.path.dirname(os.path.abspath(self.metrics))


class Gathered(NamedTuple):
    """The content of `Sources`.

    found: what the submission has measured. image_size (pixels), num_classes: of its nets, for MACs. manifest: as it is
    written, {} without one. split: of the supernet, if it has one. score: against the truth, or a sentence that says
    why there is none. metrics: by column, float64 [rows], see `read_metrics`; None without.
    """

    found: measured.Measured
    image_size: int
    num_classes: int
    manifest: dict
    split: Split | None
    score: scoring.Score | str
    metrics: dict[str, np.ndarray] | None


def sources(output: str, truth: str | None = None, run: str | None = None) -> Sources:
    """Where everything is.

    output: a submission, or a folder with submission.json. truth: None for truth.json beside it. run: the run folder of
    the training, None for the folder `train` beside the submission, or the submission's own.
    Raises `UserError` where a folder of training that was named has no metrics.csv.
    """
    found = os.path.join(output, SUBMISSION) if os.path.isdir(output) else output
    folder = os.path.dirname(found)
    if run and not os.path.isfile(os.path.join(run, METRICS)):
        raise UserError(f"--checkpoint {shown(run)} has no {METRICS}; name the run folder of the supernet's training")
    folders = [run] if run else [os.path.join(folder, RUN), folder]
    return Sources(found, truth or _first_file(os.path.join(folder, TRUTH)),
                   _first_file(*(os.path.join(place, METRICS) for place in folders)))


def gather(paths: Sources, seed: int = 0) -> Gathered:
    """Read everything. seed: of the bootstrap. Raises `UserError` for a file that is malformed."""
    space, image_size, classes = submission.read_manifest_net(paths.submission)
    found, path = measured.read(paths.submission, "submission", space), submission.manifest_path(paths.submission)
    manifest = files.read_json(path, "manifest") if os.path.exists(path) else {}
    return Gathered(found, image_size, classes, manifest, description.read_split(manifest.get("net", {})),
                    _score(paths, space, image_size, classes, seed), paths.metrics and read_metrics(paths.metrics))


def read_metrics(path: str) -> dict[str, np.ndarray]:
    """A training's metrics.csv: float64 [rows] by column name, NaN for what a row does not have or no picture can show.

    Raises `UserError` for what is not such a file. A last line without its end was cut off in writing and is left out.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            *lines, _ = file.read().split("\n")
        names, *rows = csv.reader(lines, strict=True)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{shown(path)} is no table of a training: {error}") from error
    if not {"epoch", "step"} <= set(names) or len(set(names)) < len(names):
        raise UserError(f"{shown(path)} is no table of a training: line 1 must name its columns, epoch and step among "
                        "them, each once")
    for place, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise UserError(f"{shown(path)}, line {place}: {len(row)} cells where line 1 names {len(names)} columns")
    table = {name: np.array([_number(cell, path, place) for place, cell in enumerate(column, 2)], "float64")
             for name, column in zip(names, zip(*rows) if rows else [()] * len(names))}
    if not np.isfinite([table["epoch"], table["step"]]).all():
        raise UserError(f"{shown(path)} is no table of a training: a row does not say its epoch and its step")
    return table


def pareto_front(macs: np.ndarray, accuracies: np.ndarray) -> list[int]:
    """The places of the archs to which no other is better in one and at least equal in the other of fewer MACs and
    higher accuracy (both [archs]), in the order of MACs.
    """
    front, best = [], (-np.inf, 0)
    for place in np.lexsort((-accuracies, macs)):
        point = accuracies[place], macs[place]
        if point[0] > best[0] or point == best:  # equal in both: neither is better
            front.append(int(place))
            best = point
    return front


def _score(paths, space, image_size, classes, seed):
    if not paths.truth:
        return f"There is no truth to score against: no `{TRUTH}` lies beside the submission, and none was named."
    measured.read(paths.truth, "truth", space)  # what is malformed is an error
    try:
        return scoring.score(paths.submission, paths.truth, space, image_size, classes, seed)
    except UserError as error:  # too few archs so far, or all equal
        return f"There is no score: {error}."


def _first_file(*paths):
    return next(filter(os.path.isfile, paths), None)


def _number(cell, path, place):
    try:
        value = float(cell or "nan")
        return value if abs(value) < LARGEST else np.nan
    except ValueError:
        raise UserError(f"{shown(path)}, line {place}: {quoted(cell)} is no number") from None
