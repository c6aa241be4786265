"""The page of a submission: one HTML file that loads nothing from elsewhere. No Paddle in here.

What is shown comes from files of which nobody knows who wrote them: every text goes through `svg.text`, and the page
itself forbids its browser to load anything, or to run another script than its own.
"""

import base64
import hashlib
import json
import os
import re
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..space.arch import DIGITS, FIRST_BLOCK, FIRST_BLOCK_DIGIT, STEM_DIGIT
from ..system import files
from ..system.errors import printable
from . import score as scoring
from . import svg
from .gathered import Gathered, Sources, pareto_front
from .svg import text

BEGINNING = "<!doctype html>\n<!-- a page of eval_supernet.py report -->\n"
HERE = os.path.dirname(os.path.abspath(__file__))
#: Facts of the manifest and what the page calls them.
MANIFEST_FACTS = {"checkpoint_sha256": "checkpoint, SHA-256", "submission_sha256": "submission, SHA-256",
                  "arch_list_sha256": "arch list, SHA-256", "archs": "archs", "val_images": "validation images",
                  "image_size": "image size in pixels"}


class Sharing(NamedTuple):
    """What the archs of a list share in an evaluation, summed over the list.

    nodes: stems and blocks of all nets; computed: of these, what the tree of common prefixes computes. macs_alone,
    macs_shared: multiply-adds per image of every net on its own, and of the tree.
    """

    nodes: int
    computed: int
    macs_alone: int
    macs_shared: int


def write(path: str, paths: Sources, gathered: Gathered, sharing: Sharing, trained: str | None = None) -> str:
    """Write the page, whole or not at all; returns a line for the log. See `html_page`."""
    files.write_text(path, html_page(paths, gathered, sharing, trained))
    return f"wrote {path}: a page for the browser, which needs no network"


def html_page(paths: Sources, gathered: Gathered, sharing: Sharing, trained: str | None = None) -> str:
    """The whole page. trained: SHA-256 of the newest weights in the folder of the training, None where not known."""
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = text(f"Supernet: {os.path.basename(paths.submission)}")
    return "".join([
        BEGINNING, '<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; '
        f'script-src \'sha256-{digest}\'">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
        _summary(paths, gathered), "</header>\n<main>\n",
        _section("Score", _score(gathered.score)), _section("Accuracy against MACs", _macs(gathered)),
        _section("Training", _training(gathered, trained)), _section("Sharing", _sharing(gathered, sharing)),
        _section("Manifest", _manifest(gathered.manifest)), f"</main>\n<script>{script}</script>\n</body>\n</html>\n"])


