"""Everything a user can get wrong ends with code 2, one clear sentence, no stack trace, and nothing half written."""

import dataclasses
import json
import os
import re
import shutil

import pytest
from commands import NARROW, SMALL, SMALLEST, UNTIED, refusal

from resnet48.system import options

TRAINING = ("train_supernet.py", "run")
STANDALONE = ("pretrain.py", "run", "--arch", SMALLEST)
TRUTH = ("pretrain.py", "truth", "--archs", "list.json", "--processes", 1)
EVALUATION = ("eval_supernet.py", "run", "--checkpoint", "supernet", "--archs", "list.json")
EXPORT = ("eval_supernet.py", "export", "--checkpoint", "supernet", "--arch", SMALLEST)
VERIFY = ("eval_supernet.py", "verify", "--submission", "list.json", "--archs", "list.json")
SCORE = ("eval_supernet.py", "score", "--submission", "list.json", "--truth", "list.json")
SMALL_EVALUATION = ("--image_size", 32, "--calib_images", 8, "--num_workers", 0)
#: Every command with flags that make it quick: all but the last two read images.
COMMANDS = {"train_supernet run": (*TRAINING, *SMALL), "pretrain run": (*STANDALONE, *SMALL),
            "pretrain truth": (*TRUTH, *SMALL), "eval_supernet run": (*EVALUATION, *SMALL_EVALUATION),
            "eval_supernet export": (*EXPORT, *SMALL_EVALUATION), "eval_supernet score": SCORE,
            "eval_supernet verify": VERIFY}
READING_IMAGES = [words for name, words in COMMANDS.items() if name.split()[1] not in ("score", "verify")]
TRAINING_COMMANDS = READING_IMAGES[:3]
CONFIGS = {"train_supernet.py run": options.SupernetSettings, "pretrain.py run": options.StandaloneSettings,
           "pretrain.py truth": options.TruthSettings, "eval_supernet.py run": options.EvalSettings,
           "eval_supernet.py plan": options.PlanSettings, "eval_supernet.py score": options.ScoreSettings,
           "eval_supernet.py report": options.ReportSettings, "eval_supernet.py export": options.ExportSettings,
           "-m resnet48 describe": options.DescribeSettings,
           "-m resnet48 sample": options.SampleSettings}


def short(words):
    return " ".join(str(word) for word in words[:2])


# ---- flags and YAML

