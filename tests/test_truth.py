"""`pretrain.py truth`: archs trained on their own by processes that share a folder, the same however many they are."""

import glob
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from commands import LARGEST, SMALL, SMALLEST, call, command, environment, good, image_folder, refusal, run, write_list
from processes import start

from resnet48.evaluation import truth
from resnet48.space.arch import FULL
from resnet48.system import runtime
from resnet48.training import checkpoint

CODES = SMALLEST, LARGEST, *(FULL.sample(np.random.default_rng(seed)).code for seed in range(2))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("truth") / "images")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, images):
    """Where one process has trained the archs, each for 12 steps."""
    folder = tmp_path_factory.mktemp("alone")
    good(call("pretrain.py", *words(folder, images, "--processes", 1)))
    return folder


def words(folder, images, *more):
    return ("truth", "--archs", write_list(folder / "list.json", *CODES), "--image_dir", images, *SMALL, "--max_epoch",
            4, "--lr", 0.4, "--save_dir", folder / "runs", "--truth", folder / "truth.json", *more)


def truth_of(folder):
    return json.loads((folder / "truth.json").read_text())


def measured(folder):
    return glob.glob(str(folder / "runs" / "*-*.json"))


def checkpoints(folder):
    return glob.glob(str(folder / "runs" / "*" / "checkpoints" / "step-*"))


def weights_of(folder):
    """All weights of all archs, as bytes."""
    return {(code, name): value.tobytes() for code in CODES
            for name, value in checkpoint.load(str(folder / "runs" / code)).weights.items()}


def work(*arguments):
    """In a process of its own, which has computed nothing with Paddle."""
    good(call("pretrain.py", *arguments))


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_one_process_and_several_find_the_same_bit_for_bit(undisturbed, images, tmp_path):
    process = start(work, *words(tmp_path, images, "--processes", 3))
    process.join()
    assert process.exitcode == 0
    assert truth_of(tmp_path) == truth_of(undisturbed) and weights_of(tmp_path) == weights_of(undisturbed)


def test_a_helper_that_is_killed_loses_nothing(undisturbed, images, tmp_path):
    process = start(work, *words(tmp_path, images, "--processes", 2))
    while process.is_alive() and not (checkpoints(tmp_path) and children(process.pid)):
        time.sleep(0.002)
    (helper,) = children(process.pid)
    os.kill(helper, signal.SIGKILL)
    process.join()
    assert process.exitcode == 0 and truth_of(tmp_path) == truth_of(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.slow) for each in (
    signal.SIGINT, signal.SIGKILL))])
