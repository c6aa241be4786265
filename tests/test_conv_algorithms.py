import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from resnet48.nets import conv_algorithms
from resnet48.space.arch import FULL

KERNELS = [(3, 1), (3, 2), (1, 1), (1, 2), (7, 2)]  # with their strides: those of the nets, tied and untied
SIZES = [1, 2, 3, 4, 5, 7, 8, 14, 16, 17, 28]
NARROW, NARROW_ON_LARGE = conv_algorithms.NARROW_UP_TO, conv_algorithms.NARROW_ON_LARGE_UP_TO
assert {1, 2, conv_algorithms.UNFOLD_UP_TO, conv_algorithms.UNFOLD_UP_TO + 1} <= set(SIZES)


def library(x, weight, stride):
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def values_and_gradients(convolve, x, weight, stride):
    x, weight = x.clone().detach(), weight.clone().detach()
    x.stop_gradient = weight.stop_gradient = False
    y = convolve(x, weight, stride)
    (y * paddle.arange(y.size, dtype="float32").reshape(y.shape)).mean().backward()
    return y.numpy(), x.grad.numpy(), weight.grad.numpy()


def require_equal(values, expected):
    for ours, theirs in zip(values, expected):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("in_width, width",
                         [(NARROW, NARROW + 1), (NARROW + 2, NARROW + 1), (NARROW_ON_LARGE + 2, NARROW_ON_LARGE + 1)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel, stride", KERNELS)
def test_every_way_to_run_a_convolution_gives_the_librarys_values_and_gradients(
        size, kernel, stride, in_width, width):
    paddle.seed(0)
    x, weight = paddle.randn([3, in_width, size, size]), paddle.randn([width, in_width, kernel, kernel])
    expected = values_and_gradients(library, x, weight, stride)
    require_equal(values_and_gradients(conv_algorithms.conv2d, x, weight, stride), expected)
    for dense_up_to in (0, conv_algorithms.DENSE_ONCE_UP_TO, conv_algorithms.DENSE_UP_TO):
        laid_out = conv_algorithms.convolution(weight, size, stride, dense_up_to)
        for images in (x, x[:1], x):  # one layout for many calls, of any batch
            require_equal([laid_out(images).numpy()], [library(images, weight, stride).numpy()])


@pytest.mark.parametrize("image_size, batch", [(32, 2), (64, 2), pytest.param(224, 1, marks=pytest.mark.slow)])
def test_every_convolution_of_the_full_net_has_the_librarys_values_and_gradients(image_size, batch):
    paddle.seed(0)
    seen = {(3, 64, 7, 2, image_size)}
    size = image_size // 4
    for block in FULL.largest().blocks():
        seen.add((block.in_width, block.inner_width, 3, block.stride, size))
        if block.projects:
            seen.add((block.in_width, block.out_width, 1, block.stride, size))
        size //= block.stride
        seen.add((block.inner_width, block.out_width, 3, 1, size))
    assert len(seen) == 1 + 4 + 2 * 3
    for in_width, width, kernel, stride, size in seen:
        x, weight = paddle.randn([batch, in_width, size, size]), paddle.randn([width, in_width, kernel, kernel])
        require_equal(values_and_gradients(conv_algorithms.conv2d, x, weight, stride),
                      values_and_gradients(library, x, weight, stride))


@pytest.mark.parametrize("kernel, stride", KERNELS)
def test_weights_are_laid_out_in_no_more_bytes_than_said(kernel, stride):
    for width in (NARROW + 1, conv_algorithms.DENSE_VALUES + 1):
        weight = paddle.randn([width, width + 1, kernel, kernel])
        for size in SIZES:
            for dense_up_to in (conv_algorithms.DENSE_ONCE_UP_TO, conv_algorithms.DENSE_UP_TO):
                kept = conv_algorithms.convolution(weight, size, stride, dense_up_to).__closure__
                taken = max(4 * int(cell.cell_contents.size) for cell in kept
                            if isinstance(cell.cell_contents, paddle.Tensor))
                said = conv_algorithms.layout_bytes(weight, size, stride, dense_up_to)
                assert taken == said


def test_a_single_gradient_can_be_asked_for():
    width = NARROW_ON_LARGE + 1  # wide enough for Winograd's, which writes its gradients down itself
    x, weight = paddle.randn([2, width, 4, 4]), paddle.randn([width + 2, width, 3, 3])
    for frozen, moving in ((x, weight), (weight, x)):
        frozen.stop_gradient, moving.stop_gradient = True, False
        expected, = paddle.grad(library(x, weight, 1).square().sum(), moving)
        found, = paddle.grad(conv_algorithms.conv2d(x, weight).square().sum(), moving)
        require_equal([found.numpy()], [expected.numpy()])
        assert frozen.grad is None


def test_images_are_unfolded_once_for_all_subnets_of_a_step_and_only_for_them(monkeypatch):
    calls, unfold = [], F.unfold
    monkeypatch.setattr(F, "unfold", lambda *given: calls.append(given) or unfold(*given))
    images, weight = paddle.randn([2, 3, 32, 32]), paddle.randn([6, 3, 7, 7])
    weight.stop_gradient = False

    def require_right(images):
        for width in (6, 4):
            require_equal([conv_algorithms.conv2d(images, weight[:width], 2).numpy()],
                          [library(images, weight[:width], 2).numpy()])

    with conv_algorithms.shared_images(images):
        require_right(images)
        require_right(images)
        assert len(calls) == 1
        require_right(images + 1)
        assert len(calls) == 3
    images.set_value(images + 2)
    require_right(images)
    assert len(calls) == 5
    with conv_algorithms.shared_images(images):
        require_right(images)
    assert len(calls) == 6 and not conv_algorithms._shared


def test_filters_that_are_the_first_of_others_get_their_outputs_from_them_and_gradients_of_their_own(monkeypatch):
    products, real = [], paddle.matmul
    monkeypatch.setattr(paddle, "matmul", lambda *given, **named: products.append(given) or real(*given, **named))
    images, weight = paddle.randn([2, 3, 16, 16]), paddle.randn([6, 3, 7, 7])
    changed = weight.clone()
    changed[2, 1, 3, 3] += 1

    def gradients(convolve, weights):
        """Of several convolutions, all of whose graphs are there before the first gradient is made."""
        weights = [weight.clone().detach() for weight in weights]
        for weight in weights:
            weight.stop_gradient = False
        outputs = [convolve(images, weight, 2) for weight in weights]
        for place, y in enumerate(outputs):
            (y.square() * (place + 1)).mean().backward()
        return [y.numpy() for y in outputs] + [weight.grad.numpy() for weight in weights]

    weights = weight, weight[:4], weight, changed[:4], changed[:2], changed
    expected = gradients(library, weights)
    with conv_algorithms.shared_images(images):
        require_equal(gradients(conv_algorithms.conv2d, weights), expected)
    forward = len(products) - len(weights)  # each has a product for its gradient
    assert forward == 3  # of the six filters, of the four of which one has changed, and of all of these
    require_equal(gradients(conv_algorithms.conv2d, weights), expected)
    assert len(products) == 3 + 3 * len(weights)  # nothing is kept of images that are not shared


def test_images_that_need_a_gradient_get_it():
    images, weight = paddle.randn([2, 3, 16, 16]), paddle.randn([6, 3, 7, 7])
    with conv_algorithms.shared_images(images):
        require_equal(values_and_gradients(conv_algorithms.conv2d, images, weight, 2),
                      values_and_gradients(library, images, weight, 2))
