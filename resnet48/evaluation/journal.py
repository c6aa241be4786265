"""The journal of an evaluation: tasks whose results are files, shared by all processes and never lost.

The list is cut into shards (consecutive parts of the traversal, see `prefix_tree`), the images into chunks. There is
one statistics task per shard, then one counts task per chunk and shard. A result is written atomically under the name
of its task; the folder is named by a fingerprint of all that the numbers depend on. Processes that see the same folder,
on one machine or on several, need nothing else to share the work: each takes tasks that are not locked.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..system import files
from ..system.errors import UserError

FORMAT = 1  # of the files; part of the fingerprint
PLAN = "plan.json"
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
    """One evaluation's folder. plan: `inputs` (what it depends on), `codes` (listed), `images`, `chunk`, `shards`."""

    def __init__(self, folder: str):
        """Raises `UserError` where the folder holds no readable plan."""
        self.folder = folder
        self.plan = files.read_json(os.path.join(folder, PLAN), "the plan of the evaluation")

    @classmethod
    def open(cls, root: str, inputs: dict, codes: Sequence[Sequence[str]], images: int, chunk: int, shards: int,
             fresh: bool = False) -> "Journal":
        """The journal for these inputs below `root`, created if there is none; `fresh` discards earlier results.

        inputs: plain data, everything that the counts depend on; codes: (key, arch code) of the list; images: how many;
        chunk: images a task. An existing journal keeps its chunk and shards.
        Raises `UserError` where the folder cannot be written.
        """
        text = json.dumps({"format": FORMAT, "inputs": inputs, "codes": codes, "images": images}, sort_keys=True)
        folder = os.path.join(root, hashlib.sha256(text.encode()).hexdigest()[:16])
        with files.locked(folder + ".lock"):  # processes that start at once share one plan
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(os.path.join(folder, PLAN)):
                files.write_json(os.path.join(folder, PLAN), {"inputs": inputs, "codes": codes, "images": images,
                                                              "chunk": chunk, "shards": shards})
        return cls(folder)

    @classmethod
    def newest(cls, root: str) -> "Journal":
        """The journal below `root` that was worked on last. Raises `UserError` if there is none."""
        found = [entry.path for entry in os.scandir(root) if os.path.exists(os.path.join(entry.path, PLAN))] \
            if os.path.isdir(root) else []
        if not found:
            raise UserError(f"there is no evaluation in {root}; `eval_supernet.py run` starts one")
        return cls(max(found, key=lambda folder: os.stat(folder).st_mtime))

    def chunks(self) -> list[tuple[int, int]]:
        """(first, last) image of each chunk, last not included."""
        size, images = self.plan["chunk"], self.plan["images"]
        return [(first, min(first + size, images)) for first in range(0, images, size)]

    def statistics_tasks(self) -> list[Task]:
        """One per shard, in order."""
        return [Task("statistics", None, None, shard) for shard in range(self.plan["shards"])]

    def counts_tasks(self, chunk: tuple[int, int] | None = None) -> list[Task]:
        """The counts tasks of one chunk, or of all chunks, in order."""
        return [Task("counts", first, last, shard) for first, last in ([chunk] if chunk else self.chunks())
                for shard in range(self.plan["shards"])]

    def path(self, task: Task) -> str:
        return os.path.join(self.folder, task.name + ".npy")

    def has(self, task: Task) -> bool:
        return os.path.exists(self.path(task))

    def write(self, task: Task, array: np.ndarray) -> None:
        """Raises `UserError` where the file cannot be written."""
        with files.atomic_write(self.path(task)) as temporary:
            np.save(temporary, array)

    def read(self, task: Task, mapped: bool = False) -> np.ndarray:
        """Raises `UserError` for a task that is missing or corrupt."""
        return files.read_array(self.path(task), mapped)

    def progress(self) -> tuple[list[tuple[int, int]], int, int, float | None]:
        """(chunks done for all archs, counts tasks done, counts tasks in all, tasks per second, or None)."""
        done = [task for task in self.counts_tasks() if self.has(task)]
        chunks = [chunk for chunk in self.chunks() if all(map(self.has, self.counts_tasks(chunk)))]
        gaps = np.diff(sorted(os.stat(self.path(task)).st_mtime for task in done))
        at_work = gaps[gaps <= LONGEST_GAP * np.median(gaps)] if len(gaps) else gaps  # no process was, in longer ones
        rate = len(at_work) / at_work.sum() if at_work.sum() > 0 else None
        return chunks, len(done), len(self.counts_tasks()), rate

    def counts(self) -> tuple[np.ndarray, int]:
        """Hits of every arch over the chunks that are done for all archs: (int64 [archs, 2], number of images).

        Columns: top-1, top-5. Raises `UserError` for a corrupt task.
        """
        total, images = np.zeros((len(self.plan["codes"]), 2), "int64"), 0
        for first, last in self.progress()[0]:
            for task in self.counts_tasks((first, last)):
                rows = self.read(task)  # [archs of the shard, 3]: index in the list, top-1, top-5
                total[rows[:, 0]] += rows[:, 1:]
            images += last - first
        return total, images


@contextlib.contextmanager
def try_lock(path: str) -> Iterator[bool]:
    """Yield whether this process now holds `path`.lock; the system releases it however the process ends.

    Where the file system has no locks, every process holds it: work may then be done twice, with the same result.
    Raises `UserError` where the folder is gone or cannot be written.
    """
    try:
        file = open(path + ".lock", "w")
    except OSError as error:
        raise UserError(f"cannot continue in {os.path.dirname(path)}: {error.strerror}") from error
    with file as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path + ".lock")


def run_tasks(journal: Journal, tasks: Sequence[Task], do: Callable[[Task], object],
              share: tuple[int, int]) -> Iterator[Task]:
    """Yield each task once its result is there, from `do(task)` here or from another process.

    share: (rank, world size) of this process, so that processes start at different places. Returns when all results are
    there: the tasks of a process that has died are taken over by the others.
    """
    rank, world_size = share
    start = len(tasks) * rank // world_size
    left = tasks[start:] + tasks[:start]
    while left:
        before = len(left)
        for task in list(left):
            if not journal.has(task):
                with try_lock(journal.path(task)) as mine:
                    if mine and not journal.has(task):
                        do(task)
            if journal.has(task):
                left.remove(task)
                yield task
        if len(left) == before:
            time.sleep(0.5)  # other processes hold the rest
