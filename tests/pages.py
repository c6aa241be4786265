"""The pages of documentation, taken apart: fenced blocks, commands, links, headings. For tests of them."""

import glob
import os
import re
import shlex

from conftest import ROOT

PLACEHOLDERS = {"FILE.yaml": "docs/study/digits.yaml", "N": "1"}  # in commands that a sentence names

PAGES = {os.path.relpath(path, ROOT): path for path in (
    *glob.glob(os.path.join(ROOT, "README*.md")), *glob.glob(os.path.join(ROOT, "docs", "*.md")))}


def text(page: str) -> str:
    """A page by its relative path, such as docs/study.md."""
    with open(PAGES[page], encoding="utf-8") as file:
        return file.read()


def blocks(page: str, language: str, mark: str = "") -> list[str]:
    """The fenced blocks of a language, in order; with a mark, those right below the comment <!-- mark -->."""
    found = re.findall(r"^(?:<!-- (\w+) -->\n)?```(\w*)\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE)
    return [content for its_mark, its_language, content in found if its_language == language and mark in ("", its_mark)]


def inline(page: str) -> list[str]:
    """What stands between backquotes in the sentences and tables of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE))


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    return re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text(page), re.DOTALL | re.MULTILINE)[2]


def links(page: str) -> list[str]:
    """The targets of all links and pictures."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text(page), flags=re.DOTALL | re.MULTILINE)
    named = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", prose, re.MULTILINE))
    direct = re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)
    return direct + [named[name] for name in re.findall(r"\]\[([^\]]+)\]", prose)]


def anchors(page: str) -> set[str]:
    """What a link to a heading of the page may say behind its #, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE),
                          re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(script: str, variables: dict | None = None) -> list[list[str]]:
    """The commands of a shell script as words, without assignments before them, redirections and comments.

    variables: those that are set; assignments of the script are added.
    """
    found, variables = [], {} if variables is None else variables
    for line in script.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = [word for word in shlex.split(line, comments=True) if word != "&"]
        if ">" in words:
            words = words[:words.index(">")]
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        if words and words[0] != "export":
            found.append(words)
    return found


def all_commands(page: str) -> list[list[str]]:
    """All commands of a page: those of its shell blocks, and those that its sentences name as a whole."""
    variables, found = {}, []
    for block in blocks(page, "sh"):
        if not block.startswith("#!"):  # a script of its own
            found += commands(block, variables)
    for each in inline(page):
        if re.match(r"([A-Z_]+=\S+ )*(python3|sh|pip|srun) ", each):
            found += [[PLACEHOLDERS.get(word, word) for word in words] for words in commands(each)]
    return found
