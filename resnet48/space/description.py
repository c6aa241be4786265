"""The description of a net that a checkpoint and a manifest hold, as `checkpoint.describe` writes it."""

from ..system.errors import UserError, quoted
from .arch import STEM_DIGIT, ArchConfig, SearchSpace, digits_of
from .checks import CAPACITY, MAX_WIDTH, check_activation, check_classes, is_tuple, is_whole
from .split import Split


def read(data: object) -> tuple[SearchSpace | ArchConfig, int]:
    """(what the net is of, number of classes): a space for a supernet, an arch for a standalone net.

    data: as JSON gives it, from a file that is not trusted. Raises `UserError` saying which part is not of the form.
    """
    if not isinstance(data, dict):
        raise UserError(f"the description of a net is an object with kind and num_classes, got {quoted(data)}")
    for name in ("kind", "num_classes"):
        if name not in data:
            raise UserError(f"the description of the net is not complete: {name!r} is missing")
    if data["kind"] not in ("supernet", "standalone"):
        raise UserError(f"the kind of a net is supernet or standalone, got {quoted(data['kind'])}")
    classes = check_classes(data["num_classes"])
    read_split(data)
    return _read_space(data) if data["kind"] == "supernet" else _read_arch(data), classes


def read_split(data: dict) -> Split | None:
    """How the supernet that is described is split; None if it is not. Raises `UserError` as `read` does."""
    return Split.from_dict(data["split"]) if "split" in data else None


def _read_space(data):
    if "space" not in data:
        raise UserError("the description of the supernet is not complete: 'space' is missing")
    return SearchSpace.from_dict(data["space"])


def _read_arch(data):
    for name in ("arch", "stem", "stages"):
        if name not in data:
            raise UserError(f"the description of the net is not complete: {name!r} is missing")
    if not isinstance(data["arch"], str) or len(data["arch"]) > 60:
        raise UserError(f"an arch code is a text of 51 digits, got {quoted(data['arch'])}")
    code, stem, stages = digits_of(data["arch"]), data["stem"], _as_tuples(data["stages"])
    if not is_whole(stem, 1, MAX_WIDTH):
        raise UserError(f"the stem of a net has 1 to {MAX_WIDTH} channels, got {quoted(stem)}")
    if not is_tuple(stages, 4) or not all(
            is_tuple(stage) and 1 <= len(stage) <= most and all(
                is_tuple(pair, 2) and all(is_whole(width, 1, MAX_WIDTH) for width in pair) for pair in stage)
            for stage, most in zip(stages, CAPACITY)):
        raise UserError(f"stages takes the two widths of each block, 1 to {MAX_WIDTH}, of four stages of 1 to "
                        f"{', '.join(map(str, CAPACITY))} blocks; got {quoted(stages)}")
    depths = tuple(map(len, stages))
    if code[:STEM_DIGIT] != "".join(map(str, depths)):
        raise UserError(f"the arch {code} begins with its depths, but its stages have {quoted(depths)} blocks")
    return ArchConfig(code, depths, stem, stages, check_activation(data.get("activation", "relu")))


def _as_tuples(stages):
    if not isinstance(stages, list) or len(stages) != 4 or not all(isinstance(stage, list) for stage in stages):
        return stages
    return tuple(tuple(tuple(pair) if isinstance(pair, list) else pair for pair in stage) for stage in stages)
