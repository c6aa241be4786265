"""The command lines, from images to a scored submission: first as programs of their own, then the many small ways."""

import glob
import json
import os

import numpy as np
import paddle
import pytest
from commands import (DIGITS, LARGEST, NARROW, ROOT, SMALL, SMALLEST, UNTIED, call, good, image_folder, listing, run,
                      write_list)

from resnet48.nets.supernet import extract
from resnet48.space.arch import FULL, PUBLISHED, ArchConfig
from resnet48.training import checkpoint

RECIPES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(ROOT, "configs", "*.yaml")))
NEED_A_TEACHER = "biased.yaml", "demo.yaml", "fixed_teacher.yaml"


def load(path):
    with open(path) as file:
        return json.load(file)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three classes with JPEG, PNG and grey images of varying size."""
    return image_folder(tmp_path_factory.mktemp("photos") / "images")


@pytest.fixture(scope="module")
def supernet(tmp_path_factory, photos):
    """The folder of a supernet's run on these images."""
    folder = str(tmp_path_factory.mktemp("supernet") / "run")
    good(call("train_supernet.py", "run", "--image_dir", photos, *SMALL, "--save_dir", folder))
    return folder


@pytest.fixture(scope="module")
def standalone(tmp_path_factory, photos):
    """The folder of a run of the smallest arch on its own."""
    folder = str(tmp_path_factory.mktemp("standalone") / "run")
    good(call("pretrain.py", "run", "--arch", SMALLEST, "--image_dir", photos, *SMALL, "--save_dir", folder))
    return folder


@pytest.fixture(scope="module")
def some_archs(tmp_path_factory):
    """A list whose keys are in no order and whose codes have 51 or 52 digits."""
    path = str(tmp_path_factory.mktemp("list") / "some.json")
    rng = np.random.default_rng(3)
    codes = [SMALLEST, "1" + LARGEST, *("1" + PUBLISHED.sample(rng).code for _ in range(4))]
    with open(path, "w") as file:
        json.dump({f"arch{key}": {"acc": 0.0, "arch": code} for key, code in zip((3, 12, 1, 7, 2, 5), codes)}, file)
    return path


def evaluate(supernet, photos, archs, output, *more):
    return good(call("eval_supernet.py", "run", "--checkpoint", supernet, "--archs", archs, "--image_dir", photos,
                     "--image_size", 32, "--calib_images", 8, "--output", output, *more))


# ---- the full pipeline, each step a program of its own

@pytest.mark.slow
def test_the_road_from_digits_to_a_scored_submission_and_an_exported_subnet(tmp_path):
    size = ("--calib_images", 16, "--num_workers", 1)
    good(run("train_supernet.py", "run", *DIGITS, *size, "--save_dir", "train", cwd=tmp_path))
    good(run("-m resnet48", "sample", 5, "--output", "archs.json", cwd=tmp_path))
    said = good(run("eval_supernet.py", "run", "--checkpoint", "train", "--archs", "archs.json", *size, "--output",
                    "out/submission.json", cwd=tmp_path))
    assert "wrote out/submission.json: 5 archs on 360 images" in said.out and "PARTIAL" not in said.out
    good(run("eval_supernet.py", "verify", "--submission", "out/submission.json", "--archs", "archs.json",
             "--checkpoint", "train", cwd=tmp_path))
    said = good(run("pretrain.py", "truth", *DIGITS, *size, "--archs", "archs.json", "--limit", 3, "--save_dir",
                    "truth", "--truth", "truth.json", "--lr", 0.4, "--zero_residuals", cwd=tmp_path))
    assert "wrote truth.json: 3 archs" in said.out
    listed = load(tmp_path / "archs.json")
    assert [(key, entry["arch"]) for key, entry in load(tmp_path / "truth.json").items()] == [
        (key, entry["arch"]) for key, entry in list(listed.items())[:3]]
    said = good(run("eval_supernet.py", "score", "--submission", "out/submission.json", "--truth", "truth.json",
                    "--report", "score.md", "--plot", "score.png", cwd=tmp_path))
    assert "n = 3 archs in both" in said.out
    assert (tmp_path / "score.md").read_text().strip() == said.out.strip()
    assert (tmp_path / "score.png").read_bytes().startswith(b"\x89PNG")
    said = good(run("eval_supernet.py", "report", "--output", "out", "--checkpoint", "train", "--truth", "truth.json",
                    cwd=tmp_path))
    assert "wrote out/submission.html" in said.out
    page = (tmp_path / "out" / "submission.html").read_text()
    assert "Kendall tau" in page and "1 epochs." in page and "not those that were evaluated" not in page
    code = list(listed.values())[0]["arch"]
    said = good(run("eval_supernet.py", "export", "--checkpoint", "train", "--arch", code, *size, "--output",
                    "out/subnet", cwd=tmp_path))
    assert "input float32 [N, 3, 32, 32]" in said.out
    assert (tmp_path / "out" / "subnet.pdiparams").stat().st_size > 1000


