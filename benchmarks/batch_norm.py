"""Whether a node of the evaluator's tree should fold its batch norm into its convolution: what tree_forward.py relies
on.

    python3 benchmarks/batch_norm.py

Both ways normalise the output of one convolution with statistics that only this node has:
kernel: the convolution with the supernet's weight, laid out once for many nodes, then Paddle's batch-norm kernel;
folded: the weight times the scale of each filter, laid out for this node alone, the convolution, then the shift added.
Milliseconds for one batch; the fold is made once per batch, as it would be for each node and chunk of images.
"""

import common

SHAPES = ((64, 56, 16), (256, 14, 16), (512, 7, 16), (64, 16, 64), (256, 4, 64), (64, 8, 128), (512, 1, 128))


def main():
    import resnet48  # noqa: F401  the settings of the machine, before Paddle
    import paddle
    import paddle.nn.functional as F
    from resnet48.nets import conv_algorithms

    print(common.machine())
    print("width  size  images   kernel  folded  folded / kernel")
    with paddle.no_grad():
        for width, size, images in SHAPES:
            x, weight = paddle.randn([images, width, size, size]), paddle.randn([width, width, 3, 3])
            mean, variance, gamma, beta = paddle.randn([width]), paddle.rand([width]) + 1, paddle.ones([width]), \
                paddle.zeros([width])
            kept = conv_algorithms.convolution(weight, size)

            def kernel():
                return F.batch_norm(kept(x), mean, variance, gamma, beta, training=False)

            def folded():
                scale = gamma / paddle.sqrt(variance + 1e-5)
                y = conv_algorithms.convolution(weight * scale.reshape([-1, 1, 1, 1]), size)(x)
                return y + (beta - mean * scale).reshape([1, -1, 1, 1])

            difference = float((kernel() - folded()).abs().max())
            assert difference < 1e-2 * float(kernel().abs().max()), "the two ways must give the same"
            one, other = (1e3 * common.seconds(way, 10) for way in (kernel, folded))
            print(f"{width:5d} {size:5d} {images:7d} {one:8.2f} {other:7.2f} {other / one:10.2f}", flush=True)


if __name__ == "__main__":
    main()
