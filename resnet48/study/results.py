"""What a study has found: its results as arrays, and the statistics of them as plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ranking.intervals import Interval, percentile_interval
from ..system.errors import UserError
from . import statistics
from .plan import KINDS, RANDOM_WEIGHTS, Plan, Task, words
from .scores import FREE, SCORES, Evaluated

DECIMALS = 4  # of what is written


@dataclass(frozen=True)
class Found:
    """The results that are there. n archs have a truth; everything is in their order.

    trainings: for each arch what its trainings gave. rankings: (name, way) -> float64 [seeds, n]; the way of a free
    ranking is `free`. seconds, learning_rates: of the trainings of each recipe. missing: how many results of each kind
    are not there.
    """

    codes: list
    trainings: list
    bands: np.ndarray
    log_macs: np.ndarray
    rankings: dict
    seeds: dict
    seconds: dict
    learning_rates: dict
    truth_seconds: float
    missing: dict

    @property
    def truth(self) -> np.ndarray:
        return np.array([np.mean(each) for each in self.trainings])

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(each) for each in self.trainings])


def collect(plan: Plan, read: Callable[[Task], dict], has: Callable[[Task], bool]) -> Found:
    """Read what is there. Raises `UserError` where fewer than 3 archs have a truth, or no supernet is scored."""
    of_arch, truth_seconds = {}, 0.0
    for task in filter(has, plan.truth):
        row = read(task)
        of_arch.setdefault(task.name, []).append(float(row["top1"]))
        truth_seconds += row["seconds"]
    kept = [place for place, arch in enumerate(plan.archs) if arch.code in of_arch]
    if len(kept) < 3 or not any(map(has, plan.scores)):
        raise UserError("the report needs the truth of 3 archs and the scores of one supernet, which are not there yet")
    archs, size, classes = [plan.archs[place] for place in kept], plan.images.size, len(plan.images.classes)
    rows, seeds = {}, {}
    for task in filter(has, plan.scores):
        row = read(task)
        counts = {name: np.array(column) for name, column in row["counts"].items()}
        found = Evaluated(plan.archs, counts, row["images"], size, classes)  # those without a truth help to smooth
        seeds.setdefault(task.name, []).append(task.seed)
        for way in words(plan.settings.scores):
            rows.setdefault((task.name, way), []).append(SCORES[way](found)[kept])
    for name in words(plan.settings.free):
        rows[name, "free"] = [np.array([FREE[name](arch, size, classes) for arch in archs])]
    trained = {name: [read(task) for task in plan.supernets if task.name == name and has(task)] for name in plan.names}
    seconds = {name: [each["seconds"] for each in some] for name, some in trained.items()}
    rates = {name: {each["settings"]["lr"] for each in some} for name, some in trained.items()}
    missing = {kind: sum(not has(task) for task in getattr(plan, kind)) for kind in KINDS}
    return Found([arch.code for arch in archs], [of_arch[arch.code] for arch in archs], plan.band_of()[kept],
                 np.log([arch.macs(size, classes) for arch in archs]),
                 {key: np.array(values, "float64") for key, values in rows.items()}, seeds, seconds, rates,
                 truth_seconds, missing)


def analyse(plan: Plan, found: Found) -> dict:
    """The study's figures as plain data, see `report` for what each is called."""
    truth, resamples = found.truth, plan.settings.resamples
    sharp = statistics.reliability(found.trainings) if found.counts.max() > 1 else None
    weights = statistics.resampled_archs(len(truth), resamples, seed=0)
    pairs = statistics.told_apart(truth, sharp.noise, found.counts) if sharp else None
    order = [*plan.names, RANDOM_WEIGHTS, *words(plan.settings.free)]
    rankings, draws = [], {}
    for (name, way), scores in sorted(found.rankings.items(), key=lambda each: order.index(each[0][0])):
        # Seeds of one recipe are drawn alike for all its scores, those of two recipes independently.
        shares = statistics.resampled_seeds(len(scores), resamples, (1, order.index(name))) if len(scores) > 1 else \
            np.ones((resamples, 1))
        free = way == "free"

        def figure(compute):
            return _figure(compute, scores, weights, shares, free)

        resampled, main = figure(lambda *arguments: statistics.tau(truth, *arguments))
        if main:
            draws[name, way] = main["value"], resampled, free or len(scores) > 1
        row = {"name": name, "score": None if free else way, "seeds": [] if free else found.seeds[name], "tau": main,
               "pearson": figure(lambda *arguments: statistics.pearson(truth, *arguments))[1]}
        if (found.bands >= 0).any():
            row["tau_in_bands"] = figure(
                lambda some, *more: statistics.tau_in_bands(truth, some, found.bands, *more))[1]
        if name != "macs":
            row["partial_tau"] = figure(
                lambda some, *more: statistics.partial_tau(truth, some, found.log_macs, *more))[1]
        if sharp:
            row["tau_told_apart"] = figure(lambda some, *more: statistics.tau(truth, some, *more, pairs=pairs))[1]
            if main:
                row["disattenuated_tau"] = _rounded(statistics.disattenuated_tau(main["value"], sharp.of_means))
                row["disattenuated_pearson"] = _rounded(statistics.disattenuated_pearson(row["pearson"]["value"],
                                                                                         sharp.of_means))
        rankings.append(row)
    return {
        "archs": {"n": len(truth), "in_bands": int((found.bands >= 0).sum()), "codes": found.codes},
        "missing": found.missing,
        "truth": _truth(found, sharp, pairs), "rankings": rankings,
        "cost": _costs(plan, found), "contrasts": _contrasts(plan, draws),
        "resamples": resamples,
    }


