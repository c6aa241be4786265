"""What a checkpoint and a manifest say of a net, from files that are not trusted."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from resnet48.ranking import submission
from resnet48.space import checks, description
from resnet48.space.arch import FULL, PUBLISHED, ArchConfig
from resnet48.system.errors import UserError

NARROW = PUBLISHED.narrowed((4, 8, 16, 32), 1)
ARCH = NARROW.smallest()
SUPERNET = json.loads(json.dumps({"kind": "supernet", "space": NARROW.to_dict(), "num_classes": 10}))
STANDALONE = json.loads(json.dumps({"kind": "standalone", "arch": ARCH.code, "stem": ARCH.stem, "stages": ARCH.stages,
                                    "num_classes": 10}))
HUGE = 10 ** 30
#: Numbers that are none, or none that anyone would have.
ABSURD = [HUGE, -HUGE, -5000, 0, 1.5, float("nan"), float("inf"), 1e308, True, None, "8", [], {}, [8], 10 ** 9]


def changed(data, *path, to):
    """A copy with another value at a path."""
    data = copy.deepcopy(data)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return data


def refused(data):
    with pytest.raises(UserError) as said:
        description.read(data)
    assert str(said.value).isprintable() and len(str(said.value)) < 300
    return str(said.value)


def test_what_was_written_is_read():
    assert description.read(SUPERNET) == (NARROW, 10) and description.read(STANDALONE) == (ARCH, 10)
    untied = ArchConfig.parse(ARCH.code[:44] + "1" + ARCH.code[45:], FULL, allow_untied=True)
    assert description.read({**STANDALONE, "arch": untied.code, "stem": untied.stem, "stages": json.loads(
        json.dumps(untied.stages))}) == (untied, 10)


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("path", [
    ("num_classes",), ("space",), ("space", "base_channels"), ("space", "base_channels", 0), ("space", "divisor"),
    ("space", "ratios"), ("space", "ratios", 6), ("space", "depths"), ("space", "depths", 2),
    ("space", "depths", 2, 0), ("space", "depths", 2, 1), ("space", "codes"), ("space", "codes", 4), ("kind",)],
    ids=lambda path: ".".join(map(str, path)))
def test_absurd_values_in_a_supernet_are_refused_at_once(path, value):
    if path == ("space", "codes", 4) and value == "8":
        value = "89"
    if path == ("space",) and value == {}:
        return assert_default(changed(SUPERNET, *path, to=value))
    if path == ("space", "ratios", 6) and value is True:
        value = 2
    refused(changed(SUPERNET, *path, to=value))


def assert_default(data):
    assert description.read(data) == (FULL, 10)


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("path", [("num_classes",), ("arch",), ("stem",), ("stages",), ("stages", 0), ("stages", 3, 1),
                                  ("stages", 3, 1, 0)], ids=lambda path: ".".join(map(str, path)))
def test_absurd_values_in_a_standalone_net_are_refused_at_once(path, value):
    refused(changed(STANDALONE, *path, to=value))


OTHERS = [
    None, [], 3, "supernet", {}, {"kind": "supernet"}, {"kind": "supernet", "num_classes": 3},
    {"kind": "standalone", "num_classes": 3}, {"kind": ["supernet"], "num_classes": 3},
    changed(SUPERNET, "space", "more", to=1), changed(SUPERNET, "space", "name", to="\n" * 10 ** 6),
    changed(STANDALONE, "arch", to="1" * 10 ** 6), changed(STANDALONE, "arch", to="5" + ARCH.code[1:]),
    changed(STANDALONE, "stages", 0, to=[[4, 4]] * 10 ** 5)]


@pytest.mark.parametrize("data", OTHERS, ids=lambda data: repr(data)[:40])
def test_other_forms_are_refused_and_not_repeated(data):
    refused(data)


@pytest.mark.parametrize("change, words", [
    ({"num_classes": -5000}, "num_classes must be a whole number of 1 to 1000000, got -5000"),
    ({"num_classes": HUGE}, "num_classes must be a whole number of 1 to 1000000, got 1000"),
    ({"space": {**SUPERNET["space"], "depths": [[HUGE, HUGE]] * 4}}, "depths takes the fewest and the most blocks"),
    ({"space": {**SUPERNET["space"], "base_channels": [10 ** 9] * 4}}, "base_channels takes four widths of 1 or more"),
    ({"kind": "super"}, "the kind of a net is supernet or standalone, got 'super'")])
def test_the_sentence_says_what_is_allowed(change, words):
    assert refused({**SUPERNET, **change}).startswith(words)


# ---- manifests

@pytest.mark.parametrize("text, words", [
    ('{"net": NET, "image_size": 1e400}', "image_size must be a whole number of 1 to 65536, got inf"),
    ('{"net": NET, "image_size": -1}', "image_size must be a whole number of 1 to 65536, got -1"),
    ('{"net": NET, "image_size": NaN}', "image_size must be a whole number of 1 to 65536, got nan"),
    ('{"net": NET}', "image_size must be a whole number of 1 to 65536, got None"),
    ('{"net": [1], "image_size": 32}', "the description of a net is an object"),
    ("3", "it must be an object, found a number"), ("null", "it must be an object, found null")])
def test_a_manifest_with_absurd_numbers_is_one_sentence(tmp_path, text, words):
    (tmp_path / "s.manifest.json").write_text(text.replace("NET", json.dumps(SUPERNET)))
    with pytest.raises(UserError) as said:
        submission.read_manifest_net(str(tmp_path / "s.json"))
    assert f"manifest {tmp_path / 's.manifest.json'} is malformed: {words}" in str(said.value)


def test_a_manifest_of_a_standalone_net_is_one_sentence(tmp_path):
    (tmp_path / "s.manifest.json").write_text(json.dumps({"net": STANDALONE, "image_size": 32}))
    with pytest.raises(UserError, match="is malformed: it names a standalone net"):
        submission.read_manifest_net(str(tmp_path / "s.json"))


def test_a_manifest_with_a_mark_of_windows_is_read(tmp_path):
    text = json.dumps({"net": SUPERNET, "image_size": 32})
    (tmp_path / "s.manifest.json").write_text(text, encoding="utf-8-sig")
    assert submission.read_manifest_net(str(tmp_path / "s.json")) == (NARROW, 32, 10)


# ---- anything

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                    lambda deeper: st.lists(deeper, max_size=5)
                    | st.dictionaries(st.text(max_size=9), deeper, max_size=3))
PATHS = st.sampled_from([(data, path) for data, paths in (
    (SUPERNET, [("kind",), ("num_classes",), ("space",), *[("space", name) for name in SUPERNET["space"]],
                *[("space", name, i) for name in ("base_channels", "ratios", "depths", "codes") for i in range(4)]]),
    (STANDALONE, [("arch",), ("stem",), ("stages",), *[("stages", i) for i in range(4)], ("stages", 1, 0)]))
    for path in paths])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PATHS, JSON)
def test_any_json_is_a_net_or_a_sentence(place, value):
    try:
        what, classes = description.read(changed(*place[:1], *place[1], to=value))
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 300
    else:
        arch = what if isinstance(what, ArchConfig) else what.largest()
        assert 0 < arch.params(classes) and arch.macs(checks.MAX_IMAGE_SIZE, classes) < 2 ** 80
