"""A study as a whole: it is planned at equal cost, shared by processes, goes on after a kill, and reports."""

import dataclasses
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from commands import ROOT, call, command, environment, good, image_folder, run
from processes import start

from resnet48.space.arch import FULL
from resnet48.study import archs, plan, runner
from resnet48.system import config, options
from resnet48.system.errors import UserError
from resnet48.training import tensor_files

SHARED = {"space": "full", "base_channels": "2,4,8,16", "divisor": 1, "image_size": 32, "batch_size": 8, "warmup": 0,
          "num_workers": 0, "calib_images": 8}
FILE = {"spread": 4, "bands": 2, "subnet_epochs": 4, "random_weights": 1, "resamples": 100, "shared": SHARED,
        "truth": {"max_epoch": 1}, "scores": "top1,cross_entropy,macs_hybrid",
        "supernets": [{"name": "sandwich", "recipe": "sandwich", "seeds": "0,1", "dyna_batch_size": 2},
                      {"name": "one by one", "recipe": "uniform", "seeds": "0", "dyna_batch_size": 1}],
        "contrasts": [{"one": "sandwich", "other": "one by one"}, {"one": "sandwich", "other": "macs"}]}
DRAWS = 200
TASKS = 6 + 3 + 3 + 4  # trainings of six archs, of three of them again, of supernets; evaluations


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Choosing archs is another test's matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archs, "DRAWS", DRAWS)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("study") / "images")


def written(folder, images, **changes):
    """A study file in a folder; its path as text."""
    content = {"output": str(folder / "out"), **FILE, **changes}
    content["shared"] = {"image_dir": images, **content["shared"]}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def planned(folder, images, **changes):
    return plan.make(read(written(folder, images, **changes)))


def read(path):
    return config.command_line("x", {"study": (runner.run, options.StudySettings, path)}, ["study"])[1]


def results(folder):
    """{path: (content, time of change)} of all results."""
    found = {}
    for kind in plan.KINDS:
        for entry in os.scandir(folder / "out" / kind):
            if entry.name.endswith(".json"):
                with open(entry.path) as file:
                    found[f"{kind}/{entry.name}"] = json.load(file), entry.stat().st_mtime_ns
    return found


def done(folder):
    return glob.glob(str(folder / "out" / "*" / "*.json"))


def without_times(found):
    # The digest of weights is of a file, which also holds names that Paddle counts up inside a process.
    return {path: {name: value for name, value in content.items() if name not in ("seconds", "weights")}
            for path, (content, _) in found.items()}


def work(path, *words):
    """In a process of its own."""
    archs.DRAWS = DRAWS
    good(call("-m resnet48", "study", path, *words))


# --- the plan ---------------------------------------------------------------------------------------------------------

def test_every_recipe_costs_as_many_subnet_images(tmp_path, images):
    found = planned(tmp_path, images)
    assert {task.name: (task.settings.max_epoch, task.settings.dyna_batch_size) for task in found.supernets} == {
        "sandwich": (2, 2), "one by one": (4, 1)}
    assert set(found.subnet_images.values()) == {4 * 24}
    assert [(task.name, task.seed) for task in found.supernets] == [("sandwich", 0), ("sandwich", 1), ("one by one", 0)]


def test_every_arch_is_trained_once_and_half_of_them_twice(tmp_path, images):
    found = planned(tmp_path, images, spread=20, bands=4)
    seeds = [task.seed for task in found.truth]
    assert seeds == [0] * 24 + [1] * 12 and len({task.name for task in found.truth[:24]}) == 24
    again = {task.name for task in found.truth[24:]}
    for part in (*found.tenths, *found.bands):
        assert sum(arch.code in again for arch in part) == len(part) // 2


def test_settings_of_a_recipe_lie_over_the_shared_ones_and_these_over_the_file_in_configs(tmp_path, images):
    shared = {**SHARED, "lr": 0.3, "weight_decay": 0.01}
    item = {"name": "a", "recipe": "sandwich", "lr": 0.2}
    (task, *_) = planned(tmp_path, images, shared=shared, supernets=[item], contrasts=[]).supernets
    assert (task.settings.lr, task.settings.weight_decay, task.settings.batch_size) == (0.2, 0.01, 8)
    assert task.settings.objective == "in_place_distillation"


