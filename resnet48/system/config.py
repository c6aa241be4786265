"""Reading settings: dataclass defaults, then YAML files, then the command line. `options` declares them.

A flag, its YAML key and its field have one name, and one text means the same in both. Types and limits are checked in
one place for both, and an unknown name is an error that offers the nearest one.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from dataclasses import field

import yaml

from . import yaml_file
from .errors import LONGEST, UserError, quoted, shown

MAX_SEED = 2 ** 32 - 1  # what all generators take
HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RECIPES = os.path.join(HERE, "configs")
LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes of a path and of each of its parts, on all usual systems
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def option(default: object, help: str, ge: float | None = None, gt: float | None = None, le: float | None = None,
           choices: tuple = (), resumable: bool = False, old_names: tuple = (), old_words: dict | None = None,
           unset: str | None = None, path: bool = False, listable: bool = False):
    """A field of a class of settings. ge, gt, le: the limits of its value.

    resumable: whether a run may be resumed with another value. old_names, old_words: what the setting and its values
    were called before; flags, YAML files and checkpoints that say so mean the same. unset: the word, which the help
    then names, that takes an optional setting back to its default. path: whether the value is a path, where `~` at the
    beginning is a home folder; no word unsets a path. listable: whether a text of parts with commas between them may
    be a YAML list.
    """
    assert not (path and unset), "a word that unsets a path hides the file of that name"
    return field(default=default, metadata={
        "help": help, "ge": ge, "gt": gt, "le": le, "choices": choices, "resumable": resumable, "old_names": old_names,
        "old_words": old_words or {}, "unset": unset, "path": path, "listable": listable})


class Settings:
    """The base of all settings, which are dataclasses of fields made by `option`."""

    recipes = False  # whether a recipe, a YAML file of configs/, can be named

    @classmethod
    def upgrade(cls, values: dict) -> dict:
        """What an earlier version said in another form than under another name, in the form of today."""
        return values


def command_line(description: str, commands: dict, argv: list[str] | None = None) -> tuple:
    """Parse `argv` into (function, settings). commands: name -> (function, class of settings, default YAML or None).

    From weak to strong: the defaults, the YAML file of a recipe, that of --config, flags. `recipe: NAME` in a YAML file
    and `--recipe NAME` mean configs/NAME.yaml. Raises `UserError` for unknown names, wrong types and values out of
    range.
    """
    parser = _Parser(description=description, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", metavar="{" + ",".join(commands) + "}", parser_class=_Parser)
    for name, (function, config_class, default_file) in commands.items():
        summary = (function.__doc__ or "").strip().splitlines()[0]
        sub = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False, add_help=True)
        named = f" [{os.path.relpath(default_file, HERE)}]" if default_file else ""
        sub.add_argument("--config", metavar="FILE",
                         help=f"YAML file with any of these settings; flags win{named}")
        if config_class.recipes:
            sub.add_argument("--recipe", metavar="NAME", help="begin with the settings of configs/NAME.yaml, below "
                                                              "those of --config")
        for item in dataclasses.fields(config_class):
            _add_flag(sub, item)
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command is None:
        raise UserError(f"missing command: {', '.join(commands)} (--help explains)")
    function, config_class, default_file = commands[arguments.command]
    names = [item.name for item in dataclasses.fields(config_class)]
    directives = ["config", "help", *["recipe"] * config_class.recipes]
    for word in unknown:
        flag = word.split("=")[0]
        raise UserError(f"unknown flag {shown(flag)}" + _nearest(flag.lstrip("-"), names + directives, "--")
                        if word.startswith("-") else f"unexpected argument {quoted(word)}")
    flags = {name: value for name, value in vars(arguments).items() if name not in ("command", "config", "recipe")}
    recipe = getattr(arguments, "recipe", None)
    _require_path("config", arguments.config or "")
    path = arguments.config and os.path.expanduser(arguments.config) or (None if recipe else default_file)
    return function, build(config_class, _merged(config_class, _read_layers(path, recipe, config_class), flags))


def current(config_class: type, *layers: dict) -> dict:
    """Settings of one or more layers, weak to strong, under the names and words of today.

    A layer is what flags, a YAML file or a checkpoint say, maybe of an earlier version. Unknown names stay.
    """
    values, today = {}, _today(config_class)
    for layer in layers:
        values |= {today.get(name, name): value for name, value in layer.items()}
    values = config_class.upgrade(values)
    for item in dataclasses.fields(config_class):
        value = values.get(item.name)
        if isinstance(value, str) and value in item.metadata["old_words"]:
            values[item.name] = item.metadata["old_words"][value]
    return values


def from_mapping(config_class: type, values: dict, where: str, below: dict | None = None) -> "Settings":
    """Settings from a mapping inside a YAML file, read as a file of its own is, `recipe: NAME` included.

    where: names the mapping in errors. below: another one, of the same settings, that lies over the recipe and under
    `values`. Raises `UserError` as `command_line` does.
    """
    below = _known(below or {}, config_class, where)
    *recipes, own = _with_recipes([_known(values, config_class, where)], None, config_class)
    try:
        return build(config_class, _merged(config_class, [*recipes, below, own], {}))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def build(config_class: type, values: dict) -> "Settings":
    """Settings from a mapping, with every type and limit checked. Raises `UserError`."""
    hints = typing.get_type_hints(config_class)
    fields = {item.name: item for item in dataclasses.fields(config_class)}
    checked = {name: _check(name, value, hints[name], fields[name].metadata) for name, value in values.items()}
    for name, value in checked.items():
        if value == "" != fields[name].default:  # as from `--image_dir "$UNSET"`, which must not mean: without it
            raise UserError(f"--{name} is empty: {fields[name].metadata['help']}")
    return config_class(**checked)


def require(settings: Settings, *names: str) -> None:
    """Raise `UserError` unless each of the named settings has been given."""
    for name in names:
        if not getattr(settings, name):
            raise UserError(f"--{name} is needed: {settings.__dataclass_fields__[name].metadata['help']}")


def dump(settings: Settings) -> str:
    """The resolved settings as YAML text, which `--config` reads back."""
    return yaml.safe_dump(as_data(settings), sort_keys=False)


def as_data(settings: Settings) -> dict:
    """Settings as plain data, such as JSON and YAML hold."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def path_defaults(config_class: type) -> dict:
    """Name -> default of every setting that is a path."""
    return {item.name: item.default for item in dataclasses.fields(config_class) if item.metadata["path"]}


