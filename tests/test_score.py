"""The score: the right pairs, the right figures, intervals that cover, clear refusals."""

import itertools
import json
import os
import re

import numpy as np
import pytest
from scipy import stats

from resnet48.ranking import measured
from resnet48.ranking import score as scoring
from resnet48.space.arch import FULL, PUBLISHED, ArchConfig
from resnet48.system.errors import UserError

RESAMPLES = 60


def archs(n, seed=0, space=PUBLISHED):
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < n:
        arch = space.sample(rng)
        found[arch.code] = arch
    return list(found.values())


def save(path, codes, accuracies, key="arch"):
    content = {f"{key}{i}": {"acc": float(acc), "arch": code} for i, (code, acc) in enumerate(zip(codes, accuracies))}
    path.write_text(json.dumps(content))
    return str(path)


def compare(folder, submitted, true, nets=None, space=FULL, image_size=224, num_classes=1000, seed=0,
            resamples=RESAMPLES):
    """The score of two lists of accuracies of the same nets."""
    codes = [arch.code for arch in nets or archs(len(submitted))]
    return scoring.score(save(folder / "s.json", codes, submitted), save(folder / "t.json", codes, true), space,
                         image_size, num_classes, seed, resamples)


def correlated(n, seed=0, noise=1.0):
    """Accuracies in percent of n nets, as submitted and true; one digit, so that some are tied."""
    rng = np.random.default_rng(seed)
    true = 70 + 3 * rng.standard_normal(n)
    return (true - 10 + noise * rng.standard_normal(n)).round(1), true.round(1)


def tau_b(x, y):
    """Kendall's tau-b from its definition, pair by pair."""
    agree = x_tied = y_tied = pairs = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        agree += a * b
        x_tied += a == 0
        y_tied += b == 0
        pairs += 1
    return agree / np.sqrt((pairs - x_tied) * (pairs - y_tied))


def average_ranks(x):
    return [np.sum(np.less(x, value)) + (np.sum(np.equal(x, value)) + 1) / 2 for value in x]


def values(row):
    return [row.pearson.value, row.kendall.value, row.spearman.value]


# Figures


def test_supernet_figures_equal_their_definitions_also_with_ties(tmp_path):
    submitted, true = correlated(40, noise=3)
    assert len(set(submitted)) < 40 and len(set(true)) < 40
    expected = [abs(np.corrcoef(submitted, true)[0, 1]), tau_b(submitted, true),
                np.corrcoef(average_ranks(submitted), average_ranks(true))[0, 1]]
    assert values(compare(tmp_path, submitted, true).agreement("supernet")) == pytest.approx(expected, abs=1e-12)


def test_baseline_figures_equal_their_definitions_in_the_space_and_size_given(tmp_path, narrow_published):
    nets = archs(30, space=narrow_published)
    submitted, true = correlated(30)
    result = compare(tmp_path, submitted, true, nets, space=narrow_published, image_size=33, num_classes=10)
    for name, counts in (("MACs", [net.macs(33, 10) for net in nets]), ("parameters", [net.params(10) for net in nets]),
                         ("depth", [sum(net.depths) for net in nets])):
        expected = [abs(np.corrcoef(counts, true)[0, 1]), tau_b(counts, true),
                    np.corrcoef(average_ranks(counts), average_ranks(true))[0, 1]]
        assert values(result.agreement(name)) == pytest.approx(expected, abs=1e-12)


def test_reversed_ranking_has_positive_board_a_negative_tau_and_is_called_out(tmp_path):
    true = np.linspace(60, 80, 12) ** 1.01
    result = compare(tmp_path, 100 - true, true)
    assert values(result.agreement("supernet")) == pytest.approx([1, -1, -1])
    assert "supernet: Pearson is negative" in scoring.report_markdown(result)


def test_tied_pairs_are_counted_on_both_sides(tmp_path):
    result = compare(tmp_path, [1, 1, 1, 2, 3, 3], [5, 5, 6, 7, 8, 9])
    assert (result.submission.tied_pairs, result.truth.tied_pairs) == (3 + 1, 1)
    assert "of 15: 4 in the submission, 1 in the truth" in scoring.report_markdown(result)


def test_fractions_and_percents_give_the_same_metrics_and_are_labelled(tmp_path):
    submitted, true = correlated(20)
    percents, fractions = (compare(tmp_path, submitted, t) for t in (true, true / 100))
    for row in percents.agreements:
        assert values(row) == pytest.approx(values(fractions.agreement(row.name)))
    assert "(fraction)" in scoring.report_markdown(fractions) and "(fraction)" not in scoring.report_markdown(percents)


