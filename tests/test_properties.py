"""Whatever a file or a flag holds, what comes out is a result or our own error, in one line of bounded length.

A few seconds each; `sh tests/run.sh --hypothesis-profile long -k properties` looks for much longer.
"""

import copy
import json
import os
import shutil

import pytest
from commands import SMALLEST, write_list
from hypothesis import HealthCheck, given, settings, strategies
from small_runs import SANDWICH, SETTINGS, fit

from resnet48.evaluation import forecast
from resnet48.evaluation.journal import Journal
from resnet48.evaluation.journal_plan import PLAN
from resnet48.ranking import submission
from resnet48.space import arch_list
from resnet48.space.arch import FULL, PUBLISHED, SPACES, ArchConfig, ArchError, SearchSpace
from resnet48.system import config, options
from resnet48.system.errors import UserError
from resnet48.training import checkpoint

pytestmark = pytest.mark.slow

LONGEST_MESSAGE = 2000  # characters, beside the paths in it
LEAVES = strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text()
JSON = strategies.recursive(LEAVES, lambda inner: strategies.lists(inner, max_size=4) |
                            strategies.dictionaries(strategies.text(), inner, max_size=4), max_leaves=8)
IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@strategies.composite
def changed(draw, document):
    """A copy of a document in which one value is another one, or is gone."""
    document = copy.deepcopy(document)
    where = document
    while True:
        key = draw(strategies.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if isinstance(where[key], (dict, list)) and where[key] and draw(strategies.booleans()):
            where = where[key]
            continue
        if draw(strategies.booleans()):
            where[key] = draw(JSON)
        else:
            del where[key]
        return document


def attempt(function, *arguments):
    """The result, or None after our own error, which must be a sentence that a terminal can show."""
    try:
        return function(*arguments)
    except UserError as error:
        message = str(error)
        assert message and len(message) < LONGEST_MESSAGE and "\n" not in message
        message.encode()
        return None


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content))
    return str(path)


# ---- arch codes

@given(strategies.text() | strategies.text("0123456789", min_size=49, max_size=54) | JSON)
def test_any_code_is_an_arch_or_an_arch_error(code):
    for space in SPACES.values():
        try:
            assert len(ArchConfig.parse(code, space).code) == 51
        except ArchError as error:
            assert "\n" not in str(error) and len(str(error)) < LONGEST_MESSAGE


@given(strategies.integers(0, 2 ** 32), strategies.integers(0, 50), strategies.characters())
def test_a_code_with_one_character_changed_is_an_arch_or_an_arch_error(seed, place, character):
    import numpy as np
    code = PUBLISHED.sample(np.random.default_rng(seed)).code
    assert ArchConfig.parse("1" + code, PUBLISHED) == ArchConfig.parse(code, FULL)
    try:
        parsed = ArchConfig.parse(code[:place] + character + code[place + 1:], FULL)
        assert parsed.macs() > 0 and len(parsed.nodes()) == 1 + sum(parsed.depths)
    except ArchError:
        pass


# ---- lists, submissions, manifests

LIST = {"arch1": {"acc": 0.0, "arch": "1" + SMALLEST}, "arch2": {"acc": 3.5, "arch": FULL.largest().code}}


@IN_A_FOLDER
@given(JSON | changed(LIST) | strategies.binary())
def test_any_file_is_a_list_of_archs_or_an_error(tmp_path, content):
    found = attempt(arch_list.read_accuracies, write(tmp_path / "list.json", content), "arch list")
    if found:
        assert all(isinstance(entry.arch, ArchConfig) for entry in found[0])


