"""Gradients that make up for how often channels are used: the later ones of a layer are in few subnets.

The cheap form of subnet-specific channel fairness: nothing but a factor on the gradients. (The idea is named in reports
on the CVPR 2022 challenge; this formula is ours.)
"""

import itertools
from collections import Counter

import numpy as np
import paddle

from ..space.arch import FIRST_BLOCK, ArchConfig, SearchSpace
from ..space.nodes import Block, Head, Stem
from .samplers import ArchList

CAP = 2.0  # the most that a gradient is multiplied by

#: Parameter name -> used part of its first axes (those that subnets cut) -> how often.
Uses = dict[str, Counter]


class ChannelFairness:
    """Factors on gradients: min(CAP, mean use / use) for each weight, over the used weights of its tensor.

    The use of a weight is how many subnets of a step have it, on average; weights between two neighbouring widths are
    a group with the same use. candidates: a `SearchSpace` or an `ArchList`; a step trains its largest and its smallest
    arch so many times, and so many that are uniform over it.
    """

    def __init__(self, candidates: SearchSpace | ArchList, largest: int, smallest: int, random: int):
        self._factors, self._tensors = factors(uses(candidates, largest, smallest, random)), {}

    @paddle.no_grad()
    def scale(self, net: paddle.nn.Layer) -> None:
        """Multiply the gradients of a supernet, after those of all subnets and ranks have been put together."""
        for name, parameter in net.named_parameters():
            if name in self._factors and parameter.grad is not None:
                if name not in self._tensors:
                    self._tensors[name] = paddle.to_tensor(_to_multiply(self._factors[name], parameter.shape))
                paddle.assign(parameter.grad * self._tensors[name], output=parameter.grad)


def factors(used: Uses) -> dict[str, np.ndarray]:
    """Parameter name -> float32 factor for each part of the first axes; 1 for what nothing uses."""
    found = {}
    for name, counts in used.items():
        use = np.zeros(np.max([*counts], axis=0))
        for part, count in counts.items():
            use[tuple(map(slice, part))] += count
        mean = use[use > 0].mean()
        found[name] = np.minimum(CAP, mean / np.where(use > 0, use, mean)).astype("float32")
    return found


def uses(candidates: SearchSpace | ArchList, largest: int, smallest: int, random: int) -> Uses:
    """How many subnets of a step use each part of each weight, exactly, on average over the random ones."""
    total = {}
    for weight, each in ((largest, _of_archs([candidates.largest()])), (smallest, _of_archs([candidates.smallest()])),
                         (random, _of_archs(candidates.archs) if isinstance(candidates, ArchList)
                          else _of_space(candidates))):
        for name, counts in each.items() if weight else ():
            for part, count in counts.items():
                total.setdefault(name, Counter())[part] += weight * count
    return total


def _of_archs(archs: list[ArchConfig]) -> Uses:
    """The mean over archs."""
    found = {}
    for arch in archs:
        for node in (*arch.nodes(), arch.head(1)):
            _add(found, node, 1 / len(archs))
    return found


def _of_space(space: SearchSpace) -> Uses:
    """The mean over a space, in which depths and digits are independent but for the ties: see `SearchSpace.sample`."""
    found, before = {}, None
    for stage, (first, (fewest, most)) in enumerate(zip(FIRST_BLOCK, space.depths), 1):
        widths, outers = ([space.width(stage, digit) for digit in digits]
                          for digits in (space.codes[stage], space.outer_codes[stage - 1]))
        if stage == 1:
            for width in outers:
                _add(found, Stem(width), 1 / len(outers))
        for position in range(1, most + 1):
            there = (most - max(position, fewest) + 1) / (most - fewest + 1)  # the part of the depths that have it
            joins = stage > 1 and position == 1
            sources = before if joins else [None]  # what the block before gives; else the outer width of the stage
            weight = there / (len(sources) * len(widths) * len(outers))
            for source, inner, outer in itertools.product(sources, widths, outers):
                _add(found, Block(first + position - 1, stage, position, source or outer, inner, outer,
                                  2 if joins else 1), weight)
        before = outers
    for width in before:
        _add(found, Head(width, 1), 1 / len(before))
    return found


def _add(found, node, weight):
    for layer in node.layers():
        for name, shape in layer.weights().items():
            if layer.norm or len(shape) > 1:  # the classifier's bias is of the classes, which all subnets have
                axes = 2 if layer.norm and len(shape) > 1 else 1
                found.setdefault(f"blocks.{node.index}.{name}", Counter())[shape[:axes]] += weight


def _to_multiply(factor, shape):
    """A factor over the first axes of a weight of this shape, with 1 for what no subnet reaches."""
    rest = [(0, full - size) for size, full in zip(factor.shape, shape)]
    return np.pad(factor, rest, constant_values=1.0).reshape(*shape[:factor.ndim], *[1] * (len(shape) - factor.ndim))
