import numpy as np
import paddle
import pytest
from small_runs import losses_of_step

from resnet48.nets.supernet import ResNet48, Supernet
from resnet48.training import objectives, optim


def batch():
    rng = np.random.default_rng(0)
    return (paddle.to_tensor(rng.standard_normal((4, 3, 32, 32)).astype("float32")),
            paddle.to_tensor(rng.integers(0, 3, 4)))


def train_step(net, optimizer, archs, rate=0.1):
    images, labels = batch()
    objective = objectives.InPlaceDistillation() if archs else objectives.Standalone()
    losses_of_step(objective, net, [("arch", arch) for arch in archs], images, labels)
    optimizer.set_lr(rate)
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)


def values(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


# ---- from human units to steps

@pytest.mark.parametrize("lr, batch_size, ranks, expected", [(0.1, 256, 1, 0.1), (0.1, 64, 8, 0.2), (0.8, 48, 1, 0.15)])
def test_the_learning_rate_is_per_256_images_of_the_global_batch(lr, batch_size, ranks, expected):
    assert optim.scaled_lr(lr, batch_size, ranks) == pytest.approx(expected)


@pytest.mark.parametrize("epochs, per_epoch, expected", [(0, 100, 0), (2, 100, 200), (0.5, 7, 4), (0.1, 100, 10),
                                                         (1.26, 100, 126), (0.001, 100, 0)])
def test_epochs_become_whole_steps(epochs, per_epoch, expected):
    steps = optim.epochs_to_steps(epochs, per_epoch)
    assert steps == expected and isinstance(steps, int)


@pytest.mark.parametrize("step, expected", [
    (0, 0.2), (1, 0.4), (4, 1.0),  # five steps of warm-up
    (5, 1.0), (15, (1 + 2 ** -0.5) / 2), (25, 0.5), (35, (1 - 2 ** -0.5) / 2), (44, 0.00154), (45, 0.0), (50, 0.0)])
def test_the_rate_rises_linearly_and_falls_by_half_a_cosine(step, expected):
    assert optim.cosine(step, 1.0, 45, 5) == pytest.approx(expected, abs=1e-5)


def test_without_warm_up_the_rate_starts_at_its_base_and_a_run_may_be_all_warm_up():
    assert optim.cosine(0, 0.3, 10, 0) == pytest.approx(0.3)
    assert [optim.cosine(step, 0.4, 4, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


# ---- the optimizer

def test_a_step_is_momentum_with_weight_decay_in_the_gradient_and_statistics_are_no_parameters():
    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 2, 1), paddle.nn.BatchNorm2D(2))
    optimizer = optim.make_optimizer(net, weight_decay=0.01)
    weight, velocity = net[0].weight.numpy(), 0.0
    for rate in (0.5, 0.2):
        net(batch()[0]).square().sum().backward()
        velocity = 0.9 * velocity + net[0].weight.grad.numpy() + 0.01 * weight
        weight = weight - rate * velocity
        statistics = net[1]._mean.numpy(), net[1]._variance.numpy()
        optimizer.set_lr(rate)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        assert np.allclose(net[0].weight.numpy(), weight, atol=1e-5)
        assert np.array_equal(net[1]._mean.numpy(), statistics[0])
        assert np.array_equal(net[1]._variance.numpy(), statistics[1])
    assert len(optim.trainable(net)) == 4


def test_parameters_without_a_gradient_do_not_move(narrow):
    net = Supernet(narrow, 3)
    optimizer = optim.make_optimizer(net, weight_decay=0.1)
    train_step(net, optimizer, [narrow.largest()])  # gives every parameter a velocity
    before = values(net)
    train_step(net, optimizer, [narrow.smallest()])
    unused = {str(block.index) for block in narrow.largest().blocks()} - \
             {str(block.index) for block in narrow.smallest().blocks()}
    assert unused
    for name, parameter in net.named_parameters():
        if name.split(".")[1] in unused:
            assert np.array_equal(parameter.numpy(), before[name]), name
        elif name.endswith("conv1.weight"):
            assert not np.array_equal(parameter.numpy(), before[name]), name


# ---- its state under the names of the net

def test_optimizer_state_is_kept_under_parameter_names(narrow):
    net = ResNet48(narrow.smallest(), 3)
    optimizer = optim.make_optimizer(net, weight_decay=1e-4)
    train_step(net, optimizer, [])
    state = optim.state_by_name(net, optimizer)
    named = {name: parameter for name, parameter in net.named_parameters() if not parameter.stop_gradient}
    assert state.keys() == {f"{name}/velocity_0" for name in named}
    assert all(state[f"{name}/velocity_0"].shape == tuple(parameter.shape) for name, parameter in named.items())


def resumed(net, optimizer):
    """A copy of both as a process makes it that has built other nets before."""
    Supernet(net.space, 7) if isinstance(net, Supernet) else ResNet48(net.arch, 7)
    copy = Supernet(net.space, 3) if isinstance(net, Supernet) else ResNet48(net.arch, 3)
    copy.set_state_dict(values(net))
    optimizer_copy = optim.make_optimizer(copy, weight_decay=1e-2)
    optim.load_state(copy, optimizer_copy, optim.state_by_name(net, optimizer))
    return copy, optimizer_copy


def test_training_resumes_bit_for_bit_from_a_loaded_state_also_after_building_other_nets(narrow):
    net = ResNet48(narrow.smallest(), 3)
    optimizer = optim.make_optimizer(net, weight_decay=1e-2)
    for _ in range(2):
        train_step(net, optimizer, [])
    copy, optimizer_copy = resumed(net, optimizer)
    assert_same(values(copy), values(net))
    for _ in range(2):
        train_step(net, optimizer, [])
        train_step(copy, optimizer_copy, [])
    assert_same(values(copy), values(net))
    assert_same(optim.state_by_name(copy, optimizer_copy), optim.state_by_name(net, optimizer))


@pytest.mark.parametrize("before, after", [("smallest", "largest"), ("largest", "smallest")])
def test_that_holds_too_where_not_every_parameter_has_been_used_before_or_is_used_next(narrow, before, after):
    net = Supernet(narrow, 3)
    optimizer = optim.make_optimizer(net, weight_decay=1e-2)
    train_step(net, optimizer, [getattr(narrow, before)()])
    for arch in (getattr(narrow, after)(), narrow.largest()):
        copy, optimizer_copy = resumed(net, optimizer)
        again, optimizer_again = resumed(copy, optimizer_copy)  # a resume right after a resume
        train_step(net, optimizer, [arch])
        train_step(again, optimizer_again, [arch])
        assert_same(values(again), values(net))
        net, optimizer = again, optimizer_again


def test_state_does_not_depend_on_how_many_optimizers_a_net_has_had(narrow):
    net = ResNet48(narrow.smallest(), 3)
    train_step(net, optim.make_optimizer(net, weight_decay=1e-2), [])
    optimizer = optim.make_optimizer(net, weight_decay=1e-2)
    train_step(net, optimizer, [])
    copy, optimizer_copy = resumed(net, optimizer)
    train_step(net, optimizer, [])
    train_step(copy, optimizer_copy, [])
    assert_same(values(copy), values(net))


def test_state_of_an_unknown_parameter_is_an_error(narrow):
    net = ResNet48(narrow.smallest(), 3)
    with pytest.raises(KeyError, match="blocks.99.conv.weight"):
        optim.load_state(net, optim.make_optimizer(net, weight_decay=0.0),
                         {"blocks.99.conv.weight/velocity_0": np.zeros(3, "float32")})


# ---- other optimizers

def stepped(steps, **arguments):
    """The weights of a linear layer along some steps at rate .1 whose gradient is the weight itself."""
    layer = paddle.nn.Linear(2, 2, bias_attr=False)
    layer.weight.set_value(np.array([[1, -2], [3, 4]], "float32"))
    optimizer, weights = optim.make_optimizer(layer, **arguments), [layer.weight.numpy()]
    for _ in range(steps):
        optimizer.set_lr(0.1)
        (layer.weight.square().sum() / 2).backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        weights.append(layer.weight.numpy())
    return weights


def test_nesterov_looks_ahead_by_one_momentum():
    weight, velocity = np.array([[1, -2], [3, 4]], "float64"), 0.0
    for found in stepped(4, momentum=0.8, nesterov=True)[1:]:
        gradient = weight
        velocity = 0.8 * velocity + gradient
        weight = weight - 0.1 * (gradient + 0.8 * velocity)
        assert found == pytest.approx(weight, rel=1e-5)


def test_adamw_decays_weights_apart_from_the_gradient():
    weight, first, second = np.array([[1, -2], [3, 4]], "float64"), 0.0, 0.0
    for step, found in enumerate(stepped(4, name="adamw", weight_decay=0.5)[1:], 1):
        gradient = weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient ** 2
        weight = weight - 0.1 * 0.5 * weight
        weight = weight - 0.1 * (first / (1 - 0.9 ** step)) / (np.sqrt(second / (1 - 0.999 ** step)) + 1e-8)
        assert found == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_state_of_another_optimizer_is_an_error(narrow, name):
    net = ResNet48(narrow.smallest(), 3)
    optimizer = optim.make_optimizer(net, name)
    train_step(net, optimizer, [])
    state, other = optim.state_by_name(net, optimizer), {"sgd": "adamw", "adamw": "sgd"}[name]
    with pytest.raises(KeyError, match="blocks.0.bn.bias/|blocks.0.conv.weight/beta1_pow_acc_0"):
        optim.load_state(net, optim.make_optimizer(net, other), state)
