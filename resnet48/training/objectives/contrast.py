"""Momentum contrast: a first stage without labels, from which the recipe starts warm."""

from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from ...nets.supernet import ResNet48, Supernet, extract, shapes
from ...space.nodes import HEAD
from ...system import runtime
from ...system.errors import UserError
from .. import checkpoint
from ..optim import growing_decay
from ..samplers import Moment
from .objective import Objective

QUEUE, ENCODER = "queue", "encoder/"  # names in a checkpoint; the second begins those of weights


def contrast_logits(queries: paddle.Tensor, keys: paddle.Tensor, negatives: paddle.Tensor | None,
                    temperature: float) -> paddle.Tensor:
    """(q k, q n_1, q n_2, ...) / temperature of each image: [N, 1 + K], the right one first (MoCo, eq. 1).

    queries, keys: of two views of the same images [N, D]; negatives: keys of other images [K, D], or None. All have
    been divided by their length.
    """
    products = [(queries * keys).sum(axis=1, keepdim=True)]
    if negatives is not None:
        products.append(paddle.matmul(queries, negatives, transpose_y=True))
    return paddle.concat(products, axis=1) / temperature


def what_it_reads(x: paddle.Tensor, classifier: paddle.nn.Linear) -> paddle.Tensor:
    """In place of a classifier: its input, [N, width]."""
    return x


@dataclass
class MomentumContrast(Objective):
    """A view of an image is told by another view of it, among views of other images (MoCo, arXiv 1911.05722).

    To be used with the sampler `largest`; all archs of a step are compared with the keys of the largest net, which the
    key encoder is a copy of.
    momentum: the part of the key encoder that a step keeps; temperature; queue: how many keys of earlier steps are
    negatives, which should be fewer than the training images.

    What differs from the paper: compared is what the classifier reads, without a linear layer to 128 numbers that would
    be thrown away, and the classifier stays as it began; views differ by crop and flip alone; the queue begins empty
    and not with noise; and instead of shuffling images between devices, so that batch statistics do not give away which
    images belong together, the key encoder normalises by running statistics that follow the net's by the same momentum
    as its weights, which works on one device too (arXiv 2101.08482). The momentum grows to its value over the first
    steps, see `growing_decay`.
    """

    momentum: float = 0.999
    temperature: float = 0.07
    queue: int = 65536

    views = 2

    def prepare(self, candidates, teacher):
        super().prepare(candidates, teacher)
        if not 0 <= self.momentum <= 1 or not self.temperature > 0 or self.queue < 1:
            raise UserError("--objective momentum_contrast: momentum is from 0 to 1, temperature more than 0, queue 1 "
                            f"or more; got {self.momentum}, {self.temperature} and {self.queue}")
        self._largest = candidates.largest()
        self.end()

    def step(self, net, archs, images, labels, gradients, moment):
        queried, keyed = images[::2], images[1::2]
        if self._followed != moment.step:  # once a step, in how many parts its batch may be run
            self._follow(gradients.net, moment)
        with paddle.no_grad():
            keys = F.normalize(self._encoder(keyed, linear=what_it_reads))
        right = paddle.zeros([len(keys)], "int64")
        for role, arch in archs:
            queries = F.normalize(net(queried, arch, None, what_it_reads))
            width = queries.shape[1]  # a narrower subnet has the first channels, as if the others were zeros
            logits = contrast_logits(queries, keys[:, :width], self._keys if self._keys is None else
                                     self._keys[:, :width], self.temperature)
            gradients.add(role, F.cross_entropy(logits, right))
        new = runtime.gathered(keys)
        self._keys = (new if self._keys is None else paddle.concat([self._keys, new]))[-self.queue:]

    @paddle.no_grad()
    def _follow(self, net: Supernet, moment: Moment) -> None:
        """Move the key encoder, weights and running statistics, towards the net (MoCo, eq. 2)."""
        if self._encoder is None:
            self._hold(extract(net, self._largest))
        kept, shared = growing_decay(self.momentum, moment.step), net.state_dict()
        statistics = []
        for name, own in self._encoder.state_dict().items():
            own.set_value(paddle.lerp(shared[name][tuple(slice(size) for size in own.shape)], own, kept))
            if name.endswith(("_mean", "_variance")):
                statistics.append(own)
        runtime.broadcast_from_rank0(statistics)  # each rank's net has its own, and a checkpoint those of rank 0
        self._followed = moment.step

    def _hold(self, encoder):
        encoder.eval()
        for parameter in encoder.parameters():
            parameter.stop_gradient = True
        self._encoder = encoder

    def end(self):
        self._encoder = self._keys = self._followed = None

    def tensors(self):
        if self._encoder is None:
            return {}
        return {QUEUE: self._keys.numpy(), **{ENCODER + name: value.numpy()
                                              for name, value in self._encoder.state_dict().items()}}

    def load_tensors(self, tensors, path):
        self.end()
        if not tensors:  # the stage has not begun
            return
        weights = {name.removeprefix(ENCODER): value for name, value in tensors.items() if name.startswith(ENCODER)}
        queue, bias = tensors.get(QUEUE), weights.get(f"blocks.{HEAD}.fc.bias")
        if not isinstance(queue, np.ndarray) or queue.ndim != 2 or not 0 < len(queue) <= self.queue or \
                queue.shape[1] != self._largest.out_width or queue.dtype != "float32" or not np.isfinite(queue).all():
            raise checkpoint.CheckpointError(f"{path} does not hold the queue of this objective")
        classes = len(bias) if isinstance(bias, np.ndarray) and bias.ndim == 1 else 1
        checkpoint.require_shapes(shapes(self._largest, classes), weights, path)
        encoder = ResNet48(self._largest, classes)
        checkpoint.load_weights(encoder, weights, path)
        self._hold(encoder)
        self._keys = paddle.to_tensor(queue)
