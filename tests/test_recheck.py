"""`verify --recheck`: some archs are evaluated again, and what was stated of them must come out."""

import hashlib
import json
import re

import evaluation
import pytest
from commands import call, good, refusal

from resnet48.ranking import provenance, submission
from resnet48.system import files

SCRIPT = "eval_supernet.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory, weights):
    """What `here` has a copy of: list.json and its submission, 7 archs on 60 digits, over the tree in chunks."""
    folder = tmp_path_factory.mktemp("made")
    good(call(SCRIPT, *evaluation.words(weights, evaluation.write_archs(folder, 7), folder / "s.json")))
    return folder


def verify(weights, *more):
    return SCRIPT, "verify", "--submission", "s.json", "--archs", "list.json", "--checkpoint", weights, *more


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_counts(here, **changes):
    """Change the counts of every arch, and the submission and its manifest so that `verify` alone sees nothing."""
    def change(content):
        for row in content["counts"].values():
            for name, step in changes.items():
                row[name] += step

    edit(here / "s.counts.json", change)
    rows = json.loads((here / "s.counts.json").read_text())["counts"]
    edit(here / "s.json", lambda content: [entry.update(acc=100 * rows[key]["top1"] / evaluation.IMAGES)
                                           for key, entry in content.items()])
    digest = hashlib.sha256((here / "s.json").read_bytes()).hexdigest()
    edit(here / "s.manifest.json", lambda content: content.update(submission_sha256=digest))


@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_evaluated_comes_out_again(here, weights, seed):
    said = good(call(*verify(weights, "--recheck", 3, "--seed", seed))).out
    found = re.search(r"evaluated 3 of 7 archs again on 60 images: all hits are equal, cross-entropies differ by at "
                      r"most (\S+) nats per image\n", said)
    assert float(found.group(1)) <= 1e-5
    assert "evaluated 7 of 7 archs" in good(call(*verify(weights, "--recheck", 100))).out


@pytest.mark.parametrize("name, step, words", [
    ("top1", 1, "top-1 hits where"), ("top5", -1, "top-5 hits where"), ("first_top1", -1, "top-1 hits in the first"),
    ("cross_entropy", 2e-5 * evaluation.IMAGES, "nats of cross-entropy where"),
    ("first_cross_entropy", 2e-5 * evaluation.IMAGES, "nats of cross-entropy in the first half where")])
def test_counts_that_the_checkpoint_does_not_give_are_refused(here, weights, name, step, words):
    more = {"top5": 1} if name == "top1" else {}
    change_counts(here, **{name: step}, **more)
    good(call(*verify(weights)))
    said = refusal(verify(weights, "--recheck", 2), here)
    assert words in said and "2 of 2 archs that were evaluated again differ, the first is 'arch" in said


def test_a_tolerance_lets_so_many_images_count_differently_and_no_more(here, weights):
    change_counts(here, top1=2, top5=2, cross_entropy=1.0)
    assert "hits differ by at most 2" in good(call(*verify(weights, "--recheck", 2, "--recheck_tolerance", 2))).out
    assert "top-1 hits where" in refusal(verify(weights, "--recheck", 2, "--recheck_tolerance", 1), here)


def test_other_images_are_named_as_the_cause(here, weights, tmp_path):
    edit(here / "s.manifest.json", lambda content: content["settings"].update(seed=1))
    assert "these are not the " in refusal(verify(weights, "--recheck", 1), here)
    edit(here / "s.manifest.json", lambda content: content.pop("images"))  # as earlier versions wrote it
    assert "differ, the first is" in refusal(verify(weights, "--recheck", 1), here)
    assert "no-such-folder" in refusal(verify(weights, "--recheck", 1, "--image_dir", "no-such-folder"), here)


def test_it_needs_a_checkpoint_a_manifest_with_settings_and_counts(here, weights):
    assert "--checkpoint is needed" in refusal((*verify(weights)[:6], "--recheck", 1), here)
    settings = {}
    edit(here / "s.manifest.json", lambda content: settings.update(settings=content.pop("settings")))
    assert "does not say how the archs were evaluated" in refusal(verify(weights, "--recheck", 1), here)
    edit(here / "s.manifest.json", lambda content: content.update(settings={"seed": "x"}))
    assert "--seed takes a whole number" in refusal(verify(weights, "--recheck", 1), here)
    edit(here / "s.manifest.json", lambda content: content.update(settings))
    (here / "s.counts.json").unlink()
    assert "there are no counts" in refusal(verify(weights, "--recheck", 1), here)


def test_the_counts_are_read_once_and_come_in_the_order_of_the_submission(here, monkeypatch):
    read, paths = files.read_json, []
    monkeypatch.setattr(files, "read_json", lambda path, *what: paths.append(str(path)) or read(path, *what))
    entries, rows, images = provenance.counts("s.json", submission.read_manifest_net("s.json")[0])
    assert sum(path.endswith("s.counts.json") for path in paths) == 1
    written = json.loads((here / "s.counts.json").read_text())
    assert [entry.key for entry in entries] == list(written["counts"]) and images == written["images"] == 60
    assert rows[:, [0, 5]].tolist() == [[row["top1"], row["first_cross_entropy"]] for row in written["counts"].values()]
