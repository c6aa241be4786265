"""The archs of a study: spread over the space, and in bands where MACs say nothing."""

import numpy as np
import pytest

from resnet48.space.arch import FULL, SearchSpace
from resnet48.study import archs
from resnet48.system.errors import UserError

WIDE = SearchSpace("wide", (8, 16, 32, 64), 1, (1.0, 0.85, 0.7, 0.55, 0.45, 0.35, 0.25))
SIZE, CLASSES = 32, 10


@pytest.fixture(scope="module", autouse=True)
def fewer_draws():
    """Than by default, for a test has less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archs, "DRAWS", 1500)
        yield


@pytest.fixture(scope="module")
def tenths():
    return archs.spread(WIDE, 60, 0, SIZE, CLASSES)


@pytest.fixture(scope="module")
def banded(tenths):
    return archs.bands(WIDE, 40, 0, SIZE, CLASSES, sum(tenths, []))


@pytest.fixture(scope="module")
def random_archs():
    rng = np.random.default_rng(5)
    return [WIDE.sample(rng) for _ in range(2000)]


def macs(chosen):
    return np.array([arch.macs(SIZE, CLASSES) for arch in chosen])


def nearest(chosen):
    """The mean distance of an arch to the one nearest to it."""
    table = np.array([archs.features(arch) for arch in chosen])
    between = np.sqrt(((table[:, None] - table[None]) ** 2).sum(axis=2))
    np.fill_diagonal(between, np.inf)
    return between.min(axis=1).mean()


def test_each_tenth_of_the_macs_of_the_space_has_as_many(tenths, random_archs):
    edges = np.quantile(macs(random_archs), np.arange(1, 10) / 10)
    assert [len(part) for part in tenths] == [6] * 10
    places = np.concatenate([np.abs(np.searchsorted(edges, macs(part)) - place) for place, part in enumerate(tenths)])
    assert places.max() <= 1 and places.mean() < 0.2  # these draws are others than those of the set


def test_the_set_is_spread_wider_than_random_archs(tenths, random_archs):
    chosen = sum(tenths, [])
    table, drawn = (np.array([archs.features(arch) for arch in some]) for some in (chosen, random_archs))
    assert (table.std(axis=0) > drawn.std(axis=0)).all()
    assert table[:, 4:].std(axis=0).mean() > 1.3 * drawn[:, 4:].std(axis=0).mean()
    assert nearest(chosen) > 1.3 * nearest(random_archs[:60])


def test_a_band_holds_nearly_equal_macs(banded):
    assert [len(band) for band in banded] == [20, 20]
    for band in banded:
        assert macs(band).max() / macs(band).min() < 1.03 / 0.97
    assert macs(banded[1]).min() > 1.1 * macs(banded[0]).max()


def test_inside_a_band_macs_say_nothing(banded):
    for band in banded:
        table = np.array([archs.features(arch) for arch in band])
        depth, width = table[:, :4].sum(axis=1), table[:, 4:].mean(axis=1)
        for other in (depth, width, [arch.params(CLASSES) for arch in band]):
            assert abs(np.corrcoef(macs(band), other)[0, 1]) < 0.15
        assert np.ptp(depth) >= 6  # one buys depth for what another spends on width
        assert np.corrcoef(depth, width)[0, 1] < -0.2


def test_no_net_is_in_a_set_twice_or_in_both(tenths, banded):
    nets = [(arch.stem, arch.stages) for part in (*tenths, *banded) for arch in part]
    assert len(set(nets)) == len(nets) == 100


@pytest.mark.parametrize("choose", [archs.spread, archs.bands])
def test_the_sets_are_functions_of_the_seed(monkeypatch, choose):
    monkeypatch.setattr(archs, "DRAWS", 300)
    one, again, other = (choose(WIDE, 10, seed, SIZE, CLASSES) for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("count, sizes", [(0, []), (3, [1, 1, 1]), (13, [2, 2, 2, 1, 1, 1, 1, 1, 1, 1])])
def test_other_numbers_are_dealt_out_evenly(monkeypatch, count, sizes):
    monkeypatch.setattr(archs, "DRAWS", 300)
    assert [len(part) for part in archs.spread(WIDE, count, 0, SIZE, CLASSES)] == sizes


@pytest.mark.parametrize("choose", [archs.spread, archs.bands])
def test_a_space_of_few_nets_cannot_give_many(monkeypatch, choose):
    monkeypatch.setattr(archs, "DRAWS", 300)
    few = SearchSpace("few", FULL.base_channels, 8, (1.0,), ((2, 2), (2, 2), (2, 3), (2, 2)), ("1",) * 5)
    with pytest.raises(UserError, match="different nets"):
        choose(few, 12, 0, SIZE, CLASSES)
