"""Checkpoints, written atomically and checked when read.

A run's folder holds `checkpoints/step-00001234/` with net.pdparams, net.pdopt and state.json (what the net is, where
the run stood, its settings, and the sha256 of the other two), and after the last step final.pdparams, final.pdopt and
final.json beside it.
"""

import contextlib
import glob
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import nn

from ..images.datasets import ImageSet
from ..nets import supernet
from ..space.arch import ArchConfig, SearchSpace
from ..space.nodes import HEAD
from ..system import files
from ..system.errors import UserError
from . import foreign_weights, optim

WEIGHTS, OPTIMIZER, STATE = "net.pdparams", "net.pdopt", "state.json"
FINAL = {WEIGHTS: "final.pdparams", OPTIMIZER: "final.pdopt", STATE: "final.json"}
TRAINED = "/trained"  # ends the names of weights in net.pdopt that are averaged in net.pdparams


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupt, foreign or for another net."""


@dataclass
class Checkpoint:
    """What was read: weights by parameter name (numpy), optimizer state by structured name, and state.json."""

    path: str
    weights_file: str
    weights: dict
    optimizer: dict
    state: dict


# --- writing ----------------------------------------------------------------------------------------------------------

def save(run_folder: str, net: nn.Layer, optimizer: paddle.optimizer.Optimizer, state: dict, keep: int,
         average: nn.Layer | None = None) -> str:
    """Write one checkpoint, whole or not at all, and remove all but the newest `keep` and the best.

    state: plain data with at least `step`; it is completed by what the net is. average: a net to evaluate and publish
    instead; the weights to train on with then lie with the optimizer's state. Returns the checkpoint's folder.
    Raises `UserError` where the folder cannot be written or the disk is full; older checkpoints stay.
    """
    folder = os.path.join(run_folder, "checkpoints")
    target = os.path.join(folder, f"step-{state['step']:08d}")
    temporary = os.path.join(folder, f".writing-{os.getpid()}")
    try:
        _clear_leftovers(run_folder)
        os.makedirs(temporary)
        paddle.save((average or net).state_dict(), os.path.join(temporary, WEIGHTS))
        trained = {name + TRAINED: value.numpy() for name, value in net.state_dict().items()} if average else {}
        paddle.save({**optim.state_by_name(net, optimizer), **trained}, os.path.join(temporary, OPTIMIZER))
        complete = json.loads(json.dumps({"net": describe(net), **state}))
        digests = {name: files.sha256_of(os.path.join(temporary, name)) for name in (WEIGHTS, OPTIMIZER)}
        with open(os.path.join(temporary, STATE), "w") as file:
            json.dump({**complete, "sha256": {**digests, STATE: _digest(complete)}}, file, indent=1)
        for name in (WEIGHTS, OPTIMIZER, STATE, "."):
            _fsync(os.path.join(temporary, name))
        shutil.rmtree(target, ignore_errors=True)  # the same step again: after a resume the content is the same too
        os.rename(temporary, target)
        _fsync(folder)
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {target}: {error.strerror or error}; "
                              f"older ones in {folder} are untouched") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    best = f"step-{state['best_step']:08d}" if state.get("best_step") else None
    for old in sorted(_folders(run_folder))[:-keep]:
        if old not in (best, os.path.basename(target)):  # a run that resumes from an older one may find newer ones
            shutil.rmtree(os.path.join(folder, old), ignore_errors=True)
    return target


def trained_weights(found: Checkpoint) -> tuple[dict, dict]:
    """(weights to train on with, optimizer state) of a checkpoint."""
    trained = {name.removesuffix(TRAINED): value for name, value in found.optimizer.items() if name.endswith(TRAINED)}
    state = {name: value for name, value in found.optimizer.items() if not name.endswith(TRAINED)}
    return trained or found.weights, state


def publish(checkpoint_folder: str, run_folder: str) -> None:
    """Publish a checkpoint under the names that other people's scripts look for: final.pdparams and final.pdopt."""
    _clear_leftovers(run_folder)
    for name, final in FINAL.items():
        with files.atomic_write(os.path.join(run_folder, final)) as temporary:
            shutil.copyfile(os.path.join(checkpoint_folder, name), temporary)


