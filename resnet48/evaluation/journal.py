"""The journal of an evaluation: tasks whose results are files, shared by all processes and never lost.

The list is cut into shards (consecutive parts of the traversal, see `prefix_tree`), the images into chunks. There is
one statistics task per shard, then one counts task per chunk and shard. A result is written atomically under the name
of its task; the folder is named by a fingerprint of all that the numbers depend on. Processes that see the same folder,
on one machine or on several, need nothing else to share the work (`shared_work.run_tasks`).

Nothing in the folder is believed unread: a result says what it belongs to and carries a checksum (see `arrays`), counts
must be possible ones, the plan must be that of its folder. What is not as it should be is computed again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..system import arrays, files, locks
from ..system.errors import UserError
from ..system.locks import try_lock
from . import counts

FORMAT = 2  # of the files; part of the fingerprint; the results of 1 had no cross-entropies and no halves
PLAN = "plan.json"
LONGEST_GAP = 10  # median gaps between two results: a longer one is a pause and says nothing about the speed
#: What messages call the `inputs` and the other parts of a fingerprint.
INPUT_NAMES = {"weights": "weights", "space": "space", "image_size": "image size", "amp": "precision",
               "validation": "validation images", "calibration": "calibration images", "codes": "arch list",
               "images": "number of images"}


class EarlierFormat(UserError):
    """An evaluation whose results do not hold what is counted today. plan: its plan."""

    def __init__(self, folder: str, plan: dict):
        super().__init__(f"an earlier version wrote the evaluation in {folder}, without cross-entropies; "
                         "`eval_supernet.py run` computes it again")
        self.plan = plan


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
    """One evaluation's folder. plan: `inputs` (what it depends on), `codes` (listed), `images`, `chunk`, `shards`.

    leaves: the indices of the archs of each shard, if they are known: counts of others are not believed then.
    rejected: task -> why its file is not believed, as far as files have been read. unlike: a sentence on why the
    evaluations that are in the same place do not count, where this one has just begun.
    """

    def __init__(self, folder: str):
        """Raises `UserError` where the folder holds no plan, or not its own."""
        self.folder, self.leaves, self.rejected, self.unlike = folder, None, {}, None
        self.plan = _read_plan(folder)
        self._checked = {}  # task -> signature of its file when it was found to be good

    @classmethod
    def open(cls, root: str, inputs: dict, codes: Sequence[Sequence[str]], images: int, chunk: int, shards: int,
             fresh: bool = False) -> "Journal":
        """The journal for these inputs below `root`, created if there is none; `fresh` discards earlier results.

        inputs: plain data, everything that the counts depend on; codes: (key, arch code) of the list; images: how many;
        chunk: images a task. An existing journal keeps its chunk and shards.
        Raises `UserError` where the folder cannot be written, or not be deleted for `fresh`.
        """
        plan = {"inputs": inputs, "codes": codes, "images": images, "chunk": chunk, "shards": shards}
        folder, unlike = os.path.join(root, _fingerprint(plan)), None
        with locks.locked(folder + ".lock"):  # processes that start at once share one plan
            if fresh:
                _delete(folder)
            locks.remove_leftovers(folder, lambda name: name)
            try:
                _read_plan(folder)
            except UserError as error:
                if os.path.exists(os.path.join(folder, PLAN)):
                    unlike = f"{error}: it is made again"
                elif not fresh:
                    unlike = _unlike(root, plan)
                files.write_json(os.path.join(folder, PLAN), {**plan, "sha256": _plan_digest(plan)})
        journal = cls(folder)
        journal.unlike = unlike
        return journal

    @classmethod
    def newest(cls, root: str) -> "Journal":
        """The journal below `root` that was worked on last. Raises `UserError` if there is none."""
        found = journals(root)
        if not found:
            raise UserError(f"there is no evaluation in {root}; `eval_supernet.py run` starts one")
        return cls(found[-1])

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
        """Raises `UserError` where the file cannot be written, `ValueError` for what could not be a result."""
        self._require_possible(task, array)
        arrays.write(self.path(task), array, self._of(task))

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
        """(chunks done for all archs, counts tasks done, counts tasks in all, tasks per second, or None)."""
        done = {task for task in self.counts_tasks() if self.has(task)}
        chunks = [chunk for chunk in self.chunks() if done.issuperset(self.counts_tasks(chunk))]
        gaps = np.diff(sorted(os.stat(self.path(task)).st_mtime for task in done))
        at_work = gaps[gaps <= LONGEST_GAP * np.median(gaps)] if len(gaps) else gaps  # no process was, in longer ones
        rate = len(at_work) / at_work.sum() if at_work.sum() > 0 else None
        return chunks, len(done), len(self.counts_tasks()), rate

    def counts(self) -> tuple[np.ndarray, int]:
        """Counts of every arch over the chunks that are done for all archs: (float64 [archs, columns], images).

        The columns are `counts.COLUMNS`, cross-entropies in nats. A chunk with a result that is not to be believed is
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


