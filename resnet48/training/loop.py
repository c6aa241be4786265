"""The one training loop, for standalone nets and for the supernet."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle

from ..images import cache, datasets, loader
from ..nets import conv_algorithms, layers
from ..system import files, locks, runtime
from ..system.errors import Stopped, UserError
from ..system.options import TrainSettings
from . import checkpoint, held_out, metrics, objectives, optim, recipes, sharing
from .run import start

KEEP_CHECKPOINTS = 3

Validate = Callable[[paddle.nn.Layer], dict[str, float]]


class Diverged(UserError):
    """The loss is no longer finite."""


def fit(net: paddle.nn.Layer, stages: list[recipes.Stage], images: datasets.ImageSet, settings: TrainSettings,
        validate: Validate | None = None) -> dict[str, float]:
    """Train `net` by a recipe and return the accuracies that `validate` gave last.

    stages: of `recipes.supernet` or `recipes.standalone`. validate(net): accuracies in percent by name, after each
    `eval_freq` epochs and at the end, or None to go without; the checkpoint with the best mean is kept.
    Writes checkpoints, config.yaml and metrics.csv to `settings.save_dir`; with `settings.ema` the checkpoints hold,
    and `validate` sees, the moving average.
    Raises `Diverged` on a loss or weights that are not finite, `Stopped` after a signal that asked to stop, `UserError`
    where another training works in the same folder.
    """
    with runtime.StopRequest() as stop, _alone_in(settings.save_dir):
        kept_out = ()
        if any(stage.strata for stage in stages):
            images, kept_out = held_out.apart(images, settings.seed)
        run = start(net, stages, images, settings)
        _train(run, images, settings, validate, stop, kept_out)
        if validate and not run.accuracies:  # resumed at its end, and trained without a validation before
            run.accuracies = validate(run.kept_net)
        if runtime.rank() == 0:
            checkpoint.publish(run.saved, settings.save_dir)
    # Since the last step: a program that trains several nets must stop, too.
    if runtime.all_reduce_sum([stop.asked])[0]:
        _stop(stop, run, settings)
    return run.accuracies


def _alone_in(folder):
    """A block in which no other training works in a folder: both would write the same files."""
    if runtime.rank() != 0:
        return contextlib.nullcontext()
    return locks.held(os.path.join(folder, ".lock"), f"another training works in {folder}: wait until it has ended, "
                                                     "stop it, or choose another --save_dir")


def _train(run, images, settings, validate, stop, kept_out):
    (part, parts), vote = sharing.image_share(settings), False
    roles = recipes.roles([span.stage for span in run.spans])
    since, show = metrics.Meter(run.step, roles), _shower(settings, run.step, roles)
    shown = cache.for_training(images) if settings.train_cache else images
    taken = loader.batches(shown, run.step, run.steps, settings.batch_size, settings.seed, part, parts,
                           runtime.log_rank, lambda step: run.span(step).stage.objective.views)
    run.net.train()
    with loader.dead_workers_named(), contextlib.closing(taken):
        for step in runtime.counting(run.step, run.steps, "steps"):
            with since.waiting():
                pixels, labels = next(taken)
            span = run.span(step)
            if span.stage.split and not run.net.split:
                runtime.log_main(f"step {step}: the net is split by the {span.stage.split}")
                run.divide(span.stage.split)
            archs, lr = span.archs(step), span.lr(step)
            objective, moment = span.stage.objective, span.moment(step)
            losses = _gradients(objective, run.precision, run.net, archs, pixels, labels, moment, settings.accumulate,
                                settings.share)
            vote_before, vote = vote, sharing.combine_gradients(settings)(optim.trainable(run.net), stop.asked)
            if span.stage.fairness:
                span.stage.fairness.scale(run.net)
            _update(run, objective.trained(archs) if settings.freeze_unused else [], lr)
            losses |= _update_again(run, objective, moment, settings, lr)
            _count_step(run)
            if run.step == span.last:
                objective.end()
            since.add(losses, len(labels) * parts)
            # All ranks stop after the same step. The vote of the step before is there already, this one's is not.
            stopping = stop.asked if runtime.world_size() == 1 else bool(vote_before)
            due = _due(run, settings, stopping)
            if due.log:
                row = since.flush(run.step, run.steps_per_epoch, run.steps, lr)
                _require_finite(row, run, settings)
                show(row)
            with since.paused():
                if due.measure and span.stage.strata:
                    held_out.observe(span.stage.strata, run.net, *kept_out)
                if due.validate and validate:
                    _validate(run, validate)
                if due.save:
                    _save(run, settings)
            if stopping:
                _stop(stop, run, settings)


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    measure: bool  # before what is measured is saved
    validate: bool
    save: bool


def _due(run, settings, stopping):
    epoch, rest = divmod(run.step, run.steps_per_epoch)
    ends, epoch_ends = run.step == run.steps, rest == 0
    save = stopping or epoch_ends and (ends or epoch % settings.save_freq == 0) or \
        settings.save_every_steps > 0 and run.step % settings.save_every_steps == 0
    validate = epoch_ends and (ends or settings.eval_freq > 0 and epoch % settings.eval_freq == 0)
    return Due(save or epoch_ends or run.step % settings.log_freq == 0, epoch_ends and not ends, validate, save)


def _gradients(objective, precision, net, archs, pixels, labels, moment, parts=1, share="images"):
    """Leave the gradients of one step in the parameters; the losses by role, means over the parts of the batch."""
    gradients, forward = objectives.Gradients(net, precision.scale, parts), precision.net(net)
    batch = [(pixels, labels)] if parts == 1 else zip(paddle.split(pixels, parts), paddle.split(labels, parts))
    for part, (some_pixels, some_labels) in enumerate(batch):
        images = datasets.normalize(some_pixels)
        with conv_algorithms.shared_images(images):
            subnets = forward if share == "images" else sharing.subnets_shared(forward, archs, images, net.num_classes)
            objective.step(subnets, archs, images, some_labels, gradients, moment._replace(part=part))
    return gradients.means()


def _update(run, used_archs, lr):
    """One step of the optimizer. used_archs: what is used of the weights, the rest is frozen; all of it where empty."""
    run.optimizer.set_lr(lr)
    with optim.freeze_unused(run.net, run.optimizer, used_archs) if used_archs else contextlib.nullcontext():
        run.precision.step(run.optimizer)
    run.optimizer.clear_grad(set_to_zero=False)  # absent, not zero: momentum must not move what no subnet used


def _update_again(run, objective, moment, settings, lr):
    """The other update of a step, if the objective asks for one; its losses by role."""
    gradients = objectives.Gradients(run.net, run.precision.scale, settings.accumulate)
    archs = objective.after(run.precision.net(run.net), gradients, moment)
    if archs:
        runtime.average_gradients(optim.trainable(run.net), False)
        _update(run, archs if settings.freeze_unused else [], lr)
    return gradients.means()


def _count_step(run):
    run.step += 1
    if run.ema:
        run.ema.update(run.step)


def _shower(settings, step, roles):
    """A function that logs a row and writes it to metrics.csv; on rank 0 only."""
    if runtime.rank() != 0:
        return lambda row: None
    table = metrics.Table(settings.save_dir, step, roles)
    writer = metrics.visualdl_writer(settings.save_dir) if settings.visualdl else None

    def show(row):
        table.write(row)
        if writer:
            metrics.add_to(writer, row)
        runtime.log_main(metrics.line(row, settings.max_epoch))

    return show


def _validate(run, validate):
    """Evaluate, and note whether it is the best so far."""
    runtime.broadcast_from_rank0(run.kept_net.state_dict().values())  # running statistics: those of rank 0
    run.accuracies = validate(run.kept_net)
    run.net.train()
    mean = float(np.mean(list(run.accuracies.values())))
    if run.best is None or mean > run.best:
        run.best, run.best_step = mean, run.step
    runtime.log_main(f"epoch {run.step // run.steps_per_epoch}: top-1 " + ", ".join(
        f"{name} {value:.2f} %" for name, value in run.accuracies.items()))


def _save(run, settings):
    _require_finite_weights(run, settings)
    if runtime.rank() == 0:
        run.saved = checkpoint.save(settings.save_dir, run.net, run.optimizer, run.state(), KEEP_CHECKPOINTS,
                                    run.ema and run.ema.net, run.span(run.step).stage.objective.tensors())


def _stop(stop, run, settings):
    farewell = "a dry run keeps nothing" if settings.dry_run else \
        f"everything is in {settings.save_dir}, the same command with --resume auto resumes"
    runtime.log_main(f"stopped by {stop.name} after step {run.step} of {run.steps}; {farewell}")
    raise Stopped(stop.name)


def _require_finite(row, run, settings):
    if row["not_finite"]:
        step, roles = row["not_finite"]
        raise _diverged(f"the loss ({', '.join(roles)}) is not finite at step {step}", step, run, settings)


def _require_finite_weights(run, settings):
    """Before they are saved: the last step may have spoiled them though its loss was still finite."""
    bad = [name for name, value in run.net.state_dict().items() if not paddle.isfinite(value).all()]
    if bad:
        raise _diverged(f"the weights ({len(bad)}, such as {bad[0]}) are not finite after step {run.step}", run.step,
                        run, settings)


def _diverged(what, step, run, settings):
    """step: from 1."""
    span = run.span(step - 1)
    codes = ", ".join(f"{role} {arch.code}" for role, arch in span.archs(step - 1))
    last = checkpoint.newest(settings.save_dir, runtime.log_main)
    return Diverged(f"{what}, at learning rate {span.lr(step - 1):.4g}{f', archs {codes}' if codes else ''}; "
                    f"the last good checkpoint is {last.path if last else 'none'}; a lower --lr or a longer --warmup "
                    "may help")


# --- before a run -----------------------------------------------------------------------------------------------------

def require_runnable(images: datasets.ImageSet, settings: TrainSettings) -> None:
    """Raise `UserError` now, before images are decoded, for a run that could not take a step or keep anything."""
    files.require_writable(os.path.join(settings.save_dir, "config.yaml"))
    loader.steps_per_epoch(images, settings.batch_size, sharing.image_share(settings)[1])  # raises where there is none
    if settings.train_cache:
        cache.require_folder(images)
    if settings.batch_size % settings.accumulate:
        raise UserError(f"--accumulate {settings.accumulate} must divide --batch_size {settings.batch_size}")
    layers.require_values(settings.batch_size // settings.accumulate, images.size,
                          f"--batch_size {settings.batch_size} in {settings.accumulate} part(s) (--accumulate)",
                          "a larger --batch_size or --image_size, or a smaller --accumulate")
    if settings.clip_norm and settings.clip_value:
        raise UserError("--clip_norm and --clip_value exclude each other")
    if settings.visualdl and not settings.dry_run:
        metrics.require_visualdl()
    runtime.usable_precision(settings.precision)


def dry_run(net: paddle.nn.Layer, stages: list[recipes.Stage], images: datasets.ImageSet, settings: TrainSettings,
            validate_of: Callable[[datasets.ImageSet], Validate]) -> dict[str, float]:
    """Two steps, a checkpoint, a reload and one evaluation on a cut-down set, then what a real run would do.

    validate_of(images): makes the `validate` of `fit` for an image set.
    """
    _, batches = sharing.image_share(settings)
    kept_out = held_out.count(images) if any(stage.strata for stage in stages) else 0
    per_epoch = (len(images.train) - kept_out) // (settings.batch_size * batches)
    recipes.note_long_warmups(recipes.in_steps(stages, settings, per_epoch, batches))
    few = datasets.subset(images, 2 * settings.batch_size * batches + kept_out, settings.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(settings, max_epoch=1, save_dir=folder, log_freq=1, resume="none", warmup=0.0,
                                    warmup_steps=None, visualdl=False, train_cache=False)
        # A step in each, if there are two.
        of_one_length = [dataclasses.replace(stage, epochs=1.0, warmup=None) for stage in stages]
        accuracies = fit(net, of_one_length, few, short, validate_of(few))
        if runtime.rank() == 0:
            checkpoint.build(checkpoint.load(folder))
            size = sum(os.path.getsize(os.path.join(folder, name)) for name in ("final.pdparams", "final.pdopt"))
            made = -(-settings.max_epoch // settings.save_freq)
            if settings.save_every_steps:
                made += settings.max_epoch * per_epoch // settings.save_every_steps
            saved = min(KEEP_CHECKPOINTS + 1, made) + 1  # the newest, the best, and what is published
            runtime.log_main(f"dry run passed. A real run: {settings.max_epoch} epochs of {per_epoch} steps, "
                             f"{settings.max_epoch * per_epoch} steps in all, {settings.batch_size * batches} "
                             f"images each; up to {saved} checkpoints of {size / 1e6:.1f} MB in {settings.save_dir}")
    return accuracies
