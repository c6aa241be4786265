"""What the prefix tree saves: three published archs that share blocks, and the numbers of the whole list."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from drawing import box, document, labelled, line, text
from resnet48.evaluation import prefix_tree, tree_forward
from resnet48.space import arch_list
from resnet48.space.arch import FIRST_BLOCK_DIGIT, FULL, PUBLISHED, STEM_DIGIT, ArchConfig
from resnet48.system import files

#: Three archs of the published list: two part behind stage 3, the third leaves both behind stage 2.
ARCHS = {"arch27660": "222423212000000232300000035350000000000002535152500",
         "arch8883": "222323212000000232300000035350000000000002242320000",
         "arch26988": "225223212000000232300000034541454340000003474000000"}
KEPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prefix_tree.json")  # the costs of the published list
IMAGE_SIZE, CLASSES = 224, 1000
LEFT, PITCH, WIDE, TOP, LANE, HIGH = 12, 38, 32, 32, 64, 32  # of the nodes
KINDS = {1: ("sheet", ""), 2: ("pale", ""), 3: ("strong", "inverse")}  # by how many archs share a node
BARS, LONGEST = 116, 380  # where the bars begin, and the length of those of separate nets


class Costs(NamedTuple):
    """Of a list of archs, summed: stems and blocks, and multiply-adds per image; each net `alone`, and in the tree."""

    archs: int
    nodes_alone: int
    nodes: int
    macs_alone: int
    macs: int


def costs(archs: Sequence[ArchConfig]) -> Costs:
    """What a list costs at 224 pixels, with 1000 classes."""
    tree = tree_forward.cost(prefix_tree.traversal(archs), IMAGE_SIZE, CLASSES)
    return Costs(len(archs), sum(len(arch.nodes()) for arch in archs), tree.nodes,
                 prefix_tree.separate_macs(archs, IMAGE_SIZE, CLASSES), tree.macs)


def costs_of_list(path: str) -> Costs:
    """What the published list costs, read from its file. Raises `UserError`."""
    return costs([entry.arch for entry in arch_list.read_list(path, PUBLISHED)])


def kept_costs() -> Costs:
    """What the published list costs, as it was counted before. Raises `UserError`."""
    return Costs(**files.read_json(KEPT, "costs of the published list"))


def draw(published: Costs) -> str:
    """The figure as the text of an SVG file. published: what the published list costs."""
    archs = [FULL.parse(code) for code in ARCHS.values()]
    few = costs(archs)
    nodes = [f"{count:,}" for count in (published.nodes_alone, published.nodes)]
    gmacs = [f"{macs / published.archs / 1e9:.3f}" for macs in (published.macs_alone, published.macs)]
    description = (
        f"Three archs, {', '.join(ARCHS)}, as a tree of common prefixes: stem, stage 1 and stage 2 are the same in all "
        f"three, stage 3 in two of them, so that {few.nodes} nodes are computed instead of {few.nodes_alone}. The "
        f"{published.archs:,} published archs have {nodes[1]} nodes in the tree instead of {nodes[0]}, and cost "
        f"{gmacs[1]} instead of {gmacs[0]} GMACs per subnet and image.")
    return document("What subnets share is computed once", description, 460, [
        *_tree(archs), *_key(242),
        text(LEFT, 266, f"{few.nodes} nodes are computed, not {few.nodes_alone}. Each shows its digits of the code.",
             anchor="start"),
        *_bars(316, f"Nodes, stems and blocks, of the {published.archs:,} published archs",
               (published.nodes_alone, published.nodes), nodes),
        *_bars(400, f"GMACs per subnet and image of {IMAGE_SIZE} pixels",
               (published.macs_alone, published.macs), gmacs)])


def _tree(archs):
    """A row for each step of the traversal, of what it adds behind what it keeps."""
    paths = [list(zip(arch.nodes(), _digits(arch))) for arch in archs]
    for row, step in enumerate(steps := prefix_tree.traversal(archs)):
        path, y = paths[step.leaf], TOP + LANE * row
        if step.kept:  # from the row above in which the last node that is kept stands
            above = max(place for place in range(row) if steps[place].kept < step.kept)
            x, middle = LEFT + PITCH * (step.kept - 1) + WIDE / 2, y + HIGH / 2
            yield line((x, TOP + LANE * above + HIGH), (x, middle), (LEFT + PITCH * step.kept, middle))
        for column in range(step.kept, len(path)):
            x = LEFT + PITCH * column
            users = sum(other[:column + 1] == path[:column + 1] for other in paths)
            kind, look = KINDS[users]
            if column > step.kept:
                yield line((x - PITCH + WIDE, y + HIGH / 2), (x, y + HIGH / 2))
            yield labelled(x, y, WIDE, HIGH, kind, (path[column][1], f"code {look}"))
        stages = [getattr(node, "stage", 0) for node, _ in path]
        for stage in range(stages[step.kept], 5):
            x = LEFT + PITCH * stages.index(stage) + (PITCH * (stages.count(stage) - 1) + WIDE) / 2
            yield text(x, y - 8, f"stage {stage}" if stage else "stem", "soft")
        yield text(LEFT + PITCH * len(path) + 4, y + HIGH / 2 + 5, list(ARCHS)[step.leaf], "", "start")


def _digits(arch):
    """The digits of each node of an arch."""
    blocks = (FIRST_BLOCK_DIGIT + 2 * (block.index - 1) for block in arch.blocks())
    return [arch.code[STEM_DIGIT], *(arch.code[place:place + 2] for place in blocks)]


def _key(y):
    for x, users, words in ((LEFT, 3, "used by three archs"), (206, 2, "by two"), (304, 1, "by one")):
        yield box(x, y - 12, 18, 14, KINDS[users][0], 3) + text(x + 26, y, words, "", "start")


def _bars(y, title, values, shown):
    yield text(LEFT, y, title, "bold", "start")
    for place, (words, kind) in enumerate((("one by one", "panel"), ("in the tree", "strong"))):
        base, length = y + 24 * (place + 1), LONGEST * values[place] / values[0]
        yield text(LEFT, base, words, "", "start") + box(BARS, base - 14, length, 18, kind, 2)
        yield text(BARS + length + 8, base, shown[place], "", "start")
