"""The search space and its arch codes: parse, format, sample, count. No Paddle in here.

An arch code has 51 digits: 4 depths, 1 stem, and 46 block digits, two for each of 5 + 5 + 8 + 5 blocks.
The published list writes a leading `1` (image size 224) before them; both forms are read, 51 digits are written.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np

from ..system.errors import UserError, quoted
from .checks import CAPACITY, check_space
from .nodes import Block, Head, Layer, Stem
from .split import Split

FIRST_BLOCK = (1, 6, 11, 19)  # where each stage begins when all 23 blocks are numbered through (0 is the stem)
STEM_DIGIT, FIRST_BLOCK_DIGIT, DIGITS = 4, 5, 51


class ArchError(UserError):
    """An arch code that is malformed or outside its space."""


@dataclass(frozen=True)
class SearchSpace:
    """A search space as data.

    base_channels: width of stages 1..4 at ratio 1 (the stem takes the first).
    ratios: what the digits 1, 2, ... multiply a base width by.
    divisor: widths are rounded to a multiple of it.
    depths: (fewest, most) blocks of each stage.
    codes: the digits that are allowed for the stem and for stages 1..4.
    activation: what the blocks of its nets end with, see `nodes.Block`.
    Raises `UserError` for what is not of this form, see `checks`.
    """

    name: str = "full"
    base_channels: tuple = (64, 128, 256, 512)
    divisor: int = 8
    ratios: tuple = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
    depths: tuple = ((2, 5), (2, 5), (2, 8), (2, 5))
    codes: tuple = ("1234567",) * 5
    activation: str = "relu"

    def __post_init__(self):
        check_space(self.name, self.base_channels, self.divisor, self.ratios, self.depths, self.codes, self.activation)

    def width(self, stage: int, digit: str) -> int:
        """Channels that `digit` (a character) means in `stage` (1..4; the stem counts as stage 1)."""
        value = self.base_channels[stage - 1] * self.ratios[int(digit) - 1]
        width = max(self.divisor, int(value + self.divisor / 2) // self.divisor * self.divisor)
        return width + self.divisor if width < 0.9 * value else width

    @property
    def outer_codes(self) -> tuple[str, ...]:
        """The digits that are drawn for the second convolutions of stages 1..4."""
        return self.codes[1:]

    def largest(self) -> "ArchConfig":
        """The net with the most blocks, all at the first allowed digit."""
        return self._uniform([most for _, most in self.depths], which=0)

    def smallest(self) -> "ArchConfig":
        """The net with the fewest blocks, all at the last allowed digit."""
        return self._uniform([fewest for fewest, _ in self.depths], which=-1)

    def size(self) -> int:
        """How many archs there are."""
        return math.prod(len(outer) * sum(len(inner) ** depth for depth in range(fewest, most + 1))
                         for (fewest, most), outer, inner in zip(self.depths, self.outer_codes, self.codes[1:]))

    def sample(self, rng: np.random.Generator) -> "ArchConfig":
        """A random arch: depths and digits are uniform and independent, except where shortcuts tie widths. rng: a numpy
        Generator.
        """
        def draw(allowed):
            return allowed[int(rng.integers(len(allowed)))]

        depths = [int(rng.integers(fewest, most + 1)) for fewest, most in self.depths]
        outer = [draw(allowed) for allowed in self.outer_codes]
        inner = [[draw(allowed) for _ in range(depth)] for allowed, depth in zip(self.codes[1:], depths)]
        return self.assemble(depths, outer, inner)

    def assemble(self, depths: Sequence[int], outer: Sequence[str], inner: Sequence[Sequence[str]]) -> "ArchConfig":
        """The arch with these digits.

        depths: blocks of stages 1..4; outer: the digit of a stage's second convolutions, in stage 1 the stem's too;
        inner: the digits of its first convolutions, one per block.
        """
        stages = ("".join(first + second for first in firsts).ljust(2 * capacity, "0")
                  for firsts, second, capacity in zip(inner, outer, CAPACITY))
        return ArchConfig.parse("".join(map(str, depths)) + outer[0] + "".join(stages), self)

    def parse(self, code: str) -> "ArchConfig":
        """The arch of a code. Raises `ArchError`."""
        return ArchConfig.parse(code, self)

    def narrowed(self, base_channels: Sequence[int], divisor: int, activation: str | None = None) -> "SearchSpace":
        """The same codes over other base widths: a narrow copy lets the full pipeline run on a CPU.

        activation: None to keep that of the space.
        """
        return replace(self, base_channels=tuple(base_channels), divisor=divisor,
                       activation=activation or self.activation)

    def to_dict(self) -> dict:
        """Plain data for a checkpoint. Earlier versions knew only relu, and what they wrote is the same without it."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("activation", "relu")}

    @classmethod
    def from_dict(cls, data: dict) -> "SearchSpace":
        """The inverse of `to_dict`, also after a trip through JSON, where tuples become lists.

        Raises `UserError` for what is not of this form.
        """
        names = [item.name for item in fields(cls)]
        if not isinstance(data, dict) or not set(data) <= set(names):
            raise UserError(f"a space is an object with {', '.join(names)}; got {quoted(data)}")
        return cls(**{name: _frozen(value) for name, value in data.items()})

    def _uniform(self, depths, which):
        outer, inner = ([allowed[which] for allowed in codes] for codes in (self.outer_codes, self.codes[1:]))
        return self.assemble(depths, outer, [[digit] * depth for digit, depth in zip(inner, depths)])


