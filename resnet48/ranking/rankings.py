"""Other rankings of a submission's archs than by its accuracies, for whoever searches. No Paddle in here.

By the cross-entropy, which takes more values on few images than top-1; smoothed (see `smoothing`); and with a little of
what MACs say. The last two are predictions. Rule 6 of the contest forbids to submit such, so they are rows of the score
sheet and files of a format of their own, which no reader of submissions takes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..space.arch_list import RANKING_FORMAT
from ..system import files
from ..system.errors import UserError
from . import counts_file, smoothing
from .measured import Measured

#: Of z(log MACs) beside z(score). Fixed beforehand, on 1,000 archs of the contest of 2021: tau rose from .857 to .882,
#: and .5 was too much.
MACS_WEIGHT = 0.15
CROSS_ENTROPY, SMOOTH, HYBRID = "cross-entropy", "smoothed", "MACs hybrid"
METHODS = {"smooth": SMOOTH, "hybrid": HYBRID}  # of `rank` -> of the score sheet


class Rankings(NamedTuple):
    """scores: by the name of a ranking, float64 [archs], more is better. notes: on what they rest, or why there is
    none, by the same name.
    """

    scores: dict[str, np.ndarray]
    notes: dict[str, str]


def hybrid(scores: np.ndarray, macs: Sequence[float]) -> np.ndarray:
    """z(s) + MACS_WEIGHT z(log MACs), z-scores over the archs given: float64 [n]."""
    return _standardised(scores) + MACS_WEIGHT * _standardised(np.log(np.asarray(macs, "float64")))


def rankings(found: Measured, image_size: int, num_classes: int) -> Rankings:
    """All rankings that can be had of what a submission has measured, in its order.

    image_size (pixels), num_classes: of the nets, for MACs.
    """
    archs, accuracies = list(found.archs.values()), np.array(list(found.accuracies.values()), "float64")
    scores, notes = {}, {}
    try:
        counts = counts_file.read(found.path, found.accuracies)
        scores[CROSS_ENTROPY] = -counts.cross_entropy.sum(axis=1) / counts.images.sum()
        notes[CROSS_ENTROPY] = f"the mean over {counts.images.sum()} images, less is better"
        scores[SMOOTH], notes[SMOOTH] = _smoothed(archs, accuracies, counts)
    except UserError as error:
        notes.setdefault(CROSS_ENTROPY, str(error))
        notes[SMOOTH] = str(error)
    scores[HYBRID] = hybrid(accuracies, [arch.macs(image_size, num_classes) for arch in archs])
    notes[HYBRID] = f"z(top-1) + {MACS_WEIGHT:g} z(log MACs)"
    return Rankings(scores, notes)


def sheet_lines(notes: dict[str, str]) -> list[str]:
    """The notes of `Rankings` as lines of the score sheet."""
    lines = [f"{', '.join(name for name in notes if notes[name] == text)}: {text}"
             for text in dict.fromkeys(notes.values())]
    return [*lines, f"{SMOOTH} and {HYBRID} are predictions, for a search: rule 6 of the contest forbids to submit "
                    "them"]


def write(path: str, found: Measured, method: str, image_size: int, num_classes: int) -> str:
    """Write one of METHODS as a ranking, whole or not at all; returns a line for the log.

    The file holds {"format": RANKING_FORMAT, "method": "smooth", "about": "...", "submission_sha256": "...",
    "ranking": [{"arch": 51 digits, "score": 0.5}, ...]}, the best arch first, of equal ones that of the submission's
    order. image_size, num_classes: as for `rankings`. Raises `UserError` where the submission does not have what the
    method needs.
    """
    made = rankings(found, image_size, num_classes)
    name = METHODS[method]
    if name not in made.scores:
        raise UserError(f"--method {method} is not possible: {made.notes[name]}")
    scores, codes = made.scores[name], list(found.archs)
    order = np.argsort(-scores, kind="stable")
    files.write_json(path, {"format": RANKING_FORMAT, "method": method, "about": made.notes[name],
                            "submission_sha256": files.sha256_of(found.path),
                            "ranking": [{"arch": codes[place], "score": float(scores[place])} for place in order]})
    return (f"wrote {path}: a ranking of {len(codes)} archs, {made.notes[name]}; not a submission, for rule 6 of the "
            "contest forbids accuracies from a predictor")


def reason_to_keep(path: str) -> str | None:
    """Why the file at `path` must not be replaced by a ranking, as the end of a sentence; None if it may."""
    try:
        content = files.read_json(path, "file")
    except UserError:
        content = None
    ours = isinstance(content, dict) and content.get("format") == RANKING_FORMAT
    return None if ours else "is there already and is not a ranking"


def _smoothed(archs, accuracies, counts):
    if len(archs) < smoothing.FEWEST:
        raise UserError(f"{len(archs)} archs are too few, {smoothing.FEWEST} are needed")
    if not counts.images.all():
        raise UserError(f"two halves of the images are needed, and there is {counts.images.sum()} in all")
    # In percent, as the counts are, whatever the submission's unit.
    halves = 100 * counts.top1 / counts.images
    found = smoothing.smooth(archs, accuracies, halves, counts.images)
    return found.scores, (f"top-1 keeps {found.weight:.2f} of what an additive fit of {found.features} leaves of it, "
                          f"by the noise between {counts.images[0]} and {counts.images[1]} images")


def _standardised(values):
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))
