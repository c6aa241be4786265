import dataclasses
from dataclasses import dataclass

import pytest

from resnet48.system import config, options
from resnet48.system.config import option
from resnet48.system.errors import UserError, exit_on_user_error, shown

CONFIGS = [kind for kind in vars(options).values() if dataclasses.is_dataclass(kind)]


@dataclass
class Recipe(config.Settings):
    """One setting of every kind."""

    image_dir: str | None = option(None, "a folder", path=True)
    image_size: int | None = option(None, "in pixels", ge=1, unset="auto")
    channels: str | None = option(None, "widths", listable=True, unset="none")
    batch_size: int = option(256, "images", ge=1)
    lr: float = option(0.1, "learning rate", gt=0)
    keep: float = option(0.5, "a fraction", ge=0, le=1)
    save_dir: str = option("output", "a folder", path=True)
    device: str = option("auto", "auto, cpu or gpu", choices=("auto", "cpu", "gpu"))
    dry_run: bool = option(False, "two steps only")
    seed: int = option(0, "of everything random", ge=0)


def run(settings):
    """Run it."""


def score(settings):
    """Score it."""


def parse(*words, default_file=None):
    """The config that `run` with these words gives."""
    function, settings = config.command_line("A program.", {"run": (run, Recipe, default_file),
                                                            "score": (score, options.ScoreSettings, None)},
                                             ["run", *words])
    assert function is run
    return settings


def refusal(*words, default_file=None):
    """The sentence that refuses these words."""
    with pytest.raises(UserError) as caught:
        parse(*words, default_file=default_file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)
    return write


# ---- where a value comes from

def test_a_flag_beats_the_yaml_file_and_that_beats_the_default(yaml_file):
    path = yaml_file("batch_size: 8\nlr: 0.2\n")
    settings = parse("--config", path, "--lr", "0.3")
    assert (settings.batch_size, settings.lr, settings.keep) == (8, 0.3, 0.5)


def test_a_flag_that_says_the_default_still_beats_the_yaml_file(yaml_file):
    path = yaml_file("batch_size: 8\ndry_run: true\nimage_size: 64\n")
    settings = parse("--config", path, "--batch_size", "256", "--no-dry_run", "--image_size", "auto")
    assert settings == Recipe()


def test_a_command_reads_its_own_yaml_file_unless_config_names_another(yaml_file):
    own, other = yaml_file("batch_size: 8\n"), yaml_file("lr: 0.2\n", "other.yaml")
    assert parse(default_file=own) == Recipe(batch_size=8)
    assert parse("--config", other, default_file=own) == Recipe(lr=0.2)


def test_an_empty_yaml_file_changes_nothing(yaml_file):
    assert parse("--config", yaml_file("# only a comment\n")) == Recipe()


def test_the_command_chooses_the_function_and_its_settings():
    function, settings = config.command_line("A program.", {"run": (run, Recipe, None),
                                                            "score": (score, options.ScoreSettings, None)},
                                             ["score", "--truth", "b.json"])
    assert function is score
    assert settings == options.ScoreSettings(truth="b.json")


# ---- types, the same from a flag and from YAML

@pytest.mark.parametrize("name, text, value", [
    ("batch_size", "32", 32), ("lr", "1e-3", 0.001), ("lr", "2", 2.0), ("keep", "0", 0.0), ("keep", "1", 1.0),
    ("image_dir", "photos", "photos"), ("save_dir", "2022", "2022"), ("device", "cpu", "cpu"),
    ("image_size", "64", 64), ("seed", "0", 0)])
def test_a_value_has_the_type_of_its_field_from_a_flag_and_from_yaml(yaml_file, name, text, value):
    for settings in (parse(f"--{name}", text), parse(f"--{name}={text}"),
                     parse("--config", yaml_file(f"{name}: {text}\n"))):
        found = getattr(settings, name)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["null", "~", "", "Null", "NULL", "# a remark"])
@pytest.mark.parametrize("name", ["image_dir", "image_size", "channels"])
def test_nothing_in_a_yaml_file_takes_an_optional_setting_back(yaml_file, name, text):
    own = yaml_file("image_dir: photos\nimage_size: 64\nchannels: 8,16\n")
    _, settings = config.command_line("A program.", {"run": (run, Recipe, own)}, ["run"])
    assert getattr(settings, name) is not None
    assert getattr(parse("--config", yaml_file(f"{name}: {text}\n", "other.yaml")), name) is None


