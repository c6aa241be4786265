"""How training steps and the evaluation compare with the same written in PyTorch, on the same machine in the same run.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/peer.py [--size 64] [--python ANOTHER_ENVIRONMENT/bin/python] [--archs LIST.json]

The same archs, images, threads and work; PyTorch in the memory format it is faster in (torch_supernet.py), training in
float32, evaluating each subnet on its own in float32 and, where the processor has it, under bf16 autocast. Ours
evaluates over the tree (evaluator.py). Where PyTorch has several threads, ours also in as many processes of one thread
each: the subnets of a sandwich step shared out (`--share subnets`), an evaluation in each process. Ratios above 1 say
that ours is faster. With one thread, processor time counts, else time.
"""

import argparse
import os
import subprocess
import sys

import common
import evaluator
import train_step

PEER = os.path.join(common.ROOT, "benchmarks", "torch_supernet.py")
ROUNDS = 3  # each way in turn, because a machine with neighbours changes its speed


def peer(arguments, threads, python):
    """Seconds of PyTorch in the faster of its memory formats, for each number; without those in which it crashes."""
    found = []
    for memory_format in ("contiguous_format", "channels_last"):
        try:
            found.append(common.child(PEER, [memory_format, *arguments], {"OMP_NUM_THREADS": str(threads)}, python))
        except subprocess.CalledProcessError as error:
            if error.returncode > 0:  # no signal
                raise
            print(f"PyTorch crashes in {memory_format}: {' '.join(map(str, arguments))[:60]}", flush=True)
    return {name: min(each[name] for each in found) for name in found[0]}


def in_turn(*ways):
    """What children printed, as the least of each number over the rounds; in all of them the same names."""
    rounds = [[way() for way in ways] for _ in range(ROUNDS)]
    return [{name: min(found[name] for found in way) for name in way[0]} for way in zip(*rounds)]


def compare_steps(name, threads, python):
    work, environment = train_step.WORKS[name], {"OMP_NUM_THREADS": str(threads)}
    theirs, ours = in_turn(lambda: peer([name], threads, python),
                           lambda: common.child(train_step.__file__, ["--child", "peer", name], environment))
    print(f"{_title(name)}, batch {work.batch}, {threads} thread(s), PyTorch {theirs['version']}")
    print("step      PyTorch: images/s  GFLOP/s | ours: images/s  GFLOP/s | ratio")
    for step in ("full", "sandwich"):
        images, rates = train_step.speeds(work, ours[f"{step} flops"], [theirs[step], ours[step]])
        print(f"{step:9} {images[0]:17.1f}  {rates[0]:7.0f} | {images[1]:14.1f}  {rates[1]:7.0f} | "
              f"{images[1] / images[0]:5.2f}", flush=True)


def _title(name):
    return name if name == "narrow" else f"{name} px"


def compare_shared(name, processes, python):
    """A sandwich step on several threads, against ours in as many processes of one thread."""
    work = train_step.WORKS[name]
    theirs, ours = in_turn(
        lambda: peer([name], processes, python),
        lambda: common.child(train_step.__file__, ["--child", "shared", name], {"OMP_NUM_THREADS": "1"},
                             processes=processes))
    images, _ = train_step.speeds(work, ours["sandwich flops"], [theirs["sandwich"], ours["sandwich"]])
    print(f"{_title(name)}, batch {work.batch}, sandwich step, images/s: PyTorch on {processes} threads "
          f"{images[0]:.1f}, ours in {processes} processes that share its subnets {images[1]:.1f}; ratio "
          f"{images[1] / images[0]:.2f}", flush=True)


def compare_evaluation(size, threads, python, path):
    count, images = evaluator.SIZES[size]
    codes = ",".join(arch.code for arch in evaluator.archs_of(path, count))

    def ours(threads_each, processes):
        return lambda: common.child(evaluator.__file__, ["--child", "tree", codes, size, images],
                                    {"OMP_NUM_THREADS": str(threads_each)}, processes=processes)

    theirs, in_threads, in_processes = in_turn(lambda: peer([codes, size, images], threads, python), ours(threads, 1),
                                               ours(1, threads))
    subnet_images = count * images
    peers = {name: subnet_images / theirs[name] for name in ("float32", "bf16") if name in theirs}
    print(f"evaluation at {size} px, {count} archs, {images} images, subnet-images/s: PyTorch on {threads} threads "
          + ", ".join(f"{name} {rate:.0f}" for name, rate in peers.items()))
    for way, rate in (("threads", subnet_images / in_threads["seconds"]),
                      ("processes", threads * subnet_images / in_processes["seconds"])):
        print(f"  ours in {threads} {way} {rate:.0f}: ratio "
              + ", ".join(f"to {name} {rate / each:.2f}" for name, each in peers.items()), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=train_step.WORKS, help="only this image size, or the narrow nets")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch [this one]")
    parser.add_argument("--threads", type=int, nargs="*", help="[as many as there are cores; narrow nets also on 1]")
    parser.add_argument("--archs", help="arch list for the evaluation; without it, archs are sampled")
    arguments = parser.parse_args()
    if subprocess.run([arguments.python, "-c", "import importlib.util as u; exit(u.find_spec('torch') is None)"]
                      ).returncode:
        print("error: PyTorch is not installed: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        sys.exit(2)
    print(common.machine())
    from resnet48.system.machine import cpu_count
    for name in [arguments.size] if arguments.size else train_step.WORKS:
        for threads in arguments.threads or sorted({1, cpu_count()} if name == "narrow" else {cpu_count()}):
            compare_steps(name, threads, arguments.python)
            if name in ("64", "224"):
                compare_evaluation(int(name), threads, arguments.python, arguments.archs)
            if threads > 1:
                compare_shared(name, threads, arguments.python)


if __name__ == "__main__":
    main()
