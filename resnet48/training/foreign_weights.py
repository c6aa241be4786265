"""Weights that other programs have written: their parameter names as ours, and which net they are of."""

import numpy as np

from ..space.arch import FULL
from ..space.nodes import HEAD, SLOPE, Head

PREFIXES = ("_layers.", "model._layers.", "model.")  # of wrappers
TEACHER = "ofa_teacher_model."  # begins the names of a teacher that is saved beside the net


def canonical(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Foreign parameter names as our own: without the prefixes of wrappers, `.fn.` and a teacher beside the net."""
    renamed = {}
    for name, value in weights.items():
        for prefix in PREFIXES * 2:  # they can be nested
            name = name.removeprefix(prefix)
        if not name.startswith(TEACHER):
            renamed[name.replace(".fn.", ".")] = value
    return renamed


def net_of(weights: dict[str, np.ndarray]) -> dict | None:
    """The supernet that weights belong to, told by their widths, as `checkpoint.describe` says it; None for others.

    weights: under our own names. PReLUs show by their slopes; Mish has no weights and is taken for relu.
    """
    try:
        base = tuple(int(weights[f"blocks.{block.index}.{block.layers()[1].name}.weight"].shape[0])
                     for block in FULL.largest().blocks() if block.position == 1)
        classes = int(weights[f"blocks.{HEAD}.{Head(1, 1).layers()[0].name}.weight"].shape[1])
    except (KeyError, AttributeError, IndexError):
        return None
    divisor = FULL.divisor if base == FULL.base_channels else 1
    space = FULL.narrowed(base, divisor, "prelu" if f"blocks.1.{SLOPE}" in weights else "relu")
    return {"kind": "supernet", "space": space.to_dict(), "num_classes": classes}