@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_below_what_makes_sense_are_refused_by_every_command(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    checked = 0
    for item in dataclasses.fields(CONFIGS[name]):
        ge, gt = item.metadata["ge"], item.metadata["gt"]
        for value in ([] if ge is None else [ge - 1, -7]) + ([] if gt is None else [gt, -0.5]):
            words = [*name.rsplit(" ", 1), f"--{item.name}", value]
            kind = "more than 0" if ge is None else f"{ge} or more"
            assert refusal(words, tmp_path).startswith(f"--{item.name} must be {kind}, got -" if value < 0 else
                                                       f"--{item.name} must be {kind}, got 0")
            checked += 1
    assert checked


@pytest.mark.parametrize("words, sentence", [
    (("--batchsize", 8), "unknown flag --batchsize; the nearest is --batch_size"),
    (("images",), "unexpected argument 'images'"),
    (("--lr", "fast"), "--lr takes a number, got 'fast'"),
    (("--base_channels", "8,16,32"), "base_channels takes four widths of 1 or more"),
    (("--base_channels", "0,16,32,64"), "base_channels takes four widths of 1 or more"),
    (("--base_channels=-8,16,32,64",), "base_channels takes four widths of 1 or more"),
    (("--crop_scale", 1.5), "--crop_scale must be 1 or less"),
    (("--seed", 2 ** 32), "--seed must be 4294967295 or less"),
    (("--device", "gpu"), "--device gpu, but Paddle sees no GPU here"),
    (("--objective", "fixed_teacher"), "--objective fixed_teacher distils from the full net, so it needs --pretrained"),
    (("--objective", "focal"), "--objective takes cross_entropy, in_place_distillation, fixed_teacher, "),
    (("--objective", "cross_entropy(alpha=2)"),
     "--objective cross_entropy(alpha=2): there is no hyper-parameter 'alpha'; there are label_smoothing"),
    (("--objective", "cross_entropy(label_smoothing=x)"),
     "--objective cross_entropy(label_smoothing=x): label_smoothing takes a value of type float, got 'x'"),
    (("--objective", "cross_entropy(0.1)"), "--objective cross_entropy(0.1): '0.1' is not of the form key=value"),
    (("--objective", "cross entropy"), "--objective takes a name or name(key=value, ...), got 'cross entropy'"),
    (("--sampler", "random"), "--sampler takes uniform, sandwich, largest, largest_and_random, fair, "),
    (("--sampler", "uniform(a=1)"), "--sampler uniform(a=1): there is no hyper-parameter 'a'; there are none"),
    (("--stages", "two"), "--stages is a list of mappings in a YAML file, got 'two'"),
    (("--recipe", "none"), "--recipe takes the name of a file in configs/ ("),
    (("--dyna_batch_size", 1), "--dyna_batch_size must be 2 or more for the sandwich rule"),
    (("--batch_size", 25), "--batch_size 25 on 1 process(es) is more than the 24 training images"),
    (("--image_dir", ""), "--image_dir is empty"), (("--pretrained", ""), "--pretrained is empty"),
    (("--save_dir", ""), "--save_dir is empty"), (("--resume", ""), "--resume is empty"),
    (("--config", "none.yaml"), "cannot read the config none.yaml: No such file or directory"),
    (("--config", "images"), "cannot read the config images: Is a directory")],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "")
def test_a_wrong_flag_is_refused(here, words, sentence):
    import paddle
    if "gpu" in words and paddle.device.cuda.device_count():
        pytest.skip("there is a GPU here")
    assert refusal((*TRAINING, "--image_dir", "images", *SMALL, *words), here).startswith(sentence)


@pytest.mark.parametrize("text, sentence", [
    ("batchsize: 8\n", "unknown key 'batchsize'; the nearest is batch_size"),
    ("batch_size: many\n", "--batch_size takes a whole number, got 'many'"),
    ("zero_residuals: 1\n", "--zero_residuals takes true or false, got '1'"),
    ("image_dir:\n  - a\n  - b\n", "--image_dir takes text, got ['a', 'b']"),
    ("- batch_size\n", "must hold `name: value` lines, found a list"), ("a: [\n", "is not YAML")])
def test_a_wrong_yaml_file_is_refused(here, text, sentence):
    (here / "recipe.yaml").write_text(text)
    assert sentence in refusal((*TRAINING, "--config", "recipe.yaml"), here)


@pytest.mark.parametrize("words, sentence", [
    (("train_supernet.py",), "missing command: run"), (("pretrain.py", "rum"), "invalid choice: 'rum'"),
    (("eval_supernet.py", "rang"), "invalid choice: 'rang'"), (("pretrain.py", "run"), "--arch is needed"),
    (("pretrain.py", "truth"), "--archs is needed"), (("eval_supernet.py", "run"), "--checkpoint is needed"),
    (EVALUATION[:4], "--archs is needed"), (("eval_supernet.py", "plan"), "--archs is needed"),
    (("eval_supernet.py", "status"), "there is no evaluation in output/submission.journal"),
    (SCORE[:4], "--truth is needed"), (VERIFY[:4], "--archs is needed"), (EXPORT[:4], "--arch is needed")],
    ids=lambda part: short(part) if isinstance(part, tuple) else part[:20])
def test_a_missing_word_or_setting_is_named(here, words, sentence):
    assert sentence in refusal(words, here)


def test_memory_that_does_not_suffice_is_one_sentence(here, monkeypatch):
    def too_much(*_, **__):
        raise MemoryError("(ResourceExhausted) Fail to alloc memory of 58799999412 size.\n  [Hint: ...]")

    monkeypatch.setattr("resnet48.images.datasets.load", too_much)
    assert refusal((*TRAINING, *SMALL), here).startswith("out of memory; a smaller --batch_size")


# ---- images

def emptied(folder):
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))


IMAGES = {
    "missing": (lambda: shutil.rmtree("images"), "--image_dir images has no folder train/"),
    "empty": (lambda: [shutil.rmtree("images"), os.mkdir("images")], "--image_dir images has no folder train/"),
    "without val": (lambda: shutil.rmtree("images/val"), "--image_dir images has no folder val/"),
    "without classes": (lambda: [shutil.rmtree("images/val"), os.mkdir("images/val")], "images/val holds no class"),
    "a file": (lambda: [shutil.rmtree("images"), open("images", "w").close()], "--image_dir images has no folder"),
    "an empty class": (lambda: emptied("images/train/bee"), "images/train/bee holds no images (.jpg, "),
    "a class only in train": (lambda: shutil.rmtree("images/val/cat"), "the first is 'cat', only in train/"),
    "a class only in val": (lambda: shutil.rmtree("images/train/ant"), "the first is 'ant', only in val/"),
}


