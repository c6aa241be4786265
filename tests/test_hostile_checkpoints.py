"""Checkpoints that would run a program, by every way in which one comes in: it never runs."""

import json
import os
import pickle

import numpy as np
import pytest
from commands import call, good, refusal
from test_bad_checkpoints import EVALUATION, EXPORT, READERS, TRAINING

from resnet48.system import files
from resnet48.training import checkpoint, run_state
from resnet48.training.checkpoint import CheckpointError


class Hostile:
    """What makes a folder of this name when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.fixture
def marked(here):
    """A working folder; afterwards the marker must not be there."""
    yield here
    assert not (here / "marker").exists()


def write_hostile(path):
    with open(path, "wb") as file:
        pickle.dump({"blocks.0.conv.weight": Hostile()}, file, protocol=2)


def test_the_file_is_hostile(here):
    write_hostile("x.pdparams")
    with open("x.pdparams", "rb") as file:
        pickle.load(file)
    assert os.path.isdir("marker")


def newest(run):
    (folder,) = os.listdir(f"{run}/checkpoints")
    return f"{run}/checkpoints/{folder}"


def sealed(folder):
    """Give a checkpoint's folder the checksums of what is in it now."""
    state = files.read_json(f"{folder}/state.json", "")
    for name in ("net.pdparams", "net.pdopt"):
        state["sha256"][name] = files.sha256_of(f"{folder}/{name}")
    state["sha256"]["state.json"] = run_state.digest(state)
    with open(f"{folder}/state.json", "w") as file:
        json.dump(state, file)


LOADING = [name for name in READERS if name != "verify"]
SENTENCE = "a checkpoint may hold arrays, text and numbers only"


@pytest.mark.parametrize("name", LOADING)
def test_foreign_weights_run_nothing(marked, name):
    write_hostile("bad.pdparams")
    assert SENTENCE in refusal((*READERS[name], "bad.pdparams"), marked)


@pytest.mark.parametrize("name", LOADING)
def test_weights_with_the_right_checksum_beside_them_run_nothing(marked, name):
    write_hostile(f"{newest('supernet')}/net.pdparams")
    sealed(newest("supernet"))
    for path in (newest("supernet"), f"{newest('supernet')}/net.pdparams"):
        assert SENTENCE in refusal((*READERS[name], path), marked)
    assert "supernet holds no complete checkpoint" in refusal((*READERS[name], "supernet"), marked)


@pytest.mark.parametrize("name", READERS)
def test_weights_with_another_checksum_beside_them_are_not_even_read(marked, name, monkeypatch):
    write_hostile(f"{newest('supernet')}/net.pdparams")
    write_hostile("supernet/final.pdparams")
    monkeypatch.setattr("resnet48.training.tensor_files.read", None)
    for path in ("supernet/final.pdparams", newest("supernet"), f"{newest('supernet')}/net.pdparams"):
        assert "is corrupt: " in refusal((*READERS[name], path), marked)
    assert "supernet holds no complete checkpoint" in refusal((*READERS[name], "supernet"), marked)


def test_verify_compares_checksums_and_reads_no_weights(marked, monkeypatch):
    good(call(*EVALUATION, "--checkpoint", "supernet", "--output", "s.json"))
    monkeypatch.setattr("resnet48.training.tensor_files.read", None)
    words = ("eval_supernet.py", "verify", "--submission", "s.json", "--archs", "list.json", "--checkpoint")
    for path in ("supernet", newest("supernet"), f"{newest('supernet')}/net.pdparams", "supernet/final.pdparams"):
        found = call(*words, path)
        assert "another checkpoint" not in found.err and "Traceback" not in found.err, found
    write_hostile("bad.pdparams")
    assert "was written for another checkpoint" in refusal((*words, "bad.pdparams"), marked)
    assert "was written for another checkpoint" in refusal((*words, newest("standalone")), marked)


def test_auto_resume_runs_nothing_and_goes_to_the_one_before(marked):
    words = (*TRAINING, "--save_dir", "supernet", "--max_epoch")
    good(call(*words, 2))
    for name in ("net.pdopt", "net.pdparams"):
        write_hostile(f"supernet/checkpoints/step-00000006/{name}")
        sealed("supernet/checkpoints/step-00000006")
        said = good(call(*words, 2)).out
        assert SENTENCE in said and "resumed supernet/checkpoints/step-00000003 at step 3" in said


