"""The figures of the documentation are what their program draws, show what the project computes, and load nothing."""

import os
import re
import sys
import xml.etree.ElementTree as xml

import pytest
from commands import call, module
from conftest import ROOT

from resnet48.evaluation import evaluator, forecast
from resnet48.space import arch_list
from resnet48.space.arch import FULL, PUBLISHED

FOLDER = os.path.join(ROOT, "docs", "figures")
sys.path.insert(0, FOLDER)

import prefix_tree  # noqa: E402
import search_space  # noqa: E402

FIGURES = "road", "prefix_tree", "search_space"
SVG = "{http://www.w3.org/2000/svg}"


def content(name):
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        return file.read()


def parsed(name):
    return xml.fromstring(content(f"{name}.svg"))


def elements(name, tag, *kinds):
    """Those of a figure with a tag and all of these classes."""
    return [each for each in parsed(name).iter(SVG + tag) if set(kinds) <= set(each.get("class", "").split())]


def texts(name, *kinds):
    return [each.text for each in elements(name, "text", *kinds)]


def test_the_files_are_what_the_program_writes(tmp_path):
    assert call("docs/figures/make.py", "--output", tmp_path).code == 0
    names = sorted(os.listdir(tmp_path))
    assert names == sorted(name for name in os.listdir(FOLDER) if not name.endswith((".py", "__pycache__")))
    assert [(tmp_path / name).read_text("utf-8") for name in names] == [content(name) for name in names]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_a_description_for_those_who_do_not_see_it(name):
    figure = parsed(name)
    assert figure.get("role") == "img"
    assert figure.get("aria-labelledby").split() == [figure[0].get("id"), figure[1].get("id")]
    assert [each.tag for each in figure[:2]] == [SVG + "title", SVG + "desc"]
    assert len(figure[0].text) > 10 and len(figure[1].text) > 100


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_loads_nothing_and_runs_nothing(name):
    assert {each.tag for each in parsed(name).iter()} == {
        SVG + tag for tag in ("svg", "title", "desc", "style", "rect", "path", "text")}
    assert not re.search(r"url\(|@import|href|\son\w+=", content(f"{name}.svg"))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_every_colour_in_light_and_in_dark(name):
    (style,) = (each.text for each in parsed(name).iter(SVG + "style"))
    light, dark = style.split("@media (prefers-color-scheme: dark) {")
    coloured = r"([.\w]+) {[^}]*?(#\w+|none)"
    assert re.findall(coloured, light) != re.findall(coloured, dark)
    assert dict(re.findall(coloured, light)).keys() == dict(re.findall(coloured, dark)).keys()
    used = {kind for each in parsed(name).iter() for kind in each.get("class", "").split()}
    assert used <= {*re.findall(r"\.(\w+)", style)}


def test_every_command_on_the_road_is_there():
    commands = [words.split() for words in texts("road", "code") if words != "truth.json"]
    script = None
    for words in commands:
        script = words[0] if words[0].endswith(".py") else script  # verify, score and report are of the last one
        assert callable(getattr(module(script), words[-1]))
    assert len(commands) == 6


def test_the_costs_of_a_list_are_those_of_its_distinct_prefixes_and_what_plan_says(rng):
    archs = list({PUBLISHED.sample(rng) for _ in range(60)})
    prefixes = {nodes[:end] for nodes in (arch.nodes() for arch in archs) for end in range(1, len(nodes) + 1)}
    found = prefix_tree.costs(archs)
    assert found[:4] == (len(archs), sum(1 + sum(arch.depths) for arch in archs), len(prefixes),
                         sum(arch.macs() for arch in archs))
    assert found.nodes < found.nodes_alone
    said = forecast.plan_text(archs, None, 224, 100, 1000, PUBLISHED, None, 1, 10, evaluator.Device.of("cpu"), 1e9)
    alone, shared = (f"{macs / len(archs) / 1e9:.4f}" for macs in (found.macs_alone, found.macs))
    assert f"{alone} alone, {shared} shared" in said and re.search(rf"nodes of the tree +{found.nodes}\n", said)


