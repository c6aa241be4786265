"""Everything after training: evaluate subnets and write the submission, score, verify and export."""

import os

from resnet48 import checkpoint, config, data, evaluate, files, runtime, score as scoring, submission
from resnet48.arch import FULL, ArchConfig
from resnet48.errors import UserError, exit_on_user_error
from resnet48.models import extract


def run(settings):
    """Evaluate the archs of a list with the supernet's weights and write the submission."""
    config.require(settings, "checkpoint", "archs")
    files.require_writable(settings.output)
    runtime.start(settings.device)
    net = checkpoint.load_supernet(settings.checkpoint)
    entries = submission.read_list(settings.archs, net.space)
    chosen = entries[:2 if settings.dry_run else settings.limit]
    images = data.load(settings)
    checkpoint.require_classes(net, images, settings.checkpoint)
    if settings.dry_run:
        images = data.cut(images, settings.calib_images or 1, settings.batch_size)
    calibration = evaluate.calibration_images(images, settings) if settings.calib_images else None
    validation = evaluate.Validation.of(images, settings)
    counts = list(runtime.progress(
        evaluate.one_by_one(net, [arch for _, _, arch in chosen], calibration, validation.pixels, validation.labels,
                            settings.batch_size), len(chosen), "subnets"))
    accuracies = [100 * int(top1) / len(validation.labels) for top1, _ in counts]
    runtime.say(f"{len(chosen)} subnets on {len(validation.labels)} images: top-1 {min(accuracies):.2f} to "
                f"{max(accuracies):.2f} %")
    if settings.dry_run:
        return runtime.say("dry run passed; nothing was written")
    partial = len(chosen) < len(entries)
    submission.write(settings.output, chosen, accuracies)
    runtime.say(f"wrote {settings.output}" + (f", PARTIAL: {len(chosen)} of {len(entries)} archs" if partial else ""))


def score(settings):
    """Say how well a submission agrees with the accuracies of nets trained on their own."""


def verify(settings):
    """Check a submission against the list it answers and the checkpoint it claims to come from."""


if __name__ == "__main__":
    def main():
        function, settings = config.command_line(__doc__, {
            "run": (run, config.EvalConfig, None), "score": (score, config.ScoreConfig, None),
            "verify": (verify, config.VerifyConfig, None)})
        function(settings)
    exit_on_user_error(main)
