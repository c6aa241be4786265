"""A calibrated subnet as an inference model in one of three forms, and how accurate it is in int8."""

import numpy as np

from ..images import datasets
from ..nets import export, int8, norm_statistics, onnx_model
from ..nets.supernet import ResNet48
from ..system.errors import UserError
from ..system.options import ExportSettings
from . import accuracy

BATCH = 64  # validation images at a time


def require_possible(settings: ExportSettings) -> None:
    """Raise `UserError` now, before minutes of work, for settings that no model can be written with."""
    export.require_path(settings.output)
    if settings.int8 and settings.format != "paddle":
        raise UserError("--int8 is for --format paddle only")
    if settings.int8 and not settings.calib_images:
        raise UserError("--int8 measures the ranges of features on calibration images, so --calib_images must not be 0")
    if settings.format == "onnx":
        onnx_model.require()


def require_output(settings: ExportSettings, weights_file: str) -> None:
    """Raise `UserError` where the model would replace its checkpoint or a foreign file."""
    if settings.format == "onnx":
        onnx_model.require_output(settings.output, weights_file)
    else:
        export.require_output(settings.output + int8.NAMED * settings.int8, weights_file)


def write(subnet: ResNet48, images: datasets.ImageSet, calibration: np.ndarray | None, settings: ExportSettings) -> str:
    """Write a calibrated subnet as the settings say; what was written, and how accurate it is in int8, as text.

    calibration: uint8 [N, 3, S, S], which --int8 measures ranges on.
    """
    shape = f"input float32 [N, 3, {images.size}, {images.size}], normalised RGB"
    if settings.format == "onnx":
        onnx_model.save_onnx(subnet, images.size, settings.output)
        return f"wrote {settings.output}.onnx: {shape}"
    if not settings.int8:
        export.save_inference(subnet, images.size, settings.output)
        return f"wrote {settings.output}.*: {shape}"
    path = settings.output + int8.NAMED
    normalized = [part.numpy() for part in norm_statistics.in_parts(calibration, datasets.normalize)]
    int8.quantize(subnet, images.size, np.concatenate(normalized), path)
    validate = accuracy.validate_standalone(images, BATCH)
    before, after = validate(subnet)["val"], validate(int8.Predictor(path))["val"]
    return (f"top-1 {before:.2f} % in float32, {after:.2f} % in int8, on {len(images.val)} validation images\n"
            f"wrote {path}.*: {shape}")
