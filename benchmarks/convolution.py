"""Which way of running a 3x3 convolution is the fastest at which feature size: what conv_algorithms.py decides by.

    python3 benchmarks/convolution.py

Each row is one convolution of the net at some feature size, batch 64: the library's own, unfolding and one product per
image, Winograd's, and one matrix per map, in GFLOP/s of the nominal work (Winograd's multiplies 4/9 or 1/4 of it and
the dense one leaves out what meets only padding, so they can exceed the machine's best). "once" also makes the
gradients and lays out the weight at every call, as training does.
"""

import common

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7), (64, 16), (128, 8), (256, 4), (512, 4), (256, 2), (512, 2),
          (512, 1), (24, 8), (24, 4), (12, 8), (12, 4), (12, 2), (6, 8), (6, 4), (6, 2))
BATCH = 64


def main():
    import resnet48  # noqa: F401  the settings of the machine, before Paddle
    import paddle
    from resnet48.nets import conv_algorithms

    print(common.machine())
    print(f"best matrix product {common.best_rate() / 1e9:.0f} GFLOP/s")
    print("width  size   conv2d  unfolded  Winograd  dense | once: conv2d  unfolded  Winograd  dense")
    for width, size in SHAPES:
        x, weight = paddle.randn([BATCH, width, size, size]), paddle.randn([width, width, 3, 3])
        flops = 2 * BATCH * width ** 2 * 9 * size ** 2
        ways = [lambda w: lambda y: paddle.nn.functional.conv2d(y, w, padding=1),
                lambda w: conv_algorithms._unfolded(w, size, 1),
                lambda w: conv_algorithms._winograd(w, size),
                lambda w: conv_algorithms._dense(w, size, 1)]
        row = []
        for times in (1, 3):
            for way, most in zip(ways, (56, 16, 56, 2)):
                if size > most:
                    row.append("-")
                    continue
                x.stop_gradient = weight.stop_gradient = times == 1
                if times == 1:
                    ready = way(weight)
                    seconds = common.seconds(lambda: ready(x), 5)
                else:
                    def once():
                        way(weight)(x).sum().backward()
                        x.clear_gradient(False)
                        weight.clear_gradient(False)
                    seconds = common.seconds(once, 3)
                row.append(f"{times * flops / seconds / 1e9:.3g}")
        print("{:5d} {:5d}   {:>6}  {:>8}  {:>8}  {:>5} |       {:>6}  {:>8}  {:>8}  {:>5}".format(
            width, size, *row), flush=True)


if __name__ == "__main__":
    main()