def journals(root: str) -> list[str]:
    """The folders of the evaluations below `root`, the one that was worked on last at the end."""
    try:
        found = [entry.path for entry in os.scandir(root) if os.path.exists(os.path.join(entry.path, PLAN))]
        return sorted(found, key=lambda folder: os.stat(folder).st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read the folder {root}: {error.strerror or error}") from error


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


def _fingerprint(plan, version=FORMAT):
    """The name of a plan's folder, a digest of everything but how the work is divided."""
    text = json.dumps({"format": version, "inputs": plan["inputs"], "codes": plan["codes"], "images": plan["images"]},
                      sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plan_digest(plan):
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _read_plan(folder):
    """The plan in a folder. Raises `UserError` where there is none, or not the one that was written there."""
    path = os.path.join(folder, PLAN)
    content = files.read_json(path, "the plan of the evaluation")
    plan = dict(content) if isinstance(content, dict) else {}
    stated = plan.pop("sha256", None)
    # The name of the folder is a digest, too, but not of how the work is divided.
    if stated == _plan_digest(plan) and plan.keys() == {"inputs", "codes", "images", "chunk", "shards"} and \
            _is_sane(plan):
        if _fingerprint(plan) == os.path.basename(folder):
            return plan
        if any(_fingerprint(plan, earlier) == os.path.basename(folder) for earlier in range(1, FORMAT)):
            raise EarlierFormat(folder, plan)
    raise UserError(f"the plan of the evaluation {path} is not the one that was written there"
                    + (", or an earlier version wrote it" if plan and stated is None else ""))


def _is_sane(plan):
    numbers = plan["images"], plan["chunk"], plan["shards"]
    return isinstance(plan["inputs"], dict) and isinstance(plan["codes"], list) and \
        all(type(number) is int for number in numbers) and plan["images"] >= 0 and plan["chunk"] >= 1 and \
        1 <= plan["shards"] <= max(1, len(plan["codes"]))


def _unlike(root, plan):
    """Why the evaluations below `root` are not this one: by the inputs that differ from the most similar one."""
    differences = []
    for folder in journals(root):
        reasons = []
        try:
            other = _read_plan(folder)
        except EarlierFormat as error:
            other, reasons = error.plan, ["an earlier version wrote it, without cross-entropies"]
        except UserError:
            differences.append((len(INPUT_NAMES), folder, "an earlier version wrote it, or its plan is damaged"))
            continue
        found = [name for name in ("codes", "images") if other[name] != json.loads(json.dumps(plan[name]))]
        found += [name for name in {**other["inputs"], **plan["inputs"]}
                  if other["inputs"].get(name) != json.loads(json.dumps(plan["inputs"].get(name)))]
        if "validation" in found and "images" in found:
            found.remove("images")
        if found:
            reasons.append("other " + ", ".join(INPUT_NAMES.get(name, name) for name in sorted(found)))
        differences.append((len(found), folder, "; ".join(reasons)))
    if not differences:
        return None
    _, folder, why = min(differences, key=lambda each: each[0])
    return f"the evaluation in {folder} does not count for this one: {why}"


def _delete(folder):
    """A folder with all that is in it. Raises `UserError` where something of it stays."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"cannot delete {error.filename or folder}: {error.strerror or error}") from error
