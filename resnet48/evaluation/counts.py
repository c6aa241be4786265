"""What is counted of an arch on images, of all of them and of one of two halves. No Paddle in here.

Everything is a whole number, cross-entropies too: each image's, a float32, is rounded to a multiple of `UNIT`. So a sum
is the same in any order, whatever the batches, chunks, processes and resumes, and it is exact as a float64. (The
cross-entropies of the images differ in their last digits where logits do: in chunks of other sizes, or one by one. That
is under 1e-5 nats per image; up to 2.3e-6 were seen, where an image counted 10 nats.)
"""

import numpy as np

COLUMNS = ("top1", "top5", "cross_entropy", "first_images", "first_top1", "first_cross_entropy")
UNIT = 2.0 ** -24  # nats; a float32 between 1 and 2 is twice as coarse
#: Nats that one image may count, NaN included: where Paddle's CPU kernel ends. A float64 holds 8 million such exactly.
LARGEST = 64
ROUNDING = 1e-5  # nats per image: what chunks of another size may change, see above


def first_half(labels: np.ndarray) -> np.ndarray:
    """Which images of a sample (labels: int64 [n], in its order) are in the first half: int64 [n], 1 or 0.

    The images of a class go to the two halves in turn, and the classes begin with one half and the other in turn, so
    both halves of a balanced sample are balanced. Of all images together, so that it depends on no chunk.
    """
    classes, begins = np.unique(labels, return_index=True)
    half = np.empty(len(labels), "int64")
    for turn, label in enumerate(classes[np.argsort(begins)]):
        places = np.flatnonzero(labels == label)
        half[places] = (np.arange(len(places)) + turn + 1) % 2
    return half


def impossible(counts: np.ndarray, images: int) -> bool:
    """Whether int64 [archs, columns] cannot be counts of archs on so many images."""
    top1, top5, cross_entropy, first_images, first_top1, first_cross_entropy = counts.T
    most = int(LARGEST / UNIT)
    return not ((0 <= top1) & (top1 <= top5) & (top5 <= images) & (0 <= cross_entropy)
                & (cross_entropy <= images * most) & (0 <= first_images) & (first_images <= images)
                & (first_images == first_images.max(initial=0)) & (0 <= first_top1)
                & (first_top1 <= np.minimum(top1, first_images)) & (0 <= first_cross_entropy)
                & (first_cross_entropy <= np.minimum(cross_entropy, first_images * most))).all()


def in_nats(counts: np.ndarray) -> np.ndarray:
    """The same counts [..., columns] as float64, cross-entropies in nats."""
    return counts * np.where(["cross_entropy" in name for name in COLUMNS], UNIT, 1.0)
