"""How a training step compares with the same step written in PyTorch, on the same machine in the same run.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/peer.py [--size 64]

The same archs, images, threads and work; PyTorch in the memory format it is faster in (torch_supernet.py).
"""

import argparse
import importlib.metadata
import os
import sys

import common
import train_step

PEER = os.path.join(common.ROOT, "benchmarks", "torch_supernet.py")


def compare(size):
    theirs, ours = [], []
    for _ in range(2):  # in turn, because a machine with neighbours changes its speed
        theirs.append(common.child(PEER, [size], {}))
        ours.append(common.child(train_step.__file__, ["--child", "ours", size], {}))
    best = max(found["rate"] for found in ours)
    print(f"{size} px, batch {train_step.BATCH[size]}; best matrix product {best / 1e9:.0f} GFLOP/s")
    print("step      PyTorch: images/s  GFLOP/s | ours: images/s  GFLOP/s | ratio")
    for name in ("full", "sandwich"):
        seconds = [min(each[name] for each in found) for found in (theirs, ours)]
        images, rates = train_step.speeds(size, ours[0][f"{name} flops"], seconds)
        print(f"{name:9} {images[0]:17.1f}  {rates[0]:7.0f} | {images[1]:14.1f}  {rates[1]:7.0f} | "
              f"{images[1] / images[0]:5.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, choices=sorted(train_step.BATCH), help="only this image size in pixels")
    arguments = parser.parse_args()
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        print("error: PyTorch is not installed: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        sys.exit(2)
    print(f"{common.machine()}, PyTorch {version}")
    for size in [arguments.size] if arguments.size else sorted(train_step.BATCH):
        compare(size)


if __name__ == "__main__":
    main()
