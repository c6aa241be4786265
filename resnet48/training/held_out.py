"""Training images that are kept out of training, to measure how far subnets have learnt, for samplers that adapt."""

from dataclasses import replace

import numpy as np
import paddle
import paddle.nn.functional as F

from ..images import cache, datasets
from ..nets import layers, norm_statistics
from ..nets.supernet import Supernet
from ..space.arch import ArchConfig
from ..space.nodes import smallest_map
from ..system import runtime
from .candidates import Strata

MOST_IMAGES = 512
LARGEST_PART = 8  # of the training images: one in so many, unless the batch norms need more


def count(images: datasets.ImageSet) -> int:
    """How many: MOST_IMAGES, or one eighth of all if that is less, but as many as the batch norms need."""
    needed = -(-layers.LEAST_VALUES // smallest_map(images.size) ** 2)
    return max(needed, min(MOST_IMAGES, len(images.train) // LARGEST_PART))


def apart(images: datasets.ImageSet, seed: int) -> tuple[datasets.ImageSet, tuple[np.ndarray, np.ndarray]]:
    """(the set to train on, the images that are kept out of it, decoded: uint8 [N, 3, S, S], and labels int64 [N]).

    They are chosen from the training images by the seed, balanced over the classes. Raises `datasets.BadImage`, and
    `UserError` where there are too few.
    """
    chosen = datasets.balanced_sample(images.train.labels, count(images), seed)
    pixels, labels = cache.decoded(images, images.train, chosen, "held-out training images")
    layers.require_values(len(labels), images.size, f"{len(labels)} held-out training image(s)",
                          "more training images, a larger --image_size, or a --sampler that does not adapt")
    rest = np.setdiff1d(np.arange(len(images.train)), chosen)
    train = datasets.Split([images.train.images[index] for index in rest], images.train.labels[rest])
    runtime.log_main(f"{len(labels)} training images are kept out of training, to measure how far subnets have learnt")
    return replace(images, train=train, shown=None), (pixels, labels)


def observe(strata: Strata, net: Supernet, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Measure the archs that the strata watch and let the weights follow.

    The ranks share the archs and all learn the same losses. The net, its running statistics too, stays as it is.
    """
    archs = [arch for each in strata.observed for arch in each]
    losses = np.zeros(len(archs))
    for place in range(runtime.rank(), len(archs), runtime.world_size()):
        losses[place] = _loss(net, archs[place], pixels, labels)
    losses = runtime.all_reduce_sum(losses)  # one rank's number and zeros: exact
    strata.observe(np.reshape(losses, (len(strata.observed), -1)).tolist())


def _loss(net: Supernet, arch: ArchConfig, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Cross-entropy of a subnet with the batch-norm statistics of these very images."""
    parts = norm_statistics.in_parts(pixels, datasets.normalize)
    logits = norm_statistics.forward(net.path(arch), parts, lambda *_: None)
    return float(F.cross_entropy(logits.astype("float32"), paddle.to_tensor(labels)))
