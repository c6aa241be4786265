"""Run the benchmarks and write benchmarks/README.md: what each printed, on which machine, when, with which versions.

    python3 benchmarks/report.py [--archs LIST.json] [PROGRAM ...]

Without names all of them, the evaluator at all sizes: that takes long. With names only those; the sections of the
others stay as they are.
"""

import argparse
import os
import re
import subprocess
import sys

import common

PROGRAMS = ("convolution", "batch_norm", "train_step", "peer", "evaluator", "data")
FOLDER = os.path.dirname(os.path.abspath(__file__))
README = os.path.join(FOLDER, "README.md")
HEAD = """# Benchmarks

Written by `python3 benchmarks/report.py`; `python3 benchmarks/report.py NAME ...` renews some sections. Ratios compare
two ways within one run; seconds of different runs do not compare. Only `peer` needs what `benchmarks/requirements.txt`
lists.

Tried without gain, or with too little to pay for its code (ratios of processor time, one thread):
- narrow 3x3 convolutions as rows gathered and one product, or three rows of a map and a banded matrix: 1.0 to 2.0 times
  the faster of Winograd's and one matrix;
- convolutions with a stride as rows gathered and one product, with a gradient gathered likewise: .98 to 1.7 times
  unfolding's at full width, but .64 from 256 to 512 channels on 4 x 4, and .35 to 1.2 in narrow nets;
- Winograd's tiles of 4 x 4 on maps of 4 x 4: full-width filters of 36 values take back what is saved (1.1);
- convolution layers as one differentiable function instead of a few tracked operations: 1.0;
- Winograd's image by image, so that what is in tiles stays in the cache: .45 to .9;
- transpositions of features by other operations (a product with ones on the diagonal, `channel_shuffle`, Paddle without
  its views, `FLAGS_use_stride_kernel=0`): up to 4 times as fast for some sizes, 1.0 for steps and evaluator;
- memory in huge pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`): 1.0 for narrow nets and at 64 pixels;
- one matrix of a dense convolution as [O, C], not [C, O], where an output has one pixel: 1.4, but MKL rounds what is
  the same for all images differently in some rows, and in dead subnets batch norms made of it gradients of 1e15;
- the transform into tiles of 4 x 4 as two products, one axis after the other: 1.4 to 1.9 without AVX512, but .5 to 1.1
  for what comes out of them and for small maps, and more operations;
- weights cut by one function with a padded gradient: 1.7 at half the width of 512 channels, .7 in narrow nets;
- narrow nets compiled by `to_static`, with these convolutions: 1.07, after 1.6 seconds to compile each;
- one update for all parameters (`use_multi_tensor`): 1.16 of the optimizer for narrow nets, .9 with Paddle 2.6.2;
- ReLU in place: 1.02 to 1.04 for a sandwich step at 64 pixels, 1.0 for narrow nets;
- Winograd's filters as [places, C, O] in evaluation: 1.3 times as fast from 512 channels on 7 x 7 and 2 x 2 for 12 and
  64 images, .97 to 1.1 elsewhere, but laying them out takes as much longer as about one call saves;
- Winograd's tiles cut, transformed and put together by loops that numba compiles, with nothing gathered: .7 to 1.1 in
  the best of three ways to write them;
- bfloat16 on a CPU: Paddle 3.3.1 has no matrix product for it there;
- batch norm that moves the running statistics of the largest net in place: Paddle refuses the graphs of two subnets.
"""


def sections(text):
    """What a README holds, as section text by program name."""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def text_of(found):
    """The README of these sections, in the order of the programs."""
    return HEAD + "".join(f"\n## {name}\n{found[name].rstrip()}\n" for name in PROGRAMS if name in found)


def run(name, words):
    """The section of one program. Its output also appears as it comes. None if the program fails."""
    print(f"== {name}", flush=True)
    process = subprocess.Popen([sys.executable, os.path.join(FOLDER, f"{name}.py"), *words], stdout=subprocess.PIPE,
                               text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait():
        return None
    words = [os.path.basename(word) for word in words]
    command = " ".join(["python3", f"benchmarks/{name}.py", *words])
    return f"\n`{command}`:\n\n```\n{''.join(lines).rstrip()}\n```\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    there = [name for name in PROGRAMS if os.path.isfile(os.path.join(FOLDER, f"{name}.py"))]
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(there)}; all by default")
    parser.add_argument("--archs", help="arch list for the evaluator; without it, archs are sampled")
    arguments = parser.parse_args()
    chosen = arguments.programs or there
    for name in chosen:
        if name not in there:
            parser.error(f"there is no benchmark {name}; there are {', '.join(there)}")
    from resnet48.system import files
    failed = []
    for name in chosen:
        section = run(name, ["--archs", arguments.archs] if name == "evaluator" and arguments.archs else [])
        if section is None:
            failed.append(name)
            continue
        before = ""
        if os.path.exists(README):
            with open(README) as file:
                before = file.read()
        files.write_text(README, text_of({**sections(before), name: section}))  # at once: the next may be stopped
    if failed:
        sys.exit(f"error: failed, their sections are as they were: {', '.join(failed)}")


if __name__ == "__main__":
    main()
