"""Images: an ImageNet-layout folder or the built-in handwritten digits, as uint8 batches.

Images stay uint8 [N, 3, S, S] until they are on the device; `normalize` is the first thing a step does. What a step
sees is a pure function of (seed, epoch, image): the same for any number of workers, after any resume.
"""

import contextlib
import glob
import itertools
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import paddle
import paddle.nn.functional as F
from PIL import Image

from . import files
from .errors import UserError
from .runtime import STOP_SIGNALS, progress, require_shared_memory

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on the scale 0..1
BAD_IMAGES_ALLOWED = 50  # unreadable training images before training stops: a broken copy, not a few broken files
NO_GOOD_IMAGE = -1  # stands for the label where only unreadable images were found
DIGITS_SIZE, DIGITS_VALIDATION = 32, 360


class BadImage(UserError):
    """An image file that cannot be decoded."""


@dataclass(frozen=True)
class Split:
    """Images and labels. images: paths, or uint8 arrays [H, W]; labels: int64 [N]."""

    images: object
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def open(self, index):
        """The image as it is stored, not yet decoded if it is a file."""
        image = self.images[index]
        return Image.open(image) if isinstance(image, str) else Image.fromarray(image)

    def name(self, index):
        image = self.images[index]
        return image if isinstance(image, str) else f"built-in digit {index}"


@dataclass(frozen=True)
class ImageSet:
    """A training and a validation split over the same classes, and how they are shown.

    size: height and width in pixels; crop_scale: smallest part of the area that a training crop takes; flip: whether
    mirrored images mean the same.
    """

    name: str
    classes: tuple
    train: Split
    val: Split
    size: int
    crop_scale: float = 0.08
    flip: bool = True


def load(config):
    """The `ImageSet` that `--image_dir`, `--image_size` and `--crop_scale` ask for. Raises `UserError`."""
    if config.cache_dir:
        files.require_writable(os.path.join(config.cache_dir, "images"))
    images = _folder(config.image_dir, config.image_size or 224) if config.image_dir else \
        _digits(config.image_size or DIGITS_SIZE)
    if getattr(config, "crop_scale", None) is not None:
        images = replace(images, crop_scale=config.crop_scale)
    return images


def cut(images, train, val):
    """The same set with only so many images in each split, spread over the classes: for a dry run."""
    def part(split, count):
        chosen = balanced_sample(split.labels, count, seed=0)
        return Split([split.images[index] for index in chosen], split.labels[chosen])

    return replace(images, train=part(images.train, train), val=part(images.val, val))


def _folder(root, size):
    splits = {}
    for part in ("train", "val"):
        folder = os.path.join(root, part)
        if not os.path.isdir(folder):
            raise UserError(f"--image_dir {root} has no folder {part}/; it must hold train/<class>/ and val/<class>/")
        splits[part] = {entry.name: entry.path for entry in os.scandir(folder)
                        if entry.is_dir() and not entry.name.startswith(".")}
        if not splits[part]:
            raise UserError(f"{folder} holds no class folders")
    differing = sorted(splits["train"].keys() ^ splits["val"].keys())
    if differing:
        where = "train" if differing[0] in splits["train"] else "val"
        raise UserError(f"train/ and val/ in {root} must hold the same class folders; {len(differing)} differ, "
                        f"the first is {differing[0]!r}, only in {where}/")
    classes = tuple(sorted(splits["train"]))
    train, val = (_listed(splits[part], classes) for part in ("train", "val"))
    return ImageSet(os.path.abspath(root), classes, train, val, size)


