"""`eval_supernet.py bundle`: one archive that repeats a submission in an empty folder."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from commands import DIGITS, PATIENCE, call, good, refusal

from resnet48.ranking import bundle as bundling
from resnet48.system import config
from resnet48.system.errors import UserError
from resnet48.training import checkpoint, portable, tensor_files

SCRIPT = "eval_supernet.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with train/, list.json and s.json: a supernet of one epoch on digits, and 4 archs on 60 images."""
    folder = tmp_path_factory.mktemp("made")
    good(call("train_supernet.py", "run", *DIGITS, "--warmup", 0, "--dyna_batch_size", 3, "--save_dir",
              folder / "train"))
    good(call("-m resnet48", "sample", 4, "--output", folder / "list.json"))
    good(call(SCRIPT, "run", "--checkpoint", folder / "train", "--archs", folder / "list.json", "--output",
              folder / "s.json", "--val_images", 60, "--calib_images", 16, "--num_workers", 0))
    return folder


def words(made, output, **other):
    paths = {"submission": made / "s.json", "archs": made / "list.json", "checkpoint": made / "train", **other}
    return [SCRIPT, "bundle", *(f"--{name}={path}" for name, path in paths.items()), "--output", output]


@pytest.fixture(scope="module")
def bundle(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b.tar.gz"
    good(call(*words(made, path)))
    return path


@pytest.fixture(scope="module")
def unpacked(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(bundle) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.slow
def test_the_two_commands_in_it_repeat_training_and_evaluation_bit_for_bit(made, unpacked, tmp_path):
    folder = shutil.copytree(unpacked, tmp_path / "unpacked")
    commands = re.findall(r"^    python3 (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = [subprocess.run([sys.executable, *each.split()], cwd=folder, env=environment, text=True, timeout=PATIENCE,
                           stdout=subprocess.PIPE, check=True).stdout for each in commands]
    assert len(said) == 3 and "evaluated 4 of 4 archs again on 60 images: all hits are equal" in said[2]
    for ours, theirs in (("s.json", "repeated/submission.json"), ("s.counts.json", "repeated/submission.counts.json")):
        assert (made / ours).read_bytes() == (folder / theirs).read_bytes(), theirs
    # As numbers: names in the file count the tensors that its process had made before.
    one, other = (tensor_files.read(str(path)) for path in (made / "train" / "final.pdparams",
                                                            folder / "repeated" / "supernet" / "final.pdparams"))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_it_holds_what_was_submitted_and_the_sums_of_all_files(made, unpacked):
    for ours, theirs in (("s.json", "submission.json"), ("s.counts.json", "submission.counts.json"),
                         ("list.json", "archs.json"), ("train/final.pdparams", "supernet.pdparams")):
        assert (made / ours).read_bytes() == (unpacked / theirs).read_bytes()
    sums = dict(reversed(line.split("  ", 1)) for line in (unpacked / "SHA256SUMS").read_text().splitlines())
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert names == {*sums, "SHA256SUMS"} and "code/resnet48/space/arch.py" in names
    assert all(hashlib.sha256((unpacked / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
    about = json.loads((unpacked / "bundle.json").read_text())
    assert about["arch_list_sha256"] == sums["archs.json"] and about["checkpoint_sha256"] == sums["supernet.pdparams"]
    good(call(SCRIPT, "verify", "--submission", unpacked / "submission.json", "--archs", unpacked / "archs.json",
              "--checkpoint", unpacked / "supernet.pdparams"))


def test_no_path_of_the_machine_is_in_it(made, unpacked):
    for path in unpacked.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(made).encode() not in content and os.path.expanduser("~/").encode() not in content, path


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".zip"])
def test_it_is_the_same_each_time_and_replaces_itself(made, bundle, tmp_path, monkeypatch, ending):
    path, before = tmp_path / f"b{ending}", None
    for now in (1.1e9, 1.2e9):
        monkeypatch.setattr("time.time", lambda: now)
        good(call(*words(made, path)))
        assert before in (None, path.read_bytes())
        before = path.read_bytes()
        os.utime(made / "s.json", (1e9, 1e9))
    if ending == ".tar.gz":
        assert before == bundle.read_bytes()
    with zipfile.ZipFile(path) if ending == ".zip" else tarfile.open(path) as archive:
        names = archive.namelist() if ending == ".zip" else archive.getnames()
    assert names[0] == "bundle.json" and len(names) == len(set(names))


def test_other_files_are_not_replaced(made, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("bundle.json", "{}")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(made / "s.json", "s.json")
    (tmp_path / "empty.tgz").touch()
    (tmp_path / "text.tar.gz").write_text("notes")
    for name in os.listdir(tmp_path):
        assert "is there already and is not a bundle" in refusal(words(made, tmp_path / name), tmp_path)
    assert "takes a name that ends with .tar.gz" in refusal(words(made, tmp_path / "bundle"), tmp_path)


def test_what_verify_finds_fault_with_or_nothing_can_repeat_is_refused(made, weights, tmp_path):
    shutil.copytree(made, tmp_path / "here")
    here = tmp_path / "here"
    assert "was written for another checkpoint" in refusal(words(here, here / "b.zip", checkpoint=weights), here)
    state = json.loads((here / "train" / "final.json").read_text())
    (here / "alone.json").write_text(json.dumps({"net": state["net"]}))
    shutil.copy(here / "train" / "final.pdparams", here / "alone.pdparams")
    assert "does not say how it was trained" in refusal(words(here, here / "b.zip", checkpoint=here / "alone"), here)
    (here / "s.counts.json").unlink()
    assert "there are no counts" in refusal(words(here, here / "b.zip"), here)


def test_what_a_training_has_read_goes_with_it_but_images_are_for_the_reader_to_name(here):
    (here / "own.yaml").write_text("a space")
    found = checkpoint.load("train")
    found.state["settings"] |= {"pretrained": str(here / "train"), "space": str(here / "own.yaml"),
                                "image_dir": str(here / "images")}
    settings, ranks = portable.settings(found, "repeated")
    members = portable.members(found, "net")
    assert members.keys() == {"net.pdparams", "net.json", "pretrained.pdparams", "pretrained.json", "space.yaml"}
    assert (settings.pretrained, settings.space, settings.save_dir, ranks) == ("pretrained.pdparams", "space.yaml",
                                                                               "repeated", 1)
    assert settings.image_dir is None and portable.image_source(found) == "images"
    texts = [config.dump(settings).encode(), *(content for content in members.values() if isinstance(content, bytes))]
    assert not any(str(here).encode() in text for text in texts)
    os.unlink("own.yaml")
    with pytest.raises(UserError, match="--space .* is not there any more"):
        portable.members(found, "net")
    found.state["settings"]["pretrained"] = "gone"
    with pytest.raises(UserError, match="--pretrained, which cannot be read any more"):
        portable.members(found, "net")


def test_the_commands_of_a_folder_of_images_and_of_several_processes_say_so():
    manifest = {"archs": 3, "val_images": 9, "versions": {"paddle": "3.3.1"}}
    text = bundling.readme(manifest, 4, "ILSVRC2012", {"sha256": "0" * 64, "git_commit": "1" * 40})
    train, evaluate, verify = re.findall(r"^    (python3 .*)$", text, re.MULTILINE)
    assert train.startswith("python3 -m paddle.distributed.launch --nproc_per_node 4 code/train_supernet.py")
    assert all(each.endswith(" --image_dir IMAGES") for each in (train, evaluate, verify))
    assert "which was called ILSVRC2012" in text and "git commit 1111" in text
