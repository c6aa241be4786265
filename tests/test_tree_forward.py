import numpy as np
import paddle
import pytest

from resnet48.evaluation import accuracy, prefix_tree, tree_forward
from resnet48.images.datasets import normalize
from resnet48.nets import layers, norm_statistics
from resnet48.nets.supernet import Supernet
from resnet48.space.arch import PUBLISHED


def pixels(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), "uint8")


def logits_by_walking(net, archs, calibration, images, split=None):
    weights, found = tree_forward.SlicedWeightCache(net, 1 << 30), {}
    steps = prefix_tree.traversal(archs, split)
    statistics = tree_forward.measure_tree(weights, steps, calibration)
    tree_forward.forward_tree(weights, steps, normalize(paddle.to_tensor(images)),
                              tree_forward.ReplayedStatistics(statistics),
                              lambda index, logits: found.__setitem__(index, logits.numpy()))
    return found


def archs_of(space, rng, count):
    return list({arch.code: arch for arch in (space.sample(rng) for _ in range(count))}.values())


def net_with_statistics(space, rng):
    """A net whose running statistics are far from those it starts with."""
    paddle.seed(0)
    net = Supernet(space, 5)
    net.eval()
    for name, value in net.state_dict().items():
        if name.endswith(("_mean", "_variance")):
            value.set_value(rng.uniform(0.5, 2, value.shape).astype("float32"))
    return net


@pytest.mark.parametrize("size", [32, 64, 50])
def test_walking_the_tree_gives_the_logits_of_every_arch_on_its_own(narrow_published, rng, size):
    paddle.seed(0)
    net = Supernet(narrow_published, 5)
    net.eval()
    archs, calibration, images = archs_of(narrow_published, rng, 12), pixels(16, size), pixels(6, size, seed=1)
    found = logits_by_walking(net, archs, calibration, images)
    assert sorted(found) == list(range(len(archs)))
    with paddle.no_grad():
        for index, arch in enumerate(archs):
            norm = accuracy.calibrate(net, arch, calibration).apply
            expected = net(normalize(paddle.to_tensor(images)), arch, norm=norm).numpy()
            assert np.abs(found[index] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("shards", [1, 3])
def test_walking_without_calibration_uses_the_statistics_inside_the_net(narrow, rng, shards):
    net, archs, images = net_with_statistics(narrow, rng), archs_of(narrow, rng, 8), pixels(6)
    found, weights = {}, tree_forward.SlicedWeightCache(net, 1 << 30)
    for steps in prefix_tree.shards(prefix_tree.traversal(archs), shards):
        tree_forward.forward_tree(weights, steps, normalize(paddle.to_tensor(images)), layers.batch_norm,
                                  lambda index, logits: found.__setitem__(index, logits.numpy()))
    with paddle.no_grad():
        for index, arch in enumerate(archs):
            expected = net(normalize(paddle.to_tensor(images)), arch).numpy()
            assert np.abs(found[index] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def test_weights_are_the_same_however_few_may_be_kept(narrow, rng):
    net, archs = net_with_statistics(narrow, rng), archs_of(narrow, rng, 5)
    found = []
    for bytes_kept in (1, 20_000, 1 << 30):
        weights, logits = tree_forward.SlicedWeightCache(net, bytes_kept), []
        tree_forward.forward_tree(weights, prefix_tree.traversal(archs), normalize(paddle.to_tensor(pixels(3))),
                                  layers.batch_norm, lambda _, here: logits.append(here.numpy()))
        assert weights._bytes <= max(bytes_kept, max(size for _, size in weights._kept.values()))
        found.append(logits)
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[2])


def test_the_statistics_take_as_many_bytes_as_predicted(narrow, rng):
    net, steps = net_with_statistics(narrow, rng), prefix_tree.traversal(archs_of(narrow, rng, 10))
    values = tree_forward.measure_tree(tree_forward.SlicedWeightCache(net, 1 << 30), steps, pixels(2))
    assert values.nbytes == tree_forward.cost(steps, 32, 5).statistics_bytes


def peak(run, count, size):
    """Bytes that a function of so many images has at once at its worst point."""
    memory, batch = paddle.base.core, pixels(count, size)
    before = memory.host_memory_stat_current_value("Allocated", 0)
    memory.host_memory_stat_reset_peak_value("Allocated", 0)
    run(batch)
    return memory.host_memory_stat_peak_value("Allocated", 0) - before


tells_memory = pytest.mark.skipif(
    not hasattr(paddle.base.core, "host_memory_stat_reset_peak_value"),
    reason="this version of Paddle does not tell how much memory a part of a program took")


@tells_memory
@pytest.mark.parametrize("base", [(24, 48, 96, 192), (4, 8, 16, 32)])
@pytest.mark.parametrize("size", [16, 32, 36, 65])
def test_a_walk_takes_no_more_memory_than_predicted_and_not_much_less(base, size, rng):
    space = PUBLISHED.narrowed(base, 1)
    net = Supernet(space, 5)
    net.eval()

    def walk(batch):
        tree_forward.forward_tree(weights, steps, normalize(paddle.to_tensor(batch)), layers.batch_norm)

    for archs in ([space.largest()], [space.smallest()], archs_of(space, rng, 2)):
        weights, steps = tree_forward.SlicedWeightCache(net, 1 << 40), prefix_tree.traversal(archs)
        peak(walk, 4, size)  # lays out the weights
        # The difference leaves out what does not grow with images.
        per_image = (peak(walk, 24, size) - peak(walk, 8, size)) / 16
        assert 0.65 <= per_image / tree_forward.cost(steps, size, 5).path_bytes <= 1


@tells_memory
@pytest.mark.parametrize("base, size", [((24, 48, 96, 192), 32), ((4, 8, 16, 32), 65)])
def test_calibration_in_parts_takes_as_much_memory_as_predicted(base, size, rng, monkeypatch):
    space = PUBLISHED.narrowed(base, 1)
    net = Supernet(space, 5)
    weights, steps = tree_forward.SlicedWeightCache(net, 1 << 40), prefix_tree.traversal(archs_of(space, rng, 4))
    cost = tree_forward.cost(steps, size, 5)

    def measure(batch):
        tree_forward.measure_tree(weights, steps, batch)

    peak(measure, 8, size)  # lays out the weights
    in_one = peak(measure, 24, size)
    assert 0.5 <= in_one / cost.calibration_bytes(24, size) <= 1
    monkeypatch.setattr(norm_statistics, "PART_PIXELS", 2 * size ** 2)
    in_parts = peak(measure, 24, size)
    assert in_parts < in_one
    assert 0.9 <= (peak(measure, 40, size) - in_parts) / 16 / cost.waiting_bytes <= 1


# ---- calibration in parts

def test_a_set_is_cut_into_few_parts_of_almost_equal_size_and_small_sets_are_not_cut():
    def sizes(count, size):
        return [len(part) for part in norm_statistics.in_parts(pixels(count, size), lambda x: x)]

    assert norm_statistics.images_per_part(224) == 64 and norm_statistics.images_per_part(32) == 3136
    assert norm_statistics.images_per_part(4000) == 1
    assert sizes(512, 79) == [512] and sizes(3, 1800) == [1, 1, 1] and sizes(9, 600) == [5, 4]
    assert sizes(10, 900) == [3, 3, 2, 2]
