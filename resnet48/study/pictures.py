"""The pictures of a study, PNG files that are written whole or not at all."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..system import files
from .plan import Plan, words
from .results import Found, best

COLOUR, GREY = "#2b6ca3", "0.45"


def taus(plan: Plan, figures: dict, path: str) -> None:
    """Tau with intervals by the first of the scores, one line per ranking, the best on top.

    Small dots are seeds, thick lines intervals over archs alone, thin ones over archs and seeds.
    """
    score = words(plan.settings.scores)[0]
    rows = sorted((row for row in figures["rankings"] if row["tau"] and row["score"] in (score, None)),
                  key=lambda row: row["tau"]["value"])
    figure, axes = _figure(8, 1.2 + 0.32 * len(rows))
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
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"Kendall's tau of {score} with the truth, {figures['archs']['n']} archs")
    _save(figure, path)


def scatter(plan: Plan, found: Found, figures: dict, path: str) -> None:
    """Scores over the truth, mean over seeds: the best recipe, the default one, and MACs where they are asked for."""
    score = words(plan.settings.scores)[0]
    top = best(figures["rankings"], plan.names, score)
    keys = [(name, score) for name in dict.fromkeys([top["name"] if top else plan.default, plan.default])]
    keys = [key for key in (*keys, ("macs", "free")) if key in found.rankings]
    figure, *panels = _figure(3.9 * len(keys), 3.9, len(keys))
    taus = {(row["name"], row["score"] or "free"): row["tau"] for row in figures["rankings"]}
    for axes, (name, way) in zip(panels, keys):
        values, banded = found.rankings[name, way].mean(axis=0), found.bands >= 0
        for chosen, colour, label in ((~banded, COLOUR, "spread"), (banded, "#d0802b", "in bands of MACs")):
            if chosen.any():
                axes.scatter(found.truth[chosen], values[chosen], s=16, alpha=0.7, color=colour, linewidths=0,
                             label=label)
        axes.set_title(f"{name}: " + (f"tau {taus[name, way]['value']:.3f}" if taus[name, way] else "all equal"),
                       fontsize=11)
        axes.set_xlabel("top-1 of the arch on its own (%)")
        axes.set_ylabel(name if way == "free" else f"{way} with the supernet's weights (%)" if way == "top1" else way)
    panels[0].legend(fontsize=8, frameon=False, loc="upper left")
    _save(figure, path)


def costs(plan: Plan, figures: dict, path: str) -> None:
    """Tau over the seconds that a training has taken, one dot per recipe, and the best of the free rankings."""
    figure, axes = _figure(7, 4.2)
    score = words(plan.settings.scores)[0]
    for row in figures["rankings"]:
        seconds = figures["cost"].get(row["name"], {}).get("seconds")
        if row["score"] == score and row["tau"] and seconds:
            low, high = row["tau"]["these_recipes"] or row["tau"]["these_supernets"]
            (dot,) = axes.plot(seconds, row["tau"]["value"], "o", label=row["name"])
            axes.plot([seconds] * 2, [low, high], color=dot.get_color(), linewidth=1)
    free = [row for row in figures["rankings"] if row["score"] is None and row["tau"]]
    if free:
        row = max(free, key=lambda each: each["tau"]["value"])
        axes.axhline(row["tau"]["value"], color=GREY, linewidth=0.8, linestyle=":", label=row["name"])
    axes.set_xlim(0, 1.15 * axes.get_xlim()[1])
    axes.set_xlabel("seconds of a training, at equal subnet-images")
    axes.set_ylabel(f"Kendall's tau, {score}")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
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
