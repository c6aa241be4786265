"""What needs a GPU (`benchmarks/gpu.py` measures it): skipped without one, where only the program itself is tried."""

import os
import subprocess
import sys

import paddle
import pytest
from conftest import ROOT

PROGRAM = os.path.join(ROOT, "benchmarks", "gpu.py")
PARTS = ("precision_of_training", "scaler", "precision_of_evaluation", "memory_of_evaluation", "two_ranks")
gpu = pytest.mark.skipif(not paddle.device.cuda.device_count(), reason="there is no GPU")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", PARTS)
def test_what_the_page_checks_holds(monkeypatch, name):
    monkeypatch.syspath_prepend(os.path.dirname(PROGRAM))
    import gpu as page
    assert not [line for line in getattr(page, name)(page.LARGE) if line.endswith("FAILED")]


@pytest.mark.slow
def test_the_page_is_complete_without_a_gpu_at_small_size():
    done = subprocess.run([sys.executable, PROGRAM, "--small"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n## ") == 6 and done.stdout.count(": ok\n") == 7
    assert done.stdout.endswith("\nall checks passed\n")


@pytest.mark.skipif(paddle.device.cuda.device_count(), reason="there is a GPU")
def test_without_a_gpu_the_page_is_refused_in_one_sentence():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: Paddle sees no GPU here; --small tries this program without one"
