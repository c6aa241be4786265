"""Where a run resumes, what must not have changed until then, and whether it was finished."""

import dataclasses
import json
import os
from collections.abc import Callable

import paddle

from ..space import description, space_file
from ..space.arch import SearchSpace
from ..space.split import Split
from ..system import config, runtime
from ..system.errors import UserError, quoted, shown
from ..system.options import SupernetSettings, TrainSettings, is_space_file
from . import checkpoint, recipes

#: What the checkpoint notes of a run and a resume must find again: its name in state.json, and how to call it.
UNCHANGED = {"ranks": "processes", "classes": "classes", "images": "training images",
             "names": "names of the training images"}

#: What state.json must hold for a run to resume.
NEEDED = ("step", "best", "best_step", "accuracies", "settings", "net")


def find(net: paddle.nn.Layer, facts: dict, settings: TrainSettings,
         split: Split | None = None) -> checkpoint.Checkpoint | None:
    """The checkpoint that a run resumes from, or None for one that begins.

    1. `--resume PATH`: that checkpoint, or an error.
    2. `--resume auto`: the newest complete checkpoint in --save_dir, if there is one.
    3. otherwise `--pretrained`, which the script has loaded into the net already;
    4. otherwise the initial weights.

    facts: of the run as it is now, with the keys of UNCHANGED. split: of the net in a later stage of the run. Raises
    `UserError` for a checkpoint that this run cannot resume exactly.
    """
    found = _checkpoint(settings)
    if found:
        _require_optimizer(found)
        _require_unchanged(found, facts)
        _require_same_net(found, net, split)
        _require_same_settings(found, settings)
        _require_own_folder(found, settings)
    return found


def sampled_space(settings: SupernetSettings) -> SearchSpace:
    """The space whose subnets a supernet's training samples: of `--space`, over the widths that the settings give.

    Where `--space` is a file that is gone, and the training resumes, it is the space that the checkpoint carries.
    Raises `UserError` as `space_file.of` does.
    """
    if is_space_file(settings.space) and not os.path.lexists(settings.space):
        found = _checkpoint(settings)
        if found and is_space_file(str(found.state.get("settings", {}).get("space"))):
            what, _ = description.read(found.state.get("net"))
            if isinstance(what, SearchSpace):
                runtime.log_main(f"note: there is no file {settings.space}; the space is that of {found.path}")
                return space_file.narrowed(what, settings)
    return space_file.of(settings)


