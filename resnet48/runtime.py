"""The process and its peers: device, ranks, reductions, messages, signals."""

import contextlib
import random
import signal
import sys
import time

import numpy as np
import paddle
import paddle.distributed as dist
from tqdm import tqdm

from . import machine
from .errors import UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECONDS_BETWEEN_LINES = 10  # in a log, where a bar would be noise


def start(device, join=True):
    """Choose the device and, unless told otherwise, join the processes that `paddle.distributed.launch` started.

    Says what the machine is and how it is set.
    """
    if device == "auto":
        device = "gpu" if paddle.device.cuda.device_count() else "cpu"
    elif device == "gpu" and not paddle.device.cuda.device_count():
        raise UserError("--device gpu, but Paddle sees no GPU here")
    paddle.set_device(device if device == "cpu" else f"gpu:{paddle.distributed.ParallelEnv().device_id}")
    if join and ranks() > 1:
        dist.init_parallel_env()
    say(machine.report())


def rank():
    return dist.get_rank()


def ranks():
    return dist.get_world_size()


def seed_everything(seed):
    """Seed what draws initial weights. Everything later has generators of its own, made from (seed, step)."""
    paddle.seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def versions():
    """Of what computes, for a manifest."""
    return {"paddle": paddle.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}


def say(message):
    """A line from rank 0 for the person who watches."""
    if rank() == 0:
        tqdm.write(message)
        sys.stdout.flush()


def progress(iterable, total, what):
    """Pass an iterable through: a bar on a terminal, a plain line now and then in a log, nothing from other ranks."""
    if rank() != 0:
        yield from iterable
        return
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=what, leave=False)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - shown > SECONDS_BETWEEN_LINES:
            shown = now
            left = (now - started) / done * (total - done)
            print(f"{what}: {done} of {total}, {now - started:.0f} s, {left:.0f} s left",
                  flush=True)


def same_everywhere(parameters):
    """Give every rank the values of rank 0."""
    if ranks() > 1:
        for parameter in parameters:
            dist.broadcast(parameter, src=0)


def average_gradients(parameters, vote):
    """Replace each gradient by its mean over the ranks, in one all-reduce whatever the number of subnets.

    A gradient that is absent stays so: every rank trains the same archs, so the same ones are absent everywhere.
    vote: a yes or no of this rank, carried along. Returns whether any rank said yes, maybe as a tensor that is still
    being computed.
    """
    if ranks() == 1:
        return vote
    present = [parameter.grad for parameter in parameters if parameter.grad is not None]
    fused = paddle.concat([paddle.to_tensor([float(vote)]), *(gradient.flatten() for gradient in present)])
    dist.all_reduce(fused)
    votes, *parts = fused.split([1, *(int(gradient.size) for gradient in present)])
    for gradient, part in zip(present, parts):
        paddle.assign(part.reshape(gradient.shape) / ranks(), output=gradient)
    return votes


def total(values):
    """The sum over all ranks of a list of numbers."""
    if ranks() == 1:
        return list(values)
    summed = paddle.to_tensor(list(values), "float64")
    dist.all_reduce(summed)
    return summed.numpy().tolist()


class _Stopped(BaseException):
    """A signal has asked to stop."""


@contextlib.contextmanager
def stoppable(farewell):
    """A block whose finished parts are kept: a signal that asks to stop ends the program there and then, with code 0.

    farewell: what to say then. A second signal gets the default treatment.
    """
    def stop(number, _frame):
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    except _Stopped as stopped:
        say(f"stopped by {stopped}: {farewell}")
        raise SystemExit(0) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """A block in which a signal that asks to stop is remembered, so that the loop can end at a step boundary.

    A second one gets the default treatment: the person means it.
    """

    def __init__(self):
        self.name = "another rank"
        self.asked = False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number, _frame):
        self.name, self.asked = signal.Signals(number).name, True
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
