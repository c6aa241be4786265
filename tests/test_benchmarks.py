import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = os.path.join(ROOT, "benchmarks")


def test_the_tables_are_what_the_report_writes(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import report
    with open(report.README) as file:
        text = file.read()
    found = report.sections(text)
    assert tuple(found) == report.PROGRAMS and report.text_of(found) == text
    assert all(f"benchmarks/{name}.py" in section for name, section in found.items())


@pytest.mark.skipif(importlib.util.find_spec("torch"), reason="PyTorch is there")
def test_without_pytorch_the_comparison_with_it_says_what_to_install():
    done = subprocess.run([sys.executable, os.path.join(FOLDER, "peer.py")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: PyTorch is not installed: pip install -r benchmarks/requirements.txt\n"
