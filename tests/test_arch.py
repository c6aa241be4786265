import dataclasses
import json
import re

import numpy as np
import pytest

from resnet48.space.arch import CAPACITY, FULL, PUBLISHED, SPACES, ArchConfig, ArchError, SearchSpace
from resnet48.system.errors import UserError

#: depths 3,4,8,3; stem 1; stage 1 from position 6, stage 2 from 16, stage 3 from 26, stage 4 from 42
EXAMPLE = "348311131310000332323230014143424241434543757770000"
WIDTHS = {64: (64, 64, 56, 56, 48, 48, 48), 128: (128, 120, 112, 112, 104, 96, 88),
          256: (256, 240, 232, 216, 208, 192, 176), 512: (512, 488, 464, 432, 408, 384, 360)}


@pytest.fixture(scope="module")
def published_archs(published):
    with open(published) as file:
        return [ArchConfig.parse(entry["arch"], PUBLISHED) for entry in json.load(file).values()]


@pytest.fixture(scope="module")
def thousand():
    rng = np.random.default_rng(1)
    return {name: [space.sample(rng) for _ in range(1000)] for name, space in SPACES.items()}


def changed(position, digits, code=EXAMPLE):
    """`code` with `digits` written over it from `position`, counted from 1."""
    return code[:position - 1] + digits + code[position - 1 + len(digits):]


def digits_of(arch):
    """(stem digit, [(conv1 digits, conv2 digits) of the used blocks of stages 1..4])."""
    stages, start = [], 5
    for depth, capacity in zip(arch.depths, CAPACITY):
        used = arch.code[start:start + 2 * depth]
        stages.append((used[::2], used[1::2]))
        start += 2 * capacity
    return arch.code[4], stages


# ---- reading a code

def test_the_example_of_the_conventions_reads_as_documented():
    arch = ArchConfig.parse(EXAMPLE)
    assert arch.code == EXAMPLE
    assert arch.depths == (3, 4, 8, 3)
    assert arch.stem == 64
    assert arch.stages == (
        ((64, 64), (56, 64), (56, 64)),
        ((112, 112), (120, 112), (120, 112), (120, 112)),
        ((256, 216), (256, 216), (232, 216), (240, 216), (240, 216), (256, 216), (232, 216), (208, 216)),
        ((464, 360), (408, 360), (360, 360)))


def test_51_and_52_digits_of_one_arch_are_equal_and_print_as_51():
    assert ArchConfig.parse("1" + EXAMPLE) == ArchConfig.parse(EXAMPLE)
    assert ArchConfig.parse("1" + EXAMPLE).code == EXAMPLE


