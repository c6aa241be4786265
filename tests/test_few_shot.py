"""A split net: its copies at the split and after it, in a run and its checkpoints, and in all that uses them."""

import dataclasses
import json
import os

import numpy as np
import paddle
import pytest
from small_runs import CLASSES, PER_EPOCH, SPACE, images, newest, same, values
from test_recipes import fit_stages, settings, stage, stopping, trained
from test_tree_forward import logits_by_walking, pixels

from resnet48.evaluation import accuracy
from resnet48.images.datasets import normalize
from resnet48.nets import supernet
from resnet48.nets.supernet import ResNet48, Supernet, extract, sort_channels
from resnet48.space.split import Split
from resnet48.system.errors import UserError
from resnet48.training import checkpoint, few_shot, loop, optim, recipes, samplers

SPLITS = {by: few_shot.SPLITS[by](SPACE, 4)[0] for by in few_shot.SPLITS}
by_each_split = pytest.mark.parametrize("split", [*SPLITS.values(), Split(2, "depth", (2, 4, 5))], ids=str)
BLOCKS = range(19, 24)  # of stage 4
SPLIT_LATE = (stage(epochs=1), stage(epochs=1, split="depth(stage=4)"))
OPTIMIZERS = {"sgd": {}, "nesterov": {"nesterov": True}, "adamw": {"optimizer": "adamw", "lr": 0.05}}


def archs_of_groups(split, each=2):
    """Some archs of every group, in no order."""
    rng, found = np.random.default_rng(1), {copy: [] for copy in range(len(split.groups))}
    while any(len(archs) < each for archs in found.values()):
        arch = SPACE.sample(rng)
        found[split.copy_of(arch)].append(arch)
    return [archs[place] for place in range(each) for archs in found.values()]


def net_of(split=None):
    """A net in evaluation mode of which every tensor is random."""
    paddle.seed(0)
    net, rng = Supernet(SPACE, len(CLASSES), split), np.random.default_rng(2)
    for tensor in net.state_dict().values():
        spread = rng.uniform(0.5, 1.5, tensor.shape) if tensor.ndim == 1 else rng.standard_normal(tensor.shape)
        tensor.set_value(spread.astype("float32"))
    net.eval()
    return net


def batch(count=8):
    return normalize(paddle.to_tensor(pixels(count)))


def copy_of(name):
    """Which copy of stage 4 a parameter or its optimizer state is in; None for all other parts of a net."""
    key = name.split(".")[1]
    block, _, copy = key.partition("-")
    return int(copy or 0) if int(block) in BLOCKS else None


# ---- the net

@by_each_split
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_split_leaves_every_logit_as_it_was(split, mode):
    net = net_of()
    getattr(net, mode)()
    archs = archs_of_groups(split)
    before, state = [net(batch(), arch).numpy() for arch in archs], values(net)
    copied = net.divide(split)
    assert all(np.array_equal(net(batch(), arch).numpy(), logits) for arch, logits in zip(archs, before))
    net.set_state_dict({**state, **{name: state[first] for name, first in copied.items()}})
    assert same({name: value for name, value in values(net).items() if name not in copied}, state)
    assert {name: net.state_dict()[name].stop_gradient for name in copied} == \
        {name: net.state_dict()[first].stop_gradient for name, first in copied.items()}


def test_a_copy_has_slopes_of_its_own():
    net = Supernet(dataclasses.replace(SPACE, activation="prelu"), len(CLASSES), SPLITS["depth"])
    shapes = supernet.shapes(net.space, len(CLASSES), net.split)
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == shapes
    plain = supernet.shapes(dataclasses.replace(net.space, activation="relu"), len(CLASSES), net.split)
    assert sum("-" in name for name in shapes.keys() - plain.keys()) == 3 + 4 + 5  # blocks of the three copies


@by_each_split
def test_every_group_runs_its_own_copy_and_the_tree_gives_what_each_arch_gives_alone(split):
    net, plain, archs = net_of(split), net_of(), archs_of_groups(split, 3)
    plain.set_state_dict({name: value for name, value in values(net).items() if "-" not in name})
    found = logits_by_walking(net, archs, pixels(16), pixels(6, seed=1), split)
    for index, arch in enumerate(archs):
        alone, shared = (accuracy.subnet(each, arch, pixels(16))(normalize(paddle.to_tensor(pixels(6, seed=1)))).numpy()
                         for each in (net, plain))
        scale = np.abs(alone).max()
        assert np.abs(found[index] - alone).max() <= 1e-4 * scale
        assert (np.abs(shared - alone).max() > 1e-2 * scale) == (split.copy_of(arch) > 0)


@by_each_split
def test_a_subnet_of_every_group_is_cut_out_with_its_copy(split):
    net = net_of(split)
    for arch in archs_of_groups(split):
        subnet = extract(net, arch)
        loaded = ResNet48(arch, len(CLASSES))
        assert subnet.state_dict().keys() == loaded.state_dict().keys()
        assert np.allclose(subnet(batch()).numpy(), net(batch(), arch).numpy(), rtol=1e-4, atol=1e-5)


