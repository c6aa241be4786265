"""What an image folder may hold: names, links, pipes, folders that may not be read, images of unusual kinds."""

import io
import os
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from commands import SMALL, SMALLEST, call, environment, good, image_folder, refusal, write_list
from PIL import Image
from test_datasets import decoded, plain_eval_view, textured, without

from resnet48.evaluation import accuracy
from resnet48.images import datasets, transforms
from resnet48.nets import layers
from resnet48.space.arch import FULL
from resnet48.space.nodes import smallest_map
from resnet48.system import runtime
from resnet48.system.errors import UserError

NOT_UTF8 = os.fsdecode("盆景".encode("gbk"))


@pytest.fixture
def root(tmp_path):
    return image_folder(tmp_path / "images")


def load(root, **more):
    return datasets.load(str(root), 32, **more)


# ---- what is left out is said

def test_what_is_left_out_is_counted_by_kind_and_named(root, capsys):
    load(root)
    assert capsys.readouterr().out == ""
    place = os.path.join(root, "train", "ant")
    for name in ("a.gif", "b.GIF", "README", ".hidden.jpg"):
        open(os.path.join(place, name), "w").close()
    os.mkdir(os.path.join(place, "deeper"))
    os.mkfifo(os.path.join(place, "pipe.jpg"))
    open(os.path.join(root, "val", "list.txt"), "w").close()
    images = load(root)
    assert len(images.train) == 24
    assert capsys.readouterr().out.startswith(
        f"note: 7 entries of {root} are not used: 2 with the ending .gif, 1 folders in a class folder, 1 hidden, "
        "1 no regular files, 1 outside of class folders, 1 without an ending; the first is val/list.txt; images are ")


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JFIF"])
def test_other_endings_of_jpegs_are_images(root, ending):
    textured(40, 30).save(os.path.join(root, "val", "bee", "x.jpg"))
    os.rename(os.path.join(root, "val", "bee", "x.jpg"), os.path.join(root, "val", "bee", "x" + ending))
    assert len(load(root).val) == 10


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_that_is_a_link_to_nothing_is_an_error(root, tmp_path, part):
    for each in ("train", "val"):
        os.rename(os.path.join(root, each, "cat"), tmp_path / f"{each}-cat")
        os.symlink(tmp_path / f"{each}-cat", os.path.join(root, each, "cat"))
    assert load(root).classes == ("ant", "bee", "cat")
    os.rename(tmp_path / f"{part}-cat", tmp_path / "away")
    with pytest.raises(UserError, match=f"images/{part}/cat is a link to {tmp_path}/{part}-cat, which is not there"):
        load(root)


# ---- only regular files are read

def test_a_pipe_or_device_is_refused_without_being_opened(root, tmp_path):
    images = load(root)
    os.unlink(images.val.images[0])
    os.mkfifo(images.val.images[0])
    os.unlink(images.val.images[1])
    os.symlink("/dev/zero", images.val.images[1])
    for index in (0, 1):
        with pytest.raises(datasets.BadImage, match="not a regular file"):
            datasets.decode(images.val, [index], 16)
    assert len(datasets.decode(images.val, range(9), 16, skip_bad=True)[1]) == 7
    sample = accuracy.Sample.of(load(root, skip_bad=True), None, 8, 0)
    assert len(sample.fingerprints(str(tmp_path / "kept"))["validation"]) == 64


def test_what_is_no_image_is_said_without_the_words_for_an_object_in_memory(root):
    images = load(root)
    for content, reason in ((b"no image", "it is not an image of a known kind"), (b"", "it is empty")):
        with open(images.val.images[0], "wb") as file:
            file.write(content)
        with pytest.raises(datasets.BadImage) as caught:
            datasets.decode(images.val, [0], 16)
        assert str(caught.value).startswith(f"cannot read the image {images.val.images[0]}: {reason} (")


@pytest.mark.parametrize("place", ["train", "val/bee"])
def test_a_folder_that_may_not_be_read_is_one_sentence(root, monkeypatch, place):
    original = os.scandir

    def scandir(path):
        if str(path).endswith(place):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(UserError, match=f"^cannot read the folder {root}/{place}: Permission denied$"):
        load(root)


# ---- names

def test_names_that_are_not_utf8_go_through_training_evaluation_and_a_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = image_folder(tmp_path / NOT_UTF8)
    for part in ("train", "val"):
        os.rename(os.path.join(root, part, "bee"), os.path.join(root, part, NOT_UTF8))
        os.rename(os.path.join(root, part, "ant", "0.JPEG"), os.path.join(root, part, "ant", NOT_UTF8 + ".jpg"))
        with open(os.path.join(root, part, "ant", NOT_UTF8 + ".gif"), "w"):
            pass
    images = ("--image_dir", root, "--cache_dir", "cache", "--skip_bad_images")
    good(call("train_supernet.py", "run", *images, *SMALL, "--save_dir", "run"))
    good(call("train_supernet.py", "run", *images, *SMALL, "--train_cache", "--save_dir", "cached"))
    write_list("list.json", SMALLEST, FULL.largest().code)
    evaluate = ("eval_supernet.py", "run", "--checkpoint", "run", "--archs", "list.json", "--image_size", 32,
                "--calib_images", 8, "--num_workers", 0, *images, "--output", "s.json")
    good(call(*evaluate))
    for part in ("train", "val"):
        with open(os.path.join(root, part, "ant", NOT_UTF8 + ".jpg"), "w") as file:
            file.write("no image")
    good(call("train_supernet.py", "run", *images, *SMALL, "--max_epoch", 2, "--save_dir", "run"))
    assert "left out" in good(call(*evaluate, "--calib_images", 24)).out


