"""Image transforms: from an encoded image to the uint8 pixels that a net sees.

The filter is bilinear with antialiasing, as Pillow defines it. simplejpeg decodes JPEGs about 1.5 times as fast as
Pillow, to the same pixels, and OpenCV resizes three times as fast, to nearly the same ones; where one cannot be
imported or does not know a file, Pillow does its part. `benchmarks/data.py` measures what that is worth.
"""

import functools
import io
import math
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..system import files

try:
    import cv2

    cv2.setNumThreads(0)  # callers use threads or processes of their own for several images at once
except Exception:  # its import fails in several ways: no libGL on the machine, another numpy
    cv2 = None
try:
    import simplejpeg
except Exception:  # no wheel for this machine, another numpy
    simplejpeg = None

UNREADABLE = OSError, SyntaxError, ValueError, Image.DecompressionBombError  # what Pillow raises for a corrupt file
MOST_OPENCV = 32767  # pixels a side that OpenCV can sample from
#: What is left to the filter of a large factor, at least: its cost per pixel grows with the factor, so whole pixels are
#: averaged before. From 3 on, the result hardly differs.
FACTOR_LEFT = 3


class EncodedImage(NamedTuple):
    """An image that is not decoded yet. size: (width, height).

    decode(shrink): RGB uint8 [height, width, 3] and by what it was shrunk: by `shrink` (1, 2, 4 or 8) with the sides
    rounded up where the format can do so in decoding, else by 1. It may raise any of `UNREADABLE`.
    """

    size: tuple
    decode: Callable


def read_image(path: str) -> EncodedImage:
    """The `EncodedImage` in a file. Raises one of `UNREADABLE` for what is no image."""
    with files.open_regular(path) as file:
        content = file.read()
    return (_plain_jpeg(content) if simplejpeg else None) or _by_pillow(_opened(content))


def _opened(content):
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # whose words are about an object in memory
        raise OSError("it is not an image of a known kind" if content else "it is empty") from None


def from_array(pixels: np.ndarray) -> EncodedImage:
    """The `EncodedImage` of uint8 [height, width] or [height, width, 3]."""
    return EncodedImage(pixels.shape[1::-1], lambda _: (pixels if pixels.ndim == 3 else np.dstack([pixels] * 3), 1))


