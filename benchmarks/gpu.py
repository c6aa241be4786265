"""Everything that needs a GPU, in one run that prints a page to paste.

    python3 benchmarks/gpu.py [--small]

A check ends in `ok` or `FAILED`, the other lines are measurements. A part that cannot run says why, and the others go
on; the exit code is 1 if a check failed. The images are made up, of 224 pixels. --small takes tiny nets and images, to
try the program, also without a GPU, where its numbers mean nothing.
"""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import common


class Scale(NamedTuple):
    """How large everything is.

    base: widths of the stages; size: pixels; steps: of a training, of which the first fifth does not count for its
    speed; batch: images of a step; archs, chunk: of the evaluator, None to choose.
    """

    base: str
    size: int
    steps: int
    batch: int
    archs: int
    chunk: int | None


LARGE, SMALL = Scale("64,128,256,512", 224, 50, 128, 100, None), Scale("8,12,16,20", 32, 10, 16, 6, 16)
CLASSES = 10
LOSS_TOLERANCE = 0.05  # of the losses of half precision, relative to those of float32
LEAST_TAU = 0.9  # between the rankings of half precision and float32
WAYS = [("fp32", False), ("bf16", False), ("fp16", False), ("bf16", True)]  # precision, channels last


# --- what runs in processes of their own, because settings of the device last as long as they -------------------------

