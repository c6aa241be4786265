"""The evaluator's command line: run, plan, status; parts of a list, interruptions, what is there so far."""

import json
import os
import re
import signal

import evaluation
import numpy as np
import pytest
from commands import call, good, write_list

from resnet48.evaluation import evaluator, prefix_tree, tree_forward
from resnet48.space.arch import FULL
from resnet48.space.split import Split
from resnet48.system import signals
from resnet48.system.errors import STOPPED

SCRIPT = "eval_supernet.py"
NARROW = FULL.narrowed((4, 8, 16, 32), 1)
ARCHS = 7


def load(path):
    with open(path) as file:
        return json.load(file)


@pytest.fixture(scope="module")
def archs(tmp_path_factory):
    return evaluation.write_archs(tmp_path_factory.mktemp("list"), ARCHS)


@pytest.fixture(autouse=True)
def three_archs_per_shard(monkeypatch):
    monkeypatch.setattr(evaluator, "ARCHS_PER_SHARD", 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, weights, archs):
    """The folder of an evaluation of the whole list, in four chunks and three shards."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluator, "ARCHS_PER_SHARD", 3)
        good(call(SCRIPT, *evaluation.words(weights, archs, folder / "s.json")))
    return folder


def assert_as_undisturbed(folder, undisturbed):
    for name in ("s.json", "s.counts.json"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def assert_agrees(folder, undisturbed):
    """The same, but for the last digits of cross-entropies: other batches give logits with other ones."""
    assert (folder / "s.json").read_bytes() == (undisturbed / "s.json").read_bytes()
    found, expected = (load(each / "s.counts.json") for each in (folder, undisturbed))
    for key, counts in expected["counts"].items():
        for name, value in counts.items():
            near = pytest.approx(value, abs=1e-5 * evaluation.IMAGES) if "cross_entropy" in name else value
            assert found["counts"][key].pop(name) == near
    assert found["images"] == expected["images"] and found["first_images"] == expected["first_images"]


def refusal(*words):
    """The one sentence of a program that refuses its input."""
    ended = call(SCRIPT, *words)
    assert ended.code == 2 and len(ended.own_errors()) == 1, ended
    return ended.own_errors()[0]


def signal_at(monkeypatch, number, call_of_walk):
    """Send this process a signal as that traversal of a shard begins."""
    calls = []

    def counted(original):
        def run(*arguments):
            calls.append(1)
            if len(calls) == call_of_walk:
                os.kill(os.getpid(), number)
            return original(*arguments)

        return run

    for name in ("measure_tree", "forward_tree"):
        monkeypatch.setattr(tree_forward, name, counted(getattr(tree_forward, name)))


def tasks(folder, kind):
    return sorted(path.name for path in folder.glob(f"s.journal/*/{kind}-*"))


# ---- run

@pytest.mark.parametrize("part, expected", [
    (("--limit", 3), slice(3)), (("--every", 3), slice(None, None, 3)), (("--limit", 100), slice(None)),
    (("--every", 2, "--limit", 2), slice(0, 4, 2)), (("--keys", "{5}, {1}"), (1, 5)),
    (("--keys", "{6},{2},{6}", "--limit", 1), (2,))], ids=str)
def test_a_part_of_the_list_gets_the_counts_that_the_whole_list_gets(
        tmp_path, weights, archs, undisturbed, part, expected):
    keys = list(load(archs))
    part = [word.format(*keys) if isinstance(word, str) else word for word in part]
    said = good(call(SCRIPT, *evaluation.words(weights, archs, tmp_path / "s.json", *part))).out
    chosen = keys[expected] if isinstance(expected, slice) else [keys[place] for place in expected]
    whole, found = load(undisturbed / "s.counts.json"), load(tmp_path / "s.counts.json")
    assert list(load(tmp_path / "s.json")) == list(found["counts"]) == chosen
    assert found["images"] == evaluation.IMAGES
    assert found["counts"] == {key: whole["counts"][key] for key in chosen}
    assert (f"PARTIAL: {len(chosen)} of the list's {ARCHS} archs" in said) == (len(chosen) < ARCHS)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_key_that_is_not_in_the_list_is_refused(tmp_path, weights, archs, command):
    words = evaluation.words(weights, archs, tmp_path / "s.json") if command == "run" else ["plan", "--archs", archs]
    assert refusal(*words, "--keys", "arch1,arch9") == "error: --keys: 'arch9' is not in the list"
    assert os.listdir(tmp_path) == []


def test_two_ways_to_choose_archs_at_once_are_refused(tmp_path, weights, archs):
    words = evaluation.words(weights, archs, tmp_path / "s.json", "--keys", "arch1", "--every", 2)
    assert refusal(*words) == "error: --every and --keys each say which archs; only one of them can be given"


@pytest.mark.parametrize("chunk", ["0", "-1", "x", "1.5", "1e3", ""])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_chunk_that_is_no_number_of_images_is_refused(tmp_path, weights, archs, command, chunk):
    words = evaluation.words(weights, archs, tmp_path / "s.json") if command == "run" else ["plan", "--archs", archs]
    assert refusal(*words, f"--chunk={chunk}").startswith("error: --chunk ")
    assert os.listdir(tmp_path) == []


def test_the_chunk_is_chosen_where_none_is_given(tmp_path, weights, archs, undisturbed):
    words = evaluation.words(weights, archs, tmp_path / "s.json")
    place = words.index("--chunk")
    good(call(SCRIPT, *words[:place], *words[place + 2:]))
    assert_agrees(tmp_path, undisturbed)


def test_running_again_says_that_all_is_there_and_writes_the_same(tmp_path, weights, archs, undisturbed):
    words = evaluation.words(weights, archs, tmp_path / "s.json")
    good(call(SCRIPT, *words))
    os.unlink(tmp_path / "s.json")
    said = good(call(SCRIPT, *words)).out
    assert "statistics: 3 of 3 tasks are done already\ncounts: 12 of 12 tasks are done already\n" in said
    assert_as_undisturbed(tmp_path, undisturbed)
    assert "already" not in good(call(SCRIPT, *words, "--fresh")).out
    assert_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_cpu_half_precision_is_noted_and_float32_computed(tmp_path, weights, archs, undisturbed, precision):
    said = good(call(SCRIPT, *evaluation.words(weights, archs, tmp_path / "s.json", "--precision", precision))).out
    assert f"--precision {precision} has no effect on a CPU" in said
    assert_as_undisturbed(tmp_path, undisturbed)


def test_one_by_one_and_kept_images_give_the_same_submission(tmp_path, weights, archs, undisturbed):
    for more, check in ((("--one_by_one",), assert_agrees),
                        (("--cache_dir", tmp_path / "cache"), assert_as_undisturbed)):
        good(call(SCRIPT, *evaluation.words(weights, archs, tmp_path / "s.json", *more)))
        check(tmp_path, undisturbed)


# ---- interruptions

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("walks", [1, 3, 4, 9, 15])
def test_a_signal_ends_it_with_one_sentence_and_the_same_command_resumes(
        tmp_path, monkeypatch, weights, archs, undisturbed, number, walks):
    words = evaluation.words(weights, archs, tmp_path / "s.json")
    with monkeypatch.context() as patched:
        signal_at(patched, number, walks)
        ended = call(SCRIPT, *words)
    assert ended.code == STOPPED and ended.own_errors() == []
    assert ended.out.splitlines()[-1] == (f"stopped by {signal.Signals(number).name}: what is finished is kept in "
                                          f"{tmp_path / 's.journal'}, the same command resumes")
    assert not (tmp_path / "s.json").exists()
    assert len(tasks(tmp_path, "statistics")) == min(walks - 1, 3)
    assert len(tasks(tmp_path, "counts")) == max(walks - 4, 0)
    assert not [path for path in tmp_path.glob("s.journal/*/*") if path.name.endswith(".lock") or path.name[0] == "."]
    assert ("already" in good(call(SCRIPT, *words)).out) == (walks > 1)
    assert_as_undisturbed(tmp_path, undisturbed)


def test_the_end_of_the_launcher_ends_it_too_and_keeps_what_is_finished(
        tmp_path, monkeypatch, weights, archs, undisturbed):
    words = evaluation.words(weights, archs, tmp_path / "s.json")
    with monkeypatch.context() as patched:
        patched.setattr(signals, "launcher_is_gone", lambda: len(tasks(tmp_path, "counts")) > 1)
        ended = call(SCRIPT, *words)
    assert ended.code == STOPPED and ended.own_errors() == []
    assert ended.out.splitlines()[-1].startswith("stopped by the end of its launcher: what is finished is kept in ")
    assert len(tasks(tmp_path, "counts")) == 2
    good(call(SCRIPT, *words))
    assert_as_undisturbed(tmp_path, undisturbed)


def test_the_reference_says_that_nothing_is_kept_of_it(tmp_path, monkeypatch, weights, archs):
    monkeypatch.setattr(evaluator.accuracy, "one_by_one", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    ended = call(SCRIPT, *evaluation.words(weights, archs, tmp_path / "s.json", "--one_by_one"))
    assert ended.code == STOPPED
    assert ended.out.splitlines()[-1] == "stopped by SIGTERM: nothing is kept of --one_by_one"
    assert os.listdir(tmp_path) == []


# ---- status

def test_status_says_how_far_it_is_and_writes_what_is_there_so_far(
        tmp_path, monkeypatch, weights, archs, undisturbed):
    words, so_far = evaluation.words(weights, archs, tmp_path / "s.json"), tmp_path / "so_far.json"
    status = ("status", "--output", tmp_path / "s.json")
    with monkeypatch.context() as patched:
        signal_at(patched, signal.SIGTERM, 6)  # after three tasks of statistics and two of counts
        call(SCRIPT, *words)
    assert "2 of 12 tasks (16.7%)" in good(call(SCRIPT, *status)).out
    assert refusal(*status, "--write", so_far) == ("error: no piece of the images is done for all archs yet, so "
                                                   "there is nothing to write")
    assert not so_far.exists()
    with monkeypatch.context() as patched:
        signal_at(patched, signal.SIGTERM, 6)  # five more: two pieces for all archs, and the third for some
        call(SCRIPT, *words)
    said = good(call(SCRIPT, *status, "--write", so_far)).out
    assert "7 of 12 tasks (58.3%)" in said
    assert "2 of 4 pieces of the images are done for all archs: 32 of 60 images" in said
    assert f"wrote {so_far}: 7 archs, UNFINISHED: on 32 of 60 images so far" in said
    listed, written = load(archs), load(so_far)
    assert [(key, entry["arch"]) for key, entry in written.items()] == [
        (key, entry["arch"]) for key, entry in listed.items()]
    assert all(float(entry["acc"] * 32 / 100).is_integer() for entry in written.values())
    mean = re.search(r"top-1 so far: mean (\S+) %", said).group(1)
    assert mean == f"{sum(entry['acc'] for entry in written.values()) / ARCHS:.2f}"
    assert "manifest" in refusal("verify", "--submission", so_far, "--archs", archs)
    good(call(SCRIPT, *words))
    said = good(call(SCRIPT, *status, "--write", so_far)).out
    assert "12 of 12 tasks (100.0%)" in said and f"wrote {so_far}: 7 archs, on all 60 images" in said
    assert "left" not in said and "UNFINISHED" not in said
    assert so_far.read_bytes() == (undisturbed / "s.json").read_bytes()


def test_status_without_an_evaluation_says_what_begins_one(tmp_path):
    assert refusal("status", "--output", tmp_path / "s.json") == (
        f"error: there is no evaluation in {tmp_path / 's.journal'}; `eval_supernet.py run` starts one")


# ---- plan

def test_a_plan_without_a_rate_measures_one(archs):
    said = good(call(SCRIPT, "plan", "--archs", archs, "--base_channels", "4,8,16,32", "--divisor", 1,
                     "--image_size", 32, "--images", 360, "--num_classes", 10, "--chunk", 100)).out
    assert "7 archs at 32 px, 10 classes" in said and "measured on a few of these archs" in said
    assert re.search(r"shards, chunks, tasks +3, 4 of up to 100 images, 12;", said)


def test_a_plan_for_more_processes_or_fewer_images_takes_less_time(archs):
    def hours(*words):
        said = good(call(SCRIPT, "plan", "--archs", archs, "--gflops", 0.01, *words)).out
        return float(re.search(r"([\d.]+) days\n", said).group(1)) * 24

    one = hours("--images", 50_000, "--calib_images", 0)
    assert hours("--images", 50_000, "--calib_images", 0, "--ranks", 4) == pytest.approx(one / 4, rel=1e-2)
    assert hours("--images", 25_000, "--calib_images", 0) == pytest.approx(one / 2, rel=1e-2)
    assert hours("--images", 25_000, "--calib_images", 25_000) == pytest.approx(one, rel=1e-2)


def test_a_plan_says_how_many_files_there_will_be_and_they_are_not_too_many(monkeypatch, archs):
    def files(*words):
        said = good(call(SCRIPT, "plan", "--archs", archs, "--gflops", 1, "--chunk", 2, *words)).out
        return re.search(r"\nfiles +(.*)\n", said).group(1)

    assert files("--images", 6000) == "3 of statistics, 9000 of counts, 1 chunk in each"
    assert files("--images", 50_000) == "3 of statistics, 9375 of counts, 8 chunks in each"
    monkeypatch.setattr(evaluator, "MOST_TASKS", 20)
    assert files("--images", 60) == "3 of statistics, 18 of counts, 5 chunks in each"


@pytest.mark.parametrize("words, expected", [
    (("--gflops", 50), "cpu with "), (("--gflops", 10_000), "gpu with 16.0 GB"),
    (("--gflops", 10_000, "--memory", 80), "gpu with 80.0 GB"), (("--gflops", 2000, "--device", "cpu"), "cpu with "),
    (("--gflops", 500, "--device", "gpu", "--memory", 8), "gpu with 8.0 GB")], ids=str)
def test_a_plan_is_for_the_device_that_is_named_or_told_by_its_speed(monkeypatch, archs, words, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said = good(call(SCRIPT, "plan", "--archs", archs, *words)).out
    assert f"\ndevice of a process           {expected}" in said
    needed = float(re.search(r"per process +([\d.]+) GB for a chunk", said).group(1))
    if "gpu" in expected:  # is fast enough for as many images as fit
        assert needed == pytest.approx(0.25 * float(re.search(r"with ([\d.]+) GB", said).group(1)), abs=0.02)
    else:  # would take longer than a minute for them
        assert needed < 3


def test_the_speed_of_a_device_that_is_not_here_is_not_measured(archs):
    assert refusal("plan", "--archs", archs, "--device", "gpu") == (
        "error: --device gpu is not what computes here, so its speed cannot be measured: give --gflops")


@pytest.mark.parametrize("split", [None, Split(1, "depth", (2, 3, 4, 5))], ids=str)
def test_a_plan_for_a_checkpoint_is_for_its_space_its_classes_and_its_split(tmp_path, split):
    weights, rng = evaluation.write_supernet(tmp_path, split=split), np.random.default_rng(0)
    found = list({arch.code: arch for arch in (NARROW.sample(rng) for _ in range(60))}.values())
    write_list(tmp_path / "list.json", *("1" + arch.code for arch in found))
    said = good(call(SCRIPT, "plan", "--archs", tmp_path / "list.json", "--checkpoint", weights, "--gflops", 10)).out
    expected = prefix_tree.nodes(prefix_tree.traversal(found, split))
    assert re.search(rf"nodes of the tree +{expected}\n", said) and "10 classes" in said and "note:" not in said
    assert f"\nsplit of the supernet         {split or 'none'}\n" in said
    assert (expected == prefix_tree.nodes(prefix_tree.traversal(found))) == (split is None)


@pytest.mark.slow
def test_the_plan_of_the_published_list_says_what_sharing_saves(monkeypatch, published):
    monkeypatch.setattr(evaluator, "ARCHS_PER_SHARD", 500)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said = good(call(SCRIPT, "plan", "--archs", published, "--gflops", 1000)).out
    assert re.search(r"nodes of the tree +412795\n", said)
    assert "2.9718 alone, 1.5862 shared, a factor of 1.874" in said
    assert re.search(r"shards, chunks, tasks +90, ", said) and "costs 0.17% more" in said
    assert "GB for a chunk, 3.08 GB for calibration, and weights" in said
    assert said.endswith("\nnote: this is for a supernet that is not split; --checkpoint tells whether it is\n")
    assert "90 of statistics, 9720 of counts, 29 chunks in each" in said


# ---- outputs over inputs

def copy(source, target):
    target.write_bytes(open(source, "rb").read())
    return target


def test_a_list_may_be_filled_in_place_as_a_whole_and_again(tmp_path, weights, archs, undisturbed):
    path = copy(archs, tmp_path / "s.json")
    for _ in range(2):
        good(call(SCRIPT, *evaluation.words(weights, path, path)))
        assert_as_undisturbed(tmp_path, undisturbed)
        good(call(SCRIPT, "verify", "--submission", path, "--archs", path))
    assert "holds 4 archs (of 7) that would not be in the new file" in refusal(
        *evaluation.words(weights, path, path, "--limit", 3))
    assert_as_undisturbed(tmp_path, undisturbed)


def test_an_evaluation_is_never_written_over_what_it_reads_or_what_is_no_submission(
        tmp_path, monkeypatch, weights, archs):
    monkeypatch.chdir(tmp_path)
    path, own_weights = copy(archs, tmp_path / "list.json"), copy(weights, tmp_path / "weights.pdparams")
    copy(os.path.splitext(weights)[0] + ".json", tmp_path / "weights.json")
    os.symlink("list.json", tmp_path / "link.json")
    copy(archs, tmp_path / "a.manifest.json")
    (tmp_path / "notes.txt").write_text("notes")
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    for output, listed, words in (
            ("list.json", path, "holds 5 archs (of 7)"), ("./link.json", path, "holds 5 archs (of 7)"),
            ("weights.pdparams", path, "is also the file of --checkpoint"),
            ("a.json", "a.manifest.json", "a.manifest.json is also the file of --archs"),
            ("notes.txt", path, "is neither an arch list nor a submission")):
        said = refusal(*evaluation.words(own_weights, listed, output, "--limit", 2))
        assert words in said and "give another name" in said
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_what_is_there_so_far_is_never_written_over_a_list_a_truth_or_what_is_finished(
        tmp_path, weights, archs):
    path = copy(archs, tmp_path / "list.json")
    good(call(SCRIPT, *evaluation.words(weights, path, tmp_path / "s.json", "--limit", 3)))
    status = ("status", "--output", tmp_path / "s.json", "--write")
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({key: {**entry, "acc": 70.5} for key, entry in list(load(path).items())[:3]}))
    assert "holds 4 archs (of 7)" in refusal(*status, path)
    assert "accuracies from elsewhere" in refusal(*status, truth)
    assert "is a submission that is finished" in refusal(*status, tmp_path / "s.json")
    for _ in range(2):
        good(call(SCRIPT, *status, tmp_path / "so_far.json"))


def test_score_and_plot_are_never_written_over_what_is_no_score_or_plot(tmp_path, monkeypatch, undisturbed):
    monkeypatch.chdir(tmp_path)
    copy(undisturbed / "s.json", tmp_path / "s.json")
    rising = {key: {**entry, "acc": 50 + place} for place, (key, entry) in enumerate(load("s.json").items())}
    (tmp_path / "t.json").write_text(json.dumps(rising))
    os.link("t.json", "hard.md")
    (tmp_path / "notes.md").write_text("# Notes\n")
    score = ("score", "--submission", "s.json", "--truth", "t.json")
    (tmp_path / "s.json").write_text(json.dumps({key: {**entry, "acc": 2 * entry["acc"] - 60}
                                                 for key, entry in rising.items()}))
    for words, said in ((("--report", "s.json"), "also the file of --submission"),
                        (("--report", "hard.md"), "also the file of --truth"),
                        (("--plot", "./t.json"), "also the file of --truth"),
                        (("--report", "new.png", "--plot", "new.png"), "also the file of --plot"),
                        (("--report", "notes.md"), "is not a score sheet"),
                        (("--plot", "notes.md"), "is not a PNG file")):
        assert said in refusal(*score, *words)
    for _ in range(2):
        good(call(SCRIPT, *score, "--report", "new.md", "--plot", "new.png"))
    assert (tmp_path / "notes.md").read_text() == "# Notes\n" and load("t.json") == rising


# ---- rankings, which are no submissions

@pytest.fixture
def evaluated(tmp_path, monkeypatch, undisturbed, archs, weights):
    """A working folder with a submission, its counts and manifest, and a hybrid ranking of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("s.json", "s.counts.json", "s.manifest.json"):
        copy(undisturbed / name, tmp_path / name)
    said = good(call(SCRIPT, "rank", "--submission", "s.json", "--method", "hybrid", "--output", "r.json")).out
    assert said == ("wrote r.json: a ranking of 7 archs, z(top-1) + 0.15 z(log MACs); not a submission, for rule 6 of "
                    "the contest forbids accuracies from a predictor\n")
    return tmp_path


