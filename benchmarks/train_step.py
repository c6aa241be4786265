"""How much faster a training step is than with Paddle as it comes, and where its time goes.

    python3 benchmarks/train_step.py [--size 64]

Two ways in one run, each in a process of its own, on the same images, archs and threads:
- stock: without the settings of resnet48/system/machine.py, the library's own convolution everywhere;
- ours: the settings, and the convolutions that conv_algorithms.py chooses.
Two steps, each with its optimizer: the standalone full net, and the sandwich (largest, smallest, two random subnets).
The work counts the two gradients of every convolution, but none with respect to the images.
The table times every convolution, batch norm and slice of the sandwich step again on its own; "rest" is what is left.
"""

import argparse
import collections
import json
import time
from typing import NamedTuple

import common



class Work(NamedTuple):
    """A step: image size in pixels, images, how often it is measured, base widths if not the full ones, classes."""

    size: int
    batch: int
    times: int
    channels: tuple[int, ...] = ()
    classes: int = 1000

    def of(self, space):
        return space.narrowed(self.channels, 1) if self.channels else space


WORKS = {"32": Work(32, 32, 5), "64": Work(64, 32, 3), "224": Work(224, 8, 2),  # with 32 it would take a minute
         "narrow": Work(32, 128, 10, (6, 12, 24, 48), 10)}


def inputs(work):
    """What every way is given: images uint8 [N, 3, size, size], labels [N], the (role, arch) pairs of a sandwich."""
    import numpy as np
    from resnet48.space.arch import PUBLISHED
    from resnet48.training import samplers
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (work.batch, 3, work.size, work.size), "uint8")
    archs = samplers.sandwich(work.of(PUBLISHED), 0, samplers.Moment(0, 1, 0.0), 4)
    return images, rng.integers(0, work.classes, work.batch), archs


def measure(way, work):
    """Seconds of both steps, the machine's best rate, and the parts of the sandwich step."""
    import paddle
    from resnet48.images import datasets
    from resnet48.nets import conv_algorithms, layers, supernet
    from resnet48.space.arch import FULL
    from resnet48.system import runtime
    from resnet48.training import objectives, optim, sharing
    if way == "stock":
        common.take_the_librarys_convolution()
    if way == "shared":
        runtime.start("cpu")
    paddle.seed(0)
    images, labels, archs = inputs(work)
    pixels, labels, space = paddle.to_tensor(images), paddle.to_tensor(labels), work.of(FULL)
    found = {} if way == "shared" else {"rate": common.best_rate()}
    largest = space.largest()
    steps = (("full", supernet.ResNet48(largest, work.classes), objectives.Standalone(), [("loss", largest)]),
             ("sandwich", supernet.Supernet(space, work.classes), objectives.InPlaceDistillation(), archs))
    for name, net, objective, trained in steps[1:] if way == "shared" else steps:
        net.train()
        optimizer = optim.make_optimizer(net, weight_decay=4e-5)
        optimizer.set_lr(1e-3)
        clock = {"optimizer": float("inf")}

        def step():
            images = datasets.normalize(pixels)
            with conv_algorithms.shared_images(images):
                run = sharing.subnets_shared(net, trained, images, work.classes) if way == "shared" else net
                objective.step(run, trained, images, labels, objectives.Gradients(net), None)
                if way == "shared":
                    runtime.sum_gradients(optim.trainable(net), False)
            started = time.perf_counter()
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)
            clock["optimizer"] = min(clock["optimizer"], time.perf_counter() - started)

        found[name] = common.seconds(step, work.times)
        found[f"{name} flops"] = work.batch * sum(_flops(arch, work) for _, arch in trained)
    if way == "ours":
        found["parts"] = {**_parts(lambda: objective.step(net, archs, datasets.normalize(pixels), labels,
                                                          objectives.Gradients(net), None),
                                 conv_algorithms, layers),
                          "optimizer": clock["optimizer"]}
    if "rate" in found:
        found["rate"] = max(found["rate"], common.best_rate())
    return found


def _flops(arch, work):
    stem = arch.convolutions(work.size)[0]
    return 2 * (3 * arch.macs(work.size, work.classes) - stem.macs)


