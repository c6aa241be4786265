import numpy as np
import pytest
from small_runs import at

from resnet48.space.arch import PUBLISHED, ArchConfig
from resnet48.system.errors import UserError
from resnet48.training import samplers

SAMPLERS = [sampler.draw for sampler in samplers.SAMPLERS.values()]
DRAWN = {name: sampler for name, sampler in samplers.SAMPLERS.items() if name != "largest"}  # which draws nothing


def late(step, steps):
    """The moment of a step when a space that opens is open."""
    return at(step, steps, epoch=100.0)


@pytest.mark.parametrize("sample", [sampler.draw for sampler in DRAWN.values()])
def test_the_archs_of_a_step_depend_on_seed_and_step_only(sample):
    first = sample(PUBLISHED, 3, late(17, 100), 5)
    sample(PUBLISHED, 3, late(18, 100), 5)
    np.random.seed(1)
    assert sample(PUBLISHED, 3, late(17, 100), 5) == first
    assert sample(PUBLISHED, 3, late(16, 100), 5) != first and sample(PUBLISHED, 4, late(17, 100), 5) != first


@pytest.mark.parametrize("sample", SAMPLERS)
def test_sampling_leaves_numpys_global_generator_alone(sample):
    before = np.random.get_state()[1].tolist(), np.random.get_state()[2]
    sample(PUBLISHED, 0, at(0, 100), 4)
    assert (np.random.get_state()[1].tolist(), np.random.get_state()[2]) == before


def test_archs_of_a_step_do_not_change_when_more_are_drawn():
    assert samplers.uniform(PUBLISHED, 0, at(5, 100), 7)[:3] == samplers.uniform(PUBLISHED, 0, at(5, 100), 3)
    assert samplers.sandwich(PUBLISHED, 0, at(5, 100), 7)[:4] == samplers.sandwich(PUBLISHED, 0, at(5, 100), 4)


def test_the_sandwich_is_the_largest_the_smallest_and_random_ones():
    roles, archs = zip(*samplers.sandwich(PUBLISHED, 0, at(9, 100), 5))
    assert roles == ("largest", "smallest", "random", "random", "random")
    assert archs[:2] == (PUBLISHED.largest(), PUBLISHED.smallest())
    assert len(set(archs)) == 5


@pytest.mark.parametrize("count", [1, 0])
def test_a_sandwich_of_fewer_than_two_is_refused_by_the_flags_name(count):
    with pytest.raises(UserError, match=f"--dyna_batch_size must be 2 or more for the sandwich rule, got {count}"):
        samplers.sandwich(PUBLISHED, 0, at(0, 100), count)


@pytest.mark.parametrize("count", [1, 4])
def test_the_largest_stands_alone_whatever_the_count(narrow_published, rng, count):
    assert samplers.largest(PUBLISHED, 3, at(5, 100), count) == [("largest", PUBLISHED.largest())]
    archs = samplers.ArchList([narrow_published.sample(rng) for _ in range(5)])
    assert samplers.largest(archs, 3, at(5, 100), count) == [("largest", archs.largest())]


def test_uniform_archs_are_all_random_and_different_from_step_to_step():
    drawn = [pair for step in range(20) for pair in samplers.uniform(PUBLISHED, 0, at(step, 20), 4)]
    assert {role for role, _ in drawn} == {"random"}
    assert len({arch for _, arch in drawn}) == 80


def test_archs_are_of_the_space_that_is_given(narrow_published):
    for _, arch in samplers.uniform(narrow_published, 0, at(0, 100), 20):
        assert ArchConfig.parse(arch.code, narrow_published) == arch


def test_a_seed_means_the_same_archs_in_every_version_so_that_runs_can_be_repeated():
    (_, arch), = samplers.uniform(PUBLISHED, 0, at(0, 100), 1)
    assert arch.code == "238232313000000213121000055151515453515252434000000"


