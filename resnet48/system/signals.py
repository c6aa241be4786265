"""Signals that ask a program to stop, from its first line to its last.

A script calls `hold` before it imports Paddle, `errors.exit_on_user_error` lets signals through, and what can keep its
work answers them in its own way (`runtime.StopRequest`, `runtime.stoppable`). Nothing in here imports Paddle.
"""

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
#: A repeat within this time is the same request: the launcher sends SIGTERM up to three times, 0.2 s apart, and what is
#: typed on a terminal may come through the launcher as well.
SECONDS_OF_ONE_REQUEST = 5

_asked_at = None  # when the request that is being answered came, by the monotonic clock
_depth = 0  # of blocks that answer
_launcher = None  # the process that started this one, while there is a launcher
_told_to_end = None  # where that process says that this one is not needed any more


class Interrupt(BaseException):
    """Something asks to stop there and then; nothing that handles errors may catch it. The message says what."""


def hold() -> None:
    """Let stop signals wait until `let_through`: while Paddle is imported it would answer them with a stack trace."""
    global _launcher
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if "PADDLE_LOCAL_SIZE" in os.environ:  # the launcher says so to what it starts
        _launcher = os.getppid()


def end_with_parent(told_to_end: mmap.mmap) -> None:
    """Count the process that has started this one as its launcher: `launcher_is_gone` tells when it has ended.

    told_to_end: a byte of shared memory, not 0 once this process shall end all the same. A signal would come at any
    moment, even while files are put in order, and a lock around a flag would outlive a killed process.
    """
    global _launcher, _told_to_end
    _launcher, _told_to_end = os.getppid(), told_to_end


def let_through() -> None:
    """Deliver the signals that have come since `hold`, and all later ones."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ignore() -> None:
    """Ignore stop signals from here on: in a process that others stop, or that ends by itself in a moment."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def launcher_is_gone() -> bool:
    """Whether what has started this program, and would wait for it, has ended since, or has told it to end."""
    return _launcher is not None and (os.getppid() != _launcher or _told_to_end is not None and _told_to_end[0] != 0)


@contextlib.contextmanager
def answered(answer: Callable[[str], None]) -> Iterator[None]:
    """A block in which the first signal that asks to stop calls `answer(its name)`.

    Repeats within `SECONDS_OF_ONE_REQUEST` are the same request, also after the block in one around it; a later signal
    gets the default treatment, which ends the process at once. What is ignored already, as SIGHUP is under nohup, stays
    so. SIGXCPU is repeated by the system every second and never means at once.
    """
    global _asked_at, _depth
    if _depth == 0:
        _asked_at = None
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)}
    heard = [number for number in STOP_SIGNALS if before[number] != signal.SIG_IGN]
    impatient, asked = [number for number in heard if number != signal.SIGXCPU], False

    def on_signal(number, _frame):
        global _asked_at
        nonlocal asked
        if _asked_at is not None:  # asked inside a block that has ended, and the program is on its way out
            if number in impatient and time.monotonic() - _asked_at > SECONDS_OF_ONE_REQUEST:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        _asked_at, asked = time.monotonic(), True
        # The system drops the repeats, whatever this process is busy with: a function that looked at the clock would
        # be called when a long computation has ended, and take a repeat for a later request.
        for each in heard:
            signal.signal(each, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, by_default)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_ONE_REQUEST)
        answer(signal.Signals(number).name)

    def by_default(*_):
        for each in impatient:
            signal.signal(each, signal.SIG_DFL)

    _depth += 1
    try:
        for number in heard:
            signal.signal(number, on_signal)
        yield
    finally:
        _depth -= 1
        if asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in [*heard, *[signal.SIGALRM] * asked]:
            signal.signal(number, signal.SIG_DFL if before[number] is None else before[number])
