"""Gradients scaled by how often channels are used."""

import itertools
from collections import Counter

import numpy as np
import paddle
import pytest
from small_runs import same
from test_recipes import settings, trained

from resnet48.nets.supernet import Supernet
from resnet48.space.arch import FULL, SearchSpace
from resnet48.space.nodes import used_shapes
from resnet48.system.errors import UserError
from resnet48.system.options import SupernetSettings
from resnet48.training import recipes, samplers
from resnet48.training.candidates import ArchList
from resnet48.training.fairness import CAP, ChannelFairness, factors, uses

#: 2 depths and 2 widths in two of the stages, one of the latter with 2 digits for the same width.
TINY = SearchSpace("tiny", (4, 4, 4, 6), 1, depths=((2, 2), (2, 3), (2, 2), (2, 3)),
                   codes=("1", "1", "17", "1", "127"))


def every_arch(space):
    """Every arch of a space, each as often as `sample` draws it in as many draws as there are outcomes."""
    for depths in itertools.product(*(range(fewest, most + 1) for fewest, most in space.depths)):
        for outer in itertools.product(*space.codes[1:]):
            blocks = [digits for digits, depth in zip(space.codes[1:], depths) for _ in range(depth)]
            # An inner digit counts alike whatever the depth is.
            weight = np.prod([len(digits) ** (most - depth) for digits, depth, (_, most) in
                              zip(space.codes[1:], depths, space.depths)])
            for inner in itertools.product(*blocks):
                digits = iter(inner)
                yield int(weight), space.assemble(depths, outer, [[next(digits) for _ in range(d)] for d in depths])


def brute_force(archs):
    """(name -> use of each weight as an array of the whole shape, how many archs)."""
    archs = list(archs)
    shapes, found = used_shapes(TINY.largest(), 2), {}
    total = sum(weight for weight, _ in archs)
    parts = {name: Counter() for name in shapes}
    for weight, arch in archs:
        for name, shape in used_shapes(arch, 2).items():
            parts[name][shape] += weight
    for name, counts in parts.items():
        found[name] = np.zeros(shapes[name])
        for shape, weight in counts.items():
            found[name][tuple(map(slice, shape))] += weight / total
    return found


def as_arrays(used):
    full = used_shapes(TINY.largest(), 2)
    found = {}
    for name, counts in used.items():
        use = np.zeros(full[name])
        for part, count in counts.items():
            use[tuple(map(slice, part))] += count
        found[name] = use
    return found


@pytest.fixture(scope="module")
def counted():
    return brute_force(every_arch(TINY))


def test_uses_in_a_space_are_those_of_all_its_archs(counted):
    found = as_arrays(uses(TINY, 0, 0, 1))
    assert found.keys() == counted.keys() - {"blocks.24.fc.bias"}
    for name, use in found.items():
        np.testing.assert_allclose(use, counted[name], rtol=1e-12, atol=0, err_msg=name)
    assert counted["blocks.8.conv1.weight"].max() == 0.5  # a block that half of the depths have


def test_uses_of_a_sandwich_count_its_extremes_too(counted):
    ones = [brute_force([(1, arch)]) for arch in (TINY.largest(), TINY.smallest())]
    for name, use in as_arrays(uses(TINY, 1, 1, 2)).items():
        np.testing.assert_allclose(use, ones[0][name] + ones[1][name] + 2 * counted[name], rtol=1e-12, err_msg=name)


def test_uses_of_a_list_are_counted(rng):
    archs = [TINY.sample(rng) for _ in range(5)]
    expected = brute_force([(1, arch) for arch in archs])
    for name, use in as_arrays(uses(ArchList(archs), 0, 0, 3)).items():
        np.testing.assert_allclose(use, 3 * expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["uniform", "fair"])
def test_what_is_counted_is_what_the_sampler_draws(name, counted):
    """Over its cycles, in which the joint frequencies of independent permutations come near those of the space."""
    draw = samplers.SAMPLERS[name].draw
    archs = [(1, arch) for step in range(300) for _, arch in draw(TINY, 0, samplers.Moment(step, 300, 0.0), 4)]
    for name, use in brute_force(archs).items():
        np.testing.assert_allclose(use, counted[name], atol=0.05)


def test_a_factor_is_the_mean_use_over_the_use_and_two_at_most():
    (factor,) = factors({"weight": Counter({(4, 2): 0.5, (6, 2): 0.1})}).values()
    mean = (4 * 0.6 + 2 * 0.1) / 6
    np.testing.assert_allclose(factor, [[mean / 0.6] * 2] * 4 + [[CAP] * 2] * 2, rtol=1e-6)
    (factor,) = factors({"weight": Counter({(4,): 0.5, (6,): 0.5})}).values()
    np.testing.assert_allclose(factor, [(4 + 2 * 0.5) / 6] * 4 + [(4 + 2 * 0.5) / 3] * 2, rtol=1e-6)


def test_factors_are_one_where_all_channels_are_used_alike():
    alike = SearchSpace("alike", (4, 4, 4, 6), 1, codes=("1",) * 5)
    assert all((factor == 1).all() for factor in factors(uses(alike, 1, 1, 2)).values())
    assert any((factor != 1).any() for factor in factors(uses(TINY, 1, 1, 2)).values())


def test_gradients_are_multiplied_and_absent_ones_stay_absent():
    space = FULL.narrowed((2, 3, 4, 5), 1)
    net = Supernet(space, 3)
    archs = ArchList([space.smallest(), space.smallest()])  # no channel beyond has a factor
    shallow = space.assemble((2, 5, 8, 5), "1111", [["1"] * depth for depth in (2, 5, 8, 5)])
    net(paddle.randn([8, 3, 16, 16]), shallow).square().sum().backward()
    parameters = dict(net.named_parameters())
    before = {name: each.grad.numpy() for name, each in parameters.items() if each.grad is not None}
    ChannelFairness(archs, 0, 0, 1).scale(net)
    assert all(np.array_equal(parameters[name].grad.numpy(), value) for name, value in before.items())
    fairness, expected = ChannelFairness(space, 1, 1, 2), factors(uses(space, 1, 1, 2))
    for _ in range(2):
        fairness.scale(net)
    for name, value in before.items():
        factor = expected.get(name, np.ones(1))
        factor = factor.reshape(*factor.shape, *[1] * (value.ndim - factor.ndim))
        np.testing.assert_allclose(parameters[name].grad.numpy(), value * factor ** 2, rtol=1e-5, err_msg=name)
    assert parameters["blocks.3.conv1.weight"].grad is None


def test_samplers_whose_uses_cannot_be_counted_are_refused():
    for name, sampler in samplers.SAMPLERS.items():
        settings = SupernetSettings(sampler=name, channel_fairness=True)
        if sampler.uniform:
            (stage,) = recipes.supernet(settings, TINY)
            assert stage.fairness
        else:
            with pytest.raises(UserError, match=f"--channel_fairness needs a sampler .*uniform, sandwich.*{name}"):
                recipes.supernet(settings, TINY)
    (stage,) = recipes.supernet(SupernetSettings(), TINY)
    assert stage.fairness is None


def test_a_fair_run_is_another_than_a_plain_one_and_resumes_bit_for_bit(tmp_path):
    plain, whole, parts = (settings(tmp_path / name, max_epoch=1, dyna_batch_size=3, channel_fairness=name != "plain")
                           for name in ("plain", "whole", "parts"))
    through = trained(whole)
    assert trained(parts, stop_after=3) is None
    assert same(trained(parts), through) and not same(trained(plain), through)
