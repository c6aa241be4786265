"""Functions in processes of their own that need not import Paddle again.

They are forked from a server that has imported it and never ran anything, so that no thread of a test is in the way.
"""

import functools
import multiprocessing
import multiprocessing.forkserver
import os

from conftest import ROOT

PRELOADED = ["train_supernet", "eval_supernet", "sklearn.datasets", "pytest"]


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = ROOT  # where the server finds them
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def start(function, *arguments):
    """Begin `function(*arguments)`, found by its name in a module of the tests; returns the process."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    return process


def queue():
    """What such processes can put results into."""
    return _context().Queue()


def barrier(count):
    """What so many such processes can wait for one another at."""
    return _context().Barrier(count)
