"""Additive smoothing: scores from few images, drawn towards what each block adds on its own. No Paddle in here.

Scores from few images are noisy, and in the published list thousands of archs share each choice of a block. An additive
fit f averages over them; what it leaves of the scores s is noise and true interaction. The noise is known from two
halves of the images, so s' = f + w (s - f), where w is the share of the rest that is no noise (James and Stein 1961;
Efron and Morris 1973, Journal of the American Statistical Association 68, shrink towards a mean in this way).

Only scores are read here: there is no truth among the arguments. Whatever the fit, a smoothed score is a prediction,
which may guide a search, and which rule 6 of the contest forbids to submit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..space.arch import ArchConfig

CODES, SHAPES = "codes", "depths and widths"
#: Of the fit. 10 was found on tens of thousands of archs, where columns are 0 or 1. With few archs the columns have the
#: variance 1, and it is there only for those that are the same in all archs, or the same as others.
RIDGE = {CODES: 10.0, SHAPES: 0.1}
#: For one column per digit and position. A fit of p columns to n archs keeps p / n of the noise, here up to a tenth.
ARCHS_PER_COLUMN = 10
FEWEST = 20  # archs: the 8 columns of the smaller fit leave enough of them to see how much is noise


class Smoothed(NamedTuple):
    """scores: s', float64 [n]. weight: w. noise, residual: variances, in squared units of the scores. features: CODES
    or SHAPES.
    """

    scores: np.ndarray
    weight: float
    noise: float
    residual: float
    features: str


def smooth(archs: Sequence[ArchConfig], scores: np.ndarray, halves: np.ndarray, images: Sequence[int]) -> Smoothed:
    """Additive smoothing of `scores` (float64 [n], means over images).

    halves: float64 [n, 2], means over two halves of the images; images: how many are in each.

    f is a ridge regression with an intercept that is not penalised. w = max(0, 1 - noise / residual variance), both
    variances of what f cannot express: the residual of s, and that of the difference d between the halves, of which
    the noise of s is var(d) n1 n2 / (n1 + n2)^2. Both are divided by the same degrees of freedom, n - 1 - trace of the
    hat matrix, so that a fit that follows noise is not taken for a good one.
    Raises `ValueError` for fewer than FEWEST archs or an empty half.
    """
    first, second = images
    if len(archs) < FEWEST or not first * second:
        raise ValueError(f"{len(archs)} archs on {first} + {second} images tell no noise apart")
    features, columns = design(archs)
    values = np.stack([scores, halves[:, 0] - halves[:, 1]], axis=1)
    columns, centred = columns - columns.mean(axis=0), values - values.mean(axis=0)
    gram = columns.T @ columns
    inverse = np.linalg.inv(gram + RIDGE[features] * np.eye(len(gram)))
    rest = centred - columns @ (inverse @ (columns.T @ centred))
    freedom = len(archs) - 1 - np.sum(inverse * gram)
    residual, difference = (rest ** 2).sum(axis=0) / freedom
    noise = difference * first * second / (first + second) ** 2
    weight = 1.0 if noise == 0 else max(0.0, 1 - noise / residual) if residual else 0.0
    # f + w (s - f), in a form that leaves s as it is where w is 1.
    return Smoothed(scores - (1 - weight) * rest[:, 0], weight, float(noise), float(residual), features)


def design(archs: Sequence[ArchConfig]) -> tuple[str, np.ndarray]:
    """What f is a sum of: (CODES or SHAPES, float64 [n, columns]).

    CODES: a column for each digit that occurs at each of the 51 positions of a code, so for each depth of a stage and
    each ratio of a convolution, 0 (absent) among them; where there are ARCHS_PER_COLUMN archs for each of them.
    SHAPES: of each stage the depth and the mean logarithm of the widths of its convolutions, with variance 1.
    """
    codes = np.frombuffer("".join(arch.code for arch in archs).encode(), "uint8").reshape(len(archs), -1)
    digits = [(place, digit) for place in range(codes.shape[1]) for digit in np.unique(codes[:, place])]
    if len(archs) >= ARCHS_PER_COLUMN * len(digits):
        return CODES, np.stack([codes[:, place] == digit for place, digit in digits], axis=1).astype("float64")
    shapes = np.array([[*arch.depths, *(np.log(stage).mean() for stage in arch.stages)] for arch in archs])
    spread = shapes.std(axis=0)
    return SHAPES, (shapes - shapes.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
