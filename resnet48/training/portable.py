"""A finished training in a form that may leave the machine: without paths of this one."""

import json
import os

from ..system import config
from ..system.errors import UserError, shown
from ..system.options import SupernetSettings, is_space_file
from . import checkpoint, run_state
from .checkpoint import Checkpoint
from .run_state import STATE

SPACE, PRETRAINED = "space.yaml", "pretrained"  # what the settings name, as members


def settings(found: Checkpoint, save_dir: str) -> tuple[SupernetSettings, int]:
    """(the settings that repeat the training behind a checkpoint, the number of its processes).

    They name `save_dir` and, where the training read them, the members of `members`; which folder of images it was is
    for whoever repeats it to say. Raises `UserError` for a checkpoint that does not say how it was trained.
    """
    values = _values(found)
    members = {"save_dir": save_dir, **_space(values.space),
               **({"pretrained": f"{PRETRAINED}.pdparams"} if values.pretrained else {}),
               **({"cache_dir": "cache"} if values.train_cache else {})}
    return config.without_paths(values, members), found.state.get("ranks", 1)


def image_source(found: Checkpoint) -> str | None:
    """The folder of the images that a checkpoint was trained on, if it was one; only its name."""
    folder = _values(found).image_dir
    return folder and os.path.basename(os.path.abspath(folder))


def members(found: Checkpoint, name: str) -> dict[str, bytes | str]:
    """What a training has read and written as members of an archive: weights and state as `name`.pdparams and
    `name`.json, the weights that it began with, the file of its space. Name -> content or path.

    Raises `UserError` where a file that the training has read is gone.
    """
    values, files = _values(found), _files(found, name)
    if values.pretrained:
        try:
            files |= _files(checkpoint.load(values.pretrained), PRETRAINED)
        except UserError as error:
            raise UserError(f"the training began with --pretrained, which cannot be read any more: {error}") from error
    if is_space_file(values.space):
        if not os.path.isfile(values.space):
            raise UserError(f"the training read its --space from {shown(values.space)}, which is not there any more")
        files[SPACE] = values.space
    return files


def _values(found):
    try:
        return config.build(SupernetSettings, config.current(SupernetSettings, found.state["settings"]))
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{shown(found.path)} does not say how it was trained, so nothing can repeat it") from error


def _files(found, name):
    files = {f"{name}.pdparams": found.weights_file}
    if "sha256" in found.state:  # else another program wrote it
        before = found.state.get("settings", {})
        paths = {**config.path_defaults(SupernetSettings), **_space(before.get("space", ""))}
        settings = {name: paths.get(name, value) for name, value in before.items()}
        state = {**found.state, "settings": settings}
        state["sha256"] = {**state["sha256"], STATE: run_state.digest(state)}
        files[f"{name}.json"] = json.dumps(state, indent=1).encode()
    return files


def _space(value):
    return {"space": SPACE if is_space_file(str(value)) else value}
