"""The statistics of a study: how sharp the truth is, how well rankings agree with it, and how sure that is.

Kendall's tau is computed here from signs of pairs (arrays [n, n]), so that a resample of archs is no more than a weight
per arch and a thousand of them are one matrix product; `ranking.score`, whose lists are hundreds of times as long,
cannot do that. No Paddle in here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STANDARD_ERRORS = 2.0  # by which the truth of two archs must differ for their pair to count as told apart
POWER_80 = 1.96 + 0.84  # standard errors of a difference that is found at 5 % in 80 % of all cases


class Reliability(NamedTuple):
    """How sharp a truth is.

    single: reliability of one training (the share of the variance between archs that is not chance); of_means: of the
    means that each arch has. true_deviation: between archs; noise: between trainings of one arch, both standard
    deviations in the unit of the truth. archs, trainings: how many.
    """

    single: float
    of_means: float
    true_deviation: float
    noise: float
    archs: int
    trainings: int


def reliability(trainings: Sequence[Sequence[float]]) -> Reliability:
    """Reliability of one training and of the means; trainings: for each arch what its trainings gave, one or more.

    R1 = (MSB - MSW) / (MSB + (s - 1) MSW) of a one-way analysis of variance (ICC(1, 1) of Shrout and Fleiss 1979). With
    unequal numbers s_i of trainings, s is (N - sum s_i^2 / N) / (k - 1) (Searle, Linear Models, 1971, section 10.4),
    and the means are as reliable as those of k / sum 1 / s_i trainings each. Not below 0.
    Raises `ValueError` where no arch was trained twice, or there is one arch only.
    """
    counts = np.array([len(each) for each in trainings])
    k, total = len(counts), int(counts.sum())
    if k < 2 or total == k:
        raise ValueError("reliability needs two archs or more, and one that was trained twice")
    means = np.array([np.mean(each) for each in trainings])
    grand = counts @ means / total
    between = counts @ (means - grand) ** 2 / (k - 1)
    within = sum(((np.asarray(each) - mean) ** 2).sum() for each, mean in zip(trainings, means)) / (total - k)
    s = (total - (counts ** 2).sum() / total) / (k - 1)
    true = max(0.0, (between - within) / s)
    single = true / (true + within) if true + within else 0.0
    return Reliability(single, spearman_brown(single, k / (1 / counts).sum()), float(np.sqrt(true)),
                       float(np.sqrt(within)), k, total)


def spearman_brown(single: float, trainings: float) -> float:
    """Reliability of the mean of so many trainings (Spearman 1910, Brown 1910)."""
    return trainings * single / (1 + (trainings - 1) * single)


def pearson_ceiling(reliability: float) -> float:
    """What r a perfect ranking can reach against a truth of this reliability (Spearman 1904)."""
    return float(np.sqrt(reliability))


def tau_ceiling(reliability: float) -> float:
    """The same for tau: (2 / pi) asin r of two normal variables (Greiner 1909; Kendall, Rank Correlation Methods, 1970,
    section 9.2).
    """
    return float(_tau_of(pearson_ceiling(reliability)))


def disattenuated_pearson(r: float, reliability: float) -> float:
    """What r would be against a truth without noise (Spearman 1904): r / sqrt(R), at most 1."""
    return float(np.clip(r / np.sqrt(reliability), -1, 1)) if reliability else float("nan")


def disattenuated_tau(tau: float, reliability: float) -> float:
    """The same for tau, by way of the r that a tau of normal variables belongs to (see `tau_ceiling`)."""
    return float(_tau_of(disattenuated_pearson(_r_of(tau), reliability)))


def _tau_of(r):
    return 2 / np.pi * np.arcsin(r)


def _r_of(tau):
    return np.sin(np.pi / 2 * tau)


# --- agreement, of many resamples at once -----------------------------------------------------------------------------

def tau(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None,
        pairs: np.ndarray | None = None) -> np.ndarray:
    """Kendall's tau-b (1945) of each row of scores [rows, n] with the truth [n]: float64 [resamples, rows].

    weights: how often each resample holds each arch [resamples, n]; all archs once by default. pairs: which pairs of
    archs count, bool [n, n]; all by default. NaN where no pair is told apart.
    """
    weights = np.ones((1, len(truth))) if weights is None else weights
    of_truth = _signs(truth) if pairs is None else _signs(truth) * pairs
    untied, found = _over_pairs(np.abs(of_truth), weights), []
    for row in scores:
        of_row = _signs(row) if pairs is None else _signs(row) * pairs
        both = untied * _over_pairs(np.abs(of_row), weights)
        with np.errstate(invalid="ignore"):
            found.append(_over_pairs(of_truth * of_row, weights) / np.sqrt(both))
    return np.stack(found, axis=1)


def pearson(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Pearson's r of each row of scores with the truth: float64 [resamples, rows], arguments as for `tau`."""
    weights = np.ones((1, len(truth))) if weights is None else weights
    share = weights / weights.sum(axis=1, keepdims=True)
    truth, scores = truth - truth.mean(), scores - scores.mean(axis=1, keepdims=True)  # keeps the differences exact

    def covariance(one, other):
        return share @ (one * other).T - (share @ one.T) * (share @ other.T)

    own, theirs = covariance(truth[None], truth[None]), covariance(scores, scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance(truth[None], scores) / np.sqrt(own * theirs)


def tau_in_bands(truth: np.ndarray, scores: np.ndarray, bands: np.ndarray,
                 weights: np.ndarray | None = None) -> np.ndarray:
    """The mean of the taus inside each band, arguments as for `tau`; bands: of each arch a number, -1 for none [n]."""
    means = [tau(truth, scores, weights, np.equal.outer(bands, bands) & (bands == band))
             for band in np.unique(bands[bands >= 0])]
    return np.mean(means, axis=0) if means else np.full((1 if weights is None else len(weights), len(scores)), np.nan)


def partial_tau(truth: np.ndarray, scores: np.ndarray, given: np.ndarray,
                weights: np.ndarray | None = None) -> np.ndarray:
    """Agreement of scores and truth that a third variable, given [n], does not explain: as a tau, [resamples, rows].

    The partial correlation of the normal variables that the three taus belong to (see `tau_ceiling`), as a tau again.
    Kendall's own coefficient (1942) is not 0 where only the third variable joins the two: .11 for correlations of .7.
    """
    both, ours = _r_of(tau(truth, scores, weights)), _r_of(tau(given, scores, weights))
    theirs = _r_of(tau(given, truth[None], weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        return _tau_of(np.clip((both - ours * theirs) / np.sqrt((1 - ours ** 2) * (1 - theirs ** 2)), -1, 1))


def told_apart(truth: np.ndarray, noise: float, trainings: np.ndarray) -> np.ndarray:
    """The pairs whose truth differs by more than two standard errors of the difference: bool [n, n].

    truth: means [n]; noise: standard deviation between trainings of one arch; trainings: how many each mean is of [n].
    """
    errors = noise * np.sqrt(np.add.outer(1 / trainings, 1 / trainings))
    return np.abs(np.subtract.outer(truth, truth)) > STANDARD_ERRORS * errors


def _signs(values):
    return np.sign(np.subtract.outer(values, values))


def _over_pairs(matrix, weights):
    """Sum over the pairs of each resample: [resamples]."""
    return ((weights @ matrix) * weights).sum(axis=1)


# --- resamples and tests ----------------------------------------------------------------------------------------------

def resampled_archs(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `count` archs is in each resample (Efron 1979): float64 [resamples, count].

    One array serves all rankings, so that their differences are paired.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), resamples).astype("float64")


def resampled_seeds(count: int, resamples: int, seed: int | tuple) -> np.ndarray:
    """Weights of a recipe's seeds in each resample, which sum to 1: float64 [resamples, count].

    One seed fewer than there are is drawn, so that the variance of the mean is s^2 / count and not, as `count` draws
    give, a third less for three seeds (McCarthy and Snowden 1985; Rao and Wu 1988). Raises `ValueError` for fewer than
    two.
    """
    if count < 2:
        raise ValueError("a recipe with one seed says nothing about other seeds")
    return np.random.default_rng(seed).multinomial(count - 1, np.full(count, 1 / count), resamples) / (count - 1)


def p_value(differences: np.ndarray) -> float:
    """Of a difference being 0, two-sided, by its resamples: the level at which the percentile interval reaches 0.

    With 1 added to count and resamples (Davison and Hinkley 1997, eq. 4.11).
    """
    draws = differences[np.isfinite(differences)]
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * (1 + beyond) / (1 + len(draws))))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for how many they are, in the order given (Holm 1979)."""
    corrected, worst = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = float(worst)
    return corrected


def detectable(differences: np.ndarray) -> float:
    """The difference that a study like this finds with 80 % power at 5 %: 2.8 standard errors."""
    return float(POWER_80 * np.nanstd(differences, ddof=1))
