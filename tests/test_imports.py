"""What is imported: the requirement files name it, and what touches Paddle bears the mark."""

import glob
import importlib
import os
import re
import subprocess
import sys

import pytest
from imports import ROOT, TESTS, third_party, touches_paddle

PROGRAM = [path for pattern in ("*.py", "resnet48/**/*.py")
           for path in glob.glob(os.path.join(ROOT, pattern), recursive=True)]
TEST_FILES = glob.glob(os.path.join(TESTS, "*.py"))
#: Packages whose name is not that of the module.
PACKAGES = {"paddle": "paddlepaddle", "PIL": "pillow", "cv2": "opencv-python", "sklearn": "scikit-learn",
            "yaml": "pyyaml"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OPTIONAL = {"visualdl", "paddleslim"}  # for --visualdl and --int8, which say what is missing


def lines(name):
    """The lines of a requirement file that name packages."""
    with open(os.path.join(ROOT, name)) as file:
        return [line.strip() for line in file if not line.startswith("#")]


def named(*names, python="3.11"):
    """{package: which versions} of requirement files, for a version of Python."""
    found = [re.fullmatch(r"([a-z0-9-]+)([=<>.0-9]*)(?:; (python_version (?:<|>=) \"3.13\"))?( +#.*)?", line)
             for name in names for line in lines(name)]
    return {match[1].removesuffix("-gpu").removesuffix("-headless"): match[2] for match in found
            if not match[3] or ("<" in match[3]) == (python != "3.13")}


def imported(files):
    """The packages that files import."""
    return {PACKAGES.get(module, module) for path in files for module in third_party(path)}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["requirements.txt", "requirements-cpu.txt"])
def test_the_requirements_name_all_that_the_program_imports(name, python):
    assert imported(PROGRAM) - OPTIONAL <= named(name, python=python).keys()


def test_the_requirements_of_the_tests_name_all_else_that_the_tests_import():
    assert imported(TEST_FILES) <= named("requirements-cpu.txt", "tests/requirements.txt").keys()


@pytest.mark.parametrize("python", PYTHONS)
def test_with_and_without_a_gpu_only_paddle_differs(python):
    with_gpu, without = named("requirements.txt", python=python), named("requirements-cpu.txt", python=python)
    assert with_gpu.pop("paddlepaddle") != without.pop("paddlepaddle") and with_gpu == without


def test_every_requirement_has_its_reason():
    explained = lines("requirements.txt")[:-2]  # the last two share theirs with the one before
    assert all(" # " in line for line in explained)


def test_a_test_file_without_the_mark_imports_no_paddle():
    names = [os.path.basename(path)[:-3] for path in glob.glob(os.path.join(TESTS, "test_*.py"))
             if not touches_paddle(path)]
    assert "test_arch" in names and "test_supernet" not in names
    check = f"import sys, conftest, {', '.join(names)}; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=TESTS).returncode == 0


def test_a_test_without_the_mark_cannot_import_paddle():
    with pytest.raises(ImportError):
        importlib.import_module("paddle")
