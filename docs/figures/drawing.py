"""What the figures share: shapes and texts of an SVG file that can be read on white and on black, on a phone too.

A figure is 600 units wide and its texts are 15 units high: 20 pixels where a README is 830 wide, and 9 on a phone.
GitHub shows the files through <img>, where they can load nothing: the fonts are the reader's own, and the shapes leave
room for wide ones.
"""

import html
from collections.abc import Sequence
from string import Template

WIDTH = 600
#: Name in the style below -> the colour on (white, black).
COLOURS = {
    "paper": ("#ffffff", "#0d1117"), "ink": ("#1f2328", "#e6edf3"), "soft": ("#59636e", "#9aa4ae"),
    "rule": ("#c4ccd4", "#444c56"), "panel": ("#f3f5f8", "#1a2029"),
    "main": ("#1f66b0", "#6db1ff"), "main_pale": ("#d3e4f5", "#18395d"),
    "truth": ("#b4530a", "#ff9d57"), "truth_pale": ("#fbe6d6", "#4a2b10"),
}
STYLE = Template("""\
.paper { fill: $paper } text { fill: $ink } .soft { fill: $soft } .truth { fill: $truth }
.inverse { fill: $paper } .panel { fill: $panel; stroke: $rule } .sheet { fill: $paper; stroke: $soft }
.strong { fill: $main; stroke: $main } .pale { fill: $main_pale; stroke: $main } .mark { fill: $main_pale }
.single { fill: $truth_pale; stroke: $truth } .ghost { fill: none; stroke: $rule }
.absent { fill: none; stroke: $rule; stroke-dasharray: 2 2 }
.line { fill: none; stroke: $soft } .rule { fill: none; stroke: $rule } .truth_line { fill: none; stroke: $truth }
.line_head { fill: $soft } .truth_line_head { fill: $truth }
""")
FONTS = """\
text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
.code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.bold { font-weight: 600; }
.line, .truth_line, .single, .sheet { stroke-width: 1.5; }
"""


def document(title: str, description: str, height: int, content: Sequence[str]) -> str:
    """The text of an SVG file. title, description: for those who do not see it."""
    light, dark = (STYLE.substitute({name: pair[which] for name, pair in COLOURS.items()}) for which in (0, 1))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title desc">',
        f'<title id="title">{html.escape(title)}</title>', f'<desc id="desc">{html.escape(description)}</desc>',
        f"<style>\n{FONTS}{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n</style>",
        # A paper of its own, for a page may be dark where the system is light.
        box(0, 0, WIDTH, height, "paper"), *content, "</svg>\n"])


def text(x: float, y: float, words: object, kind: str = "", anchor: str = "middle") -> str:
    """One line of text, y being its base line. kind: classes of the style."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{html.escape(str(words))}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 6) -> str:
    """A rectangle. radius: of its corners."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>'


def line(*points: tuple[float, float], kind: str = "line") -> str:
    """A line through points (x, y)."""
    return f'<path d="M{"L".join(f"{x:g} {y:g}" for x, y in points)}" class="{kind}"/>'


def arrow(*points: tuple[float, float], kind: str = "line") -> str:
    """A line through points, the last part of which is level or upright, with a head at its end."""
    (x0, y0), (x, y) = points[-2:]
    ahead, across = (x > x0) - (x < x0), (y > y0) - (y < y0)
    back = (x - 8 * ahead, y - 8 * across)
    head = ((x, y), *((back[0] + 4.5 * side * across, back[1] + 4.5 * side * ahead) for side in (1, -1)))
    return line(*points[:-1], back, kind=kind) + line(*head, kind=f"{kind}_head")


def labelled(x: float, y: float, width: float, height: float, kind: str, *rows: tuple[str, str]) -> str:
    """A box with rows of (words, kind) in its middle."""
    first = y + height / 2 + 5 - 10 * (len(rows) - 1)
    return box(x, y, width, height, kind) + "".join(
        text(x + width / 2, first + 20 * place, words, look) for place, (words, look) in enumerate(rows))