def _truth(found, sharp, pairs):
    truth = found.truth
    about = {"trainings": int(found.counts.sum()), "twice_or_more": int((found.counts > 1).sum()),
             "lowest": _rounded(truth.min()), "highest": _rounded(truth.max()),
             "mean": _rounded(truth.mean()), "seconds": _rounded(found.truth_seconds),
             "means": [_rounded(value) for value in truth], "of_each": found.counts.tolist()}
    if sharp:
        about |= {"reliability_of_one": _rounded(sharp.single), "reliability_of_means": _rounded(sharp.of_means),
                  "true_deviation": _rounded(sharp.true_deviation), "noise": _rounded(sharp.noise),
                  "pearson_ceiling": _rounded(statistics.pearson_ceiling(sharp.of_means)),
                  "tau_ceiling": _rounded(statistics.tau_ceiling(sharp.of_means)),
                  "pairs_told_apart": _rounded(np.triu(pairs, 1).sum() / (len(truth) * (len(truth) - 1) / 2))}
    return about


def _figure(compute, scores, weights, shares, free):
    """(resamples over archs and seeds [resamples], the figure with its intervals as plain data or None).

    compute(scores[, weights]): the figure of each ranking [resamples, rankings]. shares: of the seeds in each resample.
    """
    of_seeds = compute(scores)[0]
    if not np.isfinite(of_seeds).all():
        return np.full(len(weights), np.nan), None
    draws = compute(scores, weights)
    both, value = (draws * shares).sum(axis=1), float(of_seeds.mean())
    return both, {
        "value": _rounded(value), "of_seeds": [_rounded(each) for each in of_seeds],
        "these_supernets": _bounds(percentile_interval(value, draws.mean(axis=1))),
        "these_recipes": _bounds(percentile_interval(value, both)) if free or len(scores) > 1 else None}


def _contrasts(plan, draws):
    """draws: by ranking (tau, its resamples, whether these are over seeds, too)."""
    named, free = [], words(plan.settings.free)
    for one, other, score in plan.contrasts:
        keys = [(name, "free" if name in free else score) for name in (one, other)]
        if all(key in draws for key in keys):
            (value, resampled, seeded), (its_value, its_resampled, its_seeded) = (draws[key] for key in keys)
            named.append(((one, other, score, seeded and its_seeded), value - its_value, resampled - its_resampled))
    p_values = [statistics.p_value(differences) for *_, differences in named]
    return [{"one": one, "other": other, "score": score, "over_seeds": over_seeds, "difference": _rounded(value),
             "interval": _bounds(percentile_interval(value, differences)), "p": _rounded(p), "p_holm": _rounded(holm),
             "detectable": _rounded(statistics.detectable(differences))}
            for ((one, other, score, over_seeds), value, differences), p, holm in zip(named, p_values,
                                                                                      statistics.holm(p_values))]


def _costs(plan, found):
    return {name: {"subnet_images": plan.subnet_images[name],
                   "epochs": next(task.settings.max_epoch for task in plan.supernets if task.name == name),
                   "subnets_per_step": next(task.settings.dyna_batch_size for task in plan.supernets
                                            if task.name == name),
                   "learning_rates": sorted(found.learning_rates[name]),
                   "seconds": _rounded(np.mean(found.seconds[name])) if found.seconds[name] else None}
            for name in plan.names}


def best(rankings: Sequence[dict], names: Sequence[str], score: str) -> dict | None:
    """The row of the recipe with the highest mean tau by a score."""
    rows = [row for row in rankings if row["name"] in names and row["score"] == score and row["tau"]]
    return max(rows, key=lambda row: row["tau"]["value"], default=None)


def _bounds(interval: Interval) -> list:
    return [_rounded(interval.low), _rounded(interval.high)]


def _rounded(value):
    return round(float(value), DECIMALS) if np.isfinite(value) else None
