"""How many images a core decodes and transforms: Paddle's `DatasetFolder` against ours.

    python3 benchmarks/data.py [--quality 95]

Both read the same photographs, 500 x 375 pixels, made here: clouds with the spectrum of natural images, shapes with
sharp edges, grain. Quality 95 gives about 80 kB a file; ImageNet's files of that size in pixels have some 100 kB, and
the more bytes, the more of the time is Huffman decoding, which is the same for everybody.

Theirs: Pillow and `paddle.vision.transforms`, float32 out. Ours: uint8 out; the device normalises a whole batch, whose
time on this core is added. One process, one thread; the two take turns and the best pass of each counts. Training
pixels differ (random crops), validation pixels must not: how far they are apart is printed too. The last line is
training at a small image size, where `--train_cache` keeps images shrunk.
"""

import argparse
import os
import tempfile
import time

import common

WIDTH, HEIGHT, SIZE, SMALL_SIZE = 500, 375, 224, 64
PHOTOGRAPHS, PASSES = 64, 8


def photograph(rng):
    """RGB uint8 [HEIGHT, WIDTH, 3]: clouds, ellipses with another texture, grain."""
    import numpy as np
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def clouds(power):
        """Noise whose amplitude falls with this power of the frequency; deviation 1."""
        frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
        amplitude = 1 / np.maximum(frequency, 1 / WIDTH) ** power
        noise = np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), (HEIGHT, WIDTH))
        return noise / noise.std()

    light = clouds(1.4)
    colours = np.stack([clouds(1.8) for _ in range(3)], axis=-1)
    pixels = rng.uniform(40, 215, 3) + 22 * light[..., None] + 14 * colours
    for _ in range(12):
        across, down = x - rng.uniform(0, WIDTH), y - rng.uniform(0, HEIGHT)
        angle, (a, b) = rng.uniform(0, np.pi), rng.uniform(15, 120, 2)
        inside = ((across * np.cos(angle) + down * np.sin(angle)) / a) ** 2 + \
            ((down * np.cos(angle) - across * np.sin(angle)) / b) ** 2 < 1
        texture = np.roll(light, rng.integers(0, 300, 2), (0, 1))
        pixels[inside] = rng.uniform(20, 235, 3) + rng.uniform(5, 25) * texture[inside][:, None]
    return np.clip(pixels + rng.normal(0, 3, (HEIGHT, WIDTH, 1)), 0, 255).astype("uint8")


def make_folder(root, quality):
    """train/ and val/ with the same photographs in one class; returns the mean size of a file in bytes."""
    import numpy as np
    from PIL import Image
    rng, sizes = np.random.default_rng(0), []
    for part in ("train", "val"):
        os.makedirs(os.path.join(root, part, "photographs"))
    for number in range(PHOTOGRAPHS):
        path = os.path.join(root, "train", "photographs", f"{number}.jpg")
        Image.fromarray(photograph(rng)).save(path, quality=quality)
        os.link(path, os.path.join(root, "val", "photographs", f"{number}.jpg"))
        sizes.append(os.path.getsize(path))
    return sum(sizes) / len(sizes)


