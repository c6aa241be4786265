"""The statistics of a study do on simulated archs, whose truth is known, what they say."""

import numpy as np
import pytest
from scipy import stats

from resnet48.study import statistics


def archs(rng, n, *correlations):
    """Rows of standard normals: the first, and others that correlate with it as given."""
    first = rng.standard_normal(n)
    return np.array([first, *(r * first + np.sqrt(1 - r ** 2) * rng.standard_normal(n) for r in correlations)])


# --- how sharp the truth is -------------------------------------------------------------------------------------------

def test_reliability_of_as_many_trainings_each_is_the_formula(rng):
    table = rng.standard_normal((30, 1)) + 0.5 * rng.standard_normal((30, 3))
    between = 3 * table.mean(axis=1).var(ddof=1)
    within = table.var(axis=1, ddof=1).mean()
    found = statistics.reliability(table.tolist())
    assert found.single == pytest.approx((between - within) / (between + 2 * within))
    assert found.of_means == pytest.approx(1 - within / between)
    assert found.noise == pytest.approx(np.sqrt(within)) and (found.archs, found.trainings) == (30, 90)


def test_reliability_where_half_of_the_archs_were_trained_twice_is_right_on_average(rng):
    found = []
    for _ in range(200):
        true = 2 * rng.standard_normal(60)
        found.append(statistics.reliability([value + rng.standard_normal(1 + i % 2) for i, value in enumerate(true)]))
    assert np.mean([each.single for each in found]) == pytest.approx(0.8, abs=0.015)
    assert np.mean([each.true_deviation for each in found]) == pytest.approx(2, abs=0.05)
    assert np.mean([each.noise for each in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([each.of_means for each in found]) == pytest.approx(4 / (4 + (1 + 1 / 2) / 2), abs=0.015)


def test_pure_noise_has_no_reliability_and_exact_repeats_are_fully_reliable():
    assert statistics.reliability([[1.0, 2.0], [2.0, 1.0]]).single == 0
    assert statistics.reliability([[1.0, 1.0], [2.0, 2.0], [5.0]]).single == 1


@pytest.mark.parametrize("trainings", [[[1.0], [2.0]], [[1.0, 2.0]]])
def test_reliability_needs_repeats_and_archs(trainings):
    with pytest.raises(ValueError, match="trained twice"):
        statistics.reliability(trainings)


def test_a_mean_correlates_with_another_mean_as_spearman_and_brown_say(rng):
    true = rng.standard_normal((20000, 1))
    one, other = (np.mean(true + 0.7 * rng.standard_normal((20000, 4)), axis=1) for _ in range(2))
    single = 1 / (1 + 0.7 ** 2)
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(statistics.spearman_brown(single, 4), abs=0.01)


@pytest.mark.parametrize("reliability", [0.6, 0.9])
def test_a_perfect_ranking_reaches_the_ceilings(rng, reliability):
    true = rng.standard_normal(4000)
    measured = true + np.sqrt(1 / reliability - 1) * rng.standard_normal(4000)
    assert np.corrcoef(true, measured)[0, 1] == pytest.approx(statistics.pearson_ceiling(reliability), abs=0.015)
    assert stats.kendalltau(true, measured).statistic == pytest.approx(statistics.tau_ceiling(reliability), abs=0.015)


def test_without_the_noise_of_the_truth_agreement_is_what_disattenuation_says(rng):
    true, score = archs(rng, 4000, 0.7)
    measured = true + np.sqrt(1 / 0.75 - 1) * rng.standard_normal(4000)
    r, tau = np.corrcoef(score, measured)[0, 1], stats.kendalltau(score, measured).statistic
    assert statistics.disattenuated_pearson(r, 0.75) == pytest.approx(0.7, abs=0.03) != pytest.approx(r, abs=0.05)
    assert statistics.disattenuated_tau(tau, 0.75) == pytest.approx(stats.kendalltau(score, true).statistic, abs=0.03)
    assert statistics.disattenuated_tau(tau, 1.0) == pytest.approx(tau)
    assert statistics.disattenuated_pearson(0.9, 0.5) == 1


# --- agreement --------------------------------------------------------------------------------------------------------

def test_tau_and_pearson_are_those_of_scipy_on_every_resample(rng):
    truth, scores = rng.integers(0, 12, 25).astype(float), rng.integers(0, 6, (2, 25)).astype(float)
    weights = statistics.resampled_archs(25, 20, seed=1)
    taus, rs = statistics.tau(truth, scores, weights), statistics.pearson(truth, scores, weights)
    for draw, of_tau, of_r in zip(weights.astype(int), taus, rs):
        chosen = np.repeat(np.arange(25), draw)
        for row in range(2):
            assert of_tau[row] == pytest.approx(stats.kendalltau(truth[chosen], scores[row, chosen]).statistic)
            assert of_r[row] == pytest.approx(np.corrcoef(truth[chosen], scores[row, chosen])[0, 1])
    assert statistics.tau(truth, truth[None]) == 1


def test_what_is_all_equal_agrees_with_nothing():
    flat = np.ones((1, 5))
    assert np.isnan(statistics.tau(np.arange(5.0), flat)).all() and np.isnan(statistics.pearson(np.arange(5.0), flat))


def test_tau_in_bands_is_the_mean_over_bands_and_sees_no_other_pairs(rng):
    truth, score = rng.standard_normal((2, 30))
    bands = np.repeat([0, 1, -1], 10)
    apart = truth + 100 * np.maximum(bands, 0)  # between bands every pair is ordered rightly
    expected = np.mean([stats.kendalltau(apart[bands == band], score[bands == band]).statistic for band in (0, 1)])
    assert statistics.tau_in_bands(apart, score[None], bands)[0, 0] == pytest.approx(expected)
    assert np.isnan(statistics.tau_in_bands(truth, score[None], np.full(30, -1))).all()


def test_what_macs_alone_explain_leaves_no_partial_tau(rng):
    macs, truth, explained = archs(rng, 1500, 0.8, 0.7)
    knowing = explained + 0.5 * (truth - 0.8 * macs)
    (nothing, something), = statistics.partial_tau(truth, np.array([explained, knowing]), macs)
    assert abs(nothing) < 0.04 and something > 0.15
    assert stats.kendalltau(truth, explained).statistic > 0.3


def test_pairs_count_as_told_apart_where_their_means_differ_by_two_standard_errors():
    found = statistics.told_apart(np.array([0.0, 2.5, 5.8]), 1.0, np.array([1, 1, 2]))
    # 2.5 < 2 sqrt(2); 5.8 and 3.3 > 2 sqrt(1.5)
    assert found.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_over_pairs_told_apart_a_good_ranking_is_hardly_wrong(rng):
    true = 2 * rng.standard_normal(200)
    measured = true + rng.standard_normal(200)
    pairs = statistics.told_apart(measured, 1.0, np.ones(200))
    assert statistics.tau(measured, true[None], pairs=pairs)[0, 0] > 0.97
    assert statistics.tau(measured, true[None])[0, 0] < 0.8


# --- how sure it is ---------------------------------------------------------------------------------------------------

def test_resampled_archs_vary_as_other_archs_would(rng):
    n, found, spread = 60, [], []
    for repeat in range(150):
        truth, one, other = archs(rng, n, 0.8, 0.6)
        scores = np.array([one, other])
        found.append(statistics.tau(truth, scores)[0])
        draws = statistics.tau(truth, scores, statistics.resampled_archs(n, 100, seed=repeat))
        spread.append([*draws.std(axis=0), np.std(draws[:, 0] - draws[:, 1])])
    found = np.array(found)
    true = [*found.std(axis=0), np.std(found[:, 0] - found[:, 1])]
    assert np.mean(spread, axis=0) == pytest.approx(true, rel=0.2)


def test_resampled_seeds_vary_as_the_mean_of_other_seeds_would(rng):
    for count in (2, 3, 5):
        values = rng.standard_normal(count)
        draws = statistics.resampled_seeds(count, 20000, seed=0) @ values
        assert draws.std() == pytest.approx(values.std(ddof=1) / np.sqrt(count), rel=0.03)
        assert draws.mean() == pytest.approx(values.mean(), abs=0.03)
    with pytest.raises(ValueError):
        statistics.resampled_seeds(1, 10, seed=0)


def test_equal_recipes_are_found_different_about_as_often_as_the_p_value_says(rng):
    below = 0
    for repeat in range(200):
        truth, *scores = archs(rng, 50, *[0.7] * 4)
        taus = statistics.tau(truth, np.array(scores), statistics.resampled_archs(50, 199, seed=repeat))
        below += statistics.p_value(taus[:, :2].mean(axis=1) - taus[:, 2:].mean(axis=1)) < 0.1
    assert 8 <= below <= 34  # 20 expected


def test_what_all_resamples_agree_on_has_a_small_p_value():
    assert statistics.p_value(np.full(999, 0.2)) == 0.002
    assert statistics.p_value(np.array([-1.0, 1.0, np.nan])) == 1


def test_holm_corrects_as_published():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0] and statistics.holm([]) == []


def test_a_detectable_difference_is_found_in_four_of_five_cases(rng):
    error = 0.03
    difference = statistics.detectable(error * rng.standard_normal(20000))
    found = np.abs(difference + error * rng.standard_normal(20000)) > 1.96 * error
    assert found.mean() == pytest.approx(0.8, abs=0.02)
