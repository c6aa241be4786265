"""The one training loop, for standalone nets and for the supernet."""

import contextlib
import dataclasses
import os
import tempfile

import numpy as np
import paddle

from . import batches, cache, checkpoint, config as settings, data, files, meter, optim, runtime, views
from .errors import UserError
from .precision import Precision

KEEP_CHECKPOINTS = 3
#: Settings that may change when a run is resumed: they do not change what has been trained so far.
FREE_ON_RESUME = {"max_epoch", "resume", "save_dir", "save_freq", "save_every_steps", "log_freq", "eval_freq",
                  "visualdl", "channels_last", "num_workers", "device", "dry_run", "pretrained", "mode",
                  "skip_bad_images", "image_dir", "cache_dir", "truth", "limit", "archs"}


class Diverged(UserError):
    """The loss is no longer finite."""


def fit(net, objective, archs_of_step, images, config, watch):
    """Train `net` and return the accuracies that `watch` saw last.

    objective: see `objectives`. archs_of_step(step): (role, arch) pairs, see `sampling`. images: a `data.ImageSet`.
    watch(net): accuracies in percent by name, after each `eval_freq` epochs and at the end, or None to go without;
    the checkpoint with the best mean is kept.
    Writes checkpoints, config.yaml and metrics.csv to `config.save_dir`; with `config.ema` the checkpoints hold, and
    `watch` sees, the moving average.
    Raises `Diverged` on a loss or weights that are not finite, `SystemExit` (code 0) after a signal that asked to stop.
    """
    with runtime.StopRequest() as stop:
        return _fit(net, objective, archs_of_step, images, config, watch, stop)


def _fit(net, objective, archs_of_step, images, config, watch, stop):
    ranks, rank = runtime.ranks(), runtime.rank()
    per_epoch = batches.steps_per_epoch(images, config.batch_size, ranks)
    steps, rate_of = config.max_epoch * per_epoch, optim.schedule(config, per_epoch, ranks)
    optimizer = optim.sgd(net, config.momentum, config.weight_decay, config.no_decay_norm,
                          optim.clipping(config.clip_norm, config.clip_value))
    precision = Precision(config.amp, config.amp_dtype, config.accumulate)
    average = optim.Average(net, config.ema) if config.ema else None
    state = {"step": 0, "best": None, "best_step": None, "accuracies": {}, "ranks": ranks, "images": len(images.train),
             "names": images.train.names_digest(), "classes": list(images.classes),
             "settings": dataclasses.asdict(config), "paddle": paddle.__version__}
    state.update(_resume(net, optimizer, precision, average, state, config))
    saved = state.pop("saved", None)
    runtime.same_everywhere(net.state_dict().values())
    kept_net = average.net if average else net
    since, vote = meter.Meter(state["step"]), False
    show = _shower(config, state["step"]) if rank == 0 else lambda row: None
    if rank == 0:
        files.write_text(os.path.join(config.save_dir, "config.yaml"), settings.dump(config))
    runtime.say(f"training {images.name}: {len(images.train)} images of {len(images.classes)} classes, "
                f"{images.size} px; steps {state['step']} to {steps}, {per_epoch} per epoch, "
                f"on {ranks} process(es); images by {views.libraries()}")

    shown = cache.for_training(images) if config.train_cache else images
    taken = batches.batches(shown, state["step"], steps, config.batch_size, config.seed, rank, ranks, runtime.note)
    net.train()
    with batches.dead_workers_named(), contextlib.closing(taken):
        for step in runtime.counting(state["step"], steps, "steps"):
            with since.waiting():
                pixels, labels = next(taken)
            rate, archs = rate_of(step), archs_of_step(step)
            optimizer.set_lr(rate)
            losses = _gradients(objective, precision, net, archs, pixels, labels)
            vote_before, vote = vote, runtime.average_gradients(optim.trainable(net), stop.asked)
            with optim.unused_held(net, optimizer, archs) if config.hold_unused and archs else contextlib.nullcontext():
                precision.step(optimizer)
            optimizer.clear_grad(set_to_zero=False)  # absent, not zero: momentum must not move what no subnet used
            state["step"] = done = step + 1
            if average:
                average.update(done)
            since.add(losses, len(labels) * ranks)
            # All ranks stop after the same step. The vote of the step before is there already, this one's is not.
            stopping = stop.asked if ranks == 1 else bool(vote_before)
            epoch, epoch_ends = done // per_epoch, done % per_epoch == 0
            saving = stopping or epoch_ends and (epoch % config.save_freq == 0 or done == steps) or \
                config.save_every_steps and done % config.save_every_steps == 0
            if done % config.log_freq == 0 or epoch_ends or saving:
                row = since.row(done, per_epoch, steps, rate)
                _require_finite(row, rate_of, config, archs_of_step)
                show(row)
            if watch and epoch_ends and (done == steps or config.eval_freq and epoch % config.eval_freq == 0):
                with since.paused():
                    runtime.same_everywhere(kept_net.state_dict().values())  # running statistics: those of rank 0
                    _watch(watch, kept_net, state, epoch)
                    net.train()
            if saving:
                with since.paused():
                    _require_finite_weights(net, done, rate, config, archs)
                    if rank == 0:
                        saved = checkpoint.save(config.save_dir, net, optimizer, {**state, "scaler": precision.state()},
                                                KEEP_CHECKPOINTS, average and average.net)
            if stopping:
                _stop(stop, done, steps, config)
        if watch and not state["accuracies"]:  # resumed at its end, and trained without a watch before
            state["accuracies"] = watch(kept_net)
    if rank == 0:
        checkpoint.publish(saved, config.save_dir)
    if runtime.total([stop.asked])[0]:  # since the last step: whoever trains one net after the other must not go on
        _stop(stop, steps, steps, config)
    return state["accuracies"]


