"""Recipes: what is trained by what loss for how long. A recipe is a list of stages, most often one.

A YAML file of configs/ names samplers and objectives; here the names become functions, objects and steps.
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..space.arch import SearchSpace
from ..space.split import Split
from ..system import runtime
from ..system.errors import UserError, quoted, shown
from ..system.options import StandaloneSettings, SupernetSettings, TrainSettings, TruthSettings
from . import few_shot, objectives, optim, samplers
from .fairness import ChannelFairness


@dataclass(frozen=True)
class Stage:
    """Part of a training.

    sampler(seed, moment): (role, arch) pairs of a step of the stage, see `samplers`. roles: all that these and the
    objective can give. epochs: how long, in proportion to the other stages. lr, warmup: per 256 images and in
    epochs; None as in the settings. split: of the net from the first step of this stage on, if it is not split before.
    strata: what the sampler draws from where that follows what is measured after each epoch, else None. fairness: what
    is done to the gradients of the supernet before a step, or None.
    """

    sampler: Callable
    objective: objectives.Objective
    roles: tuple[str, ...]
    epochs: float = 1.0
    lr: float | None = None
    warmup: float | None = None
    split: Split | None = None
    strata: samplers.Strata | None = None
    fairness: ChannelFairness | None = None


class Span(NamedTuple):
    """A stage in steps of a run: first .. last - 1, counted from 0."""

    index: int
    first: int
    last: int
    seed: int
    stage: Stage
    lr_of: Callable[[int], float]
    warmup_steps: int
    steps_per_epoch: int

    def archs(self, step: int) -> samplers.Pairs:
        """What to train at a step of the run."""
        return self.stage.sampler(self.seed, self.moment(step))

    def lr(self, step: int) -> float:
        """The learning rate at a step of the run."""
        return self.lr_of(step - self.first)

    def moment(self, step: int) -> samplers.Moment:
        """Where a step of the run is in the stage."""
        own = step - self.first
        return samplers.Moment(own, self.last - self.first, own / self.steps_per_epoch, own < self.warmup_steps,
                               self.seed)


def standalone(settings: StandaloneSettings | TruthSettings) -> list[Stage]:
    """The recipe of a net on its own."""
    alone = objectives.Standalone(settings.label_smoothing, settings.dropout)
    return [Stage(lambda seed, moment: [], alone, alone.roles)]


def supernet(settings: SupernetSettings, candidates: SearchSpace | samplers.ArchList,
             teacher: Callable | None = None) -> list[Stage]:
    """The recipe that the settings name, for a supernet.

    candidates: a `SearchSpace` or a `samplers.ArchList`. teacher: a fixed net, images [N, 3, H, W] to logits
    [N, classes], for objectives that distil from one. Raises `UserError` for names and hyper-parameters that are not
    there, for a missing teacher, for a number of subnets that a sampler cannot give, and for two splits.
    """
    stages = [_stage(settings, each, candidates, teacher) for each in settings.stages or (None,)]
    splits = list(dict.fromkeys(stage.split for stage in stages if stage.split))
    if len(splits) > 1:
        raise UserError(f"a net can be split once, and the stages ask for {' and '.join(map(str, splits))}")
    return stages


def in_steps(stages: list[Stage], settings: TrainSettings, steps_per_epoch: int, batches: int) -> list[Span]:
    """The stages in steps: they share out `max_epoch` in proportion to their epochs. The last ends with the run.

    batches: in a step, over all processes.
    """
    scale, done, first, spans = settings.max_epoch / sum(stage.epochs for stage in stages), 0.0, 0, []
    for index, stage in enumerate(stages):
        done += stage.epochs * scale
        last = settings.max_epoch * steps_per_epoch if index == len(stages) - 1 else \
            optim.epochs_to_steps(done, steps_per_epoch)
        base = optim.scaled_lr(stage.lr or settings.lr, settings.batch_size, batches)
        seed = settings.seed if index == 0 else int(np.random.SeedSequence((settings.seed, index)).generate_state(1)[0])
        warmup = warmup_steps(stage, index, settings, steps_per_epoch)
        lr_of = optim.schedule(settings, base, last - first, warmup, steps_per_epoch)
        spans.append(Span(index, first, last, seed, stage, lr_of, warmup, steps_per_epoch))
        first = last
    return spans


def span_at(spans: list[Span], step: int) -> Span:
    """The stage that a step (from 0) belongs to; the last one for what lies behind."""
    return next((span for span in spans if step < span.last), spans[-1])


def warmup_steps(stage: Stage, index: int, settings: TrainSettings, steps_per_epoch: int) -> int:
    """Steps of warm-up at the beginning of a stage."""
    if stage.warmup is None and index == 0 and settings.warmup_steps is not None:
        return settings.warmup_steps
    warmup = stage.warmup if stage.warmup is not None else settings.warmup if index == 0 else 0.0
    return optim.epochs_to_steps(warmup, steps_per_epoch)


def note_long_warmups(spans: list[Span]) -> None:
    """A line in the log for each stage that ends before its warm-up does."""
    for span in spans:
        if span.warmup_steps > span.last - span.first:
            runtime.log_main(f"note: the warm-up of stage {span.index + 1} is longer than the stage, which never "
                             "reaches its learning rate")


def split_of(stages: list[Stage]) -> Split | None:
    """How the net of a run is split at its end."""
    return next((stage.split for stage in stages if stage.split), None)


def roles(stages: list[Stage]) -> tuple[str, ...]:
    """Every role of a loss of any stage, in order."""
    return tuple(dict.fromkeys(role for stage in stages for role in stage.roles))


def named(text: str, table: dict, what: str) -> tuple[object, dict]:
    """`name` or `name(key=value, ...)` as (entry of the table, values by key), numbers and booleans as such.

    what: what the table is of, in errors. The keys are checked by the callers. Raises `UserError`.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if not match:
        raise UserError(f"--{what} takes a name or name(key=value, ...), got {quoted(text)}")
    name, inside = match.groups()
    if name not in table:
        raise UserError(f"--{what} takes {', '.join(table)}; got {quoted(name)}")
    values = {}
    for part in filter(None, map(str.strip, (inside or "").split(","))):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals:
            raise UserError(f"--{what} {shown(text)}: {quoted(part)} is not of the form key=value")
        values[key] = value
    return table[name], values


