"""The two shell scripts: plain sh, set up what is missing once, reuse what is there, fail with one clear sentence.

They run in a copy of the tree with stand-ins for python3, pip and nvidia-smi on a PATH that holds nothing else, so that
nothing is downloaded and no machine differs. A stand-in writes down each call in `calls`.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = ("train_supernet.sh", "tests/run.sh", "resnet48/environment.sh")
TOOLS = ("sh", "dirname", "grep", "paste", "cat", "ls", "tr", "mkdir", "chmod", "touch", "sed", "cp", "head",
         "uname")
PYTEST = "-m pytest -q tests -n 2 --dist worksteal"
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]

#: Stands for an interpreter. Has the packages if there is a file `packages` beside it; `-m venv` copies it, `-m pip`
#: makes that file; a program of the project leaves the files that the next one asks for.
PYTHON = r'''#!/bin/sh
here=$(dirname "$0")
case "$*" in
    *find_spec*) [ -f "$here/packages" ]; exit ;;
    *version_info*) [ ! -f "$here/${0##*/} has no wheels" ]; exit ;;
esac
echo "${0##*/} $*" >> "$CALLS"
[ -z "$SEEN" ] || echo "${CUDA_VISIBLE_DEVICES-unset} $*" >> "$SEEN"
[ -n "$PYTHONUNBUFFERED" ] || echo "$*" >> "$here/buffered"
case "$*" in
    "-m venv "*)
        [ ! -f "$here/without_venv" ] || { echo "ensurepip is not available" >&2; exit 1; }
        mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip "*)
        [ ! -f without_network ] || { echo "Could not find a version" >&2; exit 1; }
        touch "$here/packages" ;;
    *"train_supernet.py run"*)
        [ ! -f launcher_ends ] || exit 15
        [ ! -f training_fails ] || { echo "error: no" >&2; exit 2; }
        while [ "$1" != --save_dir ]; do shift; done
        mkdir -p "$2"
        if [ -f waits ]; then
            trap 'echo "told to stop" >> "$CALLS"; exit 75' TERM
            touch waiting
            while :; do :; done
        fi
        [ ! -f training_stops ] || exit 75
        touch "$2/final.pdparams" ;;
    *"resnet48 sample"* | *"eval_supernet.py run"*)
        [ ! -f evaluation_stops ] || exit 75
        while [ "$1" != --output ]; do shift; done
        touch "$2" ;;
    *"pretrain.py truth"*)
        while [ "$1" != --truth ]; do shift; done
        [ ! -f truth_stops ] || exit 75
        touch "$2" ;;
esac
'''
#: Stands for nvidia-smi on a machine with as many GPUs as $GPU_COUNT says.
NVIDIA_SMI = r'''#!/bin/sh
[ -n "$GPU_COUNT" ] || { echo "no driver" >&2; exit 9; }
i=0
while [ $i -lt $GPU_COUNT ]; do
    case "$*" in -L) echo "GPU $i: a card" ;; *) echo $i ;; esac
    i=$((i + 1))
done
'''


NPROC = '#!/bin/sh\necho "${CORES:-1}"\n'


class Machine:
    """A copy of the tree, and a PATH with a few tools and the stand-ins that are installed."""

    def __init__(self, folder):
        self.tree, self.bin = folder / "a tree", folder / "bin"
        self.bin.mkdir()
        for name in (*SCRIPTS, "requirements.txt", "requirements-cpu.txt", "tests/requirements.txt"):
            os.makedirs(os.path.dirname(self.tree / name), exist_ok=True)
            shutil.copy(os.path.join(ROOT, name), self.tree / name)
        for tool in TOOLS:
            os.symlink(shutil.which(tool), self.bin / tool)
        self.install("nproc", NPROC)

    def install(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, script, *words, shell="sh", **variables):
        """How a script ended: (code, output, errors)."""
        found = shutil.which(shell)
        program = [found, "sh"] if shell == "busybox" else [found]
        ended = subprocess.run([*program, str(self.tree / script), *words], env=self.environment(**variables),
                               cwd=self.bin, capture_output=True, text=True, timeout=600)
        return ended.returncode, ended.stdout, ended.stderr

    def environment(self, **variables):
        return {"PATH": str(self.bin), "CALLS": str(self.bin / "calls"), **variables}

    def calls(self):
        """What the stand-ins have been asked for since the last time."""
        path = self.bin / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path):
    """A machine with a bare Python and no GPU."""
    machine = Machine(tmp_path)
    machine.install("python3", PYTHON)
    return machine


@pytest.fixture
def equipped(machine):
    """The same with all packages."""
    (machine.bin / "packages").touch()
    return machine


# ---- the language

@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_can_read_the_scripts(script, shell):
    words = ["busybox", "sh", "-n"] if shell == "busybox" else [shell, "-n"]
    assert subprocess.run([*words, os.path.join(ROOT, script)], capture_output=True).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_uses_what_only_bash_has(script):
    with open(os.path.join(ROOT, script)) as file:
        text = file.read()
    for word in ("[[", "function ", "local ", "source ", "<(", "+=(", "pipefail", "$'", "&>"):
        assert word not in text


# ---- setting up

@pytest.mark.parametrize("shell", SHELLS)
def test_a_fresh_machine_gets_an_environment_with_what_the_tests_need_and_keeps_it(machine, shell):
    code, said, _ = machine.run("tests/run.sh", "-k", "two words", shell=shell)
    assert code == 0 and "setting up .venv from requirements-cpu.txt" in said
    assert machine.calls() == [
        "python3 -m venv .venv",
        "python -m pip install --quiet -r requirements-cpu.txt -r tests/requirements.txt",
        f"python {PYTEST} -k two words"]
    code, said, _ = machine.run("tests/run.sh", shell=shell)
    assert (code, said, machine.calls()) == (0, "", [f"python {PYTEST}"])


def test_the_training_script_sets_up_without_what_only_the_tests_need(machine):
    assert machine.run("train_supernet.sh")[0] == 0
    assert machine.calls()[:2] == ["python3 -m venv .venv", "python -m pip install --quiet -r requirements-cpu.txt"]


@pytest.mark.parametrize("gpus, requirements", [("2", "requirements.txt"), ("0", "requirements-cpu.txt"),
                                                ("", "requirements-cpu.txt")], ids=["GPUs", "no GPU", "no driver"])
def test_the_requirements_are_those_of_the_machine(machine, gpus, requirements):
    machine.install("nvidia-smi", NVIDIA_SMI)
    assert machine.run("tests/run.sh", GPU_COUNT=gpus)[0] == 0
    assert f"install --quiet -r {requirements} -r tests/requirements.txt" in machine.calls()[1]


def test_the_user_may_name_the_requirements_and_the_interpreter(machine):
    assert machine.run("tests/run.sh", REQUIREMENTS="my.txt")[0] == 0
    assert "-r my.txt" in machine.calls()[1]
    shutil.rmtree(machine.tree / ".venv")
    (machine.bin / "packages").touch()
    assert machine.run("tests/run.sh", PYTHON=str(machine.bin / "python3"))[0] == 0
    assert machine.calls() == [f"python3 {PYTEST}"] and not (machine.tree / ".venv").exists()


def test_a_python_that_has_everything_is_used_as_it_is(equipped):
    assert equipped.run("tests/run.sh")[0] == 0
    assert equipped.calls() == [f"python3 {PYTEST}"] and not (equipped.tree / ".venv").exists()


def test_the_users_words_come_last_and_so_win_and_without_xdist_there_are_no_words_for_it(equipped):
    for words in (["-n", "0", "-m", ""], ["-p", "no:xdist", "-x"]):
        assert equipped.run("tests/run.sh", *words)[0] == 0
    assert equipped.calls() == [f"python3 {PYTEST} -n 0 -m ", "python3 -m pytest -q tests -p no:xdist -x"]


def test_an_environment_that_was_left_half_made_is_completed(machine):
    (machine.tree / "without_network").touch()
    assert machine.run("tests/run.sh")[0] == 2
    (machine.tree / "without_network").unlink()
    assert machine.run("tests/run.sh")[0] == 0
    assert machine.calls()[-1] == f"python {PYTEST}"


NO_PYTHON = "Python 3.10 to 3.13 is needed, for which requirements-cpu.txt can be installed; the PATH has none of them"


def refusal(machine, script="tests/run.sh", **variables):
    code, _, errors = machine.run(script, **variables)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and errors.splitlines()[-1] == lines[0]
    assert not any("pytest" in call or ".py" in call for call in machine.calls())
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_a_step_that_fails_is_one_clear_sentence(machine, script):
    (machine.bin / "python3 has no wheels").touch()
    assert refusal(machine, script) == NO_PYTHON
    (machine.bin / "python3 has no wheels").unlink()
    (machine.bin / "without_venv").touch()
    assert "cannot make a virtual environment in .venv" in refusal(machine, script)
    (machine.bin / "without_venv").unlink()
    (machine.tree / "without_network").touch()
    assert refusal(machine, script).startswith("pip could not install requirements-cpu.txt")
    assert refusal(machine, script, PYTHON=str(machine.bin / "python3")).startswith("PYTHON=")
    (machine.bin / "python3").unlink()
    shutil.rmtree(machine.tree / ".venv")
    assert refusal(machine, script) == NO_PYTHON


def test_where_python3_has_no_wheels_of_paddle_another_one_of_the_path_is_taken(machine):
    (machine.bin / "python3 has no wheels").touch()
    for name in ("python3.9", "python3.10", "python3.12", "python3.14"):
        machine.install(name, PYTHON)
    assert machine.run("tests/run.sh")[0] == 0
    assert machine.calls()[0] == "python3.12 -m venv .venv"


def test_on_a_machine_with_a_gpu_the_python_is_one_that_the_gpu_build_exists_for(machine):
    machine.install("nvidia-smi", NVIDIA_SMI)
    (machine.bin / "python3 has no wheels").touch()
    message = refusal(machine, GPU_COUNT="1")
    assert message == NO_PYTHON.replace("3.13", "3.12").replace("requirements-cpu.txt", "requirements.txt")


# ---- from nothing to a submission

def steps(calls):
    """The programs of the project that were called."""
    return [" ".join(word for word in call.split()[1:] if word.endswith(".py") or word in (
        "run", "verify", "truth", "score", "sample", "report")) for call in calls]


def test_without_data_every_step_of_the_road_is_taken_on_the_digits(equipped):
    code, said, errors = equipped.run("train_supernet.sh")
    assert (code, errors) == (0, "")
    calls = equipped.calls()
    assert steps(calls) == ["train_supernet.py run", "sample", "eval_supernet.py run", "eval_supernet.py verify",
                            "pretrain.py truth", "eval_supernet.py report", "eval_supernet.py score"]
    assert "--config configs/digits.yaml" in calls[0] and "paddle.distributed.launch" not in calls[0]
    assert "--spread --space configs/spaces/digits.yaml" in calls[1]
    assert "--config configs/digits_standalone.yaml" in calls[4] and "--processes" not in calls[4]  # one for each core
    assert said.splitlines()[-3:-1] == ["== scoring", ""]  # nothing hides the sheet
    assert said.splitlines()[-1].startswith("== done: ") and "output/digits/score.png" in said.splitlines()[-1]
    assert said.splitlines()[-1].endswith(" output/digits/submission.html")
    equipped.run("train_supernet.sh")
    assert "sample" not in steps(equipped.calls())  # the list is there already


def test_with_data_and_a_list_the_real_thing_runs_on_all_gpus(equipped):
    equipped.install("nvidia-smi", NVIDIA_SMI)
    data = {"IMAGE_DIR": "/data/my images", "ARCHS": "list.json", "GPU_COUNT": "4", "PRETRAINED": "resnet48.pdparams"}
    code, _, errors = equipped.run("train_supernet.sh", **data)
    assert (code, errors) == (0, "")
    training, *rest = equipped.calls()
    assert "-m paddle.distributed.launch --gpu 0,1,2,3 train_supernet.py run --config configs/ranking.yaml" in training
    assert "--image_dir /data/my images" in training and f"--pretrained {equipped.bin}/resnet48.pdparams" in training
    assert steps(rest) == ["eval_supernet.py run", "eval_supernet.py verify", "eval_supernet.py report"]
    assert "--truth" not in rest[-1]
    assert "-m paddle.distributed.launch --gpu 0,1,2,3 eval_supernet.py run" in rest[0]
    assert f"--archs {equipped.bin}/list.json" in rest[0] and "--image_dir /data/my images" in rest[0]
    equipped.run("train_supernet.sh", **{**data, "GPU_COUNT": "1", "TRUTH": "truth.json"})
    calls = equipped.calls()
    assert "paddle.distributed.launch" not in calls[0]
    assert steps(calls)[-2:] == ["eval_supernet.py report", "eval_supernet.py score"]
    assert all(f"--truth {equipped.bin}/truth.json" in call for call in calls[-2:])


SHARED = ("python3 -m paddle.distributed.launch --log_level ERROR --nproc_per_node {} "
          "train_supernet.py run --share subnets --config {} ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Paddle may lack gloo elsewhere")
def test_on_two_cores_two_processes_share_the_subnets_of_the_digits_as_they_come(equipped):
    def training(*words, **variables):
        assert equipped.run("train_supernet.sh", *words, **variables)[::2] == (0, "")
        first, *rest = equipped.calls()
        assert not any("paddle.distributed.launch" in call for call in rest)
        return first

    for cores in "2", "16":
        assert training(CORES=cores).startswith(SHARED.format(2, "configs/digits.yaml"))
    for words, variables in ((["--max_epoch", "3"], {}), ([], {"CONFIG": "configs/sandwich.yaml"}),
                             ([], {"PROCESSES": "1"}), ([], {"IMAGE_DIR": "/data", "ARCHS": "list.json"})):
        assert training(*words, CORES="2", **variables).startswith("python3 train_supernet.py run --config ")
    told = {"PROCESSES": "3", "IMAGE_DIR": "/data", "ARCHS": "list.json"}
    assert training("--seed", "7", **told).startswith(SHARED.format(3, "configs/ranking.yaml"))
    equipped.install("nvidia-smi", NVIDIA_SMI)
    assert training(CORES="2", GPU_COUNT="1", **told).startswith("python3 train_supernet.py run --config ")


def test_further_words_go_to_the_training(equipped):
    assert equipped.run("train_supernet.sh", "--max_epoch", "3", "--seed", "7")[0] == 0
    training, *rest = equipped.calls()
    assert training.endswith("--max_epoch 3 --seed 7")
    assert not any("--max_epoch" in call for call in rest)


def test_the_road_ends_where_a_step_is_stopped_or_fails(equipped):
    archs = {"ARCHS": "list.json"}
    for stopped, last in (("training", "train_supernet.py run"), ("evaluation", "eval_supernet.py run"),
                          ("truth", "pretrain.py truth")):
        (equipped.tree / f"{stopped}_stops").touch()
        code, said, errors = equipped.run("train_supernet.sh", **archs)
        assert (code, errors) == (75, "") and said.splitlines()[-1] == "stopped; the same command resumes"
        assert steps(equipped.calls())[-1] == last
        (equipped.tree / f"{stopped}_stops").unlink()
    (equipped.tree / "training_fails").touch()
    assert equipped.run("train_supernet.sh")[::2] == (2, "error: no\n")
    assert steps(equipped.calls()) == ["train_supernet.py run"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_the_script_alone_gets_stops_the_program_and_ends_with_the_same_code(equipped, shell, number):
    (equipped.tree / "waits").touch()
    program = [shutil.which(shell), *["sh"] * (shell == "busybox"), str(equipped.tree / "train_supernet.sh")]
    script = subprocess.Popen(program, env=equipped.environment(), cwd=equipped.bin, stdout=subprocess.PIPE, text=True)
    while not (equipped.tree / "waiting").exists():
        assert script.poll() is None
    script.send_signal(number)
    said, _ = script.communicate(timeout=600)
    assert script.returncode == 75 and said.splitlines()[-1] == "stopped; the same command resumes"
    assert equipped.calls()[-1] == "told to stop"


@pytest.mark.parametrize("variables", [{"GPU_COUNT": "2"}, {"PROCESSES": "2"}], ids=str)
def test_what_is_launched_writes_its_lines_at_once(equipped, variables):
    """Else Paddle's launcher holds them back where they go to a file."""
    equipped.install("nvidia-smi", NVIDIA_SMI)
    assert equipped.run("train_supernet.sh", **{"GPU_COUNT": "0", **variables})[0] == 0
    assert "paddle.distributed.launch" in equipped.calls()[0]
    assert "paddle.distributed.launch" not in "".join(
        path.read_text() for path in equipped.bin.parent.rglob("buffered"))


