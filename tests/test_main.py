import json
import os
import subprocess
import sys

import numpy as np
import pytest

from resnet48.__main__ import main
from resnet48.space.arch import FULL, SPACES, ArchConfig
from resnet48.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXAMPLE = "348311131310000332323230014143424241434543757770000"
UNTIED = EXAMPLE[:10] + "3" + EXAMPLE[11:]


def program(*words):
    """The finished `python -m resnet48` with these words."""
    return subprocess.run([sys.executable, "-m", "resnet48", *words], cwd=ROOT, capture_output=True, text=True)


def table(capsys, *words):
    """What `describe` prints: row name -> (size, MACs, parameters, widths)."""
    main(["describe", *words])
    rows = {}
    for line in capsys.readouterr().out.splitlines()[3:10]:
        name, rest = line[:12].strip(), line[12:].split()
        size = rest.pop(0) if "x" in rest[0] else None
        rows[name] = size, *(int(count.replace(",", "")) for count in rest[:2]), " ".join(rest[2:])
    return rows


def listed(path):
    with open(path) as file:
        return json.load(file)


def refusal(*words):
    with pytest.raises(UserError) as caught:
        main(list(words))
    return str(caught.value)


# ---- describe

def test_describe_shows_widths_sizes_macs_and_parameters_per_stage(capsys):
    main(["describe", EXAMPLE])
    assert capsys.readouterr().out == f"""\
{EXAMPLE} at 224 px, 1000 classes

             output           MACs  parameters  widths
stem        112x112    118,013,952       9,536  64
stage 1       56x56    635,830,272     203,488  64-64 56-64 56-64
stage 2       28x28    713,703,424     912,400  112-112 120-112 120-112 120-112
stage 3       14x14  1,420,909,056   7,257,264  256-216 256-216 232-216 240-216 240-216 256-216 232-216 208-216
stage 4         7x7    365,529,024   7,465,120  464-360 408-360 360-360
classifier      1x1        360,000     361,000  1000
total                3,254,345,728  16,208,808
"""


@pytest.mark.parametrize("code", [EXAMPLE, UNTIED, FULL.largest().code, FULL.smallest().code])
@pytest.mark.parametrize("image_size", [224, 33])
def test_the_parts_add_up_to_the_total_which_is_that_of_the_arch(capsys, code, image_size):
    rows = table(capsys, code, "--image_size", str(image_size), "--num_classes", "10")
    arch = ArchConfig.parse(code, allow_untied=True)
    _, macs, params, _ = rows.pop("total")
    assert (macs, params) == (arch.macs(image_size, 10), arch.params(10))
    assert len(rows) == 6
    assert sum(row[1] for row in rows.values()) == macs
    assert sum(row[2] for row in rows.values()) == params


def test_52_digits_describe_the_same_arch_as_51(capsys):
    assert table(capsys, "1" + EXAMPLE) == table(capsys, EXAMPLE)


def test_describe_takes_another_image_size_and_number_of_classes(capsys):
    rows = table(capsys, EXAMPLE, "--image_size", "33", "--num_classes", "16")
    assert [row[0] for row in rows.values()] == ["17x17", "9x9", "5x5", "3x3", "2x2", "1x1", None]
    assert rows["classifier"] == ("1x1", 360 * 16, 361 * 16, "16")


def test_describe_takes_other_base_widths(capsys):
    rows = table(capsys, EXAMPLE, "--base_channels", "8,16,32,64", "--divisor", "1")
    assert rows["stem"][3] == "8"
    assert rows["stage 4"][3] == "58-45 51-45 45-45"


def test_the_code_may_stand_behind_a_flag_or_in_a_yaml_file_too(capsys, tmp_path):
    (tmp_path / "arch.yaml").write_text(f"arch: '{EXAMPLE}'\n")
    expected = table(capsys, EXAMPLE)
    assert table(capsys, "--arch", EXAMPLE) == expected
    assert table(capsys, "--config", str(tmp_path / "arch.yaml")) == expected


def test_an_untied_arch_is_described_and_said_to_be_a_standalone_net_only(capsys):
    main(["describe", "1" + UNTIED])
    assert "\nOnly as a standalone net: " in (out := capsys.readouterr().out)
    assert "position 12 (stage 1, block 3, conv 2)" in out
    main(["describe", EXAMPLE])
    assert "standalone" not in capsys.readouterr().out


# ---- sample

@pytest.mark.parametrize("space", SPACES)
def test_sample_writes_a_list_in_the_official_format_of_distinct_archs_of_its_space(tmp_path, space):
    path = tmp_path / "list.json"
    main(["sample", "300", "--space", space, "--output", str(path)])
    entries = listed(path)
    assert list(entries) == [f"arch{place}" for place in range(1, 301)]
    assert all(list(entry.items())[0] == ("acc", 0.0) and list(entry) == ["acc", "arch"] for entry in entries.values())
    codes = [entry["arch"] for entry in entries.values()]
    assert all(len(code) == 52 and code[0] == "1" for code in codes)
    assert len({ArchConfig.parse(code, SPACES[space]).code for code in codes}) == 300