def _parts(step, engine, layers):
    """Seconds of each kind of work in a step: its calls are noted once and then timed on their own."""
    import paddle
    calls = collections.Counter()
    modules = {"convolution": (engine, "conv2d"), "batch norm": (layers, "batch_norm"), "slices": (layers, "_first")}
    real = {kind: getattr(module, name) for kind, (module, name) in modules.items()}

    def noting(kind, signature):
        def call(*given):
            calls[kind, signature(*given)] += 1
            return real[kind](*given)
        return call

    signatures = {
        "convolution": lambda x, weight, stride=1: (tuple(x.shape), tuple(weight.shape), stride, x.stop_gradient),
        "batch norm": lambda x, layer: (tuple(x.shape), layer._mean.shape[0]),
        "slices": lambda weight, *widths: (tuple(weight.shape), widths, weight.stop_gradient)}
    for kind, (module, name) in modules.items():
        setattr(module, name, noting(kind, signatures[kind]))
    step()
    for kind, (module, name) in modules.items():
        setattr(module, name, real[kind])

    parts = collections.Counter()
    for (kind, (shape, *others)), count in calls.items():
        x = paddle.randn(shape)
        if kind == "convolution":
            weight_shape, stride, x.stop_gradient = others
            given = [x, paddle.randn(weight_shape)]
            given[1].stop_gradient = False
            run = lambda: engine.conv2d(*given, stride)
        elif kind == "batch norm":
            layer = paddle.nn.BatchNorm2D(others[0])
            given = [x, layer.weight, layer.bias]
            x.stop_gradient = False
            run = lambda: layers.batch_norm(x, layer)
        elif tuple(shape[:len(others[0])]) == others[0]:
            continue  # nothing is cut
        else:
            widths, x.stop_gradient = others
            given = [x]
            run = lambda: layers._first(x, *widths)
        forward, backward = _forward_and_backward(run, [tensor for tensor in given if not tensor.stop_gradient])
        parts[f"{kind}, forward"] += count * forward
        parts[f"{kind}, backward"] += count * backward
    return parts


def _forward_and_backward(run, inputs, times=3):
    import paddle
    forward = backward = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        y = run()
        between = time.perf_counter()
        forward = min(forward, between - started)
        if inputs:
            gradient = paddle.ones_like(y)
            between = time.perf_counter()
            paddle.grad(y, inputs, gradient)
            backward = min(backward, time.perf_counter() - between)
    return forward, backward if inputs else 0


def speeds(work, flops, seconds):
    """Images per second and GFLOP per second of steps of this many FLOP that take these seconds."""
    return [[amount / each for each in seconds] for amount in (work.batch, flops / 1e9)]


def compare(name):
    work = WORKS[name]
    stock = common.child(__file__, ["--child", "stock", name], common.STOCK)
    ours = common.child(__file__, ["--child", "ours", name], {})
    best = max(stock["rate"], ours["rate"])
    widths = f", base widths {work.channels}" if work.channels else ""
    print(f"{work.size} px, batch {work.batch}{widths}; best matrix product {best / 1e9:.0f} GFLOP/s")
    print("step      stock: images/s  GFLOP/s | ours: images/s  GFLOP/s  of the best | ratio")
    for name in ("full", "sandwich"):
        images, rates = speeds(work, ours[f"{name} flops"], [stock[name], ours[name]])
        print(f"{name:9} {images[0]:15.1f}  {rates[0]:7.0f} | {images[1]:14.1f}  {rates[1]:7.0f}  "
              f"{rates[1] * 1e9 / best:11.0%} | {images[1] / images[0]:5.2f}")
    parts, total = ours["parts"], ours["sandwich"]
    parts["rest"] = max(0, total - sum(parts.values()))
    print("where the time of our sandwich step goes        ms   share")
    for name, seconds in parts.items():
        print(f"  {name:40} {seconds * 1e3:7.0f}  {seconds / total:6.1%}")
    print(f"  {'all':40} {total * 1e3:7.0f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=WORKS, help="only this image size in pixels, or narrow nets at 32")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, size = arguments.child
        print(json.dumps(measure(way, WORKS[size])))
        return
    print(common.machine())
    for size in [arguments.size] if arguments.size else WORKS:
        compare(size)


if __name__ == "__main__":
    main()
