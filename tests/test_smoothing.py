"""Additive smoothing and the other rankings: what they must leave alone, what they must take away, what they read."""

import json
import os
import sys
from dataclasses import fields

import numpy as np
import pytest
from scipy import stats

from resnet48.ranking import counts_file, measured, provenance, rankings, smoothing
from resnet48.ranking import score as scoring
from resnet48.space.arch import PUBLISHED
from resnet48.space.arch_list import Entry
from resnet48.system import options
from resnet48.system.errors import UserError

IMAGES = 1000


def sampled(n):
    rng = np.random.default_rng(0)
    return [PUBLISHED.sample(rng) for _ in range(n)]


FEW, MANY = sampled(200), sampled(3000)
LISTS = pytest.mark.parametrize("archs, features", [(FEW, "depths and widths"), (MANY, "codes")], ids=["few", "many"])


def additive(archs):
    """A score that every depth and every width adds to on its own, of deviation 1."""
    score = np.array([np.dot(arch.depths, (3, 2, 1, 4)) + np.dot([np.log(stage).mean() for stage in arch.stages],
                                                                 (20, 10, 30, 5)) for arch in archs])
    return (score - score.mean()) / score.std()


def interacting(archs):
    """What is not additive, of deviation 1: which of two digits and a depth are odd together."""
    odd = np.array([(int(arch.code[4]) + int(arch.code[5]) + arch.depths[0]) % 2 for arch in archs])
    return (odd - odd.mean()) / odd.std()


def seen(true, noise, images=(500, 500), seed=1):
    """Scores and halves' scores of nets on so many images, where `noise` is the deviation on all of them."""
    rng, images = np.random.default_rng(seed), np.array(images)
    halves = true[:, None] + noise * np.sqrt(images.sum() / images) * rng.standard_normal((len(true), 2))
    return halves @ images / images.sum(), halves, images


def tau(scores, true):
    return stats.kendalltau(scores, true).statistic


@LISTS
@pytest.mark.parametrize("images", [(500, 500), (700, 300)])
def test_where_scores_are_additive_and_noise_hardly_any_of_the_rest_is_kept(archs, features, images):
    true = additive(archs)
    scores, *halves = seen(true, 0.7, images)
    found = smoothing.smooth(archs, scores, *halves)
    assert found.features == features and found.weight < 0.2
    assert found.noise == pytest.approx(0.49, rel=0.25)
    assert tau(found.scores, true) > tau(scores, true) + 0.15


@LISTS
def test_interactions_that_are_seen_without_noise_stay_to_the_last_bit(archs, features):
    scores = additive(archs) + interacting(archs)
    found = smoothing.smooth(archs, scores, np.stack([scores, scores], axis=1), (500, 500))
    assert found.weight == 1 and np.array_equal(found.scores, scores) and found.features == features


@LISTS
@pytest.mark.parametrize("images", [(500, 500), (800, 200)])
def test_of_interactions_and_noise_what_is_kept_is_the_share_of_the_interactions(archs, features, images):
    scores, *halves = seen(additive(archs) + interacting(archs), 0.7, images)
    found = smoothing.smooth(archs, scores, *halves)
    assert found.weight == pytest.approx(1 / (1 + 0.49), abs=0.1)
    assert found.noise == pytest.approx(0.49, rel=0.25) and found.residual == pytest.approx(1.49, rel=0.25)


def test_a_difference_between_the_halves_that_is_the_same_for_all_archs_is_no_noise():
    scores = additive(FEW) + interacting(FEW)
    found = smoothing.smooth(FEW, scores, np.stack([scores + 5, scores - 5], axis=1), (500, 500))
    assert np.allclose(found.scores, scores, atol=1e-12)


def test_archs_that_are_alike_in_some_features_or_in_all_do_no_harm():
    alike = [arch for arch in MANY if arch.depths[:2] == (3, 3)]
    found = smoothing.smooth(alike, *seen(additive(alike), 0.5))
    assert found.features == "depths and widths" and np.isfinite(found.scores).all()
    same = smoothing.smooth([FEW[0]] * 30, *seen(np.zeros(30), 1.0))
    assert same.weight < 0.5 and np.isfinite(same.scores).all()


