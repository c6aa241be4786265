"""A few-shot split as data, and the groups that its sampler draws from."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from test_samplers import digits_of

from resnet48.evaluation import prefix_tree
from resnet48.space import description
from resnet48.space.arch import FULL, PUBLISHED
from resnet48.space.nodes import Block
from resnet48.space.split import KEYS, Split
from resnet48.system.errors import UserError
from resnet48.training import few_shot, samplers

STAGES = [(by, stage) for by in ("depth", "width") for stage in (1, 2, 3, 4)]


def archs_of(space, count=60):
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(count)]


def draws(candidates, by, stage, steps, name="sandwich", count=4, seed=0):
    """(split, pairs of each step)."""
    split, groups = few_shot.SPLITS[by](candidates, stage)
    draw = samplers.SAMPLERS[name].draw
    sample = few_shot.grouped(lambda some, seed, moment: draw(some, seed, moment, count), groups)
    return split, [sample(seed, samplers.Moment(step, steps, 0.0)) for step in range(steps)]


# ---- the nodes of a split net

@pytest.mark.parametrize("by, stage", STAGES)
def test_only_the_blocks_of_the_stage_say_which_copy_they_use(by, stage):
    split, _ = few_shot.SPLITS[by](PUBLISHED, stage)
    for arch in archs_of(PUBLISHED):
        for plain, node in zip(arch.nodes(), arch.nodes(split), strict=True):
            used = split.groups.index(KEYS[by](arch, stage)) if getattr(node, "stage", 0) == stage else 0
            assert node == (plain._replace(copy=used) if isinstance(plain, Block) else plain)
            assert node.key == (f"{plain.index}-{used}" if used else str(plain.index))


@pytest.mark.parametrize("groups, expected", [((2, 3, 5), {2: 0, 3: 1, 4: 2, 5: 2}), ((2, 3), {2: 0, 3: 1, 4: 1, 5: 1}),
                                              ((2, 4, 5), {2: 0, 3: 1, 4: 1, 5: 2})], ids=str)
def test_every_arch_has_a_copy_with_all_blocks_that_it_needs_also_one_of_no_group(groups, expected):
    split = Split(4, "depth", groups)
    assert {arch.depths[3]: split.copy_of(arch) for arch in archs_of(FULL)} == expected
    there = {node.key for node in (*FULL.largest().nodes(), *split.copies(FULL.largest().nodes()))}
    assert {node.key for arch in archs_of(FULL, 300) for node in arch.nodes(split)} <= there


def test_the_tree_of_a_net_split_by_depth_shares_no_block_of_the_stage_between_groups():
    archs, split = archs_of(PUBLISHED.narrowed((2, 2, 2, 2), 1)), Split(2, "depth", (2, 3, 4, 5))
    for how in (split, None):
        path, groups = [], {}  # of the archs that a node is for
        for step in prefix_tree.traversal(archs, how):
            path = path[:step.kept] + [object() for _ in step.added]
            for node, place in zip(archs[step.leaf].nodes(), path):
                if node.index in (6, 7):
                    groups.setdefault(place, set()).add(archs[step.leaf].depths[1])
        assert (max(map(len, groups.values())) == 1) == (how is split)


# ---- what a checkpoint says of it

SPLIT = Split(4, "width", (360, 384, 512))
NET = {"kind": "supernet", "space": FULL.to_dict(), "num_classes": 10, "split": SPLIT.to_dict()}


def test_a_split_is_read_as_it_was_written():
    written = json.loads(json.dumps(NET))
    assert description.read(written) == (FULL, 10) and description.read_split(written) == SPLIT
    assert description.read_split({name: value for name, value in written.items() if name != "split"}) is None


@pytest.mark.parametrize("name, value", [
    ("stage", 0), ("stage", 5), ("stage", "4"), ("stage", True), ("by", "height"), ("by", []), ("by", None),
    ("groups", []), ("groups", [512]), ("groups", [512, 360]), ("groups", [360, 360]), ("groups", [0, 512]),
    ("groups", [360, 10 ** 9]), ("groups", [360, "512"]), ("groups", list(range(1, 11))), ("groups", {}),
    ("groups", 10 ** 30), ("more", 1)])
def test_absurd_splits_are_refused(name, value):
    data = copy.deepcopy(NET)
    data["split"][name] = value
    with pytest.raises(UserError) as said:
        description.read(data)
    assert str(said.value).isprintable() and len(str(said.value)) < 300


# ---- the archs of a step

@pytest.mark.parametrize("by, stage", STAGES)
def test_the_groups_of_a_space_share_it_out(by, stage):
    space = dataclasses.replace(PUBLISHED, activation="mish")
    groups = few_shot.SPLITS[by](space, stage)[1]
    assert sum(group.size() for group in groups) == PUBLISHED.size()
    assert {group.activation for group in groups} == {"mish"}


def sources(space):
    return [space, samplers.ArchList(archs_of(space))]


@pytest.mark.parametrize("by, stage", STAGES)
@pytest.mark.parametrize("source", [0, 1], ids=["space", "list"])
def test_the_archs_of_a_step_are_of_one_group_and_every_group_gets_as_many_steps(by, stage, source):
    candidates = sources(PUBLISHED)[source]
    for name, count in [("sandwich", 42), *((name, 7) for name in samplers.SAMPLERS if stage == 4)]:
        split, steps = draws(candidates, by, stage, count, name, 3)
        groups = [{KEYS[by](arch, stage) for _, arch in pairs} for pairs in steps]
        assert all(len(group) == 1 for group in groups)
        turns = np.reshape([group for (group,) in groups][:count // len(split.groups) * len(split.groups)],
                           [-1, len(split.groups)])
        assert (np.sort(turns) == split.groups).all()
        assert name != "sandwich" or count < 42 or len(set(map(tuple, turns))) > 1  # not always in the same order


@pytest.mark.parametrize("by, stage", STAGES)
@pytest.mark.parametrize("source", [0, 1], ids=["space", "list"])
def test_the_extremes_of_a_step_are_those_of_its_group(by, stage, source):
    candidates = sources(PUBLISHED)[source]
    archs = [(arch, arch.macs()) for arch in archs_of(PUBLISHED)]
    for pairs in draws(candidates, by, stage, 8)[1]:
        (_, largest), (_, smallest), *_ = pairs
        sizes = [macs for arch, macs in archs if KEYS[by](arch, stage) == KEYS[by](largest, stage)]
        if source == 1:
            assert (largest.macs(), smallest.macs()) == (max(sizes), min(sizes))
        else:
            assert largest.macs() >= max(sizes) and smallest.macs() <= min(sizes)


def test_all_else_is_free_inside_a_group_the_inner_widths_of_the_stage_too():
    split, steps = draws(PUBLISHED, "width", 4, 7 * 60, "uniform")
    assert split.groups == tuple(PUBLISHED.width(4, digit) for digit in "7654321")
    for group in split.groups:
        archs = [arch for pairs in steps for _, arch in pairs if KEYS["width"](arch, 4) == group]
        assert len(archs) == 240
        assert {arch.code[-10] for arch in archs} == set("1234567")
        assert {arch.depths[3] for arch in archs} == {2, 3, 4, 5}
        assert {arch.depths[2] for arch in archs} == set(range(2, 9)) and {arch.code[4] for arch in archs} == set("123")


def test_digits_that_mean_one_width_are_one_group():
    split, steps = draws(PUBLISHED, "width", 1, 40, "uniform")
    assert split.groups == (56, 64)
    assert {arch.code[4] for pairs in steps for _, arch in pairs if arch.stem == 64} == {"1", "2"}


@pytest.mark.parametrize("by", few_shot.SPLITS)
def test_fair_draws_are_fair_inside_every_group(by):
    cycle = 28  # of 4 depths and 7 widths in stage 4
    split, steps = draws(PUBLISHED, by, 3, 7 if by == "depth" else 5, "fair", cycle)
    assert len(steps) == len(split.groups)
    for pairs in steps:
        depths, outer, _ = zip(*(digits_of(arch) for _, arch in pairs))
        assert all(sum(each[3] == depth for each in depths) == cycle / 4 for depth in (2, 3, 4, 5))
        assert all(sum(each[3] == digit for each in outer) == cycle / 7 for digit in "1234567")


def test_of_a_list_every_arch_of_a_group_comes_once_before_one_comes_again():
    archs = archs_of(PUBLISHED, 30)
    split, steps = draws(samplers.ArchList(archs), "depth", 4, 4 * 40, "uniform", 1)
    for group in split.groups:
        own = {arch for arch in archs if arch.depths[3] == group}
        drawn = [arch for ((_, arch),) in steps if arch.depths[3] == group]
        assert set(drawn[:len(own)]) == own == set(drawn[len(own):2 * len(own)])


def test_the_archs_of_a_step_of_a_split_net_depend_on_seed_and_step_only():
    (_, one), (_, same), (_, other) = (draws(PUBLISHED, "depth", 4, 40, seed=seed) for seed in (3, 3, 4))
    assert one == same and one != other
    assert len({arch for pairs in one for role, arch in pairs if role == "random"}) == 80


@pytest.mark.parametrize("stage, archs", [(0, PUBLISHED), (5, PUBLISHED), (2, samplers.ArchList([FULL.largest()]))])
def test_a_split_that_makes_no_groups_is_refused(stage, archs):
    with pytest.raises(UserError, match="^split: depth"):
        few_shot.depth(archs, stage)
