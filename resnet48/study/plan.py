"""From a study file to tasks: which archs, which trainings with which settings, at which cost. Nothing runs in here."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..images import loader
from ..images.datasets import ImageSet, Split
from ..ranking.smoothing import FEWEST
from ..space import space_file
from ..space.arch import ArchConfig, SearchSpace
from ..system import config
from ..system.config import MAX_SEED
from ..system.errors import UserError, quoted
from ..system.options import StudiedRecipeSettings, StudiedTruthSettings, StudySettings, TrainSettings
from . import archs, trainings
from .scores import FREE, SCORES

RANDOM_WEIGHTS = "random weights"
#: Settings of a training that the study gives itself.
OWN = ("save_dir", "resume", "dry_run", "seed", "pretrained", "visualdl")
KINDS = ("rates", "truth", "supernets", "scores")
RATE_SEED = 1000  # of the trainings that try learning rates, which are no part of what is compared
BACKWARD = 3  # a training step costs so many forward passes
SHARING = 0.5  # of the cost of archs on their own, what the evaluator's tree costs


class Task(NamedTuple):
    """A unit of a study, whose result is one file. kind: one of KINDS.

    name: of the recipe, or the arch code. made_by: all that the result depends on, plain data, which `digest` is of.
    cost: images times MACs, a training's three times, to know how much is left.
    """

    kind: str
    name: str
    seed: int
    settings: TrainSettings
    made_by: dict
    cost: float
    arch: ArchConfig | None = None

    @property
    def label(self) -> str:
        """What its file is called, without the ending: name, seed and the digest."""
        return f"{self.name.replace(' ', '_')}-s{self.seed}-{_digest(self.made_by)}"


@dataclass(frozen=True)
class Plan:
    """A study before anything runs. tenths, bands: its archs, see `archs`. subnet_images: what each supernet costs."""

    settings: StudySettings
    space: SearchSpace
    images: ImageSet
    tenths: list
    bands: list
    rates: list
    truth: list
    supernets: list
    scores: list
    subnet_images: dict
    contrasts: tuple

    @property
    def archs(self) -> list[ArchConfig]:
        """All archs, in the order of scores."""
        return [arch for part in (*self.tenths, *self.bands) for arch in part]

    @property
    def names(self) -> list[str]:
        """Of the recipes, in the order of the study file."""
        return list(dict.fromkeys(task.name for task in self.supernets))

    @property
    def default(self) -> str:
        return self.settings.default or self.names[0]

    def band_of(self) -> np.ndarray:
        """Of each arch the number of its band, -1 for those that are spread: int64 [n]."""
        return np.repeat([*[-1] * len(self.tenths), *range(len(self.bands))],
                         [len(part) for part in (*self.tenths, *self.bands)])


def make(settings: StudySettings) -> Plan:
    """The plan of a study. Raises `UserError` for a study file that cannot be run as a whole."""
    shared = settings.shared or {}
    truth = _read(StudiedTruthSettings, settings.truth or {}, shared, "truth", (*OWN, "archs", "limit", "truth"))
    recipes = [_read(StudiedRecipeSettings, item, shared, f"supernets, item {place}", (*OWN, "max_epoch"))
               for place, item in enumerate(settings.supernets, 1)]
    names = [recipe.name for recipe in recipes]
    if not names or "" in names or len(set(names)) < len(names) or not all(map(_is_name, names)):
        raise UserError("a study compares the recipes of `supernets`, each with a name of its own made of letters, "
                        f"digits, blanks and signs other than / and :, got {quoted(names)}")
    for flag, given, known in (("scores", settings.scores, SCORES), ("free", settings.free, FREE)):
        for name in words(given):
            if name not in known:
                raise UserError(f"--{flag} takes {', '.join(known)}; got {quoted(name)}")
    if settings.default and settings.default not in names:
        raise UserError(f"--default takes one of the recipes ({', '.join(names)}), got {quoted(settings.default)}")
    images, space = trainings.load_images(truth), space_file.of(truth)
    if any(dataclasses.replace(space_file.of(each), activation=space.activation) != space for each in recipes):
        raise UserError("the truth and all recipes of a study must have one space; give it under `shared`")
    size = images.size, len(images.classes)
    tenths = archs.spread(space, settings.spread, settings.arch_seed, *size)
    bands = archs.bands(space, settings.bands, settings.arch_seed, *size, sum(tenths, [])) if settings.bands else []
    everything = [arch for part in (*tenths, *bands) for arch in part]
    if len(everything) < 3:
        raise UserError("a ranking needs at least 3 archs; --spread and --bands say how many")
    if "smoothed" in words(settings.scores) and len(everything) < FEWEST:
        raise UserError(f"--scores: {len(everything)} archs are too few to be smoothed, {FEWEST} are needed")
    macs = np.mean([arch.macs(*size) for arch in everything])
    context = {"images": _identity(images), "space": space.to_dict()}
    rates, supernets, subnet_images = [], [], {}
    for recipe in recipes:
        tries = [dataclasses.replace(recipe, lr=rate, rates="", max_epoch=_epochs(recipe, settings.rate_epochs))
                 for rate in _rates(recipe)]
        cost = BACKWARD * settings.rate_epochs * len(images.train) * float(macs)
        rates += [_training("rates", recipe.name, RATE_SEED, each, context, cost) for each in tries]
        recipe = dataclasses.replace(recipe, max_epoch=_epochs(recipe, settings.subnet_epochs))
        steps = recipe.max_epoch * loader.steps_per_epoch(images, recipe.batch_size, 1)
        subnet_images[recipe.name] = steps * recipe.batch_size * recipe.dyna_batch_size
        cost = BACKWARD * subnet_images[recipe.name] * float(macs)
        how = {"rate_epochs": settings.rate_epochs} if tries else {}
        supernets += [_training("supernets", recipe.name, seed, recipe, context, cost, more=how)
                      for seed in _seeds(recipe.seeds, f"supernets, {recipe.name}")]
    truth_tasks = _truth_tasks(truth, (*tenths, *bands), size, len(images.train), context)
    plan = Plan(settings, space, images, tenths, bands, rates, truth_tasks, supernets, [], subnet_images,
                _contrasts(settings, names))
    return dataclasses.replace(plan, scores=_score_tasks(plan, everything, float(macs)))


def words(text: str) -> list[str]:
    """The parts of a text with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _read(kind, values, shared, where, refused):
    for given, place in ((values, where), (shared, "shared")):
        for name in refused:
            if name in given:
                raise UserError(f"study, {place}: the study sets {name} itself" + (
                    ", from subnet_epochs, which is the same for all recipes" if name == "max_epoch" else ""))
    return config.from_mapping(kind, values, f"study, {where}", shared)


