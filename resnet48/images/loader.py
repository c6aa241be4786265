"""Training batches: which images a step sees, decoded by worker processes.

What a step sees is a pure function of (seed, epoch, image, view): the same for any number of workers, after a resume.
"""

import contextlib
import glob
import itertools
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import paddle

from ..system import signals
from ..system.errors import UserError
from ..system.runtime import require_shared_memory
from . import transforms
from .datasets import BadImage, ImageSet, transformed

BAD_IMAGES_ALLOWED = 50  # unreadable training images before training stops: a broken copy, not a few broken files
MOST_SHOWN = 1 << 28  # bytes of what training sees that a process keeps for the next net
NO_GOOD_IMAGE = -1  # in a list of unreadable images: no readable one was found


def steps_per_epoch(images: ImageSet, batch_size: int, world_size: int) -> int:
    """Whole batches per epoch; which images are left over depends on the epoch. Raises `UserError` if there are none.
    """
    steps = len(images.train) // (batch_size * world_size)
    if steps == 0:
        raise UserError(f"--batch_size {batch_size} on {world_size} process(es) is more than the {len(images.train)} "
                        f"training images of {images.name}")
    return steps


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the training images in an epoch, int64 [count]: the same on every rank."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class _TransformedImages(paddle.io.Dataset):
    """Transformed training images by (epoch, index), or by (epoch, index, view) for a second view and further ones.

    The next readable image stands in for an unreadable one.
    """

    def __init__(self, images, seed):
        super().__init__()
        self.images, self.seed = images, seed

    def __len__(self):
        return len(self.images.train)

    def __getitem__(self, key):
        shown = self.images.shown
        if shown is None:
            return self._transformed(key)
        place = self.seed, *key
        if place not in shown:
            sample = self._transformed(key)
            if len(shown) * 3 * self.images.size ** 2 > MOST_SHOWN:
                return sample
            shown[place] = sample
        return shown[place]

    def _transformed(self, key):
        epoch, index, *view = key
        images, bad = self.images, []
        for candidate in range(index, index + min(BAD_IMAGES_ALLOWED + 1, len(self))):
            candidate %= len(self)
            rng = np.random.default_rng((self.seed, epoch, candidate, *view))
            try:
                pixels = transformed(images.train, candidate, transforms.AUGMENTATIONS[images.augment].train,
                                     images.size, rng, images.crop_scale, images.flip)
                return pixels, images.train.labels[candidate], bad
            except BadImage:
                bad.append(candidate)
        # Returned as data: Paddle replaces an exception in a worker process by one that does not say what happened.
        return np.zeros((3, images.size, images.size), "uint8"), 0, [*bad, NO_GOOD_IMAGE]


