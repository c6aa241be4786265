"""How well a submission's ranking agrees with the truth, beside the free baselines. No Paddle in here.

Submission and truth are joined on the arch code, never on keys or order. Board A of the competition is |Pearson|,
board B is Kendall's tau.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from ..space.arch import FULL, SearchSpace
from ..system import files
from ..system.errors import UserError, shown
from . import measured, rankings
from .intervals import Interval, percentile_interval

FEWEST = 3  # archs that submission and truth must share
FEW = 30  # archs under which a reader is warned that intervals are wide
SUPERNET = "supernet"


class Agreement(NamedTuple):
    """How one ranking agrees with the truth.

    pearson: of |r|, board A; kendall: of tau-b, board B; spearman. All three are None for a ranking that gives every
    arch the same value.
    inverted: whether r is negative, which |r| hides.
    dropped: bootstrap resamples that gave every arch the same value, so that nothing correlates.
    """

    name: str
    pearson: Interval | None
    kendall: Interval | None
    spearman: Interval | None
    inverted: bool
    dropped: int


class Ranking(NamedTuple):
    """One of the two files: how many archs it has measured, and its accuracies for those in both, float64 [n].

    These are as written, but for those made equal that differ by rounding only. tied_pairs: pairs of equal ones.
    unmeasured: how many more archs the file holds with the list's own 0, see `measured.is_measured`. zeros: how many
    accuracies of 0 were taken for measurements.
    """

    path: str
    archs: int
    accuracies: np.ndarray
    tied_pairs: int
    unmeasured: int
    zeros: int


@dataclass(frozen=True, eq=False)
class Score:
    """What `score` found. agreements: of the supernet, of other `rankings` of its archs, of the baselines; margin: tau
    of the supernet minus that of `best`. notes: on the other rankings, by name.

    best: the name of the baseline with the highest tau; it and margin are None if no baseline tells the archs apart.
    """

    submission: Ranking
    truth: Ranking
    agreements: tuple
    best: str | None
    margin: Interval | None
    resamples: int
    seed: int
    image_size: int
    notes: dict

    @property
    def n(self) -> int:
        """How many archs both files hold."""
        return len(self.truth.accuracies)

    def agreement(self, name: str) -> Agreement:
        return next(row for row in self.agreements if row.name == name)


def score(submission: str, truth: str, space: SearchSpace = FULL, image_size: int = 224, num_classes: int = 1000,
          seed: int = 0, resamples: int | None = None) -> Score:
    """Compare the rankings of two files in the list's format (paths). Returns a `Score`.

    space, image_size (pixels), num_classes: of the nets, for the baselines MACs and parameters.
    resamples: of the bootstrap over archs (Efron 1979, percentile intervals); by default 1000, fewer from 5,000 archs.
    The same resamples serve all rows, so that the margin's interval compares like with like.
    Correlations: Pearson; Kendall 1945, tau-b, which allows for ties; Spearman, on average ranks.
    Raises `UserError` for malformed files, fewer than 3 shared archs, accuracies that are outside 0..100, of two units
    in one file, or all equal.
    """
    found, places, ours, theirs = _join(submission, truth, space)
    every = list(found.archs.values())
    archs, others = [every[place] for place in places], rankings.rankings(found, image_size, num_classes)
    if resamples is None:
        resamples = max(200, min(1000, 5_000_000 // len(archs)))  # seconds, also for the whole published list
    baselines = {"MACs": [arch.macs(image_size, num_classes) for arch in archs],
                 "parameters": [arch.params(num_classes) for arch in archs],
                 "depth": [sum(arch.depths) for arch in archs]}
    table = np.array([theirs.accuracies, ours.accuracies, *(scores[places] for scores in others.scores.values()),
                      *baselines.values()], dtype="float64")
    values = _correlations(table)
    rng = np.random.default_rng(seed)
    draws = np.array([_correlations(table[:, rng.integers(len(archs), size=len(archs))]) for _ in range(resamples)])
    names = [SUPERNET, *others.scores, *baselines]
    rows = tuple(_agreement(name, values[i], draws[:, i]) for i, name in enumerate(names))
    taus = values[:, 1]
    best, margin = None, None
    free = len(names) - len(baselines)
    if np.isfinite(taus[free:]).any():
        index = free + int(np.nanargmax(taus[free:]))
        best, margin = names[index], percentile_interval(taus[0] - taus[index], draws[:, 0, 1] - draws[:, index, 1])
    return Score(ours, theirs, rows, best, margin, resamples, seed, image_size, others.notes)


def report_markdown(result: Score) -> str:
    """The report as Markdown: what was joined, the table of agreements with intervals, and the conclusion."""
    cells = [("ranking", r"\|Pearson\| (board A)", "Kendall tau (board B)", "Spearman")]
    cells += [(row.name, _shown(row.pearson), _shown(row.kendall), _shown(row.spearman)) for row in result.agreements]
    widths = [max(map(len, column)) for column in zip(*cells)]
    table = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    table.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(["# Score", "", *(f"- {fact}" for fact in facts(result)), "", *table, "", conclusion(result), ""])


def facts(result: Score) -> list[str]:
    """What was joined, and what the figures rest on: sentences with names of files in backticks."""
    ours, theirs = result.submission, result.truth
    lines = [
        f"submission: `{ours.path}`, {ours.archs} archs, {_spread(ours)}{_zeros(ours)}",
        f"truth: `{theirs.path}`, {theirs.archs} archs, {_spread(theirs)}{_zeros(theirs)}",
        f"n = {result.n} archs in both, joined on the arch code; {ours.archs - result.n} of the submission have no "
        f"truth, {theirs.archs - result.n} of the truth are not in the submission",
        f"tied pairs, of {result.n * (result.n - 1) // 2}: {ours.tied_pairs} in the submission, "
        f"{theirs.tied_pairs} in the truth",
        f"in brackets: 95 % percentile bootstrap over archs, {result.resamples} resamples, seed {result.seed}"
        + _dropped(result.agreements),
        f"MACs are counted at {result.image_size} px",
        *rankings.sheet_lines(result.notes),
    ]
    if result.n < FEW:
        lines.append(f"{result.n} archs are few: the intervals are wide, those of a near-perfect ranking too narrow")
    return lines + [f"{row.name}: Pearson is negative (-{row.pearson.value:.4f}), which board A's absolute value hides"
                    for row in result.agreements if row.inverted]


def conclusion(result: Score) -> str:
    """One sentence: whether the supernet's tau beats the best free baseline, and how sure that is."""
    if result.best is None:
        return "No baseline tells these archs apart, so there is nothing free to beat."
    ours, theirs = result.agreement(SUPERNET).kendall, result.agreement(result.best).kendall
    overlap = ours.low <= theirs.high and theirs.low <= ours.high
    wins = result.margin.value > 0
    certain = result.margin.low > 0 or result.margin.high < 0
    return (f"The supernet's tau, {ours.value:.4f}, {'beats' if wins else 'does not beat'} that of the best free "
            f"baseline, {result.best} ({theirs.value:.4f}); their intervals "
            f"{'overlap' if overlap else 'do not overlap'}, and on the same resamples the difference is "
            f"{_shown(result.margin, '+')}, which {'excludes' if certain else 'includes'} zero.")