def _plain_jpeg(content):
    """A JPEG for simplejpeg; None where Pillow is needed: other formats, four colours, decompression bombs."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    if colours in ("CMYK", "YCCK") or width * height > Image.MAX_IMAGE_PIXELS:
        return None

    def decode(shrink):
        try:
            return simplejpeg.decode_jpeg(content, "RGB", min_height=-(-height // shrink),
                                          min_width=-(-width // shrink)), shrink
        except ValueError:  # corrupt, or only unusual; Pillow decides
            return _by_pillow(_opened(content)).decode(shrink)

    return EncodedImage((width, height), decode)


def _by_pillow(image):
    def decode(shrink):
        width, height = image.size
        drafted = image.draft("RGB", (max(1, width // shrink), max(1, height // shrink)))
        return np.asarray(_rgb(image)), shrink if drafted else 1

    return EncodedImage(image.size, decode)


def _rgb(image):
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits a pixel, which Pillow would clip at 255
        deep = np.asarray(image)
        if image.mode == "F":
            deep = np.nan_to_num(deep.astype("float64"), nan=0, posinf=0, neginf=0)
        most = 65535 if image.mode.startswith("I;16") else deep.max()
        if most > 255:  # in 32 bits, several scales are in use
            deep = deep / 257
        elif image.mode == "F" and most <= 1:
            deep = deep * 255
        return Image.fromarray(np.clip(deep, 0, 255).astype("uint8")).convert("RGB")
    return image.convert("RGB")


# --- transforms -------------------------------------------------------------------------------------------------------

def train_transform(image: EncodedImage, size: int, rng: np.random.Generator, crop_scale: float,
                    flip: bool) -> np.ndarray:
    """Random resized crop (area crop_scale..1, ratio 3/4..4/3) and flip, as in GoogLeNet (arXiv 1409.4842, 6).

    uint8 [3, size, size].
    """
    width, height = image.size
    area = width * height
    for _ in range(10):
        crop_area = area * rng.uniform(crop_scale, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round((crop_area * ratio) ** 0.5), round((crop_area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:  # a very long image: the largest central crop of an allowed ratio
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    pixels = _resized(image, (left, top, left + w, top + h), (size, size))
    return _planes(pixels, mirrored=flip and rng.random() < 0.5)


def shifted_transform(image: EncodedImage, size: int, rng: np.random.Generator, flip: bool) -> np.ndarray:
    """The `whole_transform` shifted by up to size / 8 pixels each way, black where nothing is left, and flipped.

    uint8 [3, size, size]. At 32 pixels it is the usual augmentation for CIFAR: a margin of 4, a random crop, a flip
    (arXiv 1512.03385, section 4.2).
    """
    most, view = size // 8, whole_transform(image, size)
    down, right = (int(offset) for offset in rng.integers(-most, most + 1, 2))
    pixels = np.zeros_like(view)
    pixels[:, max(0, down):size + min(0, down), max(0, right):size + min(0, right)] = \
        view[:, max(0, -down):size + min(0, -down), max(0, -right):size + min(0, -right)]
    return np.ascontiguousarray(pixels[:, :, ::-1]) if flip and rng.random() < 0.5 else pixels


def whole_transform(image: EncodedImage, size: int) -> np.ndarray:
    """Short side to `size`, then the central square, of a square image all: uint8 [3, size, size]."""
    return eval_transform(image, size, short=size)


def eval_transform(image: EncodedImage, size: int, short: int | None = None) -> np.ndarray:
    """Short side to `short` [round(size * 256 / 224)], then the central square of `size` pixels: uint8 [3, size, size].
    """
    width, height = image.size
    short = short or round(size * 256 / 224)
    if width < height:
        scaled = short, max(short, int(short * height / width))
    else:
        scaled = max(short, int(short * width / height)), short
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    # The square in coordinates of the original: only what is kept is computed.
    fx, fy = width / scaled[0], height / scaled[1]
    return _planes(_resized(image, (left * fx, top * fy, (left + size) * fx, (top + size) * fy), (size, size)))


class Augmentation(NamedTuple):
    """How images are shown.

    train(image, size, rng, crop_scale, flip): what training sees, uint8 [3, size, size]. whole: whether evaluation sees
    the `whole_transform` of an image, or the centre by `eval_transform`.
    """

    train: Callable
    whole: bool


#: By the words of --augment, which `options.AUGMENTS` allows.
AUGMENTATIONS = {
    "crop": Augmentation(train_transform, whole=False),
    "shift": Augmentation(lambda image, size, rng, _, flip: shifted_transform(image, size, rng, flip), whole=True),
}


def shrunk_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(width, height) with the short side brought down to `short`; a smaller image stays as it is."""
    scale = min(1, short / min(size))
    return tuple(max(1, round(side * scale)) for side in size)


def shrunk(image: EncodedImage, size: tuple[int, int]) -> np.ndarray:
    """The whole image as uint8 [height, width, 3] of this size (width, height)."""
    return _resized(image, (0, 0, *image.size), size)


def _planes(pixels, mirrored=False):
    """uint8 [height, width, 3] to [3, height, width]."""
    planes = np.empty((3, *pixels.shape[:2]), "uint8")
    if cv2:  # ten times as fast as numpy, which goes through such an array byte by byte
        cv2.split(cv2.flip(pixels, 1) if mirrored else pixels, list(planes))
    else:
        planes[:] = (pixels[:, ::-1] if mirrored else pixels).transpose(2, 0, 1)
    return planes


# --- resizing ---------------------------------------------------------------------------------------------------------

