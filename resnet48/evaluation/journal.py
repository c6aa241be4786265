"""The journal of an evaluation: tasks whose results are files, shared by all processes and never lost.

The list is cut into shards (consecutive parts of the traversal, see `prefix_tree`), the images into pieces of one or
several chunks. There is one statistics task per shard, then one counts task per piece and shard. A result is written
atomically under the name of its task; the folder is named by a fingerprint of all that the numbers depend on (see
`journal_plan`). Processes that see the same folder, on one machine or on several, need nothing else to share the work
(`shared_work.run_tasks`). What there is of a piece after each of its chunks is a result too, of a task that ends there,
from which whoever takes the piece next goes on.

Nothing in the folder is believed unread: a result says what it belongs to and carries a checksum (see `arrays`), counts
must be possible ones, the plan must be that of its folder. What is not as it should be is computed again.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..system import arrays, locks
from ..system.errors import UserError
from ..system.locks import try_lock
from . import counts, journal_plan

LONGEST_GAP = 10  # median gaps between two results: a longer one is a pause and says nothing about the speed


class Task(NamedTuple):
    """A unit of evaluation. kind: statistics of a shard, or counts of a shard on the images first .. last - 1."""

    kind: str
    first: int | None
    last: int | None
    shard: int

    @property
    def name(self) -> str:
        """What its file is called, without the ending: `statistics-0002`, `counts-0000000-0000064-0002`."""
        images = "" if self.first is None else f"{self.first:07d}-{self.last:07d}-"
        return f"{self.kind}-{images}{self.shard:04d}"


class Journal:
    """One evaluation's folder. plan: as in `journal_plan`.

    leaves: the indices of the archs of each shard, if they are known: counts of others are not believed then.
    rejected: task -> why its file is not believed, as far as files have been read. unlike: a sentence on why the
    evaluations that are in the same place do not count, where this one has just begun.
    """

    def __init__(self, folder: str):
        """Raises `UserError` where the folder holds no plan, or not its own."""
        self.folder, self.leaves, self.rejected, self.unlike = folder, None, {}, None
        self.plan = journal_plan.read(folder)
        self._checked = {}  # task -> signature of its file when it was found to be good

    @classmethod
    def open(cls, root: str, inputs: dict, codes: Sequence[Sequence[str]], images: int, chunk: int, shards: int,
             fresh: bool = False, piece: int | None = None) -> "Journal":
        """The journal for these inputs below `root`, created if there is none; `fresh` discards earlier results.

        inputs, codes, images, chunk, shards, piece [chunk]: as in `journal_plan`. An existing journal keeps its chunk,
        piece and shards.
        Raises `UserError` where the folder cannot be written, or not be deleted for `fresh`.
        """
        plan = {"inputs": inputs, "codes": codes, "images": images, "chunk": chunk, "piece": piece or chunk,
                "shards": shards}
        folder, unlike = os.path.join(root, journal_plan.fingerprint(plan)), None
        with locks.locked(folder + ".lock"):  # processes that start at once share one plan
            if fresh:
                _delete(folder)
            try:
                plan = journal_plan.read(folder)
            except UserError as error:
                if os.path.exists(os.path.join(folder, journal_plan.PLAN)):
                    unlike = f"{error}: it is made again"
                elif not fresh:
                    unlike = journal_plan.unlike(root, plan)
                journal_plan.write(folder, plan)
            locks.remove_leftovers(folder, lambda name: _owner(name, plan))
        journal = cls(folder)
        journal.unlike = unlike
        return journal

    @classmethod
    def newest(cls, root: str) -> "Journal":
        """The journal below `root` that was worked on last. Raises `UserError` if there is none."""
        found = journal_plan.journals(root)
        if not found:
            raise UserError(f"there is no evaluation in {root}; `eval_supernet.py run` starts one")
        return cls(found[-1])

    def pieces(self) -> list[tuple[int, int]]:
        """(first, last) image of each piece, last not included."""
        size, images = self.plan["piece"], self.plan["images"]
        return [(first, min(first + size, images)) for first in range(0, images, size)]

    def statistics_tasks(self) -> list[Task]:
        """One per shard, in order."""
        return [Task("statistics", None, None, shard) for shard in range(self.plan["shards"])]

    def counts_tasks(self, piece: tuple[int, int] | None = None) -> list[Task]:
        """The counts tasks of one piece, or of all pieces, in order."""
        return [Task("counts", first, last, shard) for first, last in ([piece] if piece else self.pieces())
                for shard in range(self.plan["shards"])]

    def beginnings(self, task: Task) -> list[Task]:
        """The tasks that end with a chunk of a counts task before its last one, the longest first."""
        if task.first is None:
            return []
        chunk = self.plan["chunk"]
        return [task._replace(last=last) for last in range(task.first + chunk, task.last, chunk)][::-1]

    def path(self, task: Task) -> str:
        return os.path.join(self.folder, task.name + ".npy")

    def has(self, task: Task) -> bool:
        """Whether the result is there and good. A file is read once, and again only when it has changed."""
        found = arrays.signature(self.path(task))
        if found is None:
            return False
        if self._checked.get(task) != found:
            try:
                self.read(task, mapped=True)
            except UserError:
                return False
            self._checked[task] = found
        return True

    def write(self, task: Task, array: np.ndarray) -> None:
        """The results of a task, which replace those of its beginnings.

        Raises `UserError` where the file cannot be written, `ValueError` for what could not be a result.
        """
        self._require_possible(task, array)
        arrays.write(self.path(task), array, self._of(task))
        for beginning in self.beginnings(task):
            with contextlib.suppress(OSError):
                os.unlink(self.path(beginning))

    def read(self, task: Task, mapped: bool = False) -> np.ndarray:
        """Raises `UserError` for a task that is missing or not to be believed."""
        try:
            array = arrays.read(self.path(task), self._of(task), mapped)
            self._require_possible(task, array)
        except FileNotFoundError:
            raise UserError(f"{self.path(task)} is missing; the same command makes it again") from None
        except arrays.Damaged as error:
            self.rejected[task] = str(error)
            raise UserError(f"{self.path(task)} is not to be believed ({error}); the same command makes it again"
                            ) from error
        return array

    def _of(self, task):
        return {"journal": os.path.basename(self.folder), "task": task.name, "shards": self.plan["shards"]}

    def _require_possible(self, task, array):
        if task.kind == "statistics":
            if array.dtype != "float32" or array.ndim != 1:
                raise arrays.Damaged("statistics are another kind of array")
            return
        if array.dtype != "int64" or array.ndim != 2 or array.shape[1] != 1 + len(counts.COLUMNS):
            raise arrays.Damaged("counts are another kind of array")
        index = array[:, 0]
        if counts.impossible(array[:, 1:], task.last - task.first):
            raise arrays.Damaged(f"its counts are impossible for {task.last - task.first} images")
        expected = np.unique(index) if self.leaves is None else np.sort(self.leaves[task.shard])
        if not np.array_equal(np.sort(index), expected) or len(index) and not (
                0 <= index.min() and index.max() < len(self.plan["codes"])):
            raise arrays.Damaged("its archs are not those of the shard")

    def progress(self) -> tuple[list[tuple[int, int]], int, int, float | None]:
        """(pieces done for all archs, counts tasks done, counts tasks in all, tasks per second, or None)."""
        done = {task for task in self.counts_tasks() if self.has(task)}
        pieces = [piece for piece in self.pieces() if done.issuperset(self.counts_tasks(piece))]
        gaps = np.diff(sorted(os.stat(self.path(task)).st_mtime for task in done))
        at_work = gaps[gaps <= LONGEST_GAP * np.median(gaps)] if len(gaps) else gaps  # no process was, in longer ones
        rate = len(at_work) / at_work.sum() if at_work.sum() > 0 else None
        return pieces, len(done), len(self.counts_tasks()), rate

    def counts(self) -> tuple[np.ndarray, int]:
        """Counts of every arch over the pieces that are done for all archs: (float64 [archs, columns], images).

        The columns are `counts.COLUMNS`, cross-entropies in nats. A piece with a result that is not to be believed is
        not done.
        """
        archs = len(self.plan["codes"])
        total, images = np.zeros((archs, len(counts.COLUMNS)), "int64"), 0
        for first, last in self.progress()[0]:
            # [archs, 1 + columns]: index in the list, counts
            rows = np.concatenate([self.read(task) for task in self.counts_tasks((first, last))])
            if not np.array_equal(np.sort(rows[:, 0]), np.arange(archs)):
                raise UserError(f"{self.folder} does not hold each arch once for the images {first} to {last}; "
                                "delete it, and the same command computes it again")
            total[rows[:, 0]] += rows[:, 1:]
            images += last - first
        return counts.in_nats(total), images


def remove(folder: str) -> None:
    """Remove an evaluation. Raises `UserError` where a process works on it, or where something of it stays."""
    for entry in os.scandir(folder):
        if entry.name.endswith(".lock"):
            with try_lock(entry.path.removesuffix(".lock")) as mine:
                if not mine:
                    raise UserError(f"a process works on the evaluation in {folder}")
    _delete(folder)
    with contextlib.suppress(OSError):
        os.unlink(folder + ".lock")


def _owner(name, plan):
    """The name of the task whose lock a process holds while it writes the file `name`."""
    if match := re.fullmatch(r"counts-(\d{7})-\d{7}-(\d{4})\.npy", name):
        first = int(match[1])
        return Task("counts", first, min(first + plan["piece"], plan["images"]), int(match[2])).name + ".npy"
    return name


def _delete(folder):
    """A folder with all that is in it. Raises `UserError` where something of it stays."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"cannot delete {error.filename or folder}: {error.strerror or error}") from error
