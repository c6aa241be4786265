"""What the tests of the command lines share: the scripts as programs, the same in this process, and small input."""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet48.space.arch import FULL, PUBLISHED
from resnet48.system.errors import exit_on_user_error
from resnet48.system.signals import STOP_SIGNALS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LARGEST, SMALLEST = FULL.largest().code, PUBLISHED.smallest().code
UNTIED = SMALLEST[:44] + "1" + SMALLEST[45:]  # block 2 of stage 4 is wider than block 1
NARROW = ("--base_channels", "2,4,8,16", "--divisor", "1")
#: Flags of both training scripts that make a run of a few steps on a small image folder.
SMALL = (*NARROW, "--image_size", "32", "--batch_size", "8", "--max_epoch", "1", "--calib_images", "8", "--warmup", "0",
         "--num_workers", "0")
#: The same for the built-in digits.
DIGITS = (*NARROW, "--batch_size", "256", "--max_epoch", "1", "--calib_images", "16", "--num_workers", "0")
PATIENCE = 600  # seconds; only a program that hangs takes so long
PADDLE_SAYS = ("OMP_NUM_THREADS", "ccache", "warnings.warn(")  # in lines on standard error that are not ours


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str

    def own_errors(self):
        """The lines on standard error that do not come from Paddle."""
        return [line for line in self.err.splitlines() if not any(words in line for words in PADDLE_SAYS)]


def command(script, *words):
    """The program as a list of words. script: a file of the project, or `-m resnet48`."""
    program = script.split() if script.startswith("-m") else [os.path.join(ROOT, script)]
    return [sys.executable, *program, *map(str, words)]


def environment():
    return {**os.environ, "PYTHONPATH": ROOT}


def run(script, *words, cwd=None):
    """Run a script as a program of its own."""
    ended = subprocess.run(command(script, *words), cwd=cwd, env=environment(), capture_output=True, text=True,
                           timeout=PATIENCE)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def call(script, *words):
    """The same in this process, which saves the seconds that Paddle takes to import."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exit_on_user_error(lambda: module(script).main(list(map(str, words))))
        except SystemExit as ending:
            code = ending.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Ended(code, out.getvalue(), err.getvalue())


def module(script):
    """A script as a module, loaded once."""
    if script.startswith("-m"):
        return importlib.import_module(script.split()[1] + ".__main__")
    name = os.path.splitext(script)[0]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, script))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def good(ended):
    """The same, after checking that it went well."""
    assert ended.code == 0 and "Traceback" not in ended.err, ended.err + ended.out
    return ended


def listing(folder):
    """Every path below a folder with what it holds: {relative path: bytes, or None for a folder}."""
    found = {}
    for where, folders, names in os.walk(folder):
        found.update({os.path.relpath(os.path.join(where, name), folder): None for name in folders})
        for name in names:
            with open(os.path.join(where, name), "rb") as file:
                found[os.path.relpath(os.path.join(where, name), folder)] = file.read()
    return found


def refusal(words, folder, start=call):
    """The sentence with which a command refuses, after checking that it ended as it must and left the folder alone."""
    before = listing(folder)
    ended = start(*words)
    assert "Traceback" not in ended.err + ended.out
    (line,) = ended.own_errors()
    assert ended.code == 2 and line.startswith("error: ") and len(line) > 20, ended
    assert listing(folder) == before
    return line.removeprefix("error: ")


def image_folder(folder, classes=("ant", "bee", "cat"), train=8, val=3):
    """Make train/ and val/ with JPEG, PNG and grey images of varying size below a folder; returns its path as text.

    The classes differ in brightness, so that there is something to learn.
    """
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            place = os.path.join(folder, part, name)
            os.makedirs(place)
            for i in range(count):
                height, width = rng.integers(24, 48, 2)
                pixels = 70 * label + rng.integers(0, 70, (height, width, 3))
                image = Image.fromarray(pixels.astype("uint8"))
                if i % 3 == 2:
                    image = image.convert("L")
                image.save(os.path.join(place, f"{i}" + (".JPEG", ".png", ".jpg")[i % 3]))
    return str(folder)


def write_list(path, *codes):
    """Write an arch list with keys arch1, arch2, ...; returns its path as text."""
    with open(path, "w") as file:
        json.dump({f"arch{place}": {"acc": 0.0, "arch": code} for place, code in enumerate(codes, 1)}, file)
    return str(path)