# Joining


def test_files_are_joined_on_the_arch_code_whatever_keys_order_and_digits(tmp_path):
    nets = archs(20)
    submitted, true = correlated(20)
    straight = compare(tmp_path, submitted, true, nets)
    shuffle = np.random.default_rng(1).permutation(20)
    theirs = save(tmp_path / "shuffled.json", ["1" + nets[i].code for i in shuffle], true[shuffle], key="net")
    crossed = scoring.score(straight.submission.path, theirs, resamples=RESAMPLES)
    assert crossed.n == 20 and [row[:4] for row in crossed.agreements] == [row[:4] for row in straight.agreements]


def test_archs_in_one_file_only_are_counted_and_left_out(tmp_path):
    codes = [arch.code for arch in archs(10)]
    submitted, true = correlated(10)
    ours = save(tmp_path / "s.json", codes[:8], submitted[:8])
    theirs = save(tmp_path / "t.json", codes[3:], true[3:])
    result = scoring.score(ours, theirs, resamples=RESAMPLES)
    assert result.n == 5
    assert result.agreement("supernet").kendall.value == pytest.approx(tau_b(submitted[3:8], true[3:8]))
    joined = "3 of the submission have no truth, 2 of the truth are not in the submission"
    assert joined in scoring.report_markdown(result)


def refusal(*arguments):
    with pytest.raises(UserError) as error:
        scoring.score(*arguments)
    return str(error.value)


@pytest.mark.parametrize("shared", [0, 2])
def test_fewer_than_three_shared_archs_are_refused_with_the_counts(tmp_path, shared):
    codes = [arch.code for arch in archs(9)]
    ours = save(tmp_path / "s.json", codes[:4], range(4))
    theirs = save(tmp_path / "t.json", codes[4 - shared:], range(9))
    message = refusal(ours, theirs)
    assert ours in message and theirs in message
    assert re.findall(r"\d+", message.replace(ours, "").replace(theirs, "")) == ["4", str(5 + shared), str(shared), "3"]


def test_three_shared_archs_are_enough(tmp_path):
    assert compare(tmp_path, [1, 3, 2], [1, 2, 3]).agreement("supernet").kendall.value == pytest.approx(1 / 3)


@pytest.mark.parametrize("side", ["s.json", "t.json"])
def test_equal_accuracies_are_refused_naming_the_file(tmp_path, side):
    codes, same, other = [arch.code for arch in archs(5)], [0.1] * 5, [1, 2, 3, 4, 5]
    ours = save(tmp_path / "s.json", codes, same if side == "s.json" else other)
    theirs = save(tmp_path / "t.json", codes, same if side == "t.json" else other)
    message = refusal(ours, theirs)
    assert str(tmp_path / side) in message and message.count(".json") == 1 and "0.1" in message


@pytest.mark.parametrize("side", [0, 1])
def test_the_same_arch_twice_in_one_file_is_refused(tmp_path, side):
    codes = [arch.code for arch in archs(5)]
    files = [save(tmp_path / name, codes, range(5)) for name in ("s.json", "t.json")]
    save(tmp_path / ("s.json", "t.json")[side], [*codes, "1" + codes[0]], range(6))
    message = refusal(*files)
    assert files[side] in message and "'arch0'" in message and "'arch5'" in message


def test_accuracies_outside_0_to_100_are_refused_naming_file_and_key(tmp_path):
    codes = [arch.code for arch in archs(4)]
    fine, wrong = save(tmp_path / "s.json", codes, [1, 2, 3, 4]), save(tmp_path / "t.json", codes, [1, 2, 340, 4])
    message = refusal(fine, wrong)
    assert wrong in message and "'arch2'" in message and "340" in message


def test_codes_outside_the_space_are_refused(tmp_path):
    codes = [FULL.smallest().code, *(arch.code for arch in archs(3))]
    path = save(tmp_path / "s.json", codes, range(4))
    assert "'arch0'" in refusal(path, path, PUBLISHED)


# Intervals


def test_intervals_are_percentiles_over_resampled_archs(tmp_path):
    submitted, true = correlated(60, noise=3)
    row = compare(tmp_path, submitted, true, resamples=400).agreement("supernet")
    rng = np.random.default_rng(99)  # other resamples than those of the score
    draws = []
    for _ in range(400):
        pick = rng.choice(60, 60)
        x, y = submitted[pick], true[pick]
        draws.append((abs(np.corrcoef(x, y)[0, 1]), stats.kendalltau(x, y)[0], stats.spearmanr(x, y)[0]))
    for estimate, column in zip(row[1:4], zip(*draws)):
        assert (estimate.low, estimate.high) == pytest.approx(np.percentile(column, [2.5, 97.5]), abs=0.05)
        assert estimate.low < estimate.value < estimate.high


