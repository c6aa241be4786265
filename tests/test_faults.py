"""Disks, shared memory, images and processes that fail while a training runs: one clear sentence, nothing lost."""

import dataclasses
import glob
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import paddle
import pytest
from commands import (DIGITS, PATIENCE, SMALL, SMALLEST, Ended, call, command, environment, good, image_folder,
                      refusal)
from small_runs import SETTINGS, STANDALONE, fit, newest
from test_interruption import ENDLESS, Program, processes

from resnet48.images import loader
from resnet48.system import runtime
from resnet48.system.errors import UserError
from resnet48.training import checkpoint

TRAINING = ("train_supernet.py", "run", *SMALL)
ON_DIGITS = ("train_supernet.py", "run", *DIGITS, "--dyna_batch_size", 2, "--eval_freq", 0)


def sentence(ended):
    """What a program said that ended as it must, other programs' lines left out."""
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and "Traceback" not in ended.err + ended.out, ended
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def namespace():
    """run(mounts, words, after=""): a program that sees file systems of its own; skips where that is not allowed.

    mounts: lines of shell to run first; after: lines of shell to run when it has ended.
    """
    for way in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        try:
            if subprocess.run([*way, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0:
                break
        except FileNotFoundError:
            pass
    else:
        pytest.skip("mounting is not permitted here")

    def run(mounts, words, after=""):
        script = f'set -e\n{mounts}\nset +e\n"$@"\ncode=$?\nset -e\n{after}\nexit $code'
        ended = subprocess.run([*way, "sh", "-c", script, "sh", *command(*words)], env=environment(),
                               capture_output=True, text=True, timeout=PATIENCE)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("photos") / "images")


# ---- disks

@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_checkpoint_leaves_the_one_before_and_more_room_resumes(tmp_path, namespace):
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    words = (*ON_DIGITS, "--max_epoch", 3, "--save_dir")
    # Room for one checkpoint of 0.3 MB and a half. What is on the disk is copied away, for it goes with the program.
    said = sentence(namespace(f"mount -t tmpfs -o size=450k tmpfs {small}", (*words, small), f"cp -a {small} {large}"))
    assert said == (f"cannot write the checkpoint {small}/checkpoints/step-00000010: No space left on device; older "
                    f"ones in {small}/checkpoints are untouched")
    assert sorted(os.listdir(large / "checkpoints")) == ["step-00000005"]
    assert checkpoint.load(str(large)).state["step"] == 5
    went_on = good(call(*words, large))
    assert f"resumed {large}/checkpoints/step-00000005 at step 5" in went_on.out
    assert checkpoint.load(str(large / "final.pdparams")).state["step"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("mount, reason", [("-o ro", "Read-only file system"),
                                           ("-o size=4k tmpfs {0} && echo > {0}/full #", "No space left on device")],
                         ids=["read-only", "full"])
def test_a_disk_that_takes_nothing_is_refused_at_the_start(tmp_path, namespace, mount, reason):
    mounts = f"mount -t tmpfs {mount.format(tmp_path)} tmpfs {tmp_path}"
    said = sentence(namespace(mounts, (*ON_DIGITS, "--save_dir", tmp_path / "run")))
    assert said == f"cannot write {tmp_path}/run/config.yaml: {reason}"


def test_a_disk_that_is_full_when_a_row_of_metrics_is_written_is_one_sentence_and_the_run_resumes(tmp_path, capsys):
    config = dataclasses.replace(SETTINGS, save_dir=str(tmp_path), log_freq=1, max_epoch=10, save_freq=1)
    fit(STANDALONE, dataclasses.replace(config, max_epoch=1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = dataclasses.replace(config, save_freq=5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # what a full disk does
    try:
        with pytest.raises(UserError, match=f"^cannot write {tmp_path}/metrics.csv: "):
            fit(STANDALONE, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest(tmp_path).state["step"] == 6
    fit(STANDALONE, config)
    assert newest(tmp_path).state["step"] == 60


@pytest.mark.slow
def test_a_log_on_a_full_disk_is_one_sentence(tmp_path):
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command(*ON_DIGITS, "--save_dir", tmp_path), env=environment(), stdout=full,
                               stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert sentence(Ended(ended.returncode, "", ended.stderr)) == "cannot write: No space left on device"


# ---- nobody reads what is printed

def pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def closed_terminal():
    master, terminal = os.openpty()
    os.close(master)
    return terminal


def without(number, words, handle=None, **options):
    """Run a program with a descriptor that is `handle`, or closed."""
    def change():
        os.close(number) if handle is None else os.dup2(handle, number)

    other = {"stderr": subprocess.PIPE} if number == 1 else {"stdout": subprocess.PIPE}
    return subprocess.run(words, env=environment(), text=True, timeout=PATIENCE, preexec_fn=change, **other, **options)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2], ids=["stdout", "stderr"])
@pytest.mark.parametrize("make", [pipe_without_reader, closed_terminal, lambda: None],
                         ids=["pipe", "terminal", "closed"])
def test_a_run_outlives_who_reads_it_and_loses_only_lines(tmp_path, photos, make, number):
    handle = make()
    ended = without(number, command(*TRAINING, "--image_dir", photos, "--max_epoch", 2, "--log_freq", 1, "--save_dir",
                                    tmp_path / "run"), handle)
    if handle is not None:
        os.close(handle)
    assert ended.returncode == 0 and "Error" not in (ended.stderr or ""), ended.stderr
    assert number == 1 or "trained: " in ended.stdout
    assert checkpoint.load(str(tmp_path / "run")).state["finished"] is True
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 7


@pytest.mark.slow
def test_a_reader_that_leaves_in_the_midst_loses_only_the_rest(tmp_path, photos):
    words = command(*TRAINING, "--image_dir", photos, "--max_epoch", 4, "--log_freq", 1, "--save_dir", tmp_path / "run")
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "step 1 " not in process.stdout.readline():
        pass
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(PATIENCE) == 0 and "Error" not in said
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 13


@pytest.mark.parametrize("make", [pipe_without_reader, lambda: None], ids=["pipe", "closed"])
@pytest.mark.parametrize("words, code", [(("describe", SMALLEST), 0), (("--help",), 0), (("describe", "7"), 2)])
def test_the_exit_code_is_that_of_the_work_whether_anybody_reads_or_not(make, words, code):
    for number in (1, 2):
        ended = without(number, command("-m resnet48", *words), make())
        assert ended.returncode == code and "Traceback" not in (ended.stderr or "")


def test_a_closed_stream_does_not_give_its_number_to_the_next_file(tmp_path):
    program = ("import os, sys\nfrom resnet48.system import streams\nstreams.outlive_readers()\n"
               "with open(sys.argv[1], 'w') as file:\n    file.write(str(file.fileno() > 2))\n"
               "os.write(1, b'by a library')\nprint('lost')")
    ended = without(1, [sys.executable, "-c", program, tmp_path / "file"])
    assert ended.returncode == 0 and (tmp_path / "file").read_text() == "True"


def test_characters_that_a_stream_lacks_are_written_as_escapes():
    program = ("from resnet48.system import streams\nstreams.outlive_readers()\n"
               "print('\\u732b \\udcff caf\\xe9')")
    for encoding, expected in (("ascii", b"\\u732b \\udcff caf\\xe9\n"), ("utf-8", "猫 \\udcff café\n".encode())):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True,
                               env={**environment(), "PYTHONIOENCODING": encoding})
        assert ended.stdout == expected, ended


# ---- shared memory

@pytest.mark.slow
def test_shared_memory_that_is_too_small_for_the_workers_is_refused_before_the_first_step(tmp_path, namespace):
    words = (*ON_DIGITS, "--save_dir", tmp_path / "run", "--num_workers")
    ended = namespace("mount -t tmpfs -o size=1m tmpfs /dev/shm", (*words, 2))
    said = sentence(ended)
    assert said.startswith("/dev/shm has 1.0 MB left, but batches from --num_workers 2 need 4.0 MB there")
    assert "--num_workers 0 needs none" in said and "--shm-size" in said and "step 1 " not in ended.out


@pytest.mark.slow
def test_shared_memory_that_is_just_large_enough_is_enough(tmp_path, namespace):
    words = (*ON_DIGITS, "--max_epoch", 2, "--save_dir", tmp_path / "run", "--num_workers", 2)
    good(namespace("mount -t tmpfs -o size=4.1m tmpfs /dev/shm".replace("4.1m", str(4_100_000)), words))


@pytest.mark.parametrize("workers, ranks, enough", [(2, 1, 5000), (1, 1, 3000), (4, 1, 9000), (2, 8, 40000)])
def test_what_workers_need_is_two_batches_each_and_the_one_in_use_for_every_rank(monkeypatch, workers, ranks, enough):
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", str(ranks))
    for free in (enough, enough - 1):
        monkeypatch.setattr(os, "statvfs", lambda _, free=free: namedtuple("Room", "f_bavail f_frsize")(free, 1))
        if free == enough:
            runtime.require_shared_memory(workers, 1000)
            continue
        with pytest.raises(UserError, match="/dev/shm"):
            runtime.require_shared_memory(workers, 1000)


# ---- processes that decode images

@pytest.mark.slow
def test_a_killed_worker_stops_the_training_and_the_same_command_resumes(tmp_path, photos):
    words = ("train_supernet.py", "run", *ENDLESS, "--save_freq", 1, "--image_dir", photos, "--save_dir", tmp_path)
    with Program(*words) as program:
        program.until("step 7 ")  # three steps an epoch: two checkpoints are there
        workers = [each for each, _, parent, _ in processes() if parent == program.process.pid]
        os.kill(workers[0], signal.SIGKILL)
        assert sentence(program.ended()).startswith("a process that decodes training images has died: killed, or out ")
        assert not program.leaves_processes()
    step = newest(tmp_path).state["step"]
    assert step >= 6 and not glob.glob(f"{tmp_path}/checkpoints/.writing-*")
    with Program(*words) as program:
        program.until(f"resumed {tmp_path}/checkpoints/step-{step:08d}").until(f"step {step + 1} ")


def test_a_dead_worker_is_named_wherever_it_interrupts():
    class Interrupted(paddle.autograd.PyLayer):
        @staticmethod
        def forward(_context, x):
            return x * 2

        @staticmethod
        def backward(_context, _gradient):
            raise SystemError("DataLoader process (pid 7) exited")

    x = paddle.ones([1])
    x.stop_gradient = False
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(UserError, match="a process that decodes training images has died"):
            with loader.dead_workers_named():
                Interrupted.apply(x).backward()
        with pytest.raises(FileNotFoundError):
            with loader.dead_workers_named():
                open("absent")
    finally:
        signal.signal(signal.SIGCHLD, before)


# ---- images

@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_are_deleted_under_way_are_named_and_without_any_left_the_training_stops(tmp_path, workers):
    images = image_folder(tmp_path / "images")
    with Program("train_supernet.py", "run", *ENDLESS, "--num_workers", workers, "--save_freq", 1, "--image_dir",
                 images, "--save_dir", tmp_path / "run") as program:
        program.until("step 2 ")
        os.unlink(f"{images}/train/bee/1.png")
        program.until(f"skipped the unreadable image {images}/train/bee/1.png (1 so far)").until("step ")
        shutil.rmtree(f"{images}/train")
        assert sentence(program.ended()).startswith(f"too many training images of {images} are unreadable: 24 so far")
    assert newest(tmp_path / "run").state["step"] >= 3


@pytest.mark.parametrize("change, said", [
    (lambda: shutil.rmtree("images/train/cat"), "train/ and val/ in images must hold the same class folders; 1 differ"),
    (lambda: [shutil.rmtree(f"images/{part}/cat") for part in ("train", "val")],
     "the classes have changed (['cat'] then, [] now)"),
    (lambda: [shutil.copytree(f"images/{part}/cat", f"images/{part}/dog") for part in ("train", "val")],
     "the classes have changed ([] then, ['dog'] now)"),
    (lambda: shutil.copy("images/train/ant/1.png", "images/train/ant/new.png"), "the training images have changed"),
    (lambda: os.unlink("images/train/ant/1.png"), "the training images have changed (24 then, 23 now)"),
    (lambda: os.rename("images/train/ant/1.png", "images/train/ant/new.png"), "the names of the training images have")],
    ids=["a class less in train", "a class less", "a class more", "an image more", "an image less", "another image"])
def test_a_run_does_not_go_on_with_other_images(here, change, said):
    change()
    assert said in refusal((*TRAINING, "--image_dir", "images", "--save_dir", "supernet"), here)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv takes from root what makes it ignore permissions")
@pytest.mark.parametrize("closed", ["run/checkpoints", "run/metrics.csv", "run"])
def test_what_may_not_be_read_of_a_run_is_one_sentence(tmp_path, monkeypatch, closed):
    words = [*SMALL, "--image_dir", image_folder(tmp_path / "images"), "--save_dir", "run"]
    monkeypatch.chdir(tmp_path)
    good(call("train_supernet.py", "run", *words))
    rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps",
              "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    os.chmod(tmp_path / closed, 0)
    try:
        ended = subprocess.run([*rights, *command("train_supernet.py", "run", *words, "--max_epoch", 2)], cwd=tmp_path,
                               env=environment(), capture_output=True, text=True)
    finally:
        os.chmod(tmp_path / closed, 0o755)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"{closed}" in ended.stderr and "Permission denied" in ended.stderr
