"""The activation behind the sum of a block: ReLU, PReLU or Mish, in every net and on every way to one."""

import json
import os

import numpy as np
import paddle
import pytest
from commands import SMALL, SMALLEST, call, good, refusal
from small_runs import losses_of_step, same, values

from resnet48.evaluation import accuracy, prefix_tree, tree_forward
from resnet48.images.datasets import normalize
from resnet48.nets import export, layers
from resnet48.nets.supernet import ACTIVATIONS, ResNet48, Supernet, extract, sort_channels
from resnet48.ranking import submission
from resnet48.space import description
from resnet48.space.arch import FULL, SearchSpace
from resnet48.space.nodes import SLOPE, used_shapes
from resnet48.system.errors import UserError
from resnet48.training import checkpoint, objectives, optim

KINDS = ("relu", "prelu", "mish")
OTHERS = KINDS[1:]
RELU = FULL.narrowed((4, 8, 16, 32), 1)


def space_with(activation):
    return RELU.narrowed(RELU.base_channels, 1, activation)


def net_with(activation, seed=0):
    """A supernet with slopes that differ, and running statistics that are not the initial ones."""
    rng = np.random.default_rng(seed)
    paddle.seed(seed)
    net = Supernet(space_with(activation), 5)
    for name, value in net.state_dict().items():
        if name.endswith(("_mean", "_variance", "bn2.bias", SLOPE)):
            value.set_value(rng.uniform(0.1, 0.9, value.shape).astype("float32"))
    net.eval()
    return net


def pixels(count=6, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size)).astype("uint8")


