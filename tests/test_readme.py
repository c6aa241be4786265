"""What README.md shows works as it stands there."""

import os
import re
import subprocess
import sys

import pytest
from commands import ROOT, environment, module

from resnet48.space.arch import FULL
from resnet48.system import config, options
from resnet48.training import recipes

with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    README = file.read()


@pytest.mark.slow
def test_the_library_is_used_from_python_as_shown(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True,
                           text=True)
    assert ended.returncode == 0, ended.stderr
    found = dict(line.split() for line in ended.stdout.splitlines()[-2:])
    space = FULL.narrowed((3, 6, 12, 24), 1)
    assert found.keys() == {space.largest().code, space.smallest().code}
    assert all(0 <= float(accuracy) <= 100 for accuracy in found.values())
    assert os.listdir(tmp_path / "output") == ["from_python"]


def test_the_stages_that_are_shown_are_a_recipe(tmp_path):
    path, train_supernet, shown = tmp_path / "stages.yaml", module("train_supernet.py"), []
    for text in re.findall(r"\n\n((?:    .*\n)*    stages:\n(?:    .*\n)+)", README):
        path.write_text("\n".join(line[4:] for line in text.splitlines()))
        _, settings = config.command_line("A program.", {"run": (train_supernet.run, options.SupernetSettings, None)},
                                          ["run", "--config", str(path)])
        shown.append([(stage.epochs, bool(stage.split)) for stage in recipes.supernet(settings, FULL)])
    assert shown == [[(80, False), (40, False)], [(90, False), (30, True)]]


def test_the_table_of_recipes_names_those_that_there_are():
    named = set(re.findall(r"^\| `(\w+)` +\|", README, re.MULTILINE))
    supernets = set()
    for name in (name for name in os.listdir(config.RECIPES) if name.endswith(".yaml")):
        with open(os.path.join(config.RECIPES, name)) as file:
            if re.search("^(sampler: |objective: |stages:)", file.read(), re.MULTILINE):
                supernets.add(name.removesuffix(".yaml"))
    assert named == supernets


def test_the_layout_names_every_module_and_no_other():
    text = README[README.index("## How the code is laid out"):README.index("## All 45,000")]
    package = os.path.join(ROOT, "resnet48")
    rooms = [name for name in os.listdir(package) if os.path.exists(os.path.join(package, name, "__init__.py"))]
    modules = {name.removesuffix(".py") for room in rooms for _, _, names in os.walk(os.path.join(package, room))
               for name in names if name.endswith(".py") and name != "__init__.py"}
    shown = set()
    for line in text.splitlines():
        if line.startswith("    "):
            shown |= {line[column:column + 15].split()[0] for column in (18, 72) if line[column:].strip()}
    assert shown == modules
