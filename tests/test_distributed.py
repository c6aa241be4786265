import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from commands import DIGITS as SMALL_DIGITS, command, environment, image_folder
from conftest import ROOT
from test_interruption import ENDLESS, Program, processes

from resnet48 import checkpoint

WORKER = os.path.join(ROOT, "tests", "train_ranks.py")
LAUNCH = [sys.executable, "-m", "paddle.distributed.launch"]
DIGITS = ["--config", os.path.join(ROOT, "configs", "digits.yaml"), "--num_workers", "0", "--max_epoch", "1"]


def run(command, folder):
    """Run to the end; what it printed, workers' logs included."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["standalone", "sandwich"])
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path, kind):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    run([sys.executable, WORKER, kind, "32", one], tmp_path)
    run([*LAUNCH, "--nproc_per_node", "2", WORKER, kind, "32", two], tmp_path)
    alone, together = paddle.load(one, return_numpy=True), paddle.load(two, return_numpy=True)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert np.abs(value - together[name]).max() <= 1e-12 * np.abs(value).max(), name


@pytest.mark.slow
def test_only_rank_0_writes_and_the_run_goes_on_with_as_many_ranks(tmp_path):
    command = [*LAUNCH, "--nproc_per_node", "2", os.path.join(ROOT, "train_supernet.py"), "run", *DIGITS,
               "--save_dir", "run"]
    run(command, tmp_path)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000014"]  # 1437 images in batches of 2 x 48
    assert (tmp_path / "run" / "final.pdparams").exists()
    said = run([*command, "--max_epoch", "2"], tmp_path)
    assert said.count("steps 14 to 28") == 1


@pytest.mark.slow
def test_two_launchers_on_loopback_train_as_two_machines(tmp_path):
    master = f"127.0.0.1:{free_port()}"
    command = [*LAUNCH, "--nnodes", "2", "--nproc_per_node", "1", "--master", master]
    script = [os.path.join(ROOT, "train_supernet.py"), "run", *DIGITS, "--save_dir", "run"]
    machines = [subprocess.Popen([*command, "--rank", str(rank), "--log_dir", f"log{rank}", *script], cwd=tmp_path,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(2)]
    said = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert "on 2 process(es)" in said[0] and (tmp_path / "run" / "final.pdparams").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_takes_the_job_down_within_seconds_and_its_log_is_named(tmp_path, monkeypatch, rank):
    photos = image_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    with Program("-m paddle.distributed.launch", "--nproc_per_node", 2, os.path.join(ROOT, "train_supernet.py"), "run",
                 *ENDLESS, "--save_freq", 5, "--image_dir", photos, "--save_dir", "run") as job:
        job.until("step 7 ")  # one step an epoch
        os.kill(of_rank(rank, job.process.pid), signal.SIGKILL)
        killed = time.monotonic()
        ended = job.ended()
        seconds = time.monotonic() - killed
        assert not job.leaves_processes()
    log = (tmp_path / "log" / f"workerlog.{1 - rank}").read_text()
    said = ended.out + ended.err
    assert ended.code != 0 and seconds < 30, seconds
    assert f"Container rank {rank} status failed" in said and f"log log/workerlog.{rank}" in said
    assert "Traceback" not in said + log
    lost = f"error: rank {1 - rank} of 2 has lost the others; the log of the one that ended first, log/workerlog.N"
    assert lost in log or "error" not in log.lower()  # the launcher may have ended it before it noticed
    assert checkpoint.read("run").state["step"] >= 5


def of_rank(rank, launcher):
    """The process of a rank."""
    for process, _, parent, _ in processes():
        if parent == launcher:
            with open(f"/proc/{process}/environ") as file:
                if f"PADDLE_TRAINER_ID={rank}" in file.read().split("\0"):
                    return process
    raise AssertionError(f"rank {rank} is not there")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_are_never_started_are_waited_for_only_so_long(tmp_path, rank):
    endpoints = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    alone = {**environment(), "PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": str(rank), "PADDLE_MASTER": endpoints[0],
             "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints), "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
             "FLAGS_stop_check_timeout": "2"}
    done = subprocess.run(command("train_supernet.py", "run", *SMALL_DIGITS, "--save_dir", tmp_path / "run"), env=alone,
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGKILL and "Traceback" not in done.stderr
    assert f"error: rank {rank} of 2 has waited 2 s for the others: start as many processes as" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_every_rank_names_the_unreadable_images_it_meets_in_its_own_log(tmp_path):
    photos = image_folder(tmp_path / "images")
    with open(f"{photos}/train/ant/0.JPEG", "w") as file:
        file.write("no image")
    run([*LAUNCH, "--nproc_per_node", "2", os.path.join(ROOT, "train_supernet.py"), "run", *map(str, ENDLESS),
         "--max_epoch", "12", "--num_workers", "0", "--image_dir", photos, "--save_dir", "run", "--calib_images", "1",
         "--skip_bad_images"], tmp_path)
    for rank in range(2):  # in twelve epochs both have met it
        assert f"skipped the unreadable image {photos}/train/ant/0.JPEG" in (
            tmp_path / "log" / f"workerlog.{rank}").read_text()
