"""A subnet as an inference model, which needs no code of this project."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import paddle

from ..system import files
from ..system.errors import UserError

ENDINGS = (".pdiparams", ".pdiparams.info", ".pdmodel", ".json")  # of the files that Paddle's versions write
#: The model at argv[1], run once. On its own, because a program that is cut short ends the process that loads it.
RUN_ONCE = """
import sys
sys.path.pop(0)
import json, numpy as np, paddle
model = paddle.jit.load(sys.argv[1])
model.eval()
images = np.random.default_rng(0).standard_normal(json.loads(sys.argv[2])).astype("float32")
print(json.dumps(model(paddle.to_tensor(images)).numpy().tolist()))
"""


def require_path(path: str) -> None:
    """Raise `UserError` now, before minutes of work, unless `save_inference` could write to `path`. Creates nothing."""
    for ending in ENDINGS:
        if path.endswith(ending):
            raise UserError(f"the path of an inference model is without ending: {path.removesuffix(ending)} instead of "
                            f"{path}")
    if not os.path.basename(path) or os.path.isdir(path):
        raise UserError(f"the path of an inference model names no folder but files, to which endings are added: "
                        f"{os.path.join(path, 'subnet')} instead of {path}")
    for ending in ENDINGS:
        files.require_writable(path + ending)


def require_output(path: str, weights_file: str) -> None:
    """Raise `UserError` where an inference model at `path` would replace its checkpoint or a foreign file."""
    exported = os.path.exists(path + ".pdiparams")
    for ending in (".json", ".pdmodel", ".pdiparams"):
        files.require_output("--output", path + ending, {"--checkpoint": weights_file}, lambda found: (
            None if exported and os.path.isfile(found) else "is there already and is not part of an exported model"))


def save_inference(net: paddle.nn.Layer, image_size: int, path: str) -> None:
    """Write `net` for `paddle.inference` as `path`.pdiparams and `path`.json (`path`.pdmodel before Paddle 3).

    Its input is named `images`: float32 [N, 3, image_size, image_size], normalised; its output the logits [N, classes].
    What is written is loaded and run once before it gets its name: Paddle does not notice a full disk. The net is left
    in evaluation mode. Raises `UserError` where the files cannot be written, and leaves nothing then.
    """
    require_path(path)
    net.eval()
    spec = paddle.static.InputSpec([None, 3, image_size, image_size], "float32", "images")
    folder, name = os.path.split(os.path.abspath(path))
    existing = folder
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    temporary = None
    try:
        temporary = tempfile.mkdtemp(dir=existing, prefix=".export-")
        written = os.path.join(temporary, name)
        paddle.jit.save(paddle.jit.to_static(net, input_spec=[spec], full_graph=True), written)
        if not _gives_the_same(net, written, [2, 3, image_size, image_size]):
            raise UserError(f"cannot write {path}.*: what was written cannot be loaded, or gives other logits than the "
                            f"net; maybe the disk is full (free are {shutil.disk_usage(temporary).free >> 20} MiB)")
        os.makedirs(folder, exist_ok=True)
        for each in os.listdir(temporary):
            with open(os.path.join(temporary, each), "rb") as file:
                os.fsync(file.fileno())
        for each in sorted(os.listdir(temporary), key=lambda each: each in (f"{name}.json", f"{name}.pdmodel")):
            os.replace(os.path.join(temporary, each), os.path.join(folder, each))
    except OSError as error:
        raise UserError(f"cannot write {path}.*: {error.strerror or error}") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


@paddle.no_grad()
def _gives_the_same(net, path, shape):
    """Whether the model at `path` can be run and gives the net's logits on random images of `shape`."""
    ended = subprocess.run([sys.executable, "-c", RUN_ONCE, path, json.dumps(shape)], capture_output=True, text=True)
    if ended.returncode:
        return False
    images = np.random.default_rng(0).standard_normal(shape).astype("float32")
    expected = net(paddle.to_tensor(images)).numpy()
    found = np.array(json.loads(ended.stdout.splitlines()[-1]))
    # Far above what another device or algorithm changes, far below what other weights do.
    tolerance = 0.01 * np.abs(expected).max() + 1e-4
    return found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=tolerance)
