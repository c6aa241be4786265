"""`export --format onnx`, where paddle2onnx and onnxruntime are installed; the refusal where they are not."""

import importlib.metadata
import importlib.util

import numpy as np
import paddle
import pytest
from commands import SMALLEST, call, good, refusal
from small_runs import SPACE

from resnet48.nets import onnx_model
from resnet48.nets.supernet import ResNet48
from resnet48.system.errors import UserError

INSTALLED = all(map(importlib.util.find_spec, ("paddle2onnx", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not INSTALLED, reason="requirements-onnx.txt is not installed")
EXPORT = "eval_supernet.py", "export", "--arch", SMALLEST, "--calib_images", 32, "--num_workers", 0, "--format", "onnx"


def packages():
    return {(each.metadata["Name"], each.version) for each in importlib.metadata.distributions()}


@pytest.mark.skipif(INSTALLED, reason="requirements-onnx.txt is installed")
def test_without_the_optional_packages_it_says_what_to_install(tmp_path, weights):
    said = refusal((*EXPORT, "--checkpoint", weights, "--output", tmp_path / "m"), tmp_path)
    assert "pip install -r requirements-onnx.txt" in said


@needs_onnx
@pytest.mark.slow
def test_onnxruntime_gives_the_logits_of_the_net_and_nothing_is_installed_meanwhile(tmp_path):
    net, before = ResNet48(SPACE.smallest(), 6), packages()
    for _ in range(2):  # an older model is replaced
        onnx_model.save_onnx(net, 32, str(tmp_path / "m"))
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).standard_normal([5, 3, 32, 32]).astype("float32")
    found, expected = session.run(None, {"images": images})[0], net(paddle.to_tensor(images)).numpy()
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4) and expected.std() > 1e-2
    assert packages() == before


@needs_onnx
def test_a_command_writes_it_and_replaces_no_other_file(tmp_path, weights):
    words = (*EXPORT, "--checkpoint", weights, "--output", tmp_path / "m")
    for _ in range(2):
        assert "m.onnx: input float32" in good(call(*words)).out
    (tmp_path / "m.onnx").write_text("notes")
    assert "is not an ONNX model" in refusal(words, tmp_path)


@needs_onnx
def test_a_model_with_other_logits_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "TOLERANCE", -1)
    with pytest.raises(UserError, match="gives other logits than the net"):
        onnx_model.save_onnx(ResNet48(SPACE.smallest(), 6), 32, str(tmp_path / "m"))
    assert not list(tmp_path.iterdir())