def test_another_recipe_or_setting_changes_the_labels_of_its_own_tasks_alone(tmp_path, images):
    def labels(**changes):
        found = planned(tmp_path, images, **changes)
        return [{task.label for task in getattr(found, kind)} for kind in plan.KINDS]

    rates, truth, supernets, scores = labels()
    more = [*FILE["supernets"], {"name": "fair", "recipe": "fair_sandwich"}]
    assert [len(old - new) for old, new in zip((truth, supernets, scores), labels(supernets=more)[1:])] == [0] * 3
    other = [{**FILE["supernets"][0], "lr": 0.3}, FILE["supernets"][1]]
    assert [len(old - new) for old, new in zip((truth, supernets, scores), labels(supernets=other)[1:])] == [0, 2, 2]
    longer = labels(truth={"max_epoch": 2})
    assert not truth & longer[1] and longer[2:] == [supernets, scores]
    elsewhere = labels(shared={**SHARED, "log_freq": 7, "save_freq": 3})
    assert elsewhere == [rates, truth, supernets, scores] and not rates
    tried = [{**FILE["supernets"][0], "rates": "0.1,0.2"}, FILE["supernets"][1]]
    first, second = labels(supernets=tried), labels(supernets=tried, rate_epochs=2)
    assert [len(new - old) for old, new in zip((rates, truth, supernets, scores), first)] == [2, 0, 2, 2]
    assert [len(new - old) for old, new in zip(first, second)] == [2, 0, 2, 2]


@pytest.mark.parametrize("changes, said", [
    ({"supernets": []}, "compares the recipes"),
    ({"supernets": [{"name": "a"}, {"name": "a"}]}, "a name of its own"),
    ({"supernets": [{"name": "macs"}]}, "a name of its own"),
    ({"supernets": [{"name": "a", "recipe": "sandwhich"}]}, "sandwich"),
    ({"supernets": [{"name": "a", "objektive": "x"}]}, "study, supernets, item 1: unknown key 'objektive'; the nearest "
                                                       "is objective"),
    ({"supernets": [{"name": "a", "max_epoch": 3}]}, "subnet_epochs"),
    ({"supernets": [{"name": "a", "dyna_batch_size": 3}]}, "no multiple of the 3 subnets"),
    ({"supernets": [{"name": "a", "seeds": "0,0"}]}, "different whole numbers"),
    ({"supernets": [{"name": "a", "rates": "0.1"}]}, "two or more different learning rates"),
    ({"supernets": [{"name": "a", "rates": "0.1,-1"}]}, "two or more different learning rates"),
    ({"supernets": [{"name": "a", "rates": "0.1,0.2"}], "rate_epochs": 3}, "no multiple of the 4 subnets"),
    ({"supernets": [{"name": "a", "space": "published"}, {"name": "b"}]}, "one space"),
    ({"truth": {"seed": 3}}, "sets seed itself"),
    ({"truth": {"lr": "-1"}}, "study, truth: --lr must be more than 0"),
    ({"truth": 3}, "--truth is a mapping"),
    ({"shared": {"save_dir": "x"}}, "sets save_dir itself"),
    ({"contrasts": [{"one": "sandwich", "other": "nobody"}]}, "nobody"),
    ({"scores": "top2"}, "--scores takes top1"),
    ({"scores": "smoothed"}, "6 archs are too few to be smoothed"),
    ({"free": "luck"}, "--free takes macs"),
    ({"default": "nobody"}, "--default takes one of"),
    ({"spread": 1, "bands": 0}, "at least 3 archs")])
def test_a_study_that_cannot_be_run_is_refused_before_it_begins(tmp_path, images, changes, said):
    with pytest.raises(UserError) as caught:
        planned(tmp_path, images, **changes)
    assert said in str(caught.value)


def test_the_study_of_cifar_10_has_the_size_that_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(archs, "DRAWS", 1000)
    settings = read("docs/study/cifar10.yaml")
    # Other images, for these would have to be downloaded.
    shared = {**settings.shared, "dataset": "digits", "train_images": "1400", "augment": "crop"}
    found = plan.make(dataclasses.replace(settings, shared=shared))
    assert len(found.archs) == 160 and len(found.truth) == 240 and len(found.supernets) == 7 * 3
    assert set(found.subnet_images.values()) == {48 * 10 * 128}
    assert len(found.rates) == 7 * 3 and {task.settings.lr for task in found.rates} == {0.05, 0.1, 0.2}
    assert found.truth[0].settings.max_epoch == 5


