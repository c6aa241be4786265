"""Errors that a user can mend, and how the scripts report them."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """The user's input is wrong. The message says what, where, what is allowed and what to do.

    The scripts print it and exit with code 2; only a bug shows a stack trace.
    """


class Stopped(Exception):
    """A signal has asked to stop, and everything that was finished is kept. The message is the signal's name.

    A script ends with code 0; a program that runs several in turn must not start the next.
    """


def exit_on_user_error(main: Callable) -> object:
    """Run `main()`; print a `UserError` as one sentence on standard error and exit with code 2.

    A keyboard interrupt ends it without a stack trace too, with the exit code that shells use, and so does running out
    of memory, on the host or on a GPU.
    """
    for stream in (sys.stdout, sys.stderr):  # file names need not be UTF-8, and a terminal may know ASCII only
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main()
    except Stopped:
        sys.exit(0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with contextlib.suppress(OSError):
            print(f"error: cannot write{f' {error.filename}' if error.filename else ''}: {error.strerror}",
                  file=sys.stderr, flush=True)
        # Usually it is the log behind standard output: flushing the rest of its buffer at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(2)
    except MemoryError:
        print("error: out of memory; a smaller --batch_size, --image_size or --chunk needs less", file=sys.stderr,
              flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
