"""A space from a YAML file, for `--space FILE.yaml`: what the published one and the full one leave fixed is data here.

    base_channels: 8,16,32,64                        # widths of stages 1..4 at ratio 1; the stem takes the first
    divisor: 1                                       # widths are rounded to a multiple of it
    ratios: [1, .85, .7, .55, .45, .35, .25]         # what the digits 1, 2, ... mean, falling
    depths: [[2, 5], [2, 5], [2, 8], [2, 5]]         # fewest and most blocks of each stage
    codes: ["1234567", "123", "123", "123", "123"]   # digits that the stem and stages 1..4 allow

What a file leaves out is as in the full space; all digits that have a ratio are allowed.
"""

import difflib
import math

from ..system import yaml_file
from ..system.errors import UserError, quoted, shown
from ..system.options import SpaceSettings, is_space_file
from .arch import FULL, SearchSpace, named_space

NAME = "custom"  # of a space whose file does not say


def find(text: str) -> SearchSpace:
    """The space that `--space` means: a name, or the path of a .yaml file. Raises `UserError`."""
    return read(text) if is_space_file(text) else named_space(text)


def of(settings: SpaceSettings) -> SearchSpace:
    """The space of `settings.space` as `narrowed` by the settings."""
    return narrowed(find(settings.space), settings)


def narrowed(space: SearchSpace, settings: SpaceSettings) -> SearchSpace:
    """A space with the activation of the settings, and the base widths and the divisor that they give, if any."""
    return space.narrowed(settings.channels() or space.base_channels, settings.divisor or space.divisor,
                          settings.activation)


def read(path: str) -> SearchSpace:
    """The space in the YAML file at `path`.

    Raises `UserError` for a file that cannot be read, an unknown key, and a value of another type or out of range.
    """
    content = yaml_file.read(path)
    for name in content:
        if name not in READERS:
            nearest = difflib.get_close_matches(str(name), READERS, n=1, cutoff=0)[0]
            raise UserError(f"space file {shown(path)}: unknown key {quoted(name)}; the nearest is {nearest}")
    try:
        given = {name: READERS[name](name, value) for name, value in content.items() if value is not None}
        digits = "123456789"[:len(given.get("ratios", FULL.ratios))]
        return SearchSpace(**{"name": NAME, "codes": (digits,) * 5, **given})
    except UserError as error:
        raise UserError(f"space file {shown(path)}: {error}") from None


def _text(name, value):
    if not isinstance(value, str):
        raise UserError(f"{name} takes text, got {quoted(value)}")
    return value


def _whole(name, value):
    if not isinstance(value, str) or not (value.isascii() and value.isdigit() and len(value) < 10):
        raise UserError(f"{name} takes whole numbers, got {quoted(value)}")
    return int(value)


def _number(name, value):
    try:
        if isinstance(value, str) and value.isascii() and "_" not in value and math.isfinite(float(value)):
            return float(value)
    except ValueError:
        pass
    raise UserError(f"{name} takes numbers, got {quoted(value)}")


def _list_of(read_item):
    """A reader of lists of this kind; of a text, what stands between its commas."""
    def read_list(name, value):
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list):
            raise UserError(f"{name} takes a list, got {quoted(value)}")
        return tuple(read_item(name, item.strip() if isinstance(item, str) else item) for item in items)

    return read_list


#: Key of a file -> reader(key, value as `yaml_file` gives it), which raises `UserError`.
READERS = {"name": _text, "base_channels": _list_of(_whole), "divisor": _whole, "ratios": _list_of(_number),
           "depths": _list_of(_list_of(_whole)), "codes": _list_of(_text)}
