"""state.json from a file that is not trusted."""

import json

import pytest
from commands import SMALLEST, call, good, refusal
from test_bad_checkpoints import READERS, TRAINING
from test_hostile_checkpoints import newest, sealed

from resnet48.system.errors import UserError
from resnet48.training import checkpoint, run_state
from resnet48.training.checkpoint import CheckpointError

HUGE = 10 ** 30
#: Name in the state -> values that training does not write.
WRONG = {
    "step": [HUGE, -1, 1.5, None, "7", [], True], "best": ["7", [], float("nan"), float("inf"), HUGE, True],
    "best_step": [HUGE, "7", 1.5], "accuracies": [[], None, {"val": "7"}, {"val": None}, {"val": float("nan")}],
    "ranks": [HUGE, "7", None], "images": [-5000, "7"], "names": [7, []], "classes": ["abc", [1], None, {}, [["a"]]],
    "settings": [[], None, "lr", {"image_size": HUGE}, {"image_size": "32"}, {"image_size": -5}, {"recipe": []}],
    "paddle": [3, None], "scaler": [[], "scale", 3], "stage": ["first", -1], "objective": [[], None, 3],
    "net": [[], None, 3, {}, {"kind": "supernet", "num_classes": -5000, "space": {}},
            {"kind": "supernet", "num_classes": HUGE, "space": {}},
            {"kind": "supernet", "num_classes": 3, "space": {"depths": [[HUGE, HUGE]] * 4}},
            {"kind": "supernet", "num_classes": 3, "space": {"base_channels": [10 ** 9] * 4, "divisor": 1}},
            {"kind": "standalone", "num_classes": 3, "arch": SMALLEST, "stem": HUGE, "stages": []}]}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize("name, value", CASES, ids=lambda part: repr(part)[:40])
def test_a_value_of_another_form_is_one_sentence(name, value):
    run_state.check({})
    with pytest.raises(UserError) as said:
        run_state.check({name: value})
    assert str(said.value).isprintable() and len(str(said.value)) < 300


def test_the_state_of_a_run_is_of_the_form(made):
    for kind in ("supernet", "standalone"):
        state = checkpoint.load(str(made / kind)).state
        run_state.check(state)
        assert run_state.FORMS.keys() - {"sha256"} <= state.keys()


def changed(name, value):
    path = f"{newest('supernet')}/state.json"
    with open(path) as file:
        state = json.load(file)
    state[name] = value
    with open(path, "w") as file:
        json.dump(state, file)
    sealed(newest("supernet"))


@pytest.mark.parametrize("name, value", [("net", WRONG["net"][6]), ("net", WRONG["net"][4]), ("settings", []),
                                         ("step", HUGE), ("best", "7"), ("classes", "abc")], ids=str)
@pytest.mark.parametrize("words", READERS.values(), ids=READERS)
def test_every_command_that_reads_a_checkpoint_refuses_such_a_state(here, words, name, value):
    changed(name, value)
    assert "is corrupt: " in refusal((*words, newest("supernet")), here)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', '{"sha256": 3}', "[" * 10 ** 5, '{"step": 1e400'])
def test_a_state_that_is_no_state_is_passed_over(here, text):
    path = f"{newest('supernet')}/state.json"
    with open(path, "w") as file:
        file.write(text)
    assert f"the checkpoint {newest('supernet')} is corrupt: " in refusal((*READERS["eval"], newest("supernet")), here)
    assert "supernet holds no complete checkpoint" in refusal((*READERS["eval"], "supernet"), here)


@pytest.mark.parametrize("name", ["best", "best_step", "accuracies", "settings"])
def test_a_state_that_lacks_what_a_resume_needs_is_one_sentence(here, name):
    path = f"{newest('supernet')}/state.json"
    with open(path) as file:
        state = json.load(file)
    del state[name]
    with open(path, "w") as file:
        json.dump(state, file)
    sealed(newest("supernet"))
    assert f"its state lacks {name}" in refusal((*TRAINING, "--save_dir", "supernet"), here)


def test_a_state_with_a_mark_of_windows_is_read(here):
    path = f"{newest('supernet')}/state.json"
    with open(path) as file:
        text = file.read()
    with open(path, "w", encoding="utf-8-sig") as file:
        file.write(text)
    checkpoint.load("supernet")


def test_weights_beside_a_state_without_checksums_are_read_if_it_is_of_the_form(here):
    path = "supernet/final.json"
    with open(path) as file:
        state = json.load(file)
    for name, value in (("sha256", None), ("step", HUGE)):
        state = {key: each for key, each in {**state, name: value}.items() if each is not None}
        with open(path, "w") as file:
            json.dump(state, file)
        if name == "sha256":
            checkpoint.build(checkpoint.load("supernet/final"))
    with pytest.raises(CheckpointError, match="final.pdparams is corrupt: .*'step' in the state must be a number"):
        checkpoint.load("supernet/final")


def test_a_run_resumes_from_a_state_of_the_form(here):
    sealed(newest("supernet"))
    assert "resumed " in good(call(*TRAINING, "--save_dir", "supernet")).out
