"""Running a study: tasks whose results are files, by any number of processes that share a folder.

    OUTPUT/archs.json                              the archs, as an arch list
    OUTPUT/rates/NAME-s1000-DIGEST.json            one try of a learning rate: its loss on training images
    OUTPUT/truth/CODE-s0-DIGEST.json               one training of one arch: accuracy, settings, seconds
    OUTPUT/supernets/NAME-s0-DIGEST.json, .../     one supernet, and the folder of its training
    OUTPUT/scores/NAME-s0-DIGEST.json              what its evaluation has counted
    OUTPUT/study.json, study.md, *.png             the report

A result is written atomically under a name with a digest of all that it depends on: nothing is lost when a process
dies, nothing is done twice, and a changed study file does again only what it changes. A task is taken by a lock, which
the system lets go of however a process ends; a killed training goes on from its last checkpoint.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable

from ..system import config, files, locks, runtime, shared_work, signals
from ..system.errors import Stopped, UserError, duration
from ..system.options import StudySettings
from . import plan as planning
from . import report, trainings
from .plan import KINDS, RANDOM_WEIGHTS, Plan, Task


class Folder:
    """Where the results of a study lie: what `shared_work.run_tasks` asks for."""

    def __init__(self, output: str):
        self.output = output

    def path(self, task: Task) -> str:
        return os.path.join(self.output, task.kind, task.label + ".json")

    def has(self, task: Task) -> bool:
        return os.path.exists(self.path(task))

    def training(self, task: Task) -> str:
        """The folder of a training."""
        return os.path.join(self.output, task.kind, task.label)

    def clear(self, task: Task) -> None:
        """Remove what a task that is done has left beside its result; weights of supernets stay, to be scored."""
        if task.kind != "supernets":
            shutil.rmtree(self.training(task), ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(self.training(task) + ".log")

    def write(self, task: Task, result: dict) -> None:
        files.write_json(self.path(task), {"kind": task.kind, "name": task.name, "seed": task.seed, **result,
                                           "made_by": task.made_by}, indent=1)

    def read(self, task: Task) -> dict:
        """Raises `UserError` for a file that is not the result of this task."""
        found = files.read_json(self.path(task), f"result of {task.kind}")
        if not isinstance(found, dict) or found.get("made_by") != json.loads(json.dumps(task.made_by)):
            raise UserError(f"{self.path(task)} is not what was written there; delete it, and the same command makes "
                            "it again")
        return found


def run(settings: StudySettings) -> None:
    """Do what is left of a study together with other processes that name the same folder, then report.

    Raises `Stopped` after a signal that asked to stop; everything that was finished is kept, and the training under way
    has a checkpoint.
    """
    files.require_writable(os.path.join(settings.output, "study.json"))
    plan = shared_work.in_processes(settings.processes, lambda: _work(settings))
    if settings.only in (None, "report"):
        _report(plan, Folder(settings.output))


def _work(settings):
    farewell = f"everything is in {settings.output}, the same command goes on"
    with runtime.stoppable(farewell):
        signals.let_through()
        plan, folder = planning.make(settings), Folder(settings.output)
        first = plan.truth[0].settings
        runtime.start(first.device, join=False, channels_last=first.channels_last)
        for kind in KINDS:
            os.makedirs(os.path.join(settings.output, kind), exist_ok=True)
            locks.remove_leftovers(os.path.join(settings.output, kind), lambda name: name)
        # A process may have been killed before it could.
        for task in filter(folder.has, (*plan.rates, *plan.truth, *plan.scores)):
            folder.clear(task)
        archs = {f"arch{place}": {"acc": 0.0, "arch": arch.code} for place, arch in enumerate(plan.archs, 1)}
        files.write_json(os.path.join(settings.output, "archs.json"), archs)
        files.write_text(os.path.join(settings.output, "study.yaml"), config.dump(settings))
        wanted = [kind for kind in KINDS if settings.only in (None, kind)]
        progress = _Progress(plan, folder, wanted)
        try:
            # What others wait for comes first, and many short tasks come last, so that nobody waits for long.
            for kinds in (("rates",), ("supernets", "truth"), ("scores",)):
                tasks = [task for kind in kinds if kind in wanted for task in getattr(plan, kind)]
                for _ in runtime.while_launched(
                        shared_work.run_tasks(folder, tasks, _doing(plan, folder, progress), (0, 1))):
                    pass
        except Stopped:  # by a training, which has said so in its own log
            runtime.log_main(f"stopped: {farewell}")
            raise
    return plan


def _doing(plan: Plan, folder: Folder, progress: "_Progress") -> Callable[[Task], None]:
    def do(task):
        started = time.perf_counter()
        place = folder.training(task)
        settings = dataclasses.replace(task.settings, save_dir=place)
        try:
            with shared_work.printing_to(place + ".log"):
                if task.kind == "truth":
                    result = trainings.train_arch(task.arch, settings)
                elif task.kind == "rates":
                    result = trainings.try_rate(settings)
                elif task.kind == "supernets":
                    result = {"subnet_images": plan.subnet_images[task.name],
                              **trainings.train_supernet(_at_best_rate(plan, folder, task.name, settings))}
                else:
                    result = _scored(plan, folder, task)
        except UserError as error:
            raise UserError(f"study, {task.kind}, {task.name}, seed {task.seed}: {error}") from error
        folder.write(task, result)
        folder.clear(task)
        progress.done(task, time.perf_counter() - started)

    return do


def _at_best_rate(plan, folder, name, settings):
    """The settings of a recipe's supernets with the learning rate whose try had the lowest loss, if any were tried."""
    tries = [task for task in plan.rates if task.name == name]
    if not all(map(folder.has, tries)):
        raise UserError("its learning rate is not chosen yet; without --only, or with --only rates, it will be")
    if not tries:
        return settings
    best = min(tries, key=lambda task: folder.read(task)["loss"])
    return dataclasses.replace(settings, lr=best.settings.lr)


