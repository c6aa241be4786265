"""The process and its peers: device, ranks, collectives, log lines, signals."""

import contextlib
import math
import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np
import paddle
import paddle.distributed as dist
from tqdm import tqdm

from . import machine, signals
from .errors import Stopped, UserError

NO_LAUNCHER = "the end of its launcher"
SECONDS_BETWEEN_LINES = 10  # in a log, where a bar would be noise
SECONDS_TO_BE_FOUND = 3  # the launcher looks every second, and should name the rank that ended first
SECONDS_TO_STOP_BY_ITSELF = 2  # where a signal has come and Paddle may not hold the interpreter's lock
SECONDS_TO_JOIN = 300  # for all ranks; the launcher starts them together, so more than a slow import is a fault


def start(device: str, join: bool = True, channels_last: bool = False) -> None:
    """Choose the device and, unless told otherwise, join the processes that `paddle.distributed.launch` started.

    Logs what the machine is and how it is set up. channels_last: have Paddle tune the layout of features, which on a
    GPU with tensor cores means NHWC.
    """
    if device == "auto":
        device = "gpu" if paddle.device.cuda.device_count() else "cpu"
    elif device == "gpu" and not paddle.device.cuda.device_count():
        raise UserError("--device gpu, but Paddle sees no GPU here")
    paddle.set_device(device if device == "cpu" else f"gpu:{paddle.distributed.ParallelEnv().device_id}")
    if device == "gpu":
        _require_convolution()
    if channels_last:
        paddle.incubate.autotune.set_config({"layout": {"enable": True}})
    if join and world_size() > 1:
        # the launcher's choice; ranks started by hand would get a backend that leaves processes behind
        if device == "cpu":
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        with _joining_within(int(os.environ.get("FLAGS_stop_check_timeout", SECONDS_TO_JOIN))):
            dist.init_parallel_env()
    log_main(machine.report())


def _require_convolution():
    """Raise `UserError` now, and not when the images have been read, where a GPU's libraries are missing.

    Paddle loads cuDNN and cuBLAS at the first operation that needs them.
    """
    try:
        features = paddle.nn.functional.conv2d(paddle.ones([1, 3, 8, 8]), paddle.ones([4, 3, 3, 3]))
        float(paddle.matmul(features.flatten(1), paddle.ones([144, 1])))
    except Exception as error:  # Paddle raises kinds of its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = next((line for line in lines if "librar" in line or "Cannot" in line), lines[-1] if lines else error)
        raise UserError(f"Paddle {paddle.__version__} cannot run a convolution on this GPU ({why}): builds for CUDA "
                        "11.8 need libcudnn.so.8 and libcublas.so.11 where LD_LIBRARY_PATH finds them, such as the "
                        "lib folders of the wheels nvidia-cudnn-cu11 and nvidia-cublas-cu11; or train with "
                        "--device cpu") from None


@contextlib.contextmanager
def _joining_within(seconds):
    """A block in which this process waits for the other ranks, and is ended with one sentence if it waits too long, or
    when a signal asks it to stop.

    Paddle waits for ever, or an hour, and holds the interpreter's lock meanwhile: only another process can watch.
    """
    waiting, (reader, writer) = os.getpid(), os.pipe()
    watcher = os.fork()
    if watcher == 0:
        signals.ignore()
        os.close(writer)
        sentence = _watch(reader, seconds)
        if sentence and os.getppid() == waiting:
            os.write(2, sentence.encode())
            os.kill(waiting, signal.SIGKILL)  # nothing else ends it without a stack trace
        os._exit(0)
    os.close(reader)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)  # is told the number of a signal without the interpreter's lock
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        with contextlib.suppress(BrokenPipeError):
            os.write(writer, b"\0")  # closing is not enough: what Paddle forks has it open too
        os.close(writer)
        os.waitpid(watcher, 0)


