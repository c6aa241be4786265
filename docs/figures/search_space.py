"""What the digits of an arch code mean: one real code under a drawing of its net, and the widths they stand for."""

from drawing import box, document, line, text
from resnet48.space.arch import FIRST_BLOCK_DIGIT, FULL, PUBLISHED, STEM_DIGIT
from resnet48.space.checks import CAPACITY

CODE = "322221222220000122200000024540000000000005525000000"  # arch371 of the published list
LEFT, PITCH, GAP = 12, 10.3, 10  # where the digits begin, from one to the next, between their groups
GROUND, SCALE = 186, 0.25  # where the bars stand, units per channel
DEPTHS, STEM, STAGES = "depths", "stem", (1, 2, 3, 4)
TABLE, COLUMN, WIDE, ROW = 290, 190, 62, 24  # its first line, its first column, from one to the next


def draw(code: str = CODE) -> str:
    """The figure as the text of an SVG file. code: of 51 digits, in the full space."""
    arch = FULL.parse(code)
    this, full = (f"{each.macs() / 1e9:.2f} GMACs, {each.params() / 1e6:.2f} M parameters"
                  for each in (arch, FULL.largest()))
    description = (
        f"The code {code}: the depths of four stages, {', '.join(map(str, arch.depths))}; the stem; then two digits for "
        f"each of {' + '.join(map(str, CAPACITY))} blocks, one for each 3x3 convolution, 00 for a block that is left "
        f"out. Digits 1 to {len(FULL.ratios)} mean {', '.join(f'{ratio:g}' for ratio in FULL.ratios)} times "
        f"{', '.join(map(str, FULL.base_channels))} channels in stages 1 to 4. This net: {this}; the full net: {full}.")
    return document("An arch code, digit by digit", description, 528, [
        *_net(arch), *_key(), *_widths(arch), *(text(LEFT, y, words, "", "start") for y, words in (
            (474, "All second convs of a stage have one width, in stage 1 the stem's."),
            (496, f"This net: {this}."), (518, f"The full net: {full}.")))])


def _groups():
    """(what, first digit, digits, x of the first) of the parts of a code."""
    first = 0
    for number, (what, count) in enumerate([(DEPTHS, STEM_DIGIT), (STEM, FIRST_BLOCK_DIGIT - STEM_DIGIT),
                                            *((stage, 2 * CAPACITY[stage - 1]) for stage in STAGES)]):
        yield what, first, count, LEFT + PITCH * first + GAP * number
        first += count


def _net(arch):
    """Bars as high as the convolutions are wide, each above its digit."""
    for what, first, count, x in _groups():
        middle, used = x + PITCH * count / 2, count
        if what == DEPTHS:
            yield text(middle, GROUND - 8, "depths", "truth")
        elif what == STEM:
            yield text(middle, GROUND - 32, "stem", "bold")
            yield from _bars(x, FULL.base_channels[0], [arch.stem], ["strong"])
        else:
            widths, depth = [width for pair in arch.stages[what - 1] for width in pair], arch.depths[what - 1]
            used = len(widths)
            yield text(middle, 20, f"stage {what}", "bold")
            yield text(middle, 40, f"{FULL.base_channels[what - 1]} channels", "soft")
            yield from _bars(x, FULL.base_channels[what - 1], widths + [0] * (count - used), ["pale", "strong"])
            yield line((x + 1, GROUND + 29), (x + PITCH * used - 1, GROUND + 29), kind="truth_line")
            yield text(middle, GROUND + 48, f"{depth} of {count // 2} blocks", "truth")
        for place in range(count):
            kind = "truth" if what == DEPTHS else "" if place < used else "soft"
            yield text(x + PITCH * (place + 0.5), GROUND + 20, arch.code[first + place], f"code {kind}")


def _bars(x, base, widths, kinds):
    for place, width in enumerate(widths):
        for channels, kind in ((base, "ghost" if width else "absent"), (width, kinds[place % len(kinds)])):
            if channels:
                yield box(x + PITCH * place + 1, GROUND - SCALE * channels, PITCH - 2, SCALE * channels, kind, 1)


def _key():
    for x, kind, words in (
            (112, "pale", "first conv"), (222, "strong", "second conv"), (350, "absent", "left out, 00")):
        yield box(x, GROUND - 113, 10, 14, kind, 1) + text(x + 16, GROUND - 101, words, "soft", "start")


def _widths(arch):
    """The table of digits; marked is what the arch has, grey what no published arch has."""
    for words, row in (("digit", 0), ("width ratio", 1)):
        yield text(LEFT, TABLE + ROW * row, words, "soft", "start")
    for place, ratio in enumerate(FULL.ratios):
        x = COLUMN + WIDE * place
        yield text(x, TABLE, place + 1, "code bold") + text(x, TABLE + ROW, f"{ratio:.2f}")
    yield line((LEFT, TABLE + ROW + 9), (588, TABLE + ROW + 9), kind="rule")
    for stage in STAGES:
        y = TABLE + ROW * (stage + 1) + 5
        yield text(LEFT, y, "stem, stage 1" if stage == 1 else f"stage {stage}", "", "start")
        first = FIRST_BLOCK_DIGIT + 2 * sum(CAPACITY[:stage - 1])
        has = arch.code[first:first + 2 * arch.depths[stage - 1]] + (arch.code[STEM_DIGIT] if stage == 1 else "")
        for place in range(len(FULL.ratios)):
            x, digit = COLUMN + WIDE * place, str(place + 1)
            if digit in has:
                yield box(x - 20, y - 16, 40, 21, "mark", 4)
            yield text(x, y, FULL.width(stage, digit), "" if digit in PUBLISHED.codes[stage] else "soft")
    yield box(LEFT, 430, 18, 14, "mark", 4) + text(LEFT + 26, 442, "in this code", "", "start")
    yield text(COLUMN - 20, 442, "grey: in none of the published archs", "soft", "start")