def prepared(*arguments):
    return normalize(paddle.to_tensor(pixels(*arguments)))


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # as half precision is, another than that of the weights
def test_values_are_those_of_the_formulas(dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(dtype) * 5
    expected = {"relu": np.maximum(x, 0), "prelu": np.where(x > 0, x, 0.25 * x),
                "mish": x * np.tanh(np.log1p(np.exp(x)))}
    for name, make in ACTIVATIONS.items():
        found = make()(paddle.to_tensor(x)).numpy()
        assert found.dtype == dtype and np.allclose(found, expected[name], atol=1e-5), name


def test_it_stands_behind_the_sum_of_every_block_and_nowhere_else(monkeypatch):
    net, seen = net_with("mish"), []
    monkeypatch.setattr(ACTIVATIONS["mish"], "forward", lambda self, x: seen.append(x.numpy()) or x)
    net(prepared(), net.space.largest())
    assert len(seen) == len(net.space.largest().blocks()) == 23
    assert all(each.min() < 0 for each in seen)
    block, x = net.nodes[2], paddle.to_tensor(seen[0])
    assert block.index == 2 and not block.projects
    with paddle.no_grad():
        inner = np.maximum(layers.batch_norm(layers.conv(x, net.blocks["2"].conv1, 4), net.blocks["2"].bn1).numpy(), 0)
        outer = layers.batch_norm(layers.conv(paddle.to_tensor(inner), net.blocks["2"].conv2, 4), net.blocks["2"].bn2)
    assert close(seen[1], seen[0] + outer.numpy())


@pytest.mark.parametrize("activation", KINDS)
def test_the_tree_gives_the_logits_of_every_arch_on_its_own_and_extracting_keeps_them(activation, rng):
    net = net_with(activation)
    # The codes as of relu: the net knows what it is.
    archs = [RELU.largest(), RELU.smallest(), *(RELU.sample(rng) for _ in range(3))]
    found = {}
    tree_forward.forward_tree(tree_forward.SlicedWeightCache(net, 1 << 30), prefix_tree.traversal(archs), prepared(),
                              layers.batch_norm, lambda index, logits: found.__setitem__(index, logits.numpy()))
    with paddle.no_grad():
        for index, arch in enumerate(archs):
            expected = net(prepared(), arch).numpy()
            subnet = extract(net, arch)
            assert subnet.arch.activation == activation
            assert close(found[index], expected) and close(subnet(prepared()).numpy(), expected)
            calibrated = accuracy.subnet(net, arch, pixels(16))(prepared()).numpy()
            accuracy.calibrate_alone(subnet, pixels(16))
            assert close(subnet(prepared()).numpy(), calibrated)


def test_nets_with_the_same_weights_differ_by_their_activation():
    weights = values(net_with("relu"))
    logits = {}
    for activation in KINDS:
        net = Supernet(space_with(activation), 5)
        checkpoint.start_from(net, weights, "somewhere")
        net.eval()
        logits[activation] = net(prepared(), RELU.largest()).numpy()
    assert not close(logits["prelu"], logits["relu"]) and not close(logits["mish"], logits["relu"])


@pytest.mark.parametrize("activation", KINDS)
def test_nodes_say_and_count_every_weight(activation, rng):
    space = space_with(activation)
    for arch, plain in ((space.largest(), RELU.largest()), (space.smallest(), RELU.smallest())):
        net = ResNet48(arch, 5)
        trainable = {name: tuple(value.shape) for name, value in net.named_parameters() if not value.stop_gradient}
        assert used_shapes(arch, 5) == trainable
        assert arch.params(5) == sum(int(np.prod(shape)) for shape in trainable.values())
        assert arch.macs(32, 5) == plain.macs(32, 5)
        slopes = len(arch.blocks()) if activation == "prelu" else 0
        assert arch.params(5) == plain.params(5) + slopes
        assert sum(name.endswith("relu2._weight") for name in trainable) == slopes


def test_a_step_moves_the_slopes_of_the_blocks_it_uses_and_no_others():
    net, space = net_with("prelu"), space_with("prelu")
    net.train()
    optimizer = optim.make_optimizer(net, weight_decay=0.1)
    optimizer.set_lr(0.1)
    arch, before = space.smallest(), values(net)
    losses_of_step(objectives.CrossEntropy(), net, [("random", arch)], prepared(8), paddle.arange(8) % 5)
    used = {f"blocks.{block.index}.{SLOPE}" for block in arch.blocks()}
    assert {name for name, value in net.named_parameters() if name.endswith(SLOPE) and value.grad is not None} == used
    with optim.freeze_unused(net, optimizer, [("random", arch)]):
        optimizer.step()
    after = values(net)
    assert {name for name in after if name.endswith(SLOPE) and not np.array_equal(before[name], after[name])} == used


@pytest.mark.parametrize("left_out", [True, False])
def test_slopes_are_left_out_of_the_decay_with_the_batch_norms(left_out):
    net = net_with("prelu")
    before, optimizer = values(net), optim.make_optimizer(net, weight_decay=0.1, no_decay_norm=left_out)
    optimizer.set_lr(0.1)
    sum(value.sum() * 0 for value in optim.trainable(net)).backward()
    optimizer.step()
    moved = {name for name, value in values(net).items() if not np.array_equal(value, before[name])}
    assert any(name.endswith(SLOPE) for name in moved) != left_out and "blocks.1.conv1.weight" in moved


@pytest.mark.parametrize("activation", OTHERS)
def test_sorting_channels_leaves_the_function_unchanged(activation):
    net = net_with(activation)
    before = net(prepared(), RELU.largest()).numpy()
    sort_channels(net)
    assert close(net(prepared(), RELU.largest()).numpy(), before)


# ---- what is written and read

def test_a_space_of_relus_is_written_as_ever_and_others_say_what_they_are():
    assert "activation" not in RELU.to_dict()
    for activation in KINDS:
        space = space_with(activation)
        assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
        assert space.sample(np.random.default_rng(0)).activation == activation


@pytest.mark.parametrize("value", [None, 1, True, "swish", "", [], {}], ids=str)
def test_an_activation_that_is_none_is_refused_where_a_net_is_described(value):
    alone = checkpoint.describe(ResNet48(RELU.smallest(), 3))
    for net in ({**alone, "activation": value}, {"kind": "supernet", "num_classes": 3, "space": {"activation": value}}):
        with pytest.raises(UserError, match="activation takes relu, prelu, mish"):
            description.read(net)


@pytest.mark.parametrize("activation", KINDS)
def test_a_checkpoint_builds_the_net_it_holds(tmp_path, activation):
    for number, net in enumerate((net_with(activation), extract(net_with(activation), RELU.smallest()))):
        folder = str(tmp_path / str(number))
        optimizer = optim.make_optimizer(net)
        checkpoint.save(folder, net, optimizer, {"step": 1}, keep=1)
        built = checkpoint.build(checkpoint.load(folder))
        built.eval()
        assert same(values(built), values(net))
        arguments = [RELU.smallest()] * isinstance(net, Supernet)
        assert np.array_equal(built(prepared(), *arguments).numpy(), net(prepared(), *arguments).numpy())
        assert checkpoint.describe(built) == checkpoint.describe(net)


def test_foreign_weights_with_slopes_are_known_for_what_they_are(tmp_path):
    net = net_with("prelu")
    path = str(tmp_path / "foreign.pdparams")
    paddle.save({f"model.{name}": value for name, value in net.state_dict().items()}, path)
    built = checkpoint.build_supernet(checkpoint.load(path))
    assert built.space.activation == "prelu" and same(values(built), values(net))


def test_weights_with_slopes_do_not_start_a_net_without():
    with pytest.raises(checkpoint.CheckpointError, match="needs --activation prelu"):
        checkpoint.start_from(Supernet(RELU, 5), values(net_with("prelu")), "somewhere")


def test_an_exported_net_gives_the_same(tmp_path):
    subnet = extract(net_with("prelu"), RELU.smallest())
    export.save_inference(subnet, 32, str(tmp_path / "subnet"))  # which compares the logits
    assert os.path.exists(tmp_path / "subnet.pdiparams")


# ---- the scripts, which are told once

def test_every_command_takes_the_activation_from_the_checkpoint(here):
    train = ("--image_dir", "images", *SMALL, "--save_dir", "other")
    good(call("train_supernet.py", "run", *train, "--activation", "prelu"))
    said = refusal(("train_supernet.py", "run", *train), ".")
    assert "classes, prelu; the settings ask for supernet 2,4,8,16 wide, 3 classes, relu" in said
    words = ("--checkpoint", "other", "--image_dir", "images", "--calib_images", "8")
    for way in ((), ("--one_by_one",)):
        output = f"submission{len(way)}.json"
        good(call("eval_supernet.py", "run", *words, "--archs", "list.json", "--output", output, *way))
        assert submission.read_manifest_net(output)[0].activation == "prelu"
    with open("submission0.json") as tree, open("submission1.json") as alone:
        assert tree.read() == alone.read()
    good(call("eval_supernet.py", "export", *words, "--arch", SMALLEST, "--output", "exported"))
    good(call("pretrain.py", "run", "--arch", SMALLEST, "--image_dir", "images", *SMALL, "--mode", "eval",
              "--pretrained", "other"))


def test_a_net_on_its_own_is_evaluated_as_it_was_trained(here):
    words = ("pretrain.py", "run", "--arch", SMALLEST, "--image_dir", "images", *SMALL, "--save_dir", "alone")
    trained = good(call(*words, "--activation", "mish")).out
    assert checkpoint.build(checkpoint.load("alone")).arch.activation == "mish"
    evaluated = good(call(*words, "--mode", "eval")).out
    assert trained.split("top-1 of")[1].split()[1] == evaluated.split("top-1 of")[1].split()[3]
    assert "mish; the settings ask for" in refusal(words, ".")


def test_a_net_of_relus_may_start_one_of_another_activation(here):
    started = good(call("train_supernet.py", "run", "--recipe", "fixed_teacher", "--pretrained", "supernet",
                        "--image_dir", "images", *SMALL, "--save_dir", "other", "--activation", "prelu")).out
    assert "activation: prelu" in started
    assert checkpoint.build(checkpoint.load("other")).space.activation == "prelu"
    good(call("pretrain.py", "run", "--pretrained", "standalone", "--arch", SMALLEST, "--image_dir", "images", *SMALL,
              "--save_dir", "alone", "--activation", "mish"))
