"""Recipes: stages in steps, resumed inside any of them; names and hyper-parameters; what earlier versions called
them."""

import dataclasses
import hashlib
import json
import os
import re

import numpy as np
import paddle
import pytest
from small_runs import (CLASSES, FIXED_TEACHER, PER_EPOCH, SANDWICH, SETTINGS, SPACE, at, fit, fixed_teacher, images,
                        losses_of_step, newest, same, table, uniform_teacher)

from resnet48.nets.supernet import Supernet
from resnet48.system import config, options
from resnet48.system.errors import Stopped, UserError
from resnet48.training import checkpoint, loop, objectives, recipes, samplers
from resnet48.training.run import start

YAML_FILES = sorted(name for name in os.listdir(config.RECIPES) if name.endswith(".yaml"))


def run(settings):
    """Run it."""


def parse(*words):
    """The settings of a supernet's training that these words give."""
    return config.command_line("A program.", {"run": (run, options.SupernetSettings, None)}, ["run", *words])[1]


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)
    return write


def settings(folder, **changes):
    """Those of the small runs, for a supernet."""
    own = "arch", "mode", "dropout", "space"
    values = {name: value for name, value in config.as_data(SETTINGS).items() if name not in own}
    return options.SupernetSettings(**{**values, "save_dir": str(folder), "dyna_batch_size": 2, **changes})


def stage(**values):
    return options.StageSettings(**values)


def of_supernets():
    """The YAML files of configs/ that train a supernet, but for old names of others."""
    for name in YAML_FILES:
        with open(os.path.join(config.RECIPES, name)) as file:
            if re.search("^(sampler: |objective: |stages:)", file.read(), re.MULTILINE):
                yield name


SUPERNETS = list(of_supernets())


def small(name, folder):
    """The settings of a recipe for a run of two epochs of six steps, its own epochs shrunk, its stages equally long."""
    path = os.path.join(config.RECIPES, name)
    found = parse("--config", path)
    shrunk = {item: re.sub(r"(?<=_epochs=)[\d.]+", lambda match: str(float(match[0]) * 2 / found.max_epoch),
                           getattr(found, item)) for item in ("sampler", "objective")}
    stages = tuple(dataclasses.replace(each, epochs=1.0) for each in found.stages)
    return dataclasses.replace(found, **shrunk, stages=stages, save_dir=str(folder), batch_size=4, max_epoch=2,
                               warmup=0.5, lr=1.0, log_freq=3, num_workers=0, seed=3,
                               dyna_batch_size=min(found.dyna_batch_size, 3))


TWO_STAGES = (stage(epochs=1, sampler="uniform", objective="cross_entropy", lr=0.5), stage(epochs=1, warmup=0.5))


def trained(settings, stop_after=None, teacher=uniform_teacher, build_first=False):
    """The net's values after a run by its settings, or None where it was stopped after so many steps."""
    stages = recipes.supernet(settings, SPACE, teacher)
    if stop_after:
        stages = [stopping(each, stages, settings, stop_after) for each in stages]
    return fit_stages(stages, settings, build_first)


def stopping(each, stages, settings, stop_after):
    """The stage with a sampler that sends a stop signal at a step of the run."""
    spans = recipes.in_steps(stages, settings, PER_EPOCH, 1)
    first = next(span.first for span in spans if span.stage is each)

    def sample(seed, moment):
        if first + moment.step + 1 == stop_after:
            os.kill(os.getpid(), 15)
        return each.sampler(seed, moment)

    return dataclasses.replace(each, sampler=sample)


def fit_stages(stages, settings, build_first=False):
    if build_first:
        Supernet(SPACE, 5)
    paddle.seed(0)
    net = Supernet(SPACE, len(CLASSES))
    try:
        # A third of the images for samplers that adapt, so that a step sees the same number of them.
        loop.fit(net, stages, images(32 if any(stage.strata for stage in stages) else 24), settings)
    except Stopped:
        return None
    return {name: value.numpy() for name, value in net.state_dict().items()}