def test_nothing_takes_a_ranking_for_a_submission_or_replaces_it(evaluated, weights, archs):
    before = (evaluated / "r.json").read_bytes()
    named = "r.json is a ranking that `eval_supernet.py rank` wrote, and holds no accuracies"
    good(call(SCRIPT, *evaluation.words(weights, archs, evaluated / "other.json", "--limit", 1)))
    for words in (("verify", "--submission", "r.json", "--archs", archs), ("rank", "--submission", "r.json"),
                  ("score", "--submission", "r.json", "--truth", "s.json"),
                  ("score", "--submission", "s.json", "--truth", "r.json"),
                  evaluation.words(weights, "r.json", "new.json")):
        said = refusal(*words)
        assert named in said and "rule 6 of the contest forbids to submit what a predictor says" in said
    for words, why in ((evaluation.words(weights, archs, "r.json"), "neither an arch list nor a submission"),
                       (("status", "--output", "other.json", "--write", "r.json"), "neither an arch list nor a"),
                       (("score", "--submission", "s.json", "--truth", "s.json", "--report", "r.json"),
                        "not a score sheet"),
                       (("export", "--checkpoint", weights, "--arch", load(archs)["arch1"]["arch"], "--output", "r"),
                        "not part of an exported model")):
        assert why in refusal(*words)
    assert (evaluated / "r.json").read_bytes() == before


def test_a_ranking_replaces_a_ranking_and_nothing_else(evaluated, archs):
    copy(archs, evaluated / "list.json")
    (evaluated / "notes.txt").write_text("notes")
    before = {path.name: path.read_bytes() for path in evaluated.iterdir()}
    rank = ("rank", "--submission", "s.json", "--method", "hybrid", "--output")
    assert "s.json is also the file of --submission" in refusal(*rank, "s.json")
    for name in ("s.counts.json", "s.manifest.json", "list.json", "notes.txt"):
        assert f"{name} is there already and is not a ranking" in refusal(*rank, name)
    assert "--method smooth is not possible: 7 archs are too few, 20 are needed" in refusal(
        "rank", "--submission", "s.json", "--output", "smooth.json")
    good(call(SCRIPT, *rank, "r.json"))
    assert {path.name: path.read_bytes() for path in evaluated.iterdir()} == before
