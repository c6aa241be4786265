"""What every module may raise, and how a script turns it into one clear sentence."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where, what is allowed and what to do.

    A script prints it and exits with code 2; a stack trace is for our own bugs.
    """


class Stopped(Exception):
    """A signal has asked to stop, and everything that was finished is kept. The message is the signal's name.

    A script ends with code 0; whoever runs one thing after the other must not begin the next.
    """


def exit_on_user_error(main: Callable) -> object:
    """Run `main()`; print a `UserError` as one sentence on standard error and exit with code 2.

    An interrupt from the keyboard ends it without a stack trace too, with the code that shells give it, and so does
    memory that does not suffice, on the host or on a GPU.
    """
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
        # Mostly it is the log that standard output goes to: what is still held back for it would fail at the end again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(2)
    except MemoryError:
        print("error: out of memory; a smaller --batch_size, --image_size or --chunk needs less", file=sys.stderr,
              flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