def theirs(root, part, size):
    """A function that gives image `index` as Paddle's data set does, float32 [3, size, size]."""
    from paddle.vision import transforms
    from paddle.vision.datasets import DatasetFolder
    from resnet48.images.datasets import MEAN, STD
    show = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()] if part == "train" else \
        [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    scale = transforms.Normalize([255 * value for value in MEAN], [255 * value for value in STD], data_format="CHW")
    folder = DatasetFolder(os.path.join(root, part),
                           transform=transforms.Compose([*show, transforms.Transpose(), scale]))
    return lambda index: folder[index][0]


def ours(root, part, size, cache_dir=None):
    """The same with this project's views, uint8 [3, size, size]; training images kept in `cache_dir`."""
    import numpy as np
    from resnet48.images import cache, datasets, transforms
    images = datasets.load(root, size, workers=0, cache_dir=cache_dir)
    if cache_dir:
        images = cache.for_training(images)
    if part == "train":
        return lambda index: datasets.transformed(images.train, index, transforms.train_transform, size,
                                                  np.random.default_rng((0, 0, index)), images.crop_scale, images.flip)
    return lambda index: datasets.transformed(images.val, index, transforms.eval_transform, size)


def per_second(show):
    """Images per second of one pass over all photographs."""
    started = time.perf_counter()
    for index in range(PHOTOGRAPHS):
        show(index)
    return PHOTOGRAPHS / (time.perf_counter() - started)


def rates(ways):
    """Images per second of the best pass of each way; they take turns."""
    return [max(found) for found in zip(*([per_second(way) for way in ways] for _ in range(1 + PASSES)))]


def normalising(show):
    """Seconds that it takes this core to normalise one image of a batch of ours."""
    import numpy as np
    import paddle
    from resnet48.images import datasets
    batch = paddle.to_tensor(np.stack([show(index) for index in range(PHOTOGRAPHS)]))
    return common.seconds(lambda: datasets.normalize(batch), 5) / PHOTOGRAPHS


def compare(root, part):
    """Print a line and return the ratio."""
    ways = theirs(root, part, SIZE), ours(root, part, SIZE)
    best = rates(ways)
    ours_normalised = 1 / (1 / best[1] + normalising(ways[1]))
    ratio = best[1] / best[0]
    print(f"{part:5}  DatasetFolder {best[0]:.0f} images/s a core, ours {best[1]:.0f}, ratio {ratio:.2f}; with ours "
          f"normalised on the same core {ours_normalised:.0f}, ratio {ours_normalised / best[0]:.2f}", flush=True)
    return ratio


def compare_cached(root):
    """Print a line about small images, and return the ratio of the cache to theirs."""
    started = time.perf_counter()
    kept = ours(root, "train", SMALL_SIZE, os.path.join(root, "cache"))
    making = (time.perf_counter() - started) / PHOTOGRAPHS
    found = rates((theirs(root, "train", SMALL_SIZE), ours(root, "train", SMALL_SIZE), kept))
    print(f"train at {SMALL_SIZE} px  DatasetFolder {found[0]:.0f} images/s a core, ours {found[1]:.0f}, ours with "
          f"--train_cache {found[2]:.0f}, ratio {found[2] / found[0]:.2f}; made once at {1 / making:.0f} images/s")
    return found[2] / found[0]


def distance(root):
    """Mean absolute difference of the validation pixels, in steps of 1/255."""
    import numpy as np
    import paddle
    from resnet48.images import datasets
    their, our = (way(root, "val", SIZE) for way in (theirs, ours))
    both = [(their(index), datasets.normalize(paddle.to_tensor(our(index)[None])).numpy()[0]) for index in range(8)]
    scale = 255 * np.reshape(datasets.STD, (3, 1, 1))
    return float(np.mean([np.abs(scale * (a - b)).mean() for a, b in both]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG files [95]")
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", FLAGS_paddle_num_threads="1")  # read when Paddle is imported
    import resnet48  # noqa: F401  the settings of the machine, before Paddle
    from resnet48.images import transforms

    print(common.machine())
    with tempfile.TemporaryDirectory() as root:
        size = make_folder(root, arguments.quality)
        print(f"{PHOTOGRAPHS} photographs of {WIDTH} x {HEIGHT}, {size / 1000:.0f} kB in the mean; ours resizes with "
              f"{transforms.resizer()} and decodes with {'simplejpeg' if transforms.simplejpeg else 'Pillow'}")
        ratios = {part: compare(root, part) for part in ("train", "val")}
        ratios["train_cache"] = compare_cached(root)
        print(f"validation pixels differ by {distance(root):.2f} of 255 in the mean")
    print("ours over DatasetFolder: " + ", ".join(f"{part} {ratio:.2f}" for part, ratio in ratios.items()))


if __name__ == "__main__":
    main()
