"""Settings of the machine that Paddle reads while it is imported: set here, before anything imports it.

Each one only fills in what the environment does not say, so `NAME=value python3 ...` always wins.
"""

import contextlib
import ctypes
import importlib.metadata
import os
import warnings
from collections.abc import Mapping

CPU_INFO = "/proc/cpuinfo"
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD = -1, -3  # numbers of <malloc.h>


def local_ranks(environment: Mapping[str, str]) -> int:
    """Processes of this run on this machine, as `paddle.distributed.launch` says in the environment: 1 without it."""
    return max(1, int(environment.get("PADDLE_LOCAL_SIZE", 1)))


def settings(environment: Mapping[str, str], cpus: int, is_amd: bool, paddle: str,
             avx512: bool = False) -> dict[str, str]:
    """The environment variables to add: a pure function of what was found.

    environment: mapping of the variables that are set; cpus: CPUs this process may use; is_amd: the maker of the CPU;
    paddle: the installed version; avx512: whether the CPU has all of AVX512 that Skylake has.
    """
    threads = str(max(1, cpus // local_ranks(environment)))
    wanted = {
        "OMP_NUM_THREADS": threads,  # MKL and OpenMP regions
        "FLAGS_paddle_num_threads": environment.get("OMP_NUM_THREADS", threads),  # Paddle's own pool
        "GLOG_minloglevel": "2",  # Paddle's C++ notices, which would drown our own lines
        # A search of cuDNN times its algorithms once per shape and then pays. But every subnet brings new shapes, which
        # would be searched for ever: so by rule. For a long training of a standalone net, set it to 1.
        "FLAGS_cudnn_exhaustive_search": "0",
        # Memory of a GPU as it is needed, so that other processes find room. With naive_best_fit instead, the share
        # below is taken at once.
        "FLAGS_allocator_strategy": "auto_growth",
        "FLAGS_fraction_of_gpu_memory_to_use": "0.92",
    }
    if is_amd:
        # The MKL inside Paddle's CPU wheels takes a slow path on AMD processors unless told what they are like: 7 is
        # Skylake, with AVX512, 5 Haswell, with AVX2 (matrix products of float32: 226, 122, without it 46 GFLOP/s).
        wanted["MKL_DEBUG_CPU_TYPE"] = "7" if avx512 else "5"
    if paddle.startswith("2."):
        # Else a transposition is only noted, and 2.6 carries it out later ten times as slowly (3.x does not).
        wanted["FLAGS_use_stride_kernel"] = "0"
    return {name: value for name, value in wanted.items() if name not in environment}


_shown = ["machine.prepare has not been called"]
_added = []  # names of environment variables


def report() -> str:
    """Two lines for the start of a program: what was detected, and what `prepare` set or found fixed."""
    return "\n".join(_shown)


def _describe(cpus, is_amd, paddle, fixed, added):
    found = f"machine: {cpus} CPU{'s' * (cpus != 1)}, {'AMD' if is_amd else 'not AMD'}, Paddle {paddle}"
    words = [f"{name}={value}" for name, value in sorted(added.items())]
    fixed_words = [f"{name}={value}" for name, value in sorted(fixed.items())]
    return [f"{found}; set {' '.join(words) or 'nothing'}",
            f"fixed by the environment: {' '.join(fixed_words) or 'nothing'}"]


def _cpu():
    """Whether the CPU is AMD's, and whether it has the AVX512 of Skylake."""
    try:
        with open(CPU_INFO) as info:
            words = set(info.read().split())
    except OSError:
        return False, False
    return "AuthenticAMD" in words, AVX512 <= words


def _paddle():
    """The installed version; finding it out must not import it."""
    for name in ("paddlepaddle", "paddlepaddle-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"


def cpu_count() -> int:
    """CPUs this process may use (an affinity mask or a container may allow fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def threads(environment: Mapping[str, str]) -> int:
    """Threads of this process's sums, as `settings` or the user has set them in the environment: 1 or more."""
    first = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list has one number per nesting level
    return int(first) if first.isdecimal() and int(first) else 1


def _keep_memory():
    """Tell glibc to keep freed memory instead of returning it: else each large temporary is mapped and zeroed again."""
    if os.environ.get("RESNET48_KEEP_MEMORY") == "0":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(MALLOPT_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, (1 << 31) - 1)


def prepare(cpus: int | None = None) -> None:
    """Apply `settings` to this process and, through the environment, to its children.

    cpus: to use, all that there are by default; with a number, what an earlier call has added is replaced, which helps
    as long as Paddle is not imported.
    """
    import zlib  # noqa: F401  loaded before Paddle 2.6.2 brings its own copy, which crashes scikit-learn later

    warnings.filterwarnings("ignore", message="No ccache found")  # about compiling extensions, which nothing here does
    _keep_memory()
    for name in _added if cpus else ():
        os.environ.pop(name, None)
    cpus, (is_amd, avx512), paddle = cpus or cpu_count(), _cpu(), _paddle()
    added = settings(os.environ, cpus, is_amd, paddle, avx512)
    names = [*settings({}, cpus, is_amd, paddle), "RESNET48_KEEP_MEMORY"]
    _shown[:] = _describe(cpus, is_amd, paddle, {name: os.environ[name] for name in names if name in os.environ}, added)
    os.environ.update(added)
    _added[:] = added