def _is_name(text):
    return text != RANDOM_WEIGHTS and text.isprintable() and not set(text) & set("/:|") and len(text) <= 60 and \
        text not in FREE


def _seeds(text, where):
    try:
        seeds = [int(part) for part in words(text)]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise UserError(f"study, {where}: seeds takes different whole numbers of 0 or more, such as 0,1,2; got "
                        f"{quoted(text)}")
    return seeds


def _rates(recipe):
    """The learning rates that are tried; none where there is nothing to choose."""
    try:
        rates = [float(part) for part in words(recipe.rates)]
    except ValueError:
        rates = [0.0]
    if len(rates) == 1 or len(set(rates)) < len(rates) or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"supernets, {recipe.name}: rates takes two or more different learning rates, such as "
                        f"0.1,0.2,0.4; got {quoted(recipe.rates)}")
    return rates


def _epochs(recipe, subnet_epochs):
    """Epochs at which a recipe costs as much as the others, in subnet-images."""
    if subnet_epochs % recipe.dyna_batch_size:
        raise UserError(f"--subnet_epochs (or --rate_epochs) {subnet_epochs} is no multiple of the "
                        f"{recipe.dyna_batch_size} subnets per step (dyna_batch_size) of {quoted(recipe.name)}, so its "
                        "cost cannot be that of the others")
    return subnet_epochs // recipe.dyna_batch_size


