"""The one training loop, for standalone nets and for the supernet."""

import contextlib
import csv
import dataclasses
import os
import tempfile
import time

import numpy as np
import paddle

from . import batches, cache, checkpoint, config as settings, data, files, optim, runtime
from .errors import UserError

KEEP_CHECKPOINTS = 3
#: Settings that may change when a run is resumed: they do not change what has been trained so far.
FREE_ON_RESUME = {"max_epoch", "resume", "save_dir", "save_freq", "log_freq", "eval_freq", "num_workers", "device",
                  "dry_run", "pretrained", "mode", "skip_bad_images", "image_dir", "truth", "limit", "archs"}


class Diverged(UserError):
    """The loss is no longer finite."""


def fit(net, objective, archs_of_step, images, config, watch):
    """Train `net` and return the accuracies that `watch` saw last.

    objective: see `objectives`. archs_of_step(step): (role, arch) pairs, see `sampling`. images: a `data.ImageSet`.
    watch(net): accuracies in percent by name, after each `eval_freq` epochs and at the end, or None to go without;
    the checkpoint with the best mean is kept.
    Writes checkpoints, config.yaml and metrics.csv to `config.save_dir`.
    Raises `Diverged` on a loss or weights that are not finite, `SystemExit` (code 0) after a signal that asked to stop.
    """
    with runtime.StopRequest() as stop:
        return _fit(net, objective, archs_of_step, images, config, watch, stop)


def _fit(net, objective, archs_of_step, images, config, watch, stop):
    ranks, rank = runtime.ranks(), runtime.rank()
    per_epoch = batches.steps_per_epoch(images, config.batch_size, ranks)
    steps, warmup = config.max_epoch * per_epoch, optim.steps_of(config.warmup, per_epoch)
    base_rate = optim.base_rate(config.lr, config.batch_size, ranks)
    optimizer = optim.sgd(net, config.momentum, config.weight_decay)
    state = {"step": 0, "best": None, "best_step": None, "accuracies": {}, "ranks": ranks, "images": len(images.train),
             "classes": list(images.classes), "settings": dataclasses.asdict(config), "paddle": paddle.__version__}
    state.update(_resume(net, optimizer, state, config))
    saved = state.pop("saved", None)
    runtime.same_everywhere(net.state_dict().values())
    meter, vote = _Meter(state["step"]), False
    table = _Table(config.save_dir, state["step"]) if rank == 0 else None
    if rank == 0:
        files.write_text(os.path.join(config.save_dir, "config.yaml"), settings.dump(config))
    runtime.say(f"training {images.name}: {len(images.train)} images of {len(images.classes)} classes, "
                f"{images.size} px; steps {state['step']} to {steps}, {per_epoch} per epoch, "
                f"on {ranks} process(es)")

    shown = cache.for_training(images, config)
    taken = batches.batches(shown, state["step"], steps, config.batch_size, config.seed, rank, ranks,
                            config.num_workers, runtime.say)
    net.train()
    with batches.dead_workers_named(), contextlib.closing(taken):
        for step in range(state["step"], steps):
            with meter.waiting():
                pixels, labels = next(taken)
            rate = optim.cosine(step, base_rate, steps, warmup)
            optimizer.set_lr(rate)
            losses = objective(net, archs_of_step(step), data.normalize(pixels), labels)
            vote_before, vote = vote, runtime.average_gradients(optim.trainable(net), stop.asked)
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)  # absent, not zero: momentum must not move what no subnet used
            meter.add(losses, len(labels) * ranks)
            # All ranks stop after the same step. The vote of the step before is there already, this one's is not.
            stopping = stop.asked if ranks == 1 else bool(vote_before)
            state["step"] = done = step + 1
            epoch_ends = done % per_epoch == 0
            if done % config.log_freq == 0 or epoch_ends or stopping:
                row = meter.row(done, per_epoch, steps, rate)
                _require_finite(row, config, archs_of_step(step))
                if table:
                    table.write(row)
                    runtime.say(_line(row, config.max_epoch))
            epoch = done // per_epoch
            if watch and epoch_ends and (done == steps or config.eval_freq and epoch % config.eval_freq == 0):
                with meter.paused():
                    state["accuracies"] = watch(net)
                    net.train()
                    mean = float(np.mean(list(state["accuracies"].values())))
                    if state["best"] is None or mean > state["best"]:
                        state["best"], state["best_step"] = mean, done
                    runtime.say(f"epoch {epoch}: top-1 " + ", ".join(
                        f"{name} {value:.2f} %" for name, value in state["accuracies"].items()))
            if stopping or epoch_ends and (epoch % config.save_freq == 0 or done == steps):
                with meter.paused():
                    _require_finite_weights(net, done, rate, config, archs_of_step(step))
                    if rank == 0:
                        saved = checkpoint.save(config.save_dir, net, optimizer, state, KEEP_CHECKPOINTS)
            if stopping:
                _stop(stop, done, steps, config)
        if watch and not state["accuracies"]:  # resumed at its end, and trained without a watch before
            state["accuracies"] = watch(net)
    if rank == 0:
        checkpoint.publish(saved, config.save_dir)
    if runtime.total([stop.asked])[0]:  # since the last step: whoever trains one net after the other must not go on
        _stop(stop, steps, steps, config)
    return state["accuracies"]


