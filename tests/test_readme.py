"""What README.md and the pages of docs/ say of the code is so, and the code that they show works."""

import os
import re
import subprocess
import sys

import numpy as np
import pages
import pytest
from commands import DIGITS, ROOT, call, environment, good, module

from resnet48.images import datasets, loader, transforms
from resnet48.space.arch import FULL, PUBLISHED
from resnet48.system import config, options
from resnet48.training import objectives, recipes, samplers

IMAGENET, MEAN_MACS = 1281167, 2.9718e9  # training images; of the published list, as `eval_supernet.py plan` says
SHOWN = re.findall(r"at the end of\s`(resnet48/\S+)`.*?\n\n```python\n(.*?)```",
                   pages.section("README.md", "Extending"), re.DOTALL)


# --- from Python ------------------------------------------------------------------------------------------------------

def test_a_subnet_is_evaluated_from_python_as_shown(tmp_path, monkeypatch, capsys):
    (program,) = pages.blocks("README.md", "python")[:1]
    assert len(program.splitlines()) == 6
    monkeypatch.chdir(tmp_path)
    good(call("train_supernet.py", "run", *DIGITS, "--save_dir", "output/digits/train"))
    exec(program, {})
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 100


@pytest.mark.slow
def test_the_library_is_used_from_python_as_shown(tmp_path):
    (program,) = pages.blocks("docs/python.md", "python")
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True,
                           text=True)
    assert ended.returncode == 0, ended.stderr
    found = dict(line.split() for line in ended.stdout.splitlines()[-2:])
    space = FULL.narrowed((3, 6, 12, 24), 1)
    assert found.keys() == {space.largest().code, space.smallest().code}
    assert all(0 <= float(accuracy) <= 100 for accuracy in found.values())
    assert os.listdir(tmp_path / "output") == ["from_python"]


# --- extending --------------------------------------------------------------------------------------------------------

def extended(monkeypatch, place, table):
    """Run the code that is shown for a file as if it stood at the end of it."""
    (code,) = (code for path, code in SHOWN if path == place.__spec__.origin[len(ROOT) + 1:])
    assert len(code.splitlines()) <= 6
    monkeypatch.setattr(place, table, dict(getattr(place, table)))
    exec(code, dict(vars(place)))


def test_a_sampler_is_added_as_shown(monkeypatch, tmp_path):
    extended(monkeypatch, samplers, "SAMPLERS")
    settings = options.SupernetSettings(sampler="alternating", objective="cross_entropy")
    (stage,) = recipes.supernet(settings, PUBLISHED)
    drawn = [stage.sampler(0, samplers.Moment(step, 9, 0.0)) for step in range(2)]
    assert [[role for role, _ in archs] for archs in drawn] == [["largest"], ["random"] * 4]
    good(call("train_supernet.py", "run", *DIGITS, "--sampler", "alternating", "--save_dir", tmp_path, "--dry_run"))


def test_an_objective_is_added_as_shown(monkeypatch, tmp_path):
    extended(monkeypatch, objectives, "OBJECTIVES")
    good(call("train_supernet.py", "run", *DIGITS, "--objective", "random_twice", "--save_dir", tmp_path, "--dry_run"))


def test_an_augmentation_is_added_as_shown(monkeypatch):
    extended(monkeypatch, transforms, "AUGMENTATIONS")
    colours = datasets.Split(np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), "uint8"), np.zeros(8, "int64"))
    images = datasets.ImageSet("made up", ("one",), colours, colours, size=32, workers=0, augment="grey")
    ((pixels, *_),) = loader.batches(images, 0, 1, batch_size=4, seed=0, rank=0, world_size=1, report=print)
    assert (pixels.numpy() == pixels.numpy()[:, :1]).all()


def test_the_flag_of_augmentations_allows_those_that_there_are():
    assert tuple(transforms.AUGMENTATIONS) == options.AUGMENTS


def test_a_space_is_written_as_shown(tmp_path):
    (content,) = pages.blocks("README.md", "yaml")
    assert len(content.splitlines()) <= 6
    (tmp_path / "my_space.yaml").write_text(content)
    said = good(call("-m resnet48", "describe", FULL.largest().code, "--space", tmp_path / "my_space.yaml")).out
    assert "64-64 64-64 64-64 64-64 64-64" in said


