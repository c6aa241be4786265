"""The evaluator: every arch of a list on every validation image, over the tree, in pieces that are never lost.

First the statistics of every node, once and for all (recomputing them for every chunk would cost as many forward passes
again as there are calibration images in a chunk's; stored they are 2.2 GB for the published list, read once a chunk).
Then chunks of images, each walked over the whole tree.
"""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import paddle

from . import data, engine, evaluate, layers, machine, runtime, tree, walk
from .arch import ArchConfig, SearchSpace
from .errors import UserError
from .evaluate import Sample, hits
from .journal import Journal, work_off
from .models import Supernet
from .submission import Entry

ARCHS_PER_SHARD = 500  # the published list then costs 0.2 % more blocks than in one piece
SECONDS_PER_PIECE = 60  # aimed at; what an interruption may cost
FLOPS_GUESS = {"cpu": 5e10, "gpu": 1e13}  # per core or device and second, to choose a chunk before anything ran
SMALLEST_CHUNK = 16  # images; smaller ones leave a device idle
DENSE_FROM = 200  # archs times chunks: fewer do not repay laying weights out as dense matrices
RATE_ARCHS = 20  # walked to measure a rate
SHARE_OF_MEMORY = 0.25  # of the machine's, divided among its processes
DTYPES = {"none": "float32", "fp16": "float16", "bf16": "bfloat16"}  # `amp` of a journal's inputs -> of the tensors