def _watch(reader, seconds):
    """Wait for the zero that says that all have met; why the process that waits for the others has to be ended."""
    told = _told(reader, seconds)
    if not told:
        return (f"error: rank {rank()} of {world_size()} has waited {seconds} s for the others: start as many "
                "processes as --nproc_per_node and --nnodes say, and see the logs of the others\n")
    number = next((each for each in told if each in signals.STOP_SIGNALS), None)
    while number and told and 0 not in told:  # until it has ended by itself, or has not
        told = _told(reader, SECONDS_TO_STOP_BY_ITSELF)
    if number and not told:
        return (f"stopped by {signal.Signals(number).name} while rank {rank()} of {world_size()} waited for the "
                "others; the same command begins again\n")


def _told(reader, seconds):
    return os.read(reader, 4096) if select.select([reader], [], [], seconds)[0] else b""


def usable_precision(name: str) -> str:
    """The precision that this device computes in where `name` (fp32, bf16, fp16) is asked for; notes a difference."""
    if name != "fp32" and not paddle.device.get_device().startswith("gpu"):
        log_main(f"note: --precision {name} has no effect on a CPU, where Paddle computes in float32")
        return "fp32"
    return name


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


def seed_everything(seed: int) -> None:
    """Seed what draws initial weights. Everything later has generators of its own, made from (seed, step)."""
    paddle.seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def versions() -> dict[str, str]:
    """Versions of the packages that compute, for a manifest."""
    return {"paddle": paddle.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}


def require_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raise `UserError` unless the batches that Paddle's workers have ready at once fit into /dev/shm.

    Measured with 1 to 4 workers: two from each and one in use. A worker that finds no room dies of a bus error.
    """
    if not os.path.isdir("/dev/shm"):  # a system that keeps shared memory elsewhere
        return
    needed, room = machine.local_ranks(os.environ) * (2 * workers + 1) * batch_bytes, os.statvfs("/dev/shm")
    free = room.f_bavail * room.f_frsize
    if free < needed:
        raise UserError(f"/dev/shm has {free / 1e6:.1f} MB left, but batches from --num_workers {workers} need "
                        f"{needed / 1e6:.1f} MB there: --num_workers 0 needs none, and `docker run --shm-size` or "
                        "deleting what killed programs have left in it gives more")


def log_main(message: str) -> None:
    """Log a line, from rank 0 only."""
    if rank() == 0:
        log_rank(message)


def log_rank(message: str) -> None:
    """Log a line from this rank; the launcher keeps one log per rank."""
    tqdm.write(encodable(message))
    sys.stdout.flush()


def encodable(text: str) -> str:
    """The text as standard output can write it: file names need not be UTF-8, and a terminal may know ASCII only."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def progress(iterable: Iterable, total: int, what: str) -> Iterator:
    """Pass an iterable through with its progress on rank 0: a bar on a terminal, a line now and then in a log."""
    iterable = while_launched(iterable)
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


def counting(first: int, last: int, what: str) -> Iterable[int]:
    """range(first, last), with a bar on a terminal."""
    if rank() != 0 or not sys.stderr.isatty():
        return range(first, last)
    return tqdm(range(first, last), desc=what, initial=first, total=last, leave=False)


@contextlib.contextmanager
def _lost_ranks_named():
    """A block with a collective, where another rank that has ended shows as an error of the connection."""
    try:
        yield
    except RuntimeError as error:
        time.sleep(SECONDS_TO_BE_FOUND)
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"rank {rank()} of {world_size()} has lost the others; the log of the one that ended first, "
                        "log/"
                        f"workerlog.N, says why, and the same command resumes from the last checkpoint ({reason})"
                        ) from error


def broadcast_from_rank0(parameters: Iterable[paddle.Tensor]) -> None:
    """Overwrite the values on every rank with those of rank 0."""
    if world_size() > 1:
        with _lost_ranks_named():
            for parameter in parameters:
                dist.broadcast(parameter, src=0)


def gathered(rows: paddle.Tensor) -> paddle.Tensor:
    """The rows of all ranks, [ranks * N, ...] of [N, ...], in the order of the ranks: the same on every rank."""
    if world_size() == 1:
        return rows
    parts = []
    with _lost_ranks_named():
        dist.all_gather(parts, rows)
    return paddle.concat(parts)


