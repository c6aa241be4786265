"""Errors that a user can mend, and how the scripts report them."""

import contextlib
import errno
import os
import reprlib
import sys
from collections.abc import Callable

from . import signals

LONGEST = 100  # characters of what was given that a message repeats
STOPPED = os.EX_TEMPFAIL  # 75: try again
NO_ACCESS = errno.EACCES, errno.EPERM, errno.EROFS  # the system refuses, whatever was to be done


def quoted(value: object) -> str:
    """What was given as a message may repeat it: in quotes, on one line, at most a hundred characters of it."""
    if isinstance(value, str):
        cut = value[:LONGEST]
        return repr(cut) + ("..." if len(cut) < len(value) else "")
    try:
        text = reprlib.repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        return f"a {type(value).__name__} that is too long to be shown"
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def shown(path: str) -> str:
    """A path as a message may repeat it: without quotes, on one line, the last hundred characters of it."""
    text = printable(os.fspath(path))
    return text if len(text) <= LONGEST else "..." + text[-LONGEST:]


def printable(text: str) -> str:
    """The same text on one line and in any encoding of Unicode: what a terminal would obey or refuse is escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def duration(seconds: float) -> str:
    """A time as a message tells it: `8.4 days`, `20.0 seconds`."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


class UserError(ValueError):
    """The user's input is wrong. The message says what, where, what is allowed and what to do.

    The scripts print it and exit with code 2; only a bug shows a stack trace. Whatever the message repeats, it is one
    line without unpaired surrogates; `quoted` and `shown` also keep it short.
    """

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class Stopped(Exception):
    """A signal has asked to stop, and everything that was finished is kept. The message is the signal's name.

    A script ends with the exit code `STOPPED`; a program that runs several in turn must not start the next.
    """


def exit_on_user_error(main: Callable) -> object:
    """Run `main()`; print a `UserError` as one sentence on standard error and exit with code 2.

    A signal that asks to stop ends it without a stack trace, with the exit code `STOPPED`, and so does running out of
    memory, on the host or on a GPU, with code 2.
    """
    try:
        with signals.answered(_interrupt):  # set after Paddle was imported, which has put its own in place of others
            try:
                signals.let_through()
                return main()
            except (Stopped, signals.Interrupt):
                signals.hold()
                raise
    except Stopped:
        _exit_stopped()
    except (signals.Interrupt, KeyboardInterrupt) as interrupt:  # outside of what can keep a part of its work
        print(f"stopped by {interrupt if str(interrupt) else 'SIGINT'}; the same command begins again", file=sys.stderr,
              flush=True)
        _exit_stopped()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:
        if error.errno in NO_ACCESS and error.filename is not None:
            print(f"error: cannot read or write {shown(error.filename)}: {error.strerror}", file=sys.stderr, flush=True)
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with contextlib.suppress(OSError):
            print(f"error: cannot write{f' {error.filename}' if error.filename else ''}: {error.strerror}",
                  file=sys.stderr, flush=True)
        # Usually it is the log behind standard output: flushing the rest of its buffer at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(2)
    except MemoryError:
        print("error: out of memory; a smaller --batch_size, --image_size, --chunk or --calib_images needs less",
              file=sys.stderr, flush=True)
        sys.exit(2)


def _interrupt(name):
    raise signals.Interrupt(name)


def _exit_stopped():
    signals.ignore()  # a repeat would change the exit code
    signals.let_through()
    sys.exit(STOPPED)
