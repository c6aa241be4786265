"""What Python files import, read from their text: nothing is run."""

import ast
import functools
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TESTS = os.path.join(ROOT, "tests")
FRAMEWORK = {"paddle", "paddleslim"}


@functools.cache
def imported(path):
    """The full names of all modules that a file imports, in functions too; `from a import b` counts as a and a.b."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read(), path)
    package, names = os.path.relpath(path, ROOT).split(os.sep)[:-1], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names.update((module, *(f"{module}.{alias.name}" for alias in node.names)))
    return frozenset(names)


def own_files(name):
    """The files of the project that `import name` runs: those of its packages and its own."""
    parts, found = name.split("."), []
    for end in range(1, len(parts) + 1):
        for folder in (TESTS, ROOT, os.path.join(ROOT, "benchmarks"), os.path.join(ROOT, "docs", "figures")):
            stem = os.path.join(folder, *parts[:end])
            found += [path for path in (stem + ".py", os.path.join(stem, "__init__.py")) if os.path.isfile(path)]
    return found


def third_party(path):
    """The top names of what a file imports that is neither Python's nor the project's."""
    tops = {name.split(".")[0] for name in imported(path)}
    return {top for top in tops - sys.stdlib_module_names if not own_files(top)}


def reached(path):
    """The files of the project that a file imports, and those that they import, and so on; the file itself, too."""
    seen, todo = set(), [path]
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += [file for name in imported(path) for file in own_files(name)]
    return seen


@functools.cache
def touches_paddle(path):
    """Whether a file, or one of the project that it imports, and so on, imports Paddle."""
    return any(third_party(each) & FRAMEWORK for each in reached(path))
