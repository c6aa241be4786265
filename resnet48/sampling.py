"""Which subnets are trained at a step: a pure function of (seed, step), so every rank and every resume agree."""

import numpy as np

from .errors import UserError

ARCH_STREAM = 0xA2C4  # keeps these draws apart from those of other users of (seed, step)


def uniform(space, seed, step, count):
    """`count` random archs as (role, arch) pairs, drawn independently."""
    return [("random", _draw(space, seed, step, i)) for i in range(count)]


def sandwich(space, seed, step, count):
    """The largest, `count - 2` random ones and the smallest (the sandwich rule, arXiv 1903.05134, section 3.1)."""
    if count < 2:
        raise UserError(f"--dyna_batch_size must be 2 or more for the sandwich rule, got {count}")
    return [("largest", space.largest()), ("smallest", space.smallest()), *uniform(space, seed, step, count - 2)]


def _draw(space, seed, step, i):
    return space.sample(np.random.default_rng((ARCH_STREAM, seed, step, i)))
