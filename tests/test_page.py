"""The page of a submission: the right numbers, nothing from elsewhere, nothing that a hostile file can smuggle in."""

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from commands import call, good, refusal

from resnet48.ranking import gathered, score, submission, svg
from resnet48.space.arch import FULL, ArchConfig
from resnet48.space.arch_list import Entry
from resnet48.space.split import Split
from resnet48.training import checkpoint

SPACE = FULL.narrowed((4, 6, 8, 12), 1)
IMAGES, SIZE, CLASSES = 360, 32, 10
VOID = {"meta", "wbr"}
METRICS = """epoch,step,lr,images_per_s,data_wait,loss_largest,loss_random
0.5,10,0.1,200,0.01,2.25,
1,20,0.05,210,0.02,1.75,1.9
1.5,30,0.001,190,0.01,1.25,1.5
"""


class Page(HTMLParser):
    """A page taken apart, after checking that every element ends where it must."""

    def __init__(self, path):
        super().__init__()
        with open(path, encoding="utf-8") as file:
            self.source = file.read()
        self.elements, self.open, self.texts, self.rows, self.pictures = [], [], [], {}, {}
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if any(found.get("role") == "img" for _, found in self.open):
            key = self.open[[found.get("role") for _, found in self.open].index("img")][1]["aria-labelledby"]
            self.pictures.setdefault(key.split("-")[0], []).append(dict(attributes))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))
        if tag == "tr":
            self.table().append([])
        if tag in ("td", "th"):
            self.table()[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if inside[-1:] in (["style"], ["script"]):
            setattr(self, inside[-1], data)
            return
        self.texts.append(data)
        if ("td" in inside or "th" in inside) and "button" not in inside:
            self.table()[-1][-1] += data

    def table(self):
        return self.rows.setdefault(next(found["class"] for tag, found in self.open if tag == "table"), [])

    def text(self):
        return "".join(self.texts)

    def tags(self):
        return {tag for tag, _ in self.elements}


def make(folder, count=40, split=None, truth=False, **manifest):
    """A folder as `train_supernet.sh` leaves one; returns its archs and accuracies. manifest: what it says instead."""
    rng, archs = np.random.default_rng(3), {}
    while len(archs) < count:
        arch = SPACE.sample(rng)
        archs[arch.code] = arch
        if arch.depths[3] == 2:  # the same net with a further block at its end, which shares all before it
            code = arch.code[:3] + "3" + arch.code[4:45] + arch.code[43:45] + arch.code[47:]
            archs[code] = SPACE.parse(code)
    archs = list(archs.values())[:count]
    entries = [Entry(f"arch{place}", "1" + arch.code, arch) for place, arch in enumerate(archs)]
    hits = rng.integers(IMAGES // 2, IMAGES, count)
    first = hits // 2
    counts = np.stack([hits, hits + 1, IMAGES - 0.5 * hits, np.full(count, IMAGES // 2), first,
                       0.5 * (IMAGES - 0.5 * hits)], axis=1).astype("float64")
    net = {"kind": "supernet", "space": SPACE.to_dict(), "num_classes": CLASSES,
           **({"split": split.to_dict()} if split else {})}
    (folder / "train").mkdir(parents=True)
    path = str(folder / "submission.json")
    submission.write_submission(path, "0" * 64, "1" * 64, entries, entries, counts, IMAGES,
                                {"net": net, "image_size": SIZE, "settings": {}, "versions": {"paddle": "9.8.7"}})
    beside = folder / "submission.manifest.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **manifest}))
    values = {f"t{place}": {"acc": float(90 + place % 7 + hit / IMAGES), "arch": arch.code}
             for place, (arch, hit) in enumerate(zip(archs, hits)) if place % 2}
    if truth:  # a score takes a second
        (folder / "truth.json").write_text(json.dumps(values))
    (folder / "train" / "metrics.csv").write_text(METRICS)
    return archs, 100 * hits / IMAGES


def report(folder, *words):
    """The page that `report` makes of a folder."""
    said = good(call("eval_supernet.py", "report", "--output", folder, *words)).out
    path = said.split()[1].rstrip(":")
    return Page(path)


@pytest.fixture
def run(tmp_path):
    """A folder without a truth."""
    make(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with one, and its page."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    make(folder, truth=True)
    return folder, report(folder, "--seed", 5)


# ---- what it says

def test_the_page_shows_the_pareto_front_with_every_number_of_its_archs(tmp_path):
    archs, accuracies = make(tmp_path / "run")
    macs = [arch.macs(SIZE, CLASSES) for arch in archs]
    front = [place for place in range(len(archs)) if not any(
        accuracies[other] >= accuracies[place] and macs[other] <= macs[place] and
        (accuracies[other], macs[other]) != (accuracies[place], macs[place]) for other in range(len(archs)))]
    assert 3 <= len(front) < len(archs)
    page = report(tmp_path / "run")
    names, *rows = page.rows["archs"]
    assert names == ["top-1 (%)", "MMACs", "parameters", "widths", "code"]
    expected = []
    for place in sorted(front, key=lambda place: macs[place]):
        arch = archs[place]
        widths = " · ".join([f"{arch.stem}", *(f"{stage[0][1]}\xa0({' '.join(str(block[0]) for block in stage)})"
                                               for stage in arch.stages)])
        expected.append([f"{accuracies[place]:.2f}", f"{macs[place] / 1e6:#.4g}", f"{arch.params(CLASSES):,}", widths,
                         arch.code])
    assert rows == expected
    best = [found for tag, found in page.elements if found.get("class") == "point best"]
    others = [found for tag, found in page.elements if found.get("class") == "point"]
    assert len(best) == len(front) and len(others) == len(archs) - len(front)


def test_the_page_has_the_score_sheet_with_its_intervals(scored):
    folder, page = scored
    found = score.score(str(folder / "submission.json"), str(folder / "truth.json"), SPACE, SIZE, CLASSES, seed=5)
    _, *rows = page.rows["score"]
    assert [row[0] for row in rows] == [each.name for each in found.agreements]
    for row, each in zip(rows, found.agreements):
        assert row[1:] == [f"{value.value:.4f}[{value.low:.4f}, {value.high:.4f}]"
                           for value in (each.pearson, each.kendall, each.spearman)]
    assert score.conclusion(found) in page.text()
    assert all(fact.replace("`", "") in page.text() for fact in score.facts(found))
    assert sum(found.get("class") == "point" for found in page.pictures["ranks"]) == found.n == 20


def test_the_page_tells_how_the_training_went_and_what_the_manifest_says(run):
    text = report(run).text()
    assert "largest from 2.25 to 1.25; random from 1.9 to 1.5" in text and "30 steps, 1.5 epochs" in text
    assert "version of paddle" in text and "9.8.7" in text and "1" * 64 in text and '"image_size": 32' in text


@pytest.mark.parametrize("split", [None, Split(4, "depth", (2, 3, 5))])
def test_the_page_tells_what_the_archs_share(tmp_path, split):
    archs, _ = make(tmp_path / "run", split=split)
    paths = [arch.nodes(split) for arch in archs]
    prefixes = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    text = report(tmp_path / "run").text()
    assert f"stems and blocks of all archs{sum(map(len, paths))}" in text.replace(",", "")
    assert f"of these computed{len(prefixes)}" in text.replace(",", "")
    alone = sum(arch.macs(SIZE, CLASSES) for arch in archs)
    assert f"each alone{alone / len(archs) / 1e6:#.4g}" in text


@pytest.mark.parametrize("seed", range(3))
def test_no_arch_of_the_front_is_beaten_and_every_other_is(seed):
    rng = np.random.default_rng(seed)
    macs, accuracies = rng.integers(0, 9, 60).astype(float), rng.integers(0, 9, 60).astype(float)
    front = gathered.pareto_front(macs, accuracies)
    beaten = [any((macs <= macs[i]) & (accuracies >= accuracies[i]) & ((macs < macs[i]) | (accuracies > accuracies[i])))
              for i in range(60)]
    assert sorted(front) == [place for place in range(60) if not beaten[place]]
    assert np.all(np.diff(macs[front]) >= 0)


def test_a_picture_of_many_points_loses_none_and_stays_small():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20000))
    picture = svg.scatter("k", "t", "d", "x", "y", x, y, [""] * len(x))
    assert len(picture) < 300_000
    axes = svg.Axes(svg._extent(x), svg._extent(y))
    dots = {(int(a), int(b)) for a, b in zip(axes.x(x) // 2, axes.y(y) // 2)}
    assert picture.count("h0") == len(dots) > 4000


@pytest.mark.parametrize("digest, told", [("1" * 64, False), ("2" * 64, True), (None, False)])
def test_curves_of_other_weights_than_those_evaluated_are_told(run, monkeypatch, digest, told):
    def weights_digest(path):
        assert path == str(run / "train")
        if digest is None:
            raise checkpoint.CheckpointError("no checkpoint")
        return digest

    monkeypatch.setattr(checkpoint, "weights_digest", weights_digest)
    assert ("are not those that were evaluated" in report(run).text()) == told


# ---- what is missing

def test_without_truth_metrics_and_manifest_the_page_says_so(run):
    for name in ("train/metrics.csv", "submission.manifest.json"):
        os.remove(run / name)
    page = report(run)
    for sentence in ("There is no truth to score against", "There is no metrics.csv of the training",
                     "There is no manifest beside the submission"):
        assert sentence in page.text()
    assert "score" not in page.rows and len(page.rows["archs"]) > 1


def test_a_truth_of_too_few_archs_so_far_is_no_error(run):
    few_archs(run / "truth.json")
    assert "There is no score: " in report(run).text()


def few_archs(path):
    """Write a truth of two archs."""
    content = json.loads((path.parent / "submission.json").read_text())
    path.write_text(json.dumps(dict(list(content.items())[:2])))


def test_files_elsewhere_are_named_by_flags(run, tmp_path):
    few_archs(run / "t.json")
    os.rename(run / "t.json", tmp_path / "t.json")
    os.rename(run / "train", tmp_path / "supernet")
    page = report(run / "submission.json", "--truth", tmp_path / "t.json", "--checkpoint", tmp_path / "supernet",
                  "--page", tmp_path / "new" / "page.html")
    assert "share 2" in page.text() and "1.5 epochs" in page.text() and not (run / "submission.html").exists()
    assert "--checkpoint " in refusal(("eval_supernet.py", "report", "--output", run, "--checkpoint", run), tmp_path)


@pytest.mark.parametrize("rows", ["", "1,1,inf,nan\n2,2,1e308,-1e308\n", "1,1,0.1,\n", "1,1,5,5\n2,2,5,5\n",
                                  "1,1,1e-320,1e99\n2,2,2e-320,1e-99\n"])
def test_any_numbers_of_a_training_make_a_page(run, rows):
    (run / "train" / "metrics.csv").write_text("epoch,step,lr,loss_a\n" + rows)
    page = report(run)
    assert not {"nan", "inf"} & {word for tag, found in page.elements if tag in ("path", "circle")
                                 for value in found.values() for word in re.findall("[a-z]+", value)}


def test_one_arch_alone_is_the_front(tmp_path):
    make(tmp_path / "run", count=1)
    assert len(report(tmp_path / "run").rows["archs"]) == 2


def test_a_line_that_is_still_being_written_is_left_out(run):
    with open(run / "train" / "metrics.csv", "a") as file:
        file.write("2,40,0.0")
    assert "30 steps, 1.5 epochs" in report(run).text()


@pytest.mark.parametrize("name, content, words", [
    ("train/metrics.csv", "epoch,step\n1,x\n", "metrics.csv, line 2: 'x' is no number"),
    ("train/metrics.csv", "epoch,step\n1\n", "metrics.csv, line 2: 1 cells where line 1 names 2 columns"),
    ("train/metrics.csv", "a,b\n1,2\n", "line 1 must name its columns"),
    ("train/metrics.csv", "epoch,step\n1,\n", "a row does not say its epoch and its step"),
    ("train/metrics.csv", "", "is no table of a training"),
    ("train/metrics.csv", '"epoch,step\n1,2\n', "is no table of a training"),
    ("truth.json", "[]", "truth.json must be one object"),
    ("truth.json", "{", "truth.json is not JSON"),
    ("submission.json", "{}", "submission.json is empty"),
    ("submission.manifest.json", "{}", "submission.manifest.json is malformed")])
def test_what_is_malformed_is_one_sentence(run, name, content, words):
    (run / name).write_text(content)
    assert words in refusal(("eval_supernet.py", "report", "--output", run), run)


# ---- what it must not do

def test_the_page_is_complete_in_itself_and_says_in_words_what_its_pictures_show(scored):
    _, page = scored
    for word in ("http:", "https:", "src=", "href", "url(", "@import", "//cdn"):
        assert word not in page.source.lower()
    policy = next(found["content"] for tag, found in page.elements if "http-equiv" in found)
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "prefers-color-scheme: dark" in page.style
    texts = {found["id"] for _, found in page.elements if "id" in found}
    pictures = [found for tag, found in page.elements if found.get("role") == "img"]
    assert len(pictures) == 6 and len(texts) == 12
    for found in pictures:
        assert set(found["aria-labelledby"].split()) <= texts


def test_hostile_names_and_texts_are_shown_and_do_nothing(tmp_path):
    bad = '<img src=x onerror=alert(1)>"&\'</style></script><script>alert(2)</script>'
    name = bad.replace("/", "\u202e")
    folder = tmp_path / name
    make(folder, versions={bad: bad, "x\ud800": "\ud800"}, unfinished_training=bad,
         settings={bad: {"\u2028</pre>": [bad, "\x1b[2J"]}})
    os.rename(folder / "submission.json", folder / f"{name}.json")
    os.rename(folder / "submission.manifest.json", folder / f"{name}.manifest.json")
    (folder / "train" / "metrics.csv").write_text(
        METRICS.replace("loss_random", "\"loss_" + bad.replace('"', '""') + '"'))
    good(call("eval_supernet.py", "report", "--output", folder / f"{name}.json", "--page", tmp_path / "page.html"))
    page, plain = Page(tmp_path / "page.html"), tmp_path / "plain"
    make(plain)
    assert page.tags() == report(plain).tags()
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    assert page.text().count(bad) >= 5 and page.text().isascii() is False
    assert not {"\u202e", "\ud800", "\x1b", "\u2028"} & set(page.source)


def test_no_foreign_file_is_replaced_but_an_older_page_is(run, tmp_path):
    few_archs(run / "truth.json")
    words = ("eval_supernet.py", "report", "--output", run)
    (run / "submission.html").write_text("<!doctype html>\n<p>mine</p>")
    assert "is not a page of `report`" in refusal(words, tmp_path)
    for name in ("submission.json", "truth.json", "train/metrics.csv", "submission.manifest.json",
                 "submission.counts.json"):
        assert "--page " in refusal((*words, "--page", run / name), tmp_path)
    os.remove(run / "submission.html")
    assert "There is no score" in report(run).text()
    os.remove(run / "truth.json")
    page = report(run)
    assert "no truth" in page.text() and page.source == report(run).source


def test_the_codes_that_are_copied_are_read_by_every_command(run):
    for row in report(run).rows["archs"][1:]:
        assert ArchConfig.parse(row[-1], SPACE).code == row[-1]