def test_a_standard_output_that_knows_ascii_only_loses_no_message(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    runtime.log_rank(f"skipped {NOT_UTF8} and 盆景")
    stream.flush()
    assert stream.buffer.getvalue().decode("ascii").count("\\u76c6\\u666f") == 1
    program = "from resnet48.system import streams; streams.outlive_readers(); print('wrote \\udcff and 盆景')"
    ended = subprocess.run([sys.executable, "-c", program], env={**environment(), "PYTHONIOENCODING": "ascii"},
                           capture_output=True, check=True)
    assert ended.stdout == b"wrote \\udcff and \\u76c6\\u666f\n"


def test_classes_that_differ_in_unicode_normalisation_are_named_as_such(root):
    name = "bücherei"
    for part, form in (("train", "NFC"), ("val", "NFD")):
        os.rename(os.path.join(root, part, "bee"), os.path.join(root, part, unicodedata.normalize(form, name)))
    with pytest.raises(UserError) as caught:
        load(root)
    assert re.search(r"written as b'.*' and as b'.*' in the other, which looks the same but is another Unicode "
                     r"normalisation \(NFC, NFD\)", str(caught.value))


# ---- images of unusual kinds and sizes

@pytest.mark.parametrize("scale", [1, 255, 65535])
def test_float_tiffs_are_shown_on_the_scale_that_they_use(tmp_path, scale):
    grey = np.tile(np.linspace(0, 1, 64, dtype="float32"), (64, 1))
    Image.fromarray((grey * 255).astype("uint8")).save(tmp_path / "bytes.tif")
    Image.fromarray(grey * np.float32(scale)).save(tmp_path / "floats.tif")
    assert np.abs(decoded(tmp_path / "floats.tif") - decoded(tmp_path / "bytes.tif")).max() <= 1


@pytest.mark.filterwarnings("error")
def test_floats_that_are_no_numbers_are_black(tmp_path):
    Image.fromarray(np.full((40, 40), np.nan, "float32")).save(tmp_path / "nan.tif")
    assert not decoded(tmp_path / "nan.tif").any()


@pytest.mark.parametrize("shape", [(2000, 1500), (1337, 2001), (1501, 300), (640, 480), (193, 1999)], ids=str)
def test_a_large_image_is_shown_as_pillow_shows_it_and_filtered_with_a_small_factor(monkeypatch, shape):
    if not transforms.cv2:
        pytest.skip("OpenCV is not there")
    image, widths, original = textured(*shape), [], transforms._smoothing
    monkeypatch.setattr(transforms, "_smoothing", lambda factor: (widths.append(factor), original(factor))[1])
    found = transforms.eval_transform(transforms.from_array(np.asarray(image)), 32).astype("int64")
    assert len(widths) == 2 and max(widths) < 2 * transforms.FACTOR_LEFT
    difference = np.abs(found - plain_eval_view(image, 32))
    assert difference.mean() < 0.7 and difference.max() <= 4
    whole = transforms.shrunk(transforms.from_array(np.asarray(image)), (20, 20)).astype("int64")
    without(monkeypatch, "cv2")
    assert np.abs(whole - transforms.shrunk(transforms.from_array(np.asarray(image)), (20, 20))).max() <= 4


# ---- enough values for batch norms

@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 65, 96, 224, 225])
def test_the_smallest_map_is_that_of_the_last_stage(size):
    assert smallest_map(size) == FULL.largest().convolutions(size)[-1].size


@pytest.mark.parametrize("words", [("--batch_size", 7), ("--accumulate", 2), ("--batch_size", 1), ("--accumulate", 8)])
def test_a_training_with_too_few_values_per_channel_is_refused(root, tmp_path, words):
    for script in (("train_supernet.py", "run"), ("pretrain.py", "run", "--arch", SMALLEST)):
        sentence = refusal((*script, *SMALL, "--image_dir", root, "--save_dir", tmp_path / "run", *words), tmp_path)
        assert "8 are needed: a larger --batch_size or --image_size, or a smaller --accumulate" in sentence


def test_a_larger_image_size_gives_enough_values(root, tmp_path):
    good(call("train_supernet.py", "run", *SMALL, "--image_dir", root, "--save_dir", tmp_path / "run",
              "--batch_size", 4, "--image_size", 64, "--eval_freq", 0))


@pytest.mark.parametrize("count, size, fine", [(7, 32, False), (8, 32, True), (1, 64, False), (2, 64, True),
                                               (1, 96, True), (0, 32, True)])
def test_a_calibration_with_too_few_values_per_channel_is_refused(root, count, size, fine):
    images = datasets.load(root, size)
    if fine:
        accuracy.Sample.of(images, None, count, 0)
        return
    with pytest.raises(UserError, match=f"{layers.LEAST_VALUES} are needed: more --calib_images"):
        accuracy.Sample.of(images, None, count, 0)