@pytest.mark.parametrize("name, word", [("image_size", "auto"), ("channels", "none")])
def test_the_word_that_the_help_names_takes_an_optional_setting_back(yaml_file, capsys, name, word):
    path = yaml_file("image_size: 64\nchannels: 8,16\n")
    assert getattr(parse("--config", path, f"--{name}", word), name) is None
    assert getattr(parse("--config", yaml_file(f"{name}: {word}\n")), name) is None
    with pytest.raises(SystemExit):
        parse("--help")
    assert f"({word}: as when left out)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("word", ["none", "null", "auto", "None", "NULL"])
def test_no_word_stands_for_the_absence_of_a_path_or_of_what_has_another_word(yaml_file, word):
    assert parse("--image_dir", word).image_dir == word
    assert parse("--config", yaml_file(f"image_dir: '{word}'\n")).image_dir == word
    if word != "auto":
        assert "takes a whole number" in refusal("--image_size", word)
    assert parse("--channels", word).channels == (None if word == "none" else word)


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_setting_that_is_a_path_is_declared_as_one(kind):
    for item in dataclasses.fields(kind):
        text = item.metadata["help"]
        named = any(word in text for word in ("file", "folder", "path", ".pdparams", "arch list", "accuracies go"))
        assert item.metadata["path"] == (named and item.type in ("str", "str | None", str, str | None)), item.name


@pytest.mark.parametrize("text", ["~/photos", "~"])
def test_a_tilde_is_the_home_folder_from_flags_and_from_yaml(yaml_file, monkeypatch, text):
    monkeypatch.setenv("HOME", "/home/someone")
    expected = text.replace("~", "/home/someone")
    path = yaml_file(f"image_dir: '{text}'\nsave_dir: '{text}'\ndevice: cpu\n")
    for settings in (parse(f"--image_dir={text}", "--save_dir", text), parse("--config", path)):
        assert (settings.image_dir, settings.save_dir) == (expected, expected)
    assert parse("--channels", "~/a").channels == "~/a"
    assert parse("--image_dir", "a~/b").image_dir == "a~/b"


@pytest.mark.parametrize("value, words", [
    ("a\0b", "holds a NUL character"), ("x" * 256, "a path of at most 4095 bytes with parts of at most 255"),
    ("x/" * 3000, "got one of 6000 characters"), ("\ud800", "holds half a character")])
def test_what_no_system_takes_for_a_path_is_refused_at_the_door(value, words):
    with pytest.raises(UserError) as caught:
        config.build(Recipe, {"image_dir": value})
    assert words in str(caught.value) and len(str(caught.value)) < 300
    str(caught.value).encode()


# ---- one meaning for one text

@pytest.mark.parametrize("name, text, value", [
    ("batch_size", "010", 10), ("seed", "0123", 123), ("batch_size", "16.0", 16), ("lr", "010", 10.0),
    ("lr", "1e3", 1000.0), ("channels", "1.10", "1.10"), ("channels", "2022-13-45", "2022-13-45"),
    ("channels", "2022-01-01", "2022-01-01"), ("channels", "yes", "yes"), ("channels", "0x10", "0x10"),
    ("channels", "1_0", "1_0"), ("channels", "1:30", "1:30"), ("save_dir", "no", "no"), ("save_dir", "012", "012")])
def test_a_text_means_the_same_in_yaml_and_behind_a_flag(yaml_file, name, text, value):
    for settings in (parse(f"--{name}", text), parse("--config", yaml_file(f"{name}: {text}\n"))):
        assert getattr(settings, name) == value and type(getattr(settings, name)) is type(value)


@pytest.mark.parametrize("text", ["1:30", "0x10", "0b11", "0o17", "1_000", "yes", "2022-01-01", "\u0663", "9" * 5000])
def test_what_only_some_read_as_a_number_is_none(yaml_file, text):
    for name in ("batch_size", "lr"):
        said = {refusal(f"--{name}", text), refusal("--config", yaml_file(f"{name}: {text}\n"))}
        assert len(said) == 1 and "number" in said.pop()


@pytest.mark.parametrize("text, value", [("true", True), ("True", True), ("'true'", True), ("false", False),
                                         ("FALSE", False)])
def test_a_boolean_in_yaml_is_true_or_false(yaml_file, text, value):
    assert parse("--config", yaml_file(f"dry_run: {text}\n")).dry_run is value


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "1", "0", "y", "[true]"])
def test_no_other_word_is_a_boolean(yaml_file, text):
    assert "--dry_run takes true or false, got " in refusal("--config", yaml_file(f"dry_run: {text}\n"))


