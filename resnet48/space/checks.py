"""What a description of a space or of a net may hold, wherever it comes from: a flag, a checkpoint, a manifest."""

import numpy as np

from ..system.errors import UserError, quoted

CAPACITY = (5, 5, 8, 5)  # blocks of stages 1..4 that a code has digits for
MAX_WIDTH = 2 ** 16  # in channels; far above what can be trained, and small enough to compute with
MAX_CLASSES = 10 ** 6
MAX_IMAGE_SIZE = 2 ** 16  # in pixels
ACTIVATIONS = "relu", "prelu", "mish"  # of what a block gives


def check_space(name: str, base_channels: tuple, divisor: int, ratios: tuple, depths: tuple, codes: tuple,
                activation: str) -> None:
    """Raise `UserError` unless these are the parts of a space, see `arch.SearchSpace`."""
    if not isinstance(name, str) or len(name) > 100:
        raise UserError(f"the name of a space is a text of at most 100 characters, got {quoted(name)}")
    if not is_tuple(base_channels, 4) or not all(is_whole(width, 1, MAX_WIDTH) for width in base_channels):
        raise UserError(f"base_channels takes four widths of 1 or more, such as 64,128,256,512, up to {MAX_WIDTH}; "
                        f"got {quoted(base_channels)}")
    if not is_whole(divisor, 1, MAX_WIDTH):
        raise UserError(f"divisor must be 1 or more, got {quoted(divisor)}; it is a whole number up to "
                        f"{MAX_WIDTH}")
    if not is_tuple(ratios) or not 1 <= len(ratios) <= 9 or not all(map(_is_ratio, ratios)):
        raise UserError(f"ratios takes one to nine numbers above 0 and up to 1, such as 1.0,0.95; got {quoted(ratios)}")
    if any(after >= before for before, after in zip(ratios, ratios[1:])):
        raise UserError(f"ratios must fall from one to the next, so that the digit 1 is the widest; got "
                        f"{quoted(ratios)}")
    if not is_tuple(depths, 4) or not all(
            is_tuple(pair, 2) and is_whole(pair[0], 1, most) and is_whole(pair[1], pair[0], most)
            for pair, most in zip(depths, CAPACITY)):
        raise UserError("depths takes the fewest and the most blocks of each of four stages, at least 1 and at most "
                        f"{', '.join(map(str, CAPACITY))}; got {quoted(depths)}")
    known = "123456789"[:len(ratios)]
    if not is_tuple(codes, 5) or not all(isinstance(digits, str) and digits and len(digits) <= len(known)
                                         and set(digits) <= set(known) for digits in codes):
        raise UserError(f"codes takes the digits, of {known}, that stem and stages 1..4 allow; got {quoted(codes)}")
    if any(list(digits) != sorted(set(digits)) for digits in codes):
        raise UserError(f"codes takes each digit once and in rising order; got {quoted(codes)}")
    if not set(codes[1]) <= set(codes[0]):
        raise UserError(f"codes must allow for the stem what it allows for stage 1, whose shortcuts tie them; got "
                        f"{quoted(codes)}")
    check_activation(activation)


def check_activation(value: object) -> str:
    """What a block ends with. Raises `UserError` for what is not known."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise UserError(f"activation takes {', '.join(ACTIVATIONS)}; got {quoted(value)}")
    return value


def check_classes(value: object) -> int:
    """A number of classes. Raises `UserError` for what is none."""
    if not is_whole(value, 1, MAX_CLASSES):
        raise UserError(f"num_classes must be a whole number of 1 to {MAX_CLASSES}, got {quoted(value)}")
    return value


def check_image_size(value: object) -> int:
    """Height and width of an image in pixels. Raises `UserError` for what is none."""
    if not is_whole(value, 1, MAX_IMAGE_SIZE):
        raise UserError(f"image_size must be a whole number of 1 to {MAX_IMAGE_SIZE}, got {quoted(value)}")
    return value


def is_tuple(value: object, length: int | None = None) -> bool:
    """Whether it is a tuple, of this length if one is given."""
    return isinstance(value, tuple) and length in (None, len(value))


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether it is a whole number within the limits; true and false are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value <= most


def _is_ratio(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
