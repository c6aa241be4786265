"""Whether counts that somebody states are what a net gives: some archs, drawn at random, evaluated again one by one."""

from collections.abc import Sequence

import numpy as np

from ..nets.supernet import Supernet
from ..space.arch_list import Entry
from ..system.errors import UserError, quoted
from . import counts, evaluator
from .accuracy import Sample

HITS = {0: "top-1 hits", 1: "top-5 hits", 3: "images in the first half", 4: "top-1 hits in the first half"}
LOSSES = {2: "nats of cross-entropy", 5: "nats of cross-entropy in the first half"}


def recheck(net: Supernet, entries: Sequence[Entry], stated: np.ndarray, sample: Sample, images: int, count: int,
            seed: int, batch_size: int, tolerance: int = 0) -> str:
    """Evaluate `count` of the archs again, by the reference (each on its own, in float32); what was found, as text.

    stated: float64 [archs, columns], as `counts.in_nats` gives them, on so many `images`. seed: of the choice of archs.
    tolerance: images by which hits may differ; with 0, cross-entropies are compared too, to `counts.ROUNDING` per
    image. Raises `UserError` for the first arch that gives something else.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(entries))[:count])
    found, total = evaluator.counts_one_by_one(net, [entries[place].arch for place in chosen], sample, batch_size)
    if total != images:
        raise UserError(f"the counts are of {images} images, and there are {total} to evaluate on now")
    wrong = [(entries[place].key, text) for place, row in zip(chosen, found)
             if (text := _difference(row, stated[place], images, tolerance))]
    if wrong:
        key, text = wrong[0]
        raise UserError(f"the counts are not what this checkpoint gives on these images: {len(wrong)} of {len(chosen)} "
                        f"archs that were evaluated again differ, the first is {quoted(key)}: {text}")
    furthest = np.abs(found - stated[chosen]).max(axis=0)
    return (f"evaluated {len(chosen)} of {len(entries)} archs again on {images} images: "
            + (f"hits differ by at most {furthest[list(HITS)].max():.0f}" if tolerance else "all hits are equal")
            + f", cross-entropies differ by at most {furthest[2] / images:.1e} nats per image")


def _difference(found, stated, images, tolerance):
    """What of an arch's counts differs by more than it may, as text; None if nothing does."""
    for column, name in HITS.items():
        if abs(found[column] - stated[column]) > (tolerance if column != 3 else 0):
            return f"{found[column]:.0f} {name} where {stated[column]:.0f} are stated"
    for column, name in LOSSES.items() if not tolerance else ():
        of = images if column == 2 else stated[3]
        if not abs(found[column] - stated[column]) <= counts.ROUNDING * of:
            return f"{found[column]:.6g} {name} where {stated[column]:.6g} are stated, on {of:.0f} images"
    return None
