"""The pictures of a study, PNG files that are written whole or not at all."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..system import files
from .plan import Plan, words
from .results import Found, best

COLOUR, GREY = "#2b6ca3", "0.45"


def taus(plan: Plan, figures: dict, path: str) -> None:
    """Tau with intervals, one line per ranking: dots are seeds, thick over archs alone, thin over archs and seeds."""
    rows = [row for row in reversed(figures["rankings"]) if row["tau"]]
    figure, axes = _figure(8, 1.4 + 0.36 * len(rows))
    for place, row in enumerate(rows):
        tau, colour = row["tau"], COLOUR if row["name"] in plan.names else GREY
        if tau["these_recipes"]:
            axes.plot(tau["these_recipes"], [place] * 2, color=colour, linewidth=1)
        axes.plot(tau["these_supernets"], [place] * 2, color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt")
        axes.plot(tau["of_seeds"], [place] * len(tau["of_seeds"]), ".", color=colour, markersize=4)
        axes.plot(tau["value"], place, "o", color=colour, markersize=6)
    ceiling = figures["truth"].get("tau_ceiling")
    if ceiling:
        axes.axvline(ceiling, color=GREY, linestyle="--", linewidth=1)
        axes.annotate("ceiling", (ceiling, 1), xycoords=("data", "axes fraction"), xytext=(-3, 3),
                      textcoords="offset points", ha="right", fontsize=8, color=GREY)
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    several = len(words(plan.settings.scores)) > 1
    axes.set_yticks(range(len(rows)), [row["name"] + (f", {row['score']}" if several and row["score"] else "")
                                       for row in rows])
    axes.set_xlabel(f"Kendall's tau with the truth, {figures['archs']['n']} archs")
    _save(figure, path)


def scatter(plan: Plan, found: Found, figures: dict, path: str) -> None:
    """Scores over the truth, mean over seeds: the best recipe on the left, the default one on the right."""
    score = words(plan.settings.scores)[0]
    top = best(figures["rankings"], plan.names, score)
    names = list(dict.fromkeys([top["name"] if top else plan.default, plan.default]))
    figure, *panels = _figure(5 * len(names), 4.8, len(names))
    for axes, name in zip(panels, names):
        values = found.rankings.get((name, score))
        if values is None:
            continue
        banded = found.bands >= 0
        for chosen, colour, label in ((~banded, COLOUR, "spread"), (banded, "#d0802b", "in bands")):
            if chosen.any():
                axes.scatter(found.truth[chosen], values.mean(axis=0)[chosen], s=20, alpha=0.7, color=colour,
                             linewidths=0, label=label)
        tau = next(row["tau"] for row in figures["rankings"] if (row["name"], row["score"]) == (name, score))
        axes.set_title(f"{name}: " + (f"tau {tau['value']:.3f}" if tau else "all equal"), fontsize=11)
        axes.set_xlabel("top-1 of the arch on its own (%)")
        axes.set_ylabel(f"{score} with the supernet's weights")
        axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def costs(plan: Plan, figures: dict, path: str) -> None:
    """Tau over the seconds that a training has taken, one dot per recipe."""
    figure, axes = _figure(6.4, 4.8)
    score = words(plan.settings.scores)[0]
    for row in figures["rankings"]:
        seconds = figures["cost"].get(row["name"], {}).get("seconds")
        if row["score"] == score and row["tau"] and seconds:
            low, high = row["tau"]["these_recipes"] or row["tau"]["these_supernets"]
            axes.plot([seconds] * 2, [low, high], color=COLOUR, linewidth=1)
            axes.plot(seconds, row["tau"]["value"], "o", color=COLOUR)
            axes.annotate(row["name"], (seconds, row["tau"]["value"]), xytext=(6, 4), textcoords="offset points",
                          fontsize=8)
    free = [row for row in figures["rankings"] if row["score"] is None and row["tau"]]
    for row in free:
        axes.axhline(row["tau"]["value"], color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(row["name"], (1, row["tau"]["value"]), xycoords=("axes fraction", "data"), xytext=(2, -3),
                      textcoords="offset points", fontsize=8, color=GREY)
    axes.set_xlim(0, 1.15 * axes.get_xlim()[1])
    axes.set_xlabel("seconds of a training, at equal subnet-images")
    axes.set_ylabel(f"Kendall's tau, {score}")
    _save(figure, path)


def _figure(width, height, panels=1):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, panels))
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="0.92", linewidth=0.8)
        each.set_axisbelow(True)
    return figure, *axes


def _save(figure, path):
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