def test_channels_are_sorted_in_every_copy():
    split = SPLITS["depth"]
    net = net_of(split)
    full = [SPACE.assemble((2, 2, 2, depth), "1111", [["1"] * most for most in (2, 2, 2, depth)])
            for depth in split.groups]
    before = [net(batch(), arch).numpy() for arch in full]
    sort_channels(net)
    assert all(np.allclose(net(batch(), arch).numpy(), logits, rtol=1e-3, atol=1e-4)
               for arch, logits in zip(full, before))
    for node in net.nodes:
        if node.index in BLOCKS:
            importance = np.abs(net.blocks[node.key].conv2.weight.numpy()).sum((0, 2, 3))
            assert (np.diff(importance) <= 1e-6).all()


# ---- a run

def tensors(folder, step):
    """Weights to train on, with running statistics, and optimizer state of a checkpoint of a run, by name."""
    weights, state = checkpoint.trained_weights(checkpoint.read_all(f"{folder}/checkpoints/step-{step:08d}"))
    return weights | state


@pytest.mark.parametrize("changes", [*OPTIMIZERS.values(), {"freeze_unused": True}, {"ema": 0.9}],
                         ids=[*OPTIMIZERS, "freeze_unused", "ema"])
def test_a_step_in_one_group_leaves_the_other_copies_as_they_were_with_momentum_and_decay(tmp_path, monkeypatch,
                                                                                          changes):
    monkeypatch.setattr(loop, "KEEP_CHECKPOINTS", 100)
    run = settings(tmp_path, stages=SPLIT_LATE, weight_decay=0.1, sampler="uniform", objective="cross_entropy",
                   dyna_batch_size=2, save_every_steps=1, **changes)
    trained(run)
    span, split = recipes.in_steps(recipes.supernet(run, SPACE), run, PER_EPOCH, 1)[1], SPLITS["depth"]
    before, trained_groups = tensors(tmp_path, PER_EPOCH), set()
    assert not any("-" in name for name in before)  # all of it is inherited, the optimizer's state too
    before |= {renamed(name, copy): value for name, value in before.items() if copy_of(name) == 0
               for copy in range(1, 4) if int(name.split(".")[1]) < 19 + split.groups[copy]}
    for step in range(PER_EPOCH, 2 * PER_EPOCH):
        now = tensors(tmp_path, step + 1)
        assert set(before) <= set(now)
        (used,) = {split.copy_of(arch) for _, arch in span.archs(step)}
        trained_groups.add(used)
        for name, value in now.items():
            if copy_of(name) not in (None, used):
                assert np.array_equal(value, before.get(name, np.zeros_like(value))), (step, name)
        changed = {copy_of(name) for name, value in now.items() if not np.array_equal(value, before.get(name))}
        assert changed == {None, used}
        before = now
    assert trained_groups == {0, 1, 2, 3}


def renamed(name, copy):
    """What a tensor of the first copy is called in another."""
    blocks, index, *others = name.split(".")
    return ".".join([blocks, f"{index}-{copy}", *others])


def test_what_a_step_does_not_use_of_a_copy_can_be_frozen():
    net, arch = net_of(SPLITS["depth"]), SPACE.assemble((2, 2, 2, 5), "7777", [["7"] * most for most in (2, 2, 2, 5)])
    weight, used = net.blocks["19-3"]["conv1"].weight, arch.stages[3][0][0]
    before, optimizer = weight.numpy(), optim.make_optimizer(net, weight_decay=0.1)
    net(batch(), arch).square().mean().backward()
    optimizer.set_lr(0.1)
    with optim.freeze_unused(net, optimizer, [("random", arch)]):
        optimizer.step()
    assert used < len(before) and np.array_equal(weight.numpy()[used:], before[used:])
    assert not np.array_equal(weight.numpy()[:used], before[:used])


@pytest.mark.parametrize("split, changes", [
    ("depth(stage=4)", {}), ("width(stage=4)", {"optimizer": "adamw", "lr": 0.05, "ema": 0.9}),
    ("depth(stage=2)", {"freeze_unused": True, "nesterov": True})], ids=str)
def test_a_recipe_with_a_split_resumes_bit_for_bit_in_each_stage_and_at_the_boundary(tmp_path, split, changes):
    stages = (stage(epochs=1), stage(epochs=1, split=split, lr=0.2, sampler="uniform", objective="cross_entropy"))
    whole = settings(tmp_path / "whole", stages=stages, **changes)
    through, parts = trained(whole), dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    for stop in (3, PER_EPOCH, 8):
        assert trained(parts, stop, build_first=True) is None
        assert ("split" in newest(tmp_path / "parts").state["net"]) == (stop > PER_EPOCH)
    assert same(trained(parts, build_first=True), through)
    one, other = (checkpoint.read_all(newest(tmp_path / each).path) for each in ("whole", "parts"))
    assert same(one.weights, other.weights)
    assert checkpoint.build(other).split
    # What has not been used yet has no state or, after a resume, zeros.
    assert same(*({name: value for name, value in each.optimizer.items() if value.any()} for each in (one, other)))


