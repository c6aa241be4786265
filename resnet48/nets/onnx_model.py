"""A subnet as an ONNX model, for runtimes other than Paddle's; paddle2onnx and onnxruntime are optional."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import paddle

from ..system import files
from ..system.errors import UserError
from .export import save_inference

OPSET = 13
TOLERANCE = 1e-4  # of logits, relative and absolute
#: From Paddle's program argv[1] and weights argv[2] to the ONNX file argv[3]; then its logits on the images argv[4] to
#: argv[5]. On its own, because the converter writes to standard output and ends the process where it fails. Without the
#: optimizer of paddle2onnx 2.1, Polygraphy, which it tells to install what is missing, a newer numpy too, as it runs.
CONVERT = f"""
import sys
sys.path.pop(0)
program, weights, model, images, logits = sys.argv[1:]
import inspect, numpy, paddle2onnx
tools = {{"optimize_tool": "none"}} if "optimize_tool" in inspect.signature(paddle2onnx.export).parameters else {{}}
paddle2onnx.export(program, weights, model, opset_version={OPSET}, **tools)
import onnxruntime
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
numpy.save(logits, session.run(None, {{"images": numpy.load(images)}})[0])
"""


def require() -> None:
    """Raise `UserError` now, before minutes of work, unless paddle2onnx and onnxruntime are installed."""
    missing = [name for name in ("paddle2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install -r requirements-onnx.txt")


def require_output(path: str, weights_file: str) -> None:
    """Raise `UserError` where an ONNX model at `path`.onnx would replace its checkpoint or a foreign file."""
    files.require_output("--output", path + ".onnx", {"--checkpoint": weights_file}, lambda found: (
        None if _is_onnx(found) else "is there already and is not an ONNX model"))


def _is_onnx(path):
    """Whether a file begins as protobuf writes a ModelProto: its version (field 1), then field 2 or 7."""
    try:
        with files.open_regular(path) as file:
            begins = file.read(3)
    except OSError:
        return False
    return begins[:1] == b"\x08" and begins[2:] in (b"\x12", b"\x3a")


@paddle.no_grad()
def save_onnx(net: paddle.nn.Layer, image_size: int, path: str) -> None:
    """Write `net` as `path`.onnx, input and output as for `export.save_inference`.

    What is written is run by onnxruntime, and its logits compared with the net's, before it gets its name. Raises
    `UserError` where that fails or the file cannot be written.
    """
    require()
    with tempfile.TemporaryDirectory() as folder:
        place = {name: os.path.join(folder, name) for name in ("model", "model.onnx", "images.npy", "logits.npy")}
        save_inference(net, image_size, place["model"])
        images = np.random.default_rng(0).standard_normal([3, 3, image_size, image_size]).astype("float32")
        np.save(place["images.npy"], images)
        program = place["model"] + (".json" if os.path.exists(place["model"] + ".json") else ".pdmodel")
        ended = subprocess.run([sys.executable, "-c", CONVERT, program, place["model"] + ".pdiparams",
                                place["model.onnx"], place["images.npy"], place["logits.npy"]], capture_output=True,
                               text=True, errors="replace", env={**os.environ, "PIP_NO_INDEX": "1"})
        if ended.returncode:
            why = ([line for line in ended.stderr.splitlines() if line.strip()] or ["no message"])[-1]
            raise UserError(f"paddle2onnx cannot convert what Paddle {paddle.__version__} writes, or onnxruntime not "
                            f"run it ({why.strip()}); paddle2onnx 2.1.0 is for Paddle 3, 1.3.1 for Paddle 2.6")
        found, expected = np.load(place["logits.npy"]), net(paddle.to_tensor(images)).numpy()
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError("what paddle2onnx has written gives other logits than the net, so it is not kept")
        with files.atomic_write(path + ".onnx") as temporary:
            shutil.copyfile(place["model.onnx"], temporary)
