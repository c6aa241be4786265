"""What the tests share: a narrow space, small nets, and the folders that a run needs."""

import os
import random
import shutil
import sys

import hypothesis
import numpy as np
import pytest
from imports import touches_paddle

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the nets of the tests are too small to gain by threads, which only wait

from resnet48.space.arch import FULL, PUBLISHED  # noqa: E402

hypothesis.settings.register_profile("short", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=5000)
hypothesis.settings.load_profile("short")

PUBLISHED_LIST = os.path.join(ROOT, "..", "shared", "data", "CVPR_2022_NAS_Track1_test.json")
PHOTOGRAPHS = os.path.join(ROOT, "..", "shared", "data", "caltech16")


def pytest_collection_modifyitems(items):
    """Mark what touches Paddle, by what a test's module imports."""
    for item in items:
        if touches_paddle(str(item.path)):
            item.add_marker("framework")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    seed_all()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    seed_all()


def seed_all():
    """The same random numbers for every fixture and every test, whatever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)
    if paddle := sys.modules.get("paddle"):
        paddle.seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test without the mark cannot import Paddle, not even through a fixture."""
    with pytest.MonkeyPatch.context() as patch:
        if "framework" not in item.keywords:
            patch.setitem(sys.modules, "paddle", None)
        return (yield)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with everything that a command needs: images/, list.json, supernet/, standalone/."""
    from commands import LARGEST, SMALL, SMALLEST, call, good, image_folder, write_list  # here, for they import Paddle
    folder = tmp_path_factory.mktemp("made")
    words = ("--image_dir", image_folder(folder / "images"), *SMALL, "--save_dir")
    good(call("train_supernet.py", "run", *words, folder / "supernet"))
    good(call("pretrain.py", "run", "--arch", SMALLEST, *words, folder / "standalone"))
    write_list(folder / "list.json", "1" + SMALLEST, LARGEST)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A working folder of the test's own with copies of what is `made`."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The path of a narrow supernet's weights, for evaluations of digits."""
    from evaluation import write_supernet  # here, for it imports Paddle

    return write_supernet(tmp_path_factory.mktemp("supernet"))


@pytest.fixture(scope="session")
def narrow():
    """The full space over widths of 4 to 32 channels."""
    return FULL.narrowed((4, 8, 16, 32), 1)


@pytest.fixture(scope="session")
def narrow_published():
    return PUBLISHED.narrowed((4, 8, 16, 32), 1)


@pytest.fixture(scope="session")
def published():
    """Path of the published arch list; tests that need it skip where it is not there."""
    if not os.path.exists(PUBLISHED_LIST):
        pytest.skip("the published arch list is not beside the project")
    return PUBLISHED_LIST


@pytest.fixture(scope="session")
def photographs():
    if not os.path.exists(PHOTOGRAPHS):
        pytest.skip("the Caltech-101 photographs are not beside the project")
    return PHOTOGRAPHS
