"""The evaluator: every arch of a list on every validation image, over the prefix tree, in tasks of a journal.

First the batch-norm statistics of every node are computed, once (recomputing them for every chunk would mean one more
forward pass of all calibration images each time; stored, they are 2.2 GB for the published list, read once per chunk).
Then every chunk of images runs through the whole tree.
"""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import paddle

from ..images import datasets
from ..nets import conv_algorithms, layers
from ..nets.supernet import Supernet
from ..space.arch import ArchConfig, SearchSpace
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
RATE_ARCHS = 20  # evaluated to measure a rate
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
              **sample.fingerprints(root), **({"split": net.split.to_dict()} if net.split else {})}
    shards = -(-len(entries) // ARCHS_PER_SHARD)
    # Fewer than asked for where unreadable ones are left out.
    count = len(sample.validation_images[1]) if images.skip_bad else len(sample.validation)
    chunk = chunk or choose_chunk(tree_forward.cost(steps, images.size, net.num_classes), shards, count)
    journal = Journal.open(root, inputs, [[entry.key, entry.code] for entry in entries], count, chunk, shards, fresh)
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
    kept = int(_memory() * SHARE_OF_MEMORY / 2)
    walks = len(steps) * len(journal.chunks())
    dense_up_to = conv_algorithms.DENSE_UP_TO if walks >= DENSE_FROM else conv_algorithms.DENSE_ONCE_UP_TO
    calibration = sample.calibration_images

    def measure(tasks):
        weights = tree_forward.SlicedWeightCache(net, kept, dense_up_to=dense_up_to)

        def one(task):
            recording = tree_forward.RecordingStatistics()
            tree_forward.forward_tree(weights, parts[task.shard],
                                      datasets.normalize(paddle.to_tensor(np.array(calibration))), recording)
            journal.write(task, recording.values())

        return run_tasks(journal, tasks, one, share)

    if calibration is not None:
        tasks = _left(journal, journal.statistics_tasks(), "statistics")
        for _ in runtime.progress(measure(tasks), len(tasks), "statistics"):
            pass
    weights = tree_forward.SlicedWeightCache(net, kept, DTYPES[journal.plan["inputs"]["amp"]], dense_up_to)

    def count(task):
        chunk, norm = slice(task.first, task.last), layers.batch_norm
        if calibration is not None:
            needed = journal.statistics_tasks()[task.shard]
            list(measure([needed]))  # nothing to do, unless it has been damaged meanwhile
            norm = tree_forward.ReplayedStatistics(journal.read(needed, mapped=True))
        journal.write(task, count_chunk(weights, parts[task.shard], pixels[chunk], labels[chunk], norm,
                                        first_half[chunk]))

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


def choose_chunk(cost: tree_forward.Cost, shards: int, images: int) -> int:
    """Images per chunk: what fits into memory and takes about a minute per task. cost: of the whole traversal."""
    device = "gpu" if paddle.device.get_device().startswith("gpu") else "cpu"
    rate = FLOPS_GUESS[device] * (int(os.environ.get("OMP_NUM_THREADS", 1)) if device == "cpu" else 1)
    by_time = SECONDS_PER_TASK * rate * shards / (2 * cost.macs)
    by_memory = _memory() * SHARE_OF_MEMORY / cost.path_bytes
    return int(max(1, min(images, by_memory, max(SMALLEST_CHUNK, by_time))))


def _memory():
    """Bytes that one process of this machine may count on."""
    if paddle.device.get_device().startswith("gpu"):
        return paddle.device.cuda.get_device_properties().total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / machine.local_ranks(os.environ)


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


def measured_rate(archs: Sequence[ArchConfig], image_size: int, num_classes: int, space: SearchSpace) -> float:
    """FLOP per second of this process on the tree of a few of the archs, with untrained weights."""
    steps = prefix_tree.traversal(archs[:RATE_ARCHS])
    net = Supernet(space, num_classes)
    net.eval()
    images = paddle.randn([max(SMALLEST_CHUNK, min(256, 256 * 64 // image_size ** 2)), 3, image_size, image_size])
    weights = tree_forward.SlicedWeightCache(net, _memory() * SHARE_OF_MEMORY / 2)
    for _ in range(2):  # the first time lays out weights
        started = time.perf_counter()
        tree_forward.forward_tree(weights, steps, images, layers.batch_norm, lambda _, logits: float(logits[0, 0]))
    flops = 2 * tree_forward.cost(steps, image_size, num_classes).macs * images.shape[0]
    return flops / (time.perf_counter() - started)


def plan_text(archs: Sequence[ArchConfig], image_size: int, images: int, num_classes: int, space: SearchSpace,
              chunk: int | None, ranks: int, calib_images: int, rate: float | None = None) -> str:
    """What an evaluation would cost, as text.

    image_size: in pixels; images, calib_images: how many; chunk: images at once, None to choose; ranks: processes;
    rate: FLOP per second of one process, measured if not given.
    """
    steps = prefix_tree.traversal(archs)
    whole, single = tree_forward.cost(steps, image_size, num_classes), prefix_tree.separate_macs(archs, image_size,
                                                                                                 num_classes)
    shards = -(-len(archs) // ARCHS_PER_SHARD)
    parts = [tree_forward.cost(part, image_size, num_classes) for part in prefix_tree.shards(steps, shards)]
    chunk = chunk or choose_chunk(whole, shards, images)
    measured = "" if rate else ", measured on a few of these archs"
    rate = rate or measured_rate(archs, image_size, num_classes, space)
    macs = sum(part.macs for part in parts)
    seconds = 2 * macs * (images + calib_images) / rate / ranks
    chunks = -(-images // chunk)
    return "\n".join((
        f"{len(archs)} archs at {image_size} px, {num_classes} classes",
        f"nodes of the tree             {whole.nodes}",
        f"GMACs per image and subnet    {single / len(archs) / 1e9:.4f} alone, {whole.macs / len(archs) / 1e9:.4f} "
        f"shared, a factor of {single / whole.macs:.3f}",
        f"shards, chunks, tasks         {shards}, {chunks} of up to {chunk} images, {shards * chunks}; cutting into "
        f"shards costs {macs / whole.macs - 1:.2%} more",
        f"FLOPs                         {2 * macs * images:.3g} for {images} images, {2 * macs * calib_images:.3g} for "
        f"{calib_images} calibration images",
        f"at {rate / 1e9:.4g} GFLOP/s x {ranks}         {_duration(seconds)}{measured}",
        f"memory per process            {whole.path_bytes * chunk / 1e9:.2f} GB for a chunk, "
        f"{whole.path_bytes * calib_images / 1e9:.2f} GB for calibration, and weights",
        f"disk                          {whole.statistics_bytes / 1e9:.2f} GB statistics, "
        f"{(images + calib_images) * 3 * image_size ** 2 / 1e9:.2f} GB decoded images, "
        f"{8 * (1 + len(counts.COLUMNS)) * len(archs) * chunks / 1e9:.3f} GB counts"))


def status_text(journal: Journal) -> str:
    """How far an evaluation is, as text."""
    chunks, done, tasks, rate = journal.progress()
    found, images = journal.counts()
    left = ""
    if rate and done < tasks:
        left = f", {_duration((tasks - done) / rate)} left at {60 * rate:.1f} tasks per minute"
    lines = [f"{journal.folder}: {len(journal.plan['codes'])} archs, {done} of {tasks} tasks ({done / tasks:.1%})"
             f"{left}", f"{len(chunks)} of {len(journal.chunks())} chunks are done for all archs: {images} of "
                        f"{journal.plan['images']} images"]
    if journal.rejected:
        lines.append(f"{len(journal.rejected)} results are not to be believed; `run` computes them again")
    if images:
        top1 = 100 * found[:, 0] / images
        lines.append(f"top-1 so far: mean {top1.mean():.2f} %, {top1.min():.2f} to {top1.max():.2f} %")
    return "\n".join(lines)


def _duration(seconds):
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
