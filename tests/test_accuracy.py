import numpy as np
import paddle
import pytest
from small_runs import SPACE, images, same, values

from resnet48.evaluation import accuracy
from resnet48.images import datasets
from resnet48.nets import layers
from resnet48.nets.supernet import Supernet, extract
from resnet48.system import runtime


@pytest.fixture
def supernet():
    """A supernet whose weights and running statistics are all different."""
    paddle.seed(0)
    net = Supernet(SPACE, 7)
    for name, tensor in net.state_dict().items():
        if ".bn" in name or ".downsample.1" in name:
            tensor.set_value(paddle.rand(tensor.shape) + 0.5)
    return net


def pixels(count=12, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size)).astype("uint8")


def labels(count=12, classes=7):
    return np.random.default_rng(1).integers(0, classes, count)


# ---- calibration

class PlainNet:
    """The net written down in numpy, float64, as a second opinion. `normalise(name, x)` does the batch norms."""

    def __init__(self, net, arch, normalise):
        self.weights = {name: value.astype("float64") for name, value in values(net).items()}
        self.arch, self.normalise = arch, normalise

    def conv(self, x, name, width, stride):
        weight = self.weights[name + ".weight"][:width, :x.shape[1]]
        kernel = weight.shape[-1]
        x = np.pad(x, ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
        return np.einsum("nchwij,ocij->nohw", windows, weight)

    def norm(self, x, name):
        mean, variance = self.normalise(name, x)
        weight, bias = (self.weights[f"{name}.{part}"][:x.shape[1]] for part in ("weight", "bias"))
        return np.moveaxis((np.moveaxis(x, 1, -1) - mean) / np.sqrt(variance + 1e-5) * weight + bias, -1, 1)

    def __call__(self, given):
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        x = np.moveaxis((np.moveaxis(given, 1, -1) / 255 - mean) / std, -1, 1)
        x = np.maximum(self.norm(self.conv(x, "blocks.0.conv", self.arch.stem, 2), "blocks.0.bn"), 0)
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
        for block in self.arch.blocks():
            name = f"blocks.{block.index}"
            y = np.maximum(self.norm(self.conv(x, name + ".conv1", block.inner_width, block.stride), name + ".bn1"), 0)
            y = self.norm(self.conv(y, name + ".conv2", block.out_width, 1), name + ".bn2")
            if block.projects:
                x = self.conv(x, name + ".downsample.0", block.out_width, block.stride)
                x = self.norm(x, name + ".downsample.1")
            x = np.maximum(x + y, 0)
        features = x.mean(axis=(2, 3))
        return features @ self.weights["blocks.24.fc.weight"][:features.shape[1]] + self.weights["blocks.24.fc.bias"]


@pytest.mark.parametrize("size", [16, 33, 80])
def test_calibration_is_the_exact_mean_and_variance_layer_after_layer(supernet, rng, size):
    arch, given, measured = SPACE.sample(rng), pixels(size=size), {}

    def measure(name, x):
        measured[name] = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        return measured[name]

    PlainNet(supernet, arch, measure)(given)
    statistics = accuracy.calibrate(supernet, arch, given)
    checked = 0
    for name, layer in supernet.named_sublayers():
        if name in measured:
            for ours, expected in zip(statistics[layer], measured[name]):
                assert np.allclose(ours.numpy(), expected, rtol=1e-2, atol=1e-3), name
            checked += 1
    assert checked == len(measured) == 1 + 2 * len(arch.blocks()) + 3
    others = pixels(5, size, seed=1)
    expected = PlainNet(supernet, arch, lambda name, x: measured[name])(others)
    with paddle.no_grad():
        logits = supernet(datasets.normalize(paddle.to_tensor(others)), arch, norm=statistics.apply).numpy()
    assert np.allclose(logits, expected, atol=2e-2 * np.abs(expected).max())


def test_a_subnet_on_its_own_calibrated_is_the_calibrated_subnet(supernet, rng):
    arch, given, others = SPACE.sample(rng), pixels(), datasets.normalize(paddle.to_tensor(pixels(5, seed=1)))
    alone = extract(supernet, arch)
    accuracy.calibrate_alone(alone, given)
    alone.eval()
    statistics = accuracy.calibrate(supernet, arch, given)
    with paddle.no_grad():
        expected = supernet(others, arch, norm=statistics.apply).numpy()
        assert np.allclose(alone(others).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_calibration_images_are_a_seeded_balanced_sample_of_the_training_images():
    image_set = images()
    chosen = accuracy.calibration_images(image_set, 9, seed=0)
    views, of_view = datasets.decode(image_set.train, range(24), 16)
    found = [int(np.flatnonzero((views == each).all(axis=(1, 2, 3)))[0]) for each in chosen]
    assert len(set(found)) == 9 and np.bincount(of_view[found]).tolist() == [3, 3, 3]
    assert np.array_equal(chosen, accuracy.calibration_images(image_set, 9, seed=0))
    assert not np.array_equal(chosen, accuracy.calibration_images(image_set, 9, seed=1))


# ---- counts

def guessing(classes):
    """A net whose best guess for an image is its first pixel / 10, with the next classes after it in order."""
    def forward(x):
        guess = ((x[:, 0, 0, 0].numpy() * 0.229 + 0.485) * 255 / 10).round()
        return paddle.to_tensor((-((np.arange(classes) - guess[:, None]) % classes)).astype("float32"))

    return forward


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_counts_are_exact_and_add_up_over_batches_of_any_size(batch_size):
    guesses, right = np.array([0, 1, 2, 3, 4, 5, 6, 6]), np.array([0, 1, 3, 0, 4, 3, 5, 3])
    given = np.repeat(guesses * 10, 3 * 4 * 4).reshape(8, 3, 4, 4).astype("uint8")
    # Among the first five from the guess on (modulo 7): all but 5 -> 3 and 6 -> 5, which are the sixth.
    counts = accuracy.count_correct(guessing(7), given, right, batch_size)
    assert counts.dtype == np.int64 and counts.tolist() == [3, 5 + 1]


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_with_five_classes_or_fewer_every_answer_is_among_the_first_five(classes):
    right = labels(20, classes)
    counts = accuracy.count_correct(guessing(classes), np.zeros((20, 3, 2, 2), "uint8"), right, 6)
    assert counts.tolist() == [int((right == 0).sum()), 20]


def test_no_images_are_no_hits():
    assert accuracy.count_correct(guessing(3), pixels(0), labels(0), 4).tolist() == [0, 0]


def test_each_arch_is_counted_as_if_it_were_the_only_one_and_the_net_is_left_as_it_was(supernet, rng):
    archs, before = [SPACE.largest(), SPACE.smallest(), SPACE.sample(rng)], values(supernet)
    arguments = pixels(seed=2), pixels(), labels(), 5
    together = [counts.tolist() for counts in accuracy.one_by_one(supernet, archs, *arguments)]
    backwards = [counts.tolist() for counts in accuracy.one_by_one(supernet, archs[::-1], *arguments)]
    assert together == backwards[::-1]
    assert together == [next(accuracy.one_by_one(supernet, [arch], *arguments)).tolist() for arch in archs]
    assert same(values(supernet), before)


def test_calibration_uses_the_calibration_images_and_without_them_the_inherited_statistics(supernet, rng):
    arch, given, seen = SPACE.sample(rng), datasets.normalize(paddle.to_tensor(pixels())), []
    before = values(supernet)

    def forward_seen(forward, *_):
        seen.append(forward(given).numpy())
        return np.zeros(6, "int64")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "count", forward_seen)
        list(accuracy.one_by_one(supernet, [arch], None, pixels(), labels(), 5))
        list(accuracy.one_by_one(supernet, [arch], pixels(seed=2), pixels(), labels(), 5))
    assert same(values(supernet), before)
    supernet.eval()
    with paddle.no_grad():
        assert np.allclose(seen[0], supernet(given, arch, norm=layers.batch_norm).numpy(), rtol=1e-4)
        calibrated = supernet(given, arch, norm=accuracy.calibrate(supernet, arch, pixels(seed=2)).apply).numpy()
    assert np.allclose(seen[1], calibrated, rtol=1e-3, atol=1e-4) and not np.allclose(seen[0], calibrated, rtol=0.1)


# ---- the validation images

@pytest.mark.parametrize("ranks", [1, 2, 4, 12])
def test_the_ranks_share_out_the_validation_images(monkeypatch, ranks):
    image_set, shares = images(), []
    monkeypatch.setattr(runtime, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(runtime, "rank", lambda rank=rank: rank)
        shares.append(accuracy.Validation.of(image_set, 4))
    everything, of_everything = datasets.decode(image_set.val, range(9), 16)
    for rank, share in enumerate(shares):
        assert np.array_equal(share.pixels, everything[rank::ranks])
        assert np.array_equal(share.labels, of_everything[rank::ranks])
    assert sum(accuracy.count_correct(guessing(3), share.pixels, share.labels, 4)[1] for share in shares) == 9


def test_an_accuracy_is_in_percent_of_all_images():
    validation = accuracy.Validation(np.zeros((8, 3, 2, 2), "uint8"), np.array([0, 0, 0, 1, 2, 2, 1, 1]), 3)
    assert validation.accuracy(guessing(3)) == 37.5


def test_the_watched_archs_are_the_same_for_every_seed_and_seen_calibrated(supernet):
    image_set = images(classes=tuple("abcdefg"))
    watch = accuracy.validate_supernet(image_set, SPACE, 9, 0, 4)
    before, accuracies = values(supernet), watch(supernet)
    assert same(values(supernet), before)
    calibration = accuracy.calibration_images(image_set, 9, seed=0)
    validation = accuracy.Validation.of(image_set, 4)
    for name, arch in (("largest", SPACE.largest()), ("smallest", SPACE.smallest())):
        counts = next(accuracy.one_by_one(supernet, [arch], calibration, validation.pixels, validation.labels, 4))
        assert accuracies[name] == pytest.approx(100 * counts[0] / 9)
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "calibrate", lambda net, arch, given, real=accuracy.calibrate:
                      asked.append(arch) or real(net, arch, given))
        accuracy.validate_supernet(image_set, SPACE, 9, 5, 4)(supernet)
        watch(supernet)
    assert asked[:4] == asked[4:] and len(set(asked)) == 4


def test_without_calibration_images_everything_inherits_the_running_statistics(supernet, monkeypatch):
    image_set, arch = images(classes=tuple("abcdefg")), SPACE.smallest()
    assert accuracy.calibration_images(image_set, 0, seed=0) is None
    assert accuracy.Sample.of(image_set, None, 0, seed=0).calibration_images is None
    alone = extract(supernet, arch)
    before = values(alone)
    accuracy.calibrate_alone(alone, None)
    assert same(values(alone), before)
    monkeypatch.setattr(accuracy, "calibrate", None)
    accuracies = accuracy.validate_supernet(image_set, SPACE, 0, 0, 4)(supernet)
    assert accuracies["smallest"] == pytest.approx(accuracy.validate_standalone(image_set, 4)(alone)["val"])