@pytest.mark.slow
def test_the_road_on_real_photographs(tmp_path, photographs):
    size = ("--image_dir", photographs, "--image_size", 32)
    said = good(run("train_supernet.py", "run", *NARROW, *size, "--batch_size", 256, "--max_epoch", 1, "--warmup", 0,
                    "--calib_images", 32, "--save_dir", "train", cwd=tmp_path))
    assert "1035 images of 16 classes" in said.out
    archs = write_list(tmp_path / "archs.json", LARGEST, SMALLEST)
    said = good(run("eval_supernet.py", "run", "--checkpoint", "train", "--archs", archs, *size, "--calib_images", 32,
                    "--output", "submission.json", cwd=tmp_path))
    assert "2 archs on 320 images" in said.out


# ---- training

@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_at_small_size(tmp_path, photos, supernet, recipe):
    words = ["--config", os.path.join(ROOT, "configs", recipe), "--image_dir", photos, *SMALL, "--save_dir",
             tmp_path / "run"]
    if "standalone" in recipe:
        good(call("pretrain.py", "run", "--arch", SMALLEST, *words))
    else:
        good(call("train_supernet.py", "run", *words,
                  *(("--pretrained", supernet) if recipe in NEED_A_TEACHER else ())))
    assert {"final.pdparams", "final.pdopt", "config.yaml", "metrics.csv"} <= set(os.listdir(tmp_path / "run"))


def test_a_supernet_starts_from_the_weights_of_another(tmp_path, photos, supernet):
    good(call("train_supernet.py", "run", "--image_dir", photos, *SMALL, "--pretrained",
              os.path.join(supernet, "final.pdparams"), "--save_dir", tmp_path / "run"))


@pytest.mark.parametrize("words", [
    ("train_supernet.py", "run"), ("pretrain.py", "run", "--arch", SMALLEST),
    ("pretrain.py", "truth", "--archs", "list.json")], ids=" ".join)
def test_a_dry_run_of_a_training_passes_and_leaves_nothing_behind(tmp_path, monkeypatch, photos, words):
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "list.json", SMALLEST)
    before = listing(tmp_path)
    said = good(call(*words, "--image_dir", photos, *SMALL, "--max_epoch", 5, "--dry_run"))
    assert "dry run passed. A real run: 5 epochs of 3 steps, 15 steps in all, 8 images each" in said.out
    assert listing(tmp_path) == before


@pytest.mark.parametrize("words", [
    ("run", "--checkpoint", "run", "--archs", "list.json"),
    ("run", "--checkpoint", "run", "--archs", "list.json", "--one_by_one", "--cache_dir", "cache")], ids=" ".join)
def test_a_dry_run_of_an_evaluation_passes_and_leaves_nothing_behind(tmp_path, monkeypatch, photos, supernet, words):
    monkeypatch.chdir(tmp_path)
    os.symlink(supernet, "run")
    write_list(tmp_path / "list.json", SMALLEST, LARGEST)
    before = listing(tmp_path)
    said = good(call("eval_supernet.py", *words, "--image_dir", photos, "--image_size", 32, "--calib_images", 8,
                     "--dry_run"))
    assert "dry run passed: 2 archs on 9 images; nothing was written" in said.out
    assert listing(tmp_path) == before


# ---- one subnet on its own

def standalone_run(photos, folder, *words):
    return good(call("pretrain.py", "run", "--image_dir", photos, *SMALL, "--save_dir", folder, *words)).out


def top1(said):
    (line,) = [line for line in said.splitlines() if line.startswith("top-1 of ")]
    return float(line.split(" % of ")[0].split()[-1])


def test_mode_train_measures_nothing_and_eval_and_all_then_agree_on_it(tmp_path, photos):
    folder = tmp_path / "run"
    assert "top-1" not in standalone_run(photos, folder, "--arch", SMALLEST, "--mode", "train")
    before = listing(folder)
    measured = standalone_run(photos, folder, "--arch", SMALLEST, "--mode", "eval")
    assert f"top-1 of {SMALLEST} from {folder}: " in measured and listing(folder) == before
    assert top1(standalone_run(photos, folder, "--arch", SMALLEST)) == top1(measured)


@pytest.mark.parametrize("code", ["1" + SMALLEST, UNTIED, "1" + UNTIED], ids=["52 digits", "untied", "both"])
def test_a_subnet_is_trained_and_evaluated_by_any_form_of_its_code(tmp_path, photos, code):
    said = standalone_run(photos, tmp_path / "run", "--arch", code)
    assert f"top-1 of {code[-51:]}: " in said
    assert top1(standalone_run(photos, tmp_path / "run", "--arch", code[-51:], "--mode", "eval")) == top1(said)


