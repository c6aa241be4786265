"""Standard output and standard error that whoever reads them may leave: what is printed then is lost, not the run."""

import errno
import io
import os
import sys

#: How a write fails when the reader of a pipe has gone, the terminal has been closed, or the descriptor has.
GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


def outlive_readers() -> None:
    """Make this process print on, into nothing, where standard output or standard error is closed or loses its reader.

    Characters that the stream's encoding lacks, or that are no characters (names of files in another encoding), are
    written as escapes. A full disk is an error still.
    """
    handle = os.open(os.devnull, os.O_RDWR)
    while handle <= 2:  # closed ones, whose numbers the next files would get, with all that others print to them
        handle = os.open(os.devnull, os.O_RDWR)
    os.close(handle)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        encoding = stream.encoding if stream else "utf-8"
        lines = stream is None or stream.line_buffering or stream.write_through
        if stream:
            stream.flush()
        outliving = io.TextIOWrapper(io.BufferedWriter(_Outliving(number, "w", closefd=False)), encoding=encoding,
                                     errors="backslashreplace", line_buffering=lines)
        setattr(sys, name, outliving)


class _Outliving(io.FileIO):
    """A descriptor that becomes the null device when nobody reads it any more."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for what libraries print without Python, too
            os.close(null)
            return len(data)
