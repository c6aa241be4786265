import copy

import numpy as np
import paddle
import pytest

from resnet48.nets import layers, norm_statistics
from resnet48.nets.supernet import ResNet48, Supernet, extract, sort_channels
from resnet48.space.arch import FULL, ArchConfig, ArchError


def images(n=4, size=32, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal((n, 3, size, size)).astype("float32"))


def close(values, expected):
    """Equal but for the rounding of float32, on the scale of the largest."""
    return np.abs(values - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.fixture
def supernet(narrow):
    """A narrow supernet whose running statistics are not the initial ones."""
    paddle.seed(0)
    net = Supernet(narrow, 5)
    for _, layer in net.named_sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._mean.set_value(paddle.randn(layer._mean.shape) * 0.1)
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
            layer.weight.set_value(paddle.rand(layer.weight.shape) + 0.5)
            layer.bias.set_value(paddle.randn(layer.bias.shape) * 0.1)
    return net


def archs_to_check(space, rng):
    return [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(4))]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_supernet_extracted_and_loaded_nets_agree(supernet, narrow, rng, mode):
    x = images()
    for arch in archs_to_check(narrow, rng):
        getattr(supernet, mode)()
        extracted = extract(supernet, arch)
        loaded = ResNet48(arch, 5)
        loaded.set_state_dict({name: tensor.numpy() for name, tensor in extracted.state_dict().items()})
        getattr(loaded, mode)()
        expected = supernet(x, arch).numpy()
        assert close(extracted(x).numpy(), expected)
        assert close(loaded(x).numpy(), expected)


def test_training_moves_the_running_statistics_of_used_channels_only(supernet, narrow):
    arch = narrow.smallest()
    before = {name: tensor.numpy() for name, tensor in supernet.state_dict().items() if "._" in name}
    alone = extract(supernet, arch)
    supernet(images(), arch)
    alone(images())
    after = supernet.state_dict()
    for name, own in alone.state_dict().items():
        if "._" in name:
            used = own.shape[0]
            assert np.allclose(after[name].numpy()[:used], own.numpy(), atol=1e-6), name
            assert not np.allclose(after[name].numpy()[:used], before[name][:used]), name
            assert np.array_equal(after[name].numpy()[used:], before[name][used:]), name


def test_a_net_of_its_own_gives_and_keeps_bit_for_bit_what_shared_layers_would_also_where_it_runs_twice(narrow):
    net = ResNet48(narrow.largest(), 5)
    twin, x = copy.deepcopy(net), images()
    for each, norm in (net, None), (twin, layers.batch_norm):
        outputs = each(x, norm), each(x + 1, norm)  # both graphs are there before the first gradient is made
        for y in outputs:
            y.square().mean().backward()
    for name, own in net.state_dict().items():
        assert np.array_equal(own.numpy(), twin.state_dict()[name].numpy()), name
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert own.stop_gradient or np.array_equal(own.grad.numpy(), other.grad.numpy())


def test_gradients_of_a_subnet_reach_only_the_slices_it_uses(supernet, narrow):
    arch = narrow.smallest()
    alone = extract(supernet, arch)
    supernet(images(), arch).square().mean().backward()
    alone(images()).square().mean().backward()
    of_subnet = {name: parameter.grad.numpy() for name, parameter in alone.named_parameters()
                 if not parameter.stop_gradient}
    for name, parameter in supernet.named_parameters():
        if parameter.stop_gradient:  # running statistics
            continue
        if name not in of_subnet:
            assert parameter.grad is None, name
            continue
        used = tuple(slice(size) for size in of_subnet[name].shape)
        shared = parameter.grad.numpy()
        assert np.allclose(shared[used], of_subnet[name], atol=1e-5), name
        shared[used] = 0
        assert not shared.any(), name


def test_measured_statistics_are_those_of_a_training_forward(supernet, narrow, rng):
    arch, x = narrow.sample(rng), images(16)
    statistics = norm_statistics.Statistics()
    measured = norm_statistics.forward(supernet.path(arch), [x], statistics.keep).numpy()
    with paddle.no_grad():
        supernet.train()
        assert np.allclose(measured, supernet(x, arch).numpy(), atol=1e-4)
        assert np.allclose(measured, supernet(x, arch, norm=statistics.apply).numpy(), atol=1e-5)


