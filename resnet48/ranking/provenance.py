"""What a submission says of how it was made: the settings of its evaluation, and the counts of each arch. No Paddle."""

import dataclasses

import numpy as np

from ..space.arch import SearchSpace
from ..space.arch_list import Entry, read_accuracies
from ..space.checks import check_image_size
from ..system import config, files
from ..system.errors import UserError, shown
from ..system.options import EvalSettings, ImageSettings
from . import counts_file, submission


def evaluation(path: str) -> tuple[EvalSettings, dict]:
    """(the settings that the evaluation behind a submission ran with, digests of its images by split), by its manifest.

    path: of the submission. The image size is the one that it came to, whatever the settings left open; the digests
    are missing in manifests of earlier versions. Raises `UserError` for a manifest that is missing or malformed.
    """
    place = submission.manifest_path(path)
    manifest = files.read_json(place, "manifest")
    try:
        stated, digests = manifest["settings"], manifest.get("images", {})
        known = {item.name for item in dataclasses.fields(EvalSettings)}
        values = config.current(EvalSettings, dict(stated))
        settings = config.build(EvalSettings, {name: value for name, value in values.items() if name in known})
        return dataclasses.replace(settings, image_size=check_image_size(manifest["image_size"])), dict(digests)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = error if isinstance(error, UserError) else "it does not say how the archs were evaluated"
        raise UserError(f"manifest {shown(place)} is malformed: {why}") from error


def with_images_of(settings: ImageSettings, stated: EvalSettings) -> ImageSettings:
    """`settings`, where they leave open which images, and how they are seen, as `stated`."""
    source = () if settings.image_dir or settings.dataset else ("image_dir", "dataset", "dataset_dir")
    open_ones = [name for name in (*source, "augment", "image_size") if getattr(settings, name) is None]
    return dataclasses.replace(settings, skip_bad_images=settings.skip_bad_images or stated.skip_bad_images,
                               **{name: getattr(stated, name) for name in open_ones})


def counts(path: str, space: SearchSpace) -> tuple[list[Entry], np.ndarray, int]:
    """(the entries of a submission, float64 [archs, 6] as `counts_file.write` took them, the number of images).

    Raises `UserError` where the counts beside it are missing, of an earlier version, or another submission's.
    """
    entries, accuracies = read_accuracies(path, "submission", space)
    return entries, *counts_file.read_whole(path, entries, accuracies)