def _stop(stop, step, steps, config):
    runtime.say(f"stopped by {stop.name} after step {step} of {steps}; everything is in {config.save_dir}, the same "
                "command with --resume auto goes on")
    raise SystemExit(0)


def require_runnable(images, config):
    """Raise `UserError` now, before images are decoded, for a run that could not take a step or keep anything."""
    files.require_writable(os.path.join(config.save_dir, "config.yaml"))
    batches.steps_per_epoch(images, config.batch_size, runtime.ranks())


def dry_run(net, objective, archs_of_step, images, config, watch_of):
    """Two steps, a checkpoint, a reload and one evaluation on a cut-down set, then what a real run would do.

    watch_of(images): makes the `watch` of `fit` for an image set.
    """
    ranks = runtime.ranks()
    per_epoch = batches.steps_per_epoch(images, config.batch_size, ranks)
    few = data.cut(images, 2 * config.batch_size * ranks, config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(config, max_epoch=1, save_dir=folder, log_freq=1, resume="none", warmup=0.0,
                                    train_cache=False)
        accuracies = fit(net, objective, archs_of_step, few, short, watch_of(few))
        if runtime.rank() == 0:
            checkpoint.build(checkpoint.read(folder))
            size = sum(os.path.getsize(os.path.join(folder, name)) for name in ("final.pdparams", "final.pdopt"))
            saved = min(KEEP_CHECKPOINTS + 1, -(-config.max_epoch // config.save_freq)) + 1
            runtime.say(f"dry run passed. A real run: {config.max_epoch} epochs of {per_epoch} steps, "
                        f"{config.max_epoch * per_epoch} steps in all, {config.batch_size * ranks} images each; up to "
                        f"{saved} checkpoints of {size / 1e6:.1f} MB in {config.save_dir}")
    return accuracies


def _resume(net, optimizer, state, config):
    """What a checkpoint says about where the run stood; loads its weights and optimizer.

    1. `--resume PATH`: that checkpoint, or an error.
    2. `--resume auto`: the newest complete checkpoint in --save_dir, if there is one.
    3. otherwise `--pretrained`, which the script has loaded into the net already;
    4. otherwise the initial weights.
    """
    if config.resume == "none":
        if checkpoint.newest(config.save_dir, runtime.say):
            raise UserError(f"{config.save_dir} holds the checkpoints of a run: --resume auto goes on with it, another "
                            "--save_dir starts anew beside it")
        return {}
    found = checkpoint.newest(config.save_dir, runtime.say) if config.resume == "auto" else \
        checkpoint.read(config.resume)
    if found is None:
        runtime.say(f"nothing to resume in {config.save_dir}: starting from the beginning")
        return {}
    if "step" not in found.state or not found.optimizer:
        raise UserError(f"--resume {found.path}: this holds weights only; --pretrained starts from them")
    if checkpoint.describe(net) != found.state["net"]:
        raise UserError(f"--resume {found.path}: this is a checkpoint of another net: {_shown(found.state['net'])}; "
                        f"the settings ask for {_shown(checkpoint.describe(net))}")
    before = found.state["settings"]
    for name, value in state["settings"].items():
        if name not in FREE_ON_RESUME and name in before and before[name] != value:
            raise UserError(f"--resume {found.path}: --{name} was {before[name]} and is now {value}; a run can be "
                            f"resumed with other {', '.join(sorted(FREE_ON_RESUME & before.keys()))} only")
    for name, what in (("ranks", "processes"), ("images", "training images"), ("classes", "classes")):
        if found.state[name] != state[name]:
            raise UserError(f"--resume {found.path}: the {what} have changed ({found.state[name]} then, {state[name]} "
                            "now), so the run cannot go on exactly")
    checkpoint.load_weights(net, found.weights, found.path)
    optim.load_state(net, optimizer, found.optimizer)
    runtime.say(f"resumed {found.path} at step {found.state['step']}")
    return {"saved": found.path, **{name: found.state[name] for name in ("step", "best", "best_step", "accuracies")}}


def _shown(description):
    what = description.get("arch") or ",".join(map(str, description["space"]["base_channels"])) + " wide"
    return f"{description['kind']} {what}, {description['num_classes']} classes"


def _require_finite(row, config, archs):
    bad = [role for role, loss in row["losses"].items() if not np.isfinite(loss)]
    if bad:
        where = f"between steps {row['first_step']} and {row['step']}"
        raise _diverged(f"the loss ({', '.join(bad)}) is not finite {where}", row["lr"], config, archs)


def _require_finite_weights(net, step, rate, config, archs):
    """Before they are saved: the last step may have spoiled them though its loss was still finite."""
    bad = [name for name, value in net.state_dict().items() if not paddle.isfinite(value).all()]
    if bad:
        raise _diverged(f"the weights ({len(bad)}, such as {bad[0]}) are not finite after step {step}", rate, config,
                        archs)


def _diverged(what, rate, config, archs):
    codes = ", ".join(f"{role} {arch.code}" for role, arch in archs)
    last = checkpoint.newest(config.save_dir, runtime.say)
    return Diverged(f"{what}, at learning rate {rate:.4g}{f', archs of the last step: {codes}' if codes else ''}; "
                    f"the last good checkpoint is {last.path if last else 'none'}; a lower --lr or a longer --warmup "
                    "may help")


class _Meter:
    """Sums since the last line. Losses stay on the device until a line is written: one sync per line, not per step."""

    def __init__(self, step):
        self._clear(step)

    def _clear(self, step):
        self.first_step, self.steps, self.images, self.wait, self.away = step + 1, 0, 0, 0.0, 0.0
        self.losses, self.started = {}, time.perf_counter()

    def waiting(self):
        return _Stopwatch(self, "wait")

    def paused(self):
        return _Stopwatch(self, "away")

    def add(self, losses, images):
        self.steps += 1
        self.images += images
        for role, loss in losses.items():
            self.losses[role] = self.losses.get(role, 0) + loss

    def row(self, step, per_epoch, steps, rate):
        losses = {role: float(loss) / self.steps for role, loss in self.losses.items()}
        seconds = time.perf_counter() - self.started - self.away
        row = {"epoch": step / per_epoch, "step": step, "first_step": self.first_step, "losses": losses, "lr": rate,
               "images_per_s": self.images / seconds, "data_wait": self.wait / seconds,
               "seconds_left": (steps - step) * seconds / self.steps}
        self._clear(step)
        return row


class _Stopwatch:
    def __init__(self, meter, name):
        self.meter, self.name = meter, name

    def __enter__(self):
        self.started = time.perf_counter()

    def __exit__(self, *_):
        setattr(self.meter, self.name, getattr(self.meter, self.name) + time.perf_counter() - self.started)


def _line(row, max_epoch):
    losses = "  ".join(f"{role} {loss:.4f}" for role, loss in row["losses"].items())
    minutes, seconds = divmod(int(row["seconds_left"]), 60)
    days, hours = divmod(minutes // 60, 24)
    left = f"{f'{days} d ' if days else ''}{hours:02}:{minutes % 60:02}:{seconds:02}"
    return (f"epoch {row['epoch']:.2f}/{max_epoch}  step {row['step']}  {losses}  lr {row['lr']:.4g}  "
            f"{row['images_per_s']:.0f} images/s  data wait {row['data_wait']:.0%}  left {left}")


class _Table:
    """metrics.csv: one row per log line. A resumed run drops the rows that it is going to write again."""

    COLUMNS = ("epoch", "step", "lr", "images_per_s", "data_wait")

    def __init__(self, folder, step):
        self.path = os.path.join(folder, "metrics.csv")
        files.require_writable(self.path)
        rows = []
        if step and os.path.isfile(self.path):
            with open(self.path, newline="") as file:
                *lines, _ = file.read().split("\n")  # what has no line's end was cut off in writing
            rows = list(csv.reader(lines))
            rows = rows[:1] + [row for row in rows[1:] if int(row[1]) <= step]
        with files.replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows(rows)
        self.empty = not rows

    def write(self, row):
        values = {**{name: row[name] for name in self.COLUMNS},
                  **{f"loss_{role}": loss for role, loss in row["losses"].items()}}
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if self.empty:
                writer.writerow(values)
                self.empty = False
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in values.values())