def test_the_state_of_the_optimizer_runs_nothing_and_is_read_to_resume_only(marked):
    write_hostile(f"{newest('supernet')}/net.pdopt")
    sealed(newest("supernet"))
    assert SENTENCE in refusal((*TRAINING, "--save_dir", "other", "--resume", newest("supernet")), marked)
    good(call(*EVALUATION, "--checkpoint", newest("supernet"), "--output", "s.json"))
    good(call(*EXPORT, "--checkpoint", newest("supernet"), "--output", "exported"))
    good(call(*TRAINING, "--save_dir", "other", "--pretrained", newest("supernet")))
    found = checkpoint.load("supernet")
    with pytest.raises(CheckpointError, match=SENTENCE):
        found.optimizer


@pytest.mark.parametrize("width, sentence", [(10 ** 9, "base_channels takes four widths"), (2 ** 16, "is for another"),
                                             (0, "base_channels takes four widths")])
def test_weights_that_claim_to_be_huge_take_no_memory(tmp_path, width, sentence):
    weights = {f"blocks.{block}.conv1.weight": np.zeros((width, 0, 3, 3)) for block in (1, 6, 11, 19)}
    weights |= {name.replace("conv1", "conv2"): value for name, value in weights.items()}
    with open(tmp_path / "x.pdparams", "wb") as file:
        pickle.dump({**weights, "blocks.24.fc.weight": np.zeros((0, 1000))}, file)
    with pytest.raises(CheckpointError, match=f"x.pdparams .*{sentence}"):
        checkpoint.build(checkpoint.load(str(tmp_path / "x.pdparams")))


def test_a_state_of_the_optimizer_that_does_not_fit_is_one_sentence(here):
    place = f"{newest('supernet')}/net.pdopt"
    whole = checkpoint.load("supernet").optimizer
    key = "blocks.0.conv.weight/velocity_0"

    def said(**change):
        with open(place, "wb") as file:
            pickle.dump({name: value for name, value in {**whole, **change}.items() if value is not None}, file)
        sealed(newest("supernet"))
        return refusal((*TRAINING, "--save_dir", "supernet"), here)

    for value in (np.zeros(7, "float32"), "text", np.zeros(whole[key].shape, "int64"), 3, [1.0]):
        assert f"the state of this optimizer: {key} is not a tensor of floating-point numbers [2, 3, 7, 7]" in said(
            **{key: value})
    for value in (np.nan, np.inf, 1e300):
        assert f"the state of this optimizer: {key} is not finite" in said(**{key: np.full(whole[key].shape, value)})
    assert "'' is missing, or not known" in said(velocity=whole[key])
    assert "blocks.9.x is missing, or not known" in said(**{"blocks.9.x/velocity_0": whole[key]})
    assert f"{key.replace('velocity', 'moment')} is missing, or not known" in said(
        **{key: None, key.replace("velocity", "moment"): whole[key]})
    assert "this holds weights only" in said(**dict.fromkeys(whole))


def test_a_run_with_an_average_does_not_resume_from_the_average_alone(here):
    words = (*TRAINING, "--save_dir", "average", "--ema", 0.9)
    good(call(*words))
    whole = checkpoint.load("average").optimizer
    with open(f"{newest('average')}/net.pdopt", "wb") as file:
        pickle.dump({name: value for name, value in whole.items() if not name.endswith("/trained")}, file)
    sealed(newest("average"))
    assert "holds the average of the weights, but not the weights themselves" in refusal(words, here)


def test_no_module_unpickles():
    from test_architecture import MODULES, imported
    for module in MODULES:
        assert not {each for each in imported(module) if each.split(".")[0] in ("pickle", "marshal", "shelve", "dill")}
        with open(os.path.join(os.path.dirname(os.path.dirname(__file__)), *module.split(".")) + ".py") as file:
            text = file.read()
        assert "paddle.load(" not in text and "allow_pickle" not in text