def test_a_list_of_archs_is_trained_in_groups_and_resumes_too(tmp_path):
    archs = samplers.ArchList(arch for arch in archs_of_groups(SPLITS["depth"], 3) if arch.depths[3] in (3, 5))

    def of(folder, stop=None):
        run = settings(tmp_path / folder, stages=SPLIT_LATE)
        stages = recipes.supernet(run, archs)
        if stop:
            stages = [stopping(each, stages, run, stop) for each in stages]
        return fit_stages(stages, run)

    through = of("whole")
    assert of("parts", 8) is None and same(of("parts"), through)
    assert newest(tmp_path / "whole").state["net"]["split"] == {"stage": 4, "by": "depth", "groups": [3, 5]}


def test_the_average_of_a_copy_begins_with_the_average_of_the_first():
    net, split = net_of(), SPLITS["width"]
    average = optim.Ema(net, 0.9)
    for tensor in net.state_dict().values():
        tensor.set_value(tensor + 1)
    average.update(5)
    before = values(average.net)
    copied = net.divide(split)
    average.divide(split)
    assert all(np.array_equal(values(average.net)[name], before[first]) for name, first in copied.items())
    assert all(parameter.stop_gradient for parameter in average.net.parameters())
    net.blocks["19-1"]["conv1"].weight.set_value(net.blocks["19-1"]["conv1"].weight + 1)
    average.update(5)
    first, second = (average.net.blocks[key]["conv1"].weight.numpy() for key in ("19", "19-1"))
    assert np.abs(second - first).max() > 0.1


# ---- its checkpoints

def test_a_checkpoint_of_a_split_net_is_built_again_and_one_from_before_is_a_net_without(tmp_path):
    run = settings(tmp_path, stages=SPLIT_LATE)
    assert trained(run, stop_after=PER_EPOCH) is None
    assert checkpoint.build(newest(tmp_path)).split is None
    through = trained(run)
    net = checkpoint.build(checkpoint.load(str(tmp_path)))
    assert net.split == SPLITS["depth"] and same(values(net), through)


def test_a_run_of_stages_from_before_there_were_splits_resumes(tmp_path):
    from test_recipes import TWO_STAGES

    from resnet48.training import run_state
    whole = settings(tmp_path / "whole", stages=TWO_STAGES)
    through, parts = trained(whole), dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    assert trained(parts, stop_after=8) is None
    path = os.path.join(newest(tmp_path / "parts").path, checkpoint.STATE)
    with open(path) as file:
        state = json.load(file)
    for each in state["settings"]["stages"]:
        assert each.pop("split") is None
    state["sha256"][checkpoint.STATE] = run_state.digest(state)
    with open(path, "w") as file:
        json.dump(state, file)
    split = dataclasses.replace(parts, stages=(TWO_STAGES[0], dataclasses.replace(TWO_STAGES[1], split="depth")))
    with pytest.raises(UserError, match="--stages was "):
        trained(split)
    assert same(trained(parts), through)


def test_a_net_that_is_split_in_another_way_is_refused(tmp_path):
    run = settings(tmp_path, stages=SPLIT_LATE)
    net = net_of(SPLITS["width"])
    with pytest.raises(UserError, match="--pretrained holds a net that is split by the width of stage 4 .* the depth"):
        loop.fit(net, recipes.supernet(run, SPACE), images(), run)
    assert trained(run, stop_after=8) is None
    others = samplers.ArchList(arch for arch in archs_of_groups(SPLITS["depth"], 3) if arch.depths[3] > 3)
    with pytest.raises(UserError, match=r"another net: .* split by depth of stage 4 \(2, 3, 4, 5\); the settings ask "
                                        r"for .* split by depth of stage 4 \(4, 5\)"):
        fit_stages(recipes.supernet(run, others), run)


@pytest.mark.parametrize("texts, sentence", [
    (["height"], "--split takes width, depth; got 'height'"),
    (["depth(stage=5)"], "split: depth(stage=...) takes a stage of 1 to 4, got 5"),
    (["depth(block=4)"], "split depth(block=4): there is no hyper-parameter 'block'; there are stage"),
    (["depth", "width(stage=3)"], "a net can be split once, and the stages ask for depth of stage 4 (2, 3, 4, 5) and "
                                  "width of stage 3 (")])
def test_a_split_that_makes_no_sense_is_refused(texts, sentence):
    with pytest.raises(UserError) as said:
        recipes.supernet(settings("", stages=tuple(stage(epochs=1, split=text) for text in texts)), SPACE)
    assert str(said.value).startswith(sentence)
