import os
import socket
import subprocess
import sys

import numpy as np
import paddle
import pytest

from conftest import ROOT

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
        assert np.abs(value - together[name]).max() <= 1e-5 * np.abs(value).max(), name


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
def test_a_rank_that_dies_takes_the_job_down_and_its_log_is_named(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text("import os, sys, time\n"
                      "if os.environ['PADDLE_TRAINER_ID'] == '1':\n    sys.exit('rank 1 is broken')\n"
                      "time.sleep(200)\n")
    done = subprocess.run([*LAUNCH, "--nproc_per_node", "2", str(script)], cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=100)
    assert done.returncode != 0
    assert "rank 1 is broken" in done.stdout + (tmp_path / "log" / "workerlog.1").read_text()
