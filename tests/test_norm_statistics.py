"""Calibration in parts: the statistics of all images, whatever the parts, and the same ones over the tree and alone."""

import numpy as np
import paddle
import pytest
from small_runs import SPACE

from resnet48.evaluation import accuracy, prefix_tree, tree_forward
from resnet48.images.datasets import normalize
from resnet48.nets import conv_algorithms, layers, norm_statistics
from resnet48.nets.supernet import Supernet, extract
from resnet48.training import held_out

SIZE = 33


def pixels(count, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), "uint8")


@pytest.fixture
def net():
    paddle.seed(0)
    net = Supernet(SPACE, 5)
    net.eval()
    return net


@pytest.fixture
def parts_of(monkeypatch):
    """A function after which so many images are a part."""
    return lambda count, size=SIZE: monkeypatch.setattr(norm_statistics, "PART_PIXELS", count * size ** 2)


def of_each_layer(net, arch, given):
    """(mean, variance) of each batch norm of an arch, by name."""
    statistics, found = accuracy.calibrate(net, arch, given), {}
    for node in arch.nodes():
        for each in node.layers():
            found[node.key, each.name] = tuple(value.numpy() for value in statistics[net.blocks[node.key][each.norm]])
    return found


@pytest.mark.parametrize("counts", [(5,), (4, 4, 4), (1, 7, 2)])
def test_moments_are_those_of_all_values_together_however_far_the_parts_are_apart(counts):
    rng = np.random.default_rng(0)
    parts = [(1000 * place + rng.standard_normal((count, 6, 3, 3))).astype("float32")
             for place, count in enumerate(counts)]
    together = np.concatenate(parts).astype("float64")
    mean, variance = norm_statistics.moments([paddle.to_tensor(part) for part in parts])
    assert mean.dtype == variance.dtype == paddle.float32
    assert np.allclose(mean.numpy(), together.mean(axis=(0, 2, 3)), rtol=2e-7, atol=1e-6)
    assert np.allclose(variance.numpy(), together.var(axis=(0, 2, 3)), rtol=1e-6)


def test_in_one_part_a_layer_sees_what_it_would_see_of_one_batch_to_the_last_bit(net, rng):
    arch, given, seen = SPACE.sample(rng), pixels(9), {}

    def measure(y, layer):
        seen[layer] = layers.moments(y)
        return layers.batch_norm_with(y, layer, *seen[layer])

    with paddle.no_grad():
        expected = net(normalize(paddle.to_tensor(given)), arch, norm=measure).numpy()
    statistics = norm_statistics.Statistics()
    found = norm_statistics.forward(net.path(arch), norm_statistics.in_parts(given, normalize), statistics.keep)
    assert np.array_equal(found.numpy(), expected)
    assert all(np.array_equal(mine.numpy(), other.numpy()) for layer, both in seen.items()
               for mine, other in zip(statistics[layer], both))


@pytest.mark.parametrize("part", [1, 4, 8])
def test_parts_change_nothing_but_rounding(net, rng, parts_of, part):
    arch, given = SPACE.sample(rng), pixels(11)
    expected = of_each_layer(net, arch, given)
    parts_of(part)
    found = of_each_layer(net, arch, given)
    for name, both in expected.items():
        for mine, other in zip(found[name], both):
            assert np.allclose(mine, other, rtol=1e-4, atol=1e-4 * np.abs(other).max()), name


@pytest.mark.parametrize("part", [4, 100])
def test_the_tree_measures_what_each_arch_on_its_own_measures_to_the_last_bit(net, rng, parts_of, part):
    parts_of(part)
    archs, given = [SPACE.sample(rng) for _ in range(6)], pixels(10)
    steps = prefix_tree.traversal(archs)
    # The layout that a net on its own has, which shows in the last digits.
    weights = tree_forward.SlicedWeightCache(net, 1 << 30, dense_up_to=conv_algorithms.DENSE_ONCE_UP_TO)
    values, end, path = tree_forward.measure_tree(weights, steps, given), 0, ()
    for step in steps:
        path, alone = path[:step.kept] + step.added, of_each_layer(net, archs[step.leaf], given)
        for node in step.added:
            for each in node.layers():
                for expected in alone[node.key, each.name]:
                    assert np.array_equal(values[end:end + len(expected)], expected)
                    end += len(expected)
    assert end == len(values)


def test_a_subnet_on_its_own_and_held_out_images_are_calibrated_in_parts_too(net, rng, parts_of, monkeypatch):
    arch, given, labels, sizes = SPACE.sample(rng), pixels(10), np.arange(10) % 5, []
    one = held_out._loss(net, arch, given, labels)
    parts_of(4)
    monkeypatch.setattr(layers, "moments", lambda x, real=layers.moments: sizes.append(x.shape[0]) or real(x))
    alone = extract(net, arch)
    accuracy.calibrate_alone(alone, given)
    assert set(sizes) == {4, 3}
    expected = accuracy.calibrate(net, arch, given)
    for node in arch.nodes():
        for each in node.layers():
            mean, variance = expected[net.blocks[node.key][each.norm]]
            own = alone.blocks[node.key][each.norm]
            assert np.array_equal(own._mean.numpy(), mean.numpy())
            assert np.array_equal(own._variance.numpy(), variance.numpy())
    sizes.clear()
    assert held_out._loss(net, arch, given, labels) == pytest.approx(one, rel=1e-5) and set(sizes) == {4, 3}
