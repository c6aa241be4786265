"""README.md and the pages of docs/: links and file names exist, commands parse, what is marked as runnable runs."""

import dataclasses
import os
import re
import subprocess
import sys

import pages
import pytest
from commands import ROOT, call, environment, good, module
from paddle.distributed.launch.context import args_envs

from resnet48.system import config, options

SCRIPTS = ("pretrain.py", "train_supernet.py", "eval_supernet.py")
#: Options of programs that are neither ours nor Paddle's launcher.
OF_OTHERS = {"--shm-size", "--shm-size=8g"}
RUNNABLE = [(page, block) for page in sorted(pages.PAGES) for block in pages.blocks(page, "sh", "runnable")]
DEMO = ("python3 -m paddle.distributed.launch --gpu 0,1,2,3 pretrain.py run "
        "--arch 1322221222220000122200000024540000000000005525000000 --image_dir /data/ILSVRC2012/ --batch_size 1024 "
        "--max_epoch 90 --warmup 2 > x.log")


def launched(words, monkeypatch):
    """The program and its arguments behind those of Paddle's launcher, all of which it must know."""
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    found, unknown = args_envs.parse_args()
    assert not unknown, unknown
    return [found.training_script, *found.training_script_args]


def require_command(words, monkeypatch):
    """Fail unless the command exists and takes these arguments."""
    if words[0] == "srun":
        words = words[words.index("python3"):]
    if words[0] == "pip":
        assert words[1] == "install"
        names = [name for flag, name in zip(words, words[1:]) if flag == "-r"]
        assert all(os.path.exists(os.path.join(ROOT, name)) for name in names)
        return
    if words[0] == "sh":
        assert os.path.exists(os.path.join(ROOT, words[1]))
        return
    assert words[0] == "python3", words
    if words[1:3] == ["-m", "paddle.distributed.launch"]:
        words = ["python3", *launched(words[3:], monkeypatch)]
    program, arguments = (words[1], words[2:]) if words[1] != "-m" else (" ".join(words[1:3]), words[3:])
    if program.startswith("benchmarks/"):
        with open(os.path.join(ROOT, program)) as file:
            source = file.read()
        assert all(word in source for word in arguments if word.startswith("--"))
        return
    assert program in (*SCRIPTS, "-m resnet48"), words
    module(program).main(arguments)


@pytest.fixture
def parsed_only(monkeypatch):
    """Programs read their command lines and then do nothing."""
    read = config.command_line
    monkeypatch.setattr(config, "command_line", lambda *arguments: (lambda _: None, read(*arguments)[1]))
    monkeypatch.chdir(ROOT)


# --- links and names --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", sorted(pages.PAGES))
def test_every_link_leads_somewhere(page):
    missing = []
    for link in pages.links(page):
        path, _, anchor = link.partition("#")
        if re.match("https?:", link):
            continue
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        known = pages.anchors(target) if target in pages.PAGES else {""}
        if not os.path.exists(os.path.join(ROOT, target)) or anchor and anchor not in known:
            missing.append(link)
    assert not missing


@pytest.mark.parametrize("page", sorted(pages.PAGES))
def test_every_file_that_is_named_is_there(page):
    text = re.sub(r"https?://\S+", "", pages.text(page))
    names = re.findall(r"(?<![\w/.-])(?:configs|docs|tests|benchmarks|resnet48)/[\w./-]*\w", text)
    names += re.findall(r"(?<![\w/.-])(?:\w+\.sh|requirements[\w-]*\.txt|(?:pretrain|\w+_supernet)\.py)\b", text)
    assert not [name for name in names if "NAME" not in name and not os.path.exists(os.path.join(ROOT, name))]


def test_every_page_of_docs_is_linked_from_the_readme():
    assert {name for name in pages.PAGES if name.startswith("docs/")} <= set(pages.links("README.md"))


# --- commands ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", sorted(pages.PAGES))
def test_every_command_that_is_shown_takes_its_arguments(page, parsed_only, monkeypatch):
    for words in pages.all_commands(page):
        require_command(words, monkeypatch)


def test_a_command_with_an_unknown_flag_would_be_found(parsed_only, monkeypatch):
    with pytest.raises(Exception, match="unknown flag --achs; the nearest is --archs"):
        require_command("python3 eval_supernet.py plan --achs list.json".split(), monkeypatch)
    with pytest.raises(AssertionError, match="--gpux"):
        require_command("python3 -m paddle.distributed.launch --gpux 0 pretrain.py run".split(), monkeypatch)


@pytest.mark.parametrize("page", sorted(pages.PAGES))
def test_every_flag_that_is_named_exists(page, monkeypatch):
    known = {"help", "config", "recipe"} | {
        name for each in vars(options).values() if dataclasses.is_dataclass(each)
        for item in dataclasses.fields(each) for name in (item.name, *item.metadata["old_names"])}
    named = {flag for code in pages.inline(page) for flag in re.findall(r"(?<!\S)--[a-z][\w-]*(?:=\S+)?", code)}
    unknown = {flag for flag in named - OF_OTHERS if flag[2:] not in known}
    monkeypatch.setattr(sys, "argv", ["launch", *(f"{flag}=1" for flag in sorted(unknown)), "program.py"])
    assert not args_envs.parse_args()[1]


def test_the_line_of_the_challenges_demo_stands_as_it_is():
    assert DEMO + "\n" in pages.text("docs/training.md")


@pytest.mark.parametrize("page, block", RUNNABLE, ids=[page for page, _ in RUNNABLE])
def test_what_is_marked_as_runnable_runs(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for python, *words in pages.commands(block):
        assert python == "python3"
        program, arguments = (words[0], words[1:]) if words[0] != "-m" else (" ".join(words[:2]), words[2:])
        good(call(program, *arguments))


@pytest.mark.slow
def test_what_plan_prints_for_the_published_list_is_shown(published):
    said = good(call("eval_supernet.py", "plan", "--archs", published, "--gflops", "10000")).out
    assert said.splitlines()[1:] == pages.blocks("docs/evaluation.md", "")[0].splitlines()


@pytest.mark.slow
def test_the_script_for_slurm_starts_a_training_on_two_machines(tmp_path):
    (script,) = (block for block in pages.blocks("docs/several_machines.md", "sh") if block.startswith("#!"))
    small = "train_supernet.py run --base_channels 2,4,8,16 --divisor 1 --batch_size 64 --max_epoch 1 " \
            "--calib_images 64 --num_workers 0"
    script = script.replace("train_supernet.py run --image_dir /data/ILSVRC2012", small).replace(":8090", ":18090")
    script = script.replace("train_supernet.py", os.path.join(ROOT, "train_supernet.py"))
    programs = {"python3": f'exec {sys.executable} "$@"',
                "hostname": "echo 127.0.0.1 192.0.2.1",
                "srun": 'shift\nSLURM_NODEID=1 "$@" > second 2>&1 &\nSLURM_NODEID=0 "$@"\ncode=$?\nwait\nexit $code'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    ended = subprocess.run(["sh", "job.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                           env={**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NNODES": "2"})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "on 2 process(es)" in ended.stdout and (tmp_path / "output/supernet/final.pdparams").exists()