FULL = SearchSpace("full")
#: The digits that occur in the 45,000 published archs.
PUBLISHED = SearchSpace("published", codes=("123", "123", "123", "12345", "1234567"))
SPACES = {space.name: space for space in (PUBLISHED, FULL)}
#: For reading codes of any space, where only the codes count.
ANY = SearchSpace("any", ratios=tuple(1 - digit / 10 for digit in range(9)), depths=tuple((1, most) for most in CAPACITY),
                  codes=("123456789",) * 5)


def named_space(name: str) -> SearchSpace:
    """A space by its name. Raises `UserError` for one that is not there."""
    if name not in SPACES:
        raise UserError(f"--space takes {', '.join(SPACES)} or the path of a .yaml file; got {quoted(name)}")
    return SPACES[name]


@dataclass(frozen=True)
class ArchConfig:
    """One subnet, made by `parse`; frozen, hashable, equal by value.

    code: the 51 digits. depths: blocks of stages 1..4. stem: its width in channels.
    stages: for each stage a tuple of (conv1 width, conv2 width), one per block. activation: as in a `SearchSpace`.
    """

    code: str
    depths: tuple = field(repr=False)
    stem: int = field(repr=False)
    stages: tuple = field(repr=False)
    activation: str = field(default="relu", repr=False)

    @classmethod
    def parse(cls, code: str, space: SearchSpace = FULL, allow_untied: bool = False) -> "ArchConfig":
        """Read an arch code of 51 digits, or of 52 with a leading `1`.

        space: what the digits mean and which are allowed.
        allow_untied: accept codes that need a projection shortcut inside a stage, which only a standalone net has.
        Raises `ArchError` naming the position (counted from 1), the digit, the stage and what is allowed.
        """
        digits, shift = _strip(code)

        def check(index, place, allowed):
            if digits[index] not in allowed:
                raise ArchError(f"arch code {code}: position {index + shift + 1} ({place}) is {digits[index]}, "
                                f"allowed is {_listed(allowed)}")
            return digits[index]

        for stage, (fewest, most) in enumerate(space.depths, 1):
            check(stage - 1, f"depth of stage {stage}", [str(depth) for depth in range(fewest, most + 1)])
        depths = tuple(int(digit) for digit in digits[:STEM_DIGIT])
        stem = space.width(1, check(STEM_DIGIT, "stem", space.codes[0]))
        stages, index = [], FIRST_BLOCK_DIGIT
        for stage, (depth, capacity) in enumerate(zip(depths, CAPACITY), 1):
            widths = []
            for i in range(2 * capacity):
                place = f"stage {stage}, block {i // 2 + 1}, conv {i % 2 + 1}"
                if i < 2 * depth:
                    widths.append(space.width(stage, check(index, place, space.codes[stage])))
                else:
                    check(index, f"{place}, a block that depth {depth} leaves out", "0")
                index += 1
            stages.append(tuple(zip(widths[::2], widths[1::2])))
        arch = cls(digits, depths, stem, tuple(stages), space.activation)
        if not allow_untied:
            arch.require_tied(code)
        return arch

    def blocks(self) -> tuple[Block, ...]:
        """The blocks that are used, in order."""
        blocks, in_width = [], self.stem
        for stage, (widths, first) in enumerate(zip(self.stages, FIRST_BLOCK), 1):
            for position, (inner_width, out_width) in enumerate(widths, 1):
                stride = 2 if stage > 1 and position == 1 else 1
                blocks.append(Block(first + position - 1, stage, position, in_width, inner_width, out_width, stride,
                                    self.activation))
                in_width = out_width
        return tuple(blocks)

    def require_tied(self, written: str | None = None) -> None:
        """Raise `ArchError` unless every identity shortcut of the supernet joins equal widths.

        written: the code as the user wrote it, if not as `code`; the error counts positions in it.
        """
        written = written or self.code
        for block in self.blocks():
            if block.stride == 1 and block.projects:
                # Digits before this block's second one: 5, the stages before, 2 for each block so far.
                position = FIRST_BLOCK_DIGIT + 2 * block.index
                shift = len(written) - DIGITS
                before = "the stem" if block.index == 1 else "the block before"
                raise ArchError(
                    f"arch code {written}: position {position + shift} (stage {block.stage}, block {block.position}, "
                    f"conv 2) is {self.code[position - 1]} = {block.out_width} channels, but "
                    f"{before} gives {block.in_width} and the shortcut is an identity; allowed in a supernet is one "
                    f"width for all second convolutions of a stage, in stage 1 the stem's too")

    def nodes(self, split: Split | None = None) -> tuple[Stem | Block, ...]:
        """The stem and the blocks, in order. The head, which depends on the classes, is `head`.

        split: of the supernet, whose blocks then say which copy of the weights this arch uses.
        """
        return Stem(self.stem), *(split.assigned(self) if split else self.blocks())

    def head(self, num_classes: int) -> Head:
        """The classifier."""
        return Head(self.out_width, num_classes)

    def convolutions(self, image_size: int = 224) -> list[Layer]:
        """Every convolution in order, shortcuts included. image_size: height and width of the input in pixels."""
        found, size = [], image_size
        for node in self.nodes():
            found += node.layers(size)
            size = node.out_size(size)
        return found

    def macs(self, image_size: int = 224, num_classes: int = 1000) -> int:
        """Multiply-adds of the convolutions, shortcuts and classifier for one image."""
        return sum(layer.macs for layer in (*self.convolutions(image_size), *self.head(num_classes).layers()))

    def params(self, num_classes: int = 1000) -> int:
        """Trainable parameters: convolutions, weight and bias of each batch norm, slopes of PReLUs, classifier."""
        return sum(layer.params for layer in (*self.convolutions(), *self.head(num_classes).layers()))

    @property
    def out_width(self) -> int:
        """Channels that the classifier reads."""
        return self.stages[-1][-1][1]