def test_archs_that_are_drawn_twice_are_listed_once(tmp_path, monkeypatch):
    drawn = iter([EXAMPLE, EXAMPLE, FULL.largest().code, EXAMPLE, FULL.smallest().code])
    monkeypatch.setattr("resnet48.space.arch.SearchSpace.sample", lambda space, rng: ArchConfig.parse(next(drawn)))
    main(["sample", "3", "--output", str(tmp_path / "list.json")])
    assert [entry["arch"][1:] for entry in listed(tmp_path / "list.json").values()] == [
        EXAMPLE, FULL.largest().code, FULL.smallest().code]


def test_a_seed_gives_one_list_and_a_longer_list_begins_like_a_shorter_one(tmp_path):
    def codes(name, *words):
        main(["sample", *words, "--output", str(tmp_path / name)])
        return [entry["arch"] for entry in listed(tmp_path / name).values()]

    first = codes("a", "20", "--seed", "5")
    assert codes("b", "20", "--seed", "5") == first
    assert codes("c", "30", "--seed", "5")[:20] == first
    assert codes("d", "20", "--seed", "6") != first
    assert codes("e", "20", "--seed", "0") == codes("f", "20", "--space", "pool")


def test_a_spread_sample_has_as_many_of_each_tenth_of_the_macs_and_begins_with_the_shorter_one(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet48.study.archs.DRAWS", 1000)
    for count in ("20", "40"):
        main(["sample", count, "--spread", "--space", "full", "--output", str(tmp_path / count)])
    short, long = ([entry["arch"] for entry in listed(tmp_path / count).values()] for count in ("20", "40"))
    assert long[:20] == short and len(set(long)) == 40
    rng, drawn = np.random.default_rng(1), [ArchConfig.parse(code).macs(224, 1000) for code in long]
    edges = np.quantile([FULL.sample(rng).macs(224, 1000) for _ in range(1000)], np.arange(1, 10) / 10)
    assert np.abs(np.searchsorted(edges, drawn) - np.arange(40) % 10).max() <= 1


def test_sample_says_what_it_wrote(tmp_path, capsys):
    main(["sample", "5", "--space", "full", "--seed", "2", "--output", str(tmp_path / "list.json")])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'list.json'}: 5 archs of the full space, seed 2\n"


def test_a_list_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "list.json"
    main(["sample", "5", "--output", str(path)])
    old = path.read_text()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("json.dump", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(["sample", "5", "--output", str(path)])
    assert os.listdir(tmp_path) == ["list.json"] and path.read_text() == old


@pytest.mark.parametrize("there", ["a list of another seed", "old", "\x00"])
def test_a_list_is_never_written_over_another_file(tmp_path, monkeypatch, there):
    path = tmp_path / "list.json"
    path.write_text(there)
    if there == "a list of another seed":
        path.unlink()
        main(["sample", "5", "--seed", "1", "--output", str(path)])
    old = path.read_bytes()
    os.symlink("list.json", tmp_path / "link.json")
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "list.json", "./link.json"):
        assert "is there already and is another file" in refusal("sample", "5", "--output", name)
    assert path.read_bytes() == old


# ---- refusals

@pytest.mark.parametrize("words, sentence", [
    (["describe"], "--arch is needed: arch code"),
    (["describe", EXAMPLE[1:]], f"arch code '{EXAMPLE[1:]}' has 50 digits"),
    (["describe", EXAMPLE, EXAMPLE], f"unexpected argument '{EXAMPLE}'"),
    (["describe", EXAMPLE, "--image", "64"], "unknown flag --image; the nearest is --image_size"),
    (["describe", "--numclasses", "5", EXAMPLE], "unknown flag --numclasses; the nearest is --num_classes"),
    (["describe", EXAMPLE, "--num_classes", "ten"], "--num_classes takes a whole number, got 'ten'"),
    (["describe", EXAMPLE, "--base_channels", "8,16"], "base_channels takes four widths"),
    (["sample"], "--count is needed: "),
    (["sample", "many", "--output", "list.json"], "--count takes a whole number, got 'many'"),
    (["sample", "5"], "--output is needed: "),
    (["sample", "5", "--space", "all", "--output", "list.json"], "--space takes published, full or "
     "the path of a .yaml file; got 'all'"),
    (["sample", "5", "--seeed", "1", "--output", "list.json"], "unknown flag --seeed; the nearest is --seed"),
    (["sample", "5", "--output", os.path.join(__file__, "list.json")], "cannot write "),
    ([], "missing command: describe, sample"),
])
def test_wrong_words_are_refused_in_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert refusal(*words).startswith(sentence)
    assert os.listdir(tmp_path) == []


def test_the_program_runs_and_ends_a_refusal_with_code_2_and_no_stack_trace():
    good, bad = program("describe", EXAMPLE), program("describe", "1" + EXAMPLE[:-1] + "3")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-1].split() == ["total", "3,254,345,728", "16,208,808"]
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == (f"error: arch code 1{EXAMPLE[:-1]}3: position 52 (stage 4, block 5, conv 2, a block that "
                          f"depth 3 leaves out) is 3, allowed is 0\n")


def test_the_help_says_how_to_call_the_program():
    shown = program("--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: python -m resnet48 [-h] {describe,sample,cache,study}")
    assert "describe CODE: " in shown.stdout and "sample N --output FILE: " in shown.stdout


def test_arch_codes_need_no_paddle():
    check = "import sys, resnet48.__main__; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
