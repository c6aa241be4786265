import os

import paddle
import pytest

from resnet48.system import machine

NAMES = {"OMP_NUM_THREADS", "FLAGS_paddle_num_threads", "GLOG_minloglevel", "MKL_DEBUG_CPU_TYPE",
         "FLAGS_cudnn_exhaustive_search", "FLAGS_allocator_strategy", "FLAGS_fraction_of_gpu_memory_to_use"}


def test_threads_are_all_the_cpus_of_a_single_process():
    added = machine.settings({}, 8, False, "3.3.1")
    assert (added["OMP_NUM_THREADS"], added["FLAGS_paddle_num_threads"]) == ("8", "8")


@pytest.mark.parametrize("cpus, ranks, threads", [(8, "2", "4"), (8, "3", "2"), (2, "8", "1"), (4, "1", "4"),
                                                  (4, "0", "4")])
def test_the_ranks_of_one_machine_divide_its_cpus(cpus, ranks, threads):
    added = machine.settings({"PADDLE_LOCAL_SIZE": ranks}, cpus, False, "3.3.1")
    assert (added["OMP_NUM_THREADS"], added["FLAGS_paddle_num_threads"]) == (threads, threads)


@pytest.mark.parametrize("environment, ranks", [({}, 1), ({"PADDLE_LOCAL_SIZE": "3"}, 3),
                                                ({"PADDLE_LOCAL_SIZE": "0"}, 1)])
def test_the_processes_on_this_machine_are_those_that_the_launcher_names(environment, ranks):
    assert machine.local_ranks(environment) == ranks


def test_transpositions_are_carried_out_at_once_in_2_6_only():
    assert machine.settings({}, 2, True, "2.6.2")["FLAGS_use_stride_kernel"] == "0"
    assert "FLAGS_use_stride_kernel" not in machine.settings({}, 2, True, "3.3.1")


def test_the_mkl_setting_is_for_amd_only():
    assert machine.settings({}, 2, True, "3.3.1")["MKL_DEBUG_CPU_TYPE"] == "5"
    assert machine.settings({}, 2, True, "3.3.1", avx512=True)["MKL_DEBUG_CPU_TYPE"] == "7"
    assert "MKL_DEBUG_CPU_TYPE" not in machine.settings({}, 2, False, "3.3.1")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_variable_that_the_user_has_set_stays(name):
    for value in ("7", ""):
        assert set(machine.settings({name: value}, 2, True, "3.3.1")) == NAMES - {name}


def test_the_pool_of_paddle_follows_the_threads_that_the_user_asked_for():
    assert machine.settings({"OMP_NUM_THREADS": "3"}, 8, False, "3.3.1")["FLAGS_paddle_num_threads"] == "3"


def test_the_settings_are_a_pure_function_of_their_arguments():
    given = {"PADDLE_LOCAL_SIZE": "2"}
    before = dict(os.environ)
    assert machine.settings(given, 8, True, "3.3.1") == machine.settings(given, 8, True, "3.3.1")
    assert given == {"PADDLE_LOCAL_SIZE": "2"}
    assert dict(os.environ) == before


@pytest.mark.parametrize("maker, flags, amd, avx512", [
    ("AuthenticAMD", "avx2", True, False), ("GenuineIntel", "avx2", False, False), (None, "", False, False),
    ("AuthenticAMD", "avx2 avx512f", True, False), ("AuthenticAMD", " ".join(sorted(machine.AVX512)), True, True)])
def test_prepare_applies_the_settings_of_the_cpu_that_is_there(tmp_path, monkeypatch, maker, flags, amd, avx512):
    info = tmp_path / "cpuinfo"
    if maker:
        info.write_text(f"processor\t: 0\nvendor_id\t: {maker}\nflags\t\t: fpu {flags}\n")
    environment = {"GLOG_minloglevel": "0"}
    monkeypatch.setattr(machine, "CPU_INFO", str(info))
    monkeypatch.setattr(os, "environ", environment)
    machine.prepare()
    assert environment == {"GLOG_minloglevel": "0", **machine.settings({"GLOG_minloglevel": "0"},
                                                                       machine.cpu_count(), amd, paddle.__version__,
                                                                       avx512)}


def test_at_least_one_cpu_is_counted():
    assert machine.cpu_count() >= 1


def test_the_report_tells_what_was_detected_what_was_set_and_what_the_environment_had_fixed(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("vendor_id\t: AuthenticAMD\n")
    monkeypatch.setattr(machine, "CPU_INFO", str(info))
    monkeypatch.setattr(machine, "cpu_count", lambda: 6)
    monkeypatch.setattr(machine, "_shown", [])
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "3", "RESNET48_KEEP_MEMORY": "0", "HOME": "/"})
    machine.prepare()
    first, second = machine.report().splitlines()
    assert first.startswith(f"machine: 6 CPUs, AMD, Paddle {paddle.__version__}; set FLAGS_")
    assert "MKL_DEBUG_CPU_TYPE=5" in first and "FLAGS_paddle_num_threads=3" in first and "OMP_NUM_THREADS" not in first
    assert second == "fixed by the environment: OMP_NUM_THREADS=3 RESNET48_KEEP_MEMORY=0"
