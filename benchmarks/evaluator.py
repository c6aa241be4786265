"""How much faster the evaluator is than running each subnet on its own.

    python3 benchmarks/evaluator.py [--archs LIST.json] [--size 64]

Three ways in one run, on the same decoded images, weights and threads, each computing the batch-norm statistics of
every subnet on as many images as it then evaluates:
(a) each extracted subnet in a plain eager loop, in a process without the settings of resnet48/system/machine.py;
(b) the same loop with them;
(c) the evaluator, over the tree.
The archs are a run of neighbours in the tree of the whole list, with the way to the first of them counted in full, so
they share a little less than the list does.
"""

import argparse
import json

import common

SIZES = {32: (12, 128), 64: (12, 64), 224: (6, 12)}  # pixels: (archs, images)
CLASSES = 1000


def archs_of(path, count):
    """Neighbours in the tree of the list, or of as many sampled archs where no list is given."""
    import numpy as np
    from resnet48.evaluation import prefix_tree
    from resnet48.ranking import submission
    from resnet48.space.arch import PUBLISHED
    if path:
        archs = [entry.arch for entry in submission.read_list(path)]
    else:
        rng = np.random.default_rng(0)
        archs = [PUBLISHED.sample(rng) for _ in range(45000)]
    steps = prefix_tree.traversal(archs)
    middle = len(steps) // 2
    return [archs[step.leaf] for step in steps[middle:middle + count]]


def measure(way, codes, size, images):
    """Seconds for one pass, in processes of a launch one in each at the same time, and what the machine can do."""
    import numpy as np
    import paddle
    from resnet48.evaluation import accuracy, counts, prefix_tree, tree_forward
    from resnet48.evaluation.evaluator import count_chunk
    from resnet48.nets import supernet
    from resnet48.space.arch import FULL, ArchConfig
    from resnet48.system import runtime
    runtime.start("cpu")
    paddle.seed(0)
    net = supernet.Supernet(FULL, CLASSES)
    net.eval()
    archs = [ArchConfig.parse(code) for code in codes]
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, size, size), "uint8")
    labels = np.random.default_rng(1).integers(0, CLASSES, images)
    if way == "tree":
        weights, steps = tree_forward.SlicedWeightCache(net, 8 << 30), prefix_tree.traversal(archs)

        def run():
            statistics = tree_forward.measure_tree(weights, steps, pixels)
            return count_chunk(weights, steps, pixels, labels, tree_forward.ReplayedStatistics(statistics),
                               counts.first_half(labels))
    else:
        common.take_the_librarys_convolution()
        subnets = [supernet.extract(net, arch) for arch in archs]

        def run():
            for subnet in subnets:
                accuracy.calibrate_alone(subnet, pixels)
                accuracy.count_correct(subnet, pixels, labels, images)
    times = []
    for _ in range(3):  # the first to warm up; where one takes long, the second says enough
        runtime.all_reduce_sum([0])  # all processes begin together, and the last to end counts
        started = common.clock()
        run()
        runtime.all_reduce_sum([0])
        times.append(common.clock() - started)
        if len(times) > 1 and times[0] > 30:
            break
    return {"seconds": min(times[1:]), "rate": common.best_rate()}


def compare(path, size):
    from resnet48.evaluation import prefix_tree, tree_forward
    archs, images = archs_of(path, SIZES[size][0]), SIZES[size][1]
    codes = ",".join(arch.code for arch in archs)
    found = {}
    for name, way, environment in (("a", "loop", common.STOCK), ("b", "loop", {}), ("c", "tree", {})):
        found[name] = common.child(__file__, ["--child", way, codes, size, images], environment)
    alone, shared = prefix_tree.separate_macs(archs, size, CLASSES), tree_forward.cost(prefix_tree.traversal(archs),
                                                                                       size, CLASSES).macs
    a, b, c = (found[name]["seconds"] for name in "abc")
    rate, best = 2 * 2 * shared * images / c, max(found[name]["rate"] for name in "bc")
    print(f"{size} px, {len(archs)} archs, {images} images: MACs alone / shared {alone / shared:.2f}; "
          f"seconds (a) {a:.1f} (b) {b:.1f} (c) {c:.1f}; ratio a/c {a / c:.2f}, b/c {b / c:.2f}; "
          f"(c) {rate / 1e9:.0f} GFLOP/s of {best / 1e9:.0f} ({rate / best:.0%})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", help="arch list; without it, 45,000 archs are sampled from the pool")
    parser.add_argument("--size", type=int, choices=sorted(SIZES), help="only this image size in pixels")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, codes, size, images = arguments.child
        print(json.dumps(measure(way, codes.split(","), int(size), int(images))))
        return
    print(common.machine())
    for size in [arguments.size] if arguments.size else sorted(SIZES):
        compare(arguments.archs, size)


if __name__ == "__main__":
    main()