def test_a_subnet_taken_from_a_supernet_is_as_good_as_the_submission_says(tmp_path, photos, supernet, some_archs):
    evaluate(supernet, photos, some_archs, tmp_path / "submission.json")
    for entry in load(tmp_path / "submission.json").values():
        said = standalone_run(photos, tmp_path / "none", "--arch", entry["arch"], "--mode", "eval", "--pretrained",
                              supernet)
        assert top1(said) == pytest.approx(entry["acc"], abs=0.01)
    assert not os.path.exists(tmp_path / "none")


def test_fine_tuning_begins_with_the_subnet_of_the_supernet_and_trains_all_of_it(tmp_path, photos, supernet):
    arch = ArchConfig.parse(SMALLEST, FULL.narrowed((2, 4, 8, 16), 1))
    cut = extract(checkpoint.build_supernet(checkpoint.load(supernet)), arch).state_dict()
    cut = {name: value.numpy() for name, value in cut.items() if not name.endswith(("._mean", "._variance"))}
    for lr, moved in ((1e-9, 0), (0.1, 1)):
        folder = tmp_path / f"lr{lr}"
        said = standalone_run(photos, folder, "--arch", SMALLEST, "--pretrained", supernet, "--lr", lr)
        assert f"top-1 of {SMALLEST}: " in said
        tuned = checkpoint.load(str(folder)).weights
        assert all((np.abs(tuned[name] - value).max() > 1e-6) == moved for name, value in cut.items())


def test_weights_alone_are_enough_to_evaluate_a_subnet_and_to_train_it_on(tmp_path, photos, standalone):
    expected = top1(standalone_run(photos, standalone, "--arch", SMALLEST, "--mode", "eval"))
    copy = tmp_path / "copy.pdparams"
    copy.write_bytes(open(os.path.join(standalone, "final.pdparams"), "rb").read())
    (tmp_path / "copy.json").write_text('{"about": "another program"}')
    for path in (standalone, copy, tmp_path / "copy"):  # the ending may be left out
        said = standalone_run(photos, tmp_path / "none", "--arch", SMALLEST, "--mode", "eval", "--pretrained", path)
        assert top1(said) == expected
    standalone_run(photos, tmp_path / "on", "--arch", SMALLEST, "--pretrained", copy)


def test_the_truth_resumes_with_the_archs_that_are_not_done(tmp_path, photos):
    archs = write_list(tmp_path / "archs.json", SMALLEST, "1" + LARGEST)
    words = ("truth", "--archs", archs, "--image_dir", photos, *SMALL, "--save_dir", tmp_path / "runs", "--truth",
             tmp_path / "truth.json", "--processes", 1)
    good(call("pretrain.py", *words, "--limit", 1))
    assert list(load(tmp_path / "truth.json")) == ["arch1"]
    first = load(tmp_path / "truth.json")["arch1"]
    said = good(call("pretrain.py", *words)).out
    assert "1 of 2 archs are measured already" in said and "steps 0 to 3" in said.split("arch2 (2 of 2)")[1]
    assert list(load(tmp_path / "truth.json")) == ["arch1", "arch2"] and load(tmp_path / "truth.json")["arch1"] == first


def test_a_truth_is_never_written_over_another_truth_or_over_more_archs(tmp_path, photos):
    archs = write_list(tmp_path / "archs.json", SMALLEST, "1" + LARGEST)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"arch1": {"acc": 70.5, "arch": SMALLEST}}))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = ("truth", "--archs", archs, "--image_dir", photos, *SMALL, "--save_dir", tmp_path / "runs", "--limit", 1)
    for path, said in ((archs, "holds 1 archs (of 2)"), (other, "accuracies from elsewhere, such as a truth")):
        ended = call("pretrain.py", *words, "--truth", path)
        assert ended.code == 2 and said in ended.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- evaluation, and what follows

def test_a_submission_has_the_keys_order_and_codes_of_the_list_and_the_counts_beside_it_agree(
        tmp_path, photos, supernet, some_archs):
    evaluate(supernet, photos, some_archs, tmp_path / "submission.json")
    listed, written = load(some_archs), load(tmp_path / "submission.json")
    assert [(key, entry["arch"]) for key, entry in written.items()] == [
        (key, entry["arch"]) for key, entry in listed.items()]
    assert all(list(entry) == ["acc", "arch"] for entry in written.values())
    beside = load(tmp_path / "submission.counts.json")
    assert beside["images"] == 9 and list(beside["counts"]) == list(listed)
    for key, count in beside["counts"].items():
        assert 0 <= count["top1"] <= count["top5"] == 9  # three classes: the first five are all
        assert written[key]["acc"] == 100 * count["top1"] / 9
    assert max(entry["acc"] for entry in written.values()) > 1  # percent


