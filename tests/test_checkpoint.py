import json
import os
import resource
import shutil

import numpy as np
import paddle
import pytest

from resnet48.nets.supernet import ResNet48, Supernet
from resnet48.space.arch import FULL, ArchConfig
from resnet48.training import checkpoint, optim
from resnet48.training.checkpoint import CheckpointError

UNTIED = "2222" + "1" + "1113000000" + "1111000000" + "1111" + "0" * 12 + "1111000000"


def saved(folder, net, step=1, keep=3, best_step=None):
    """Save `net` as after a step that has moved every weight; returns (the checkpoint's folder, the optimizer)."""
    optimizer = optim.make_optimizer(net)
    sum(parameter.sum() for parameter in optim.trainable(net)).backward()
    optimizer.set_lr(0.01)
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)
    state = {"step": step, "best_step": best_step, "settings": {"lr": 0.1}}
    return checkpoint.save(str(folder), net, optimizer, state, keep), optimizer


def values(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def steps(folder):
    return sorted(os.listdir(os.path.join(folder, "checkpoints")))


def small():
    return ResNet48(FULL.narrowed((2, 3, 4, 5), 1).smallest(), 3)


def small_supernet(classes=3):
    return Supernet(FULL.narrowed((2, 3, 4, 5), 1), classes)


def projecting():
    return ResNet48(ArchConfig.parse(UNTIED, FULL.narrowed((4, 8, 16, 32), 1), allow_untied=True), 7)


NETS = {"supernet": small_supernet, "standalone": small, "standalone with projections": projecting}


# ---- the round trip

@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_net_comes_back_with_its_arch_its_weights_its_optimizer_and_its_state(tmp_path, make):
    net = make()
    folder, optimizer = saved(tmp_path, net, step=12)
    assert folder == str(tmp_path / "checkpoints" / "step-00000012")
    found = checkpoint.load(str(tmp_path))
    built = checkpoint.build(found)
    assert type(built) is type(net) and checkpoint.describe(built) == checkpoint.describe(net)
    assert same(values(built), values(net)) and same(found.weights, values(net))
    assert same(found.optimizer, optim.state_by_name(net, optimizer)) and found.optimizer
    assert (found.state["step"], found.state["settings"]) == (12, {"lr": 0.1})
    images = paddle.randn([2, 3, 32, 32])
    net.eval()
    built.eval()
    arguments = [images, net.space.smallest()] if isinstance(net, Supernet) else [images]
    assert np.array_equal(built(*arguments).numpy(), net(*arguments).numpy())


def test_a_run_a_checkpoint_and_a_weights_file_can_all_be_read(tmp_path):
    net = small()
    folder, _ = saved(tmp_path, net)
    checkpoint.publish(folder, str(tmp_path))
    for path in (tmp_path, folder, f"{folder}/net.pdparams", tmp_path / "final.pdparams", tmp_path / "final"):
        found = checkpoint.load(str(path))
        assert same(values(checkpoint.build(found)), values(net)), path
        assert found.weights_file.endswith(".pdparams") and os.path.isfile(found.weights_file)


def test_the_final_files_are_plain_paddle_files(tmp_path):
    net = small_supernet()
    folder, optimizer = saved(tmp_path, net)
    checkpoint.publish(folder, str(tmp_path))
    weights = paddle.load(str(tmp_path / "final.pdparams"))
    assert same({name: np.asarray(tensor) for name, tensor in weights.items()}, values(net))
    other = small_supernet()
    assert other.set_state_dict(weights) == ([], [])
    state = paddle.load(str(tmp_path / "final.pdopt"), return_numpy=True)
    assert same(state, optim.state_by_name(net, optimizer))


@pytest.mark.parametrize("base, divisor", [((2, 3, 4, 5), 1), ((8, 8, 16, 24), 1)])
def test_weights_without_our_json_beside_them_are_recognised_by_their_widths(tmp_path, base, divisor):
    net = Supernet(FULL.narrowed(base, divisor), 6)
    paddle.save(net.state_dict(), str(tmp_path / "resnet48.pdparams"))
    built = checkpoint.build(checkpoint.load(str(tmp_path / "resnet48.pdparams")))
    assert isinstance(built, Supernet) and built.space.base_channels == base and built.num_classes == 6
    assert same(values(built), values(net))


def test_a_standalone_net_is_no_supernet(tmp_path):
    net = small()
    saved(tmp_path, net)
    with pytest.raises(CheckpointError, match=f"holds the standalone net {net.arch.code}, not a supernet"):
        checkpoint.build_supernet(checkpoint.load(str(tmp_path)))


# ---- whole or not at all

def test_a_write_that_fails_leaves_the_older_checkpoints_and_nothing_else(tmp_path):
    net = ResNet48(FULL.narrowed((8, 8, 8, 8), 1).smallest(), 3)
    saved(tmp_path, net, step=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # what a full disk does: a write of more fails
    try:
        with pytest.raises(CheckpointError, match=f"cannot write the checkpoint {tmp_path}.*step-00000002: .*older"):
            saved(tmp_path, net, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps(tmp_path) == ["step-00000001"]
    assert checkpoint.load(str(tmp_path)).state["step"] == 1


def test_a_failure_after_the_weights_have_been_written_leaves_nothing_either(tmp_path, monkeypatch):
    net = small()
    saved(tmp_path, net, step=1)
    for raised, seen in ((OSError(28, "No space left on device"), CheckpointError),
                         (KeyboardInterrupt(), KeyboardInterrupt)):
        def fail(*_, indent, raised=raised):
            raise raised

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.json, "dump", fail)
            with pytest.raises(seen):
                saved(tmp_path, net, step=2)
        assert steps(tmp_path) == ["step-00000001"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match=f"^cannot write the checkpoint {tmp_path}/run/"):
        saved(tmp_path / "run", small())


def test_the_newest_and_the_best_are_kept(tmp_path):
    net = small()
    for step in range(1, 7):
        saved(tmp_path, net, step, keep=2, best_step=min(step, 2))
    assert steps(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]


def test_a_step_that_is_written_again_replaces_the_first(tmp_path):
    net = small()
    saved(tmp_path, net, step=3)
    saved(tmp_path, net, step=3)
    assert steps(tmp_path) == ["step-00000003"]
    assert same(checkpoint.load(str(tmp_path)).weights, values(net))


def test_what_has_just_been_written_stays_also_where_newer_ones_lie(tmp_path):
    net = small()
    for step in (7, 8, 9, 5):
        folder, _ = saved(tmp_path, net, step, keep=2)
    assert os.path.isdir(folder)


def test_what_killed_runs_have_left_half_written_goes_with_the_next_checkpoint(tmp_path):
    os.makedirs(tmp_path / "checkpoints" / ".writing-1" / "net")
    kept = {"checkpoints", ".mine", "final.pdparams.bak", ".final"}
    for name in (".config.yaml.ab12.yaml", ".metrics.csv.x.csv", ".final.json.y.json", *kept - {"checkpoints"}):
        (tmp_path / name).write_text("half")
    saved(tmp_path, small())
    assert steps(tmp_path) == ["step-00000001"] and set(os.listdir(tmp_path)) == kept


# ---- corrupt

def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


def flip_a_byte(path):
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def empty(path):
    with open(path, "w"):
        pass


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty, os.unlink])
@pytest.mark.parametrize("name", ["net.pdparams", "net.pdopt", "state.json"])
def test_a_corrupt_checkpoint_is_named_and_passed_over(tmp_path, damage, name):
    net, said = small(), []
    saved(tmp_path, net, step=1)
    good = values(net)
    folder, _ = saved(tmp_path, net, step=2)
    damage(f"{folder}/{name}")
    found = checkpoint.newest(str(tmp_path), said.append)
    assert found.state["step"] == 1 and same(found.weights, good)
    assert len(said) == 1 and said[0].startswith(f"the checkpoint {folder} is corrupt: ") and name in said[0]
    with pytest.raises(CheckpointError, match=folder):
        checkpoint.load(folder)