# ---- stages

def test_stages_share_out_the_run_in_proportion_to_their_epochs():
    stages = [dataclasses.replace(SANDWICH.stages()[0], epochs=epochs, lr=lr) for epochs, lr in ((3, 0.5), (1, None))]
    first, second = recipes.in_steps(stages, settings("", max_epoch=2, warmup=0.5, lr=1.0), PER_EPOCH, 1)
    assert (first.first, first.last, second.first, second.last) == (0, 9, 9, 12)
    scale = SETTINGS.batch_size / 256
    assert [first.lr(step) / scale for step in (0, 1, 2, 3)] == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.5])
    assert second.lr(9) / scale == pytest.approx(1.0)  # a schedule of its own, and no second warm-up
    assert first.seed == SETTINGS.seed != second.seed


@pytest.mark.parametrize("warmups, noted", [((1.0, 1.0), []), ((1.5, None), [1]), ((None, 2.0), [2])], ids=str)
def test_a_warm_up_longer_than_its_stage_is_noted(tmp_path, capsys, warmups, noted):
    stages = tuple(stage(epochs=1, warmup=warmup, sampler="largest", objective="cross_entropy") for warmup in warmups)
    run = settings(tmp_path, stages=stages, eval_freq=0)
    start(Supernet(SPACE, len(CLASSES)), recipes.supernet(run, SPACE), images(), run)
    assert noted_stages(capsys) == noted


@pytest.mark.parametrize("more, noted", [({"warmup": 2.0}, []), ({"warmup_steps": 13}, [1])], ids=str)
def test_a_dry_run_notes_a_warm_up_longer_than_the_real_run_of_12_steps(tmp_path, capsys, more, noted):
    run = settings(tmp_path, **more)
    loop.dry_run(Supernet(SPACE, len(CLASSES)), recipes.supernet(run, SPACE), images(), run, lambda few: None)
    assert noted_stages(capsys) == noted


def noted_stages(capsys):
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [int(words[5]) for words in lines if words[:5] == ["note:", "the", "warm-up", "of", "stage"]]