def _clear_leftovers(run_folder):
    """Remove what a killed run has left half-written."""
    for left in glob.glob(os.path.join(glob.escape(run_folder), "checkpoints", ".writing-*")):
        shutil.rmtree(left, ignore_errors=True)
    for name in ("config.yaml", "metrics.csv", *FINAL.values()):
        for left in glob.glob(os.path.join(glob.escape(run_folder), f".{name}.*")):
            with contextlib.suppress(OSError):
                os.unlink(left)


def _digest(state):
    """SHA-256 of the content of state.json, without the checksums themselves."""
    content = {name: value for name, value in state.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _fsync(path):
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe(net: nn.Layer) -> dict:
    """What is needed to build this net again, as plain data in the form that JSON gives back."""
    what = {"kind": "standalone", "arch": net.arch.code, "stem": net.arch.stem, "stages": net.arch.stages} \
        if isinstance(net, supernet.ResNet48) else {"kind": "supernet", "space": net.space.to_dict()}
    return json.loads(json.dumps({**what, "num_classes": net.num_classes}))


# --- reading ----------------------------------------------------------------------------------------------------------

def load(path: str) -> Checkpoint:
    """Read a run's folder (its newest complete checkpoint), a checkpoint's folder, or a .pdparams file.

    Raises `CheckpointError` for a path that is missing, corrupt or not a checkpoint.
    """
    if os.path.isdir(os.path.join(path, "checkpoints")):
        found = newest(path)
        if found is None:
            raise CheckpointError(f"{path} holds no complete checkpoint")
        return found
    if os.path.isfile(os.path.join(path, STATE)):
        return _read_folder(path)
    weights = path if path.endswith(".pdparams") else path + ".pdparams"  # Paddle's own tools leave the ending out
    if not os.path.isfile(weights):
        raise CheckpointError(f"there is no checkpoint at {path}; expected is a run's folder, a checkpoint's folder or "
                              "a .pdparams file")
    return _read_file(weights)


def newest(run_folder: str, report: Callable[[str], None] = print) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None. Corrupt ones are reported by `report` and skipped."""
    for name in sorted(_folders(run_folder), reverse=True):
        try:
            return _read_folder(os.path.join(run_folder, "checkpoints", name))
        except CheckpointError as error:
            report(f"{error}; trying the one before")
    return None


def steps(run_folder: str) -> list[int]:
    """The steps of a run's checkpoints, complete or not, in order."""
    return sorted(int(name.removeprefix("step-")) for name in _folders(run_folder))


def _folders(run_folder):
    folder = os.path.join(run_folder, "checkpoints")
    return [name for name in os.listdir(folder) if re.fullmatch(r"step-\d{8,}", name)] if os.path.isdir(folder) else []


def _read_folder(folder):
    state = _read_state(os.path.join(folder, STATE), folder)
    for name in (WEIGHTS, OPTIMIZER):
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or files.sha256_of(path) != state["sha256"].get(name):
            raise CheckpointError(f"the checkpoint {folder} is corrupt: {name} is not what was written")
    weights_file = os.path.join(folder, WEIGHTS)
    return Checkpoint(folder, weights_file, _load_tensors(weights_file), _load_tensors(os.path.join(folder, OPTIMIZER)),
                      state)


def _read_state(path, checkpoint):
    try:
        state = files.read_json(path, "the state of the checkpoint")
    except UserError as error:
        raise CheckpointError(f"the checkpoint {checkpoint} is corrupt: {error}") from error
    sums = state.get("sha256") if isinstance(state, dict) else None
    if not isinstance(sums, dict) or sums.get(STATE, _digest(state)) != _digest(state):
        raise CheckpointError(f"the checkpoint {checkpoint} is corrupt: {path} is not what was written")
    return state


def _read_file(path):
    weights = foreign_weights.canonical(_load_tensors(path))
    beside = os.path.join(os.path.dirname(path), STATE) if os.path.basename(path) == WEIGHTS \
        else path[:-len(".pdparams")] + ".json"
    state = files.read_json(beside, "the state of the checkpoint") if os.path.isfile(beside) else {}
    if not isinstance(state, dict) or "net" not in state:  # weights of another program, whatever the file beside is
        state = {"net": foreign_weights.net_of(weights)}
        if state["net"] is None:
            raise CheckpointError(f"{path} does not hold a ResNet48: it has no blocks.1 .. blocks.{HEAD}, but for "
                                  f"example {next(iter(weights), 'nothing')!r}")
    elif "sha256" in state and _read_state(beside, path)["sha256"].get(WEIGHTS) != files.sha256_of(path):
        raise CheckpointError(f"the checkpoint {path} is corrupt: it is not what {beside} describes")
    return Checkpoint(path, path, weights, {}, state)


def _load_tensors(path):
    try:
        content = paddle.load(path, return_numpy=True)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError, ImportError, AttributeError,
            IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a Paddle checkpoint, or is corrupt: {str(error).splitlines()[0]}"
                              if str(error) else f"{path} is not a Paddle checkpoint, or is corrupt") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path} does not hold named weights, but a {type(content).__name__}")
    return content