def test_sorting_channels_leaves_the_function_unchanged_and_puts_important_ones_first(supernet, narrow):
    supernet.eval()
    x, largest = images(), narrow.largest()
    before = supernet(x, largest).numpy()
    unsorted = supernet.blocks["1"].conv2.weight.numpy()
    sort_channels(supernet)
    assert close(supernet(x, largest).numpy(), before)
    weight = supernet.blocks["1"].conv2.weight.numpy()
    assert not np.array_equal(weight, unsorted)
    importance = np.abs(weight).sum((0, 2, 3))
    assert (np.diff(importance) <= 1e-6).all()


def test_parameter_names_are_the_official_252():
    names = set(Supernet(FULL.narrowed((2, 2, 2, 2), 1), 10).state_dict())
    expected = {"blocks.0.conv.weight", "blocks.24.fc.weight", "blocks.24.fc.bias"}
    norms = ["blocks.0.bn"]
    for i in range(1, 24):
        expected |= {f"blocks.{i}.conv1.weight", f"blocks.{i}.conv2.weight"}
        norms += [f"blocks.{i}.bn1", f"blocks.{i}.bn2"]
    for i in (6, 11, 19):
        expected.add(f"blocks.{i}.downsample.0.weight")
        norms.append(f"blocks.{i}.downsample.1")
    expected |= {f"{norm}.{part}" for norm in norms for part in ("weight", "bias", "_mean", "_variance")}
    assert names == expected and len(names) == 252


def test_nodes_say_the_shape_of_every_weight_and_statistic_of_a_net(narrow, rng):
    net = ResNet48(narrow.sample(rng), 5)
    said = {f"blocks.{node.index}.{name}": list(shape) for node in net.nodes for layer in node.layers()
            for name, shape in {**layer.weights(), **layer.statistics()}.items()}
    assert said == {name: list(tensor.shape) for name, tensor in net.state_dict().items()}


def test_the_supernet_refuses_an_untied_arch_by_block_and_the_standalone_net_projects():
    code = "2222" + "1" + "1113000000" + "1111000000" + "1111" + "0" * 12 + "1111000000"
    with pytest.raises(ArchError, match="stage 1, block 2, conv 2"):
        ArchConfig.parse(code)
    arch = ArchConfig.parse(code, allow_untied=True)
    with pytest.raises(ArchError, match="stage 1, block 2"):
        Supernet(FULL.narrowed((2, 3, 4, 5), 1), 3)(images(), arch)
    net = ResNet48(arch, 3)
    assert net(images(2)).shape == [2, 3]
    assert "blocks.2.downsample.0.weight" in net.state_dict()


def test_macs_and_parameters_are_those_of_a_real_forward_pass(narrow, rng, monkeypatch):
    for size in (32, 33, 50):
        arch = narrow.sample(rng)
        net, counted = ResNet48(arch, 7), []

        def counting(x, weight, stride=1, real=layers.conv_algorithms.conv2d):
            y = real(x, weight, stride)
            counted.append(int(np.prod(weight.shape)) * y.shape[2] * y.shape[3])
            return y

        with monkeypatch.context() as patch:
            patch.setattr(layers.conv_algorithms, "conv2d", counting)
            net(images(1, size))
        assert sum(counted) + arch.out_width * 7 == arch.macs(size, 7)
        assert sum(int(np.prod(p.shape)) for p in net.parameters() if not p.stop_gradient) == arch.params(7)


def test_the_sliced_convolution_is_paddleslims():
    SuperConv2D = pytest.importorskip("paddleslim.nas.ofa.layers").SuperConv2D
    full = SuperConv2D(8, 16, 3, padding=1, candidate_config={"channel": [6, 16]}, bias_attr=False)
    x = images(2)[:, :1].tile([1, 5, 1, 1]) * paddle.arange(1, 6, dtype="float32").reshape([1, 5, 1, 1])
    assert np.allclose(layers.conv(x, full, 6).numpy(), full(x, channel=6).numpy(), atol=1e-5)