@IN_A_FOLDER
@given(changed(LIST) | JSON, strategies.data())
def test_any_submission_with_any_manifest_is_verified_or_refused(tmp_path, content, data):
    listed = write_list(tmp_path / "list.json", *(entry["arch"] for entry in LIST.values()))
    path = write(tmp_path / "submission.json", content)
    manifest = {"submission_sha256": "0" * 64, "arch_list_sha256": "0" * 64, "checkpoint_sha256": "0" * 64, "archs": 2,
                "partial": False, "val_images": 9, "image_size": 32, "settings": {}, "versions": {},
                "net": {"kind": "supernet", "space": json.loads(json.dumps(FULL.to_dict())), "num_classes": 10}}
    write(tmp_path / "submission.manifest.json", data.draw(changed(manifest) | JSON))
    for finding in attempt(submission.verify, path, listed) or []:
        assert "\n" not in finding
    found = attempt(submission.read_manifest_net, path)
    if found:
        space, image_size, classes = found
        assert isinstance(space, SearchSpace) and image_size >= 1 and classes >= 1


# ---- settings

def parse(kind, path):
    return config.command_line("A program.", {"run": (parse, kind, None)}, ["run", "--config", path])[1]


parse.__doc__ = "Parse it."


@pytest.mark.parametrize("kind", [options.SupernetSettings, options.EvalSettings])
@IN_A_FOLDER
@given(strategies.binary() | strategies.text().map(str.encode))
def test_any_bytes_are_settings_or_an_error(tmp_path, kind, content):
    attempt(parse, kind, write(tmp_path / "any.yaml", content))


@IN_A_FOLDER
@given(strategies.dictionaries(strategies.sampled_from(sorted(options.SupernetSettings.__dataclass_fields__)), JSON,
                               max_size=3))
def test_any_values_are_settings_or_an_error_and_settings_read_back_the_same(tmp_path, values):
    found = attempt(parse, options.SupernetSettings, write(tmp_path / "some.yaml", values))
    if found:
        path = tmp_path / "again.yaml"
        path.write_text(config.dump(found))
        assert parse(options.SupernetSettings, str(path)) == found


# ---- plans of evaluations

PLAN_CONTENT = {"inputs": {"weights": "0" * 64, "amp": "none", "image_size": 32}, "codes": [["arch1", "1" + SMALLEST]],
                "images": 40, "chunk": 16, "shards": 1}


@IN_A_FOLDER
@given(changed(PLAN_CONTENT) | JSON | strategies.binary())
def test_any_plan_has_a_status_or_is_an_error(tmp_path, content):
    write(tmp_path / PLAN, content)
    found = attempt(Journal, str(tmp_path))
    if found:
        assert attempt(forecast.status_text, found)


# ---- checkpoints

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    import dataclasses
    folder = tmp_path_factory.mktemp("trained")
    fit(SANDWICH, dataclasses.replace(SETTINGS, save_dir=str(folder), max_epoch=1))
    return folder


@IN_A_FOLDER
@given(strategies.data())
def test_any_state_beside_a_checkpoint_is_read_or_an_error(tmp_path, trained, data):
    shutil.copy(trained / "final.pdparams", tmp_path / "final.pdparams")
    with open(trained / "final.json") as file:
        state = json.load(file)
    write(tmp_path / "final.json", data.draw(changed(state) | changed({"net": state["net"]}) | JSON))
    found = attempt(checkpoint.load, str(tmp_path / "final.pdparams"))
    if found:
        attempt(checkpoint.build, found)


@IN_A_FOLDER
@given(strategies.data())
def test_a_file_of_weights_with_any_byte_changed_is_read_or_an_error(tmp_path, trained, data):
    content = bytearray((trained / "final.pdparams").read_bytes())
    kind = data.draw(strategies.sampled_from(["byte", "cut", "other"]))
    place = data.draw(strategies.integers(0, len(content) - 1))
    if kind == "byte":
        content[place] = data.draw(strategies.integers(0, 255))
    content = content[:place] if kind == "cut" else data.draw(strategies.binary()) if kind == "other" else content
    found = attempt(checkpoint.load, write(tmp_path / "foreign.pdparams", bytes(content)))
    if found:
        attempt(checkpoint.build, found)
    assert sorted(os.listdir(tmp_path)) == ["foreign.pdparams"]
