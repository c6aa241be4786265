import numpy as np
import paddle
import pytest

from resnet48 import engine, evaluate, tree, walk
from resnet48.data import normalize
from resnet48.models import Supernet


def pixels(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), "uint8")


def logits_by_walking(net, archs, calibration, images):
    weights, found = walk.Weights(net, 1 << 30), {}
    steps = tree.walk(archs)
    measuring = walk.Measuring()
    walk.run(weights, steps, normalize(paddle.to_tensor(calibration)), measuring)
    walk.run(weights, steps, normalize(paddle.to_tensor(images)), walk.Tape(measuring.values()),
             lambda index, logits: found.__setitem__(index, logits.numpy()))
    return found


def archs_of(space, rng, count):
    return list({arch.code: arch for arch in (space.sample(rng) for _ in range(count))}.values())


@pytest.mark.parametrize("size", [32, 64, 50])
def test_walking_the_tree_gives_the_logits_of_every_arch_on_its_own(narrow_pool, rng, size):
    paddle.seed(0)
    net = Supernet(narrow_pool, 5)
    net.eval()
    archs, calibration, images = archs_of(narrow_pool, rng, 12), pixels(16, size), pixels(6, size, seed=1)
    found = logits_by_walking(net, archs, calibration, images)
    assert sorted(found) == list(range(len(archs)))
    with paddle.no_grad():
        for index, arch in enumerate(archs):
            norm = evaluate.calibrate(net, arch, calibration).apply
            expected = net(normalize(paddle.to_tensor(images)), arch, norm=norm).numpy()
            assert np.abs(found[index] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (1, 2), (1, 1), (7, 2)])
def test_every_way_to_run_a_convolution_gives_the_same_values_and_gradients(size, kernel, stride):
    paddle.seed(0)
    x, weight = paddle.randn([3, 5, size, size]), paddle.randn([4, 5, kernel, kernel])
    results = []
    for convolve in (lambda a, b: engine.conv2d(a, b, stride),
                     lambda a, b: paddle.nn.functional.conv2d(a, b, stride=stride, padding=kernel // 2)):
        inputs = x.clone().detach(), weight.clone().detach()
        for tensor in inputs:
            tensor.stop_gradient = False
        y = convolve(*inputs)
        (y * paddle.arange(y.size, dtype="float32").reshape(y.shape)).mean().backward()
        results.append((y.numpy(), inputs[0].grad.numpy(), inputs[1].grad.numpy()))
    for ours, expected in zip(*results):
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