@pytest.mark.parametrize("change", [lambda state: state.update(step=3), lambda state: state.update(sha256=[]),
                                    lambda state: state["net"].update(num_classes=4)])
def test_state_that_is_not_what_was_written_is_corrupt_too(tmp_path, change):
    folder, _ = saved(tmp_path, small(), step=2)
    with open(f"{folder}/state.json") as file:
        state = json.load(file)
    change(state)
    with open(f"{folder}/state.json", "w") as file:
        json.dump(state, file)
    with pytest.raises(CheckpointError, match="corrupt.*state.json"):
        checkpoint.load(folder)


def test_a_run_with_corrupt_checkpoints_only_holds_none(tmp_path, capsys):
    for step in (1, 2):
        folder, _ = saved(tmp_path, small(), step)
        truncate(f"{folder}/net.pdopt")
    assert checkpoint.newest(str(tmp_path)) is None
    assert capsys.readouterr().out.count("is corrupt") == 2
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        checkpoint.load(str(tmp_path))


def test_final_weights_that_are_not_those_of_the_json_beside_them_are_corrupt(tmp_path):
    folder, _ = saved(tmp_path, small(), step=1)
    checkpoint.publish(folder, str(tmp_path))
    folder, _ = saved(tmp_path / "other", small(), step=1)
    shutil.copyfile(f"{folder}/net.pdparams", tmp_path / "final.pdparams")
    with pytest.raises(CheckpointError, match="final.pdparams is corrupt: it is not what .*final.json describes"):
        checkpoint.load(str(tmp_path / "final.pdparams"))
