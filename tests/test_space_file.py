"""A space of one's own, as a YAML file: what it may hold, and that training, evaluation and resumes keep to it."""

import os
import shutil

import numpy as np
import pytest
from commands import ROOT, call, good, refusal, write_list
from hypothesis import given, settings, strategies
from small_runs import newest

from resnet48.space import description, space_file
from resnet48.space.arch import ANY, FULL, ArchConfig, SearchSpace
from resnet48.system import options
from resnet48.system.errors import UserError
from resnet48.training import checkpoint

TEXT = """
base_channels: 2,4,8,16
divisor: 1
ratios: [1, .75, .5, .25]
depths: [[1, 2], [2, 3], [2, 2], [1, 1]]
codes: ["14", "14", "1234", "1234", "13"]
"""
RUN = ("--batch_size", 48, "--max_epoch", 1, "--calib_images", 16, "--num_workers", 0, "--eval_freq", 0)
EVALUATION = ("--calib_images", 16, "--val_images", 20, "--num_workers", 0)


@pytest.fixture(name="space_of")
def fixture_space_of(tmp_path):
    def read(text):
        (tmp_path / "space.yaml").write_text(text)
        return space_file.read(str(tmp_path / "space.yaml"))

    return read


@pytest.fixture(name="trained", scope="module")
def fixture_trained(tmp_path_factory):
    """A folder with a space file, a supernet trained in it, and a list of archs of it."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "own.yaml"
    path.write_text(TEXT)
    good(call("train_supernet.py", "run", "--space", path, *RUN, "--save_dir", folder / "run"))
    good(call("-m resnet48", "sample", 4, "--space", path, "--output", folder / "list.json"))
    return folder


def test_a_file_says_widths_divisor_ratios_depths_and_codes(space_of):
    space = space_of(TEXT)
    assert space.name == "custom" and space.base_channels == (2, 4, 8, 16) and space.divisor == 1
    assert space.ratios == (1, 0.75, 0.5, 0.25) and space.depths == ((1, 2), (2, 3), (2, 2), (1, 1))
    assert space.codes == ("14", "14", "1234", "1234", "13")
    assert space.largest().depths == (2, 3, 2, 1) and space.smallest().depths == (1, 2, 2, 1)
    assert [space.width(4, digit) for digit in "1234"] == [16, 12, 8, 4]


def test_what_a_file_leaves_out_is_as_in_the_full_space_with_all_digits_allowed(space_of):
    assert space_of("name: full\n") == FULL
    two = space_of("ratios: 1, .5\nname: two\n")
    assert (two.name, two.codes) == ("two", ("12",) * 5)
    assert two.narrowed(FULL.base_channels, 8).depths == FULL.depths
    lists = space_of("base_channels: [8, 16, 32, 64]\nratios: [1, .5]\n")
    assert lists == space_of("base_channels: 8,16,32,64\nratios: 1,.5\n")


def test_the_example_is_a_space_of_widely_differing_widths():
    space = space_file.find(os.path.join(ROOT, "configs", "spaces", "wide_ratios.yaml"))
    assert [space.width(4, digit) for digit in "1234567"] == [64, 54, 45, 35, 29, 22, 16]
    assert space.codes == FULL.codes and space.depths == FULL.depths and space.base_channels == (8, 16, 32, 64)


@pytest.mark.parametrize("text, sentence", [
    ("ratio: [1]\n", "unknown key 'ratio'; the nearest is ratios"),
    ("divisor: eight\n", "divisor takes whole numbers, got 'eight'"),
    ("divisor: 1.5\n", "divisor takes whole numbers, got '1.5'"),
    ("divisor: [1]\n", "divisor takes whole numbers, got ['1']"),
    ("divisor: 0\n", "divisor must be 1 or more"),
    ("base_channels: 8,16,32\n", "base_channels takes four widths"),
    ("base_channels: {a: 1}\n", "base_channels takes a list, got {'a': '1'}"),
    ("ratios: [1, wide]\n", "ratios takes numbers, got 'wide'"),
    ("ratios: [1, .nan]\n", "ratios takes numbers, got '.nan'"),
    ("ratios: [1, nan]\n", "ratios takes numbers, got 'nan'"),
    ("ratios: [1, 1.5]\n", "ratios takes one to nine numbers above 0 and up to 1"),
    ("ratios: [.5, 1]\n", "ratios must fall"),
    ("ratios: []\n", "ratios takes one to nine numbers"),
    ("depths: [[2, 5], [2, 5], [2, 8]]\n", "depths takes the fewest and the most blocks"),
    ("depths: [[2, 5], [2, 5], [2, 9], [2, 5]]\n", "depths takes the fewest and the most blocks"),
    ("depths: [[0, 5], [2, 5], [2, 8], [2, 5]]\n", "depths takes the fewest and the most blocks"),
    ("codes: ['12', '12', '12', '12']\n", "codes takes the digits"),
    ("codes: ['18', '18', '12', '12', '12']\n", "codes takes the digits, of 1234567"),
    ("codes: ['21', '21', '12', '12', '12']\n", "codes takes each digit once and in rising order"),
    ("codes: ['1', '12', '12', '12', '12']\n", "codes must allow for the stem what it allows for stage 1"),
    ("name: [a]\n", "name takes text"), ("- 1\n", "must hold `name: value` lines"), ("a: &x 1\n", "anchors"),
])
def test_another_file_is_refused_in_one_sentence_that_names_it(space_of, tmp_path, text, sentence):
    with pytest.raises(UserError) as refused:
        space_of(text)
    assert sentence in str(refused.value) and "space.yaml" in str(refused.value)
    words = "-m resnet48", "sample", 1, "--space", tmp_path / "space.yaml", "--output", tmp_path / "list.json"
    assert sentence in refusal(words, tmp_path)


@settings(max_examples=200, deadline=None)
@given(strategies.dictionaries(strategies.sampled_from([*space_file.READERS, "other"]), strategies.recursive(
    strategies.none() | strategies.text(max_size=5) | strategies.sampled_from(["1", ".5", "2", "12", "1,.5", "9"]),
    lambda inner: strategies.lists(inner, max_size=5), max_leaves=10)))
def test_any_content_is_a_space_whose_archs_it_accepts_or_a_sentence(content):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space_file.yaml_file, "read", lambda path: content)
        try:
            space = space_file.read("any.yaml")
        except UserError:
            return
    arch = space.sample(np.random.default_rng(0))
    assert ArchConfig.parse(arch.code, space) == arch and space.smallest().macs() <= arch.macs() <= \
        space.largest().macs()


def test_neither_a_name_nor_a_file_is_refused(tmp_path):
    for space, sentence in (("wide", "--space takes published, full or the path of a .yaml file; got 'wide'"),
                            (tmp_path / "gone.yaml", "No such file")):
        words = "train_supernet.py", "run", "--space", space, "--save_dir", tmp_path / "run"
        assert sentence in refusal(words, tmp_path)


def test_widths_that_are_given_narrow_the_space_of_a_file_and_others_hold(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(TEXT)

    def space(*flags, kind=options.StandaloneSettings):
        return space_file.of(kind(space=str(path), **dict(flags)))

    own = space_file.read(str(path))
    assert space() == own
    narrow = space(("base_channels", "1,2,3,4"))
    assert narrow.base_channels == (1, 2, 3, 4) and narrow.divisor == 1 and narrow.ratios == own.ratios
    assert space(("divisor", 4)) == own.narrowed(own.base_channels, 4)
    assert space_file.of(options.StandaloneSettings()) == FULL  # a named one has the official widths


def test_the_number_of_archs_is_that_of_all_different_ones(space_of, tmp_path):
    space = space_of(TEXT.replace("[[1, 2], [2, 3], [2, 2], [1, 1]]", "[[1, 2], [1, 1], [1, 1], [1, 1]]")
                     .replace('"1234", "1234", "13"', '"1", "1", "3"'))
    rng = np.random.default_rng(0)
    assert space.size() == len({space.sample(rng).code for _ in range(500)}) == 12
    assert "there are only 12 archs" in refusal(("-m resnet48", "sample", 13, "--space", tmp_path / "space.yaml",
                                                     "--output", tmp_path / "list.json"), tmp_path)


def test_the_supernet_is_of_the_files_space_and_the_checkpoint_carries_it(trained):
    found = newest(trained / "run")
    space, _ = description.read(found.state["net"])
    assert space == space_file.read(str(trained / "own.yaml"))
    net = checkpoint.build_supernet(found)
    assert net.nodes[0].out_width == 2 and len(net.nodes) == 1 + sum(space.largest().depths) + 1


def test_evaluation_and_verification_need_no_file_and_refuse_archs_outside(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    checkpointed, listed = ("--checkpoint", tmp_path / "run"), ("--archs", trained / "list.json")
    output = ("--output", tmp_path / "found.json")
    for _ in range(2):  # and what it has written may be written again
        good(call("eval_supernet.py", "run", *checkpointed, *listed, *EVALUATION, *output))
    good(call("eval_supernet.py", "verify", "--submission", tmp_path / "found.json", *listed, *checkpointed))
    good(call("eval_supernet.py", "status", *output, "--write", tmp_path / "part.json"))
    outside = write_list(tmp_path / "outside.json", FULL.largest().code)
    words = "eval_supernet.py", "run", *checkpointed, "--archs", outside, "--output", tmp_path / "other.json"
    assert "position 1 (depth of stage 1) is 5, allowed is 1..2" in refusal(words, tmp_path)


def test_a_resume_needs_the_file_no_more_but_is_refused_by_what_has_changed_in_it(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    path = tmp_path / "elsewhere.yaml"
    words = ("--space", path, *RUN, "--max_epoch", 2, "--save_dir", tmp_path / "run")
    path.write_text(TEXT.replace(".25]", ".2]"))
    refused = refusal(("train_supernet.py", "run", *words), tmp_path)
    assert "another net" in refused and "(ratios [1.0, 0.75, 0.5, 0.25] then, [1.0, 0.75, 0.5, 0.2] now)" in refused
    path.unlink()
    assert "the space is that of" in good(call("train_supernet.py", "run", *words)).out
    assert newest(tmp_path / "run").state["finished"]


def test_a_file_does_not_resume_what_a_named_space_began_nor_the_other_way_round(tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text("name: full\nbase_channels: 1,2,3,4\ndivisor: 1\n")  # the same net, but other subnets are sampled
    words = (*RUN, "--base_channels", "1,2,3,4", "--divisor", 1, "--save_dir", tmp_path / "run")
    good(call("train_supernet.py", "run", *words, "--space", path))
    assert "--space was" in refusal(("train_supernet.py", "run", *words, "--space", "published"), tmp_path)


def test_a_standalone_net_is_of_the_files_widths_and_resumes(trained, tmp_path):
    arch = ("--arch", space_file.read(str(trained / "own.yaml")).smallest().code, "--save_dir", tmp_path / "alone")
    good(call("pretrain.py", "run", "--space", trained / "own.yaml", *arch, *RUN))
    net = newest(tmp_path / "alone").state["net"]
    assert net["stem"] == 1 and net["stages"][3] == [[8, 8]]
    good(call("pretrain.py", "run", "--space", trained / "own.yaml", *arch, *RUN, "--max_epoch", 2))
    words = "pretrain.py", "run", "--space", trained / "own.yaml", *RUN, "--arch", FULL.largest().code
    assert "position 1" in refusal((*words, "--save_dir", tmp_path / "other"), tmp_path)
    # A supernet's subnet on its own, from the supernet's weights.
    good(call("pretrain.py", "run", "--space", trained / "own.yaml", *arch, *RUN, "--mode", "eval", "--pretrained",
              trained / "run"))


def test_plans_descriptions_and_truths_are_of_the_files_space(trained, tmp_path):
    space = ("--space", trained / "own.yaml")
    code = space_file.read(str(trained / "own.yaml")).largest().code
    assert "16-16" in good(call("-m resnet48", "describe", code, *space)).out
    good(call("eval_supernet.py", "plan", "--archs", trained / "list.json", *space, "--gflops", 1))
    truth = ("--truth", tmp_path / "truth.json", "--save_dir", tmp_path / "truth", "--limit", 2, "--processes", 1)
    for _ in range(2):
        good(call("pretrain.py", "truth", "--archs", trained / "list.json", *space, *RUN, *truth))


def test_codes_of_any_space_can_be_read_where_only_the_codes_count():
    space = SearchSpace(ratios=tuple(1 - digit / 10 for digit in range(9)), depths=((1, 1),) * 4,
                           codes=("123456789",) * 5)
    assert ArchConfig.parse(space.smallest().code, ANY).code == space.smallest().code
