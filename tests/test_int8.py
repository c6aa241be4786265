"""`export --int8`: a subnet quantised after training by PaddleSlim."""

import os
import re
import subprocess

import numpy as np
import paddle
import pytest
from commands import SMALLEST, call, good, refusal

from resnet48.nets import int8

EXPORT = "eval_supernet.py", "export", "--arch", SMALLEST, "--calib_images", 32, "--num_workers", 0, "--int8"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, weights):
    """(what was said, the path of the model)."""
    path = tmp_path_factory.mktemp("model") / "deep" / "subnet"
    said = good(call(*EXPORT, "--checkpoint", weights, "--output", path)).out
    return said, f"{path}.int8"


@pytest.mark.slow
def test_it_is_run_by_paddle_inference_and_its_accuracy_is_said_beside_that_in_float32(exported):
    said, path = exported
    before, after = map(float, re.search(r"top-1 (\S+) % in float32, (\S+) % in int8, on 360 validation images",
                                         said).groups())
    assert 0 <= before <= 100 and 0 <= after <= 100
    assert sorted(os.listdir(os.path.dirname(path))) == ["subnet.int8.pdiparams", "subnet.int8.pdmodel"]
    logits = int8.Predictor(path)(paddle.randn([3, 3, 32, 32]))
    assert logits.shape == [3, 10] and np.isfinite(logits.numpy()).all()


def test_it_needs_calibration_images_and_paddles_format(tmp_path, weights):
    words = (*EXPORT, "--checkpoint", weights, "--output", tmp_path / "m")
    assert "--calib_images must not be 0" in refusal((*words, "--calib_images", 0), tmp_path)
    assert "--int8 is for --format paddle only" in refusal((*words, "--format", "onnx"), tmp_path)


def test_where_paddle_or_paddleslim_cannot_do_it_one_sentence_says_so(tmp_path, monkeypatch, weights):
    broken = subprocess.CompletedProcess([], 1, "", "Traceback\nModuleNotFoundError: No module named 'paddleslim'\n")
    monkeypatch.setattr(int8.subprocess, "run", lambda *_, **__: broken)
    said = refusal((*EXPORT, "--checkpoint", weights, "--output", tmp_path / "m"), tmp_path)
    assert f"not possible with Paddle {paddle.__version__}" in said and "No module named 'paddleslim'" in said
