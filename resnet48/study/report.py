"""The report of a study: study.json, study.md and the pictures."""

import dataclasses
import os
from collections.abc import Callable

from ..system import files
from ..system.errors import duration
from . import pictures, results
from .plan import Plan, Task

FORMAT = 1
HEADING = ["ranking", "score", "tau", "these supernets", "these recipes", "of each seed", "no noise", "in bands",
           "given MACs", "told apart", "Pearson"]
LEGEND = (
    "tau: Kendall's tau-b with the truth, mean over the supernet seeds. In brackets 95 % percentile bootstrap "
    "intervals, {} resamples: *these supernets* over archs alone, *these recipes* over archs and seeds. No noise: "
    "what tau would be against a truth without noise. In bands: mean tau inside the bands, where MACs say nothing. "
    "Given MACs: partial tau. Told apart: tau over the pairs whose truth differs by more than two standard errors.")
LEGEND_OF_CONTRASTS = (
    "p: two-sided, over archs and seeds (archs alone where it says so); corrected by Holm's method for all rows. "
    "Detectable: the difference that this study finds with 80 % power.")
LEGEND_OF_COSTS = (
    "Every recipe costs {} epochs times subnets per step, so the number of forward and backward passes of one subnet "
    "on one image is the same; its epochs follow from its subnets per step. Where several learning rates (per 256 "
    "images) were tried, the one was taken with the lowest loss of the largest and the smallest net on training images "
    "after trainings that cost {}. Seconds are those of the steps on the "
    "machine that ran them, mean over seeds; further passes of an objective show there alone.")


def write(plan: Plan, read: Callable[[Task], dict], has: Callable[[Task], bool], output: str) -> str:
    """Write the report of what is there into the folder `output`; returns a line for the log.

    read(task), has(task): the result of a task, and whether it is there. Raises `UserError` where there is too little.
    """
    found = results.collect(plan, read, has)
    figures = {"format": FORMAT, "settings": _settings(plan), **results.analyse(plan, found)}
    files.write_json(os.path.join(output, "study.json"), figures, indent=1)
    files.write_text(os.path.join(output, "study.md"), markdown(plan, figures))
    pictures.taus(plan, figures, os.path.join(output, "tau.png"))
    pictures.scatter(plan, found, figures, os.path.join(output, "scatter.png"))
    pictures.costs(plan, figures, os.path.join(output, "cost.png"))
    missing = sum(figures["missing"].values())
    return f"wrote {output}/study.json, study.md, tau.png, scatter.png and cost.png" + (
        f"; {missing} results are MISSING" if missing else "")


def markdown(plan: Plan, figures: dict) -> str:
    """The report as text. figures: of `results.analyse`."""
    truth, rows, image_set = figures["truth"], figures["rankings"], plan.images
    lines = ["# Study", ""]
    missing = ", ".join(f"{count} of {kind}" for kind, count in figures["missing"].items() if count)
    if missing:
        lines += [f"**Unfinished: {missing} are missing.**", ""]
    lines += [
        f"- images: {os.path.basename(image_set.name)}, {len(image_set.train)} for training and {len(image_set.val)} "
        f"for validation, {image_set.size} px, {len(image_set.classes)} classes",
        f"- archs: n = {figures['archs']['n']} of the {plan.space.name} space over base widths "
        f"{','.join(map(str, plan.space.base_channels))}, {figures['archs']['in_bands']} of them in bands of nearly "
        "equal MACs",
        f"- truth: {truth['trainings']} trainings of single archs ({truth['twice_or_more']} archs more than once), "
        f"{truth['lowest']:.2f} to {truth['highest']:.2f} % top-1, {duration(truth['seconds'])} in all",
    ]
    if "reliability_of_one" in truth:
        lines += [
            f"- sharpness of the truth: archs differ by a standard deviation of {truth['true_deviation']:.2f} points, "
            f"trainings of one arch by {truth['noise']:.2f}; reliability of one training "
            f"{truth['reliability_of_one']:.3f}, of the means {truth['reliability_of_means']:.3f}, so a perfect "
            f"ranking would reach a tau of about {truth['tau_ceiling']:.3f} and an r of "
            f"{truth['pearson_ceiling']:.3f}; {truth['pairs_told_apart']:.0%} of the pairs are told apart (two "
            "standard errors)"]
    lines += ["", "## Rankings", "", _table([HEADING, *map(_cells, rows)]), "",
              LEGEND.format(figures["resamples"]), ""]
    if figures["contrasts"]:
        lines += ["## Contrasts, named beforehand", "", _table(_contrasts(figures["contrasts"])), "",
                  LEGEND_OF_CONTRASTS, ""]
    lines += ["## Cost", "", _table(_costs(plan, figures)), "",
              LEGEND_OF_COSTS.format(plan.settings.subnet_epochs, plan.settings.rate_epochs), ""]
    return "\n".join(lines)


def _settings(plan):
    """What was studied, without where files lie on this machine."""
    study = {name: value for name, value in dataclasses.asdict(plan.settings).items()
             if name not in ("output", "processes", "only")}
    study["shared"] = {name: value for name, value in (study["shared"] or {}).items() if not name.endswith("_dir")}
    return {"study": study, "space": plan.space.to_dict(), "truth": plan.truth[0].made_by}


def _cells(row):
    main = row["tau"]
    if main is None:
        return [row["name"], row["score"] or "", "none: all equal", *[""] * 8]
    of_seeds = " ".join(f"{value:.3f}" for value in main["of_seeds"]) if row["score"] else ""
    return [row["name"], row["score"] or "", f"{main['value']:.3f}", _bounds(main["these_supernets"]),
            _bounds(main["these_recipes"]), of_seeds, _number(row.get("disattenuated_tau")),
            *(_number((row.get(name) or {}).get("value")) for name in ("tau_in_bands", "partial_tau", "tau_told_apart",
                                                                        "pearson"))]


def _contrasts(contrasts):
    return [["contrast", "score", "difference in tau", "95 %", "p", "p (Holm)", "detectable"],
            *([f"{each['one']} - {each['other']}", each["score"], f"{each['difference']:+.3f}",
               _bounds(each["interval"], "+") + ("" if each["over_seeds"] else " archs alone"),
               f"{each['p']:.4f}", f"{each['p_holm']:.4f}", f"{each['detectable']:.3f}"] for each in contrasts)]


def _costs(plan, figures):
    reference = figures["cost"][plan.default]["seconds"]
    rows = [["recipe", "learning rate", "subnets per step", "epochs", "subnet-images", "seconds",
             f"of {plan.default}'s"]]
    for name, cost in figures["cost"].items():
        seconds = cost["seconds"]
        rates = " ".join(f"{rate:g}" for rate in cost["learning_rates"])
        rows.append([name, rates, str(cost["subnets_per_step"]), str(cost["epochs"]), f"{cost['subnet_images']:,}",
                     "" if seconds is None else f"{seconds:.1f}",
                     f"{seconds / reference:.2f}" if seconds and reference else ""])
    return rows


def _table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _bounds(pair, sign=""):
    return f"[{pair[0]:{sign}.3f}, {pair[1]:{sign}.3f}]" if pair else ""


def _number(value):
    return "" if value is None else f"{value:.3f}"