@pytest.mark.parametrize("words", READING_IMAGES, ids=short)
@pytest.mark.parametrize("case", IMAGES)
def test_a_wrong_image_folder_is_refused_by_every_command_that_reads_images(here, words, case):
    spoil, sentence = IMAGES[case]
    spoil()
    assert sentence in refusal((*words, "--image_dir", "images"), here)


@pytest.mark.parametrize("words", READING_IMAGES, ids=short)
def test_an_unreadable_validation_or_calibration_image_is_named(here, tmp_path, words):
    for part in ("train", "val"):
        for name in os.listdir(f"images/{part}/bee"):
            with open(f"images/{part}/bee/{name}", "w") as file:
                file.write("no image")
    if "export" not in words and "eval_supernet.py" in words:
        words += ("--output", tmp_path / "submission.json")  # elsewhere: what an evaluation begins with may stay there
    assert re.search(r"images/(train|val)/bee/\d", refusal((*words, "--image_dir", "images"), here))
    assert not os.path.exists(tmp_path / "submission.json")


# ---- arch codes and lists

@pytest.mark.parametrize("code, sentence", [
    (SMALLEST[1:], "has 50 digits, allowed are 51"), ("2" + SMALLEST, "position 1 (image size) is 2, allowed is 1"),
    ("9" + SMALLEST[1:], "position 1 (depth of stage 1) is 9, allowed is 2..5"),
    (SMALLEST[:5] + "x" + SMALLEST[6:], "position 6 is 'x'"), (SMALLEST[:-1] + "1", "position 51 (stage 4, block 5"),
    ("supernet", "position 1 is 's'")])
def test_a_malformed_code_is_refused_with_the_position(here, code, sentence):
    for words in ((*STANDALONE[:-1], code, *NARROW), (*EXPORT[:-1], code)):
        assert sentence in refusal((*words, "--image_dir", "images"), here)


def test_a_code_that_a_supernet_cannot_run_names_the_block(here):
    for words in ((*EXPORT[:-1], UNTIED), (*STANDALONE[:-1], UNTIED, *SMALL, "--pretrained", "supernet")):
        assert "position 45 (stage 4, block 2, conv 2)" in refusal((*words, "--image_dir", "images"), here)


def entry(**changes):
    return {key: value for key, value in {"acc": 0.0, "arch": SMALLEST, **changes}.items() if value is not None}


LISTS = {
    "missing": (None, "cannot read arch list list.json: No such file or directory"),
    "not JSON": ("{", "arch list list.json is not JSON"), "not text": (b"\xff\xfe\x00", "is not a text file"),
    "an array": ([], "must be one object"), "empty": ({}, "arch list list.json is empty"),
    "an entry of another kind": ({"arch7": SMALLEST}, "key 'arch7': must be an object with `acc` and `arch`"),
    "a missing field": ({"arch7": entry(acc=None)}, "key 'arch7': the field `acc` is missing"),
    "a further field": ({"arch7": entry(flops=1)}, "key 'arch7': unknown field 'flops'"),
    "a number for a code": ({"arch7": entry(arch=12)}, "key 'arch7': `arch` must be a string of digits"),
    "text for an accuracy": ({"arch7": entry(acc="high")}, "key 'arch7': `acc` must be a finite number"),
    "an infinite accuracy": ('{"arch7": {"acc": Infinity, "arch": "%s"}}' % SMALLEST, "`acc` must be a finite number"),
    "a malformed code": ({"arch1": entry(), "arch7": entry(arch="12")}, "key 'arch7': arch code '12' has 2 digits"),
    "an untied code": ({"arch7": entry(arch=UNTIED)}, "key 'arch7': arch code"),
    "one arch twice": ({"a": entry(), "b": entry(arch="1" + SMALLEST)}, "keys 'a' and 'b' hold the same arch"),
    "one key twice": ('{"a": {}, "a": {}}', "the key 'a' occurs twice"),
}


@pytest.mark.parametrize("words", [COMMANDS["eval_supernet run"], COMMANDS["pretrain truth"], VERIFY,
                                   ("eval_supernet.py", "plan", *NARROW, "--archs", "list.json")], ids=short)
@pytest.mark.parametrize("case", LISTS)
def test_a_malformed_list_is_refused_with_the_key_before_any_work(here, monkeypatch, words, case):
    content, sentence = LISTS[case]
    os.unlink("list.json")
    if content is not None:
        raw = content if isinstance(content, (str, bytes)) else json.dumps(content)
        (here / "list.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    monkeypatch.setattr("resnet48.images.datasets.load", lambda *_, **__: pytest.fail("images were read"))
    assert sentence in refusal(words, here)