def _listed(folders, classes):
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(entry.path for entry in os.scandir(folders[name])
                       if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."))
        if not found:
            raise UserError(f"{folders[name]} holds no images ({', '.join(EXTENSIONS)})")
        paths += found
        labels += [label] * len(found)
    return Split(paths, np.array(labels, "int64"))


def _digits(size):
    """Scikit-learn's 1,797 handwritten digits (UCI, 8 x 8), drawn 28 pixels wide in the middle of a 37-pixel square.

    The evaluation view of 32 pixels then shows the whole digit. A fixed 360 of them are for validation.
    """
    from sklearn.datasets import load_digits  # here: only the built-in set needs it, and it is slow to import

    raw = load_digits()
    small = (raw.images * (255 / 16)).astype("uint8")
    drawn = np.zeros((len(small), 37, 37), "uint8")
    for canvas, digit in zip(drawn, small):
        canvas[4:32, 4:32] = np.asarray(Image.fromarray(digit).resize((28, 28), Image.BILINEAR))
    order = np.random.default_rng(0).permutation(len(small))  # not the user's seed: the split is part of the data
    val, train = order[:DIGITS_VALIDATION], order[DIGITS_VALIDATION:]
    labels = raw.target.astype("int64")
    return ImageSet("built-in digits", tuple("0123456789"), Split(drawn[train], labels[train]),
                    Split(drawn[val], labels[val]), size, crop_scale=0.6, flip=False)


# --- from an image to uint8 [3, S, S] ---------------------------------------------------------------------------------

def train_view(image, size, rng, crop_scale, flip):
    """Random resized crop (area crop_scale..1, ratio 3/4..4/3) and flip, as in GoogLeNet (arXiv 1409.4842, 6)."""
    width, height = image.size
    area = width * height
    for _ in range(10):
        crop_area = area * rng.uniform(crop_scale, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((crop_area * ratio) ** 0.5), round((crop_area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            break
    else:  # a very long image: the largest crop of an allowed ratio in the middle
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    pixels = _resized(image, (left, top, left + w, top + h), size)
    return pixels[:, :, ::-1] if flip and rng.random() < 0.5 else pixels


def eval_view(image, size):
    """Short side to round(size * 256 / 224), then the central square of `size` pixels."""
    width, height = image.size
    short = round(size * 256 / 224)
    if width < height:
        scaled = short, max(short, int(short * height / width))
    else:
        scaled = max(short, int(short * width / height)), short
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    # The square in coordinates of the original: only what is kept is computed.
    fx, fy = width / scaled[0], height / scaled[1]
    return _resized(image, (left * fx, top * fy, (left + size) * fx, (top + size) * fy), size)


def _resized(image, box, size):
    """The part `box` (left, top, right, bottom) of an image as uint8 [3, size, size], bilinear with antialiasing."""
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; keep twice what is needed, so that nothing is lost.
    factor, scale = 2 * size / min(box[2] - box[0], box[3] - box[1]), 1
    if factor < 1:
        width, height = image.size
        drafted = image.draft("RGB", (max(1, int(width * factor)), max(1, int(height * factor))))
        if drafted:  # it says the exact scale; the decoded size is rounded up and would shift the box
            scale = drafted[1][2] / width
    left, top, right, bottom = (side * scale for side in box)
    box = left, top, min(right, image.size[0]), min(bottom, image.size[1])
    return np.asarray(_rgb(image).resize((size, size), Image.BILINEAR, box=box)).transpose(2, 0, 1)


def _rgb(image):
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, which Pillow would clip at 255
        deep = np.asarray(image)
        is_deep = image.mode.startswith("I;16") or deep.max() > 255  # in 32 bits, both scales are in use
        return Image.fromarray((deep / (257 if is_deep else 1)).astype("uint8")).convert("RGB")
    return image.convert("RGB")


def view(split, index, make, *arguments):
    """`make(image, *arguments)` for one image; raises `BadImage` naming the file if it cannot be decoded."""
    try:
        with split.open(index) as image:
            return make(image, *arguments)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"cannot read the image {split.name(index)}: {error}") from error


def normalize(images):
    """uint8 [N, 3, S, S] on any device to float32 with ImageNet's mean and deviation taken out."""
    mean = paddle.to_tensor([255 * value for value in MEAN], "float32")
    variance = paddle.to_tensor([(255 * value) ** 2 for value in STD], "float32")
    # The batch-norm kernel, because broadcasting is far slower on a CPU.
    return F.batch_norm(images.astype("float32"), mean, variance, training=False, epsilon=0.0)


# --- training batches -------------------------------------------------------------------------------------------------

def steps_per_epoch(images, batch_size, ranks):
    """Whole batches in one pass; what is left over changes with each epoch's order. Raises `UserError` if none."""
    steps = len(images.train) // (batch_size * ranks)
    if steps == 0:
        raise UserError(f"--batch_size {batch_size} on {ranks} process(es) is more than the {len(images.train)} "
                        f"training images of {images.name}")
    return steps


def epoch_order(count, seed, epoch):
    """The order of the training images in an epoch: the same on every rank."""
    return np.random.default_rng((seed, epoch)).permutation(count)


class _Views(paddle.io.Dataset):
    """Training views by (epoch, index). A bad image gives its place to the next good one and is reported."""

    def __init__(self, images, seed):
        super().__init__()
        self.images, self.seed = images, seed

    def __len__(self):
        return len(self.images.train)

    def __getitem__(self, key):
        epoch, index = key
        images, bad = self.images, []
        for candidate in range(index, index + min(BAD_IMAGES_ALLOWED + 1, len(self))):
            candidate %= len(self)
            rng = np.random.default_rng((self.seed, epoch, candidate))
            try:
                pixels = view(images.train, candidate, train_view, images.size, rng, images.crop_scale, images.flip)
                return pixels, images.train.labels[candidate], bad
            except BadImage:
                bad.append(candidate)
        # Told as data: Paddle turns an exception in a worker process into one of its own that says nothing.
        return np.zeros((3, images.size, images.size), "uint8"), NO_GOOD_IMAGE, bad


class _Steps(paddle.io.BatchSampler):
    """For each step of the whole run, which (epoch, index) this rank sees."""

    def __init__(self, count, first_step, last_step, batch_size, seed, rank, ranks):
        per_epoch = count // (batch_size * ranks)
        self.ended = False
        self.arguments = count, range(first_step, last_step), per_epoch, batch_size, seed, rank, ranks

    def __len__(self):
        return len(self.arguments[1])

    def __iter__(self):
        count, steps, per_epoch, batch_size, seed, rank, ranks = self.arguments
        for epoch, group in itertools.groupby(steps, lambda step: step // per_epoch):
            order = epoch_order(count, seed, epoch)
            for step in group:
                if self.ended:
                    return
                first = ((step % per_epoch) * ranks + rank) * batch_size
                yield [(epoch, int(index)) for index in order[first:first + batch_size]]


def _collate(samples):
    pixels, labels, bad = zip(*samples)
    return np.stack(pixels), np.array(labels, "int64"), np.array([-1, *itertools.chain(*bad)], "int64")  # never empty


def _follow_the_main_process(_worker):
    """A worker ends when the main process says so or is gone, and not by a signal that is for the main process.

    A shell, a batch system and `timeout` signal the whole process group; Paddle's own watch blocks on a queue.
    """
    def end_with(parent):
        while os.getppid() == parent:
            time.sleep(1)
        for left in glob.glob(f"/dev/shm/paddle_{os.getpid()}_*"):  # batches that nobody will fetch any more
            os.unlink(left)
        os._exit(1)

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


@contextlib.contextmanager
def dead_workers_named():
    """While batches are read: Paddle interrupts whatever runs with a `SystemError` when a worker dies."""
    try:
        yield
    except SystemError as error:
        # Nobody will tell the other workers to end, and they ignore the signal that Python sends at exit and waits for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in multiprocessing.active_children():
            worker.kill()
        raise UserError("a process that decodes training images has died: killed, or out of memory or of shared memory "
                        "(/dev/shm); fewer --num_workers need less, 0 needs no process") from error


def _loader(views, sampler, workers):
    """Collated batches as tensors. A generator, so that it can be asked again at its end."""
    if workers:
        yield from paddle.io.DataLoader(views, batch_sampler=sampler, collate_fn=_collate, num_workers=workers,
                                        worker_init_fn=_follow_the_main_process)
    else:  # not through Paddle, whose loader starts threads even then
        for keys in sampler:
            yield [paddle.to_tensor(part) for part in _collate([views[key] for key in keys])]


def batches(images, first_step, last_step, batch_size, seed, rank, ranks, workers, report):
    """Yield (uint8 [batch_size, 3, S, S], int64 [batch_size]) for steps first_step .. last_step - 1 of a run.

    The steps of one epoch share out its images without repeats over all ranks. report(text): told about bad images.
    Raises `UserError` when more than a few images are unreadable or a worker process dies; code that runs between
    two batches needs `dead_workers_named` around it too.
    """
    if workers:
        require_shared_memory(workers, batch_size * (3 * images.size ** 2 + 8) + 24576)  # 3 tensors with their pages
    sampler = _Steps(len(images.train), first_step, last_step, batch_size, seed, rank, ranks)
    loader, seen = _loader(_Views(images, seed), sampler, workers), set()
    try:
        with dead_workers_named():
            for pixels, labels, bad in loader:
                for index in bad.numpy()[1:].tolist():
                    if index not in seen:
                        seen.add(index)
                        report(f"skipped the unreadable image {images.train.name(index)} ({len(seen)} so far)")
                if len(seen) > BAD_IMAGES_ALLOWED or (labels.numpy() == NO_GOOD_IMAGE).any():
                    raise BadImage(f"too many training images of {images.name} are unreadable: {len(seen)} so far, "
                                   f"allowed are {BAD_IMAGES_ALLOWED}")
                yield pixels, labels
    finally:
        # The loader ends its workers only when it is run to the end, so end the steps and take what is under way.
        sampler.ended = True
        for _ in loader:
            pass


# --- images that are decoded once -------------------------------------------------------------------------------------

def decode(split, indices, size, threads=1, skip_bad=False, what="images", into=None):
    """Evaluation views of the given images: (uint8 [n, 3, size, size], int64 [n]).

    into: an array of that shape to fill, such as a memory-mapped one.
    Raises `BadImage` for the first unreadable one, or leaves such images out and says so with skip_bad.
    """
    pixels = np.empty((len(indices), 3, size, size), "uint8") if into is None else into
    good = np.ones(len(indices), bool)

    def one(place):
        try:
            pixels[place] = view(split, indices[place], eval_view, size)
        except BadImage as error:
            if not skip_bad:
                raise BadImage(f"{error} (--skip_bad_images leaves such images out)") from error
            good[place] = False

    with ThreadPoolExecutor(max(1, threads)) as pool:  # Pillow decodes outside the interpreter's lock
        for _ in progress(pool.map(one, range(len(indices))), len(indices), f"decoding {what}"):
            pass
    if not good.all():
        skipped = [split.name(index) for index, fine in zip(indices, good) if not fine]
        print(f"left out {len(skipped)} unreadable {what}, the first is {skipped[0]}", flush=True)
        pixels = pixels[good]
    return pixels, split.labels[np.asarray(indices, "int64")][good]


def balanced_sample(labels, count, seed):
    """Indices of `count` images, as many of each class as possible; a pure function of the arguments.

    Which classes give one more than others, or with fewer images than classes one at all, is drawn too.
    """
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    order = rng.permutation(len(by_class))
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*(by_class[place] for place in order)))
    return np.array([index for index in itertools.islice((i for i in rounds if i is not None), count)])
