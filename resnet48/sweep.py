"""The evaluator: every arch of a list on every validation image, over the tree, in pieces that are never lost.

First the statistics of every node, once and for all (recomputing them for every chunk would cost as many forward passes
again as there are calibration images in a chunk's; stored they are 2.2 GB for the published list, read once a chunk).
Then chunks of images, each walked over the whole tree.
"""

import os
import time

import numpy as np
import paddle

from . import cache, data, engine, evaluate, layers, runtime, tree, walk
from .errors import UserError
from .evaluate import hits
from .journal import Journal, work_off
from .models import Supernet

ARCHS_PER_SHARD = 500  # the published list then costs 0.2 % more blocks than in one piece
SECONDS_PER_PIECE = 60  # aimed at; what an interruption may cost
FLOPS_GUESS = {"cpu": 5e10, "gpu": 1e13}  # per core or device and second, to choose a chunk before anything ran
SMALLEST_CHUNK = 16  # images; smaller ones leave a device idle
DENSE_FROM = 200  # archs times chunks: fewer do not repay laying weights out as dense matrices
RATE_ARCHS = 20  # walked to measure a rate
SHARE_OF_MEMORY = 0.25  # of the machine's, divided among its processes


def open_journal(root, digest, entries, steps, images, net, config):
    """The `journal.Journal` of this evaluation below `root`.

    digest: SHA-256 of the weights; steps: `tree.walk` of the entries' archs.

    Raises `UserError` for `--fresh` in one of several processes, each of which would forget the others' work.
    """
    if config.fresh and runtime.ranks() > 1:
        raise UserError(f"--fresh is for one process, not for {runtime.ranks()}: delete {root} and go without it")
    order, calibration = chosen(images, config)
    inputs = {"weights": digest, "space": net.space.to_dict(), "image_size": images.size, "amp": config.amp,
              "validation": cache.fingerprint(images.val, order, images.size, config.skip_bad_images),
              "calibration": cache.fingerprint(images.train, calibration, images.size, config.skip_bad_images)
              if len(calibration) else None}
    shards = -(-len(entries) // ARCHS_PER_SHARD)
    # Fewer than asked for where unreadable ones are left out.
    count = len(validation(images, order, config)[1]) if config.skip_bad_images else len(order)
    chunk = config.chunk or choose_chunk(walk.cost(steps, images.size, net.num_classes), shards, count)
    return Journal.open(root, inputs, [[entry.key, entry.code] for entry in entries], count, chunk, shards,
                        config.fresh)


def run(net, journal, steps, images, config):
    """Do what is left of a journal's pieces, together with whoever else works on it; `Journal.counts` of all of them.

    steps: as for `open_journal`. Raises `UserError` if pieces have been deleted meanwhile.
    """
    net.eval()
    share = runtime.rank(), runtime.ranks()
    parts = dict(enumerate(tree.shards(steps, journal.plan["shards"])))
    order, calibration = chosen(images, config)
    pixels, labels = validation(images, order, config)
    kept = int(_memory() * SHARE_OF_MEMORY / 2)
    walks = len(steps) * len(journal.chunks())
    dense_up_to = engine.DENSE_UP_TO if walks >= DENSE_FROM else engine.DENSE_ONCE_UP_TO
    if len(calibration):
        batch = evaluate.calibration_images(images, config)
        weights = walk.Weights(net, kept, dense_up_to=dense_up_to)

        def measure(piece):
            measuring = walk.Measuring()
            walk.run(weights, parts[_shard(piece)], data.normalize(paddle.to_tensor(np.array(batch))), measuring)
            journal.write(piece, measuring.values())

        pieces = _left(journal, journal.statistics_pieces(), "statistics")
        for _ in runtime.progress(work_off(journal, pieces, measure, share), len(pieces), "statistics"):
            pass
    dtype = {"none": "float32", "fp16": "float16", "bf16": "bfloat16"}[config.amp]
    weights = walk.Weights(net, kept, dtype, dense_up_to)

    def count(piece):
        first, last = (int(part) for part in piece.split("-")[1:3])
        norm = walk.Tape(journal.read(journal.statistics_pieces()[_shard(piece)], mapped=True)) if len(calibration) \
            else layers.batch_norm
        journal.write(piece, count_chunk(weights, parts[_shard(piece)], pixels[first:last], labels[first:last], norm))

    pieces = _left(journal, journal.counts_pieces(), "counts")
    for _ in runtime.progress(work_off(journal, pieces, count, share), len(pieces), "pieces"):
        pass
    counts, total = journal.counts()
    if total < len(labels):
        raise UserError(f"pieces in {journal.folder} have been deleted meanwhile; the same command makes them again")
    return counts, total


def count_chunk(weights, steps, pixels, labels, norm):
    """Hits of the archs of a walk on some images: int64 [archs, 3], the index in the list, top-1 and top-5."""
    labels, found = paddle.to_tensor(labels), []
    walk.run(weights, steps, data.normalize(paddle.to_tensor(np.array(pixels))), norm,
             lambda _, logits: found.append(hits(logits, labels)))
    counts = paddle.stack(found).numpy()  # the only wait for the device
    return np.concatenate([np.array([[step.leaf] for step in steps]), counts], axis=1)


def chosen(images, config):
    """(validation, calibration) indices. Both balanced over the classes, so that every chunk is a fair sample."""
    count = config.val_images or len(images.val)
    return (data.balanced_sample(images.val.labels, count, config.seed),
            data.balanced_sample(images.train.labels, config.calib_images, config.seed))


def validation(images, order, config):
    return cache.decoded(images.val, order, images.size, config, "validation images")


def choose_chunk(cost, shards, images):
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
    processes = max(1, int(os.environ.get("PADDLE_LOCAL_SIZE", 1)))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes


def _left(journal, pieces, what):
    left = [piece for piece in pieces if not journal.has(piece)]
    if len(left) < len(pieces):
        runtime.say(f"{what}: {len(pieces) - len(left)} of {len(pieces)} pieces are there already")
    return left


def _shard(piece):
    return int(piece.split("-")[-1])


def counts_one_by_one(net, archs, images, config):
    """The same counts by the plain reference, each arch on its own: (int64 [archs, 2], number of images)."""
    order, calibration = chosen(images, config)
    pixels, labels = validation(images, order, config)
    batch = evaluate.calibration_images(images, config) if len(calibration) else None
    counts = evaluate.one_by_one(net, archs, batch, pixels, labels, config.batch_size)
    return np.array(list(runtime.progress(counts, len(archs), "subnets"))), len(labels)


def measured_rate(archs, image_size, num_classes, space):
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


def plan_text(archs, image_size, images, num_classes, space, chunk, ranks, calib_images, rate=None):
    """What an evaluation would cost, as text. rate: FLOP per second of one process; measured if not given."""
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


def status_text(journal):
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
