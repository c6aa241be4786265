"""The Zen-score of an arch: from random weights, without training."""

import dataclasses

import numpy as np
import paddle

from resnet48.nets.zen_score import zen_score
from resnet48.space.arch import FULL
from resnet48.training.objectives.ranking import Ranking

SPACE = FULL.narrowed((8, 16, 32, 64), 1)


def arch(depths=(3, 3, 4, 3), outer="7777", inner="7777"):
    return SPACE.assemble(depths, outer, [digit * depth for digit, depth in zip(inner, depths)])


def test_it_grows_with_every_depth_and_with_the_widths_of_every_stage():
    def score(arch):
        return zen_score(arch, 16, repeats=6)  # nets of 8 channels leave much to chance

    base = score(arch())
    for stage in range(4):
        deeper = [3, 3, 4, 3]
        deeper[stage] += 1
        assert score(arch(tuple(deeper))) > base + 1.2  # two more batch norms that divide by more than 1
        wider = "7777"[:stage] + "1" + "7777"[stage + 1:]
        assert score(arch(outer=wider)) > base
        assert score(arch(inner=wider)) > base


def test_it_depends_on_its_arguments_only_and_disturbs_no_other_draw():
    def draws():
        return paddle.rand([2]).tolist(), np.random.rand(2).tolist()

    paddle.seed(5)
    np.random.seed(5)
    expected = draws()
    paddle.seed(5)
    np.random.seed(5)
    first = zen_score(arch(), 16)
    assert draws() == expected
    zen_score(SPACE.largest(), 16)
    assert zen_score(arch(), 16) == first
    assert zen_score(arch(), 16, seed=1) != first != zen_score(arch(), 32)


def test_chance_is_small_beside_the_archs():
    rng = np.random.default_rng(0)
    archs = [SPACE.sample(rng) for _ in range(12)]
    one, other = ([zen_score(each, 16, seed=seed) for each in archs] for seed in (0, 1))
    assert np.corrcoef(one, other)[0, 1] > 0.99


def test_repeats_are_averaged():
    one, two = zen_score(arch(), 16), zen_score(arch(), 16, repeats=2)
    assert one != two and zen_score(arch(), 16, repeats=2) == two
    assert abs(one - two) < 2


def test_a_ranking_loss_can_be_guided_by_it():
    objective = dataclasses.replace(Ranking(), proxy="zen_score")
    small, large = FULL.narrowed((2, 3, 4, 5), 1).smallest(), FULL.narrowed((2, 3, 4, 5), 1).largest()
    objective.prepare(FULL.narrowed((2, 3, 4, 5), 1), None)
    good, bad = ([paddle.to_tensor(value) for value in values] for values in ((1.0, 2.0), (2.0, 1.0)))
    assert float(objective.ranking_loss(good, [large, small])) == 0 < float(objective.ranking_loss(bad, [large, small]))
