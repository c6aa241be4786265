"""The rooms of the package, and which of them may import which."""

import ast
import glob
import os
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = os.path.join(ROOT, "resnet48")
#: What each room may import, besides itself.
MAY_IMPORT = {
    "system": set(),
    "space": {"system"},
    "images": {"system"},
    "nets": {"space", "system"},
    "training": {"nets", "images", "space", "system"},
    "evaluation": {"nets", "images", "space", "system"},
    "ranking": {"space", "system"},
    "study": {"ranking", "evaluation", "training", "nets", "images", "space", "system"},
}
WITHOUT_PADDLE = ("space", "ranking")
MODULES = sorted(os.path.relpath(path, ROOT)[:-3].replace(os.sep, ".")
                 for path in glob.glob(os.path.join(PACKAGE, "**", "*.py"), recursive=True))


def parsed(module):
    with open(os.path.join(ROOT, *module.split(".")) + ".py", encoding="utf-8") as file:
        return ast.parse(file.read())


def imported(module):
    """The full names that the import statements of a module ask for, those inside of functions too."""
    found, folder = set(), module.split(".")[:-1]
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = folder[:len(folder) - node.level + 1] if node.level else []
            source = ".".join([*start, *(node.module.split(".") if node.module else [])])
            found |= {f"{source}.{each.name}" for each in node.names}
    return found


def own_modules(module):
    """The modules of the package that a module imports."""
    return {each for name in imported(module) for each in (name, name.rpartition(".")[0]) if each in MODULES}


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else None


def modules_of(name):
    return [module for module in MODULES if room(module) == name and not module.endswith(".__init__")]


def test_every_module_is_in_a_room_or_at_the_entrance():
    assert {room(module) for module in MODULES} - {None} == MAY_IMPORT.keys()
    entrance = {module.split(".")[1] for module in MODULES if room(module) is None}
    assert entrance <= {"__init__", "__main__"}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_one_way(name):
    allowed = {name} | MAY_IMPORT[name]
    wrong = {f"{module} imports {other}" for module in modules_of(name) for other in own_modules(module)
             if room(other) not in allowed}
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: own_modules(module) for module in MODULES}
    finished = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module not in finished:
            for other in sorted(graph[module]):
                visit(other, [*path, module])
            finished.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_begins_with_a_docstring_alone_which_names_every_module(name):
    (statement,) = parsed(f"resnet48.{name}.__init__").body  # the docstring is all there is
    text = ast.literal_eval(statement.value)
    assert isinstance(text, str)
    untold = {module.split(".")[2] for module in modules_of(name)} - {each for each in text.split("`")}
    assert not untold


@pytest.mark.parametrize("name", WITHOUT_PADDLE)
def test_a_room_without_paddle_does_not_import_it_by_any_way(name):
    program = f"import sys, {', '.join(modules_of(name))}; sys.exit('paddle' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    for module in modules_of(name):
        assert not {each for each in imported(module) if each.split(".")[0] == "paddle"}