def test_a_config_is_frozen_and_works_as_a_key():
    arch = ArchConfig.parse(EXAMPLE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch.code = changed(1, "2")
    assert {arch: "found"}[ArchConfig.parse("1" + EXAMPLE)] == "found"
    assert arch != ArchConfig.parse(changed(6, "2"))


@pytest.mark.parametrize("digit", range(1, 8))
@pytest.mark.parametrize("stage", range(1, 5))
def test_the_width_table_of_the_conventions(stage, digit):
    base = FULL.base_channels[stage - 1]
    assert FULL.width(stage, str(digit)) == WIDTHS[base][digit - 1]


def test_blocks_carry_the_numbers_of_the_parameter_names():
    blocks = ArchConfig.parse(EXAMPLE).blocks()
    assert [block.index for block in blocks] == [1, 2, 3, 6, 7, 8, 9, *range(11, 19), 19, 20, 21]
    assert [block.index for block in blocks if block.stride == 2] == [6, 11, 19]
    assert [block.index for block in blocks if block.projects] == [6, 11, 19]


# ---- refusing a code

@pytest.mark.parametrize("prefix", ["", "1"])
@pytest.mark.parametrize("position, digit, place, allowed", [
    (1, "1", "depth of stage 1", "2..5"),
    (2, "6", "depth of stage 2", "2..5"),
    (3, "9", "depth of stage 3", "2..8"),
    (4, "0", "depth of stage 4", "2..5"),
    (5, "0", "stem", "1..7"),
    (5, "8", "stem", "1..7"),
    (6, "0", "stage 1, block 1, conv 1", "1..7"),
    (19, "9", "stage 2, block 2, conv 2", "1..7"),
    (40, "8", "stage 3, block 8, conv 1", "1..7"),
    (47, "0", "stage 4, block 3, conv 2", "1..7"),
    (12, "1", "stage 1, block 4, conv 1, a block that depth 3 leaves out", "0"),
    (51, "7", "stage 4, block 5, conv 2, a block that depth 3 leaves out", "0"),
])
def test_a_wrong_digit_is_named_with_its_position_as_written_its_stage_and_what_is_allowed(
        prefix, position, digit, place, allowed):
    code = prefix + changed(position, digit)
    with pytest.raises(ArchError) as caught:
        ArchConfig.parse(code)
    assert str(caught.value) == (f"arch code {code}: position {position + len(prefix)} ({place}) is {digit}, "
                                 f"allowed is {allowed}")


@pytest.mark.parametrize("prefix", ["", "1"])
@pytest.mark.parametrize("changed_at, digit, position, place, words", [
    (5, "3", 7, "stage 1, block 1, conv 2", "1 = 64 channels, but the stem gives 56"),
    (11, "3", 11, "stage 1, block 3, conv 2", "3 = 56 channels, but the block before gives 64"),
    (17, "1", 19, "stage 2, block 2, conv 2", "3 = 112 channels, but the block before gives 128"),
    (41, "7", 41, "stage 3, block 8, conv 2", "7 = 176 channels, but the block before gives 216"),
])
def test_a_broken_tie_is_named_with_its_position_as_written_and_both_widths(
        prefix, changed_at, digit, position, place, words):
    code = prefix + changed(changed_at, digit)
    with pytest.raises(ArchError) as caught:
        ArchConfig.parse(code)
    assert str(caught.value).startswith(f"arch code {code}: position {position + len(prefix)} ({place}) is {words}")
    assert "allowed in a supernet is one width for all second convolutions of a stage" in str(caught.value)


def test_untied_codes_are_read_where_allowed_and_project_where_the_width_changes():
    arch = ArchConfig.parse(changed(11, "3"), allow_untied=True)
    assert arch.stages[0] == ((64, 64), (56, 64), (56, 56))
    assert [block.index for block in arch.blocks() if block.projects] == [3, 6, 11, 19]
    with pytest.raises(ArchError, match=r"position 11 \(stage 1, block 3, conv 2\)"):
        arch.require_tied()


def test_ties_are_about_widths_so_digits_that_mean_one_width_are_tied():
    code = changed(7, "2")  # stage 1: 64 * 0.95 also rounds to 64
    assert ArchConfig.parse(code).stages[0] == ((64, 64), (56, 64), (56, 64))
    with pytest.raises(ArchError, match="2 = 61 channels, but the stem gives 64"):
        ArchConfig.parse(code, FULL.narrowed((64, 128, 256, 512), 1))


@pytest.mark.parametrize("code, words", [
    (EXAMPLE[:-1], "has 50 digits, allowed are 51, or 52 with a leading 1"),
    ("11" + EXAMPLE, "has 53 digits, allowed are 51, or 52 with a leading 1"),
    ("", "has 0 digits, allowed are 51, or 52 with a leading 1"),
    ("2" + EXAMPLE, "position 1 (image size) is 2, allowed is 1, which stands for 224"),
    ("0" + EXAMPLE, "position 1 (image size) is 0, allowed is 1, which stands for 224"),
    (changed(20, "x"), "position 20 is 'x', allowed are the digits 0..9"),
    (changed(51, "\n"), r"position 51 is '\n', allowed are the digits 0..9"),
    (changed(6, "٣"), "position 6 is '٣', allowed are the digits 0..9"),
    (int(EXAMPLE), "an arch code is a string of digits, got int"),
    (None, "an arch code is a string of digits, got NoneType"),
])
def test_a_code_of_another_length_or_form_is_refused(code, words):
    with pytest.raises(ArchError, match=re.escape(words)):
        ArchConfig.parse(code)


@pytest.mark.parametrize("position, digits, place, allowed", [
    (5, "4", "stem", "1..3"), (8, "4", "stage 1, block 2, conv 1", "1..3"),
    (16, "7", "stage 2, block 1, conv 1", "1..3"), (26, "6", "stage 3, block 1, conv 1", "1..5")])
def test_the_pool_refuses_digits_that_no_published_arch_has(position, digits, place, allowed):
    ArchConfig.parse(changed(position, digits), FULL, allow_untied=True)
    with pytest.raises(ArchError, match=re.escape(f"({place}) is {digits}, allowed is {allowed}")):
        ArchConfig.parse(changed(position, digits), PUBLISHED)


# ---- spaces and samples

def test_the_largest_and_the_smallest_net_bound_every_sample(thousand):
    for name, space in SPACES.items():
        largest, smallest = space.largest(), space.smallest()
        assert largest.code == "5585" + "1" * 47
        assert smallest.depths == (2, 2, 2, 2)
        for arch in thousand[name]:
            assert smallest.macs() <= arch.macs() <= largest.macs()
            assert smallest.params() <= arch.params() <= largest.params()
    assert FULL.smallest().code == "222277777" + "0" * 6 + "7777" + "0" * 6 + "7777" + "0" * 12 + "7777" + "0" * 6
    assert PUBLISHED.smallest().code == "222233333" + "0" * 6 + "3333" + "0" * 6 + "5555" + "0" * 12 + "7777" + "0" * 6


@pytest.mark.parametrize("name", SPACES)
def test_samples_are_tied_and_inside_their_space(thousand, name):
    for arch in thousand[name]:
        assert ArchConfig.parse(arch.code, SPACES[name]) == arch  # which checks depths, digits and widths
        stem, stages = digits_of(arch)
        assert {stem} == set(stages[0][1])
        assert all(len(set(second)) == 1 for _, second in stages)


@pytest.mark.parametrize("name", SPACES)
def test_samples_reach_every_depth_and_every_digit(thousand, name):
    space = SPACES[name]
    for stage in range(4):
        fewest, most = space.depths[stage]
        assert {arch.depths[stage] for arch in thousand[name]} == set(range(fewest, most + 1))
        for conv in range(2):
            found = {digit for arch in thousand[name] for digit in digits_of(arch)[1][stage][conv]}
            assert found == set(space.codes[stage + 1])


def test_samples_depend_on_the_seed_of_their_generator_and_nothing_else():
    def codes(seed):
        rng = np.random.default_rng(seed)
        return [PUBLISHED.sample(rng).code for _ in range(20)]

    first = codes(3)
    np.random.seed(0)  # the global generator has no say
    assert codes(3) == first
    assert len(set(first)) == 20
    assert codes(4) != first


def test_samples_of_the_pool_are_archs_of_the_full_space(thousand):
    assert all(ArchConfig.parse(arch.code, FULL) == arch for arch in thousand["published"])


def test_codes_of_a_narrowed_space_mean_the_same_over_other_widths():
    narrow = FULL.narrowed((8, 16, 32, 64), 1)
    arch = ArchConfig.parse(EXAMPLE, narrow)
    assert (arch.code, arch.depths, arch.stem) == (EXAMPLE, (3, 4, 8, 3), 8)
    assert arch.stages[0] == ((8, 8), (7, 8), (7, 8))
    assert arch.stages[3] == ((58, 45), (51, 45), (45, 45))
    assert narrow.codes == FULL.codes and narrow.depths == FULL.depths


def test_the_same_seed_draws_the_same_codes_in_a_narrowed_space():
    narrow = PUBLISHED.narrowed((8, 16, 32, 64), 1)
    for seed in range(20):
        assert narrow.sample(np.random.default_rng(seed)).code == PUBLISHED.sample(np.random.default_rng(seed)).code


@pytest.mark.parametrize("divisor", [1, 4, 8])
def test_no_width_is_below_one_divisor_or_more_than_a_tenth_below_its_ratio(divisor):
    space = FULL.narrowed((1, 9, 33, 100), divisor)
    for stage, base in enumerate(space.base_channels, 1):
        for digit, ratio in enumerate(space.ratios, 1):
            width = space.width(stage, str(digit))
            assert width % divisor == 0 and width >= max(divisor, 0.9 * base * ratio)


@pytest.mark.parametrize("space", [FULL, PUBLISHED, FULL.narrowed((4, 8, 16, 32), 1)], ids=["full", "pool", "narrow"])
def test_a_space_survives_a_checkpoint_and_json(space):
    back = SearchSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert back == space and hash(back) == hash(space)
    assert ArchConfig.parse(space.largest().code, back) == space.largest()


@pytest.mark.parametrize("base_channels, divisor, words", [
    ((8, 16, 32), 1, "base_channels takes four widths"), ((8, 16, 32, 64, 128), 1, "base_channels takes four widths"),
    ((8, 16, 0, 64), 1, "base_channels takes four widths"), ((8, 16, 32, 64), 0, "divisor must be 1 or more, got 0")])
def test_a_space_without_four_positive_widths_or_a_positive_divisor_is_refused(base_channels, divisor, words):
    with pytest.raises(UserError, match=words):
        FULL.narrowed(base_channels, divisor)


# ---- counting

def test_macs_and_parameters_of_a_net_with_one_channel_add_up_by_hand():
    arch = ArchConfig.parse(FULL.smallest().code, FULL.narrowed((1, 1, 1, 1), 1))
    stem, stage_1 = 3 * 49 * 112 ** 2, 4 * 9 * 56 ** 2
    later = sum((4 * 9 + 1) * size ** 2 for size in (28, 14, 7))  # 1: the 1x1 shortcut of a stage's first block
    assert arch.macs() == stem + stage_1 + later + 1000
    assert arch.macs(num_classes=10) == arch.macs() - 990
    batch_norms = 2 * (1 + 16 + 3)
    assert arch.params() == 3 * 49 + 16 * 9 + 3 + batch_norms + 2 * 1000
    assert arch.params(num_classes=10) == arch.params() - 2 * 990


@pytest.mark.parametrize("image_size, sizes", [
    (224, [112, 56, 28, 14, 7]), (32, [16, 8, 4, 2, 1]), (33, [17, 9, 5, 3, 2]), (225, [113, 57, 29, 15, 8]),
    (1, [1, 1, 1, 1, 1])])
def test_feature_sizes_round_up_as_padded_convolutions_do(image_size, sizes):
    convolutions = ArchConfig.parse(EXAMPLE).convolutions(image_size)
    assert [next(c.size for c in convolutions if c.stage == stage) for stage in range(5)] == sizes


def test_an_untied_block_counts_its_projection():
    tied, untied = ArchConfig.parse(EXAMPLE), ArchConfig.parse(changed(11, "3"), allow_untied=True)
    projection = [c for c in untied.convolutions() if c.kernel == 1 and c.stage == 1]
    assert [(c.in_width, c.out_width, c.size) for c in projection] == [(64, 56, 56)]
    assert not [c for c in tied.convolutions() if c.kernel == 1 and c.stage == 1]


def test_the_full_net_has_34_million_parameters_and_5_28_gmacs():
    assert FULL.largest().params() == 34_043_688
    assert FULL.largest().macs() == 5_282_238_464


# ---- the published list

def test_the_published_archs_parse_in_the_pool_and_differ_in_widths(published_archs):
    assert len(published_archs) == 45_000
    assert len({(arch.stem, arch.stages) for arch in published_archs}) == 45_000


def test_the_published_archs_have_the_known_macs_and_parameters(published_archs):
    macs = [arch.macs() / 1e9 for arch in published_archs]
    params = [arch.params() / 1e6 for arch in published_archs]
    assert round(np.mean(macs), 4) == 2.9718
    assert (round(min(macs), 2), round(max(macs), 2)) == (1.38, 4.86)
    assert (round(min(params), 1), round(max(params), 1)) == (7.1, 31.9)


def test_the_published_archs_share_prefixes_in_a_tree_of_412795_nodes(published_archs):
    nodes = {}
    for arch in published_archs:
        node = nodes.setdefault((None, arch.stem), len(nodes))
        for block in arch.blocks():
            node = nodes.setdefault((node, block.stage, block.inner_width, block.out_width), len(nodes))
    assert sum(parent is None for parent, *_ in nodes) == 2
    assert len(nodes) == 412_795