def test_stopped_or_killed_as_a_whole_it_goes_on_where_it_was(undisturbed, images, tmp_path, number):
    program = subprocess.Popen(command("pretrain.py", *words(tmp_path, images, "--processes", 2, "--max_epoch", 40)),
                               env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    while program.poll() is None and len(checkpoints(tmp_path)) < 3:
        time.sleep(0.002)
    if number == signal.SIGINT:
        os.killpg(program.pid, number)  # as a terminal does
    else:
        program.send_signal(number)
    out, err = program.communicate()  # ends when no process has them open any more
    assert program.returncode == (-number if number == signal.SIGKILL else 75) and "Traceback" not in err
    if number != signal.SIGKILL:
        assert out.count("the same command goes on") == 1 and not os.path.exists(tmp_path / "truth.json")
    assert not measured(tmp_path)


def test_a_killed_training_goes_on_from_its_checkpoint(undisturbed, images, tmp_path):
    process = start(work, *words(tmp_path, images, "--processes", 1))
    while process.is_alive() and not checkpoints(tmp_path):
        time.sleep(0.002)
    process.kill()
    process.join()
    said = good(call("pretrain.py", *words(tmp_path, images, "--processes", 1))).out
    assert "resumed " in said and truth_of(tmp_path) == truth_of(undisturbed)


def test_each_training_has_one_thread_and_a_log_and_each_that_ends_is_a_line(images, tmp_path):
    surroundings = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    said = subprocess.run(command("pretrain.py", *words(tmp_path, images, "--processes", 2, "--max_epoch", 1)),
                          env=surroundings, capture_output=True, text=True, check=True).stdout
    assert " OMP_NUM_THREADS=1" in said.splitlines()[0]  # on however many cores
    lines = [line for line in said.splitlines() if line.startswith("arch") and ": top-1" in line]
    assert sorted(line.split(":")[0] for line in lines) == ["arch1", "arch2", "arch3", "arch4"]
    assert "4 of 4 archs" in said and "epoch" not in said.split("training in 2 processes")[1]
    for code in CODES:
        assert f"top-1 of {code}" in (tmp_path / "runs" / f"{code}.log").read_text()


def test_what_no_training_can_begin_with_is_one_sentence_and_leaves_nothing_behind(images, tmp_path):
    given = words(tmp_path, images, "--processes", 3, "--pretrained", tmp_path / "none")
    line = refusal(("pretrain.py", *given), tmp_path, run)
    assert "none" in line


# ---- what is measured already

def test_what_is_measured_is_not_trained_again_and_what_is_lost_is_read_from_its_checkpoint(undisturbed, images):
    before = truth_of(undisturbed)
    said = good(call("pretrain.py", *words(undisturbed, images, "--processes", 1))).out
    assert "4 of 4 archs are measured already" in said and "arch1 (" not in said and truth_of(undisturbed) == before
    os.unlink(measured(undisturbed)[0])
    said = good(call("pretrain.py", *words(undisturbed, images, "--processes", 1))).out
    assert "3 of 4 archs are measured already" in said and "at step 12" in said and truth_of(undisturbed) == before


def test_what_was_measured_with_other_settings_does_not_count(undisturbed, images, tmp_path):
    for more, said in ((("--lr", 0.5), "lr was 0.4"), (("--resume", "none"), "holds the checkpoints of a run")):
        ended = call("pretrain.py", *words(undisturbed, images, "--processes", 1, *more))
        assert ended.code == 2 and said in ended.err  # the training is asked, not the accuracy
    good(call("pretrain.py", *words(undisturbed, images, "--processes", 1)))  # of which nothing is lost


def test_an_accuracy_that_is_not_what_was_written_is_named(undisturbed, images):
    (one, other, *_) = measured(undisturbed)
    with open(one) as file, open(other) as kept:
        content, before = file.read(), kept.read()
    for wrong in (content, "{}", "[]", before.replace("\"top1\": ", "\"top1\": [], \"x\": ")):
        with open(other, "w") as file:
            file.write(wrong)
        ended = call("pretrain.py", *words(undisturbed, images, "--processes", 1))
        assert ended.code == 2 and os.path.basename(other) in ended.err
    os.unlink(other)
    good(call("pretrain.py", *words(undisturbed, images, "--processes", 1)))


# ---- how many

@pytest.mark.parametrize("text, said", [("0", "--processes must be 1 or more"), ("two", "--processes takes")])
def test_a_wrong_number_of_processes_is_refused(undisturbed, images, text, said):
    ended = call("pretrain.py", *words(undisturbed, images, "--processes", text))
    assert ended.code == 2 and said in ended.err


def test_by_default_as_many_as_the_cores_have_threads_for_and_no_more_than_archs(monkeypatch):
    monkeypatch.setattr(truth.machine, "cpu_count", lambda: 8)
    for threads, archs, expected in (("1", 24, 8), ("1", 3, 3), ("3", 24, 2), ("16", 24, 1), ("2,4", 24, 4),
                                     ("", 24, 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert truth.processes(None, archs) == expected
    assert truth.processes(5, 24) == 5


def test_ranks_and_gpus_have_one_process_each(monkeypatch):
    for change in ((runtime, "world_size", lambda: 2), (truth.paddle.device, "get_device", lambda: "gpu:0")):
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            assert truth.processes(None, 24) == truth.processes(1, 24) == 1
            with pytest.raises(ValueError, match="--processes 2 is for one process on a CPU"):
                truth.processes(2, 24)