def _stage(settings, given, candidates, teacher):
    sampler_text = given and given.sampler or settings.sampler
    objective_text = given and given.objective or settings.objective
    sampler, sampler_values = named(sampler_text, samplers.SAMPLERS, "sampler")
    objective_class, values = named(objective_text, objectives.OBJECTIVES, "objective")
    sampler_values = _hyper_parameters(sampler.draw, sampler_values, f"--sampler {shown(sampler_text)}")
    values = _hyper_parameters(objective_class, values, f"--objective {shown(objective_text)}")
    objective = objective_class(**{"label_smoothing": settings.label_smoothing, **values})
    if objective.needs_teacher and teacher is None:
        raise UserError(f"--objective {shown(objective_text)} distils from the full net, so it needs --pretrained")
    if settings.share == "subnets":
        _require_shareable(objective, objective_text, settings.dyna_batch_size)
    objective.prepare(candidates, teacher)
    strata = sampler.adapts and sampler.adapts(candidates)

    def draw(some_candidates, seed, moment):
        return sampler.draw(some_candidates, seed, moment, settings.dyna_batch_size, **sampler_values)

    sample, split = functools.partial(draw, strata or candidates), None
    if given and given.split:
        if strata:
            raise UserError(f"--sampler {shown(sampler_text)} follows the losses of all archs, but a stage with "
                            "`split` draws from one group: another sampler, or no split")
        split_by, split_values = named(given.split, few_shot.SPLITS, "split")
        split_values = _hyper_parameters(split_by, split_values, f"split {shown(given.split)}")
        split, groups = split_by(candidates, **split_values)
        sample = few_shot.grouped(draw, groups)
    # A wrong --dyna_batch_size shows here and not after the images have been read.
    sample(settings.seed, samplers.Moment(0, 1, 0.0))
    lengths = {} if given is None else {"epochs": given.epochs, "lr": given.lr, "warmup": given.warmup}
    return Stage(sample, objective, (*sampler.roles, *objective.roles), split=split, strata=strata,
                 fairness=_fairness(settings, candidates, sampler, sampler_text), **lengths)


def _require_shareable(objective, text, count):
    if not objective.logits_only:
        raise UserError(f"--objective {shown(text)} needs more of a step's subnets than the logits of each, so they "
                        "cannot be shared out: --share images")
    if runtime.world_size() > count:
        raise UserError(f"--share subnets: {runtime.world_size()} processes are more than the {count} subnets of a "
                        "step (--dyna_batch_size)")


def _fairness(settings, candidates, sampler, text):
    if not settings.channel_fairness:
        return None
    if not sampler.uniform:
        countable = ", ".join(name for name, each in samplers.SAMPLERS.items() if each.uniform)
        raise UserError(f"--channel_fairness needs a sampler whose uses of a channel can be counted beforehand "
                        f"({countable}); those of --sampler {shown(text)} cannot")
    if any(each.split for each in settings.stages):
        raise UserError("--channel_fairness counts the channels of one net; it and a stage with `split` exclude each "
                        "other")
    extremes = ["largest" in sampler.roles, "smallest" in sampler.roles]
    random = settings.dyna_batch_size - sum(extremes) if "random" in sampler.roles else 0
    return ChannelFairness(candidates, *map(int, extremes), random)


def _hyper_parameters(function, values, where):
    """Texts as the types of a function's (or class's) parameters with a default. Raises `UserError`."""
    known = {name: parameter.annotation for name, parameter in inspect.signature(function).parameters.items()
             if parameter.default is not parameter.empty}
    converted = {}
    for key, text in values.items():
        if key not in known:
            raise UserError(f"{where}: there is no hyper-parameter {quoted(key)}; there are "
                            f"{', '.join(known) or 'none'}")
        try:
            converted[key] = {"true": True, "false": False}[text] if known[key] is bool else known[key](text)
        except (KeyError, ValueError):
            raise UserError(f"{where}: {key} takes a value of type {known[key].__name__}, got {quoted(text)}") from None
    return converted