def _gradients(objective, precision, net, archs, pixels, labels):
    """Leave the gradients of one step in the parameters; the losses by role, means over the parts of the batch."""
    run, parts = precision.net(net), precision.parts
    if parts == 1:
        return objective(run, archs, data.normalize(pixels), labels, precision.backward)
    losses = [objective(run, archs, data.normalize(some), theirs, precision.backward)
              for some, theirs in zip(paddle.split(pixels, parts), paddle.split(labels, parts))]
    return {role: sum(each[role] for each in losses) / parts for role in losses[0]}


def _shower(config, step):
    """A function that shows a row to whoever watches, and keeps it."""
    table = meter.Table(config.save_dir, step)
    writer = meter.visualdl_writer(config.save_dir) if config.visualdl else None

    def show(row):
        table.write(row)
        if writer:
            meter.add_to(writer, row)
        runtime.say(meter.line(row, config.max_epoch))

    return show


def _watch(watch, net, state, epoch):
    """Evaluate, and note whether it is the best so far."""
    state["accuracies"] = watch(net)
    mean = float(np.mean(list(state["accuracies"].values())))
    if state["best"] is None or mean > state["best"]:
        state["best"], state["best_step"] = mean, state["step"]
    runtime.say(f"epoch {epoch}: top-1 " + ", ".join(
        f"{name} {value:.2f} %" for name, value in state["accuracies"].items()))


def _stop(stop, step, steps, config):
    farewell = "a dry run keeps nothing" if config.dry_run else \
        f"everything is in {config.save_dir}, the same command with --resume auto goes on"
    runtime.say(f"stopped by {stop.name} after step {step} of {steps}; {farewell}")
    raise SystemExit(0)


def require_runnable(images, config):
    """Raise `UserError` now, before images are decoded, for a run that could not take a step or keep anything."""
    files.require_writable(os.path.join(config.save_dir, "config.yaml"))
    per_epoch = batches.steps_per_epoch(images, config.batch_size, runtime.ranks())
    if config.train_cache:
        cache.require_folder(images)
    if config.batch_size % config.accumulate:
        raise UserError(f"--accumulate {config.accumulate} must divide --batch_size {config.batch_size}")
    if config.clip_norm and config.clip_value:
        raise UserError("--clip_norm and --clip_value exclude each other")
    if config.visualdl and not config.dry_run:
        meter.require_visualdl()
    if optim.warmup_steps(config, per_epoch) > config.max_epoch * per_epoch:
        runtime.say("note: the warm-up is longer than the run, which never reaches its learning rate")
    if config.amp != "none" and not paddle.device.get_device().startswith("gpu"):
        runtime.say(f"note: --amp {config.amp} has no effect on a CPU, where Paddle computes in float32")