def test_intervals_cover_the_true_tau_about_as_often_as_they_say(tmp_path):
    # tau of a bivariate normal is 2 / pi * asin(r): Kendall and Gibbons, Rank Correlation Methods.
    rng, r, covered = np.random.default_rng(5), 0.6, 0
    table = rng.multivariate_normal([50, 50], [[1, r], [r, 1]], size=(30, 50))
    nets = archs(50)
    for both in table:
        estimate = compare(tmp_path, both[:, 0], both[:, 1], nets).agreement("supernet").kendall
        covered += estimate.low <= 2 / np.pi * np.arcsin(r) <= estimate.high
    assert 25 <= covered <= 30


def test_interval_of_board_a_reaches_zero_where_pearson_has_no_sure_sign(tmp_path):
    rng = np.random.default_rng(3)
    estimate = compare(tmp_path, 50 + rng.standard_normal(40),
                       50 + rng.standard_normal(40)).agreement("supernet").pearson
    assert estimate.low == 0 <= estimate.value <= estimate.high < 0.6


def test_seed_decides_the_intervals_and_nothing_else(tmp_path):
    submitted, true = correlated(25)
    first, again, other = (compare(tmp_path, submitted, true, seed=seed) for seed in (0, 0, 1))
    assert first.agreements == again.agreements and first.margin == again.margin
    assert values(first.agreements[0]) == values(other.agreements[0])
    assert first.agreements[0].kendall != other.agreements[0].kendall


def test_resamples_without_two_different_values_are_dropped_and_reported(tmp_path):
    result = compare(tmp_path, [1, 1, 1, 2], [1, 2, 3, 4])
    row = result.agreement("supernet")
    # All four from the first three: (3/4)^4 = 32 %; all four the last: 0.4 %.
    assert 0.2 < row.dropped / result.resamples < 0.45 and np.isfinite(row.kendall[:]).all()
    assert f"{row.dropped} for supernet" in scoring.report_markdown(result)
    assert "left out" not in scoring.report_markdown(compare(tmp_path, *correlated(30)))


def test_number_of_resamples_is_1000_and_fewer_for_many_archs_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_correlations", lambda table: np.ones((len(table) - 1, 3)))
    assert "1000 resamples" in scoring.report_markdown(compare(tmp_path, *correlated(10), resamples=None))
    assert "980 resamples" in scoring.report_markdown(compare(tmp_path, *correlated(5100), resamples=None))


# The sheet


def table_of(text):
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def test_sheet_is_a_markdown_table_of_supernet_and_baselines_with_intervals(tmp_path):
    result = compare(tmp_path, *correlated(40))
    head, rule, *rows = table_of(scoring.report_markdown(result))
    assert head == ["ranking", r"\|Pearson\| (board A)", "Kendall tau (board B)", "Spearman"]
    assert len(rule) == 4 and all(set(cell) == {"-"} for cell in rule)
    assert [row[0] for row in rows] == ["supernet", "MACs hybrid", "MACs", "parameters", "depth"]
    for cells, row in zip(rows, result.agreements):
        for cell, estimate in zip(cells[1:], row[1:4]):
            assert cell == f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def test_sheet_names_the_files_n_resamples_seed_and_image_size(tmp_path):
    result = compare(tmp_path, *correlated(33), seed=4, image_size=64)
    text = scoring.report_markdown(result)
    for words in (result.submission.path, result.truth.path, "n = 33", f"{RESAMPLES} resamples", "seed 4", "64 px"):
        assert words in text


@pytest.mark.parametrize("n, warned", [(29, True), (30, False)])
def test_sheet_warns_of_wide_intervals_under_30_archs(tmp_path, n, warned):
    assert ("intervals are wide" in scoring.report_markdown(compare(tmp_path, *correlated(n)))) == warned


def by_macs(n, noise, seed=0):
    """Nets, and accuracies that follow their MACs up to noise."""
    nets = archs(n)
    macs = np.array([net.macs() for net in nets]) / 1e9
    return nets, 60 + 2 * macs + noise * np.random.default_rng(seed).standard_normal(n)


