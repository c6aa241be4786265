"""What the benchmarks share: the machine as it comes, children with other settings, the best rate of the machine."""

import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

#: The environment without the settings of resnet48/system/machine.py, but with the same threads.
STOCK = {"MKL_DEBUG_CPU_TYPE": "0", "RESNET48_KEEP_MEMORY": "0", "FLAGS_use_stride_kernel": "1"}


def child(program, arguments, environment, python=sys.executable, processes=1):
    """Run `program` again with these arguments in an environment; the last line it prints, as JSON.

    processes: more than one by Paddle's launcher; then what the first of them prints.
    """
    with tempfile.TemporaryDirectory() as logs:
        launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", logs]
        done = subprocess.run([python, *(launcher if processes > 1 else []), program, *map(str, arguments)],
                              env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def take_the_librarys_convolution():
    """Paddle's own convolution everywhere from now on, instead of what conv_algorithms.py chooses."""
    import paddle
    from resnet48.nets import conv_algorithms
    conv_algorithms.conv2d = lambda x, weight, stride=1: paddle.nn.functional.conv2d(
        x, weight, stride=stride, padding=weight.shape[-1] // 2)


def clock():
    """Seconds, of the processor where there is one thread and nobody to wait for: what neighbours take does not count.
    """
    alone = os.environ.get("OMP_NUM_THREADS") == "1" and "PADDLE_TRAINER_ID" not in os.environ
    return time.process_time() if alone else time.perf_counter()


def best_rate():
    """FLOP per second of the machine's best matrix product: 2048 x 2048, the best of ten."""
    import paddle
    a, best = paddle.randn([2048, 2048]), 0
    for _ in range(10):
        started = clock()
        paddle.matmul(a, a)
        best = max(best, 2 * 2048 ** 3 / (clock() - started))
    return best


def seconds(run, times):
    """The shortest of some runs, after one to warm up: the others were disturbed."""
    run()
    best = float("inf")
    for _ in range(times):
        started = clock()
        run()
        best = min(best, clock() - started)
    return best


def machine():
    """Processor, cores, versions, in a line."""
    from resnet48.system.machine import CPU_INFO, cpu_count  # sets the machine, so before Paddle
    import paddle
    name = "unknown processor"
    with open(CPU_INFO) as info:
        for line in info:
            if line.startswith("model name"):
                name = line.split(":")[1].strip()
                break
    return f"{name}, {cpu_count()} cores, Paddle {paddle.__version__}, {time.strftime('%Y-%m-%d')}"
