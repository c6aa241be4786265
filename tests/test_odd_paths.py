"""Paths that no file can have, by every setting that takes one: one sentence, which does not repeat them in full."""

import pytest
from commands import call, refusal
from test_bad_checkpoints import EVALUATION, EXPORT, SCORE, STANDALONE, TRAINING, TRUTH, VERIFY

COMMANDS = {"train": TRAINING, "pretrain": STANDALONE, "truth": TRUTH,
            "eval": (*EVALUATION, "--checkpoint", "supernet"), "export": (*EXPORT, "--checkpoint", "supernet"),
            "score": SCORE, "report": ("eval_supernet.py", "report", "--output", "list.json"),
            "verify": (*VERIFY, "--checkpoint", "supernet"),
            "plan": ("eval_supernet.py", "plan", "--archs", "list.json"), "status": ("eval_supernet.py", "status"),
            "sample": ("-m resnet48", "sample", 3, "--output", "x.json")}
PATHS = {"train": ("image_dir", "save_dir", "resume", "pretrained", "cache_dir", "config"),
         "pretrain": ("image_dir", "save_dir", "resume", "pretrained", "cache_dir", "config"),
         "truth": ("archs", "truth", "save_dir"),
         "eval": ("checkpoint", "archs", "output", "image_dir", "cache_dir", "config"),
         "export": ("checkpoint", "output", "image_dir"), "verify": ("submission", "archs", "checkpoint"),
         "score": ("submission", "truth", "report", "plot"), "report": ("output", "truth", "checkpoint", "page"),
         "plan": ("archs",), "status": ("output",), "sample": ("output",)}
ODD = {"a NUL": "a\0b", "a name of 5,000 characters": "x" * 5000, "a path of 100,000 characters": "d/" * 50_000 + "x"}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name, setting", [(name, setting) for name in PATHS for setting in PATHS[name]])
def test_an_endless_path_is_one_sentence(here, name, setting, odd):
    said = refusal((*COMMANDS[name], f"--{setting}", ODD[odd]), here)
    assert said.startswith(f"--{setting} ") and len(said) < 250 and said.isprintable()


@pytest.mark.parametrize("length", [240, 255])
@pytest.mark.parametrize("name, setting", [(name, setting) for name in PATHS for setting in PATHS[name]
                                           if (name, setting) != ("train", "cache_dir")])
def test_a_path_that_is_just_too_long_for_the_files_of_a_command_is_one_sentence(here, name, setting, length):
    """With the ending of a temporary file it is longer than a system takes."""
    words = (*COMMANDS[name], f"--{setting}", "x" * length)
    ended = call(*words)
    assert ended.code in (0, 2) and "Traceback" not in ended.err, ended


def test_a_nul_in_a_yaml_file_is_named(here):
    (here / "c.yaml").write_text('save_dir: "a\\0b"\n')
    assert refusal((*TRAINING, "--config", "c.yaml"), here).startswith("--save_dir takes a path, and ")


def test_many_keys_are_no_path(here):
    keys = ",".join(f"arch{i}" for i in range(5000))
    assert "arch" in refusal((*COMMANDS["plan"], "--keys", keys), here)
