"""state.json of a checkpoint, read from a file that is not trusted: what the net is, and where the run stood."""

import hashlib
import json
import os

from ..space import description
from ..space.checks import check_image_size, is_whole
from ..system import files
from ..system.errors import UserError, quoted
from ..system.options import AUGMENTS, DATASETS
from .tensor_files import CheckpointError

WEIGHTS, OPTIMIZER, STATE = "net.pdparams", "net.pdopt", "state.json"
MOST = 2 ** 53  # of steps, images and processes; what every JSON reader can count to


def digest(state: dict) -> str:
    """SHA-256 of the content of state.json, without the checksums themselves."""
    content = {name: value for name, value in state.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read(path: str, checkpoint: str) -> dict:
    """The state at `path`, after comparing its own checksum and checking the type of all that is used.

    checkpoint: what the errors name. Raises `CheckpointError` for a state that is missing, corrupt or of another form.
    """
    if not os.path.isfile(path):  # a pipe would block
        raise CheckpointError(f"the checkpoint {checkpoint} is corrupt: cannot read the state of the checkpoint "
                              f"{path}: it is not a file")
    try:
        state = files.read_json(path, "the state of the checkpoint")
        sums = state.get("sha256") if isinstance(state, dict) else None
        if not isinstance(sums, dict) or sums.get(STATE, digest(state)) != digest(state):
            raise UserError(f"{path} is not what was written")
        check(state)
    except (UserError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {checkpoint} is corrupt: {error}") from error
    return state


def check_folder(folder: str) -> tuple[dict, str, str]:
    """(state, path of the weights, path of the optimizer's state) of a checkpoint's folder, whose checksums are right.

    Nothing but the state is read. Raises `CheckpointError`.
    """
    state = read(os.path.join(folder, STATE), folder)
    paths = [os.path.join(folder, name) for name in (WEIGHTS, OPTIMIZER)]
    for name, path in zip((WEIGHTS, OPTIMIZER), paths):
        if not os.path.isfile(path) or files.sha256_of(path) != state["sha256"].get(name):
            raise CheckpointError(f"the checkpoint {folder} is corrupt: {name} is not what was written")
    return state, *paths


def beside(path: str) -> dict | None:
    """The state that lies beside a file of weights, whose checksum is right; None if there is none of ours.

    The weights are not read. Raises `CheckpointError`.
    """
    place = os.path.join(os.path.dirname(path), STATE) if os.path.basename(path) == WEIGHTS \
        else path[:-len(".pdparams")] + ".json"
    if not os.path.isfile(place):
        return None
    state = files.read_json(place, "the state of the checkpoint")
    if not isinstance(state, dict) or "net" not in state:  # whatever it is, it is not ours
        return None
    if "sha256" in state and read(place, path)["sha256"].get(WEIGHTS) != files.sha256_of(path):
        raise CheckpointError(f"the checkpoint {path} is corrupt: it is not what {place} describes")
    try:
        check(state)
    except UserError as error:
        raise CheckpointError(f"the checkpoint {path} is corrupt: {place}: {error}") from error
    return state


def check(state: dict) -> None:
    """Raise `UserError` for a part that is of another form than what training writes; parts may be missing."""
    if "net" in state:
        description.read(state["net"])
    for name, (is_right, form) in FORMS.items():
        if name in state and not is_right(state[name]):
            raise UserError(f"{name!r} in the state must be {form}, found {quoted(state[name])}")
    settings = state.get("settings", {})
    if settings.get("image_size") is not None:
        check_image_size(settings["image_size"])
    for name, known in (("dataset", DATASETS), ("augment", AUGMENTS)):
        if settings.get(name) not in (None, *known):
            raise UserError(f"{name!r} in the settings must be one of {', '.join(known)}, found "
                            f"{quoted(settings[name])}")
    if settings.get("train_images") is not None and not is_whole(settings["train_images"], 1, MOST):
        raise UserError(f"'train_images' in the settings must be a number, found {quoted(settings['train_images'])}")


def _is_count(value):
    return is_whole(value, 0, MOST)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST  # so no NaN either


def _is_object(value):
    return isinstance(value, dict)


def _is_text(value):
    return isinstance(value, str)


def _or_null(is_right):
    return lambda value: value is None or is_right(value)


#: Name -> (whether a value is of the form, the form in words).
FORMS = {
    "step": (_is_count, "a number of steps"),
    "best": (_or_null(_is_number), "a number or null"),
    "best_step": (_or_null(_is_count), "a number of steps or null"),
    "accuracies": (lambda value: _is_object(value) and all(map(_is_number, value.values())), "an object of numbers"),
    "ranks": (_is_count, "a number of processes"),
    "images": (_is_count, "a number of images"),
    "names": (_or_null(_is_text), "text"),
    "classes": (lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of names"),
    "settings": (lambda value: _is_object(value) and _or_null(_is_text)(value.get("recipe")), "an object of settings"),
    "paddle": (_is_text, "text"),
    "scaler": (_or_null(_is_object), "an object or null"),
    "stage": (_is_count, "the number of a stage"),
    "objective": (_is_object, "an object"),
    "sampler": (_is_object, "an object"),
}
