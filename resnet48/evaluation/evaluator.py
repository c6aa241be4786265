"""The evaluator: every arch of a list on every validation image, over the prefix tree, in tasks of a journal.

First the batch-norm statistics of every node are computed, once (recomputing them for every chunk would mean one more
forward pass of all calibration images each time; stored, they are 2.2 GB for the published list, read once per chunk).
Then every chunk of images runs through the whole tree.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import paddle

from ..images import datasets
from ..nets import conv_algorithms, layers
from ..nets.supernet import Supernet
from ..space.arch import ArchConfig
from ..space.arch_list import Entry
from ..system import machine, runtime
from ..system.errors import UserError
from ..system.shared_work import run_tasks
from . import accuracy, counts, prefix_tree, tree_forward
from .accuracy import Sample
from .journal import Journal

ARCHS_PER_SHARD = 500  # the published list then costs 0.2 % more blocks than in one shard
SECONDS_PER_TASK = 60  # the target, and about what an interruption may lose
FLOPS_GUESS = {"cpu": 5e10, "gpu": 1e13}  # per core or device and second, to choose a chunk before anything has run
SMALLEST_CHUNK = 16  # images; smaller ones leave a device idle
DENSE_FROM = 200  # archs times chunks: fewer do not repay laying weights out as dense matrices
MOST_TASKS = 10_000  # of counts, each of which is a file
SHARE_OF_MEMORY = 0.25  # of the machine's, divided among its processes
DTYPES = {"none": "float32", "fp16": "float16", "bf16": "bfloat16"}  # `amp` of a journal's inputs -> of the tensors


def open_journal(root: str, digest: str, entries: Sequence[Entry], steps: Sequence[prefix_tree.Step], net: Supernet,
                 sample: Sample, precision: str = "fp32", chunk: int | None = None, fresh: bool = False) -> Journal:
    """The `journal.Journal` of this evaluation below `root`.

    digest: SHA-256 of the weights; steps: `prefix_tree.traversal` of the entries' archs; precision of the computation:
    fp32, fp16 or bf16; chunk: images that go through the tree at once, None to choose; fresh: forget what was done
    before.

    Raises `UserError` for `fresh` in one of several processes, each of which would forget the others' work.
    """
    if fresh and runtime.world_size() > 1:
        raise UserError(f"--fresh is for one process, not for {runtime.world_size()}: delete {root} and run without it")
    images, amp = sample.images, "none" if precision == "fp32" else precision
    inputs = {"weights": digest, "space": net.space.to_dict(), "image_size": images.size, "amp": amp,
              **sample.fingerprints(root), **({"split": net.split.to_dict()} if net.split else {}),
              **({"calibration_part": sample.calibration_part} if sample.calibration_part else {})}
    shards = shard_count(len(entries))
    # Fewer than asked for where unreadable ones are left out.
    count = len(sample.validation_images[1]) if images.skip_bad else len(sample.validation)
    chunk = chunk or choose_chunk(tree_forward.cost_of_shards(prefix_tree.shards(steps, shards), images.size,
                                                              net.num_classes), shards, count)
    journal = Journal.open(root, inputs, [[entry.key, entry.code] for entry in entries], count, chunk, shards, fresh,
                           choose_piece(chunk, shards, count))
    if journal.unlike:
        runtime.log_rank(f"note: {journal.unlike}")  # whoever makes the plan knows it, and nobody else
    return journal


def evaluate_list(net: Supernet, journal: Journal, steps: Sequence[prefix_tree.Step],
                  sample: Sample) -> tuple[np.ndarray, int]:
    """Run the remaining tasks of a journal, together with other processes that work on it; its `Journal.counts`.

    steps, sample: as for `open_journal`. Raises `UserError` if results have been deleted or damaged meanwhile.
    """
    net.eval()
    share = runtime.rank(), runtime.world_size()
    parts = prefix_tree.shards(steps, journal.plan["shards"])
    journal.leaves = [[step.leaf for step in part] for part in parts]
    pixels, labels = sample.validation_images
    first_half = counts.first_half(labels)
    kept = int(Device.here().memory * SHARE_OF_MEMORY / 2)
    chunk = journal.plan["chunk"]
    walks = len(steps) * -(-journal.plan["images"] // chunk)
    dense_up_to = conv_algorithms.DENSE_UP_TO if walks >= DENSE_FROM else conv_algorithms.DENSE_ONCE_UP_TO
    calibration = sample.calibration_images

    def measure(tasks):
        weights = tree_forward.SlicedWeightCache(net, kept, dense_up_to=dense_up_to)

        def one(task):
            journal.write(task, tree_forward.measure_tree(weights, parts[task.shard], calibration))

        return run_tasks(journal, tasks, one, share)

    if calibration is not None:
        tasks = _left(journal, journal.statistics_tasks(), "statistics")
        for _ in runtime.progress(measure(tasks), len(tasks), "statistics"):
            pass
    weights = tree_forward.SlicedWeightCache(net, kept, DTYPES[journal.plan["inputs"]["amp"]], dense_up_to)

    def count(task):
        if calibration is not None:
            needed = journal.statistics_tasks()[task.shard]
            list(measure([needed]))  # nothing to do, unless it has been damaged meanwhile
            statistics = journal.read(needed, mapped=True)
        done = next(filter(journal.has, journal.beginnings(task)), None)
        for first in range(done.last if done else task.first, task.last, chunk):
            part = slice(first, min(first + chunk, task.last))
            norm = layers.batch_norm if calibration is None else tree_forward.ReplayedStatistics(statistics)
            rows = count_chunk(weights, parts[task.shard], pixels[part], labels[part], norm, first_half[part])
            if done:
                rows[:, 1:] += journal.read(done)[:, 1:]
            done = task._replace(last=part.stop)
            journal.write(done, rows)

    tasks = _left(journal, journal.counts_tasks(), "counts")
    for _ in runtime.progress(run_tasks(journal, tasks, count, share), len(tasks), "tasks"):
        pass
    found, total = journal.counts()
    if total < len(labels):
        raise UserError(f"results in {journal.folder} have been deleted or damaged meanwhile; the same command "
                        "computes them again")
    return found, total


def count_chunk(weights: tree_forward.SlicedWeightCache, steps: Sequence[prefix_tree.Step], pixels: np.ndarray,
                labels: np.ndarray, norm: Callable, first_half: np.ndarray) -> np.ndarray:
    """Counts of the archs of a traversal on some images: int64 [archs, 1 + columns], the index in the list, then what
    `counts.COLUMNS` names.

    pixels: uint8 [N, 3, S, S]; labels: int64 [N]; norm: as for `tree_forward.forward_tree`; first_half: int64 [N], of
    `counts.first_half`.
    """
    labels, first_half, found = paddle.to_tensor(labels), paddle.to_tensor(first_half), []
    tree_forward.forward_tree(weights, steps, datasets.normalize(paddle.to_tensor(np.array(pixels))), norm,
                              lambda _, logits: found.append(accuracy.answers(logits, labels)))
    rows = accuracy.tally(*map(paddle.stack, zip(*found)), first_half).numpy()  # the only wait for the device
    return np.concatenate([np.array([[step.leaf] for step in steps]), rows], axis=1)


class Device(NamedTuple):
    """What the work is divided for. kind: cpu or gpu; rate: about how many FLOP per second one process does; memory:
    bytes that it may count on.
    """

    kind: str
    rate: float
    memory: float

    @classmethod
    def here(cls) -> "Device":
        """The one that Paddle uses."""
        return cls.of("gpu" if paddle.device.get_device().startswith("gpu") else "cpu")

    @classmethod
    def of(cls, kind: str, memory: float | None = None) -> "Device":
        """One of a kind, with a guess of its rate; memory: None for that of this machine, which must have one."""
        threads = int(os.environ.get("OMP_NUM_THREADS", 1)) if kind == "cpu" else 1
        return cls(kind, FLOPS_GUESS[kind] * threads, memory or _memory(kind))


def _memory(kind):
    """Bytes that one process of this machine may count on."""
    if kind == "gpu":
        return paddle.device.cuda.get_device_properties().total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / machine.local_ranks(os.environ)


def shard_count(archs: int) -> int:
    """In how many shards a list of so many archs is cut."""
    return -(-archs // ARCHS_PER_SHARD)


def choose_chunk(cost: tree_forward.Cost, shards: int, images: int, device: Device | None = None) -> int:
    """Images per chunk: what fits into memory and takes about a minute per shard.

    cost: of the shards together, `tree_forward.cost_of_shards`; device: None for the one that is used here.
    """
    device = device or Device.here()
    by_time = SECONDS_PER_TASK * device.rate * shards / (2 * cost.macs)
    by_memory = device.memory * SHARE_OF_MEMORY / cost.path_bytes
    return int(max(1, min(images, by_memory, max(SMALLEST_CHUNK, by_time))))


def choose_piece(chunk: int, shards: int, images: int) -> int:
    """Images per counts task: one chunk, or as many as it takes to have no more than MOST_TASKS tasks.

    About half as many tasks stay at least, enough for any number of processes; an interruption loses a chunk, not a
    piece.
    """
    return chunk * max(1, -(-images // (chunk * max(1, MOST_TASKS // shards))))


def _left(journal, tasks, what):
    left = [task for task in tasks if not journal.has(task)]
    if len(left) < len(tasks):
        runtime.log_main(f"{what}: {len(tasks) - len(left)} of {len(tasks)} tasks are done already")
    wrong = [task for task in left if task in journal.rejected]
    if wrong:
        runtime.log_main(f"{what}: {len(wrong)} results in {journal.folder} are not to be believed and are computed "
                         f"again, the first is {wrong[0].name}: {journal.rejected[wrong[0]]}")
    return left


def counts_one_by_one(net: Supernet, archs: Sequence[ArchConfig], sample: Sample,
                      batch_size: int) -> tuple[np.ndarray, int]:
    """The same counts by the reference, each arch on its own: (float64 [archs, columns], number of images).

    batch_size: validation images at a time.
    """
    pixels, labels = sample.validation_images
    rows = accuracy.one_by_one(net, archs, sample.calibration_images, pixels, labels, batch_size)
    return counts.in_nats(np.array(list(runtime.progress(rows, len(archs), "subnets")))), len(labels)
