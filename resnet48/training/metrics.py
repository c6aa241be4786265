"""Training metrics: log lines, and the same as rows of metrics.csv and in VisualDL."""

import contextlib
import csv
import importlib.util
import itertools
import os
import time
from collections.abc import Iterator

import numpy as np
import paddle

from ..system import files, runtime
from ..system.errors import UserError


class Meter:
    """What happened since the last row.

    roles: all that the recipe can produce; a step may have any of them. Losses stay on the device until a row is
    flushed: one sync per row, not per step.
    """

    def __init__(self, step, roles):
        self.roles = tuple(roles)
        self._clear(step)

    def _clear(self, step):
        self.first_step, self.images, self.wait, self.away = step + 1, 0, 0.0, 0.0
        self.losses, self.started = [], time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that waits for data."""
        started = time.perf_counter()
        yield
        self.wait += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block that is no training, such as an evaluation or a checkpoint."""
        started = time.perf_counter()
        yield
        self.away += time.perf_counter() - started

    def add(self, losses: dict[str, paddle.Tensor], images: int) -> None:
        """One step. losses: scalar tensors by role; images: how many it saw on all ranks."""
        unknown = losses.keys() - set(self.roles)
        if unknown:
            raise ValueError(f"the recipe has the roles {self.roles}, and a step gave a loss for {sorted(unknown)}")
        self.losses.append(losses)
        self.images += images

    def flush(self, step: int, per_epoch: int, steps: int, lr: float) -> dict:
        """Everything since the last row, which ends with `step` (from 1), as a dictionary; then begin the next row.

        `losses` holds a mean for each role, None where no step had it; `not_finite` is None or (first step with such a
        loss, roles).
        """
        given = [(place, role) for place, losses in enumerate(self.losses, self.first_step) for role in losses]
        values = paddle.stack([loss for losses in self.losses for loss in losses.values()]).numpy().astype("float64")
        of_role = {role: values[[each == role for _, each in given]] for role in self.roles}
        wrong = [where for where, value in zip(given, values) if not np.isfinite(value)]
        seconds = time.perf_counter() - self.started - self.away
        row = {"epoch": step / per_epoch, "step": step, "lr": lr,
               "losses": {role: float(theirs.mean()) if len(theirs) else None for role, theirs in of_role.items()},
               "not_finite": (wrong[0][0], [role for place, role in wrong if place == wrong[0][0]]) if wrong else None,
               "images_per_s": self.images / seconds, "data_wait": self.wait / seconds,
               "seconds_left": (steps - step) * seconds / len(self.losses)}
        self._clear(step)
        return row


def line(row: dict, max_epoch: int) -> str:
    """A row as text."""
    losses = "  ".join(f"{role} {loss:.4f}" for role, loss in row["losses"].items() if loss is not None)
    minutes, seconds = divmod(int(row["seconds_left"]), 60)
    days, hours = divmod(minutes // 60, 24)
    left = f"{f'{days} d ' if days else ''}{hours:02}:{minutes % 60:02}:{seconds:02}"
    return (f"epoch {row['epoch']:.2f}/{max_epoch}  step {row['step']}  {losses}  lr {row['lr']:.4g}  "
            f"{row['images_per_s']:.0f} images/s  data wait {row['data_wait']:.0%}  left {left}")


class Table:
    """metrics.csv: one line per row. A resumed run drops those that it is going to write again.

    The columns are fixed by the roles; a loss that a row does not have is an empty cell. A file that was damaged or
    edited is set aside and a new one begun, for the training does not depend on it.
    """

    COLUMNS = ("epoch", "step", "lr", "images_per_s", "data_wait")

    def __init__(self, folder, step, roles):
        self.path = os.path.join(folder, "metrics.csv")
        files.require_writable(self.path)
        rows, columns = [], [*self.COLUMNS, *map(_column, roles)]
        if step and os.path.isfile(self.path):
            try:
                names, rows = _read(self.path)
            except (ValueError, csv.Error) as error:
                aside = _set_aside(self.path)
                runtime.log_main(f"{self.path} is damaged ({error}): it is now {aside}, and a new one begins after "
                                 f"step {step}")
            else:
                rows = [row for row in rows if int(row["step"]) <= step]
                columns += [name for name in names if name not in columns]
        with files.atomic_write(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self.columns = columns

    def write(self, row: dict) -> None:
        values = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in scalars(row).items()}
        with files.appending(self.path) as file:
            csv.DictWriter(file, self.columns).writerow(values)


def _read(path):
    """(columns, rows) of a metrics.csv. Raises `ValueError` or `csv.Error` for what this module has not written."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        *lines, _ = file.read().split("\n")  # what has no line's end was cut off in writing
    table = list(csv.reader(lines, strict=True))
    names, rows, last = table[0] if table else [], [], 0
    if "step" not in names or len(set(names)) < len(names):
        raise ValueError("line 1 does not name the columns")
    for place, cells in enumerate(table[1:], 2):
        if len(cells) != len(names):
            raise ValueError(f"line {place} has {len(cells)} cells, the first has {len(names)}")
        row = dict(zip(names, cells))
        try:
            step = int(row["step"])
            for cell in filter(None, cells):
                float(cell)
        except ValueError:
            raise ValueError(f"line {place} holds what is no number") from None
        if step <= last:
            raise ValueError(f"line {place} is of step {step}, the one before of step {last}")
        rows.append(row)
        last = step
    return names, rows


def _set_aside(path):
    """Give a file another name, which is returned: metrics.damaged-1.csv."""
    stem, ending = os.path.splitext(path)
    aside = next(name for place in itertools.count(1) if not os.path.lexists(name := f"{stem}.damaged-{place}{ending}"))
    os.rename(path, aside)
    return aside


def scalars(row: dict) -> dict[str, float | None]:
    """The numbers of a row by column name; None for the loss of a role that no step had."""
    return {**{name: row[name] for name in Table.COLUMNS},
            **{_column(role): loss for role, loss in row["losses"].items()}}


def _column(role):
    return f"loss_{role}"


def require_visualdl() -> None:
    """Raise `UserError` where the package is not installed."""
    if importlib.util.find_spec("visualdl") is None:
        raise UserError("--visualdl needs the package visualdl: pip install visualdl")


def visualdl_writer(folder: str) -> object:
    """Where `add_to` writes rows."""
    from visualdl import LogWriter  # here: only --visualdl needs it

    return LogWriter(logdir=os.path.join(folder, "visualdl"))


def add_to(writer: object, row: dict) -> None:
    for name, value in scalars(row).items():
        if name != "step" and value is not None:
            writer.add_scalar(tag=name, step=row["step"], value=value)