def _scored(plan, folder, task):
    settings, trained = task.settings, task.name != RANDOM_WEIGHTS
    if trained:
        source = next(each for each in plan.supernets if (each.name, each.seed) == (task.name, task.seed))
        if not folder.has(source):
            raise UserError(f"the supernet {source.label} is not trained yet; without --only it will be")
        settings = dataclasses.replace(settings, save_dir=folder.training(source))
    return trainings.evaluate(task.made_by["archs"], settings, task.made_by["val_images"], folder.training(task),
                              trained)


class _Progress:
    """The line that says what is left. It opens no result, for a process that trains must not read accuracies."""

    def __init__(self, plan, folder, wanted):
        self.tasks, self.folder = {kind: getattr(plan, kind) for kind in wanted}, folder
        self.seconds = self.cost = 0.0
        self._say()

    def done(self, task, seconds):
        self.seconds += seconds
        self.cost += task.cost
        self._say()

    def _say(self):
        left = {kind: [task for task in tasks if not self.folder.has(task)] for kind, tasks in self.tasks.items()}
        text = "study: " + ", ".join(f"{kind} {len(self.tasks[kind]) - len(tasks)} of {len(self.tasks[kind])}"
                                     for kind, tasks in left.items() if self.tasks[kind])
        cost = sum(task.cost for tasks in left.values() for task in tasks)
        if self.cost and cost:
            text += f"; about {duration(cost * self.seconds / self.cost / self._at_work())} left"
        runtime.log_main(text)

    def _at_work(self):
        """How many processes hold a task; this one still has the lock of what it has done."""
        return max(1, sum(entry.name.endswith(".json.lock") for kind in self.tasks
                          for entry in os.scandir(os.path.join(self.folder.output, kind))))


def _report(plan, folder):
    text = report.write(plan, folder.read, folder.has, folder.output)
    sys.stdout.flush()
    runtime.log_main(text)