def test_verdict_says_when_the_supernet_surely_beats_the_best_baseline(tmp_path):
    nets, true = by_macs(150, noise=2)
    result = compare(tmp_path, true + 0.1 * np.random.default_rng(1).standard_normal(150), true, nets)
    assert " beats " in scoring.conclusion(result) and "do not overlap" in scoring.conclusion(result)
    assert "excludes zero" in scoring.conclusion(result)
    assert scoring.conclusion(result) in scoring.report_markdown(result)


def test_verdict_says_when_the_supernet_does_not_beat_the_best_baseline(tmp_path):
    nets, true = by_macs(150, noise=0.2)
    result = compare(tmp_path, true + 5 * np.random.default_rng(1).standard_normal(150), true, nets)
    assert result.best == "MACs" and "does not beat" in scoring.conclusion(result)
    assert "MACs" in scoring.conclusion(result) and "excludes zero" in scoring.conclusion(result)


def test_verdict_says_when_the_difference_may_be_chance(tmp_path):
    nets, true = by_macs(40, noise=1)
    result = compare(tmp_path, by_macs(40, noise=0.1, seed=1)[1], true, nets)
    assert " overlap" in scoring.conclusion(result) and "includes zero" in scoring.conclusion(result)


def test_best_baseline_is_the_one_with_the_highest_signed_tau(tmp_path):
    nets, true = by_macs(60, noise=0.1)
    result = compare(tmp_path, correlated(60)[0], 100 - true, nets)
    taus = {row.name: row.kendall.value for row in result.agreements[2:]}
    assert result.best == max(taus, key=taus.get) != "MACs"
    assert result.margin.value == pytest.approx(result.agreement("supernet").kendall.value - taus[result.best])


def test_baseline_that_is_the_same_for_all_archs_is_shown_as_such(tmp_path):
    nets = [arch for arch in archs(4000) if sum(arch.depths) == 14][:20]
    result = compare(tmp_path, *correlated(20), nets)
    depth = table_of(scoring.report_markdown(result))[-1]
    assert depth == ["depth"] + ["none: all equal"] * 3
    assert "for depth" not in scoring.report_markdown(result) and result.best in ("MACs", "parameters")


def test_nothing_to_beat_where_no_baseline_tells_the_archs_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(ArchConfig, "macs", lambda arch, image_size, num_classes: 1)
    monkeypatch.setattr(ArchConfig, "params", lambda arch, num_classes: 1)
    nets = [arch for arch in archs(2000) if sum(arch.depths) == 14][:10]
    assert "nothing free to beat" in scoring.report_markdown(compare(tmp_path, *correlated(10), nets))


# The plot


def test_plot_is_a_png_with_both_rankings(tmp_path):
    path = tmp_path / "new" / "plot.png"
    scoring.plot(compare(tmp_path, *correlated(30)), str(path))
    content = path.read_bytes()
    width, height = (int.from_bytes(content[i:i + 4], "big") for i in (16, 20))
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and width > height > 500
    assert os.listdir(path.parent) == ["plot.png"]