def reason_to_keep_report(path: str) -> str | None:
    """Why the file at `path` must not be replaced by a score sheet, as the end of a sentence; None if it may."""
    return _reason_to_keep(path, b"# Score\n", "is there already and is not a score sheet")


def reason_to_keep_plot(path: str) -> str | None:
    """The same for a plot."""
    return _reason_to_keep(path, b"\x89PNG\r\n", "is there already and is not a PNG file")


def plot(result: Score, path: str) -> None:
    """Draw accuracies (left) and ranks (right) of submission over truth into a PNG file, whole or not at all.

    Raises `UserError` where `path` does not end in .png or cannot be written.
    """
    if os.path.splitext(path)[1].lower() != ".png":
        raise UserError(f"the plot is a PNG file, so its name must end in .png; got {shown(path)}")
    row = result.agreement(SUPERNET)
    pearson = f"{'−' if row.inverted else ''}{row.pearson.value:.3f}"
    figure = Figure(figsize=(10.4, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.06)
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"Supernet ranking against the truth, {result.n} archs", fontsize=12)
    _scatter(left, result.truth.accuracies, result.submission.accuracies)
    left.set_title(f"board A: Pearson $r$ = {pearson}", fontsize=11)
    left.set_xlabel(f"true accuracy ({_unit(result.truth.accuracies)})")
    left.set_ylabel(f"submitted accuracy ({_unit(result.submission.accuracies)})")
    _scatter(right, *(stats.rankdata(-ranking.accuracies) for ranking in (result.truth, result.submission)))
    margin = 0.03 * result.n + 0.5
    limits = result.n + margin, 1 - margin  # reversed: as on the left, better is up and to the right
    right.plot(limits, limits, color="0.35", linewidth=1, linestyle="--", zorder=3)
    ticks = [max(1, tick) for tick in MaxNLocator(5, integer=True).tick_values(1, result.n) if 0 <= tick <= result.n]
    right.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks)
    right.set_title(f"board B: Kendall $\\tau$ = {row.kendall.value:.3f}, "
                    f"Spearman $\\rho$ = {row.spearman.value:.3f}".replace("-", "−"), fontsize=11)
    right.set_xlabel("true rank (1 = best)")
    right.set_ylabel("submitted rank (1 = best)")
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _reason_to_keep(path, beginning, reason):
    try:
        with open(path, "rb") as file:
            return None if file.read(len(beginning)) in (beginning, b"") else reason
    except OSError as error:
        return f"is there already and cannot be read ({error.strerror})"