@pytest.mark.parametrize("text, words", [
    ("lr: 0.1\nbatch_size: 8\nlr: 0.9\n", "line 3: the key 'lr' occurs twice, first in line 1"),
    ("lr: 0.1\n'lr': 0.1\n", "line 2: the key 'lr' occurs twice, first in line 1"),
    ("channels: &a 8\nsave_dir: *a\n", "line 1: anchors and aliases"), ("lr: *a\n", "line 1: anchors and aliases"),
    ("lr: !!float 1\n", "line 1: tags such as"), ("lr: !x 1\n", "line 1: tags such as '!x'"),
    ("lr: !!set {a, b}\n", "line 1: tags such as"), ("lr: !!python/name:os.system\n", "line 1: tags such as"),
    ("lr: 1\n---\nlr: 2\n", "line 2: a second document begins"), ("? [a]\n: 1\n", "line 1: a key must be a name"),
    ("a" * 100_001, "is longer than 100,000 characters"),
    ("[" * 20_000, "line 1: lists and mappings are nested more than 10 deep"),
    ("lr: '\n", "is not YAML: found unexpected end of stream in line 2, column 1"), ("lr: \0", "is not YAML: ")])
def test_what_yaml_readers_disagree_about_is_refused_with_its_line(yaml_file, text, words):
    path = yaml_file(text)
    message = refusal("--config", path)
    assert message.startswith(f"config {shown(path)}") and words in message


