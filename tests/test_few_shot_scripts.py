"""A split net from the command line: training, evaluation, submission, export, and subnets cut out of it."""

import json
import os

import pytest
from commands import ROOT, SMALL, call, good, image_folder, write_list
from small_runs import same
from test_distributed import LAUNCH, run

from resnet48.space.arch import FULL
from resnet48.training import checkpoint

NARROW = FULL.narrowed((2, 4, 8, 16), 1)
STAGES = "stages:\n  - {epochs: 1}\n  - {epochs: 1, split: SPLIT}\n"


def arch_of(depth, digit):
    """Of this depth and outer width in stage 4, and smallest else."""
    return NARROW.assemble((2, 2, 2, depth), "333" + digit, [["3"] * most for most in (2, 2, 2, depth)])


#: One for each depth of stage 4, and in widths of its outputs from 16 to 11 channels.
ARCHS = [arch_of(depth, digit) for depth, digit in ((2, "1"), (3, "3"), (4, "5"), (5, "7"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("few_shot")
    image_folder(made / "images")
    write_list(made / "list.json", *("1" + arch.code for arch in ARCHS))
    return made


@pytest.mark.parametrize("split", ["depth(stage=4)", pytest.param("width", marks=pytest.mark.slow)])
def test_one_checkpoint_of_all_groups_is_evaluated_verified_exported_and_cut(folder, tmp_path, monkeypatch, split):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(STAGES.replace("SPLIT", split))
    images, archs = ("--image_dir", folder / "images"), ("--archs", folder / "list.json")
    train = ("train_supernet.py", "run", "--config", "recipe.yaml", *images, *SMALL, "--max_epoch", "2")
    said = good(call(*train, "--save_dir", "net", "--zero_residuals", "--eval_freq", "0", "--dry_run")).out
    assert "step 1: the net is split by the " + split[:5] in said and "dry run passed" in said
    said = good(call(*train, "--save_dir", "net")).out
    assert "step 3: the net is split by the " + split[:5] in said and "epoch 2: top-1 largest" in said
    net = checkpoint.build(checkpoint.load("net"))
    assert {net.split.copy_of(arch) for arch in ARCHS} >= {0, len(net.split.groups) - 1}

    evaluate = ("eval_supernet.py", "run", "--checkpoint", "net", *images, *archs, "--calib_images", "8")
    good(call(*evaluate, "--output", "tree.json"))
    good(call(*evaluate, "--output", "alone.json", "--one_by_one"))
    for ending in (".json", ".counts.json"):
        with open("tree" + ending) as tree, open("alone" + ending) as alone:
            assert json.load(tree) == json.load(alone)
    good(call("eval_supernet.py", "verify", "--submission", "tree.json", *archs, "--checkpoint", "net"))

    standalone = ("pretrain.py", "run", *images, *SMALL, "--pretrained", "net", "--arch", ARCHS[-1].code)
    good(call(*standalone, "--mode", "eval"))
    good(call(*standalone, "--save_dir", "alone"))
    good(call("eval_supernet.py", "export", "--checkpoint", "net", *images, "--calib_images", "8", "--arch",
              ARCHS[-1].code, "--output", "model"))  # which compares it with the subnet
    assert os.path.exists("model.pdiparams")
    good(call("train_supernet.py", "run", *images, *SMALL, "--pretrained", "net", "--save_dir", "more"))
    assert checkpoint.build(checkpoint.load("more")).split == net.split


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit_at_the_split_and_after_it(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text(STAGES.replace("SPLIT", "depth(stage=4)"))
    words = ("--nproc_per_node", "2", os.path.join(ROOT, "train_supernet.py"), "run", "--config", "recipe.yaml",
             "--image_dir", str(folder / "images"), *SMALL, "--max_epoch", "4", "--ema", "0.9", "--eval_freq", "0")
    run([*LAUNCH, *words, "--save_dir", "whole"], tmp_path)  # a step an epoch
    for step in (2, 3):
        path = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}"
        said = run([*LAUNCH, *words, "--save_dir", f"from{step}", "--resume", str(path)], tmp_path)
        assert "on 2 process(es)" in said and ("the net is split" in said) == (step == 2)
        one, other = (checkpoint.read_all(str(tmp_path / each / "checkpoints" / "step-00000004"))
                      for each in ("whole", f"from{step}"))
        assert same(one.weights, other.weights)
        assert same(*({name: value for name, value in each.optimizer.items() if value.any()} for each in (one, other)))
