"""Weights that are missing, corrupt, foreign or for another net, and places that cannot be written: one clear
sentence."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from commands import LARGEST, SMALL, SMALLEST, call, good, image_folder, listing, refusal, run, write_list

IMAGES = ("--image_dir", "images", "--image_size", 32, "--calib_images", 8, "--num_workers", 0)
TRAINING = ("train_supernet.py", "run", "--image_dir", "images", *SMALL)
STANDALONE = ("pretrain.py", "run", "--arch", SMALLEST, "--image_dir", "images", *SMALL)
TRUTH = ("pretrain.py", "truth", "--archs", "list.json", "--image_dir", "images", *SMALL, "--processes", 1)
EVALUATION = ("eval_supernet.py", "run", "--archs", "list.json", *IMAGES)
EXPORT = ("eval_supernet.py", "export", "--arch", SMALLEST, *IMAGES)
VERIFY = ("eval_supernet.py", "verify", "--submission", "list.json", "--archs", "list.json")
SCORE = ("eval_supernet.py", "score", "--submission", "list.json", "--truth", "list.json")
#: Every way to name a checkpoint: the words before its path.
READERS = {"train --pretrained": (*TRAINING, "--pretrained"), "train --resume": (*TRAINING, "--resume"),
           "pretrain --pretrained": (*STANDALONE, "--pretrained"), "pretrain --resume": (*STANDALONE, "--resume"),
           "truth --pretrained": (*TRUTH, "--pretrained"),
           "pretrain eval": (*STANDALONE, "--mode", "eval", "--pretrained"), "eval": (*EVALUATION, "--checkpoint"),
           "export": (*EXPORT, "--checkpoint"), "verify": (*VERIFY, "--checkpoint")}


def reader(*names):
    return pytest.mark.parametrize("words", [READERS[name] for name in names or READERS], ids=names or list(READERS))


# ---- files that are no checkpoints

def pickled(content, path="bad.pdparams"):
    with open(path, "wb") as file:
        pickle.dump(content, file)


def cut_short():
    with open("supernet/final.pdparams", "rb") as whole, open("bad.pdparams", "wb") as part:
        part.write(whole.read()[:-1000])


def one_byte_changed():
    (folder,) = os.listdir("supernet/checkpoints")
    shutil.copytree(f"supernet/checkpoints/{folder}", "bad.pdparams")
    with open("bad.pdparams/net.pdparams", "r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"\0\1")


def run_without_its_state():
    shutil.copytree("supernet", "bad.pdparams")
    (folder,) = os.listdir("bad.pdparams/checkpoints")
    os.unlink(f"bad.pdparams/checkpoints/{folder}/state.json")


def text():
    with open("bad.pdparams", "w") as file:
        file.write("This is not what you are looking for.\n" * 9)


NOT_CHECKPOINTS = {
    "missing": (lambda: None, "there is no checkpoint at bad.pdparams"),
    "a folder without one": (lambda: os.mkdir("bad.pdparams"), "there is no checkpoint at bad.pdparams"),
    "text": (text, "bad.pdparams is not a Paddle checkpoint, or is corrupt"),
    "empty": (lambda: open("bad.pdparams", "w").close(), "bad.pdparams is not a Paddle checkpoint, or is corrupt"),
    "cut short": (cut_short, "bad.pdparams is not a Paddle checkpoint, or is corrupt"),
    "one byte changed": (one_byte_changed, "the checkpoint bad.pdparams is corrupt"),
    "a run without its state": (run_without_its_state, "bad.pdparams holds no complete checkpoint"),
    "a list": (lambda: pickled([1, 2]), "bad.pdparams does not hold named weights, but a list"),
    "numbers for names": (lambda: pickled({1: np.zeros(3)}), "bad.pdparams does not hold named weights"),
    "another net": (lambda: pickled({"conv1.weight": np.zeros((64, 3, 7, 7))}), "does not hold a ResNet48"),
    "no weights": (lambda: pickled({}), "bad.pdparams does not hold a ResNet48"),
}


LOADING = [name for name in READERS if name != "verify"]  # which compares checksums


@reader(*LOADING)
@pytest.mark.parametrize("case", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_by_every_command_that_reads_one(here, words, case):
    make, sentence = NOT_CHECKPOINTS[case]
    make()
    assert sentence in refusal((*words, "bad.pdparams"), here)


@pytest.mark.parametrize("case", ["missing", "a folder without one", "one byte changed", "a run without its state"])
def test_verify_refuses_what_has_no_checksum_to_compare(here, case):
    make, sentence = NOT_CHECKPOINTS[case]
    make()
    assert sentence in refusal((*VERIFY, "--checkpoint", "bad.pdparams"), here)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_refused_as_a_checkpoint(here, seed):
    noise = np.random.default_rng(seed).integers(0, 256, 4000).astype("uint8").tobytes()
    (here / "bad.pdparams").write_bytes((b"", b"\x80\x04", b"\x80\x02}", b"PK\x03\x04")[seed % 4] + noise)
    assert "bad.pdparams is not a Paddle checkpoint, or is corrupt" in refusal((*READERS["eval"], "bad.pdparams"), here)


# ---- checkpoints for something else

@reader("eval", "export", "train --pretrained")
def test_a_net_on_its_own_is_refused_where_a_supernet_is_needed(here, words):
    for path in ("standalone", "standalone/final.pdparams"):
        assert f"holds the standalone net {SMALLEST}, not a supernet" in refusal((*words, path), here)


@reader("eval", "export", "train --pretrained", "pretrain --pretrained", "pretrain eval", "truth --pretrained")
def test_a_checkpoint_for_another_number_of_classes_is_refused(here, words):
    image_folder(here / "more", ("ant", "bee", "cat", "dog"))
    said = refusal((*words, "supernet", "--image_dir", "more"), here)
    assert "supernet is for 3 classes, but " in said and "more has 4" in said


def test_a_net_on_its_own_for_another_number_of_classes_or_another_arch_is_refused(here):
    image_folder(here / "more", ("ant", "bee", "cat", "dog"))
    words = (*READERS["pretrain eval"], "standalone")
    assert "it was trained on 3 classes, not on 4" in refusal((*words, "--image_dir", "more"), here)
    assert "standalone is for another net" in refusal((*words, "--arch", LARGEST), here)


def test_a_supernet_of_other_widths_is_refused_and_the_right_flags_are_named(here):
    other = ("--base_channels", "8,16,32,64")
    assert "it needs --base_channels 2,4,8,16 --divisor 1" in refusal(
        (*READERS["pretrain eval"], "supernet", *other), here)
    assert "is for another net" in refusal((*READERS["train --pretrained"], "supernet", *other), here)


@pytest.mark.parametrize("flags, sentence", [
    (("--lr", 0.5), "--lr was 0.1 and is now 0.5"), (("--base_channels", "8,16,32,64"), "a checkpoint of another net"),
    (("--resume", "none"), "holds the checkpoints of a run"),
    (("--image_dir", "more"), "the training images have changed"),
    (("--resume", "standalone"), "a checkpoint of another net"),
    (("--resume", "supernet/final.pdparams"), "this holds weights only; --pretrained starts from them")],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "")
def test_a_run_that_cannot_go_on_as_it_began_is_refused(here, flags, sentence):
    image_folder(here / "more", train=9)
    assert sentence in refusal((*TRAINING, "--save_dir", "supernet", *flags), here)


@pytest.mark.parametrize("words, flags, sentence", [
    (TRAINING, ("--image_dir", "others"), "the classes have changed (['cat'] then, ['dog'] now)"),
    (TRAINING, ("--image_dir", "fewer"), "the classes have changed (['cat'] then, [] now)"),
    (STANDALONE, ("--arch", LARGEST), f"another net: standalone {SMALLEST}, 3 classes, relu; the settings ask for stand"),
    (STANDALONE, ("--resume", "supernet"), "another net: supernet 2,4,8,16 wide, 3 classes, relu; the settings ask for")],
    ids=["other classes", "fewer classes", "another arch", "a supernet"])
def test_a_run_does_not_go_on_as_another_arch_or_with_other_classes(here, words, flags, sentence):
    image_folder(here / "others", ("ant", "bee", "dog"))
    image_folder(here / "fewer", ("ant", "bee"), train=12)
    folder = "supernet" if words is TRAINING else "standalone"
    assert sentence in refusal((*words, "--save_dir", folder, *flags), here)
    assert good(call(*words, "--save_dir", folder)).out.count("resumed ") == 1  # the last good one is there


@pytest.mark.parametrize("name", ["net.pdparams", "net.pdopt", "state.json"])
def test_a_checkpoint_that_is_cut_short_is_named_and_the_run_resumes_from_the_one_before(here, name):
    words = (*TRAINING, "--save_dir", "supernet", "--max_epoch")
    good(call(*words, 2))
    before, last = (f"supernet/checkpoints/step-0000000{step}" for step in (3, 6))
    with open(f"{last}/{name}", "r+b") as file:
        file.truncate(os.path.getsize(f"{last}/{name}") // 2)
    assert f"the checkpoint {last} is corrupt: " in refusal((*words, 2, "--resume", last), here)
    said = good(call(*words, 2)).out
    assert f"the checkpoint {last} is corrupt: " in said and f"resumed {before} at step 3" in said
    assert f"resumed {last} at step 6" in good(call(*words, 2)).out  # written anew


# ---- places that cannot be written

@pytest.fixture
def submitted(here):
    """Three archs with accuracies and a manifest, so that scoring gets as far as writing."""
    with open("list.json", "w") as file:
        json.dump({f"arch{i}": {"acc": 50.0 + i, "arch": code} for i, code in
                   enumerate((SMALLEST, LARGEST, LARGEST[:5] + "2" + LARGEST[6:]))}, file)


WRITERS = {"train --save_dir": (*TRAINING, "--save_dir"), "train dry run": (*TRAINING, "--dry_run", "--save_dir"),
           "pretrain --save_dir": (*STANDALONE, "--save_dir"), "truth --save_dir": (*TRUTH, "--save_dir"),
           "truth --truth": (*TRUTH, "--save_dir", "truth", "--truth"),
           "eval --output": (*EVALUATION, "--checkpoint", "supernet", "--output"),
           "eval --cache_dir": (*EVALUATION, "--checkpoint", "supernet", "--output", "o.json", "--cache_dir"),
           "export --output": (*EXPORT, "--checkpoint", "supernet", "--output"),
           "score --report": (*SCORE, "--report"), "score --plot": (*SCORE, "--plot"),
           "sample --output": ("-m resnet48", "sample", 3, "--output")}


@pytest.mark.parametrize("place", ["a file/below.png", "/proc/below.png"])
@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_a_place_that_cannot_be_written_is_refused_by_every_command_that_writes(here, submitted, words, place):
    (here / "a file").write_text("here")
    assert refusal((*words, place), here).startswith(f"cannot write {place}")


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_are_refused(here, submitted):
    for name in ("train --save_dir", "pretrain --save_dir", "truth --save_dir"):
        assert "there is a file where the folder" in refusal((*WRITERS[name], "list.json"), here)
    for name in ("truth --truth", "eval --output", "score --report", "sample --output"):
        assert refusal((*WRITERS[name], "images"), here) == "cannot write images: it is a folder"


def test_a_failed_run_leaves_the_submission_that_was_there(here):
    good(call(*EVALUATION, "--checkpoint", "supernet", "--output", "submission.json"))
    write_list(here / "list.json", "12")
    refusal((*EVALUATION, "--checkpoint", "supernet", "--output", "submission.json"), here)


# ---- the same as programs of their own

@pytest.mark.slow
@pytest.mark.parametrize("words, sentence", [
    ((*TRAINING, "--image_dir", "nowhere"), "--image_dir nowhere has no folder train/"),
    ((*STANDALONE, "--pretrained", "list.json"), "there is no checkpoint at list.json"),
    (("eval_supernet.py", "run", "--limt", 5), "unknown flag --limt; the nearest is --limit"),
    (("-m resnet48", "describe", SMALLEST[1:]), f"arch code '{SMALLEST[1:]}' has 50 digits")],
    ids=["train", "pretrain", "eval", "describe"])
def test_a_program_ends_with_code_2_and_one_sentence(here, words, sentence):
    assert refusal(words, here, run).startswith(sentence)
    assert "output" not in listing(here)