def _join(submission, truth, space):
    """What the submission has measured, the places in it of the archs that both files have measured, and the `Ranking`
    of both files.
    """
    ours, theirs = measured.read(submission, "submission", space), measured.read(truth, "truth", space)
    shared = [code for code in ours.accuracies if code in theirs.accuracies]
    if len(shared) < FEWEST:
        raise UserError(f"submission {shown(submission)} ({_counted(ours)}) and truth {shown(truth)} "
                        f"({_counted(theirs)}) share {len(shared)}; a ranking needs at least {FEWEST}")
    places = [place for place, code in enumerate(ours.accuracies) if code in theirs.accuracies]
    return ours, places, _ranking(ours, shared), _ranking(theirs, shared)


def _counted(found):
    more = f", {found.unmeasured} more with the list's own 0" if found.unmeasured else ""
    return f"{len(found.archs)} archs{more}"


def _ranking(found, shared):
    values = measured.without_rounding(np.array([found.accuracies[code] for code in shared], dtype="float64"))
    if np.ptp(values) == 0:
        raise UserError(f"{found.what} {shown(found.path)}: all {len(values)} archs that both files hold have the "
                        f"accuracy {values[0]}, which ranks nothing; accuracies must differ")
    counts = np.unique(values, return_counts=True)[1]
    return Ranking(found.path, len(found.archs), values, int((counts * (counts - 1) // 2).sum()), found.unmeasured,
                   found.zeros)


def _correlations(table):
    """Pearson, Kendall and Spearman of rows 1.. with row 0, NaN where either is constant: float64 [rows - 1, 3]."""
    varies = np.ptp(table, axis=1) > 0
    ranks = stats.rankdata(table, axis=1)
    # The asymptotic method is about the p-value, which is not used; tau is the same.
    kendall = [stats.kendalltau(ranks[0], row, method="asymptotic").statistic if ok and varies[0] else np.nan
               for row, ok in zip(ranks[1:], varies[1:])]
    return np.stack([_pearson(table, varies), kendall, _pearson(ranks, varies)], axis=1)


def _pearson(table, varies):
    centred = table - table.mean(axis=1, keepdims=True)
    norms = np.where(varies, np.sqrt((centred ** 2).sum(axis=1)), np.nan)
    return np.clip(centred[1:] @ centred[0] / (norms[1:] * norms[0]), -1, 1)


def _agreement(name, values, draws):
    """values: Pearson, Kendall, Spearman [3]. draws: the same for each resample [resamples, 3]."""
    dropped = int(np.isnan(draws[:, 0]).sum())
    if np.isnan(values[0]):
        return Agreement(name, None, None, None, False, dropped)
    pearson, kendall, spearman = (percentile_interval(*pair) for pair in zip(values, draws.T))
    low, high = sorted((abs(pearson.low), abs(pearson.high)))
    # Of |r| directly, no resample reaches zero, and the interval may miss the figure that it belongs to.
    low = 0.0 if pearson.low <= 0 <= pearson.high else low
    return Agreement(name, Interval(abs(pearson.value), low, high), kendall, spearman, bool(values[0] < 0), dropped)


def _shown(interval, sign=""):
    if interval is None:
        return "none: all equal"
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.4f}, {interval.high:{sign}.4f}]"


def _dropped(rows):
    dropped = [f"{row.dropped} for {row.name}" for row in rows if row.pearson is not None and row.dropped]
    return f"; resamples left out because all values in them are equal: {', '.join(dropped)}" if dropped else ""


def _unit(accuracies):
    return "fraction" if accuracies.max() <= 1 else "%"


def _spread(ranking):
    values = ranking.accuracies
    return (f"accuracies {values.min():.4g} to {values.max():.4g} ({_unit(values)}), "
            f"standard deviation {values.std(ddof=1):.2g}")


def _zeros(ranking):
    """What was made of accuracies of 0."""
    if ranking.unmeasured:
        return f"; {ranking.unmeasured} more hold the list's own 0 and are left out as not measured"
    return f"; {ranking.zeros} of 0 are counted as measured" if ranking.zeros else ""


def _scatter(axes, x, y):
    few = len(x) <= 2000
    axes.scatter(x, y, s=20 if few else 4, alpha=0.65 if few else 0.15, color="#2b6ca3", linewidths=0, zorder=2)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
