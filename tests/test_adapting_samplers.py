"""Samplers whose distribution is not uniform: biased ones, those that open a space, those that follow the losses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import at

from resnet48.space.arch import PUBLISHED, ArchConfig
from resnet48.system.errors import UserError
from resnet48.training import samplers
from resnet48.training.candidates import BINS, ArchList, Strata

SPACE = PUBLISHED.narrowed((8, 16, 32, 64), 1)
STRATA = Strata(SPACE)


def of_list(count, seed=0):
    rng = np.random.default_rng(seed)
    return ArchList(SPACE.sample(rng) for _ in range(count))


# ---- biased

@given(step=st.integers(0, 50), seed=st.integers(0, 9), count=st.integers(1, 5), every=st.integers(1, 4))
def test_biased_archs_are_the_largest_of_those_drawn_and_every_so_often_any_one_more(step, seed, count, every):
    pairs = samplers.biased(SPACE, seed, at(step), count, drawn=20, every=every)
    large = [arch for role, arch in pairs if role == "large"]
    assert [role for role, _ in pairs] == ["large"] * count + ["random"] * (step % every == 0)
    ordered = [arch for _, arch in samplers.biased(SPACE, seed, at(step), 20, drawn=20, every=every)][:20]
    sizes = [samplers.weighted_widths(arch) for arch in ordered]
    assert sizes == sorted(sizes, reverse=True) and large == ordered[:count] and len(set(ordered)) == 20


def test_the_size_of_an_arch_weighs_a_channel_by_its_stage():
    arch = ArchConfig.parse("2222" + "1" + "1111000000" + "1111000000" + "1111" + "0" * 12 + "1111000000")
    assert samplers.weighted_widths(arch) == pytest.approx(64 + 4 * (64 + 1.1 * 64 + 1.7 * 64 + 1.9 * 64))


def test_a_biased_sampler_prefers_large_archs_but_draws_any():
    drawn = [pair for step in range(30) for pair in samplers.biased(SPACE, 0, at(step), 2, drawn=50)]
    uniform = [arch.macs() for step in range(30) for _, arch in samplers.uniform(SPACE, 0, at(step), 2)]
    large, rest = ([arch.macs() for role, arch in drawn if role == kind] for kind in ("large", "random"))
    assert min(large) > np.median(uniform) and len(rest) == 10 and min(rest) < np.median(uniform)


# ---- progressive

def bounds(archs):
    """The fewest blocks of each stage, and the largest digit of a stage's convolutions."""
    depths = [min(each) for each in zip(*(arch.depths for arch in archs))]
    parts = [(5, 15), (15, 25), (25, 41), (41, 51)]
    return depths, [max(max(arch.code[first:last]) for arch in archs) for first, last in parts]


def test_first_the_depths_open_then_the_widths_and_in_the_end_it_is_the_sandwich_of_the_whole_space():
    def at_epoch(epoch):
        return [arch for step in range(12) for _, arch in
                samplers.progressive(SPACE, 0, at(step, epoch=epoch), 4, depth_epochs=4, width_epochs=6)]

    assert bounds(at_epoch(0)) == ([5, 5, 8, 5], ["1"] * 4)
    assert bounds(at_epoch(1)) == ([4, 4, 7, 4], ["1"] * 4)
    assert bounds(at_epoch(3.9)) == ([2, 2, 2, 2], ["1"] * 4)
    assert bounds(at_epoch(6)) == ([2, 2, 2, 2], ["2", "2", "2", "3"])
    assert bounds(at_epoch(9.9)) == ([2, 2, 2, 2], ["3", "3", "5", "7"])
    assert samplers.progressive(SPACE, 3, at(7, epoch=10), 4, 4, 6) == samplers.sandwich(SPACE, 3, at(7), 4)


@given(epochs=st.lists(st.floats(0, 60), min_size=2, max_size=2).map(sorted), seed=st.integers(0, 9))
def test_what_has_opened_stays_open(epochs, seed):
    early, late = (samplers.progressive(SPACE, seed, at(3, epoch=epoch), 4) for epoch in epochs)
    assert early[0] == late[0] == ("largest", SPACE.largest())
    least, most = (bounds([pairs[min(1, len(pairs) - 1)][1]]) for pairs in (late, early))
    assert all(a <= b for a, b in zip(least[0], most[0])) and all(a >= b for a, b in zip(least[1], most[1]))


def test_while_only_the_largest_is_open_a_step_trains_it_once():
    assert samplers.progressive(SPACE, 0, at(5), 4) == [("largest", SPACE.largest())]
    with pytest.raises(UserError, match="--dyna_batch_size must be 2 or more for the sandwich rule, got 1"):
        samplers.progressive(SPACE, 0, at(5), 1)


def test_no_epochs_of_opening_mean_an_open_space():
    assert samplers.progressive(SPACE, 0, at(0), 4, 0, 0) == samplers.sandwich(SPACE, 0, at(0), 4)
    assert bounds([samplers.progressive(SPACE, 0, at(0), 4, 0, 9)[1][1]]) == ([2, 2, 2, 2], ["1"] * 4)


