"""What is counted on images: exact sums of cross-entropies, and two halves that are each a fair sample."""

import math

import numpy as np
import paddle
import pytest

from resnet48.evaluation import accuracy, counts
from resnet48.images import datasets


@pytest.mark.parametrize("classes", [1, 2, 5, 10])
def test_both_halves_of_a_balanced_sample_are_balanced(classes):
    labels = np.arange(40 * classes) % classes
    order = datasets.balanced_sample(labels, 12 * classes, seed=1)
    half = counts.first_half(labels[order])
    assert np.bincount(labels[order][half == 1], minlength=classes).tolist() == [6] * classes
    assert np.bincount(labels[order][half == 0], minlength=classes).tolist() == [6] * classes


@pytest.mark.parametrize("sizes", [(7, 3, 1, 9, 2), (1,) * 9, (4,)])
def test_halves_of_any_sample_differ_by_one_image_a_class_and_hardly_in_all(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = datasets.balanced_sample(labels, len(labels), seed=0)
    half = counts.first_half(labels[order])
    for label, size in enumerate(sizes):
        assert abs(2 * half[labels[order] == label].sum() - size) <= 1
    assert abs(2 * half.sum() - len(labels)) <= len(sizes) / 2


def test_one_image_is_in_the_first_half_and_none_in_neither():
    assert counts.first_half(np.array([3])).tolist() == [1] and counts.first_half(np.array([], int)).tolist() == []


def rows_of(logits, labels, batch_size):
    """What `accuracy.count` makes of given logits, whose places are the images' first pixels."""
    places = np.zeros((len(labels), 3, 1, 1), "uint8")
    places[:, 0, 0, 0] = np.arange(len(labels))

    def forward(x):
        found = ((x[:, 0, 0, 0].numpy() * 0.229 + 0.485) * 255).round().astype(int)
        return paddle.to_tensor(logits[found])

    return accuracy.count(forward, places, labels, batch_size)


def test_sums_are_those_of_the_cross_entropies_and_the_same_for_batches_of_any_size():
    rng = np.random.default_rng(0)
    logits, labels = (5 * rng.standard_normal((100, 7))).astype("float32"), rng.integers(0, 7, 100)
    exact = logits.astype("float64")
    losses = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(100), labels]
    half, right = counts.first_half(labels) == 1, exact.argmax(axis=1) == labels
    found = rows_of(logits, labels, 100)
    top1, _, total, first_images, first_top1, first_total = counts.in_nats(found)
    assert total == pytest.approx(losses.sum(), rel=1e-6)
    assert first_total == pytest.approx(losses[half].sum(), rel=1e-6)
    assert (top1, first_top1, first_images) == (right.sum(), right[half].sum(), half.sum())
    for batch_size in (1, 3, 64):
        assert np.array_equal(rows_of(logits, labels, batch_size), found)


def test_a_sum_is_exact_as_a_float64_however_large_and_small_its_parts_are():
    logits = np.array([[0, 0], [0, 1e30], [0, 15], [np.nan, 0], [90, 0]], "float32")
    labels = np.array([0, 0, 1, 0, 1])
    found = rows_of(logits, labels, 2)[2]
    parts = [rows_of(logits[[place]], labels[[place]], 1)[2] for place in range(5)]
    assert found == sum(parts) and parts[1] == parts[3] == counts.LARGEST * 2 ** 24
    assert parts[4] == parts[1]
    nats = [counts.in_nats(np.full(6, part))[2] for part in parts]
    assert math.fsum(nats) == sum(nats) == counts.in_nats(np.full(6, found))[2]
    assert nats[0] == pytest.approx(math.log(2), abs=2 ** -24) and nats[2] == pytest.approx(3.06e-7, abs=2 ** -24)
    assert not counts.impossible(np.array([rows_of(logits, labels, 2)]), 5)
