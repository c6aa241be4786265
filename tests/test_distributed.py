import os
import signal
import socket
import subprocess
import sys

import numpy as np
import paddle
import pytest
from commands import DIGITS as SMALL_DIGITS, PATIENCE, command, environment, image_folder
from conftest import ROOT
from test_interruption import ENDLESS, Program, patient, processes, wait_until
from test_recipes import SUPERNETS

from resnet48.system.errors import STOPPED
from resnet48.training import checkpoint

WORKER = os.path.join(ROOT, "tests", "train_ranks.py")
LAUNCH = [sys.executable, "-m", "paddle.distributed.launch"]


def run(command, folder):
    """Run to the end; what it printed, workers' logs included."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch_or_half_of_the_subnets_each(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    run([sys.executable, WORKER, "32", one], tmp_path)
    run([*LAUNCH, "--nproc_per_node", "2", WORKER, "32", two], tmp_path)
    for kind in ("standalone", "sandwich", "ranking"):
        alone, together = (paddle.load(f"{path}.{kind}", return_numpy=True) for path in (one, two))
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            assert np.abs(value - together[name]).max() <= 1e-12 * np.abs(value).max(), (kind, name)


@pytest.mark.slow
def test_on_two_ranks_every_recipe_gives_both_the_same_weights_and_resumes_bit_for_bit(tmp_path):
    run([*LAUNCH, "--nproc_per_node", "2", os.path.join(ROOT, "tests", "recipe_ranks.py"), str(tmp_path)], tmp_path)
    assert (tmp_path / "done.txt").read_text().splitlines() == [*SUPERNETS, "ranking.yaml with shared subnets"]


@pytest.mark.slow
def test_two_launchers_on_loopback_train_as_two_machines(tmp_path):
    master = f"127.0.0.1:{free_port()}"
    command = [*LAUNCH, "--nnodes", "2", "--nproc_per_node", "1", "--master", master]
    script = [os.path.join(ROOT, "train_supernet.py"), "run", *SMALL_DIGITS, "--save_dir", "run"]
    machines = [subprocess.Popen([*command, "--rank", str(rank), "--log_dir", f"log{rank}", *map(str, script)],
                                 cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                for rank in range(2)]
    said = [machine.communicate(timeout=PATIENCE)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert "on 2 process(es)" in said[0] and (tmp_path / "run" / "final.pdparams").exists()


@pytest.mark.slow
def test_a_killed_rank_takes_the_job_down_its_log_is_named_and_as_many_ranks_go_on(tmp_path, monkeypatch):
    photos, step = image_folder(tmp_path / "images"), 0
    monkeypatch.chdir(tmp_path)
    for rank in (0, 1):
        with Program("-m paddle.distributed.launch", "--nproc_per_node", 2, os.path.join(ROOT, "train_supernet.py"),
                     "run", *ENDLESS, "--save_freq", 5, "--image_dir", photos, "--save_dir", "run") as job:
            job.until(f"steps {step} to ").until(f"step {step + 7} ")  # one step an epoch
            os.kill(of_rank(rank, job.process.pid), signal.SIGKILL)
            ended = job.ended()
            assert not job.leaves_processes()
        logs = [(tmp_path / "log" / f"workerlog.{each}").read_text() for each in (0, 1)]
        log, said = logs[1 - rank], ended.out + ended.err
        assert ended.code != 0 and [f"steps {step} to " in each for each in logs] == [True, False]
        assert f"Container rank {rank} status failed" in said and f"log log/workerlog.{rank}" in said
        assert "Traceback" not in said + log
        lost = f"error: rank {1 - rank} of 2 has lost the others; the log of the one that ended first, log/workerlog.N"
        assert lost in log or "error" not in log.lower()  # the launcher may have ended it before it noticed
        found = checkpoint.load("run").state["step"]
        assert found >= step + 5
        step = found


@pytest.mark.slow
@pytest.mark.parametrize("number, codes", [
    # Paddle's launcher exits with the number from inside its handler; where that comes while it looks at its ranks, the
    # exit is swallowed, and it ends with what they ended with.
    (signal.SIGTERM, {signal.SIGTERM, STOPPED}), (signal.SIGUSR1, {-signal.SIGUSR1}),
    (signal.SIGHUP, {-signal.SIGHUP})])
def test_ranks_stop_with_a_checkpoint_whether_their_launcher_passes_a_signal_on_or_dies_of_it(
        tmp_path, monkeypatch, number, codes):
    photos = image_folder(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    with Program("-m paddle.distributed.launch", "--nproc_per_node", 2, patient(tmp_path), "run", *ENDLESS,
                 "--num_workers", 0, "--image_dir", photos, "--save_dir", "run") as job:
        job.until("step 2 ")
        ranks = [of_rank(rank, job.process.pid) for rank in (0, 1)]
        job.process.send_signal(number)
        assert job.ended().code in codes
        wait_until(lambda: not any(os.path.exists(f"/proc/{rank}") for rank in ranks))
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1)]
    why = "SIGTERM" if number == signal.SIGTERM else "the end of its launcher"
    assert f"stopped by {why} after step " in logs[0] or "stopped by another rank after step " in logs[0]
    assert "Traceback" not in "".join(logs) and checkpoint.load("run").state["finished"] is False


def of_rank(rank, launcher):
    """The process of a rank."""
    for process, _, parent, _ in processes():
        if parent == launcher:
            with open(f"/proc/{process}/environ") as file:
                if f"PADDLE_TRAINER_ID={rank}" in file.read().split("\0"):
                    return process
    raise AssertionError(f"rank {rank} is not there")


def waits_alone(rank, **more):
    """The environment of a rank of two, the other of which is never started."""
    endpoints = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    return {**environment(), "PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": str(rank), "PADDLE_MASTER": endpoints[0],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints), "PADDLE_CURRENT_ENDPOINT": endpoints[rank], **more}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_the_others_can_be_told_to_stop(tmp_path, rank):
    program = subprocess.Popen(command("train_supernet.py", "run", *SMALL_DIGITS, "--save_dir", tmp_path / "run"),
                               env=waits_alone(rank), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(parent == program.pid for _, _, parent, _ in processes()))  # who watches how long it waits
    program.terminate()
    _, said = program.communicate(timeout=PATIENCE)
    assert "Traceback" not in said and said.splitlines()[-1].startswith("stopped by SIGTERM")
    assert program.returncode in (STOPPED, -signal.SIGKILL) and os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_are_never_started_are_waited_for_only_so_long(tmp_path, rank):
    alone = waits_alone(rank, FLAGS_stop_check_timeout="2")
    done = subprocess.run(command("train_supernet.py", "run", *SMALL_DIGITS, "--save_dir", tmp_path / "run"), env=alone,
                          capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL and "Traceback" not in done.stderr
    assert f"error: rank {rank} of 2 has waited 2 s for the others: start as many processes as" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_only_rank_0_writes_and_every_rank_names_the_unreadable_images_it_meets_in_its_own_log(tmp_path):
    photos = image_folder(tmp_path / "images")
    with open(f"{photos}/train/ant/0.JPEG", "w") as file:
        file.write("no image")
    run([*LAUNCH, "--nproc_per_node", "2", os.path.join(ROOT, "train_supernet.py"), "run", *map(str, ENDLESS),
         "--max_epoch", "12", "--num_workers", "0", "--image_dir", photos, "--save_dir", "run", "--calib_images", "16",
         "--skip_bad_images"], tmp_path)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000012"]  # 24 images in batches of 2 x 8
    assert (tmp_path / "run" / "final.pdparams").exists()
    for rank in range(2):  # in twelve epochs both have met it
        assert f"skipped the unreadable image {photos}/train/ant/0.JPEG" in (
            tmp_path / "log" / f"workerlog.{rank}").read_text()