def dry_run(net, objective, archs_of_step, images, config, watch_of):
    """Two steps, a checkpoint, a reload and one evaluation on a cut-down set, then what a real run would do.

    watch_of(images): makes the `watch` of `fit` for an image set.
    """
    ranks = runtime.ranks()
    per_epoch = batches.steps_per_epoch(images, config.batch_size, ranks)
    few = data.cut(images, 2 * config.batch_size * ranks, config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(config, max_epoch=1, save_dir=folder, log_freq=1, resume="none", warmup=0.0,
                                    warmup_steps=None, visualdl=False, train_cache=False)
        accuracies = fit(net, objective, archs_of_step, few, short, watch_of(few))
        if runtime.rank() == 0:
            checkpoint.build(checkpoint.read(folder))
            size = sum(os.path.getsize(os.path.join(folder, name)) for name in ("final.pdparams", "final.pdopt"))
            made = -(-config.max_epoch // config.save_freq)
            if config.save_every_steps:
                made += config.max_epoch * per_epoch // config.save_every_steps
            saved = min(KEEP_CHECKPOINTS + 1, made) + 1  # the newest, the best, and what is published
            runtime.say(f"dry run passed. A real run: {config.max_epoch} epochs of {per_epoch} steps, "
                        f"{config.max_epoch * per_epoch} steps in all, {config.batch_size * ranks} images each; up to "
                        f"{saved} checkpoints of {size / 1e6:.1f} MB in {config.save_dir}")
    return accuracies


def _resume(net, optimizer, precision, average, state, config):
    """What a checkpoint says about where the run stood; loads its weights, optimizer, loss scale and average.

    1. `--resume PATH`: that checkpoint, or an error.
    2. `--resume auto`: the newest complete checkpoint in --save_dir, if there is one.
    3. otherwise `--pretrained`, which the script has loaded into the net already;
    4. otherwise the initial weights.
    """
    if config.resume == "none":
        if checkpoint.steps(config.save_dir):
            raise UserError(f"{config.save_dir} holds the checkpoints of a run: --resume auto goes on with it, another "
                            "--save_dir starts anew beside it")
        return {}
    found = checkpoint.newest(config.save_dir, runtime.say) if config.resume == "auto" else \
        checkpoint.read(config.resume)
    if found is None:
        if checkpoint.steps(config.save_dir):  # to begin anew here would hide that something is wrong
            raise UserError(f"none of the checkpoints in {config.save_dir} can be read; another --save_dir starts anew")
        runtime.say(f"nothing to resume in {config.save_dir}: starting from the beginning")
        return {}
    if "step" not in found.state or not found.optimizer:
        raise UserError(f"--resume {found.path}: this holds weights only; --pretrained starts from them")
    for name, what in (("ranks", "processes"), ("classes", "classes"), ("images", "training images"),
                       ("names", "names of the training images")):
        was, now = found.state.get(name, state[name]), state[name]  # older runs did not note the names
        if was != now:
            if name == "classes":  # of maybe a thousand
                was, now = sorted(set(was) - set(now))[:3], sorted(set(now) - set(was))[:3]
            raise UserError(f"--resume {found.path}: the {what} have changed ({was} then, {now} now), so the run "
                            "cannot go on exactly")
    if checkpoint.describe(net) != found.state["net"]:
        raise UserError(f"--resume {found.path}: this is a checkpoint of another net: {_shown(found.state['net'])}; "
                        f"the settings ask for {_shown(checkpoint.describe(net))}")
    before = found.state["settings"]
    for name, value in state["settings"].items():
        if name not in FREE_ON_RESUME and name in before and before[name] != value:
            raise UserError(f"--resume {found.path}: --{name} was {before[name]} and is now {value}; a run can be "
                            f"resumed with other {', '.join(sorted(FREE_ON_RESUME & before.keys()))} only")
    inside = os.path.realpath(found.path).startswith(os.path.join(os.path.realpath(config.save_dir), ""))
    if not inside and checkpoint.newest(config.save_dir, runtime.say):
        raise UserError(f"--resume {found.path} lies outside --save_dir {config.save_dir}, which holds checkpoints of "
                        "its own: --resume auto goes on with those, another --save_dir goes on from that one")
    trained, optimizer_state = checkpoint.trained_weights(found)
    checkpoint.load_weights(net, trained, found.path)
    if average:
        checkpoint.load_weights(average.net, found.weights, found.path)
    optim.load_state(net, optimizer, optimizer_state)
    precision.load(found.state.get("scaler"))
    runtime.say(f"resumed {found.path} at step {found.state['step']}")
    return {"saved": found.path, **{name: found.state[name] for name in ("step", "best", "best_step", "accuracies")}}


def _shown(description):
    what = description.get("arch") or ",".join(map(str, description["space"]["base_channels"])) + " wide"
    return f"{description['kind']} {what}, {description['num_classes']} classes"


def _require_finite(row, rate_of, config, archs_of_step):
    if row["not_finite"]:
        step, roles = row["not_finite"]
        raise _diverged(f"the loss ({', '.join(roles)}) is not finite at step {step}", rate_of(step - 1), config,
                        archs_of_step(step - 1))


def _require_finite_weights(net, step, rate, config, archs):
    """Before they are saved: the last step may have spoiled them though its loss was still finite."""
    bad = [name for name, value in net.state_dict().items() if not paddle.isfinite(value).all()]
    if bad:
        raise _diverged(f"the weights ({len(bad)}, such as {bad[0]}) are not finite after step {step}", rate, config,
                        archs)


def _diverged(what, rate, config, archs):
    codes = ", ".join(f"{role} {arch.code}" for role, arch in archs)
    last = checkpoint.newest(config.save_dir, runtime.say)
    return Diverged(f"{what}, at learning rate {rate:.4g}{f', archs {codes}' if codes else ''}; "
                    f"the last good checkpoint is {last.path if last else 'none'}; a lower --lr or a longer --warmup "
                    "may help")
