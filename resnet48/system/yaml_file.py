"""Reading a YAML file as flags are read: every value is the text that stands there.

YAML 1.1 makes 8 of `010`, 90 of `1:30`, 1.1 of `1.10` and a date of `2022-01-01`. Here nothing is made of a text but
what `config` makes of the same text behind a flag; only a plain `null`, `~` or nothing means that a setting is unset.
"""

import yaml

from .errors import UserError, quoted, shown

DEEPEST = 10  # levels of lists and mappings in one another; settings have three, and PyYAML's time is quadratic in them
LONGEST = 100_000  # characters of a file; PyYAML reads some 100,000 a second
NOTHING = ("", "~", "null", "Null", "NULL")


def read(path: str) -> dict:
    """The mapping in a YAML file: texts, None, lists and mappings by text. An empty file is an empty mapping.

    Raises `UserError` for a file that cannot be read, is not YAML or not a mapping, for a key that occurs twice, and
    for what settings have no use for: anchors and aliases, tags, several documents.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # a byte order mark, as some editors write, is no text
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise UserError(f"config {shown(path)} is longer than {LONGEST:,} characters, so it is not a file of "
                            "settings")
        _require_plain(path, text)
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        content = {} if root is None or _is_nothing(root) else _content(path, root)
    except OSError as error:
        raise UserError(f"cannot read the config {shown(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"config {shown(path)} is not YAML: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise UserError(f"config {shown(path)} is not YAML: {_reason(error)}") from error
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else "text"
        raise UserError(f"config {shown(path)} must hold `name: value` lines, found {found}")
    return content


def _require_plain(path, text):
    """Refuse what only some readers of YAML take to mean the same, before anything is made of it."""
    documents = depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        where = f"config {shown(path)}, line {event.start_mark.line + 1}"
        if depth > DEEPEST:
            raise UserError(f"{where}: lists and mappings are nested more than {DEEPEST} deep")
        if documents > 1:
            raise UserError(f"{where}: a second document begins; a file of settings holds one")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise UserError(f"{where}: anchors and aliases (& and *) are not read; write the value where it belongs, "
                            "in quotation marks if it begins with such a sign")
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{where}: tags such as {quoted(event.tag)} are not read; write the value alone, in "
                            "quotation marks if it begins with !")


def _content(path, node):
    if isinstance(node, yaml.ScalarNode):
        return None if _is_nothing(node) else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_content(path, each) for each in node.value]
    content, lines = {}, {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"config {shown(path)}, line {line}: a key must be a name")
        if key.value in content:
            raise UserError(f"config {shown(path)}, line {line}: the key {quoted(key.value)} occurs twice, first in "
                            f"line {lines[key.value]}")
        content[key.value], lines[key.value] = _content(path, value), line
    return content


def _is_nothing(node):
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NOTHING


def _reason(error):
    """What PyYAML says, without the part of the file that it repeats."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{quoted(error.problem)[1:-1]} in line {mark.line + 1}, column {mark.column + 1}"
    return quoted(" ".join(str(error).split()))[1:-1]