# --- running it -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, images):
    """The folder of a study that was run at once, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, good(call("-m resnet48", "study", written(folder, images))).out


def test_a_study_says_what_is_left_and_writes_a_row_for_each_task(undisturbed):
    folder, out = undisturbed
    lines = [line for line in out.splitlines() if line.startswith("study: ")]
    assert len(lines) == TASKS + 1 and lines[0] == "study: truth 0 of 9, supernets 0 of 3, scores 0 of 4"
    assert lines[-1] == "study: truth 9 of 9, supernets 3 of 3, scores 4 of 4" and "left" in lines[5]
    found = results(folder)
    assert len(found) == TASKS
    for path, (content, _) in found.items():
        if path.startswith("truth/"):
            assert 0 <= content["top1"] <= 100 and content["settings"]["max_epoch"] == 1 and content["seconds"] > 0
            assert content["made_by"]["arch"] == content["name"] and content["made_by"]["seed"] == content["seed"]
    assert not [name for name in os.listdir(folder / "out" / "truth") if not name.endswith(".json")]


def test_the_report_holds_figures_table_and_pictures(undisturbed):
    folder, _ = undisturbed
    with open(folder / "out" / "study.json") as file:
        figures = json.load(file)
    ways = ["top1", "cross_entropy", "macs_hybrid"]
    assert [(row["name"], row["score"]) for row in figures["rankings"]] == [
        *((name, way) for name in ("sandwich", "one by one", "random weights") for way in ways),
        ("macs", None), ("params", None), ("depth", None), ("zen_score", None)]
    assert figures["archs"]["n"] == 6 and figures["truth"]["trainings"] == 9 and not any(figures["missing"].values())
    assert figures["cost"]["sandwich"]["subnet_images"] == figures["cost"]["one by one"]["subnet_images"] == 96
    text = (folder / "out" / "study.md").read_text()
    assert "reliability of one training" in text and "| one by one" in text and "Unfinished" not in text
    for name in ("tau.png", "scatter.png", "cost.png"):
        assert (folder / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_a_finished_study_does_nothing_again(undisturbed):
    folder, _ = undisturbed
    before = results(folder)
    good(call("-m resnet48", "study", str(folder / "study.yaml")))
    assert results(folder) == before


def test_what_a_study_trains_is_what_the_scripts_train(undisturbed, images, tmp_path):
    found, flags = results(undisturbed[0]), ["--image_dir", images, "--save_dir", str(tmp_path / "run")]
    for name, value in SHARED.items():
        flags += [f"--{name}", str(value)]
    row = next(content for path, (content, _) in found.items() if path.startswith("truth/") and "-s1-" in path)
    good(call("pretrain.py", "run", *flags, "--max_epoch", 1, "--seed", 1, "--arch", row["name"]))
    with open(tmp_path / "run" / "final.json") as file:
        assert json.load(file)["accuracies"] == {"val": row["top1"]}
    shutil.rmtree(tmp_path / "run")
    good(call("train_supernet.py", "run", *flags, "--max_epoch", 2, "--seed", 1, "--recipe", "sandwich",
              "--dyna_batch_size", 2))
    (ours,) = glob.glob(str(undisturbed[0] / "out" / "supernets" / "sandwich-s1-*" / "final.pdparams"))
    one, other = (tensor_files.read(path) for path in (ours, str(tmp_path / "run" / "final.pdparams")))
    trained = [name for name in one if not name.endswith(("_mean", "_variance"))]
    assert len(trained) > 100 and all((one[name] == other[name]).all() for name in trained)


def test_a_part_of_a_study_can_be_run_alone_and_reported_as_unfinished(undisturbed, images, tmp_path):
    path = written(tmp_path, images)
    assert "not trained yet" in call("-m resnet48", "study", path, "--only", "scores").err
    assert "not there yet" in call("-m resnet48", "study", path, "--only", "report").err
    for kind in ("supernets", "scores", "truth"):
        good(call("-m resnet48", "study", path, "--only", kind))
    for name in [name for name in os.listdir(tmp_path / "out" / "truth") if "-s1-" in name]:
        os.unlink(tmp_path / "out" / "truth" / name)
    good(call("-m resnet48", "study", path, "--only", "report"))
    assert "**Unfinished: 3 of truth are missing.**" in (tmp_path / "out" / "study.md").read_text()
    once = without_times(results(undisturbed[0]))
    assert without_times(results(tmp_path)).items() <= once.items()


def test_supernets_take_the_learning_rate_with_the_lowest_loss_on_training_images(images, tmp_path):
    item = {"name": "sandwich", "recipe": "sandwich", "seeds": "0", "dyna_batch_size": 2, "rates": "1e-6,0.3"}
    path = written(tmp_path, images, supernets=[item], contrasts=[], rate_epochs=8)
    assert "learning rate is not chosen yet" in call("-m resnet48", "study", path, "--only", "supernets").err
    good(call("-m resnet48", "study", path, "--only", "rates"))
    tries = {content["settings"]["lr"]: content for path, (content, _) in results(tmp_path).items()}
    assert tries.keys() == {1e-6, 0.3} and tries[0.3]["loss"] < tries[1e-6]["loss"]
    assert all(each["loss"] == sum(each["losses"].values()) / 2 for each in tries.values())
    good(call("-m resnet48", "study", path, "--only", "supernets"))
    (trained,) = [content for path, (content, _) in results(tmp_path).items() if path.startswith("supernets")]
    assert trained["settings"]["lr"] == 0.3
    (lower,) = [path for path, (content, _) in results(tmp_path).items() if content["settings"]["lr"] == 1e-6]
    shutil.rmtree(tmp_path / "out" / "supernets")
    row = json.loads((tmp_path / "out" / lower).read_text())
    (tmp_path / "out" / lower).write_text(json.dumps({**row, "loss": -1.0}))
    good(call("-m resnet48", "study", path, "--only", "supernets"))
    (trained,) = [content for path, (content, _) in results(tmp_path).items() if path.startswith("supernets")]
    assert trained["settings"]["lr"] == 1e-6  # the loss alone decides


def test_killed_at_any_point_a_study_goes_on_and_finds_the_same(undisturbed, images, tmp_path):
    """In turn after some results, one more each time, and in the middle of a training, which has a checkpoint then."""
    once, path = without_times(results(undisturbed[0])), written(tmp_path, images)
    for least in (2, 13):
        process = start(work, path)
        while process.is_alive() and len(done(tmp_path)) < least:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert without_times(results(tmp_path)).items() <= once.items()
    before = results(tmp_path)
    good(call("-m resnet48", "study", path))
    after = results(tmp_path)
    assert not [name for name in os.listdir(tmp_path / "out" / "truth") if not name.endswith((".json", ".lock"))]
    assert without_times(after) == once and all(after[path] == before[path] for path in before)
    with open(tmp_path / "out" / "study.json") as file, open(undisturbed[0] / "out" / "study.json") as other:
        assert json.load(file)["rankings"] == json.load(other)["rankings"]


def test_a_training_that_was_killed_resumes_from_its_checkpoint(images, tmp_path):
    path = written(tmp_path, images, truth={"max_epoch": 4})
    process = start(work, path, "--only", "truth")
    while process.is_alive() and not glob.glob(str(tmp_path / "out" / "truth" / "*" / "checkpoints" / "step-0*")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (log,) = glob.glob(str(tmp_path / "out" / "truth" / "*.log"))
    copy = str(tmp_path / "copy")
    os.link(log, copy)  # it is removed when the training is done
    good(call("-m resnet48", "study", path, "--only", "truth"))
    with open(copy) as file:
        assert re.search(r"resumed .*step-0\d+ at step \d+", file.read())


@pytest.mark.slow
def test_processes_share_the_work_and_take_over_from_one_that_is_killed(undisturbed, images, tmp_path):
    path = written(tmp_path, images)
    processes = [start(work, path) for _ in range(3)]
    while any(process.is_alive() for process in processes) and len(done(tmp_path)) < 3:
        time.sleep(0.005)
    os.kill(processes[0].pid, signal.SIGKILL)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    assert without_times(results(tmp_path)) == without_times(results(undisturbed[0]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_of_several_processes_stops_as_a_whole_and_goes_on(undisturbed, images, tmp_path, number):
    path = written(tmp_path, images)
    words = command("-m resnet48", "study", path, "--processes", "2")
    program = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    while program.poll() is None and len(done(tmp_path)) < 2:
        time.sleep(0.01)
    program.send_signal(number)
    out = program.communicate()[0]  # ends when no process has standard output open any more
    assert program.returncode == (75 if number == signal.SIGTERM else -number)
    assert ("the same command goes on" in out) and len(done(tmp_path)) < TASKS
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(results(tmp_path)) == TASKS


@pytest.mark.slow
def test_the_study_of_digits_runs_as_its_file_says(tmp_path):
    ended = good(run("-m resnet48", "study", "docs/study/digits.yaml", "--output", tmp_path / "out", cwd=ROOT))
    assert ended.out.splitlines()[-1].startswith(f"wrote {tmp_path}/out/study.json") and "MISSING" not in ended.out


def test_a_recipe_that_diverges_is_named(images, tmp_path):
    item = {"name": "wild", "recipe": "uniform", "lr": 1e30}
    ended = call("-m resnet48", "study", written(tmp_path, images, supernets=[item], contrasts=[]))
    assert ended.code == 2 and "study, supernets, wild, seed 0: " in ended.err and "not finite" in ended.err


def test_what_was_not_written_there_is_no_result(undisturbed, images, tmp_path):
    shutil.copytree(undisturbed[0] / "out", tmp_path / "out")
    path = written(tmp_path, images)
    (one, other, *_) = sorted(glob.glob(str(tmp_path / "out" / "truth" / "*.json")))
    shutil.copy(one, other)
    ended = call("-m resnet48", "study", path, "--only", "report")
    assert ended.code == 2 and f"{other} is not what was written there" in ended.err