def reason_to_keep(path: str) -> str | None:
    """Why the file at `path` must not be replaced by a page, as the end of a sentence; None if it may."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(BEGINNING))
    except OSError as error:
        return f"is there already and cannot be read ({error.strerror})"
    return None if beginning in (BEGINNING.encode(), b"") else "is there already and is not a page of `report`"


def _summary(paths, gathered):
    found, manifest, score = gathered.found, gathered.manifest, gathered.score
    accuracies = list(found.accuracies.values())
    facts = [("archs", f"{len(found.archs):,}", f"{found.unmeasured} more not measured" if found.unmeasured else ""),
             ("top-1 in the supernet",
              f"{_accuracy(min(accuracies))}–{_accuracy(max(accuracies))}" + " %" * (_unit(accuracies) == "%"), "")]
    if isinstance(score, scoring.Score):
        tau, free = score.agreement(scoring.SUPERNET).kendall, score.best and score.agreement(score.best).kendall
        facts.append(("Kendall tau", f"{tau.value:.4f}", f"[{tau.low:.4f}, {tau.high:.4f}], {score.n} archs"))
        if free:
            facts.append((f"{score.best} alone", f"{free.value:.4f}", f"[{free.low:.4f}, {free.high:.4f}]"))
    warnings = []
    if not manifest:
        warnings.append("There is no manifest beside the submission: nothing shows which checkpoint the accuracies "
                        "come from, and MACs and parameters are those at full width, 224 pixels and 1,000 classes.")
    elif manifest.get("submission_sha256") != files.sha256_of(paths.submission):
        warnings.append("The manifest was written for another submission than this one.")
    if manifest.get("partial"):
        warnings.append("The submission is partial: it does not hold all archs of its list.")
    if manifest.get("unfinished_training"):
        warnings.append(f"The training of the supernet was not finished: {manifest['unfinished_training']}.")
    return (f'<p class="soft">{text(paths.submission)}</p>\n' + _facts(facts)
            + "".join(f'<p class="warning">{text(warning)}</p>\n' for warning in warnings))


def _score(score):
    if isinstance(score, str):
        return _sentence(score)
    ours = score.agreement(scoring.SUPERNET)
    conclusion = scoring.conclusion(score)
    tau = svg.intervals("tau", "Kendall's tau with 95 % intervals", conclusion, "Kendall's tau (board B)",
                        [(row.name, row.kendall) for row in score.agreements])
    true, submitted = (stats.rankdata(-ranking.accuracies) for ranking in (score.truth, score.submission))
    ranks = svg.scatter(
        "ranks", "Submitted rank over true rank",
        f"{score.n} archs; Kendall's tau {ours.kendall.value:.4f}, Spearman {ours.spearman.value:.4f}.",
        "true rank (1 is best)", "submitted rank (1 is best)", true, submitted,
        [f"true rank {a:g}, submitted {b:g}" for a, b in zip(true, submitted)], ranks=True)
    rows = [[text(row.name), *map(_interval, (row.pearson, row.kendall, row.spearman))] for row in score.agreements]
    notes = "".join(f"<li>{_marked(fact)}</li>" for fact in scoring.facts(score))
    return (f"<p>{text(conclusion)}</p>\n"
            + _figures((tau, "Each ranking's tau with the truth; the line is the 95 % interval."),
                       (ranks, "Each point is an arch; on the dashed line both ranks agree."))
            + _table("score", ["ranking", "|Pearson| (board A)", "Kendall tau (board B)", "Spearman"], rows)
            + f"<details><summary>What was compared, and how</summary><ul>{notes}</ul></details>\n")


def _macs(gathered):
    archs, accuracies = list(gathered.found.archs.values()), np.array(list(gathered.found.accuracies.values()))
    macs = np.array([arch.macs(gathered.image_size, gathered.num_classes) for arch in archs], "float64")
    front, unit = pareto_front(macs, accuracies), _unit(accuracies)
    per, prefix = _scale(macs.max())
    picture = svg.scatter(
        "macs", "Accuracy over multiply-adds",
        f"{len(archs)} archs from {macs.min() / per:#.4g} to {macs.max() / per:#.4g} {prefix}; {len(front)} of them on "
        f"the Pareto front, the best with {_accuracy(accuracies.max())} {unit}.",
        f"{prefix} per image of {gathered.image_size} px", f"top-1 in the supernet ({unit})", macs / per, accuracies,
        [f"{_accuracy(accuracy)} {unit}, {count / per:#.4g} {prefix}, {arch.code}"
         for arch, accuracy, count in zip(archs, accuracies, macs)], front)
    rows = []
    for place in front:
        arch = archs[place]
        rows.append([_accuracy(accuracies[place]), f"{macs[place] / per:#.4g}",
                     f"{arch.params(gathered.num_classes):,}", f"<span>{_widths(arch)}</span>",
                     f'<code>{_grouped(arch.code)}</code><button type="button">copy</button>'])
    return (_figures((picture, "Orange: the Pareto front, the archs that no other beats in accuracy with as few MACs, "
                               "or in MACs with as high an accuracy."))
            + f"<p>The {len(front)} archs of the front. Widths are channels: of the stem; then of each stage, and in "
              "brackets those inside of its blocks.</p>\n"
            + _table("archs", [f"top-1 ({unit})", prefix, "parameters", "widths", "code"], rows))


def _training(gathered, trained):
    metrics, evaluated = gathered.metrics, gathered.manifest.get("checkpoint_sha256")
    if metrics is None:
        return _sentence("There is no `metrics.csv` of the training beside the submission; --checkpoint names its run "
                         "folder.")
    if not len(metrics["step"]):
        return _sentence("The training's `metrics.csv` has no rows yet.")
    epochs = metrics["epoch"]
    losses = [svg.Curve(name.removeprefix("loss_"), epochs, values) for name, values in metrics.items()
              if name.startswith("loss") and np.isfinite(values).any()]
    said = "; ".join(f"{curve.name} from {seen[0]:.4g} to {seen[-1]:.4g}" for curve in losses
                     for seen in [curve.y[np.isfinite(curve.y)]])
    pictures = []
    if losses:
        pictures.append((svg.lines("loss", "Training loss over epochs", said, "epoch", "loss", losses),
                         _legend([curve.name for curve in losses])))
    for name, what in (("lr", "learning rate"), ("images_per_s", "images per second")):
        values = metrics.get(name)
        if values is not None and np.isfinite(values).any():
            said = f"From {np.nanmin(values):.4g} to {np.nanmax(values):.4g}."
            pictures.append((svg.lines(name, f"{what} over epochs".capitalize(), said, "epoch", what,
                                       [svg.Curve(what, epochs, values)]), ""))
    said = f"{metrics['step'][-1]:,.0f} steps, {epochs[-1]:.4g} epochs."
    if trained and evaluated and trained != evaluated:
        said += (" The newest weights of this run are not those that were evaluated: it is another run, or has gone on "
                 "since.")
    return _sentence(said) + _figures(*pictures)


def _sharing(gathered, sharing):
    count = len(gathered.found.archs)
    alone, shared = sharing.macs_alone / count, sharing.macs_shared / count
    per, prefix = _scale(alone)
    return (_sentence("Archs with the same first blocks have the same features there, computed once for all of them.")
            + _facts([("stems and blocks of all archs", f"{sharing.nodes:,}", ""),
                      ("of these computed", f"{sharing.computed:,}", "nodes of the tree"),
                      (f"{prefix} per image and arch, each alone", f"{alone / per:#.4g}", ""),
                      (f"{prefix} per image and arch, shared", f"{shared / per:#.4g}",
                       f"a factor of {alone / shared:.3f}")]))


def _manifest(manifest):
    if not manifest:
        return _sentence("There is none.")
    rows = [[text(name), f"<code>{text(manifest[key])}</code>"] for key, name in MANIFEST_FACTS.items()
            if key in manifest]
    versions = manifest.get("versions")
    if isinstance(versions, dict) and versions:
        rows += [[f"version of {text(name)}", f"<code>{text(version)}</code>"] for name, version in versions.items()]
    else:
        rows.append(["versions", "not recorded"])
    whole = json.dumps(manifest, indent=2, ensure_ascii=False).split("\n")
    shown = "\n".join(text(line) for line in whole)
    return (_table("manifest", ["what", "value"], rows)
            + f"<details><summary>The whole manifest</summary><pre>{shown}</pre></details>\n")


def _section(title, content):
    return f"<section>\n<h2>{title}</h2>\n{content}</section>\n"


def _sentence(words):
    return f"<p>{_marked(words)}</p>\n"


def _facts(facts):
    """Tiles of (name, value, remark)."""
    tiles = [f"<div><dt>{text(name)}</dt><dd>{text(value)}" + (f"<small>{text(remark)}</small>" if remark else "")
             + "</dd></div>" for name, value, remark in facts]
    return f'<dl class="facts">{"".join(tiles)}</dl>\n'


def _figures(*pictures):
    """(SVG, caption as HTML) side by side where there is room."""
    return '<div class="figures">' + "".join(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
                                             for picture, caption in pictures) + "</div>\n"


def _table(kind, names, rows):
    """A table of cells that are HTML. On a narrow screen each cell says its column's name, see page.css."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    body = "".join("<tr>" + "".join(f'<td class="{re.sub("[^a-z]", "", name)}" data-label="{text(name)}">{cell}</td>'
                                    for name, cell in zip(names, row)) + "</tr>\n" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n'