def made_up_images(scale):
    """An image set that can be learned: noise, in which one of ten stripes is brighter."""
    import numpy as np
    from resnet48.images import datasets
    rng, side = np.random.default_rng(0), scale.size * 8 // 7

    def split(count):
        labels = np.arange(count) % CLASSES
        pixels = rng.integers(0, 200, (count, side, side, 3), "uint8")
        for image, label in zip(pixels, labels):
            image[side * label // CLASSES:side * (label + 1) // CLASSES] += 55
        return datasets.Split(pixels, labels)

    return datasets.ImageSet("made-up images", tuple("0123456789"), split(scale.steps * scale.batch // 2),
                             split(4 * scale.batch), scale.size, crop_scale=0.6, flip=False,
                             workers=0 if scale == SMALL else 8)


def train(scale, recipe, precision="fp32", channels_last=False):
    """The net and the images of a short training by the real loop, and its losses, images per second, and the share of
    time that it waited for images."""
    from resnet48.nets.supernet import ResNet48, Supernet
    from resnet48.space.arch import FULL
    from resnet48.system import options, runtime
    from resnet48.training import loop, recipes
    runtime.start("auto", channels_last=channels_last)
    runtime.seed_everything(0)
    images = made_up_images(scale)
    with tempfile.TemporaryDirectory() as folder:
        shared = {"base_channels": scale.base, "batch_size": scale.batch, "max_epoch": 2, "lr": 0.05, "warmup": 0.5,
                  "precision": precision, "log_freq": 1, "eval_freq": 0, "save_freq": 2, "save_dir": folder,
                  "zero_residuals": True}
        if recipe == "standalone":
            settings = options.StandaloneSettings(**shared)
            space = FULL.narrowed(settings.channels(), 1)
            net, stages = ResNet48(space.largest(), CLASSES), recipes.standalone(settings)
        else:
            settings = options.SupernetSettings(**shared)
            space = FULL.narrowed(settings.channels(), 1)
            net, stages = Supernet(space, CLASSES), recipes.supernet(settings, space)
        loop.fit(net, stages, images, settings)
        with open(os.path.join(folder, "metrics.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
    timed = rows[scale.steps // 5:]
    return net, images, {
        "losses": [float(row["loss_largest" if recipe == "sandwich" else "loss_loss"]) for row in rows],
        "images": len(timed) / sum(1 / float(row["images_per_s"]) for row in timed),
        "wait": sum(float(row["data_wait"]) for row in timed) / len(timed)}


def evaluate(scale):
    """Counts of correct answers of some archs in each precision, and subnet-images per second."""
    import numpy as np
    from resnet48.evaluation import accuracy, evaluator, prefix_tree
    from resnet48.space.arch_list import Entry
    from resnet48.system import runtime
    net, images, _ = train(scale, "sandwich")
    rng, found = np.random.default_rng(0), {}
    archs = [net.space.sample(rng) for _ in range(scale.archs)]
    entries, steps = [Entry(f"arch{i}", arch.code, arch) for i, arch in enumerate(archs)], prefix_tree.traversal(archs)
    for precision in ("fp32", "bf16", "fp16"):
        with tempfile.TemporaryDirectory() as root:
            sample = accuracy.Sample.of(images, None, scale.batch, 0)
            journal = evaluator.open_journal(root, "none", entries, steps, net, sample,
                                             runtime.usable_precision(precision), scale.chunk)
            started = time.perf_counter()
            counts, total = evaluator.evaluate_list(net, journal, steps, sample)
        found[precision] = {"counts": counts[:, 0].tolist(), "images": total,
                            "rate": total * len(archs) / (time.perf_counter() - started)}
    return found


def occupy(scale):
    """Bytes that the evaluator expects to need for the chunk it chose, and those that it needed."""
    import numpy as np
    import paddle
    from resnet48.evaluation import evaluator, prefix_tree, tree_forward
    from resnet48.nets import layers
    from resnet48.nets.supernet import Supernet
    from resnet48.space.arch import FULL
    from resnet48.system import runtime
    runtime.start("auto")
    rng, space = np.random.default_rng(0), FULL.narrowed(tuple(map(int, scale.base.split(","))), 1)
    net = Supernet(space, CLASSES)
    net.eval()
    steps = prefix_tree.traversal([space.sample(rng) for _ in range(scale.archs)])
    cost = tree_forward.cost(steps, scale.size, CLASSES)
    chunk = scale.chunk or evaluator.choose_chunk(cost, 1, 50000)
    pixels, labels = rng.integers(0, 256, (chunk, 3, scale.size, scale.size), "uint8"), np.zeros(chunk, "int64")
    evaluator.count_chunk(tree_forward.SlicedWeightCache(net, 1 << 30), steps, pixels, labels, layers.batch_norm,
                          labels)
    on_gpu = paddle.device.get_device().startswith("gpu")
    return {"chunk": chunk, "expected": cost.path_bytes * chunk,
            "needed": paddle.device.cuda.max_memory_allocated() if on_gpu else None}


def overflow(_):
    """Whether a step whose gradients overflow leaves the weights alone and lowers the scale of the losses."""
    import paddle
    from resnet48.system import runtime
    from resnet48.training import optim
    from resnet48.training.precision import Precision
    runtime.start("auto")
    precision, layer = Precision("fp16"), paddle.nn.Linear(8, 8)
    if not precision.state():
        return {"scaler": False}
    optimizer = optim.make_optimizer(layer)
    optimizer.set_lr(0.1)
    before, scale = layer.weight.numpy(), precision.state()["scale"]
    precision.scale(layer(paddle.full([4, 8], 1e38)).sum() * 1e10).backward()
    precision.step(optimizer)
    kept, state = bool((layer.weight.numpy() == before).all()), precision.state()
    return {"scaler": True, "kept": kept, "noticed": state["scale"] < scale or state["decr_count"] > 0 or
            state["incr_count"] == 0}


CHILDREN = {"train": lambda scale, *words: train(scale, *words[:2], words[2] == "True")[2], "evaluate": evaluate,
            "occupy": occupy, "overflow": overflow}


def child(scale, *words):
    return common.child(__file__, [*(["--small"] if scale == SMALL else []), "--child", *words], {})


# --- the page ---------------------------------------------------------------------------------------------------------

def check(good):
    return "ok" if good else "FAILED"


def precision_of_training(scale):
    """Sandwich training in half precision and channels last, against float32"""
    reference = None
    for precision, channels_last in WAYS:
        found = child(scale, "train", "sandwich", precision, channels_last)
        reference = reference or found
        apart = max(abs(mine - other) / other for mine, other in zip(found["losses"], reference["losses"]))
        yield (f"{precision}{', channels last' if channels_last else ''}: loss {found['losses'][0]:.3f} to "
               f"{found['losses'][-1]:.3f}, at most {apart:.1%} from float32's in {scale.steps} steps; "
               f"{found['images']:.0f} images/s ({found['images'] / reference['images']:.2f} times float32's), "
               f"data wait {found['wait']:.0%}: {check(apart <= LOSS_TOLERANCE)}")


def standalone_training(scale):
    """Training of the largest net on its own"""
    for precision, channels_last in WAYS:
        found = child(scale, "train", "standalone", precision, channels_last)
        yield (f"{precision}{', channels last' if channels_last else ''}: {found['images']:.0f} images/s, data wait "
               f"{found['wait']:.0%}")


def scaler(scale):
    """The loss scaler of fp16 in a step that overflows"""
    found = child(scale, "overflow")
    if not found["scaler"]:
        yield "not on a CPU"
    else:
        yield f"weights unchanged: {check(found['kept'])}"
        yield f"the scaler noticed: {check(found['noticed'])}"


def precision_of_evaluation(scale):
    """The evaluator in half precision, against float32"""
    from scipy.stats import kendalltau
    found = child(scale, "evaluate")
    reference = found["fp32"]
    for precision, each in found.items():
        most = max(abs(mine - other) for mine, other in zip(each["counts"], reference["counts"]))
        tau = kendalltau(each["counts"], reference["counts"]).statistic
        same = each["counts"] == reference["counts"]
        yield (f"{precision}: {each['rate']:.0f} subnet-images/s, counts at most {most} of {each['images']} from "
               f"float32's, tau between them {1.0 if same else tau:.4f}: {check(same or tau >= LEAST_TAU)}")


def memory_of_evaluation(scale):
    """Memory of the evaluator at the chunk that it chooses"""
    found = child(scale, "occupy")
    needed = "not known on a CPU" if found["needed"] is None else f"{found['needed'] / 2 ** 30:.2f} GiB"
    yield f"{found['chunk']} images at once: expected {found['expected'] / 2 ** 30:.2f} GiB, needed {needed}"


def two_ranks(_):
    """Two ranks (NCCL), against one with twice the batch"""
    import paddle
    if paddle.device.cuda.device_count() < 2:
        yield "there are no two GPUs here"
        return
    import numpy as np
    worker = os.path.join(common.ROOT, "tests", "train_ranks.py")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.close()
        for ranks in (1, 2):
            subprocess.run([sys.executable, "-m", "paddle.distributed.launch", "--gpus", "0,1"[:2 * ranks - 1],
                            "--master", f"127.0.0.1:{port}", "--log_dir", os.path.join(folder, "log"), worker, "32",
                            os.path.join(folder, str(ranks)), "gpu"], check=True, stdout=subprocess.DEVNULL)
        for kind in ("standalone", "sandwich"):
            one, two = (paddle.load(os.path.join(folder, f"{ranks}.{kind}"), return_numpy=True) for ranks in (1, 2))
            apart = max(float(np.abs(value - two[name]).max() / np.abs(value).max()) for name, value in one.items())
            yield f"{kind}: weights at most {apart:.1e} apart after 5 steps in float64: {check(apart <= 1e-9)}"


PARTS = (precision_of_training, standalone_training, scaler, precision_of_evaluation, memory_of_evaluation, two_ranks)


def machine(small):
    """What this machine is, in a few lines."""
    text = common.machine()
    import paddle
    gpus = paddle.device.cuda.device_count()
    if not gpus and not small:
        sys.exit("error: Paddle sees no GPU here; --small tries this program without one")
    for index in range(gpus):
        found = paddle.device.cuda.get_device_properties(index)
        text += f"\nGPU {index}: {found.name}, {found.total_memory / 2 ** 30:.1f} GiB"
    return text + (f"\nCUDA {paddle.version.cuda()}, cuDNN {paddle.version.cudnn()}" if gpus else "\nno GPU")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny nets and images, also without a GPU")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scale = SMALL if arguments.small else LARGE
    if arguments.child:
        import resnet48  # noqa: F401  sets the machine before Paddle is imported
        name, *words = arguments.child
        found = CHILDREN[name](scale, *words)
        return print(json.dumps(found), flush=True)
    print(machine(arguments.small))
    failed = 0
    for part in PARTS:
        print(f"\n## {part.__doc__}\n", flush=True)
        try:
            for line in part(scale):
                print(line, flush=True)
                failed += line.endswith("FAILED")
        except Exception as error:  # what one part lacks, the others may have
            print(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}: FAILED", flush=True)
            failed += 1
    print(f"\n{failed} check(s) failed" if failed else "\nall checks passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