def without_paths(settings: Settings, keep: dict) -> Settings:
    """The same settings with every path at its default, but for those in `keep`: fit for another machine."""
    return dataclasses.replace(settings, **{**path_defaults(type(settings)), **keep})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        message = re.sub(f"('[^']{{{LONGEST}}})[^']*'", r"\1...'", message)
        raise UserError(message[:1].lower() + message[1:])


def _read_layers(path, recipe, config_class):
    """The YAML files that hold, weak to strong: that of --config, and below it the recipes that each begins with."""
    return _with_recipes([_read_yaml(path, config_class)] if path else [], recipe, config_class)


def _with_recipes(layers, recipe, config_class):
    own = layers[0].pop("recipe", None) if layers else None
    recipe, seen = recipe or own, set()
    known = sorted(name.removesuffix(".yaml") for name in os.listdir(RECIPES) if name.endswith(".yaml"))
    while recipe is not None:
        if recipe in seen or recipe not in known:
            raise UserError(f"--recipe takes the name of a file in configs/ ({', '.join(known)}), got "
                            f"{quoted(recipe)}")
        seen.add(recipe)
        layers.insert(0, _read_yaml(os.path.join(RECIPES, f"{recipe}.yaml"), config_class))
        recipe = layers[0].pop("recipe", None)
    return layers


def _merged(config_class, layers, flags):
    values = current(config_class, *layers, flags)
    stages = values.get("stages")
    if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages):
        # A flag holds for every stage, and a length that nothing says is the sum of theirs.
        values["stages"] = [{name: value for name, value in stage.items() if name not in flags} for stage in stages]
        if "max_epoch" not in values and all(stage.get("epochs") is not None for stage in stages):
            values["max_epoch"] = sum(stage.epochs for stage in build(config_class, {"stages": stages}).stages)
    return values


def _add_flag(parser, item):
    default = "" if item.default in (None, "", ()) or item.default is False else f" [{item.default}]"  # 0 is shown
    kwargs = {"dest": item.name, "default": argparse.SUPPRESS, "help": item.metadata["help"] + default}
    names = [f"--{name}" for name in (item.name, *item.metadata["old_names"])]
    if item.metadata["unset"]:
        kwargs["help"] += f" ({item.metadata['unset']}: as when left out)"
    if item.type in (bool, "bool"):
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, **kwargs)
    else:
        parser.add_argument(*names, metavar="X", **kwargs)
    if "--amp" in names:
        parser.add_argument("--amp_dtype", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _check(name, value, hint, limits):
    """`value` as the field's type: a text, as from flags and YAML files, or what Python and checkpoints hold."""
    if isinstance(value, str) and value == limits["unset"]:
        value = None
    if typing.get_origin(hint) is tuple:
        return _check_items(name, value, typing.get_args(hint)[0])
    optional = isinstance(hint, types.UnionType)
    kind = [part for part in typing.get_args(hint) if part is not type(None)][0] if optional else hint
    if optional and value is None:
        return None
    if kind is dict:
        if not isinstance(value, dict):
            raise UserError(f"--{name} is a mapping in a YAML file, got {quoted(value)}")
        return value
    try:
        value = _converted(value, kind, limits)
    except (ValueError, TypeError, OverflowError):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        found = "nothing" if value is None else quoted(value)
        raise UserError(f"--{name} takes {expected}, got {found}") from None
    if kind is float and not math.isfinite(value):
        raise UserError(f"--{name} takes a finite number, got {value}")
    if limits["ge"] is not None and value < limits["ge"]:
        raise UserError(f"--{name} must be {limits['ge']} or more, got {quoted(value)}")
    if limits["gt"] is not None and value <= limits["gt"]:
        raise UserError(f"--{name} must be more than {limits['gt']}, got {quoted(value)}")
    if limits["le"] is not None and value > limits["le"]:
        raise UserError(f"--{name} must be {limits['le']} or less, got {quoted(value)}")
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"--{name} takes {', '.join(limits['choices'])}; got {quoted(value)}")
    if limits["path"]:
        _require_path(name, value)
    return value


