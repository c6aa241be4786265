"""Work that processes share: tasks whose results are files.

Processes that see the same folder, on one machine or on several, need nothing else to share the work: each takes tasks
that are not locked, and the system lets go of a lock however a process ends.
"""

import contextlib
import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from . import signals
from .errors import exit_on_user_error
from .locks import try_lock


class Results(Protocol):
    """Where the results of tasks lie."""

    def path(self, task: Any) -> str:
        """The file of a task, in a folder that is there; its lock lies beside it."""

    def has(self, task: Any) -> bool:
        """Whether the result is there and good."""

    def read(self, task: Any) -> object:
        """The result. Raises `UserError` where it is not to be believed."""


def run_tasks(results: Results, tasks: Sequence, do: Callable[[Any], object], share: tuple[int, int]) -> Iterator:
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
            if not results.has(task):
                with try_lock(results.path(task)) as mine:
                    if mine and not results.has(task):
                        do(task)
                        if not results.has(task) and os.path.exists(results.path(task)):
                            results.read(task)  # which says why; to try for ever would help nobody
            if results.has(task):
                left.remove(task)
                yield task
        if len(left) == before:
            time.sleep(0.5)  # other processes hold the rest


def in_processes(count: int, work: Callable[[], object]) -> object:
    """Run `work()` in so many processes, of which this is one, and return what it returned here.

    work: what any number of processes share; it lets stop signals through (`signals.let_through`) once it can answer
    them, and leaves when the process that has started it is gone (`runtime.while_launched`). The others are forked, so
    that Paddle must not have computed anything yet. One that fails or is killed is no loss, this one does the rest, or
    fails at the same task and says so; when this one ends, they are told to stop.
    """
    if count > 1:
        signals.hold()
    told_to_end = mmap.mmap(-1, 1)
    others = [multiprocessing.get_context("fork").Process(target=_help, args=(work, told_to_end))
              for _ in range(count - 1)]
    for other in others:
        other.start()
    try:
        result = work()
        for other in others:
            other.join()
        return result
    finally:
        told_to_end[0] = 1
        for other in others:
            other.join()


def _help(work, told_to_end):
    """The life of a forked process. What ends it, the process that has started it comes to as well, and tells once."""
    signals.end_with_parent(told_to_end)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        exit_on_user_error(work)


@contextlib.contextmanager
def printing_to(path: str) -> Iterator[None]:
    """A block whose lines go to a file: those of several trainings at once would tell nobody anything."""
    with open(path, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
