"""Pictures as inline SVG, which follow the colours of the page around them. No Paddle in here.

Each has a title and a description for those who do not see it. They are 400 units wide, so that their text can be read
on a phone; classes, not attributes, give colours (see page.css). Texts are escaped here.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..system.errors import printable
from .intervals import Interval

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 42  # around the axes
POINTS_PER_LINE = 200  # of a curve; more are averaged
NAMED = 1000  # up to so many points, each says what it is
LEVELS = 4  # of density, where there are more
STYLES = 6  # of curves


class Curve(NamedTuple):
    """x, y: float64 [n]; NaNs in y are left out."""

    name: str
    x: np.ndarray
    y: np.ndarray


def text(value: object) -> str:
    """Any value as text of HTML or of an attribute, on one line."""
    return html.escape(printable(str(value)))


def lines(key: str, title: str, description: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> str:
    """Curves over one x. key: of the picture on its page, as `macs`."""
    curves = [_thinned(curve) for curve in curves]
    axes = Axes(_extent(*(curve.x for curve in curves)), _extent(*(curve.y for curve in curves)))
    paths = [f'<path class="curve s{place % STYLES}" d="{axes.path(curve.x, curve.y)}"/>' if len(curve.x) > 1 else
             axes.circle(f"point s{place % STYLES}", curve.x[0], curve.y[0], 3, curve.name)
             for place, curve in enumerate(curves) if len(curve.x)]
    return _picture(key, title, description, axes.grid(x_label, y_label) + "".join(paths))


def scatter(key: str, title: str, description: str, x_label: str, y_label: str, x: np.ndarray, y: np.ndarray,
            names: Sequence[str], front: Sequence[int] = (), ranks: bool = False) -> str:
    """Points [n] with what each is. front: the places of those on the Pareto front, by ascending x. ranks: whether both
    are ranks, where 1 is best: better is up and to the right, as elsewhere, and the diagonal is drawn.
    """
    axes = Axes(_extent(x), _extent(y), flipped=ranks)
    parts = [axes.grid(x_label, y_label)]
    if ranks:
        parts.append(f'<path class="diagonal" d="{axes.path(*[[min(axes.x_range), max(axes.x_range)]] * 2)}"/>')
    if len(x) <= NAMED:
        rest = sorted(set(range(len(x))) - set(front))
        parts += [axes.circle("point", x[place], y[place], 3, names[place]) for place in rest]
    else:
        parts += axes.density(x, y)
    if len(front):
        places = list(front)
        parts.append(f'<path class="front" d="{axes.steps(x[places], y[places])}"/>')
        parts += [axes.circle("point best", x[place], y[place], 4, names[place]) for place in places]
    return _picture(key, title, description, "".join(parts))


def intervals(key: str, title: str, description: str, label: str, rows: Sequence[tuple[str, Interval | None]]) -> str:
    """A figure with its interval for each row; the first row stands out. None: the row has no such figure."""
    row_height, height = 26, TOP + 26 * len(rows) + BOTTOM
    found = [interval for _, interval in rows if interval]
    axes = Axes(_extent(np.array([0.0, *(value for interval in found for value in interval)])), (0, 1), 108, height)
    parts = [axes.grid(label, "", y_ticks=False)]
    if axes.x_range[0] < 0 < axes.x_range[1]:
        parts.append(f'<path class="zero" d="M{axes.x(0):.1f} {TOP}V{height - BOTTOM}"/>')
    for place, (name, interval) in enumerate(rows):
        y, kind = TOP + row_height * (place + 0.5), "first" if place == 0 else "other"
        parts.append(f'<text class="row {kind}" x="100" y="{y + 4:g}" text-anchor="end">{text(name)}</text>')
        if interval:
            low, value, high = axes.x(interval.low), axes.x(interval.value), axes.x(interval.high)
            parts.append(f'<g class="{kind}"><title>{text(name)}: {interval.value:.4f} [{interval.low:.4f}, '
                         f'{interval.high:.4f}]</title><path class="whisker" d="M{low:.1f} {y:g}H{high:.1f}"/>'
                         f'<circle cx="{value:.1f}" cy="{y:g}" r="5"/></g>')
    return _picture(key, title, description, "".join(parts), height)


class Axes:
    """From values to units of the picture.

    x_range, y_range: (least, most). flipped: the least is right and up. left: where the x axis begins.
    """

    def __init__(self, x_range, y_range, left=LEFT, height=HEIGHT, flipped=False):
        self.x_range, self.y_range = (x_range[::-1], y_range[::-1]) if flipped else (x_range, y_range)
        self.left, self.bottom = left, height - BOTTOM

    def x(self, value):
        first, last = self.x_range
        return self.left + (value - first) / (last - first) * (WIDTH - RIGHT - self.left)

    def y(self, value):
        first, last = self.y_range
        return self.bottom - (value - first) / (last - first) * (self.bottom - TOP)

    def grid(self, x_label, y_label, y_ticks=True):
        parts = []
        for value, shown in _ticks(*sorted(self.x_range)):
            parts.append(f'<path class="grid" d="M{self.x(value):.1f} {TOP}V{self.bottom}"/>'
                         f'<text x="{self.x(value):.1f}" y="{self.bottom + 16}" text-anchor="middle">{shown}</text>')
        for value, shown in _ticks(*sorted(self.y_range)) if y_ticks else ():
            parts.append(f'<path class="grid" d="M{self.left} {self.y(value):.1f}H{WIDTH - RIGHT}"/>'
                         f'<text x="{self.left - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end">{shown}</text>')
        middle = (self.left + WIDTH - RIGHT) / 2
        return "".join(parts) + (f'<text class="label" x="{middle:g}" y="{self.bottom + 35}" text-anchor="middle">'
                                 f'{text(x_label)}</text><text class="label" x="4" y="14">{text(y_label)}</text>')

    def path(self, x, y):
        return "M" + "L".join(f"{self.x(a):.1f} {self.y(b):.1f}" for a, b in zip(x, y))

    def steps(self, x, y):
        """The most that can be had for each x: level up to the next point, then up."""
        moves = [f"H{self.x(a):.1f}V{self.y(b):.1f}" for a, b in zip(x[1:], y[1:])]
        return f"M{self.x(x[0]):.1f} {self.y(y[0]):.1f}{''.join(moves)}H{WIDTH - RIGHT}"

    def circle(self, kind, x, y, radius, name):
        return (f'<circle class="{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}">'
                f'<title>{text(name)}</title></circle>')

    def density(self, x, y):
        """Dots two units apart, fainter where fewer points fall on one."""
        dots = np.stack([self.x(x), self.y(y)], axis=1) // 2 * 2 + 1
        dots, counts = np.unique(dots, axis=0, return_counts=True)
        levels = np.minimum(LEVELS - 1, LEVELS * np.log(counts) / math.log(counts.max() + 1)).astype(int)
        return [f'<path class="dots d{level}" d="{"".join(f"M{a:g} {b:g}h0" for a, b in dots[levels == level])}"/>'
                for level in np.unique(levels)]


def _picture(key, title, description, content, height=HEIGHT):
    return (f'<svg role="img" viewBox="0 0 {WIDTH} {height}" aria-labelledby="{key}-title {key}-desc">'
            f'<title id="{key}-title">{text(title)}</title><desc id="{key}-desc">{text(description)}</desc>'
            f'{content}</svg>')


def _extent(*arrays):
    """The range of all values, with room around it."""
    values = np.concatenate([np.asarray(array, "float64") for array in arrays])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return float(low - room), float(high + room)


def _ticks(low, high, most=6):
    """(value, text) of round numbers in a range."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= (high - low) / most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(place * step, f"{place * step:,.{digits}f}".replace("-", "−"))
            for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _thinned(curve):
    kept = np.isfinite(curve.x) & np.isfinite(curve.y)
    x, y = curve.x[kept], curve.y[kept]
    parts = min(len(x), POINTS_PER_LINE)
    return Curve(curve.name, *(np.array([part.mean() for part in np.array_split(values, parts)]) if parts else values
                               for values in (x, y)))