def _converted(value, kind, limits):
    """`value` as int, float, bool or str. Raises `ValueError`, `TypeError` or `OverflowError` for what is none."""
    if isinstance(value, (list, tuple)) and limits["listable"]:  # base_channels: [8, 16, 32, 64]
        value = ",".join(str(_converted(part, str, {**limits, "listable": False})) for part in value)
    if isinstance(value, (dict, list, tuple)) or value is None or isinstance(value, bool) and kind is not bool:
        raise ValueError
    if kind is bool:
        if isinstance(value, str) and value in BOOLEANS:
            return BOOLEANS[value]
        if not isinstance(value, bool):
            raise ValueError
        return value
    if kind is str:
        # JSON, which a YAML file may hold, writes a character beyond 16 bits as a pair of surrogates.
        value = str(value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return os.path.expanduser(value) if limits["path"] else value
    if isinstance(value, str) and ("_" in value or not value.isascii()):  # which Python reads as numbers, too
        raise ValueError
    return _whole(value) if kind is int else float(value)


def _whole(value):
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value) if "e" not in value.lower() else math.nan  # 16.0 is a whole number, too
    if value != int(value):
        raise ValueError
    return int(value)


def _require_path(name, value):
    """Refuse what no system takes for a path, before it is an exception of whatever uses it first."""
    try:
        parts = os.fsencode(value).split(b"/")
    except UnicodeEncodeError:
        raise UserError(f"--{name} takes a path, and {quoted(value)} holds half a character") from None
    if "\0" in value:
        raise UserError(f"--{name} takes a path, and {quoted(value)} holds a NUL character")
    if max(map(len, parts)) > LONGEST_NAME or sum(map(len, parts)) + len(parts) > LONGEST_PATH:
        raise UserError(f"--{name} takes a path of at most {LONGEST_PATH} bytes with parts of at most {LONGEST_NAME}; "
                        f"got one of {len(value)} characters, {quoted(value)}")


def _check_items(name, value, item_class):
    """A list of mappings, as a YAML file may hold, as a tuple of settings."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"--{name} is a list of mappings in a YAML file, got {quoted(value)}")
    if item_class is dict:
        return tuple(value)
    known = [item.name for item in dataclasses.fields(item_class)]
    for place, item in enumerate(value, 1):
        for key in item:
            if key not in known:
                raise UserError(f"{name}, item {place}: unknown key {quoted(key)}" + _nearest(str(key), known, ""))
    return tuple(build(item_class, item) for item in value)


def _read_yaml(path, config_class):
    return _known(yaml_file.read(path), config_class, f"config {shown(path)}")


def _known(content, config_class, where):
    """A mapping of settings with a copy of its own, after checking that each name is known and given once."""
    content = dict(content)
    names = [item.name for item in dataclasses.fields(config_class)] + ["recipe"] * config_class.recipes
    today, keys = _today(config_class), {}
    for key in content:
        if key not in names and key not in _old_names(config_class):
            raise UserError(f"{where}: unknown key {quoted(key)}" + _nearest(key, names, ""))
        other = keys.setdefault(today.get(key, key), key)
        if other != key:
            raise UserError(f"{where}: {other} and {key} are two names of one setting; give one of them")
    return content


def _today(config_class):
    """Today's name of each setting by what it was called before."""
    return {old: item.name for item in dataclasses.fields(config_class) for old in item.metadata["old_names"]}


def _old_names(config_class):
    old = list(_today(config_class))
    return [*old, "amp_dtype"] if "amp" in old else old


def _nearest(name, names, prefix):
    match = difflib.get_close_matches(name[:LONGEST], names, n=1, cutoff=0)
    return f"; the nearest is {prefix}{match[0]}" if match else ""