@given(epoch=st.floats(0, 60), seed=st.integers(0, 5), count=st.integers(1, 12))
def test_of_a_list_the_archs_inside_the_bounds_are_open_and_the_largest_always(epoch, seed, count):
    archs = of_list(count, seed)
    pairs = samplers.progressive(archs, 0, at(3, epoch=epoch), 4)
    assert pairs[0] == ("largest", archs.largest()) and {arch for _, arch in pairs} <= set(archs.archs)
    if epoch >= 45:
        assert len(pairs) == (4 if count > 1 else 1)


def test_a_list_opens_by_depths_then_by_widths():
    deep, wide, small = (SPACE.assemble(depths, [digit] * 4, [[digit] * depth for depth in depths])
                         for depths, digit in (((3, 3, 3, 3), "1"), ((2, 2, 2, 2), "1"), ((2, 2, 2, 2), "3")))
    archs = ArchList([small, deep, wide])
    found = [{arch for step in range(6) for _, arch in samplers.progressive(archs, 0, at(step, epoch=epoch), 4, 2, 2)}
             for epoch in (0, 1, 3)]
    assert found == [{deep}, {deep, wide}, {deep, wide, small}]


# ---- stratified

def test_bins_are_equally_probable_before_anything_has_been_measured():
    rng = np.random.default_rng(7)
    counts = np.bincount([STRATA.bin_of(SPACE.sample(rng)) for _ in range(1000)], minlength=5)
    assert len(counts) == BINS and 150 < counts.min() and counts.max() < 250
    drawn = np.bincount([STRATA.bin_of(STRATA.sample(rng)) for _ in range(500)], minlength=5)
    assert 70 < drawn.min() and drawn.max() < 130


def test_archs_of_a_bin_are_uniform_in_it():
    strata = Strata(SPACE)
    strata.load({"weights": [1e-12, 1e-12, 1.0, 1e-12, 1e-12], "losses": None})
    rng = np.random.default_rng(1)
    found = [strata.sample(rng).macs() for _ in range(150)]
    expected = [arch.macs() for arch in (SPACE.sample(rng) for _ in range(750)) if strata.bin_of(arch) == 2]
    assert {strata.bin_of(strata.sample(rng)) for _ in range(20)} == {2}
    assert np.quantile(found, [0.25, 0.5, 0.75]) == pytest.approx(np.quantile(expected, [0.25, 0.5, 0.75]), rel=0.02)


def losses(*means):
    return [[mean - 0.5, mean + 0.5] for mean in means]


def test_the_weights_follow_the_loss_that_still_falls():
    strata = Strata(SPACE)
    strata.observe(losses(3, 3, 3, 3, 3))
    assert strata.weights == [0.2] * 5
    strata.observe(losses(3, 2.9, 2.7, 3.2, 3))
    assert strata.weights == pytest.approx([0.1, 0.1 + 0.5 / 4, 0.1 + 0.5 * 3 / 4, 0.1, 0.1])
    strata.observe(losses(4, 4, 4, 4, 4))
    assert strata.weights == pytest.approx([0.2] * 5)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=5, max_size=5), min_size=1, max_size=4))
def test_no_weight_is_under_half_of_the_uniform_one(history):
    strata = Strata(of_list(10))
    for means in history:
        strata.observe(losses(*means))
    assert sum(strata.weights) == pytest.approx(1) and min(strata.weights) >= 0.1 - 1e-12


def test_every_bin_is_watched_by_eight_fixed_archs_of_its_own():
    for place, archs in enumerate(STRATA.observed):
        assert len(set(archs)) == 8 and {STRATA.bin_of(arch) for arch in archs} == {place}
    assert Strata(SPACE).observed == STRATA.observed


def test_strata_that_are_loaded_draw_as_those_that_were_saved():
    one, other = Strata(SPACE), Strata(SPACE)
    one.observe(losses(3, 3, 3, 3, 3))
    one.observe(losses(3, 2, 3, 2.5, 3))
    other.load(one.state())
    assert samplers.stratified(one, 0, at(9), 8) == samplers.stratified(other, 0, at(9), 8)
    assert samplers.stratified(one, 0, at(9), 8) != samplers.stratified(STRATA, 0, at(9), 8)
    for each in (one, other):
        each.observe(losses(2, 2, 2, 2, 2))
    assert one.state() == other.state()


@pytest.mark.parametrize("state", [{"weights": [1], "losses": None}, {"weights": [0.2] * 5}, {"weights": "x" * 5,
                                   "losses": None}, {"weights": [0.0] * 5, "losses": None},
                                   {"weights": [float("nan")] * 5, "losses": None}], ids=str)
def test_a_state_of_another_form_is_refused(state):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Strata(SPACE).load(state)


@given(count=st.integers(1, 12))
def test_a_short_list_has_as_many_bins_as_it_can_and_all_its_archs_are_drawn(count):
    archs = of_list(count)
    strata = Strata(archs)
    assert len(strata.weights) == min(5, count)
    rng = np.random.default_rng(0)
    assert {strata.sample(rng) for _ in range(40 * count)} == set(archs.archs)


def test_a_space_of_one_arch_has_bins_too():
    depths, codes = ((2, 2),) * 4, ("1",) * 5
    lone = type(SPACE)("lone", (8, 16, 32, 64), 1, depths=depths, codes=codes)
    assert [arch for _, arch in samplers.stratified(lone, 0, at(0), 3)] == [lone.largest()] * 3
