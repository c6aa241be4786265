"""Fashion-MNIST, CIFAR-10 and CIFAR-100 from files as they are published: pixels, labels, and what is refused."""

import dataclasses
import gzip
import os
import pickle
import shutil

import numpy as np
import paddle
import public_files
import pytest
from commands import call, good, image_folder, module, refusal
from small_runs import newest

from resnet48.images import cache, datasets, loader, public_sets, transforms
from resnet48.system import options
from resnet48.system.errors import UserError
from resnet48.training import checkpoint, run_state

WRITERS = {"fashion-mnist": public_files.idx, "cifar10": public_files.cifar,
           "cifar100": lambda folder: public_files.cifar(folder, "cifar100", per_batch=100)}
NARROW = ("--base_channels", "2,4,8,16", "--divisor", 1, "--batch_size", 48, "--max_epoch", 1, "--calib_images", 16,
          "--num_workers", 0, "--eval_freq", 0)


@pytest.fixture(name="home", autouse=True)
def fixture_home(tmp_path, monkeypatch):
    """A home folder in which Paddle has downloaded nothing, and no package of the system."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(public_sets.SETS, "fashion-mnist", public_sets.SETS["fashion-mnist"]._replace(
        folders=(str(tmp_path / "package"), "~/.cache/paddle/dataset/fashion-mnist")))
    monkeypatch.setattr(public_sets, "_download", lambda about: pytest.fail("it downloads"))
    return tmp_path / "home"


def same(found, made):
    return found.dtype == made.dtype and np.array_equal(found, made)


# ---- what is read

@pytest.mark.parametrize("name", WRITERS)
def test_pixels_and_labels_are_those_of_the_files(tmp_path, name):
    made = WRITERS[name](tmp_path)
    found = datasets.load(dataset=name, dataset_dir=str(tmp_path))
    for split, (images, labels) in zip((found.train, found.val), made.values() if name == "fashion-mnist" else
                                       (made["train"], made["test"])):
        shown, given = datasets.decode(split, range(len(split)), found.size, whole=found.whole)
        assert same(given, labels) and found.size == 32 and found.whole
        if name == "fashion-mnist":  # grey as three equal channels, with a black margin of two pixels
            assert all(same(shown[:, channel, 2:30, 2:30], images) for channel in range(3))
            assert shown.sum() == 3 * images.astype("int64").sum()
        else:
            assert same(shown, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    assert len(found.classes) == (100 if name == "cifar100" else 10) and found.flip


@pytest.mark.parametrize("name, kind", [("cifar10", "Cifar10"), ("cifar100", "Cifar100")])
def test_an_archive_is_read_as_paddle_reads_it(tmp_path, name, kind):
    WRITERS[name](tmp_path)
    found = public_sets.read(name, str(tmp_path))
    for mode, (images, labels) in found.items():
        reader = getattr(paddle.vision.datasets, kind)(str(tmp_path / public_sets.SETS[name].files[0]), mode,
                                                       backend="cv2")
        theirs = [reader[index] for index in range(len(reader))]
        assert np.array_equal(np.stack([np.asarray(image) for image, _ in theirs]), images)
        assert [label.item() for _, label in theirs] == labels.tolist()


def test_idx_files_are_read_as_paddle_reads_them(tmp_path):
    public_files.idx(tmp_path)
    for mode, (images, labels) in public_sets.read("fashion-mnist", str(tmp_path)).items():
        reader = paddle.vision.datasets.FashionMNIST(*(str(tmp_path / name) for name in public_sets.IDX[mode]), mode,
                                                     backend="cv2")
        theirs = [reader[index] for index in range(len(reader))]
        assert np.array_equal(np.stack([np.asarray(image) for image, _ in theirs]), images[:, 2:30, 2:30])
        assert [label.item() for _, label in theirs] == labels.tolist()


# ---- where files are looked for

def test_the_package_of_the_system_and_what_paddle_has_downloaded_are_found_without_being_told(tmp_path, home):
    for place, seed in ((home / ".cache/paddle/dataset/fashion-mnist", 1), (tmp_path / "package", 2)):
        made = public_files.idx(place, seed=seed)
        assert same(datasets.load(dataset="fashion-mnist").train.images[:, 2:30, 2:30], made["train"][0])
    made = public_files.cifar(home / ".cache/paddle/dataset/cifar")
    assert same(datasets.load(dataset="cifar10").val.images, made["test"][0])


def test_what_is_in_none_of_the_places_is_downloaded_once_by_paddle(home, monkeypatch):
    asked = []

    class Downloading:
        def __init__(self, mode):
            asked.append(mode)
            self.data_file = str(home / ".cache/paddle/dataset/cifar/cifar-10-python.tar.gz")
            public_files.cifar(os.path.dirname(self.data_file))

    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(paddle.vision.datasets, "Cifar10", Downloading)
    for _ in range(2):
        assert len(datasets.load(dataset="cifar10").train) == 200
    assert asked == ["train", "test"]


def test_a_failed_download_is_one_sentence_that_says_what_to_do(home, monkeypatch):
    def fail(about):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(public_sets, "_download", fail)
    with pytest.raises(UserError, match="cannot download CIFAR-10 .'no route to host'.; --dataset_dir names a folder "
                                        "that holds cifar-10-python.tar.gz"):
        datasets.load(dataset="cifar10")


# ---- what is refused

def broken(folder, name):
    """Damaged files by what is wrong, and what the sentence says."""
    if name == "truncated":
        path = folder / public_sets.IDX["train"][0]
        path.write_bytes(path.read_bytes()[:-300])
    elif name == "another magic number":
        (folder / public_sets.IDX["test"][1]).write_bytes((folder / public_sets.IDX["test"][0]).read_bytes())
    elif name == "too few labels":
        with gzip.open(folder / public_sets.IDX["test"][1], "wb") as file:
            file.write(b"\0\0\x08\x01\0\0\0\1\0")
    elif name == "a header alone":
        with gzip.open(folder / public_sets.IDX["test"][0], "wb") as file:
            file.write(b"\0\0\x08")
    elif name == "no gzip":
        (folder / public_sets.IDX["test"][0]).write_bytes(b"none")


@pytest.mark.parametrize("name", ["truncated", "another magic number", "too few labels", "a header alone", "no gzip"])
def test_damaged_idx_files_are_refused_by_name(tmp_path, name):
    public_files.idx(tmp_path)
    broken(tmp_path, name)
    with pytest.raises(UserError, match="ubyte.gz is not a file of Fashion-MNIST, or is damaged"):
        datasets.load(dataset="fashion-mnist", dataset_dir=str(tmp_path))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("content", [
    b"none", pickle.dumps([1], 2), {b"data": np.zeros((40, 3000), "uint8"), b"labels": [0] * 40},
    {b"data": np.zeros((40, 3072), "float32"), b"labels": [0] * 40}, {b"labels": [0] * 40},
    {b"data": np.zeros((40, 3072), "uint8")}, {b"data": np.zeros((40, 3072), "uint8"), b"labels": [0] * 39},
    {b"data": np.zeros((40, 3072), "uint8"), b"labels": [10] * 40},
    {b"data": np.zeros((40, 3072), "uint8"), b"labels": [b"0"] * 40}], ids=range(9))
def test_another_archive_is_refused_by_name(tmp_path, content):
    public_files.cifar(tmp_path, change=lambda member, own: content if member == "data_batch_3" else own)
    with pytest.raises(UserError, match="cifar-10-python.tar.gz is not a file of CIFAR-10, or is damaged") as refused:
        datasets.load(dataset="cifar10", dataset_dir=str(tmp_path))
    assert "\n" not in str(refused.value) and "checkpoint" not in str(refused.value)


def test_a_hostile_archive_runs_nothing(tmp_path):
    hostile = {b"data": Hostile(str(tmp_path / "made")), b"labels": []}
    public_files.cifar(tmp_path / "set", change=lambda member, own: hostile if member == "test_batch" else own)
    with pytest.raises(UserError, match="it asks for 'posix mkdir'"):
        datasets.load(dataset="cifar10", dataset_dir=str(tmp_path / "set"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("words, sentence", [
    (("--image_dir", "photos", "--dataset", "cifar10"), "are two sources of images; give one of them"),
    (("--dataset_dir", "files"), "--dataset_dir holds the files of a --dataset that is not built in"),
    (("--dataset", "cifar10", "--dataset_dir", "files"), "lacks cifar-10-python.tar.gz"),
    (("--dataset", "cifar"), "--dataset takes digits, fashion-mnist, cifar10, cifar100; got 'cifar'"),
    (("--augment", "both"), "--augment takes crop, shift; got 'both'"),
    (("--augment", "shift", "--crop_scale", 0.5), "--crop_scale is of --augment crop"),
    (("--train_images", 2000), "--train_images 2000 is more than the 1437 training images"),
    (("--train_images", 0), "--train_images must be 1 or more"),
])
def test_settings_that_exclude_each_other_are_refused(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    os.mkdir("files")
    assert sentence in refusal(("train_supernet.py", "run", *NARROW, *words, "--save_dir", "run"), tmp_path)


# ---- the first images

def test_the_first_images_are_as_many_of_each_class_as_possible_in_their_order():
    labels = np.array([0, 0, 0, 0, 1, 0, 1, 2, 2, 1])
    split = datasets.Split(np.arange(10, dtype="uint8").reshape(10, 1, 1), labels)
    for count, expected in ((3, [0, 4, 7]), (4, [0, 1, 4, 7]), (6, [0, 1, 4, 6, 7, 8]), (10, range(10)),
                            (9, [0, 1, 2, 3, 4, 6, 7, 8, 9])):
        part = datasets.first_images(split, count)
        assert [int(image[0, 0]) for image in part.images] == list(expected)
        assert np.array_equal(part.labels, labels[list(expected)])


def test_training_on_fewer_images_leaves_validation_alone_and_calibrates_on_those_alone(tmp_path):
    public_files.idx(tmp_path)
    whole, part = (datasets.load(dataset="fashion-mnist", dataset_dir=str(tmp_path), train_images=count)
                   for count in (None, 50))
    assert len(part.train) == 50 and np.bincount(part.train.labels).tolist() == [5] * 10
    assert np.array_equal(part.val.images, whole.val.images)
    batches = list(loader.batches(dataclasses.replace(part, workers=0), 0, 5, 10, 0, 0, 1, pytest.fail))
    assert sorted(np.concatenate([labels.numpy() for _, labels in batches])) == sorted(part.train.labels)


# ---- how they are shown

def test_a_shift_moves_the_whole_image_by_up_to_an_eighth_and_leaves_black(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 256, (32, 32, 3), "uint8")
    image, offsets = transforms.from_array(pixels), set()
    planes = pixels.transpose(2, 0, 1)
    padded = np.pad(planes, ((0, 0), (4, 4), (4, 4)))
    windows = {padded[:, top:top + 32, left:left + 32].tobytes(): (top, left) for top in range(9) for left in range(9)}
    for seed in range(400):
        shown = transforms.shifted_transform(image, 32, np.random.default_rng(seed), flip=False)
        offsets.add(windows[shown.tobytes()])
        flipped = transforms.shifted_transform(image, 32, np.random.default_rng(seed), flip=True)
        assert np.array_equal(flipped, shown) or np.array_equal(flipped, shown[:, :, ::-1])
    assert len(offsets) == 81


def test_evaluation_sees_the_whole_of_what_is_shifted_in_training_and_the_centre_of_what_is_cropped(tmp_path):
    root = image_folder(tmp_path / "photos")
    crop, shift = (datasets.load(root, 32, augment=augment, cache_dir=str(tmp_path / "cache"))
                   for augment in (None, "shift"))
    assert not crop.whole and shift.whole
    for images in (crop, shift):
        fresh = dataclasses.replace(images, cache_dir=None)
        for _ in range(2):  # from the files, then from the cache
            shown = cache.decoded(images, images.val, range(9), "images")[0]
            assert np.array_equal(shown, cache.decoded(fresh, images.val, range(9), "images")[0])
    assert not np.array_equal(cache.decoded(crop, crop.val, range(9), "images")[0], shown)
    assert cache.fingerprint(crop, crop.val, range(9)) != cache.fingerprint(shift, shift.val, range(9))


def test_the_digits_stay_as_they_were():
    plain, named = datasets.load(), datasets.load(dataset="digits")
    assert np.array_equal(plain.train.images, named.train.images) and plain.augment == named.augment == "crop"
    assert (named.crop_scale, named.flip, named.size) == (0.6, False, 32)
    assert plain.train.names_digest() == "e3b0c44298fc1c14"  # as checkpoints have it


# ---- from training to evaluation

def test_what_the_checkpoint_says_of_the_images_holds_in_evaluation_unless_a_flag_says_another(tmp_path):
    root, load = image_folder(tmp_path / "photos"), module("eval_supernet.py").load_images
    public_files.cifar(tmp_path)
    trained = {"dataset": None, "augment": "shift", "train_images": 6, "image_size": 24}
    found = checkpoint.Checkpoint("run", "run/net.pdparams", None, {}, {"settings": trained})
    images = load(options.EvalSettings(image_dir=root), found)
    assert images.whole and images.size == 24 and len(images.train) == 6
    assert not load(options.EvalSettings(image_dir=root, augment="crop"), found).whole
    trained |= {"dataset": "cifar10", "augment": None}
    assert load(options.EvalSettings(dataset_dir=str(tmp_path)), found).name == "CIFAR-10"
    assert load(options.EvalSettings(dataset="digits"), found).name == "built-in digits"
    assert load(options.EvalSettings(image_dir=root), found).classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("name, value", [("dataset", "imagenet"), ("dataset", ["cifar10"]), ("augment", "both"),
                                         ("train_images", -1), ("train_images", "all")])
def test_a_state_that_says_something_else_of_the_images_is_refused(name, value):
    run_state.check({"settings": {name: None}})
    with pytest.raises(UserError, match=f"'{name}' in the settings must be"):
        run_state.check({"settings": {name: value}})


@pytest.mark.slow
def test_a_public_set_is_trained_on_resumed_and_evaluated_as_it_was_trained(tmp_path):
    files = tmp_path / "files"
    public_files.idx(files)
    words = ("train_supernet.py", "run", *NARROW, "--dataset", "fashion-mnist", "--dataset_dir", files,
             "--train_images", 100, "--save_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache")
    good(call(*words))
    good(call("-m resnet48", "sample", 3, "--output", tmp_path / "list.json"))
    evaluate = ("eval_supernet.py", "run", "--checkpoint", tmp_path / "run", "--archs", tmp_path / "list.json",
                "--calib_images", 16, "--num_workers", 0, "--output", tmp_path / "found.json")
    assert "3 archs on 100 images" in good(call(*evaluate, "--dataset_dir", files)).out
    other = tmp_path / "other"
    public_files.idx(other, seed=1)
    for more, sentence in ((("--train_images", 90), "the training images have changed (100 then, 90 now)"),
                           (("--augment", "crop"), "--augment was None and is now crop"),
                           (("--dataset_dir", other), "the names of the training images have changed")):
        assert sentence in refusal((*words, *more), tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.move(files, moved)
    good(call(*words, "--dataset_dir", moved, "--max_epoch", 2))
    assert newest(tmp_path / "run").state["step"] == 4