def _truth_tasks(settings, parts, size, images, context):
    first, *more = _seeds(settings.seeds, "truth")
    # One of each part after the other, so that the truth of a study that is stopped is spread over the space, too.
    placed = archs.in_turn(parts)
    pairs = [(arch, first) for _, _, arch in placed]
    pairs += [(arch, seed) for seed in more for place, number, arch in placed if (place + number) % 2]
    return [_training("truth", arch.code, seed, settings, context,
                      BACKWARD * settings.max_epoch * images * arch.macs(*size), arch) for arch, seed in pairs]


def _training(kind, name, seed, settings, context, cost, arch=None, more=None):
    """A training; what its result depends on are the settings that are not the default ones, and what they lead to.

    more: settings of the study that it depends on.
    """
    settings = dataclasses.replace(settings, seed=seed)
    values, defaults = config.as_data(settings), config.as_data(type(settings)())
    left_out = {item.name for item in dataclasses.fields(settings) if item.metadata["resumable"]} - {"max_epoch"}
    left_out |= {"name", "seeds", "space", "seed"}
    own = {name: value for name, value in values.items() if name not in left_out and value != defaults[name]}
    made_by = {"settings": {**own, **(more or {})}, "seed": seed, "arch": arch and arch.code, **context}
    return Task(kind, name, seed, settings, made_by, float(cost), arch)


def _score_tasks(plan, everything, macs):
    asked = plan.settings.val_images
    images = min(asked or len(plan.images.val), len(plan.images.val))
    cost = SHARING * len(everything) * images * macs
    common = {"archs": [arch.code for arch in everything], "val_images": images}
    tasks = [Task("scores", task.name, task.seed, task.settings, {"supernet": task.made_by, **common}, cost)
             for task in plan.supernets]
    like = next(task.settings for task in plan.supernets if task.name == plan.default)
    # With zero_residuals nothing but the shortcuts would be left of random weights.
    random = dataclasses.replace(like, zero_residuals=False, name=RANDOM_WEIGHTS)
    for seed in range(plan.settings.random_weights):
        made_by = {**plan.supernets[0].made_by, "settings": {"init": random.init}, "seed": seed}
        tasks.append(Task("scores", RANDOM_WEIGHTS, seed, dataclasses.replace(random, seed=seed),
                          {"supernet": made_by, **common}, cost))
    return tasks


def _contrasts(settings, names):
    known, scores, found = [*names, RANDOM_WEIGHTS, *words(settings.free)], words(settings.scores), []
    if not scores:
        raise UserError(f"--scores takes {', '.join(SCORES)}, one or more")
    for each in settings.contrasts:
        score = each.score or scores[0]
        if each.one not in known or each.other not in known or each.one == each.other or score not in scores:
            raise UserError(f"a contrast is of two of {', '.join(known)}, by one of the scores {', '.join(scores)}; "
                            f"got {quoted(each.one)} and {quoted(each.other)} by {quoted(score)}")
        found.append((each.one, each.other, score))
    return tuple(found)


def _identity(images: ImageSet) -> dict:
    """What tells image sets apart, without reading their files."""
    return {"classes": list(images.classes), "size": images.size,
            "train": _split_identity(images.train), "val": _split_identity(images.val)}


def _split_identity(split: Split) -> list:
    pixels = split.images
    content = hashlib.sha256(pixels.tobytes()).hexdigest()[:16] if isinstance(pixels, np.ndarray) else \
        split.names_digest()
    return [len(split), content, hashlib.sha256(np.asarray(split.labels).tobytes()).hexdigest()[:16]]


def _digest(data: dict) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def rows_of(tasks: Sequence[Task], name: str) -> list[Task]:
    """The tasks of one recipe or arch, by seed."""
    return sorted((task for task in tasks if task.name == name), key=lambda task: task.seed)