# --- what is said of the code -----------------------------------------------------------------------------------------

def test_the_stages_that_are_shown_are_a_recipe(tmp_path):
    path, train_supernet, shown = tmp_path / "stages.yaml", module("train_supernet.py"), []
    for text in pages.blocks("docs/recipes.md", "yaml"):
        path.write_text(text)
        _, settings = config.command_line("A program.", {"run": (train_supernet.run, options.SupernetSettings, None)},
                                          ["run", "--config", str(path)])
        shown.append([(stage.epochs, bool(stage.split)) for stage in recipes.supernet(settings, FULL)])
    assert shown == [[(80, False), (40, False)], [(90, False), (30, True)]]


def test_the_tables_of_recipes_name_those_that_there_are():
    supernets = set()
    for name in (name for name in os.listdir(config.RECIPES) if name.endswith(".yaml")):
        with open(os.path.join(config.RECIPES, name)) as file:
            if re.search("^(sampler: |objective: |stages:)", file.read(), re.MULTILINE):
                supernets.add(name.removesuffix(".yaml"))
    assert set(re.findall(r"^\| `(\w+)` +\|", pages.text("docs/recipes.md"), re.MULTILINE)) == supernets
    assert len(supernets) == 15  # as both READMEs say in words
    for page, heading in (("README.md", "Recipes"), ("README_ch.md", "训练方法")):
        rows = re.findall(r"^\| .*? \|(.*)\|$", pages.section(page, heading), re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", " ".join(rows[1:]))) == supernets


def test_the_layout_names_every_module_and_no_other():
    package = os.path.join(ROOT, "resnet48")
    rooms = [name for name in os.listdir(package) if os.path.exists(os.path.join(package, name, "__init__.py"))]
    modules = {name.removesuffix(".py") for room in rooms for _, _, names in os.walk(os.path.join(package, room))
               for name in names if name.endswith(".py") and name != "__init__.py"}
    shown = set()
    for line in pages.blocks("docs/layout.md", "")[0].splitlines():
        shown |= {line[column:column + 15].split()[0] for column in (14, 68) if line[column:].strip()}
    assert shown == modules
    assert set(re.findall("^(?:  )?([a-z]+)/", pages.blocks("docs/layout.md", "")[0], re.MULTILINE)) == {*rooms,
                                                                                                        "objectives"}


@pytest.mark.parametrize("page", ["README.md", "README_ch.md"])
def test_the_cost_at_full_scale_is_what_the_code_counts(page):
    draws = np.random.default_rng(0)
    drawn = np.mean([PUBLISHED.sample(draws).macs() for _ in range(1000)])
    step = PUBLISHED.largest().macs() + PUBLISHED.smallest().macs() + 2 * drawn
    expected = [6 * MEAN_MACS * IMAGENET * 90, 6 * step * IMAGENET * 120, 2 * 45000 * 1.5862e9 * (50000 + 512)]
    rows = re.findall(r"^\|.*\| (\d\.\d)e(\d\d) +\| ([\d.]+) \S+ +\| ([\d.]+) \S+ +\|$", pages.text(page), re.MULTILINE)
    assert len(rows) == len(expected)
    for flop, (digits, power, *hours) in zip(expected, rows):
        assert digits + "e" + power == f"{flop:.1e}".replace("e+", "e")
        for rate, shown in zip((1e13, 3e13), hours):
            assert float(shown) == pytest.approx(flop / (8 * rate) / 3600, rel=0.03)


def test_both_languages_show_the_same():
    def commands(page):
        return [pages.commands(block) for block in pages.blocks(page, "sh")]

    english, chinese = pages.text("README.md"), pages.text("README_ch.md")
    assert commands("README.md") == commands("README_ch.md")
    assert pages.blocks("README.md", "python") == pages.blocks("README_ch.md", "python")
    assert len(re.findall("^## ", english, re.MULTILINE)) == len(re.findall("^## ", chinese, re.MULTILINE))
    number = r"(?<![\w.-])\.?\d[\d.,]*\d"
    assert set(re.findall(number, english)) == set(re.findall(number, chinese))
