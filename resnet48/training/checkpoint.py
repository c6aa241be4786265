"""Checkpoints, written atomically and checked when read.

A run's folder holds `checkpoints/step-00001234/` with net.pdparams, net.pdopt and state.json (what the net is, where
the run stood, its settings, and the sha256 of the other two), and after the last step final.pdparams, final.pdopt and
final.json beside it.
"""

import contextlib
import glob
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import paddle
from paddle import nn

from ..images.datasets import ImageSet
from ..nets import supernet
from ..space import description
from ..space.arch import SearchSpace
from ..space.nodes import HEAD, SLOPE
from ..system import files
from ..system.errors import UserError, quoted
from . import foreign_weights, optim, run_state, tensor_files
from .run_state import OPTIMIZER, STATE, WEIGHTS
from .tensor_files import CheckpointError

FINAL = {WEIGHTS: "final.pdparams", OPTIMIZER: "final.pdopt", STATE: "final.json"}
OBJECTIVE = "objective/"  # begins the names of tensors in net.pdopt that the objective remembers
TRAINED = "/trained"  # ends the names of weights in net.pdopt that are averaged in net.pdparams


@dataclass
class Checkpoint:
    """What was read: weights by parameter name (numpy) and state.json.

    optimizer_file: None for weights alone.
    """

    path: str
    weights_file: str
    optimizer_file: str | None
    weights: dict
    state: dict

    @cached_property
    def optimizer(self) -> dict:
        """The optimizer's state by structured name, read when a run resumes. Raises `CheckpointError`."""
        return tensor_files.read(self.optimizer_file) if self.optimizer_file else {}


# --- writing ----------------------------------------------------------------------------------------------------------

def save(run_folder: str, net: nn.Layer, optimizer: paddle.optimizer.Optimizer, state: dict, keep: int,
         average: nn.Layer | None = None, tensors: dict[str, np.ndarray] | None = None) -> str:
    """Write one checkpoint, whole or not at all, and remove all but the newest `keep` and the best.

    state: plain data with at least `step`; it is completed by what the net is. average: a net to evaluate and publish
    instead; the weights to train on with then lie with the optimizer's state, and so do the tensors that the objective
    remembers. Returns the checkpoint's folder.
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
        remembered = {OBJECTIVE + name: value for name, value in (tensors or {}).items()}
        paddle.save({**optim.state_by_name(net, optimizer), **trained, **remembered},
                    os.path.join(temporary, OPTIMIZER))
        complete = json.loads(json.dumps({"net": describe(net), **state}))
        digests = {name: files.sha256_of(os.path.join(temporary, name)) for name in (WEIGHTS, OPTIMIZER)}
        with open(os.path.join(temporary, STATE), "w") as file:
            json.dump({**complete, "sha256": {**digests, STATE: run_state.digest(complete)}}, file, indent=1)
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
    state = {name: value for name, value in found.optimizer.items()
             if not name.endswith(TRAINED) and not name.startswith(OBJECTIVE)}
    return trained or found.weights, state


def remembered(found: Checkpoint) -> dict:
    """The tensors that the objective of a checkpoint's stage remembers, by name."""
    return {name.removeprefix(OBJECTIVE): value for name, value in found.optimizer.items()
            if name.startswith(OBJECTIVE)}


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


def _fsync(path):
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe(net: nn.Layer) -> dict:
    """What is needed to build this net again, as plain data in the form that JSON gives back."""
    if isinstance(net, supernet.ResNet48):
        arch = net.arch
        what = {"kind": "standalone", "arch": arch.code, "stem": arch.stem, "stages": arch.stages}
        if arch.activation != "relu":  # which is all that earlier versions knew
            what["activation"] = arch.activation
    else:
        what = {"kind": "supernet", "space": net.space.to_dict()}
        if net.split:
            what["split"] = net.split.to_dict()
    return json.loads(json.dumps({**what, "num_classes": net.num_classes}))


# --- reading ----------------------------------------------------------------------------------------------------------