def test_plot_shows_accuracies_left_and_ranks_right_with_metrics_and_units(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(scoring.Figure, "savefig", lambda figure, path, format, dpi: kept.append(figure))
    submitted, true = correlated(30)
    result = compare(tmp_path, submitted, true / 100)
    scoring.plot(result, str(tmp_path / "plot.png"))
    left, right = kept[0].axes
    assert np.allclose(left.collections[0].get_offsets(), np.stack([true / 100, submitted], axis=1))
    ranks = [average_ranks(-accuracies) for accuracies in (true, submitted)]
    assert np.allclose(right.collections[0].get_offsets(), np.stack(ranks, axis=1))
    assert f"{result.agreement('supernet').pearson.value:.3f}" in left.get_title()
    assert f"{result.agreement('supernet').kendall.value:.3f}" in right.get_title()
    assert "(fraction)" in left.get_xlabel() and "(%)" in left.get_ylabel()
    assert "rank" in right.get_xlabel() and "rank" in right.get_ylabel()


def test_plot_elsewhere_than_in_a_png_is_refused_and_nothing_is_written(tmp_path):
    result = compare(tmp_path, *correlated(5))
    with pytest.raises(UserError, match="plot.jpg"):
        scoring.plot(result, str(tmp_path / "plot.jpg"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="plot.png"):
        scoring.plot(result, str(tmp_path / "file" / "plot.png"))
    assert sorted(os.listdir(tmp_path)) == ["file", "s.json", "t.json"]


# What was measured


def test_a_truth_that_is_filled_in_partly_scores_like_the_filled_part_alone(tmp_path):
    codes = [arch.code for arch in archs(60)]
    submitted, true = correlated(60)
    ours = save(tmp_path / "s.json", codes, submitted)
    part = scoring.score(ours, save(tmp_path / "part.json", codes[:24], true[:24]), resamples=RESAMPLES)
    result = scoring.score(ours, save(tmp_path / "t.json", codes, [*true[:24], *[0] * 36]), resamples=RESAMPLES)
    assert result.agreements == part.agreements and result.n == 24 and result.truth.unmeasured == 36
    text = scoring.report_markdown(result)
    assert "t.json`, 24 archs" in text and "36 more hold the list's own 0 and are left out as not measured" in text
    assert "own 0" not in scoring.report_markdown(part)


@pytest.mark.parametrize("accuracies, zeros_are_measured", [
    ([71.2, 70.4, 72.0, 0, 0], False), ([0.712, 0.704, 0.72, 0, 0], False), ([40, 90, 60, 55, 70, 0], False),
    ([10, 90, 88, 91, 89, 0], False),  # one net that never learned is not a reason to believe the zeros
    ([6.25, 12.5, 0, 18.75, 31.25, 0], True), ([0.1, 0.2, 0.4, 0.9, 0], True), ([0, 0, 0], True), ([0, 1, 3], True)])
def test_zero_is_a_measurement_only_among_values_that_reach_down_to_it(accuracies, zeros_are_measured):
    kept = measured.is_measured(accuracies)
    assert kept.tolist() == [accuracy > 0 or zeros_are_measured for accuracy in accuracies]


def test_zeros_that_count_are_told(tmp_path):
    result = compare(tmp_path, [61, 62, 63, 64, 66], [6.25, 12.5, 0, 18.75, 31.25])
    assert result.n == 5 and "; 1 of 0 are counted as measured" in scoring.report_markdown(result)


def test_too_few_measured_archs_are_refused_with_what_was_left_out(tmp_path):
    codes = [arch.code for arch in archs(9)]
    ours, theirs = save(tmp_path / "s.json", codes, range(50, 59)), save(tmp_path / "t.json", codes, [70, 71, *[0] * 7])
    assert "(2 archs, 7 more with the list's own 0) share 2" in refusal(ours, theirs)


@pytest.mark.parametrize("side", [0, 1])
def test_fractions_and_percent_in_one_file_are_refused_naming_both(tmp_path, side):
    codes, percent = [arch.code for arch in archs(5)], [70, 71, 72, 73, 74]
    files = [save(tmp_path / name, codes, percent) for name in ("s.json", "t.json")]
    save(tmp_path / ("s.json", "t.json")[side], codes, [70, 71, 0.72, 0.73, 74])
    message = refusal(*files)
    assert files[side] in message and "mixes fractions and percent" in message
    assert "'arch2' has 0.72 and 'arch0' 70 (2 of 5 are fractions)" in message


@pytest.mark.parametrize("accuracies", [[0.5, 0.75, 1.25, 2.5], [0.1, 68, 70, 72], [1.0, 68, 70, 72], [0.9, 1.0, 0.8]])
def test_small_percentages_and_nets_at_chance_are_not_taken_for_fractions(accuracies):
    measured.require_one_unit(accuracies, "abcd", "truth t.json")


def test_accuracies_that_differ_by_rounding_only_are_tied(tmp_path):
    mean = (69.9 + 70.0 + 70.4) / 3
    assert mean != 70.1
    submitted, true = [62, 59, *[60, 61] * 5], np.array([71, 69, *[70.1, mean] * 5])
    noisy, clean = compare(tmp_path, submitted, true), compare(tmp_path, submitted, true.round(6))
    assert noisy.truth.tied_pairs == clean.truth.tied_pairs == 45
    for row, other in zip(noisy.agreements, clean.agreements):
        assert values(row) == pytest.approx(values(other))
    nearly = compare(tmp_path, submitted, true + 1e-6 * np.arange(12))
    assert nearly.truth.tied_pairs == 0


def test_a_chain_of_values_that_are_each_close_to_the_next_is_one_tie():
    chain = 70 * (1 + 5e-10 * np.arange(4))
    assert set(measured.without_rounding(chain[[2, 0, 3, 1]])) == {70.0}
    assert measured.without_rounding(np.array([0.0, 1e-12])).tolist() == [0.0, 1e-12]
    assert measured.without_rounding(np.array([])).tolist() == []
