"""The truth: every arch of a list trained on its own, by processes that share a folder.

    SAVE_DIR/CODE/               the folder of a training, with its checkpoints
    SAVE_DIR/CODE-DIGEST.json    the accuracy that it ended with
    SAVE_DIR/CODE.log            what it has printed, where several run at once

A result is written atomically under a name with a digest of what a resume must find unchanged, and a task is taken by a
lock: nothing is lost when a process dies, nothing is done twice, and a killed training goes on from its checkpoint.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence

import paddle

from ..images.datasets import ImageSet
from ..space.arch import ArchConfig
from ..space.arch_list import Entry
from ..system import config, files, locks, machine, runtime, shared_work, signals
from ..system.errors import Stopped, UserError, duration
from ..system.options import TruthSettings

Train = Callable[[ArchConfig, TruthSettings], float]


class Results:
    """What `shared_work.run_tasks` asks for; a task is an arch."""

    def __init__(self, settings: TruthSettings, images: ImageSet):
        self.folder = settings.save_dir
        values = config.as_data(settings)
        left_out = {item.name for item in dataclasses.fields(settings) if item.metadata["resumable"]} - {"max_epoch"}
        left_out.add("space")  # a path, whose content is in the nets
        self.made_by = {"settings": {name: value for name, value in values.items() if name not in left_out},
                        "classes": list(images.classes),
                        "images": [[len(split), split.names_digest()] for split in (images.train, images.val)]}

    def path(self, arch: ArchConfig) -> str:
        text = json.dumps({**self.made_by, "net": [arch.code, arch.stem, arch.stages]}, sort_keys=True)
        return os.path.join(self.folder, f"{arch.code}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json")

    def training(self, arch: ArchConfig) -> str:
        """The folder of a training."""
        return os.path.join(self.folder, arch.code)

    def has(self, arch: ArchConfig) -> bool:
        """By the name alone: a process that trains opens no accuracy."""
        return os.path.exists(self.path(arch))

    def write(self, arch: ArchConfig, top1: float) -> None:
        files.write_json(self.path(arch), {"arch": arch.code, "top1": top1, "made_by": self.made_by}, indent=1)

    def read(self, arch: ArchConfig) -> float:
        """Top-1 in percent. Raises `UserError` for a file that is not the result of this training."""
        found = files.read_json(self.path(arch), "accuracy")
        if not isinstance(found, dict) or found.get("made_by") != json.loads(json.dumps(self.made_by)) or \
                found.get("arch") != arch.code or not isinstance(found.get("top1"), float):
            raise UserError(f"{self.path(arch)} is not what was written there; delete it, and the same command makes "
                            "it again")
        return found["top1"]


def processes(asked: int | None, archs: int) -> int:
    """How many trainings run at once: as many as asked for, by default as this machine's cores have threads for.

    Raises `UserError` for several where one process is started for each GPU or rank.
    """
    if runtime.world_size() > 1 or paddle.device.get_device().startswith("gpu"):
        if asked not in (None, 1):
            raise UserError(f"--processes {asked} is for one process on a CPU; for several GPUs or machines, start the "
                            "same command for each, without the launcher: they share the work through --save_dir")
        return 1
    return min(archs, asked or max(1, machine.cpu_count() // machine.threads(os.environ)))


def measure(entries: Sequence[Entry], settings: TruthSettings, images: ImageSet, train: Train) -> list[float]:
    """Top-1 in percent of every arch, by `processes`, which may share the work with others.

    train(arch, its settings): train one, or go on with it; its top-1. Its settings are `settings` with a `save_dir` of
    its own. With several processes the trainings print into files, and each that ends is a line.
    Raises `UserError` as `processes` does, and `Stopped` after a signal that asked to stop: what was finished is kept,
    and the trainings under way have checkpoints.
    """
    results, keys = Results(settings, images), {entry.arch: entry.key for entry in entries}
    archs, count, here = list(keys), processes(settings.processes, len(entries)), os.getpid()
    several = count > 1 and not settings.dry_run

    def train_here(arch):
        if not several:
            runtime.log_main(f"{keys[arch]} ({archs.index(arch) + 1} of {len(archs)})")
        folder = results.training(arch)
        try:
            with shared_work.printing_to(folder + ".log") if several else contextlib.nullcontext():
                return train(arch, dataclasses.replace(settings, save_dir=folder))
        finally:
            if several and not os.path.exists(folder):  # it never began
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(folder + ".log")

    if settings.dry_run or runtime.world_size() > 1:  # ranks train one arch after the other, together
        return [train_here(arch) for arch in archs]
    made = files.make_folders(results.path(archs[0]))
    locks.remove_leftovers(settings.save_dir, lambda name: name)
    for arch in archs if settings.resume != "auto" else ():  # what was measured before does not count
        with contextlib.suppress(FileNotFoundError):
            os.unlink(results.path(arch))
    before, started = sum(map(results.has, archs)), time.monotonic()
    if before:
        runtime.log_main(f"{before} of {len(archs)} archs are measured already")
    if several and before < len(archs):
        runtime.log_main(f"training in {count} processes; what each arch says is in {settings.save_dir}/CODE.log")

    def do(arch):
        top1 = train_here(arch)
        results.write(arch, top1)
        if several:
            done = sum(map(results.has, archs))
            left = (time.monotonic() - started) * (len(archs) - done) / (done - before)
            runtime.log_main(f"{keys[arch]}: top-1 {top1:.2f} %; {done} of {len(archs)} archs"
                             + (f", about {duration(left)} left" if left else ""))

    def work():
        farewell = f"everything is in {settings.save_dir}, the same command goes on"
        with runtime.stoppable(farewell if os.getpid() == here else None):
            signals.let_through()
            try:
                for _ in runtime.while_launched(shared_work.run_tasks(results, archs, do, (0, 1))):
                    pass
            except Stopped:  # by a training, which with several processes has said so in its own log
                if several and os.getpid() == here:
                    runtime.log_main(f"stopped: {farewell}")
                raise

    try:
        shared_work.in_processes(count, work)
    finally:
        files.remove_empty(made)  # where nothing came of it
    return [results.read(arch) for arch in archs]