def load(path: str) -> Checkpoint:
    """Read a run's folder (its newest complete checkpoint), a checkpoint's folder, or a .pdparams file.

    Raises `CheckpointError` for a path that is missing, corrupt or not a checkpoint.
    """
    if _is_run(path):
        return _newest_of(path)
    return _read_folder(path) if os.path.isfile(os.path.join(path, STATE)) else _read_file(_weights_file(path))


def weights_digest(path: str) -> str:
    """SHA-256 of the weights of a checkpoint, named as for `load`, of which nothing but the checksums is looked at.

    Raises `CheckpointError` for a path that is missing, or is not what the checksums beside it say.
    """
    if _is_run(path):
        return files.sha256_of(_newest_of(path, run_state.check_folder)[1])
    if os.path.isfile(os.path.join(path, STATE)):
        return files.sha256_of(run_state.check_folder(path)[1])
    weights = _weights_file(path)
    run_state.beside(weights)
    return files.sha256_of(weights)


def _is_run(path):
    return os.path.isdir(os.path.join(path, "checkpoints"))


def _newest_of(run_folder, read=None):
    found = newest(run_folder, read=read)
    if found is None:
        raise CheckpointError(f"{run_folder} holds no complete checkpoint")
    return found


def _weights_file(path):
    weights = path if path.endswith(".pdparams") else path + ".pdparams"  # Paddle's own tools leave the ending out
    if not os.path.isfile(weights):
        raise CheckpointError(f"there is no checkpoint at {path}; expected is a run's folder, a "
                              "checkpoint's folder or a .pdparams file")
    return weights


def newest(run_folder: str, report: Callable[[str], None] = print, read: Callable | None = None) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None. Corrupt ones are reported by `report` and skipped.

    read: what reads a checkpoint's folder [weights and state].
    """
    for name in sorted(_folders(run_folder), reverse=True):
        try:
            return (read or _read_folder)(os.path.join(run_folder, "checkpoints", name))
        except CheckpointError as error:
            report(f"{error}; trying the one before")
    return None


def steps(run_folder: str) -> list[int]:
    """The steps of a run's checkpoints, complete or not, in order."""
    return sorted(int(name.removeprefix("step-")) for name in _folders(run_folder))


def _folders(run_folder):
    folder = os.path.join(run_folder, "checkpoints")
    return [name for name in os.listdir(folder) if re.fullmatch(r"step-\d{8,}", name)] if os.path.isdir(folder) else []


def read_all(folder: str) -> Checkpoint:
    """A checkpoint's folder with the optimizer's state, as a run needs it to resume. Raises `CheckpointError`."""
    found = _read_folder(folder)
    found.optimizer  # is read here, so that an unreadable one is passed over like any other corrupt checkpoint
    return found


def _read_folder(folder):
    state, weights_file, optimizer_file = run_state.check_folder(folder)
    return Checkpoint(folder, weights_file, optimizer_file, tensor_files.read(weights_file), state)


def _read_file(path):
    state = run_state.beside(path)
    weights = foreign_weights.canonical(tensor_files.read(path))
    if state is None:  # weights of another program
        try:
            net = foreign_weights.net_of(weights)
        except UserError as error:
            raise CheckpointError(f"{path} does not hold a ResNet48: {error}") from error
        if net is None:
            raise CheckpointError(f"{path} does not hold a ResNet48: it has no blocks.1 .. blocks.{HEAD}, but for "
                                  f"example {quoted(next(iter(weights), 'nothing'))}")
        state = {"net": net}
    return Checkpoint(path, path, None, weights, state)


# --- from a checkpoint to a net ---------------------------------------------------------------------------------------

