"""A figure with its interval, from resamples of what it was computed from. No Paddle in here."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def percentile_interval(value: float, draws: np.ndarray) -> Interval:
    """The percentile interval (Efron 1979) of a figure; draws: the same figure of each resample [resamples], NaN where
    it has none.
    """
    low, high = np.percentile(draws[np.isfinite(draws)], (2.5, 97.5))
    return Interval(float(value), float(low), float(high))