@pytest.mark.parametrize("sampler", DRAWN.values(), ids=DRAWN)
def test_every_sampler_says_all_roles_that_it_gives_and_gives_as_many_archs_as_asked_for(sampler, narrow_published):
    seen = set()
    for step in range(20):
        pairs = sampler.draw(narrow_published, 0, late(step, 20), 5)
        assert len(pairs) == 5 + (sampler.draw is samplers.biased and step % 3 == 0)  # its one more
        seen |= {role for role, _ in pairs}
    assert seen == set(sampler.roles)


@pytest.mark.parametrize("sampler", DRAWN.values(), ids=DRAWN)
def test_every_sampler_draws_from_a_list_of_archs_too(sampler, narrow_published, rng):
    archs = [narrow_published.sample(rng) for _ in range(6)]
    drawn = [pair for step in range(60) for pair in sampler.draw(samplers.ArchList(archs), 0, late(step, 60), 4)]
    assert {arch for _, arch in drawn} == set(archs)
    for role, extreme in (("largest", max), ("smallest", min)):
        assert {arch.macs() for each, arch in drawn if each == role} <= {extreme(arch.macs() for arch in archs)}


def digits_of(arch):
    """Depths, outer digits of the four stages, and inner digits by (stage, block), of an arch."""
    code, first, outer, inner = arch.code, 5, [], {}
    for stage, (depth, capacity) in enumerate(zip(arch.depths, (5, 5, 8, 5))):
        blocks = code[first:first + 2 * depth]
        outer.append(blocks[1])
        inner |= {(stage, block): digit for block, digit in enumerate(blocks[::2])}
        first += 2 * capacity
    return arch.depths, outer, inner


@pytest.mark.parametrize("first", [0, 420])
def test_over_a_fair_cycle_every_depth_and_every_code_of_a_tied_group_comes_equally_often(first):
    cycle = 420  # the least common multiple of 3, 4, 5 and 7 choices
    archs = [arch for _, arch in samplers.fair(PUBLISHED, 0, at(first // cycle, 9), cycle)]
    depths, outer, inner = zip(*map(digits_of, archs))
    for stage, ((fewest, most), allowed) in enumerate(zip(PUBLISHED.depths, PUBLISHED.codes[1:])):
        for depth in range(fewest, most + 1):
            assert sum(each[stage] == depth for each in depths) == cycle / (most + 1 - fewest)
        for digit in allowed:
            assert sum(each[stage] == digit for each in outer) == cycle / len(allowed)
            assert sum(each[stage, 0] == digit for each in inner) == cycle / len(allowed)  # a block that all have
    assert len(set(archs)) > 400  # and yet they are all different


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_fair_cycle_goes_on_from_step_to_step_whatever_the_number_of_subnets(count):
    at_once = samplers.fair(PUBLISHED, 5, at(0, 1), 12)
    assert [pair for step in range(12 // count) for pair in samplers.fair(PUBLISHED, 5, at(step, 12), count)] == at_once


def test_a_fair_sandwich_is_the_extremes_and_fair_draws():
    pairs = [samplers.fair_sandwich(PUBLISHED, 5, at(step, 6), 4) for step in range(6)]
    assert all(each[:2] == [("largest", PUBLISHED.largest()), ("smallest", PUBLISHED.smallest())] for each in pairs)
    assert [pair for each in pairs for pair in each[2:]] == samplers.fair(PUBLISHED, 5, at(0, 1), 12)


@pytest.mark.parametrize("name", ["uniform", "fair"])
def test_of_a_list_every_arch_comes_once_before_one_comes_again(narrow_published, rng, name):
    archs = [narrow_published.sample(rng) for _ in range(7)]
    candidates, draw = samplers.ArchList(archs), samplers.SAMPLERS[name].draw
    drawn = [arch for step in range(7) for _, arch in draw(candidates, 0, at(step, 7), 4)]
    for first in range(0, 28, 7):
        assert set(drawn[first:first + 7]) == set(archs)
    assert drawn[:7] != drawn[7:14]