def test_the_tree_shows_each_shared_node_once_and_what_the_published_list_costs():
    archs = [PUBLISHED.parse(code) for code in prefix_tree.ARCHS.values()]
    few, published = prefix_tree.costs(archs), prefix_tree.kept_costs()
    shown = texts("prefix_tree", "code")
    assert len(shown) == few.nodes < few.nodes_alone
    assert len(texts("prefix_tree", "inverse")) == len(os.path.commonprefix([arch.nodes() for arch in archs])) > 1
    assert f"{few.nodes} nodes are computed, not {few.nodes_alone}." in " ".join(texts("prefix_tree"))
    digits = [[arch.code[4], *(arch.code[3 + 2 * block.index:5 + 2 * block.index] for block in arch.blocks())]
              for arch in archs]
    assert set(shown) == {pair for row in digits for pair in row}
    assert {"412,795", "742,798", "1.586", "2.972"} <= set(texts("prefix_tree"))
    assert published[:3] == (45_000, 742_798, 412_795)
    assert [round(macs / 45_000 / 1e9, 3) for macs in published[3:]] == [2.972, 1.586]


@pytest.mark.slow
def test_what_is_kept_of_the_published_list_is_what_it_costs(published):
    entries = {entry.key: entry for entry in arch_list.read_list(published)}
    assert {key: entries[key].arch.code for key in prefix_tree.ARCHS} == prefix_tree.ARCHS
    assert search_space.CODE in {entry.arch.code for entry in entries.values()}
    assert prefix_tree.costs_of_list(published) == prefix_tree.kept_costs()


def test_under_the_drawing_stand_the_digits_of_the_code_in_order_and_above_each_its_width():
    code, arch = search_space.CODE, FULL.parse(search_space.CODE)
    row = [each for each in elements("search_space", "text", "code") if "bold" not in each.get("class").split()]
    columns = [float(each.get("x")) for each in row]
    assert "".join(each.text for each in row) == code and columns == sorted(columns)
    bars = {}
    for kind in ("pale", "strong", "absent"):
        for each in elements("search_space", "rect", kind):
            if float(each.get("y")) + float(each.get("height")) == search_space.GROUND:
                middle = float(each.get("x")) + float(each.get("width")) / 2
                digit = min(range(len(code)), key=lambda place: abs(columns[place] - middle))
                assert abs(columns[digit] - middle) < 0.1 and digit not in bars
                bars[digit] = 0 if kind == "absent" else float(each.get("height")) / search_space.SCALE
    widths = [arch.stem]
    for stage, most in zip(arch.stages, (5, 5, 8, 5)):
        widths += [width for pair in stage for width in pair] + [0] * 2 * (most - len(stage))
    assert [bars[digit] for digit in range(4, 51)] == widths
    assert [words for words in texts("search_space", "truth") if " of " in words] == [
        f"{depth} of {most} blocks" for depth, most in zip(arch.depths, (5, 5, 8, 5))]


def test_the_table_of_widths_is_that_of_the_space_and_grey_where_no_published_arch_is():
    cells = [each for each in elements("search_space", "text") if re.fullmatch(r"\d{2,3}", each.text)]
    assert [int(each.text) for each in cells] == [
        FULL.width(stage, digit) for stage in (1, 2, 3, 4) for digit in "1234567"]
    assert ["soft" not in each.get("class") for each in cells] == [
        digit in PUBLISHED.codes[stage] for stage in (1, 2, 3, 4) for digit in "1234567"]
    assert len(elements("search_space", "rect", "mark")) == 1 + sum(
        len(set(search_space.CODE[first:last]) - {"0"}) for first, last in ((4, 15), (15, 25), (25, 41), (41, 51)))
    this, full = FULL.parse(search_space.CODE), FULL.largest()
    shown = " ".join(texts("search_space"))
    assert f"This net: {this.macs() / 1e9:.2f} GMACs, {this.params() / 1e6:.2f} M parameters." in shown
    assert f"The full net: {full.macs() / 1e9:.2f} GMACs, {full.params() / 1e6:.2f} M parameters." in shown
    assert (round(full.macs() / 1e9, 2), round(full.params() / 1e6, 2)) == (5.28, 34.04)
