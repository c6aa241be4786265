"""What an evaluation would cost, before it begins, and how far it is, while it runs."""

import time
from collections.abc import Sequence

import paddle

from ..nets import layers
from ..nets.supernet import Supernet
from ..space.arch import ArchConfig, SearchSpace
from ..space.split import Split
from ..system.errors import UserError, duration
from . import counts, evaluator, prefix_tree, tree_forward
from .evaluator import Device
from .journal import Journal

RATE_ARCHS = 20  # evaluated to measure a rate
GPU_FROM = 1e12  # FLOP per second: a process that does more is taken for a GPU's
GPU_MEMORY = 16e9  # bytes, of one that is not here


def device_for(kind: str, rate: float | None, memory: float | None) -> Device:
    """The device to plan for. kind: cpu, gpu, or auto for the one that a rate (FLOP per second) tells, without a rate
    the one of this machine; memory: in bytes, None for that of this machine, or GPU_MEMORY.

    Raises `UserError` for another kind than this machine's without a rate, which cannot be measured then.
    """
    here = Device.here().kind
    if kind == "auto":
        kind = here if rate is None else "gpu" if rate > GPU_FROM else "cpu"
    if rate is None and kind != here:
        raise UserError(f"--device {kind} is not what computes here, so its speed cannot be measured: give --gflops")
    return Device.of(kind, memory or (GPU_MEMORY if kind == "gpu" and here == "cpu" else None))


def measured_rate(archs: Sequence[ArchConfig], image_size: int, num_classes: int, space: SearchSpace) -> float:
    """FLOP per second of this process on the tree of a few of the archs, with untrained weights."""
    steps = prefix_tree.traversal(archs[:RATE_ARCHS])
    net = Supernet(space, num_classes)
    net.eval()
    count = max(evaluator.SMALLEST_CHUNK, min(256, 256 * 64 // image_size ** 2))
    images = paddle.randn([count, 3, image_size, image_size])
    weights = tree_forward.SlicedWeightCache(net, Device.here().memory * evaluator.SHARE_OF_MEMORY / 2)
    for _ in range(2):  # the first time lays out weights
        started = time.perf_counter()
        tree_forward.forward_tree(weights, steps, images, layers.batch_norm, lambda _, logits: float(logits[0, 0]))
    flops = 2 * tree_forward.cost(steps, image_size, num_classes).macs * count
    return flops / (time.perf_counter() - started)


def plan_text(archs: Sequence[ArchConfig], split: Split | None, image_size: int, images: int, num_classes: int,
              space: SearchSpace, chunk: int | None, ranks: int, calib_images: int, device: Device,
              rate: float | None = None) -> str:
    """What an evaluation would cost, as text.

    split: of the supernet; image_size: in pixels; images, calib_images: how many; chunk: images at once, None to
    choose; ranks: processes; device: that of each; rate: its FLOP per second, measured if not given.
    """
    steps, shards = prefix_tree.traversal(archs, split), evaluator.shard_count(len(archs))
    whole, single = tree_forward.cost(steps, image_size, num_classes), prefix_tree.separate_macs(archs, image_size,
                                                                                                 num_classes)
    cut = tree_forward.cost_of_shards(prefix_tree.shards(steps, shards), image_size, num_classes)
    chunk = chunk or evaluator.choose_chunk(cut, shards, images, device)
    piece, chunks = evaluator.choose_piece(chunk, shards, images), -(-images // chunk)
    pieces = -(-images // piece)
    measured = "" if rate else ", measured on a few of these archs"
    rate = rate or measured_rate(archs, image_size, num_classes, space)
    seconds = 2 * cut.macs * (images + calib_images) / rate / ranks
    return "\n".join((
        f"{len(archs)} archs at {image_size} px, {num_classes} classes",
        f"split of the supernet         {split or 'none'}",
        f"device of a process           {device.kind} with {device.memory / 1e9:.1f} GB",
        f"nodes of the tree             {whole.nodes}",
        f"GMACs per image and subnet    {single / len(archs) / 1e9:.4f} alone, {whole.macs / len(archs) / 1e9:.4f} "
        f"shared, a factor of {single / whole.macs:.3f}",
        f"shards, chunks, tasks         {shards}, {chunks} of up to {chunk} images, {shards * pieces}; cutting into "
        f"shards costs {cut.macs / whole.macs - 1:.2%} more",
        f"files                         {shards} of statistics, {shards * pieces} of counts, {piece // chunk} "
        f"chunk{'s' * (piece > chunk)} in each",
        f"FLOPs                         {2 * cut.macs * images:.3g} for {images} images, "
        f"{2 * cut.macs * calib_images:.3g} for {calib_images} calibration images",
        f"at {rate / 1e9:.4g} GFLOP/s x {ranks}         {duration(seconds)}{measured}",
        f"memory per process            {cut.path_bytes * chunk / 1e9:.2f} GB for a chunk, "
        f"{cut.calibration_bytes(calib_images, image_size) / 1e9:.2f} GB for calibration, and weights",
        f"disk                          {cut.statistics_bytes / 1e9:.2f} GB statistics, "
        f"{(images + calib_images) * 3 * image_size ** 2 / 1e9:.2f} GB decoded images, "
        f"{8 * (1 + len(counts.COLUMNS)) * len(archs) * pieces / 1e9:.3f} GB counts"))


def status_text(journal: Journal) -> str:
    """How far an evaluation is, as text."""
    pieces, done, tasks, rate = journal.progress()
    found, images = journal.counts()
    left = ""
    if rate and done < tasks:
        left = f", {duration((tasks - done) / rate)} left at {60 * rate:.1f} tasks per minute"
    lines = [f"{journal.folder}: {len(journal.plan['codes'])} archs, {done} of {tasks} tasks ({done / tasks:.1%})"
             f"{left}", f"{len(pieces)} of {len(journal.pieces())} pieces of the images are done for all archs: "
                        f"{images} of {journal.plan['images']} images"]
    if journal.rejected:
        lines.append(f"{len(journal.rejected)} results are not to be believed; `run` computes them again")
    if images:
        top1 = 100 * found[:, 0] / images
        lines.append(f"top-1 so far: mean {top1.mean():.2f} %, {top1.min():.2f} to {top1.max():.2f} %")
    return "\n".join(lines)