def test_a_sampler_counts_the_steps_of_its_stage():
    seen = []

    def sampler(seed, moment):
        seen.append((moment.step, moment.steps))
        return []

    stages = [recipes.Stage(sampler, objectives.Standalone(), ("loss",), epochs=epochs) for epochs in (1, 2)]
    for span in recipes.in_steps(stages, settings("", max_epoch=3), 2, 1):
        for step in range(span.first, span.last):
            span.archs(step)
    assert seen == [(0, 2), (1, 2), (0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("stops", [(3,), (6,), (9,), (2, 8)], ids=str)
def test_a_recipe_of_stages_resumes_bit_for_bit_inside_any_stage_and_between_two(tmp_path, stops):
    whole = settings(tmp_path / "whole", stages=TWO_STAGES)
    through, parts = trained(whole), dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    for stop in stops:
        assert trained(parts, stop, build_first=True) is None
        assert newest(tmp_path / "parts").state["step"] == stop
    assert same(trained(parts, build_first=True), through)
    assert (tmp_path / "parts" / "metrics.csv").read_text().splitlines()[0].endswith(
        "loss_random,loss_largest,loss_smallest")


def test_a_stage_takes_its_own_sampler_objective_and_rate_and_the_rest_from_the_recipe(tmp_path):
    trained(settings(tmp_path, stages=TWO_STAGES))
    rows = table(tmp_path)
    assert [bool(row["loss_random"]) for row in rows] == [True] * 3 + [False] * 3
    assert [bool(row["loss_largest"]) for row in rows] == [False] * 3 + [True] * 3
    assert float(rows[3]["lr"]) > float(rows[0]["lr"])


class Remembering(objectives.Objective):
    """The loss counts as often as the objective has been asked in this stage."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def step(self, net, archs, images, labels, gradients, moment):
        self.calls += 1
        for role, arch in archs:
            gradients.add(role, self.calls * self.cross_entropy(net(images, arch), labels))

    def state(self):
        return {"calls": self.calls}

    def load(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize("stops", [(4,), (6,), (8,)], ids=str)
def test_what_an_objective_remembers_is_in_the_checkpoint(tmp_path, stops):
    def stages():
        return [dataclasses.replace(SANDWICH.stages()[0], objective=Remembering()) for _ in range(2)]

    whole = settings(tmp_path / "whole", lr=0.1)
    through = fit_stages(stages(), whole)
    parts = dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    for stop in stops:
        made = stages()
        assert fit_stages([stopping(each, made, parts, stop) for each in made], parts) is None
    assert same(fit_stages(stages(), parts), through)
    assert newest(tmp_path / "whole").state["objective"] == {"calls": PER_EPOCH}


# ---- names

@pytest.mark.parametrize("name", YAML_FILES)
def test_every_recipe_names_what_there_is_and_says_how_it_is_used(name):
    kind = options.StandaloneSettings if "standalone" in name else options.SupernetSettings
    path = os.path.join(config.RECIPES, name)
    _, found = config.command_line("A program.", {"run": (run, kind, None)}, ["run", "--config", path])
    assert config.command_line("A program.", {"run": (run, kind, None)},
                               ["run", "--recipe", name.removesuffix(".yaml")]) == (run, found)
    with open(path) as file:
        assert file.read().startswith("# ")


@pytest.mark.parametrize("name", SUPERNETS)
def test_every_recipe_trains_and_resumes_bit_for_bit_inside_of_each_stage(tmp_path, name):
    whole = small(name, tmp_path / "whole")
    spans = recipes.in_steps(recipes.supernet(whole, SPACE, uniform_teacher), whole, PER_EPOCH, 1)
    through, parts = trained(whole), dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    for span in spans:
        assert trained(parts, stop_after=(span.first + span.last + 1) // 2) is None
    assert same(trained(parts), through)


NAMED = [small(name, "") for name in SUPERNETS]
NAMED_BY_RECIPES = {part.partition("(")[0] for each in NAMED for part in
                    (each.sampler, each.objective, *(text or "" for stage in each.stages for text in
                                                     (stage.sampler, stage.objective)))}


@pytest.mark.parametrize("sampler, objective", [
    *((name, "in_place_distillation") for name in sorted(samplers.SAMPLERS.keys() - NAMED_BY_RECIPES)),
    *(("sandwich", name) for name in sorted(objectives.OBJECTIVES.keys() - NAMED_BY_RECIPES))])
def test_every_sampler_and_objective_that_no_recipe_names_trains_and_resumes_bit_for_bit(tmp_path, sampler, objective):
    whole = settings(tmp_path / "whole", sampler=sampler, objective=objective, max_epoch=1)
    through, parts = trained(whole), dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    assert trained(parts, stop_after=2) is None
    assert same(trained(parts), through)


@pytest.mark.parametrize("sampler, epoch", [("biased", 0.0), ("progressive", 0.0)], ids=["no largest", "one arch"])
def test_every_objective_takes_the_archs_of_steps_that_are_no_sandwich(sampler, epoch):
    batch = paddle.randn([8, 3, 16, 16]), paddle.arange(8) % len(CLASSES)
    for objective in objectives.OBJECTIVES:
        (made,) = recipes.supernet(settings("", sampler=sampler, objective=objective), SPACE, uniform_teacher)
        net, moment = Supernet(SPACE, len(CLASSES)), at(0, epoch=epoch)
        losses = losses_of_step(made.objective, net, made.sampler(0, moment), *batch, moment=moment)
        assert losses and losses.keys() <= set(made.roles) and all(np.isfinite(float(each)) for each in losses.values())
        assert any(parameter.grad is not None for parameter in net.parameters())


def test_an_objective_without_its_teacher_is_refused():
    with pytest.raises(UserError,
                       match="--objective fixed_teacher distils from the full net, so it needs --pretrained"):
        recipes.supernet(settings("", objective="fixed_teacher"), SPACE)
    (made,) = recipes.supernet(settings("", objective="fixed_teacher"), SPACE, uniform_teacher)
    assert made.objective.teacher is uniform_teacher


def test_hyper_parameters_are_given_in_brackets_and_beat_the_settings():
    for text, expected in (("cross_entropy", 0.1), ("cross_entropy()", 0.1),
                           ("cross_entropy(label_smoothing=0.3)", 0.3), (" cross_entropy ( label_smoothing = 0 ) ", 0)):
        (made,) = recipes.supernet(settings("", objective=text, label_smoothing=0.1), SPACE)
        assert made.objective.label_smoothing == expected and isinstance(made.objective.label_smoothing, float)


# ---- layers

def test_a_recipe_lies_below_the_config_and_that_below_the_flags(yaml_file):
    path = yaml_file("recipe: uniform\nbatch_size: 32\nlr: 0.3\n")
    found = parse("--config", path, "--lr", "0.4")
    assert (found.sampler, found.objective, found.batch_size, found.lr, found.max_epoch) == (
        "uniform", "cross_entropy", 32, 0.4, 120)
    found = parse("--config", path, "--recipe", "sandwich", "--objective", "cross_entropy")
    assert (found.sampler, found.objective, found.batch_size) == ("sandwich", "cross_entropy", 32)


def test_a_flag_holds_for_every_stage_and_the_length_is_the_sum_of_theirs(yaml_file):
    path = yaml_file("stages:\n  - {epochs: 20, sampler: uniform, lr: 0.2}\n  - {epochs: 10}\n")
    found = parse("--config", path)
    assert found.max_epoch == 30 and found.stages == (stage(epochs=20, sampler="uniform", lr=0.2), stage(epochs=10))
    found = parse("--config", path, "--sampler", "sandwich", "--max_epoch", "3")
    assert found.max_epoch == 3 and found.sampler == "sandwich"
    assert found.stages == (stage(epochs=20, lr=0.2), stage(epochs=10))
    assert parse("--config", path, "--stages", "none").stages == ()


def test_resolved_settings_with_stages_read_back_the_same(yaml_file):
    found = parse("--config", yaml_file("stages:\n  - {epochs: 2, sampler: uniform}\n  - {epochs: 1.0}\n"))
    assert parse("--config", yaml_file(config.dump(found))) == found


@pytest.mark.parametrize("text, sentence", [
    ("stages: 3\n", "--stages is a list of mappings in a YAML file, got '3'"),
    ("stages: [3]\n", "--stages is a list of mappings in a YAML file"),
    ("stages: [{epoch: 3}]\n", "stages, item 1: unknown key 'epoch'; the nearest is epochs"),
    ("stages: [{epochs: 2}, {epochs: 0}]\n", "--epochs must be more than 0, got 0.0"),
    ("stages: [{epochs: 1.5}]\n", "--max_epoch takes a whole number, got 1.5"),
    ("recipe: nothing\n", "--recipe takes the name of a file in configs/ ("),
    ("recipe: ../configs/uniform\n", "--recipe takes the name of a file in configs/ (")])
def test_stages_and_recipes_that_make_no_sense_are_refused(yaml_file, text, sentence):
    with pytest.raises(UserError) as error:
        parse("--config", yaml_file(text))
    assert str(error.value).startswith(sentence)


# ---- what earlier versions said

@pytest.mark.parametrize("words, expected", [
    (("--recipe", "demo"), {"sampler": "uniform", "objective": "fixed_teacher", "max_epoch": 70}),
    (("--hold_unused",), {"freeze_unused": True}), (("--no-hold_unused",), {"freeze_unused": False}),
    (("--amp", "none"), {"precision": "fp32"}), (("--amp", "O1"), {"precision": "bf16"}),
    (("--amp", "O1", "--amp_dtype", "fp16"), {"precision": "fp16"}), (("--amp", "fp16"), {"precision": "fp16"}),
    (("--space", "pool"), {"space": "published"})], ids=lambda part: " ".join(part) if isinstance(part, tuple) else "")
def test_old_flags_and_old_yaml_files_mean_what_they_meant(yaml_file, words, expected):
    lines = {"--no-hold_unused": "hold_unused: false", "--hold_unused": "hold_unused: true"}
    pairs = [lines.get(words[0])] if len(words) == 1 else [
        f"{name[2:]}: {value}" for name, value in zip(words[::2], words[1::2])]
    for found in (parse(*words), parse("--config", yaml_file("\n".join(pairs)))):
        assert {name: getattr(found, name) for name in expected} == expected


def test_a_flag_under_its_old_name_beats_a_file_that_has_the_new_one(yaml_file):
    assert parse("--config", yaml_file("precision: bf16\n"), "--amp", "none").precision == "fp32"
    assert parse("--config", yaml_file("amp: O1\namp_dtype: fp16\n"), "--precision", "fp32").precision == "fp32"


def as_an_earlier_version(folder):
    """Rewrite the newest checkpoint's settings as the version before recipes were files did."""
    path = os.path.join(newest(folder).path, checkpoint.STATE)
    with open(path) as file:
        state = json.load(file)
    old = {name: value for name, value in state["settings"].items() if name not in (
        "sampler", "objective", "stages", "optimizer", "nesterov", "init", "precision", "freeze_unused")}
    state["settings"] = {**old, "recipe": "sandwich", "amp": "none", "amp_dtype": "bf16", "hold_unused": True,
                         "space": "pool"}
    del state["stage"], state["objective"], state["sha256"][checkpoint.STATE]
    content = {name: value for name, value in state.items() if name != "sha256"}
    state["sha256"][checkpoint.STATE] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    with open(path, "w") as file:
        json.dump(state, file)


def test_a_run_of_an_earlier_version_resumes_and_its_settings_still_count(tmp_path):
    whole = settings(tmp_path / "whole", freeze_unused=True)
    through, parts = trained(whole), dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    assert trained(parts, stop_after=8) is None
    as_an_earlier_version(tmp_path / "parts")
    for name, value in (("sampler", "uniform"), ("precision", "fp16"), ("freeze_unused", False), ("space", "full")):
        with pytest.raises(UserError, match=f"--{name} was {getattr(parts, name)} and is now {value}; a run"):
            trained(dataclasses.replace(parts, **{name: value}))
    assert same(trained(parts), through)


# ---- the optimizer is part of a recipe

OPTIMIZERS = {"nesterov": {"nesterov": True}, "adamw": {"optimizer": "adamw", "lr": 0.05}}


@pytest.mark.parametrize("kind", [SANDWICH, FIXED_TEACHER], ids=["sandwich", "subnets that leave blocks out"])
@pytest.mark.parametrize("changes", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_resumes_bit_for_bit_also_with_frozen_weights(tmp_path, kind, changes):
    whole = dataclasses.replace(settings(tmp_path / "whole"), freeze_unused=True, no_decay_norm=True, **changes)
    through, parts = fit(kind, whole), dataclasses.replace(whole, save_dir=str(tmp_path / "parts"))
    assert fit(kind, parts, stop_after=2) is None
    assert fit(kind, parts, stop_after=9, build_first=True) is None
    assert same(fit(kind, parts, build_first=True), through)
    plain = dataclasses.replace(whole, save_dir=str(tmp_path / "plain"), nesterov=False, optimizer="sgd")
    assert not same(fit(kind, plain), through)


def test_a_teacher_is_not_shared_by_objectives():
    one, other = fixed_teacher(), objectives.FixedTeacher()
    assert one.teacher is uniform_teacher and other.teacher is None