def unfinished(state: dict) -> str | None:
    """How far the training behind a checkpoint was, such as "step 12 of 12000", or None if it was finished.

    state: of the checkpoint. None too for weights of other programs, of which nobody knows.
    """
    try:
        step, steps = state["step"], state["steps"] if "steps" in state else _steps(state)
        return None if state.get("finished", step >= steps) else f"step {step} of {steps}"
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _steps(state):
    """The steps of a run whose checkpoint, of an earlier version, does not say."""
    settings = state["settings"]
    return settings["max_epoch"] * (state["images"] // (settings["batch_size"] * state["ranks"]))


def require_length(found: checkpoint.Checkpoint, steps: int, settings: TrainSettings) -> None:
    """Raise `UserError` for a run of so many steps that ends before the checkpoint was written."""
    if found.state["step"] > steps:
        raise UserError(f"{_named(found)}: --max_epoch {settings.max_epoch} ends at step {steps}, and this "
                        f"has been trained to step {found.state['step']}; a larger --max_epoch resumes it, another "
                        "--save_dir starts a shorter run")


def change_of_length(found: checkpoint.Checkpoint, settings: TrainSettings,
                     span_with: Callable[[TrainSettings], recipes.Span]) -> str | None:
    """One line for the log where a run goes on with another --max_epoch than it began with; None where it does not.

    span_with(settings): the stage that the step of the checkpoint belongs to. The learning rate depends on how long
    the run is, so it jumps.
    """
    step, before = found.state["step"], config.current(type(settings), found.state["settings"]).get("max_epoch")
    if before in (None, settings.max_epoch):
        return None
    then, now = span_with(dataclasses.replace(settings, max_epoch=before)), span_with(settings)
    moved = f" and the stage {now.index + 1} instead of {then.index + 1}" if then.index != now.index else ""
    if settings.schedule == "step" and not moved:  # falls after so many epochs, however long the run is
        return None
    return (f"note: --max_epoch was {before} and is now {settings.max_epoch}, so the schedule is another one: at step "
            f"{step} the learning rate is {now.lr(step):.4g} where it would have been {then.lr(step):.4g}{moved}; what "
            f"comes out is not what {settings.max_epoch} epochs from the beginning give")


def _checkpoint(settings):
    holds_a_run = bool(checkpoint.steps(settings.save_dir))
    if settings.resume == "none":
        if holds_a_run:
            raise UserError(f"{shown(settings.save_dir)} holds the checkpoints of a run: --resume auto resumes it, "
                            "another --save_dir starts a new run")
        return None
    if settings.resume != "auto":
        return checkpoint.load(settings.resume)
    found = checkpoint.newest(settings.save_dir, runtime.log_main, checkpoint.read_all)
    if found is None and holds_a_run:  # starting a new run here would hide that something is wrong
        raise UserError(f"none of the checkpoints in {shown(settings.save_dir)} can be read; another --save_dir starts "
                        "a new run")
    if found is None:
        runtime.log_main(f"nothing to resume in {settings.save_dir}: starting from the beginning")
    return found


def _require_optimizer(found):
    missing = [name for name in NEEDED if name not in found.state]
    if "step" not in missing and missing and found.optimizer:
        raise checkpoint.CheckpointError(f"--resume {found.path}: its state lacks {', '.join(missing)}")
    if "step" not in found.state or not found.optimizer:
        raise UserError(f"{_named(found)}: this holds weights only; --pretrained starts from them")


def _require_unchanged(found, facts):
    for name, what in UNCHANGED.items():
        was, now = found.state.get(name, facts[name]), facts[name]  # older runs did not note the names
        if was != now:
            if name == "classes":  # of maybe a thousand
                was, now = sorted(set(was) - set(now))[:3], sorted(set(now) - set(was))[:3]
            raise UserError(f"{_named(found)}: the {what} have changed ({quoted(was)} then, {quoted(now)} now), so the "
                            "run cannot resume exactly")


def _require_same_net(found, net, split):
    was, now = found.state["net"], checkpoint.describe(net)
    later = {**now, "split": json.loads(json.dumps(split.to_dict()))} if split else now
    if was not in (now, later):
        before, after = was | was.get("space", {}), later | later.get("space", {})
        changed = [f"{name} {quoted(before[name])} then, {quoted(value)} now" for name, value in after.items()
                   if name != "space" and name in before and before[name] != value]
        raise UserError(f"{_named(found)}: this is a checkpoint of another net: {_shown(was)}; the settings ask for "
                        f"{_shown(later)} ({'; '.join(changed)})")


def _require_same_settings(found, settings):
    before, now = config.current(type(settings), found.state["settings"]), config.as_data(settings)
    resumable = sorted(item.name for item in dataclasses.fields(settings) if item.metadata["resumable"])
    for name, value in now.items():
        if name == "space" and all(map(is_space_file, map(str, (value, before.get(name))))):
            continue  # what the files say is compared with the net
        if name not in resumable and name in before and before[name] != value:
            others = ", ".join(name for name in resumable if name in before)
            raise UserError(f"{_named(found)}: --{name} was {shown(str(before[name]))} and is now "
                            f"{shown(str(value))}; a run can be resumed with other {others} only")


def _require_own_folder(found, settings):
    inside = os.path.realpath(found.path).startswith(os.path.join(os.path.realpath(settings.save_dir), ""))
    if not inside and checkpoint.newest(settings.save_dir, runtime.log_main):
        raise UserError(f"{_named(found)} lies outside --save_dir {shown(settings.save_dir)}, which holds "
                        "checkpoints of its own: --resume auto resumes from those, another --save_dir resumes from "
                        "that one")


def _named(found):
    return f"--resume {shown(found.path)}"


def _shown(net):
    what = net.get("arch") or ",".join(map(str, net["space"]["base_channels"])) + " wide"
    activation, split = net.get("space", net).get("activation", "relu"), net.get("split")
    return (f"{net['kind']} {what}, {net['num_classes']} classes, {activation}"
            + (f", split by {Split.from_dict(split)}" if split else ""))
