"""The rules of the contest: accuracies of nets trained on their own never enter a training."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from commands import DIGITS, ROOT, environment
from imports import reached

from resnet48.space.arch import FULL

TRAINING = os.path.join(ROOT, "resnet48", "training")
#: What reads accuracies from files. arch_list does too, for it reads lists; the file below finds that none is opened.
READS_TRUTH = {os.path.join(ROOT, "resnet48", room) for room in ("ranking", "study")}
#: A program that runs another and writes the names of all files that this opens, or tries to, to its last argument.
WATCHED = """
import os, runpy, sys
opened, (script, *words, found) = set(), sys.argv[1:]
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.add(os.path.abspath(os.fsdecode(arguments[0])))
sys.addaudithook(note)
sys.argv = [script, *words]
try:
    runpy.run_module(script[3:], run_name="__main__") if script.startswith("-m ") else runpy.run_path(script, None,
                                                                                                      "__main__")
finally:
    names = sorted(opened)
    with open(found, "w") as file:
        file.write("\\n".join(names))
"""


def opened_by(folder, *words):
    """The files that a program opens when it runs in a folder."""
    found = os.path.join(folder, "opened.txt")
    subprocess.run([sys.executable, "-c", WATCHED, *map(str, words), found], cwd=folder, env=environment(), check=True,
                   stdout=subprocess.DEVNULL)
    with open(found) as file:
        return set(file.read().splitlines())


@pytest.mark.slow
def test_supernets_of_a_study_are_trained_without_opening_its_truth(tmp_path):
    study = {"output": "out", "spread": 3, "bands": 0, "subnet_epochs": 2, "random_weights": 0,
             "truth": {"max_epoch": 1},
             "shared": {"space": "full", "base_channels": "2,4,8,16", "divisor": 1, "batch_size": 256, "warmup": 0,
                        "num_workers": 0, "calib_images": 16},
             "supernets": [{"name": "sandwich", "recipe": "sandwich", "dyna_batch_size": 2, "seeds": "0"}]}
    with open(tmp_path / "study.yaml", "w") as file:
        yaml.safe_dump(study, file)
    for kind in ("truth", "supernets"):
        opened = opened_by(tmp_path, "-m resnet48", "study", "study.yaml", "--only", kind)
        rows = {os.path.join(tmp_path, "out", "truth", name) for name in os.listdir(tmp_path / "out" / "truth")
                if name.endswith(".json")}
        assert len(rows) == 4  # one of them twice
        assert {os.path.dirname(path) for path in opened} >= {str(tmp_path / "out" / kind)}  # the watch works
    assert not opened & rows


def truth(path, codes):
    with open(path, "w") as file:
        json.dump({f"arch{place}": {"acc": 60.0 + place, "arch": code} for place, code in enumerate(codes)}, file)


@pytest.mark.parametrize("path", [os.path.join(ROOT, "train_supernet.py"), *(
    entry.path for entry in os.scandir(TRAINING) if entry.name.endswith(".py"))], ids=os.path.basename)
def test_nothing_that_training_imports_reads_accuracies(path):
    assert not {file for file in reached(path) if os.path.dirname(file) in READS_TRUTH}


def test_a_training_opens_no_file_of_accuracies(tmp_path):
    codes = [FULL.smallest().code, FULL.largest().code]
    os.makedirs(tmp_path / "run")
    lying_about = {str(tmp_path / name) for name in ("truth.json", "run/truth.json", "run/study.json", "list.json")}
    for path in lying_about:
        truth(path, codes)
    opened = opened_by(tmp_path, os.path.join(ROOT, "train_supernet.py"), "run", *DIGITS, "--space", "full",
                       "--save_dir", "run")
    assert str(tmp_path / "run" / "metrics.csv") in opened  # the watch works
    assert not opened & lying_about