def average_gradients(parameters: Iterable[paddle.Tensor], vote: bool) -> bool | paddle.Tensor:
    """Replace each gradient by its mean over the ranks, in one all-reduce whatever the number of subnets.

    A gradient that is absent stays so: every rank trains the same archs, so the same ones are absent everywhere.
    vote: a yes or no of this rank, carried along. Returns whether any rank said yes, maybe as a tensor that is still
    being computed.
    """
    if world_size() == 1:
        return vote
    present = [parameter.grad for parameter in parameters if parameter.grad is not None]
    votes, *parts = _summed_together([paddle.to_tensor([float(vote)]), *present])
    for gradient, part in zip(present, parts):
        paddle.assign(part / world_size(), output=gradient)
    return votes


def sum_gradients(parameters: Iterable[paddle.Tensor], vote: bool) -> bool:
    """Replace each gradient by its sum over the ranks, each of which may have those of other parameters.

    A gradient that is absent on every rank stays so. vote: a yes or no of this rank. Returns whether any said yes.
    """
    if world_size() == 1:
        return vote
    parameters = list(parameters)
    own = [parameter.grad for parameter in parameters]
    present = paddle.to_tensor([float(vote), *(float(gradient is not None) for gradient in own)])
    counts, *sums = _summed_together([present, *(paddle.zeros_like(parameter) if gradient is None else gradient
                                                 for parameter, gradient in zip(parameters, own))])
    votes, *counts = counts.tolist()
    for parameter, count, gradient in zip(parameters, counts, sums):
        if count:
            parameter.grad = gradient
    return votes > 0


def _summed_together(tensors):
    """Several tensors of one type, summed over all ranks in one all-reduce."""
    fused = summed(paddle.concat([tensor.flatten() for tensor in tensors]))
    return [part.reshape(tensor.shape) for part, tensor in
            zip(fused.split([math.prod(tensor.shape) for tensor in tensors]), tensors)]


def summed(tensor: paddle.Tensor) -> paddle.Tensor:
    """A tensor that has the same shape on every rank, summed over all of them; it may be overwritten."""
    if world_size() > 1:
        with _lost_ranks_named():
            dist.all_reduce(tensor)
    return tensor


def all_reduce_sum(values: Iterable[float]) -> list[float]:
    """Each number of a list, summed over all ranks."""
    if world_size() == 1:
        return list(values)
    return summed(paddle.to_tensor(list(values), "float64")).numpy().tolist()


def while_launched(iterable: Iterable) -> Iterator:
    """Pass an iterable through until the launcher of this process is gone, which then raises `signals.Interrupt`."""
    for item in iterable:
        yield item
        if signals.launcher_is_gone():
            raise signals.Interrupt(NO_LAUNCHER)


@contextlib.contextmanager
def stoppable(farewell: str | None) -> Iterator[None]:
    """A block whose finished parts are kept: a signal that asks to stop raises `Stopped` there and then.

    farewell: what to say then, None to say nothing. A second signal, some seconds later, gets the default treatment.
    """
    def stop(name):
        raise signals.Interrupt(name)

    try:
        with signals.answered(stop):
            yield
    except signals.Interrupt as interrupt:
        if farewell:
            log_main(f"stopped by {interrupt}: {farewell}")
        raise Stopped(str(interrupt)) from None


class StopRequest:
    """A block in which a signal that asks to stop is remembered, so that the loop can end at a step boundary.

    So is that the launcher of this process is gone. A second signal, some seconds later, gets the default treatment.
    """

    def __init__(self):
        self.name, self._asked = "another rank", False
        self._answered = signals.answered(self._answer)

    @property
    def asked(self) -> bool:
        if not self._asked and signals.launcher_is_gone():
            self._answer(NO_LAUNCHER)
        return self._asked

    def __enter__(self):
        self._answered.__enter__()
        return self

    def __exit__(self, *exception):
        return self._answered.__exit__(*exception)

    def _answer(self, name):
        self.name, self._asked = name, True
