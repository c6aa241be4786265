"""Signals: a run that is told to stop ends cleanly, resumes where it stood, and leaves no process behind."""

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import (LARGEST, PATIENCE, ROOT, SMALL, SMALLEST, Ended, call, command, environment, good, image_folder,
                      module, refusal, write_list)

from resnet48.images import datasets
from resnet48.system import signals
from resnet48.system.errors import STOPPED
from resnet48.training import checkpoint

# A run that nobody waits for.
ENDLESS = (*SMALL, "--max_epoch", 100000, "--log_freq", 1, "--eval_freq", 0, "--save_freq", 100000, "--num_workers", 2)
TRAINING = ("train_supernet.py", "run", *ENDLESS)


def processes():
    """(process, state, parent, group) of everything that runs here."""
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(path) as file:  # it may have ended meanwhile
            state, parent, group = file.read().rpartition(")")[2].split()[:3]
            found.append((int(path.split("/")[2]), state, int(parent), int(group)))
    return found


class Program:
    """A program in a process group of its own, as a shell starts it, whose output is read line by line."""

    def __init__(self, script, *words):
        self.process = subprocess.Popen(command(script, *words), env=environment(), stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.said = ""

    def until(self, words):
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return self
        raise AssertionError(f"it never said {words!r}: {self.said}{self.process.stderr.read()}")

    def ended(self):
        out, err = self.process.communicate(timeout=PATIENCE)
        return Ended(self.process.returncode, self.said + out, err)

    def leaves_processes(self):
        """Whether any process of the group is there and stays there."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not any(group == self.process.pid and state != "Z" for _, state, _, group in processes()):
                return False
            time.sleep(0.2)
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.communicate()


def stopped(ended, *errors):
    """The same, after checking that it ended as a program does that a signal has asked to stop."""
    assert ended.code == STOPPED and ended.own_errors() == list(errors), ended
    return ended


def patient(folder):
    """A script that trains the supernet and takes all signals for the same request, however slow the machine is."""
    path = os.path.join(folder, "patient.py")
    with open(path, "w") as file:
        file.write("import runpy, sys\n"
                   "from resnet48.system import signals\n"
                   "signals.SECONDS_OF_ONE_REQUEST = 3600\n"
                   f"runpy.run_path({os.path.join(ROOT, 'train_supernet.py')!r}, run_name='__main__')\n")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("photos") / "images")


# ---- what a signal means

def send(number, times=1):
    for _ in range(times):
        os.kill(os.getpid(), number)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_repeats_of_any_signal_are_one_request_and_the_system_drops_them(number):
    asked = []
    with signals.answered(asked.append):
        send(number, 3)
        for other in signals.STOP_SIGNALS:
            send(other)
            assert signal.getsignal(other) == signal.SIG_IGN  # whatever this process is busy with
    assert asked == [number.name] and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_repeat_that_comes_when_the_answer_has_been_given_changes_nothing_more():
    asked, inner = [], []
    with signals.answered(asked.append):
        with signals.answered(inner.append):
            send(signal.SIGTERM)
        send(signal.SIGTERM, 2)
        send(signal.SIGINT)
    assert (asked, inner) == ([], ["SIGTERM"])
    with signals.answered(asked.append):  # another program's
        send(signal.SIGINT)
    assert asked == ["SIGINT"]


def test_later_signals_end_the_process_at_once_but_those_that_the_system_repeats(monkeypatch):
    monkeypatch.setattr(signals, "SECONDS_OF_ONE_REQUEST", 0.01)
    with signals.answered(lambda _: None):
        send(signal.SIGTERM)
        wait_until(lambda: signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
        assert signal.getsignal(signal.SIGXCPU) == signal.SIG_IGN
    program = ("import os, signal, time\nfrom resnet48.system import signals\nsignals.SECONDS_OF_ONE_REQUEST = 0\n"
               "with signals.answered(lambda _: None):\n"
               "    with signals.answered(lambda _: None):\n"
               "        os.kill(os.getpid(), signal.SIGINT)\n"
               "    time.sleep(0.01)\n"
               "    os.kill(os.getpid(), signal.SIGTERM)\n")
    assert subprocess.run([sys.executable, "-c", program], env=environment()).returncode == -signal.SIGTERM


def test_what_is_ignored_already_stays_so_as_under_nohup():
    before, asked = signal.signal(signal.SIGHUP, signal.SIG_IGN), []
    try:
        with signals.answered(asked.append):
            send(signal.SIGHUP)
            send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and asked == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- training

@pytest.mark.slow
def test_a_signal_to_the_whole_group_ends_a_training_well_and_the_same_command_resumes(tmp_path, photos):
    words = (*TRAINING, "--image_dir", photos, "--save_dir", tmp_path / "run")
    step = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with Program(*words) as program:
            program.until(f"step {step + 1} ")
            os.killpg(program.process.pid, number)
            ended = stopped(program.ended())
            assert not program.leaves_processes()
        if step:
            assert f"at step {step}\n" in ended.out
        *_, last = ended.out.splitlines()
        assert last.startswith(f"stopped by {number.name} after step ") and "the same command" in last
        step = int(last.split(" after step ")[1].split()[0])
        assert max(os.listdir(tmp_path / "run" / "checkpoints")) == f"step-{step:08d}"


@pytest.mark.slow
def test_a_signal_to_the_main_process_alone_ends_a_training_well_too(tmp_path, photos):
    with Program("pretrain.py", "run", "--arch", SMALLEST, "--image_dir", photos, *ENDLESS, "--save_dir",
                 tmp_path / "run") as program:
        program.until("step 1 ")
        program.process.terminate()
        ended = stopped(program.ended())
        assert not program.leaves_processes()
        assert "stopped by SIGTERM after step " in ended.out


@pytest.mark.slow
def test_a_signal_while_paddle_is_imported_ends_a_program_with_one_sentence(tmp_path):
    program = subprocess.Popen([sys.executable, "-X", "importtime", *command(*TRAINING, "--save_dir", tmp_path)[1:]],
                               env=environment(), stderr=subprocess.PIPE, text=True)
    said = ""
    while " paddle.base.core" not in said:  # Paddle's own answers to signals are in place, and its import goes on
        said += program.stderr.readline()
    program.terminate()
    said += program.stderr.read()
    assert program.wait(PATIENCE) == STOPPED
    assert Ended(0, "", "".join(line + "\n" for line in said.splitlines() if "import time:" not in line)
                 ).own_errors() == ["stopped by SIGTERM; the same command begins again"]
    assert os.listdir(tmp_path) == []


def test_a_signal_before_training_ends_it_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *_: [os.kill(os.getpid(), signal.SIGHUP) for _ in range(3)])
    ended = stopped(call("train_supernet.py", "run", *SMALL, "--save_dir", tmp_path / "run"), "stopped by SIGHUP; the "
                    "same command begins again")
    assert os.listdir(tmp_path) == [] and "Traceback" not in ended.out


def test_images_that_are_left_to_decode_are_not_waited_for(photos, monkeypatch):
    decoded = []

    def decode(place):
        decoded.append(place)
        if place == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    def stop(name):
        raise signals.Interrupt(name)

    with pytest.raises(signals.Interrupt), signals.answered(stop):
        datasets.in_threads(decode, 10 ** 4, 2, "images")
    assert len(decoded) < 10 ** 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_repeat_of_a_signal_is_the_same_request_also_while_the_program_ends(tmp_path, photos, number):
    words = (patient(tmp_path), "run", *ENDLESS, "--image_dir", photos, "--save_dir", tmp_path / "run")
    with Program(*words) as program:
        program.until("step 1 ")
        while program.process.poll() is None:
            program.process.send_signal(number)
            time.sleep(0.01)
        ended = stopped(program.ended())
    assert f"stopped by {number.name} after step " in ended.out
    assert os.listdir(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
def test_a_second_training_in_the_same_folder_is_refused_and_does_not_disturb_the_first(tmp_path, photos):
    words = (*TRAINING, "--image_dir", photos, "--num_workers", 0, "--save_dir", tmp_path / "run")
    with Program(*words) as program:
        program.until("step 1 ")
        second = call(*words)
        assert second.code == 2 and program.process.poll() is None
        assert second.own_errors()[0].startswith(f"error: another training works in {tmp_path / 'run'}: wait until")
        program.process.terminate()
        stopped(program.ended())
    with open(tmp_path / "run" / "metrics.csv") as file:
        assert file.read().count("epoch") == 1
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "config.yaml", "metrics.csv"]


@pytest.mark.slow
def test_the_processes_that_decode_images_do_not_outlive_a_killed_program_and_leave_no_shared_memory(tmp_path, photos):
    with Program(*TRAINING, "--image_dir", photos, "--save_dir", tmp_path / "run") as program:
        program.until("step 2 ")
        workers = [each for each, _, parent, _ in processes() if parent == program.process.pid]
        program.process.kill()
        program.process.wait()
        assert not program.leaves_processes()
        assert workers and not [left for each in workers for left in glob.glob(f"/dev/shm/paddle_{each}_*")]


def test_an_interrupt_before_training_leaves_no_stack_trace_and_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load", interrupted)
    ended = call("train_supernet.py", "run", *SMALL, "--save_dir", tmp_path / "run")
    assert (ended.code, ended.own_errors()) == (STOPPED, ["stopped by SIGINT; the same command begins again"])
    assert os.listdir(tmp_path) == []


def test_a_signal_during_the_last_evaluation_of_an_arch_keeps_the_next_one_from_starting(tmp_path, monkeypatch, photos):
    words = ("truth", "--processes", 1, "--archs", write_list(tmp_path / "archs.json", SMALLEST, LARGEST),
             "--image_dir", photos, *SMALL, "--save_dir", tmp_path / "runs", "--truth", tmp_path / "truth.json")

    def watch_of(*_):
        def watch(_net):
            os.kill(os.getpid(), signal.SIGTERM)
            return {"val": 50.0}

        return watch

    with monkeypatch.context() as patched:
        patched.setattr(module("pretrain.py").accuracy, "validate_standalone", watch_of)
        ended = call("pretrain.py", *words)
    assert "stopped by SIGTERM after step 3 of 3" in stopped(ended).out
    assert os.listdir(tmp_path / "runs") == [SMALLEST] and not os.path.exists(tmp_path / "truth.json")
    assert "wrote" in good(call("pretrain.py", *words)).out


def test_a_signal_during_an_evaluation_ends_it_well_and_the_same_command_resumes(here, monkeypatch):
    words = ("eval_supernet.py", "run", "--checkpoint", "supernet", "--archs", "list.json", "--image_dir", "images",
             "--image_size", 32, "--calib_images", 8, "--output", "submission.json")
    with monkeypatch.context() as patched:
        patched.setattr("resnet48.evaluation.evaluator.evaluate_list", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        ended = call(*words)
    assert not os.path.exists("submission.json")
    said = stopped(ended).out.splitlines()[-1]
    assert said.startswith("stopped by SIGINT: what is finished is kept in submission.journal")
    good(call(*words))
    assert os.path.exists("submission.json")


def test_a_submission_from_a_supernet_that_was_stopped_says_so_and_is_not_verified_unless_that_is_allowed(
        here, monkeypatch):
    def stop_after_validation(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"largest": 50.0}

    with monkeypatch.context() as patched:
        patched.setattr(module("train_supernet.py").accuracy, "validate_supernet", lambda *_: stop_after_validation)
        training = ("train_supernet.py", "run", *SMALL, "--image_dir", "images", "--save_dir", "run", "--max_epoch", 2)
        assert "stopped by SIGTERM after step " in stopped(call(*training)).out
    step = checkpoint.load("run").state["step"]
    assert step < 6 and checkpoint.load("run").state["finished"] is False
    evaluation = ("eval_supernet.py", "run", "--checkpoint", "run", "--archs", "list.json", "--image_dir", "images",
                  "--calib_images", 8, "--output", "submission.json")
    assert good(call(*evaluation)).out.splitlines()[-1].endswith(f"; UNFINISHED TRAINING: step {step} of 6")
    with open("submission.manifest.json") as file:
        assert json.load(file)["unfinished_training"] == f"step {step} of 6"
    verification = ("eval_supernet.py", "verify", "--submission", "submission.json", "--archs", "list.json",
                    "--checkpoint", "run")
    refused = refusal(verification, here)
    assert f"the training of the supernet was not finished (step {step} of 6)" in refused
    left = [each for each in refused.split("; ") if "accuracies are equal" in each]  # of nets that have learnt nothing
    allowed = call(*verification, "--allow_unfinished")
    assert "not finished" not in allowed.err and allowed.code == (2 if left else 0)
    assert "trained" in good(call(*training)).out
    assert checkpoint.load("run").state["finished"] is True
    assert "UNFINISHED" not in good(call(*evaluation)).out