@pytest.mark.parametrize("archs, images", [(FEW[:19], (5, 5)), (FEW, (1, 0))], ids=["archs", "images"])
def test_too_little_to_see_noise_in_is_refused(archs, images):
    with pytest.raises(ValueError, match="tell no noise apart"):
        smoothing.smooth(archs, np.zeros(len(archs)), np.zeros((len(archs), 2)), images)


def test_the_hybrid_is_the_standardised_score_and_a_little_of_the_logarithm_of_macs():
    scores, macs = np.array([70.0, 72.0, 74.0]), [1e9, 1e9 * np.e, 1e9 * np.e ** 2]
    z = np.array([-1, 0, 1]) * np.sqrt(1.5)
    assert np.allclose(rankings.hybrid(scores, macs), 1.15 * z)
    assert np.allclose(rankings.hybrid(-scores, macs), -0.85 * z)
    assert np.allclose(rankings.hybrid(scores / 100, [5, 5, 5]), z)  # equal MACs, any unit


# ---- of a submission


@pytest.fixture
def submission(tmp_path):
    """The path of a submission of 200 archs on 1000 images, with its counts."""
    return write_submission(tmp_path, FEW)


def write_submission(folder, archs):
    rng = np.random.default_rng(2)
    rate = 0.6 + 0.05 * additive(archs)
    first, second = (rng.binomial(IMAGES // 2, rate) for _ in range(2))
    loss = rng.uniform(300, 400, len(archs)) * (1.6 - rate)
    counts = np.stack([first + second, np.full(len(archs), IMAGES), loss, np.full(len(archs), IMAGES // 2), first,
                       0.4 * loss], axis=1)
    entries = [Entry(f"arch{place}", "1" + arch.code, arch) for place, arch in enumerate(archs)]
    path = str(folder / "s.json")
    counts_file.write(path, entries, counts, IMAGES)
    with open(path, "w") as file:
        json.dump({entry.key: {"acc": 100 * int(top1) / IMAGES, "arch": entry.code}
                   for entry, top1 in zip(entries, counts[:, 0])}, file)
    return path


def write_truth(folder, archs):
    path = str(folder / "truth.json")
    with open(path, "w") as file:
        json.dump({f"net{place}": {"acc": 70 + float(true), "arch": arch.code}
                   for place, (arch, true) in enumerate(zip(archs, additive(archs)))}, file)
    return path


def change_counts(path, change):
    beside = path.replace(".json", ".counts.json")
    with open(beside) as file:
        content = json.load(file)
    change(content)
    with open(beside, "w") as file:
        json.dump(content, file)


def drop_halves(content):
    """As an earlier version wrote it."""
    del content["first_images"]
    for row in content["counts"].values():
        for name in ("cross_entropy", "first_top1", "first_cross_entropy"):
            del row[name]


def test_the_sheet_has_a_row_for_each_ranking_of_all_archs_of_the_submission(tmp_path, submission):
    truth = write_truth(tmp_path, FEW[::2])
    result = scoring.score(submission, truth, resamples=20)
    names = ["supernet", "cross-entropy", "smoothed", "MACs hybrid", "MACs", "parameters", "depth"]
    assert [row.name for row in result.agreements] == names
    found = measured.read(submission, "submission", PUBLISHED)
    made, true = rankings.rankings(found, 224, 1000), additive(FEW)[::2]
    for name in names[1:4]:
        assert result.agreement(name).kendall.value == pytest.approx(tau(made.scores[name][::2], true))
    assert result.agreement("smoothed").kendall.value > result.agreement("supernet").kendall.value
    counts = counts_file.read(submission, found.accuracies)
    assert counts.images.tolist() == [500, 500]
    assert np.allclose(made.scores["cross-entropy"], -counts.cross_entropy.sum(axis=1) / IMAGES)
    text = scoring.report_markdown(result)
    assert "fit of depths and widths leaves of it, by the noise between 500 and 500 images" in text and "rule 6" in text
    assert result.best in ("MACs", "parameters", "depth")


@pytest.mark.parametrize("change, words", [
    (None, "there are no counts"), (drop_halves, "an earlier version wrote"),
    (lambda content: content.update(first_images="x"), "is malformed"),
    (lambda content: content["counts"]["arch3"].update(first_top1=None), "impossible"),
    (lambda content: content["counts"]["arch3"].update(first_top1=[]), "is malformed"),
    (lambda content: content["counts"]["arch3"].update(cross_entropy=float("nan")), "impossible"),
    (lambda content: content["counts"]["arch3"].update(first_top1=-1), "impossible"),
    (lambda content: content.update(first_images=1001), "impossible"),
    (lambda content: content["counts"]["arch3"].update(top1=1), "are not those of the submission"),
    (lambda content: content["counts"].pop("arch3"), "are not those of the submission")])
def test_without_its_counts_the_sheet_says_why_rows_are_missing_and_smoothing_is_refused(
        tmp_path, submission, change, words):
    if change:
        change_counts(submission, change)
    else:
        os.unlink(submission.replace(".json", ".counts.json"))
    result = scoring.score(submission, write_truth(tmp_path, FEW), resamples=5)
    assert [row.name for row in result.agreements] == ["supernet", "MACs hybrid", "MACs", "parameters", "depth"]
    (line,) = [line for line in scoring.report_markdown(result).splitlines() if words in line]
    assert line.startswith("- cross-entropy, smoothed: ") and "s.counts.json" in line
    found = measured.read(submission, "submission", PUBLISHED)
    with pytest.raises(UserError, match=f"^--method smooth is not possible: .*{words}"):
        rankings.write(str(tmp_path / "r.json"), found, "smooth", 224, 1000)
    rankings.write(str(tmp_path / "r.json"), found, "hybrid", 224, 1000)


@pytest.mark.parametrize("change", [lambda row: row.pop("top5"), lambda row: row.update(top5=[])])
def test_rows_without_top5_hits_are_malformed(submission, change):
    change_counts(submission, lambda content: change(content["counts"]["arch3"]))
    with pytest.raises(counts_file.NoCounts, match="s.counts.json is malformed"):
        provenance.counts(submission, PUBLISHED)


def test_too_few_archs_to_smooth_are_said_and_their_cross_entropies_still_rank(tmp_path):
    path = write_submission(tmp_path, FEW[:10])
    made = rankings.rankings(measured.read(path, "submission", PUBLISHED), 224, 1000)
    assert list(made.scores) == ["cross-entropy", "MACs hybrid"]
    assert made.notes["smoothed"] == "10 archs are too few, 20 are needed"


@pytest.mark.parametrize("method", rankings.METHODS)
def test_a_ranking_holds_every_arch_with_its_score_the_best_first(tmp_path, submission, method):
    found = measured.read(submission, "submission", PUBLISHED)
    rankings.write(str(tmp_path / "r.json"), found, method, 224, 1000)
    with open(tmp_path / "r.json") as file:
        content = json.load(file)
    assert content["format"] == "resnet48 ranking" and content["method"] == method
    scores = [row["score"] for row in content["ranking"]]
    assert scores == sorted(scores, reverse=True)
    made = rankings.rankings(found, 224, 1000).scores[rankings.METHODS[method]]
    assert {row["arch"]: row["score"] for row in content["ranking"]} == dict(zip(found.archs, made.tolist()))


RECORDINGS = []  # of paths that are opened: a hook cannot be taken back
sys.addaudithook(lambda event, arguments: RECORDINGS and event == "open" and RECORDINGS[-1].append(arguments[0]))


@pytest.mark.parametrize("method", rankings.METHODS)
def test_a_ranking_is_made_of_the_submission_and_what_lies_beside_it_and_of_no_truth(tmp_path, submission, method):
    write_truth(tmp_path, FEW)
    RECORDINGS.append([])
    rankings.write(str(tmp_path / "r.json"), measured.read(submission, "submission", PUBLISHED), method, 224, 1000)
    opened = RECORDINGS.pop()
    names = {os.path.basename(path) for path in opened if isinstance(path, str) and path.startswith(str(tmp_path))}
    written = {name for name in names if name.startswith(".r.json.")}
    assert names - written == {"s.json", "s.counts.json"} and written


def test_the_methods_of_the_command_line_are_those_that_there_are():
    (method,) = [item for item in fields(options.RankSettings) if item.name == "method"]
    assert method.metadata["choices"] == tuple(rankings.METHODS)