def open_journal(root: str, digest: str, entries: Sequence[Entry], steps: Sequence[tree.Step], net: Supernet,
                 sample: Sample, precision: str = "fp32", chunk: int | None = None, fresh: bool = False) -> Journal:
    """The `journal.Journal` of this evaluation below `root`.

    digest: SHA-256 of the weights; steps: `tree.walk` of the entries' archs; precision of the computation: fp32, fp16
    or bf16; chunk: images walked through the tree at once, None to choose; fresh: forget what was done before.

    Raises `UserError` for `fresh` in one of several processes, each of which would forget the others' work.
    """
    if fresh and runtime.ranks() > 1:
        raise UserError(f"--fresh is for one process, not for {runtime.ranks()}: delete {root} and go without it")
    images, amp = sample.images, "none" if precision == "fp32" else precision
    inputs = {"weights": digest, "space": net.space.to_dict(), "image_size": images.size, "amp": amp,
              **sample.fingerprints()}
    shards = -(-len(entries) // ARCHS_PER_SHARD)
    # Fewer than asked for where unreadable ones are left out.
    count = len(sample.validation_images[1]) if images.skip_bad else len(sample.validation)
    chunk = chunk or choose_chunk(walk.cost(steps, images.size, net.num_classes), shards, count)
    return Journal.open(root, inputs, [[entry.key, entry.code] for entry in entries], count, chunk, shards, fresh)


def run(net: Supernet, journal: Journal, steps: Sequence[tree.Step], sample: Sample) -> tuple[np.ndarray, int]:
    """Do what is left of a journal's pieces, together with whoever else works on it; `Journal.counts` of all of them.

    steps, sample: as for `open_journal`. Raises `UserError` if pieces have been deleted meanwhile.
    """
    net.eval()
    share = runtime.rank(), runtime.ranks()
    parts = tree.shards(steps, journal.plan["shards"])
    pixels, labels = sample.validation_images
    kept = int(_memory() * SHARE_OF_MEMORY / 2)
    walks = len(steps) * len(journal.chunks())
    dense_up_to = engine.DENSE_UP_TO if walks >= DENSE_FROM else engine.DENSE_ONCE_UP_TO
    calibration = sample.calibration_images
    if calibration is not None:
        weights = walk.Weights(net, kept, dense_up_to=dense_up_to)

        def measure(piece):
            measuring = walk.Measuring()
            walk.run(weights, parts[piece.shard], data.normalize(paddle.to_tensor(np.array(calibration))), measuring)
            journal.write(piece, measuring.values())

        pieces = _left(journal, journal.statistics_pieces(), "statistics")
        for _ in runtime.progress(work_off(journal, pieces, measure, share), len(pieces), "statistics"):
            pass
    weights = walk.Weights(net, kept, DTYPES[journal.plan["inputs"]["amp"]], dense_up_to)

    def count(piece):
        chunk = slice(piece.first, piece.last)
        norm = layers.batch_norm if calibration is None else \
            walk.Tape(journal.read(journal.statistics_pieces()[piece.shard], mapped=True))
        journal.write(piece, count_chunk(weights, parts[piece.shard], pixels[chunk], labels[chunk], norm))

    pieces = _left(journal, journal.counts_pieces(), "counts")
    for _ in runtime.progress(work_off(journal, pieces, count, share), len(pieces), "pieces"):
        pass
    counts, total = journal.counts()
    if total < len(labels):
        raise UserError(f"pieces in {journal.folder} have been deleted meanwhile; the same command makes them again")
    return counts, total


def count_chunk(weights: walk.Weights, steps: Sequence[tree.Step], pixels: np.ndarray, labels: np.ndarray,
                norm: Callable) -> np.ndarray:
    """Hits of the archs of a walk on some images: int64 [archs, 3], the index in the list, top-1 and top-5.

    pixels: uint8 [N, 3, S, S]; labels: int64 [N]; norm: as for `walk.run`.
    """
    labels, found = paddle.to_tensor(labels), []
    walk.run(weights, steps, data.normalize(paddle.to_tensor(np.array(pixels))), norm,
             lambda _, logits: found.append(hits(logits, labels)))
    counts = paddle.stack(found).numpy()  # the only wait for the device
    return np.concatenate([np.array([[step.leaf] for step in steps]), counts], axis=1)


def choose_chunk(cost: walk.Cost, shards: int, images: int) -> int:
    """Images per chunk: what fits into memory and takes about a minute per piece. cost: of the whole walk."""
    device = "gpu" if paddle.device.get_device().startswith("gpu") else "cpu"
    rate = FLOPS_GUESS[device] * (int(os.environ.get("OMP_NUM_THREADS", 1)) if device == "cpu" else 1)
    by_time = SECONDS_PER_PIECE * rate * shards / (2 * cost.macs)
    by_memory = _memory() * SHARE_OF_MEMORY / cost.path_bytes
    return int(max(1, min(images, by_memory, max(SMALLEST_CHUNK, by_time))))


def _memory():
    """Bytes that one process of this machine may count on."""
    if paddle.device.get_device().startswith("gpu"):
        return paddle.device.cuda.get_device_properties().total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / machine.local_ranks(os.environ)


def _left(journal, pieces, what):
    left = [piece for piece in pieces if not journal.has(piece)]
    if len(left) < len(pieces):
        runtime.say(f"{what}: {len(pieces) - len(left)} of {len(pieces)} pieces are there already")
    return left


def counts_one_by_one(net: Supernet, archs: Sequence[ArchConfig], sample: Sample,
                      batch_size: int) -> tuple[np.ndarray, int]:
    """The same counts by the plain reference, each arch on its own: (int64 [archs, 2], number of images).

    batch_size: validation images at a time.
    """
    pixels, labels = sample.validation_images
    counts = evaluate.one_by_one(net, archs, sample.calibration_images, pixels, labels, batch_size)
    return np.array(list(runtime.progress(counts, len(archs), "subnets"))), len(labels)


def measured_rate(archs: Sequence[ArchConfig], image_size: int, num_classes: int, space: SearchSpace) -> float:
    """FLOP per second of this process on a walk over a few of the archs, with weights that mean nothing."""
    steps = tree.walk(archs[:RATE_ARCHS])
    net = Supernet(space, num_classes)
    net.eval()
    images = paddle.randn([max(SMALLEST_CHUNK, min(256, 256 * 64 // image_size ** 2)), 3, image_size, image_size])
    weights = walk.Weights(net, _memory() * SHARE_OF_MEMORY / 2)
    for _ in range(2):  # the first time lays out weights
        started = time.perf_counter()
        walk.run(weights, steps, images, layers.batch_norm, lambda _, logits: float(logits[0, 0]))
    flops = 2 * walk.cost(steps, image_size, num_classes).macs * images.shape[0]
    return flops / (time.perf_counter() - started)


def plan_text(archs: Sequence[ArchConfig], image_size: int, images: int, num_classes: int, space: SearchSpace,
              chunk: int | None, ranks: int, calib_images: int, rate: float | None = None) -> str:
    """What an evaluation would cost, as text.

    image_size: in pixels; images, calib_images: how many; chunk: images at once, None to choose; ranks: processes;
    rate: FLOP per second of one process, measured if not given.
    """
    steps = tree.walk(archs)
    whole, single = walk.cost(steps, image_size, num_classes), tree.alone(archs, image_size, num_classes)
    shards = -(-len(archs) // ARCHS_PER_SHARD)
    parts = [walk.cost(part, image_size, num_classes) for part in tree.shards(steps, shards)]
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
        f"shards, chunks, pieces        {shards}, {chunks} of up to {chunk} images, {shards * chunks}; cutting into "
        f"shards costs {macs / whole.macs - 1:.2%} more",
        f"FLOPs                         {2 * macs * images:.3g} for {images} images, {2 * macs * calib_images:.3g} for "
        f"{calib_images} calibration images",
        f"at {rate / 1e9:.4g} GFLOP/s x {ranks}         {_duration(seconds)}{measured}",
        f"memory per process            {whole.path_bytes * chunk / 1e9:.2f} GB for a chunk, "
        f"{whole.path_bytes * calib_images / 1e9:.2f} GB for calibration, and weights",
        f"disk                          {whole.statistics_bytes / 1e9:.2f} GB statistics, "
        f"{(images + calib_images) * 3 * image_size ** 2 / 1e9:.2f} GB decoded images, "
        f"{24 * len(archs) * chunks / 1e9:.3f} GB counts"))


def status_text(journal: Journal) -> str:
    """How far an evaluation is, as text."""
    chunks, done, pieces, rate = journal.progress()
    counts, images = journal.counts()
    left = ""
    if rate and done < pieces:
        left = f", {_duration((pieces - done) / rate)} left at {60 * rate:.1f} pieces per minute"
    lines = [f"{journal.folder}: {len(journal.plan['codes'])} archs, {done} of {pieces} pieces ({done / pieces:.1%})"
             f"{left}", f"{len(chunks)} of {len(journal.chunks())} chunks are done for all archs: {images} of "
                        f"{journal.plan['images']} images"]
    if images:
        top1 = 100 * counts[:, 0] / images
        lines.append(f"top-1 so far: mean {top1.mean():.2f} %, {top1.min():.2f} to {top1.max():.2f} %")
    return "\n".join(lines)


def _duration(seconds):
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