# --- from a checkpoint to a net ---------------------------------------------------------------------------------------

def build(checkpoint: Checkpoint) -> supernet.Supernet | supernet.ResNet48:
    """The net that a checkpoint holds, with its weights."""
    try:
        what = checkpoint.state["net"]
        if what["kind"] == "supernet":
            net = supernet.Supernet(SearchSpace.from_dict(what["space"]), what["num_classes"])
        else:
            stages = tuple(tuple(map(tuple, stage)) for stage in what["stages"])
            depths = tuple(map(len, stages))
            net = supernet.ResNet48(ArchConfig(what["arch"], depths, what["stem"], stages), what["num_classes"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the state of the checkpoint {checkpoint.path} is not complete: {error}") from error
    load_weights(net, checkpoint.weights, checkpoint.path)
    return net


def build_supernet(found: Checkpoint) -> supernet.Supernet:
    """The supernet that a checkpoint holds. Raises `CheckpointError` if it is a standalone net."""
    net = build(found)
    if not isinstance(net, supernet.Supernet):
        raise CheckpointError(f"{found.path} holds the standalone net {net.arch.code}, not a supernet")
    return net


def fits(net: nn.Layer, weights: dict[str, np.ndarray]) -> bool:
    """Whether names and shapes are exactly the net's."""
    return {name: list(value.shape) for name, value in net.state_dict().items()} == \
        {name: list(np.shape(value)) for name, value in weights.items()}


def load_weights(net: nn.Layer, weights: dict[str, np.ndarray], path: str) -> None:
    """Load every weight; raise `CheckpointError` unless names and shapes are exactly the net's and all are finite."""
    own = net.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(f"{path} is for another net: {len(missing)} weights are missing "
                              f"({', '.join(missing[:3]) or 'none'}), {len(extra)} are not known "
                              f"({', '.join(extra[:3]) or 'none'})")
    for name, value in weights.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise CheckpointError(f"{path} is broken: {name} is not a tensor of floating-point numbers")
        if list(value.shape) != list(own[name].shape):
            classes = f"; it was trained on {value.shape[-1]} classes, not on {own[name].shape[-1]}" \
                if name.startswith(f"blocks.{HEAD}.fc") and value.shape[-1] != own[name].shape[-1] else ""
            raise CheckpointError(f"{path} is for another net: {name} is {list(value.shape)}, "
                                  f"needed is {list(own[name].shape)}{classes}")
        if not np.isfinite(value).all():
            raise CheckpointError(f"{path} is broken: {name} holds values that are not finite")
    # Paddle skips a weight of another precision with a warning.
    net.set_state_dict({name: paddle.to_tensor(value, own[name].dtype) for name, value in weights.items()})


def require_classes(net: nn.Layer, images: ImageSet, path: str) -> None:
    """Raise `CheckpointError` unless the net has one output per class of the images."""
    if net.num_classes != len(images.classes):
        raise CheckpointError(f"the checkpoint {path} is for {net.num_classes} classes, but {images.name} has "
                              f"{len(images.classes)}")