def test_two_evaluations_of_one_checkpoint_are_the_same_to_the_byte(tmp_path, photos, supernet, some_archs):
    for name, more in (("a", ()), ("b", ()), ("c", ("--cache_dir", tmp_path / "cache")), ("d", ("--one_by_one",))):
        evaluate(supernet, photos, some_archs, tmp_path / f"{name}.json", *more)
    first = (tmp_path / "a.json").read_bytes()
    assert all((tmp_path / f"{name}.json").read_bytes() == first for name in "bcd")
    evaluate(os.path.join(supernet, "final.pdparams"), photos, some_archs, tmp_path / "e.json")
    assert (tmp_path / "e.json").read_bytes() == first


def test_images_are_as_large_as_in_the_training_unless_told_otherwise(tmp_path, photos, supernet, some_archs):
    words = ("run", "--checkpoint", supernet, "--archs", some_archs, "--image_dir", photos, "--calib_images", 8)
    for name, more in (("a", ()), ("b", ("--image_size", 32)), ("c", ("--image_size", 48))):
        good(call("eval_supernet.py", *words, "--output", tmp_path / f"{name}.json", *more))
    assert [load(tmp_path / f"{name}.manifest.json")["image_size"] for name in "abc"] == [32, 32, 48]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    said = good(call("eval_supernet.py", "export", "--checkpoint", supernet, "--arch", SMALLEST, "--image_dir", photos,
                     "--calib_images", 8, "--output", tmp_path / "subnet"))
    assert "[N, 3, 32, 32]" in said.out


def test_a_limited_evaluation_says_that_it_is_partial_and_is_not_ready_to_hand_in(
        tmp_path, photos, supernet, some_archs):
    said = evaluate(supernet, photos, some_archs, tmp_path / "part.json", "--limit", 2)
    assert "PARTIAL: 2 of the list's 6 archs" in said.out
    assert list(load(tmp_path / "part.json")) == ["arch3", "arch12"]
    checked = call("eval_supernet.py", "verify", "--submission", tmp_path / "part.json", "--archs", some_archs)
    assert checked.code == 2 and "partial" in checked.err


def test_verify_tells_the_checkpoint_of_a_submission_from_another(tmp_path, photos, supernet, some_archs):
    path = tmp_path / "submission.json"
    evaluate(supernet, photos, some_archs, path)
    good(call("train_supernet.py", "run", "--image_dir", photos, *SMALL, "--seed", 1, "--save_dir", tmp_path / "other"))
    words = ("verify", "--submission", path, "--archs", some_archs, "--checkpoint")
    for same in (supernet, os.path.join(supernet, "final.pdparams")):
        assert "is complete" in good(call("eval_supernet.py", *words, same)).out
    other = call("eval_supernet.py", *words, tmp_path / "other")
    assert other.code == 2 and "another checkpoint" in other.err


def test_an_exported_subnet_gives_the_logits_of_the_calibrated_subnet(tmp_path, photos, supernet):
    from resnet48.evaluation import accuracy as evaluation
    from resnet48.images import datasets
    from resnet48.nets import supernet as supernets
    from resnet48.space.arch import ArchConfig
    from resnet48.training import checkpoint
    good(call("eval_supernet.py", "export", "--checkpoint", supernet, "--arch", SMALLEST, "--image_dir", photos,
              "--image_size", 32, "--calib_images", 8, "--output", tmp_path / "subnet"))
    words = ("export", "--checkpoint", supernet, "--arch", SMALLEST, "--image_dir", photos, "--calib_images", 8)
    write_list(tmp_path / "list.json", SMALLEST)
    ended = call("eval_supernet.py", *words, "--output", tmp_path / "list")
    assert ended.code == 2 and "list.json is there already and is not part of an exported model" in ended.err
    good(call("eval_supernet.py", *words, "--output", tmp_path / "subnet"))  # an exported model may be written again
    net = checkpoint.build_supernet(checkpoint.load(supernet))
    subnet = supernets.extract(net, ArchConfig.parse(SMALLEST, net.space))
    evaluation.calibrate_alone(subnet, evaluation.calibration_images(datasets.load(photos, 32), 8, seed=0))
    subnet.eval()
    images = paddle.randn([2, 3, 32, 32])
    exported = paddle.jit.load(str(tmp_path / "subnet"))
    exported.eval()
    np.testing.assert_allclose(exported(images).numpy(), subnet(images).numpy(), rtol=1e-4, atol=1e-5)
