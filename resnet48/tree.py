"""The archs of a list as a tree of blocks: what they share is computed once. No Paddle in here.

A node is a block with its widths, given all blocks before it: two archs share a node if their nets are the same up to
there. Sorted by their blocks, archs with a common beginning stand together, so a depth-first walk over the tree is a
walk along the sorted list that keeps, at each arch, what it has in common with the one before.
"""

from typing import NamedTuple

from .arch import Stem

BYTES = 4  # of a float32


class Step(NamedTuple):
    """From one arch to the next: keep the first `kept` nodes of the path, go on with `added`, and there is arch `leaf`.

    added: first the `arch.Stem` where nothing is kept, then `arch.Block`s. leaf: index in the list.
    """

    kept: int
    added: tuple
    leaf: int


def walk(archs):
    """The steps of a depth-first walk that visits every arch of a list once. archs: tied `ArchConfig` objects."""
    paths = sorted(((Stem(arch.stem), *arch.blocks()), index) for index, arch in enumerate(archs))
    steps, before = [], ()
    for path, index in paths:
        kept = 0
        while kept < min(len(before), len(path)) and before[kept] == path[kept]:
            kept += 1
        steps.append(Step(kept, path[kept:], index))
        before = path
    return steps


def shards(steps, count):
    """The walk in `count` parts of about equal length, each of which begins with a whole path of its own."""
    count = max(1, min(count, len(steps)))
    parts, path = [], ()
    bounds = [len(steps) * i // count for i in range(count + 1)]
    for first, last in zip(bounds, bounds[1:]):
        part = []
        for step in steps[first:last]:
            path = path[:step.kept] + step.added
            part.append(step if part else Step(0, path, step.leaf))
        parts.append(part)
    return parts


def nodes(steps):
    """How many blocks a walk computes, stems included."""
    return sum(len(step.added) for step in steps)


class Cost(NamedTuple):
    """What a walk costs. macs: multiply-adds per image of the whole walk, classifiers included.

    nodes: blocks and stems. path_bytes: float32 activations per image that are alive at the worst point, the image
    and all temporary ones included. statistics_bytes: mean and variance of every batch norm of every node.
    """

    macs: int
    nodes: int
    path_bytes: int
    statistics_bytes: int


def cost(steps, image_size, num_classes):
    """The `Cost` of a walk over images of image_size pixels."""
    macs = statistics = 0
    image = 3 * image_size ** 2 * BYTES
    most = 2 * image + image // BYTES  # while it is normalised
    path = []  # (output size in pixels, bytes of the activations) of each node
    for step in steps:
        del path[step.kept:]
        for node in step.added:
            found, size = node.convolutions(path[-1][0] if path else image_size)
            macs += sum(conv.macs for conv in found)
            width = node.out_width
            statistics += sum(2 * conv.out_width * BYTES for conv in found)
            # Beside the path, in which the output stands for the features that wait for the shortcut.
            temporary = max(_temporary(conv) for conv in found) * BYTES
            path.append((size, width * size ** 2 * BYTES))
            most = max(most, image + sum(part for _, part in path) + temporary)
        macs += width * num_classes
    return Cost(macs, nodes(steps), most, statistics)


def _temporary(conv):
    """Values per image that are alive in a convolution and its normalisation, without its input, at the worst point."""
    normalised = 3 * conv.out_width * conv.size ** 2  # what the convolution gives and two steps of its normalisation
    if conv.kernel != 3:
        return normalised
    # `engine` has for every input, with those that fill up the tiles, a copy, four in tiles and four transformed; then
    # the transformed ones, four products for every output, the output itself and that in another order, twice.
    # (Where it unfolds, the nine copies of an input are the most.)
    tiled = (conv.size + conv.size % 2) ** 2 if conv.size > 1 else 1
    return max(normalised, 9 * conv.in_width * tiled, (4 * conv.in_width + 7 * conv.out_width) * tiled)


def alone(archs, image_size, num_classes):
    """Multiply-adds per image if every arch is run on its own."""
    return sum(arch.macs(image_size, num_classes) for arch in archs)