def libraries() -> str:
    """The libraries that decode and resize, on which the speed depends."""
    return f"{'simplejpeg' if simplejpeg else 'Pillow'} and {resizer()}"


def resizer() -> str:
    """The library that resizes: the results of two differ in the last bits, so caches of one must not serve the other.
    """
    return "OpenCV" if cv2 else "Pillow"


def _resized(image, box, size):
    """The part `box` (left, top, right, bottom) of a picture as uint8 [height, width, 3] of `size` (width, height)."""
    # Decoded at a smaller size only where twice what is needed is left, so that nothing is lost.
    room = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]) / 2
    pixels, shrink = image.decode(max((shrink for shrink in (2, 4, 8) if shrink <= room), default=1))
    height, width = pixels.shape[:2]
    box = box[0] / shrink, box[1] / shrink, min(box[2] / shrink, width), min(box[3] / shrink, height)
    if cv2 and max(height, width) <= MOST_OPENCV:
        return _resized_by_opencv(pixels, box, size)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.BILINEAR, box=box))


def _resized_by_opencv(pixels, box, size):
    """Smooth as the scale factor requires, then sample linearly.

    Against Pillow's filter the pixels of photographs differ by .5 to 1.3 of 255 in the mean at the factor 1.46, where
    it is most, and by less than .5 from 2 on; sampling alone differs by 1 to 2.7 there, and by up to 14 further on.
    """
    left, top, right, bottom = box
    fx, fy = (right - left) / size[0], (bottom - top) / size[1]
    # The crop first, with what the filter sees around it.
    first_x, first_y = max(0, int(left - fx) - 1), max(0, int(top - fy) - 1)
    pixels = pixels[first_y:int(bottom + fy) + 2, first_x:int(right + fx) + 2]
    left, top, right, bottom = left - first_x, top - first_y, right - first_x, bottom - first_y
    across, down = (max(1, int(factor / FACTOR_LEFT)) for factor in (fx, fy))
    if across > 1 or down > 1:
        pixels = _averaged(pixels, across, down)
        left, top, right, bottom = left / across, top / down, right / across, bottom / down
        fx, fy = fx / across, fy / down
    if fx > 1 or fy > 1:
        pixels = cv2.sepFilter2D(pixels, -1, _smoothing(fx), _smoothing(fy), borderType=cv2.BORDER_REPLICATE)
    if left == int(left) and top == int(top) and right == int(right) and bottom == int(bottom):
        part = pixels[int(top):int(bottom), int(left):int(right)]
        return cv2.resize(part, size, interpolation=cv2.INTER_LINEAR)  # the same, and faster than what follows
    back = np.array([[fx, 0, left + fx / 2 - 0.5], [0, fy, top + fy / 2 - 0.5]])  # from new pixels to old ones
    return cv2.warpAffine(pixels, back, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REPLICATE)


def _averaged(pixels, across, down):
    """Means of `across` x `down` pixels; the last row and column are repeated to make whole ones."""
    height, width = pixels.shape[:2]
    more_down, more_across = -height % down, -width % across
    if more_down or more_across:
        pixels = cv2.copyMakeBorder(pixels, 0, more_down, 0, more_across, cv2.BORDER_REPLICATE)
    size = (width + more_across) // across, (height + more_down) // down
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


@functools.lru_cache(maxsize=1024)  # small pictures have few factors, and this takes as long as all else for them
def _smoothing(factor):
    """Weights [2n + 1] that, followed by linear sampling, make the triangle filter of half-width `factor`.

    For a whole factor the triangle at whole places, which is exact; between two, the mixture with its variance.
    """
    factor = max(1, factor)
    whole = int(factor)
    distance = np.abs(np.arange(-whole, whole + 1))
    narrow, wide = (np.maximum(0, 1 - distance / width) / width for width in (whole, whole + 1))
    part = (factor ** 2 - whole ** 2) / (2 * whole + 1)
    return (1 - part) * narrow + part * wide