def _legend(names):
    """What the styles of curves mean."""
    keys = [f'<span><svg viewBox="0 0 28 8" aria-hidden="true"><path class="curve s{place % svg.STYLES}" d="M0 4H28"/>'
            f"</svg>{text(name)}</span>" for place, name in enumerate(names)]
    return f'<span class="legend">{"".join(keys)}</span>'


def _marked(words):
    """A sentence with names of files in backticks as HTML."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", text(words))


def _interval(interval):
    if interval is None:
        return "none: all equal"
    return f"{interval.value:.4f}<small>[{interval.low:.4f}, {interval.high:.4f}]</small>"


def _widths(arch):
    """`64 · 64 (48 56) · ...`: the stem, then of each stage its outputs and the insides of its blocks."""
    return " · ".join([str(arch.stem), *(f"{stage[-1][1]}&nbsp;({' '.join(str(inner) for inner, _ in stage)})"
                                         for stage in arch.stages)])


def _grouped(code):
    """The digits of depths, stem and stages apart to the eye, but not to who copies them."""
    bounds = [0, STEM_DIGIT, *(FIRST_BLOCK_DIGIT + 2 * (first - 1) for first in FIRST_BLOCK), DIGITS]
    return "<wbr>".join(f"<span>{code[first:last]}</span>" for first, last in zip(bounds, bounds[1:]))


def _scale(macs):
    """What to divide multiply-adds by, and the unit that this gives."""
    return (1e9, "GMACs") if macs >= 1e8 else (1e6, "MMACs")


def _accuracy(value):
    return f"{value:.2f}" if value > 1 else f"{value:.4f}"


def _unit(accuracies):
    return "%" if max(accuracies) > 1 else "fraction"


def _asset(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()