def test_an_alias_bomb_is_refused_before_it_grows(yaml_file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "anchors and aliases" in refusal("--config", yaml_file("\n".join([*lines, "batch_size: *a9"])))


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(yaml_file):
    assert parse("--config", yaml_file(b"\xef\xbb\xbfbatch_size: 8\r\nlr: 0.5\r\n")) == Recipe(batch_size=8, lr=0.5)


def test_lists_are_for_settings_of_parts(yaml_file):
    assert parse("--config", yaml_file("channels: [08, 1.10, a]\n")).channels == "08,1.10,a"
    for text in ("save_dir: [a, b]", "channels: [[1], 2]", "channels: [1, ~]", "channels: [{a: 1}]"):
        assert "takes text, got [" in refusal("--config", yaml_file(text + "\n"))


def test_two_names_of_one_setting_in_one_file_are_refused(yaml_file):
    with pytest.raises(UserError, match="amp and precision are two names of one setting"):
        config.command_line("A program.", {"run": (run, options.EvalSettings, None)},
                            ["run", "--config", yaml_file("amp: O1\nprecision: fp32\n")])


def test_the_lengths_of_stages_are_texts_too_and_add_up(yaml_file):
    path = yaml_file("stages:\n- {epochs: 08}\n- {epochs: 0.5, sampler: ~}\n- epochs: 1.5\n")
    _, settings = config.command_line("A program.", {"run": (run, options.SupernetSettings, None)},
                                      ["run", "--config", path])
    assert settings.max_epoch == 10 and [stage.epochs for stage in settings.stages] == [8.0, 0.5, 1.5]
    _, settings = config.command_line("A program.", {"run": (run, options.SupernetSettings, None)},
                                      ["run", "--config", path, "--stages", "none", "--max_epoch", "3"])
    assert settings.stages == () and settings.max_epoch == 3


@pytest.mark.parametrize("words", [
    ("--lr", "x" * 10_000), ("--batch_size", "8\n" * 5000), ("--device", "\udcff" * 200), ("y" * 5000,),
    ("--" + "z" * 5000, "1"), ("--save_dir", "a/" * 5000), ("--config", "\udcff\n" * 50)])
def test_a_message_repeats_little_of_what_it_was_given_in_one_line(words):
    message = refusal(*words)
    assert len(message) < 1200  # half a character takes six to show
    message.encode()


def test_a_yaml_message_repeats_little_of_what_it_was_given(yaml_file):
    for text in (f"lr: {'x' * 10_000}", f"{'k' * 10_000}: 1", f"lr: {list(range(10_000))}", f"lr: !{'t' * 10_000} 1",
                 f"stages: [{{{'k' * 10_000}: 1}}]", 'lr: "\\ud800\\n"', f"lr: [{'{' * 10_000}"):
        message = refusal("--config", yaml_file(text))
        assert len(message) < 600
        message.encode()


def test_booleans_are_switched_by_x_and_no_x(yaml_file):
    assert parse("--dry_run").dry_run is True
    assert parse("--no-dry_run").dry_run is False
    path = yaml_file("dry_run: true\n")
    assert parse("--config", path).dry_run is True
    assert parse("--config", path, "--no-dry_run").dry_run is False


@pytest.mark.parametrize("name, text, words", [
    ("batch_size", "many", "--batch_size takes a whole number, got 'many'"),
    ("batch_size", "1.5", "--batch_size takes a whole number, got"),
    ("batch_size", "1e3", "--batch_size takes a whole number, got"),
    ("batch_size", "none", "--batch_size takes a whole number, got 'none'"),
    ("image_size", "big", "--image_size takes a whole number, got 'big'"),
    ("lr", "fast", "--lr takes a number, got 'fast'"),
    ("lr", "nan", "--lr takes a finite number, got nan"),
    ("lr", "inf", "--lr takes a finite number, got inf"),
    ("batch_size", "0", "--batch_size must be 1 or more, got 0"),
    ("image_size", "-4", "--image_size must be 1 or more, got -4"),
    ("seed", "-1", "--seed must be 0 or more, got -1"),
    ("lr", "0", "--lr must be more than 0, got 0.0"),
    ("keep", "1.01", "--keep must be 1 or less, got 1.01"),
    ("device", "tpu", "--device takes auto, cpu, gpu; got 'tpu'")])
def test_a_wrong_type_or_range_is_refused_from_a_flag_and_from_yaml(yaml_file, name, text, words):
    assert refusal(f"--{name}", text).startswith(words)
    assert refusal("--config", yaml_file(f"{name}: {text}\n")).startswith(words)


@pytest.mark.parametrize("line, words", [
    ("batch_size: true", "--batch_size takes a whole number, got 'true'"),
    ("batch_size: [1, 2]", "--batch_size takes a whole number, got ['1', '2']"),
    ("batch_size: .inf", "--batch_size takes a whole number, got '.inf'"),
    ("batch_size: inf", "--batch_size takes a whole number, got 'inf'"),
    ("batch_size:", "--batch_size takes a whole number, got nothing"),
    ("lr: false", "--lr takes a number, got 'false'"),
    ("lr: {a: 1}", "--lr takes a number, got {'a': '1'}"),
    ("dry_run: 1", "--dry_run takes true or false, got '1'"),
    ("save_dir:", "--save_dir takes text, got nothing"),
    ("save_dir: {a: 1}", "--save_dir takes text, got {'a': '1'}")])
def test_a_yaml_value_of_another_kind_is_refused(yaml_file, line, words):
    assert refusal("--config", yaml_file(line + "\n")) == words


def test_base_channels_may_be_a_yaml_list_or_text(yaml_file):
    for text in ("[8, 16, 32, 64]", "8,16,32,64", "'8,16,32,64'"):
        path = yaml_file(f"base_channels: {text}\n")
        _, settings = config.command_line("A program.", {"run": (run, options.SupernetSettings, None)},
                                          ["run", "--config", path])
        assert settings.channels() == (8, 16, 32, 64)


@pytest.mark.parametrize("text", ["8,16,x,64", "8;16", "", "8,,16,32"])
def test_base_channels_that_are_not_numbers_are_refused(text):
    with pytest.raises(UserError, match="--base_channels takes four whole numbers"):
        options.SpaceSettings(base_channels=text).channels()


# ---- names

@pytest.mark.parametrize("flag, nearest", [
    ("--batchsize", "--batch_size"), ("--savedir", "--save_dir"), ("--dryrun", "--dry_run"),
    ("--imagedir", "--image_dir"), ("--confg", "--config"), ("-lr", "--lr")])
def test_an_unknown_flag_names_the_nearest(flag, nearest):
    for words in ((flag, "1"), (f"{flag}=1",), ("--seed", "1", flag)):
        assert refusal(*words) == f"unknown flag {flag}; the nearest is {nearest}"


@pytest.mark.parametrize("flag", ["--image", "--batch", "--dev", "--dry", "--no-dry", "--conf"])
def test_flags_are_never_abbreviated(flag):
    assert refusal(flag, "1").startswith(f"unknown flag {flag}; the nearest is --")


def test_an_unknown_yaml_key_names_the_file_and_the_nearest(yaml_file):
    path = yaml_file("batchsize: 8\n")
    assert refusal("--config", path) == f"config {shown(path)}: unknown key 'batchsize'; the nearest is batch_size"
    assert refusal(default_file=path) == f"config {shown(path)}: unknown key 'batchsize'; the nearest is batch_size"
    assert "unknown key '3'" in refusal("--config", yaml_file("3: 8\n"))


def test_a_missing_or_unknown_command_names_those_there_are():
    commands = {"run": (run, Recipe, None), "score": (score, options.ScoreSettings, None)}
    with pytest.raises(UserError, match="missing command: run, score"):
        config.command_line("A program.", commands, [])
    with pytest.raises(UserError, match="invalid choice: 'rnu' .choose from '?run'?, '?score"):
        config.command_line("A program.", commands, ["rnu"])


def test_a_stray_word_and_a_flag_without_its_value_are_refused():
    assert refusal("photos") == "unexpected argument 'photos'"
    assert refusal("--dry_run", "true") == "unexpected argument 'true'"
    assert refusal("--lr") == "argument --lr: expected one argument"


@pytest.mark.parametrize("content, words", [
    ("- batch_size: 8\n", "must hold `name: value` lines, found a list"),
    ("batch_size\n", "must hold `name: value` lines, found text"),
    ("batch_size: [8\n", "is not YAML"), (b"\xff\xfe\x00", "is not YAML")])
def test_a_yaml_file_that_is_not_a_mapping_is_refused_by_name(yaml_file, content, words):
    path = yaml_file(content)
    assert refusal("--config", path).startswith(f"config {shown(path)} {words}")


def test_a_missing_yaml_file_is_refused_by_name(tmp_path):
    assert refusal("--config", str(tmp_path / "no.yaml")) == (
        f"cannot read the config {shown(tmp_path / 'no.yaml')}: No such file or directory")
    assert refusal("--config", str(tmp_path)).startswith(f"cannot read the config {shown(tmp_path)}: ")


def test_require_names_the_missing_setting_and_what_it_is():
    with pytest.raises(UserError, match="^--archs is needed: arch list in the official JSON format$"):
        config.require(options.EvalSettings(checkpoint="run"), "checkpoint", "archs")
    config.require(options.EvalSettings(checkpoint="run", archs="list.json"), "checkpoint", "archs")


# ---- printing

@pytest.mark.parametrize("settings", [
    Recipe(), Recipe(image_dir="photos", image_size=64, batch_size=8, lr=1e-5, save_dir="a: b #c", dry_run=True),
    Recipe(save_dir="no", image_dir="123", keep=0.0), Recipe(save_dir="none"), Recipe(image_dir="null"),
    Recipe(channels="010", save_dir="1:30", image_dir="2022-01-01"),
    Recipe(channels=" a\n b \t\"' #: ", save_dir="a  b" * 60),
    Recipe(save_dir="\udcff\u4e2d", channels="\ud800\x00\x85\u2028", lr=1e300)], ids=repr)
def test_a_dumped_config_reads_back_the_same(yaml_file, settings):
    assert parse("--config", yaml_file(config.dump(settings))) == settings


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_the_defaults_of_every_config_are_allowed_and_read_back(yaml_file, kind):
    defaults = kind()
    assert config.build(kind, dataclasses.asdict(defaults)) == defaults
    path = yaml_file(config.dump(defaults))
    assert config.command_line("A program.", {"run": (run, kind, path)}, ["run"]) == (run, defaults)


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_the_help_explains_every_setting_and_its_default(capsys, monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as caught:
        config.command_line("A program.", {"run": (run, kind, None)}, ["run", "--help"])
    assert caught.value.code == 0
    paragraphs = [" ".join(text.split()) for text in capsys.readouterr().out.split("\n  --")[1:]]
    shown = {text.split()[0].rstrip(","): text for text in paragraphs}
    for item in dataclasses.fields(kind):
        text = shown.pop(item.name)
        assert item.metadata["help"] in text
        if item.default not in (None, "", ()) and not isinstance(item.default, bool):
            assert text.endswith(f"[{item.default}]")
    assert set(shown) == {"config", *["recipe"] * kind.recipes}


def test_a_user_error_ends_a_program_with_one_sentence_and_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        exit_on_user_error(lambda: parse("--batchsize", "8"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: unknown flag --batchsize; the nearest is --batch_size\n"


@pytest.mark.parametrize("value, expected", [("auto", None), (None, None), ("16", 16)])
def test_what_is_chosen_automatically_when_left_out_can_be_asked_for_by_name(value, expected):
    assert config.build(options.EvalSettings, {"chunk": value}).chunk == expected


def test_a_character_that_json_writes_as_two_is_one(yaml_file):
    path = yaml_file('channels: "\\ud800\\udc00"\n')
    assert parse("--config", path).channels == parse("--channels", "\U00010000").channels == "\U00010000"