class _Steps(paddle.io.BatchSampler):
    """For each step of the whole run, the keys of `_TransformedImages` that this rank sees, views of an image together.
    """

    def __init__(self, count, first_step, last_step, batch_size, seed, rank, world_size, views):
        per_epoch = count // (batch_size * world_size)
        self.ended, self.views = False, views
        self.arguments = count, range(first_step, last_step), per_epoch, batch_size, seed, rank, world_size

    def __len__(self):
        return len(self.arguments[1])

    def __iter__(self):
        count, steps, per_epoch, batch_size, seed, rank, world_size = self.arguments
        for epoch, group in itertools.groupby(steps, lambda step: step // per_epoch):
            order = epoch_order(count, seed, epoch)
            for step in group:
                if self.ended:
                    return
                first = ((step % per_epoch) * world_size + rank) * batch_size
                # The first view has no number: it is the same however many there are.
                further = [(), *((view,) for view in range(1, self.views(step)))]
                yield [(epoch, int(index), *view) for index in order[first:first + batch_size] for view in further]


def _collate(samples):
    pixels, labels, bad = zip(*samples)
    # The indices of unreadable images stay plain numbers: reading a tensor would wait for the GPU.
    return np.stack(pixels), np.array(labels, "int64"), list(itertools.chain(*bad))


def _follow_the_main_process(_worker):
    """Make a worker end when the main process says so or is gone, and ignore signals meant for the main process.

    A shell, a batch system and `timeout` signal the whole process group; Paddle's own watchdog blocks on a queue.
    """
    parent = os.getppid()

    def clear():
        """Remove the batches that will not be fetched any more."""
        if os.getppid() != parent:
            for left in glob.glob(f"/dev/shm/paddle_{os.getpid()}_*"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)

    def end_with_parent():
        while os.getppid() == parent:
            time.sleep(1)
        clear()
        os._exit(1)

    signals.ignore()
    threading.Thread(target=end_with_parent, daemon=True).start()
    multiprocessing.util.Finalize(None, clear, exitpriority=-10)  # where Paddle's loop notices first and ends by itself


@contextlib.contextmanager
def dead_workers_named() -> Iterator[None]:
    """A block that reads batches: a `UserError` if a worker dies, for which Paddle raises `SystemError` anywhere."""
    try:
        yield
    except (SystemError, OSError) as error:
        # It arrives as an OSError if it interrupted a gradient written in Python.
        if isinstance(error, OSError) and "SystemError: " not in str(error):
            raise
        # Nothing else ends the other workers: they ignore the signal that Python sends at exit before it joins them.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in multiprocessing.active_children():
            worker.kill()
        raise UserError("a process that decodes training images has died: killed, or out of memory or of shared memory "
                        "(/dev/shm); fewer --num_workers need less, 0 needs no process") from error


def _loader(views, sampler, workers):
    """Collated batches as tensors. A generator, so that it can be drained again later."""
    if workers:
        yield from paddle.io.DataLoader(views, batch_sampler=sampler, collate_fn=_collate, num_workers=workers,
                                        worker_init_fn=_follow_the_main_process)
    else:  # not through Paddle, whose loader starts threads even then
        for keys in sampler:
            pixels, labels, bad = _collate([views[key] for key in keys])
            yield paddle.to_tensor(pixels), paddle.to_tensor(labels), bad


def batches(images: ImageSet, first_step: int, last_step: int, batch_size: int, seed: int, rank: int, world_size: int,
            report: Callable[[str], None],
            views: Callable[[int], int] = lambda step: 1) -> Iterator[tuple[paddle.Tensor, paddle.Tensor]]:
    """Yield (uint8 [views * batch_size, 3, S, S], int64 [batch_size]) for steps first_step .. last_step - 1 of a run.

    batch_size: images of this rank. The steps of one epoch share out its images without repeats over all ranks.
    `images.workers` processes decode them, or this one for 0. report(text): is called for each unreadable image.
    views(step): how many views of each image a step sees, each transformed anew, one after the other in the batch.
    Raises `UserError` when more than a few images are unreadable, a worker process dies or /dev/shm is too small; code
    that runs between two batches needs `dead_workers_named` around it too.
    """
    if images.workers:  # 2 tensors with their pages
        most = max(map(views, range(first_step, last_step)), default=1)
        require_shared_memory(images.workers, most * batch_size * (3 * images.size ** 2 + 8) + 16384)
    sampler = _Steps(len(images.train), first_step, last_step, batch_size, seed, rank, world_size, views)
    loader, seen = _loader(_TransformedImages(images, seed), sampler, images.workers), set()
    try:
        with dead_workers_named():
            for step, (pixels, labels, bad) in enumerate(loader, first_step):
                for index in bad:
                    if index not in seen and index != NO_GOOD_IMAGE:
                        seen.add(index)
                        report(f"skipped the unreadable image {images.train.name(index)} ({len(seen)} so far)")
                if len(seen) > BAD_IMAGES_ALLOWED or NO_GOOD_IMAGE in bad:
                    raise BadImage(f"too many training images of {images.name} are unreadable: {len(seen)} so far, "
                                   f"allowed are {BAD_IMAGES_ALLOWED}")
                yield pixels, labels[::views(step)] if views(step) > 1 else labels
    finally:
        # The loader ends its workers only when it is exhausted: end the sampler and drain the batches under way.
        sampler.ended = True
        for _ in loader:
            pass