def _strip(code):
    """The 51 digits of `code`, and how many digits stood before them."""
    if not isinstance(code, str):
        raise ArchError(f"an arch code is a string of digits, got {type(code).__name__}: {quoted(code)}")
    for position, digit in enumerate(code, 1):
        if digit not in "0123456789":  # str.isdigit accepts other scripts
            raise ArchError(f"arch code {quoted(code)}: position {position} is {digit!r}, allowed are the digits 0..9")
    if len(code) not in (DIGITS, DIGITS + 1):
        raise ArchError(f"arch code {quoted(code)} has {len(code)} digits, allowed are {DIGITS}, "
                        f"or {DIGITS + 1} with a leading 1")
    if len(code) == DIGITS + 1 and code[0] != "1":
        raise ArchError(f"arch code {code}: position 1 (image size) is {code[0]}, allowed is 1, which stands for 224")
    return code[-DIGITS:], len(code) - DIGITS


def digits_of(code: str) -> str:
    """The 51 digits of a code of 51 or 52, which may be of any space. Raises `ArchError` for what is no code."""
    return _strip(code)[0]


def _listed(allowed):
    return allowed[0] if len(allowed) == 1 else f"{allowed[0]}..{allowed[-1]}"


def _frozen(value, levels=2):
    """Lists as tuples; deeper ones than a space has stay lists, which it refuses."""
    return tuple(_frozen(item, levels - 1) for item in value) if levels and isinstance(value, (list, tuple)) else value