def test_a_launcher_that_sigterm_has_ended_counts_as_stopped(equipped):
    equipped.install("nvidia-smi", NVIDIA_SMI)
    (equipped.tree / "launcher_ends").touch()
    code, said, _ = equipped.run("train_supernet.sh", GPU_COUNT="2")
    assert code == 75 and said.splitlines()[-1] == "stopped; the same command resumes"
    assert steps(equipped.calls()) == ["train_supernet.py run"]


# ---- which GPUs

@pytest.mark.parametrize("variables, seen, launched", [
    ({}, "unset", "0,1,2,3"), ({"GPUS": "3"}, "3", None), ({"GPUS": "1,2"}, "1,2", "1,2"),
    ({"GPUS": " 1, 2"}, "1,2", "1,2"), ({"CUDA_VISIBLE_DEVICES": "2,3"}, "2,3", "2,3"),
    ({"CUDA_VISIBLE_DEVICES": "3"}, "3", None), ({"CUDA_VISIBLE_DEVICES": ""}, "", None),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, "-1", None), ({"GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "2,3"}, "0,1", "0,1"),
    ({"GPUS": "1", "CUDA_VISIBLE_DEVICES": ""}, "1", None)], ids=str)
def test_every_program_uses_the_gpus_that_were_chosen_and_no_other(equipped, variables, seen, launched):
    equipped.install("nvidia-smi", NVIDIA_SMI)
    record = equipped.bin / "seen"
    code, _, errors = equipped.run("train_supernet.sh", GPU_COUNT="4", SEEN=str(record), **variables)
    assert (code, errors) == (0, "")
    for line in record.read_text().splitlines():
        visible, _, words = line.partition(" ")
        assert visible == seen
        if "train_supernet.py" in words or "eval_supernet.py run" in words:
            assert words.startswith(f"-m paddle.distributed.launch --gpu {launched} " if launched else "") and (
                ("paddle.distributed.launch" in words) == bool(launched))
            # Asked for by name, a GPU that is not there is an error and not a slow run on the CPU.
            assert ("--device gpu" in words) == ("GPUS" in variables)


def test_words_for_the_training_win_over_the_device_that_gpus_implies(equipped):
    equipped.run("train_supernet.sh", "--device", "cpu", GPUS="3")
    training = equipped.calls()[0]
    assert training.index("--device gpu") < training.index("--device cpu")


# ---- from another folder

def test_relative_paths_are_those_of_the_folder_it_is_called_from(equipped):
    (equipped.bin / "mine.yaml").touch()
    given = {"IMAGE_DIR": "my images", "ARCHS": "list.json", "TRUTH": "./truth.json", "OUTPUT": "out",
             "PRETRAINED": "../weights.pdparams", "CONFIG": "mine.yaml", "PYTHON": "./python3"}
    code, said, errors = equipped.run("train_supernet.sh", **given)
    assert (code, errors) == (0, "")
    training, *rest = equipped.calls()
    here = equipped.bin
    assert f"--config {here}/mine.yaml --save_dir {here}/out/train" in training
    assert f"--image_dir {here}/my images --pretrained {here}/../weights.pdparams" in training
    assert all(f"--image_dir {here}/my images" in call for call in rest if "eval_supernet.py run" in call)
    assert f"--archs {here}/list.json" in rest[0] and f"--truth {here}/./truth.json" in rest[-1]
    assert (here / "out").is_dir()


def test_what_is_only_in_the_project_is_taken_from_there(equipped):
    (equipped.tree / "configs").mkdir()
    (equipped.tree / "configs" / "uniform.yaml").touch()
    assert equipped.run("train_supernet.sh", CONFIG="configs/uniform.yaml")[0] == 0
    training = equipped.calls()[0]
    assert "--config configs/uniform.yaml --save_dir output/digits/train" in training
    assert (equipped.tree / "output" / "digits").is_dir()
    (equipped.tree / "list.json").touch()  # as in the time when all paths were those of the project
    assert equipped.run("train_supernet.sh", ARCHS="list.json", OUTPUT="output/digits")[0] == 0
    training, evaluation, *_ = equipped.calls()
    assert "--archs list.json" in evaluation and "--save_dir output/digits/train" in training


def test_a_checkout_has_unix_line_ends_whatever_git_is_told(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy(os.path.join(ROOT, ".gitattributes"), tree)
    for name in SCRIPTS:
        os.makedirs(os.path.dirname(tree / name), exist_ok=True)
        shutil.copy(os.path.join(ROOT, name), tree / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a", "-c", "core.autocrlf=true"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"],
                  ["clone", "-q", ".", str(tmp_path / "copy")]):
        subprocess.run([*git, *words], cwd=tree, check=True, capture_output=True)
    for name in SCRIPTS:
        assert b"\r" not in (tmp_path / "copy" / name).read_bytes()
