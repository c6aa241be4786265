"""What a person sees of a training: a line now and then, and the same as a row of metrics.csv and in VisualDL."""

import contextlib
import csv
import importlib.util
import os
import time

import numpy as np
import paddle

from . import files
from .errors import UserError


class Meter:
    """What happened since the last row. Losses stay on the device until then: one sync per row, not per step."""

    def __init__(self, step):
        self._clear(step)

    def _clear(self, step):
        self.first_step, self.images, self.wait, self.away = step + 1, 0, 0.0, 0.0
        self.losses, self.started = [], time.perf_counter()

    @contextlib.contextmanager
    def waiting(self):
        """A block that waits for data."""
        started = time.perf_counter()
        yield
        self.wait += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self):
        """A block that is no training, such as an evaluation or a checkpoint."""
        started = time.perf_counter()
        yield
        self.away += time.perf_counter() - started

    def add(self, losses, images):
        """One step. losses: scalar tensors by role; images: how many it saw on all ranks."""
        self.losses.append(losses)
        self.images += images

    def row(self, step, per_epoch, steps, rate):
        """Everything since the last row, which ends with `step` (from 1): a dictionary.

        Its `not_finite` is None or (first step with such a loss, roles).
        """
        roles = list(self.losses[0])
        values = paddle.stack([paddle.stack([losses[role] for role in roles]) for losses in self.losses]).numpy()
        finite = np.isfinite(values)
        bad = None
        if not finite.all():
            first = int(np.argmin(finite.all(axis=1)))
            bad = self.first_step + first, [role for role, fine in zip(roles, finite[first]) if not fine]
        seconds = time.perf_counter() - self.started - self.away
        row = {"epoch": step / per_epoch, "step": step, "lr": rate,
               "losses": dict(zip(roles, values.astype("float64").mean(axis=0).tolist())), "not_finite": bad,
               "images_per_s": self.images / seconds, "data_wait": self.wait / seconds,
               "seconds_left": (steps - step) * seconds / len(self.losses)}
        self._clear(step)
        return row


def line(row, max_epoch):
    """A row as text."""
    losses = "  ".join(f"{role} {loss:.4f}" for role, loss in row["losses"].items())
    minutes, seconds = divmod(int(row["seconds_left"]), 60)
    days, hours = divmod(minutes // 60, 24)
    left = f"{f'{days} d ' if days else ''}{hours:02}:{minutes % 60:02}:{seconds:02}"
    return (f"epoch {row['epoch']:.2f}/{max_epoch}  step {row['step']}  {losses}  lr {row['lr']:.4g}  "
            f"{row['images_per_s']:.0f} images/s  data wait {row['data_wait']:.0%}  left {left}")


class Table:
    """metrics.csv: one line per row. A resumed run drops those that it is going to write again."""

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
        values = scalars(row)
        with files.appending(self.path) as file:
            writer = csv.writer(file)
            if self.empty:
                writer.writerow(values)
                self.empty = False
            writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in values.values())


def scalars(row):
    """The numbers of a row by column name."""
    return {**{name: row[name] for name in Table.COLUMNS},
            **{f"loss_{role}": loss for role, loss in row["losses"].items()}}


def require_visualdl():
    """Raise `UserError` where the package is not installed."""
    if importlib.util.find_spec("visualdl") is None:
        raise UserError("--visualdl needs the package visualdl: pip install visualdl")


def visualdl_writer(folder):
    """Where `add_to` writes rows."""
    from visualdl import LogWriter  # here: only --visualdl needs it

    return LogWriter(logdir=os.path.join(folder, "visualdl"))


def add_to(writer, row):
    for name, value in scalars(row).items():
        if name != "step":
            writer.add_scalar(tag=name, step=row["step"], value=value)
