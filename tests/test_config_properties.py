"""YAML files of any content: settings, or a refusal in one short sentence."""

import dataclasses
from dataclasses import dataclass

import pytest
import yaml

from resnet48.system import config
from resnet48.system.config import option
from resnet48.system.errors import UserError

hypothesis = pytest.importorskip("hypothesis", reason="tests/requirements.txt names it")
strategies = hypothesis.strategies
#: The folder of a test is the same for all its examples, and the same examples are tried every time.
PATIENT = hypothesis.settings(deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))


@dataclass
class Recipe(config.Settings):
    """One setting of every kind."""

    image_dir: str | None = option(None, "a folder", path=True)
    image_size: int | None = option(None, "in pixels", ge=1, unset="auto")
    channels: str | None = option(None, "widths", listable=True, unset="none")
    batch_size: int = option(256, "images", ge=1)
    lr: float = option(0.1, "learning rate", gt=0)
    save_dir: str = option("output", "a folder", path=True)
    dry_run: bool = option(False, "two steps only")


def run(settings):
    """Run it."""


def parse(path):
    """The settings in a YAML file."""
    return config.command_line("A program.", {"run": (run, Recipe, path)}, ["run"])[1]


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(tmp_path / "recipe.yaml")
    return write


#: Texts of the signs that mean something in YAML, and any other.
YAML_LIKE = strategies.text(strategies.one_of(
    strategies.sampled_from("lr batch_sizechannelsage0123:.-~!&*?[]{},|>'\"#\n \t%@"), strategies.characters()),
    max_size=60)
SMALL_VALUES = strategies.recursive(
    strategies.one_of(strategies.none(), strategies.booleans(), strategies.integers(), strategies.floats(),
                      strategies.text(max_size=200), strategies.dates()),
    lambda inner: strategies.one_of(strategies.lists(inner, max_size=3),
                                    strategies.dictionaries(strategies.text(max_size=5), inner, max_size=3)))


def only_our_own_error(path):
    try:
        parse(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        str(error).encode()


@PATIENT
@hypothesis.given(text=YAML_LIKE)
def test_any_text_is_settings_or_refused_in_a_sentence(yaml_file, text):
    only_our_own_error(yaml_file(text.encode("utf-8", "surrogatepass")))


@PATIENT
@hypothesis.given(content=strategies.dictionaries(strategies.sampled_from([item.name for item in
                                                                           dataclasses.fields(Recipe)]), SMALL_VALUES))
def test_settings_of_any_type_are_taken_or_refused_in_a_sentence(yaml_file, content):
    only_our_own_error(yaml_file(yaml.safe_dump(content, allow_unicode=True)))


@PATIENT
@hypothesis.given(text=strategies.text(min_size=1, max_size=100).filter(lambda text: text != "none"))
def test_any_text_reads_back_as_it_was_dumped(yaml_file, text):
    settings = Recipe(channels=text)
    assert parse(yaml_file(config.dump(settings))) == settings
