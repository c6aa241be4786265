import numpy as np
import paddle
import pytest
from PIL import Image

from resnet48.images import datasets, loader, transforms
from resnet48.images.datasets import BadImage
from resnet48.system.errors import UserError

RED, BLUE = (200, 30, 40), (10, 60, 190)


def halves(width=60, height=40):
    """An RGB image, red on the left and blue on the right."""
    pixels = np.empty((height, width, 3), "uint8")
    pixels[:, :width // 2], pixels[:, width // 2:] = RED, BLUE
    return Image.fromarray(pixels)


def textured(width, height, seed=0):
    """A photograph's stand-in: smooth shapes with some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype("uint8"))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype("int64")
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype("uint8"))


def make_folder(root, train, val):
    """An image folder; train and val map class names to numbers of images."""
    for part, classes in (("train", train), ("val", val)):
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                halves().save(root / part / name / f"{i}.png")
    return str(root)


def load(root, size=32):
    return datasets.load(str(root), size)


def decoded(path, size=32):
    """The evaluation view of one file, uint8 [3, S, S]."""
    split = datasets.Split([str(path)], np.zeros(1, "int64"))
    return datasets.decode(split, [0], size)[0][0].astype("int64")


# ---- the folder

def test_classes_are_the_sorted_folder_names_and_labels_follow_them(tmp_path):
    root = make_folder(tmp_path, {"zebra": 2, "ant": 1, "10": 1, "9": 3}, {"9": 1, "ant": 2, "zebra": 1, "10": 1})
    images = load(root)
    assert images.classes == ("10", "9", "ant", "zebra")
    for split in (images.train, images.val):
        for path, label in zip(split.images, split.labels):
            assert f"/{images.classes[label]}/" in path
    assert images.train.labels.tolist() == [0, 1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_missing_part_is_named(tmp_path, missing):
    (tmp_path / ("val" if missing == "train" else "train") / "cat").mkdir(parents=True)
    halves().save(next(tmp_path.iterdir()) / "cat" / "1.png")
    with pytest.raises(UserError, match=f"{tmp_path} has no folder {missing}/"):
        load(tmp_path)


def test_a_part_without_classes_is_named(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    with pytest.raises(UserError, match="train holds no class folders"):
        load(tmp_path)


def test_a_class_without_images_is_named(tmp_path):
    root = make_folder(tmp_path, {"cat": 1, "dog": 0}, {"cat": 1, "dog": 1})
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="train/dog holds no images"):
        load(root)


@pytest.mark.parametrize("train, val, only", [
    (("cat", "dog"), ("cat",), "1 differ, the first is 'dog', only in train/"),
    (("cat",), ("ant", "cat", "dog"), "2 differ, the first is 'ant', only in val/")])
def test_classes_that_differ_between_train_and_val_are_named(tmp_path, train, val, only):
    root = make_folder(tmp_path, dict.fromkeys(train, 1), dict.fromkeys(val, 1))
    with pytest.raises(UserError, match=only):
        load(root)


def test_hidden_files_hidden_folders_and_other_files_are_not_images(tmp_path):
    root = make_folder(tmp_path, {"cat": 1}, {"cat": 1})
    (tmp_path / "train" / "cat" / "._0.png").write_text("a Mac's shadow file")
    (tmp_path / "train" / "cat" / "labels.csv").write_text("0")
    halves().save(tmp_path / "train" / "cat" / "1.JPEG")
    (tmp_path / "train" / "list.txt").write_text("cat")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    images = load(root)
    assert images.classes == ("cat",)
    assert [path.split("/")[-1] for path in images.train.images] == ["0.png", "1.JPEG"]


# ---- decoding

def saved(path, image):
    image.save(path)
    return decoded(path)


def test_every_kind_of_image_decodes_to_its_rgb(tmp_path):
    expected = saved(tmp_path / "rgb.png", halves())
    assert expected[:, 16, 4].tolist() == list(RED) and expected[:, 16, 28].tolist() == list(BLUE)
    for name, image, tolerance in (
            ("rgba.png", halves().convert("RGBA"), 0),
            ("palette.png", halves().convert("P", palette=Image.ADAPTIVE), 1),
            ("rgb.bmp", halves(), 0), ("rgb.tif", halves(), 0), ("rgb.ppm", halves(), 0),
            ("UPPER.JPG", halves(), 12), ("cmyk.jpg", halves().convert("CMYK"), 12), ("rgb.webp", halves(), 25)):
        difference = np.abs(saved(tmp_path / name, image) - expected)
        assert difference[:, :, [4, 28]].max() <= tolerance, name


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_grey_images_become_three_equal_channels(tmp_path, extension):
    grey = Image.fromarray(np.full((40, 60), 150, "uint8"))
    assert np.abs(saved(tmp_path / f"grey.{extension}", grey) - 150).max() <= 1


@pytest.mark.parametrize("level", [65535, 40000, 5000, 200, 0])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, level):
    grey = Image.fromarray(np.full((40, 60), level, "uint16"))
    assert np.abs(saved(tmp_path / "deep.png", grey) - level / 257).max() <= 1


def plain_eval_view(image, size):
    """Resize the short side, then crop the centre, as everybody writes it down."""
    width, height = image.size
    short = round(size * 256 / 224)
    scaled = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    resized = image.resize(scaled, Image.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1).astype("int64")


SHAPES = [(60, 60), (90, 61), (61, 90), (37, 37), (7, 5), (3, 20), (1, 1), (400, 33), (211, 307), (300, 225)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("resizer", ["OpenCV", "Pillow"])
def test_the_evaluation_view_is_resize_then_centre_crop(tmp_path, monkeypatch, shape, size, resizer):
    image = textured(*shape)
    image.save(tmp_path / "image.png")
    if resizer == "Pillow":
        without(monkeypatch, "cv2")
    assert transforms.resizer() == resizer
    difference = np.abs(decoded(tmp_path / "image.png", size) - plain_eval_view(image, size))
    if resizer == "Pillow":
        assert difference.max() <= 2
    else:  # the same filter between whole factors only nearly; sampling without antialiasing differs by 3 and more
        assert difference.mean() < 2 and (min(shape) < 32 or difference.max() <= 9)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_opencv_resizes_like_pillow_at_whole_factors(monkeypatch, factor):
    picture = transforms.from_array(np.asarray(textured(48 * factor, 36 * factor)))
    ours = transforms.shrunk(picture, (48, 36)).astype("int64")
    without(monkeypatch, "cv2")
    difference = np.abs(ours - transforms.shrunk(picture, (48, 36)))
    assert difference[4:-4, 4:-4].max() <= 1 and difference.mean() < 0.4


@pytest.mark.parametrize("mode, options", [("RGB", {}), ("RGB", {"subsampling": 0}), ("RGB", {"progressive": True}),
                                           ("L", {}), ("CMYK", {})], ids=str)
@pytest.mark.parametrize("width, height", [(301, 211), (1203, 701)])
def test_simplejpeg_decodes_to_the_pixels_of_pillow(tmp_path, monkeypatch, mode, options, width, height):
    textured(width, height).convert(mode).save(tmp_path / "image.jpg", quality=90, **options)
    found = decoded(tmp_path / "image.jpg")
    without(monkeypatch, "simplejpeg")
    assert np.abs(found - decoded(tmp_path / "image.jpg")).max() <= 1


@pytest.mark.parametrize("missing", [("cv2",), ("simplejpeg",), ("cv2", "simplejpeg")], ids=str)
def test_without_the_fast_libraries_views_are_nearly_the_same(tmp_path, monkeypatch, missing):
    textured(500, 375).save(tmp_path / "image.jpg", quality=90)

    def shown():
        picture = transforms.read_image(tmp_path / "image.jpg")
        return [view.astype("int64") for view in (
            transforms.eval_transform(picture, 224),
            transforms.train_transform(picture, 224, np.random.default_rng(3), 0.08, True))]

    fast = shown()
    without(monkeypatch, *missing)
    for one, other in zip(fast, shown()):
        assert one.shape == other.shape == (3, 224, 224) and np.abs(one - other).mean() < 2


def test_a_jpeg_with_stray_bytes_is_left_to_pillow_and_a_corrupt_one_is_bad(tmp_path):
    path = tmp_path / "image.jpg"
    textured(300, 200).save(path, quality=90)
    content, expected = path.read_bytes(), decoded(path)
    path.write_bytes(content[:-2] + b"stray" + content[-2:])
    assert np.abs(decoded(path) - expected).mean() < 1
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(BadImage, match="image.jpg"):
        decoded(path)


@pytest.mark.parametrize("shape", [(900, 700), (701, 1203), (1601, 1199), (640, 640), (320, 310)],
                         ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_the_evaluation_view_of_a_large_jpeg_is_close_to_it(tmp_path, shape):
    textured(*shape).save(tmp_path / "image.jpg", quality=92)
    with Image.open(tmp_path / "image.jpg") as image:
        difference = np.abs(decoded(tmp_path / "image.jpg") - plain_eval_view(image, 32))
    assert difference.mean() < 0.7 and difference.max() <= 4


def without(monkeypatch, *libraries):
    """As if these could not be imported."""
    for library in libraries:
        monkeypatch.setattr(transforms, library, None)


def crops(monkeypatch, image, crop_scale, count=300):
    """The boxes (left, top, width, height) that `train_view` takes."""
    boxes, picture = [], transforms.from_array(np.asarray(image))
    monkeypatch.setattr(transforms, "_resized", lambda _, box, size: boxes.append(box) or np.zeros((*size, 3), "uint8"))
    for seed in range(count):
        transforms.train_transform(picture, 16, np.random.default_rng(seed), crop_scale, True)
    boxes = np.array(boxes, float)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


@pytest.mark.parametrize("width, height", [(400, 400), (500, 300), (300, 420)])
@pytest.mark.parametrize("crop_scale", [0.08, 0.6])
def test_training_crops_keep_to_their_limits_and_use_them(monkeypatch, width, height, crop_scale):
    left, top, w, h = crops(monkeypatch, Image.new("RGB", (width, height)), crop_scale).T
    area, ratio = w * h / (width * height), w / h
    assert (left >= 0).all() and (left + w <= width).all() and (top >= 0).all() and (top + h <= height).all()
    assert crop_scale * 0.97 <= area.min() < crop_scale + 0.1 and area.max() <= 1
    assert 0.74 <= ratio.min() and ratio.max() <= 1.35
    if width == height:  # where a long image allows less
        assert area.max() > 0.9 and ratio.min() < 0.8 and ratio.max() > 1.25
    assert left.min() < 0.1 * width and (left + w).max() > 0.9 * width and top.min() < 0.1 * height


@pytest.mark.parametrize("width, height", [(1000, 30), (30, 1000), (1, 300)])
def test_a_very_long_image_gives_the_largest_allowed_crop_in_its_middle(monkeypatch, width, height):
    for left, top, w, h in crops(monkeypatch, Image.new("RGB", (width, height)), 0.6, 20):
        assert w == min(width, round(height * 4 / 3)) and h == min(height, round(width * 4 / 3))
        assert abs(left - (width - w) / 2) < 1 and abs(top - (height - h) / 2) < 1


def test_half_of_the_training_views_are_mirrored_and_none_without_flip():
    image, mirrored = transforms.from_array(np.asarray(textured(40, 30))), 0
    for seed in range(200):
        plain = transforms.train_transform(image, 16, np.random.default_rng(seed), 0.08, False)
        maybe = transforms.train_transform(image, 16, np.random.default_rng(seed), 0.08, True)
        assert np.array_equal(maybe, plain) or np.array_equal(maybe, plain[:, :, ::-1])
        mirrored += not np.array_equal(maybe, plain)
    assert 70 < mirrored < 130


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_unreadable_image_is_an_error_that_names_it_or_is_left_out(tmp_path, capsys, content):
    for i in range(4):
        halves().save(tmp_path / f"{i}.png")
    broken = tmp_path / "2.png"
    broken.write_bytes(broken.read_bytes()[:60] if content is None else content)
    split = datasets.Split([str(tmp_path / f"{i}.png") for i in range(4)], np.arange(4))
    with pytest.raises(BadImage, match=f"cannot read the image {broken}: .*--skip_bad_images"):
        datasets.decode(split, range(4), 16)
    for threads in (1, 3):
        pixels, labels = datasets.decode(split, [3, 2, 0], 16, threads, skip_bad=True)
        assert labels.tolist() == [3, 0] and pixels.shape == (2, 3, 16, 16) and pixels.any(axis=(1, 2, 3)).all()
        assert f"left out 1 unreadable images, the first is {broken}" in capsys.readouterr().out


def test_normalize_is_the_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5)).astype("uint8")
    mean, std = (np.reshape(values, (3, 1, 1)) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalized = datasets.normalize(paddle.to_tensor(pixels))
    assert normalized.dtype == paddle.float32
    assert np.allclose(normalized.numpy(), (pixels / 255 - mean) / std, atol=1e-5)


# ---- samples and the built-in digits

def test_a_balanced_sample_has_equally_many_of_each_class_is_seeded_and_has_no_repeats():
    labels = np.repeat([0, 1, 2], [50, 30, 7])
    sample = datasets.balanced_sample(labels, 20, seed=1)
    assert len(set(sample)) == 20
    assert np.bincount(labels[sample]).tolist() in ([7, 7, 6], [7, 6, 7], [6, 7, 7])
    assert np.array_equal(sample, datasets.balanced_sample(labels, 20, seed=1))
    assert not np.array_equal(sample, datasets.balanced_sample(labels, 20, seed=2))
    everything = datasets.balanced_sample(labels, 1000, seed=0)
    assert sorted(everything) == list(range(87))


def test_a_sample_smaller_than_the_number_of_classes_is_spread_over_all_of_them():
    labels = np.repeat(np.arange(100), 3)
    chosen = labels[datasets.balanced_sample(labels, 30, seed=0)]
    assert len(set(chosen)) == 30 and chosen.min() < 20 and chosen.max() > 80


def test_the_built_in_digits_are_a_fixed_split_of_whole_digits_in_every_class():
    images, again = datasets.load(), datasets.load()
    assert images.size == 32 and images.classes == tuple("0123456789") and not images.flip
    assert (len(images.train), len(images.val)) == (1437, 360)
    assert np.array_equal(images.val.images, again.val.images) and np.array_equal(images.val.labels, again.val.labels)
    assert np.bincount(images.val.labels, minlength=10).min() >= 20
    pixels, _ = datasets.decode(images.val, range(360), 32)
    ink = pixels.max(axis=(0, 1)) > 0
    assert not ink[0].any() and not ink[-1].any() and not ink[:, 0].any() and not ink[:, -1].any()
    drawn = (images.val.images > 0).any(axis=0)
    assert drawn.any(axis=1).sum() * 32 / 37 <= ink.any(axis=1).sum() + 2


def test_settings_change_the_size_and_the_smallest_crop_of_the_digits():
    images = datasets.load(size=48, crop_scale=0.3)
    assert (images.size, images.crop_scale) == (48, 0.3)


def test_a_batch_larger_than_the_training_set_is_an_error_that_says_so():
    images = datasets.load()
    assert loader.steps_per_epoch(images, 100, 2) == 7
    with pytest.raises(UserError, match="--batch_size 800 on 2 .* more than the 1437 training images"):
        loader.steps_per_epoch(images, 800, 2)


def test_a_part_for_a_dry_run_is_spread_over_the_classes_and_kept_nowhere(tmp_path):
    images = datasets.subset(datasets.load(cache_dir=str(tmp_path)), 20, 10)
    assert np.bincount(images.train.labels).tolist() == [2] * 10 and np.bincount(images.val.labels).tolist() == [1] * 10
    assert images.cache_dir is None