def build(checkpoint: Checkpoint) -> supernet.Supernet | supernet.ResNet48:
    """The net that a checkpoint holds, with its weights."""
    try:
        what, classes = description.read(checkpoint.state.get("net"))
        split = description.read_split(checkpoint.state["net"])
    except UserError as error:
        raise CheckpointError(f"the state of the checkpoint {checkpoint.path} is not complete: {error}") from error
    # Before the net is made, so that what a few bytes claim to be of its size takes no memory.
    require_shapes(supernet.shapes(what, classes, split), checkpoint.weights, checkpoint.path)
    net = supernet.Supernet(what, classes, split) if isinstance(what, SearchSpace) else supernet.ResNet48(what, classes)
    load_weights(net, checkpoint.weights, checkpoint.path)
    return net


def build_supernet(found: Checkpoint) -> supernet.Supernet:
    """The supernet that a checkpoint holds. Raises `CheckpointError` if it is a standalone net."""
    net = build(found)
    if not isinstance(net, supernet.Supernet):
        raise CheckpointError(f"{found.path} holds the standalone net {net.arch.code}, not a supernet")
    return net


def activation(found: Checkpoint) -> str:
    """What the blocks of the net in a checkpoint end with. Of another program's weights only PReLU can be told."""
    net = found.state["net"]
    return net.get("space", net).get("activation", "relu")


def fits(net: nn.Layer, weights: dict[str, np.ndarray]) -> bool:
    """Whether names and shapes are exactly the net's."""
    return {name: list(value.shape) for name, value in net.state_dict().items()} == \
        {name: list(np.shape(value)) for name, value in weights.items()}


def load_weights(net: nn.Layer, weights: dict[str, np.ndarray], path: str) -> None:
    """Load every weight; raise `CheckpointError` unless names and shapes are exactly the net's and all are finite."""
    own = net.state_dict()
    require_shapes({name: tuple(value.shape) for name, value in own.items()}, weights, path)
    converted = {}
    for name, value in weights.items():
        with np.errstate(over="ignore"):  # a float64 beyond the range of float32 becomes infinite, and that is seen
            converted[name] = value.astype(str(own[name].dtype).removeprefix("paddle."))
        if not np.isfinite(converted[name]).all():
            raise CheckpointError(f"{path} is broken: {name} holds values that are not finite in "
                                  f"{converted[name].dtype}")
    # Paddle skips a weight of another precision with a warning.
    net.set_state_dict({name: paddle.to_tensor(value) for name, value in converted.items()})


def start_from(net: nn.Layer, weights: dict[str, np.ndarray], path: str) -> None:
    """`load_weights` into a net that may end its blocks with another activation: slopes of its own stay as they are.

    Raises `CheckpointError`, also for weights with slopes where the net has none.
    """
    slopes = {name: value.numpy() for name, value in net.state_dict().items() if name.endswith(SLOPE)}
    if not slopes and any(name.endswith(SLOPE) for name in weights):
        raise CheckpointError(f"{path} holds a net whose blocks end with PReLU: it needs --activation prelu")
    load_weights(net, {**slopes, **weights}, path)


def require_shapes(own, weights, path):
    """Raise `CheckpointError` unless `weights` are numbers with exactly these names and shapes: {name: tuple}."""
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise CheckpointError(f"{path} is for another net: {len(missing)} weights are missing "
                              f"({', '.join(missing[:3]) or 'none'}), {len(extra)} are not known "
                              f"({', '.join(map(quoted, extra[:3])) or 'none'})")
    for name, value in weights.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise CheckpointError(f"{path} is broken: {name} is not a tensor of floating-point numbers")
        if value.shape != own[name]:
            classes = f"; it was trained on {value.shape[-1]} classes, not on {own[name][-1]}" \
                if name.startswith(f"blocks.{HEAD}.fc") and value.shape[-1:] != own[name][-1:] else ""
            raise CheckpointError(f"{path} is for another net: {name} is {list(value.shape)}, "
                                  f"needed is {list(own[name])}{classes}")


def require_classes(net: nn.Layer, images: ImageSet, path: str) -> None:
    """Raise `CheckpointError` unless the net has one output per class of the images."""
    if net.num_classes != len(images.classes):
        raise CheckpointError(f"the checkpoint {path} is for {net.num_classes} classes, but {images.name} has "
                              f"{len(images.classes)}")
