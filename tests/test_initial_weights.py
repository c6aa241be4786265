"""The initial weights that a recipe may ask for."""

import math

import numpy as np
import paddle
import pytest

from resnet48.nets.initial_weights import initialize
from resnet48.nets.supernet import ResNet48


@pytest.mark.parametrize("how, deviation, is_normal", [
    ("he_fan_in", lambda fan_in, fan_out: math.sqrt(2 / fan_in), True),
    ("he_fan_out", lambda fan_in, fan_out: math.sqrt(2 / fan_out), True),
    ("uniform", lambda fan_in, fan_out: math.sqrt(1 / (3 * fan_in)), False)])
def test_convolutions_begin_with_the_deviation_and_the_distribution_that_is_asked_for(narrow, how, deviation,
                                                                                      is_normal):
    paddle.seed(0)
    net, checked = ResNet48(narrow.largest(), 3), 0
    initialize(net, how)
    for name, weight in net.state_dict().items():
        if len(weight.shape) == 4 and weight.size >= 1000:
            out_width, in_width, height, width = weight.shape
            expected, values = deviation(in_width * height * width, out_width * height * width), weight.numpy()
            assert values.std() == pytest.approx(expected, rel=0.1), name
            assert abs(values.mean()) < 0.15 * expected
            assert (np.abs(values).max() > 2.2 * expected) == is_normal  # a uniform one ends at 1.73
            checked += 1
    assert checked > 20


def test_the_same_seed_gives_the_same_weights_and_the_rest_of_the_net_stays(narrow):
    def made(how):
        paddle.seed(0)
        net = ResNet48(narrow.smallest(), 3)
        initialize(net, how)
        return {name: value.numpy() for name, value in net.state_dict().items()}

    plain, one, other = made("he_fan_in"), made("uniform"), made("uniform")
    for name, value in one.items():
        assert np.array_equal(value, other[name])
        assert np.array_equal(value, plain[name]) == (value.ndim != 4), name
