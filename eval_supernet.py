"""Everything after training: evaluate subnets and write the submission, score it, verify it, export a subnet."""

import dataclasses

from resnet48 import checkpoint, config, data, evaluate, files, models, runtime, submission
from resnet48 import score as scoring
from resnet48.arch import ArchConfig
from resnet48.errors import UserError, exit_on_user_error
from resnet48.export import save_inference


def run(settings):
    """Evaluate the archs of a list with the supernet's weights and write the submission."""
    config.require(settings, "checkpoint", "archs")
    files.require_writable(settings.output)
    runtime.start(settings.device)
    found = checkpoint.read(settings.checkpoint)
    net = checkpoint.build_supernet(found)
    entries = submission.read_list(settings.archs, net.space)
    chosen = entries[:2 if settings.dry_run else settings.limit]
    images = data.load(settings)
    checkpoint.require_classes(net, images, settings.checkpoint)
    counts, total = evaluate.score_archs(net, [entry.arch for entry in chosen], images, settings)
    accuracies = [100 * int(top1) / total for top1, _ in counts]
    runtime.say(f"{len(chosen)} subnets on {total} images: top-1 {min(accuracies):.2f} to {max(accuracies):.2f} %")
    if settings.dry_run:
        return runtime.say("dry run passed; nothing was written")
    if runtime.rank() == 0:
        submission.write(settings.output, chosen, accuracies)
        submission.write_counts(settings.output, chosen, counts, total)
        submission.write_manifest(
            settings.output, settings.archs, found.weights_file, checkpoint.describe(net),
            dataclasses.asdict(settings), len(chosen), len(chosen) < len(entries), total, images.size,
            runtime.versions())
        partial = f", PARTIAL: {len(chosen)} of the list's {len(entries)} archs" if len(chosen) < len(entries) else ""
        runtime.say(f"wrote {settings.output}{partial}")


def score(settings):
    """Say how well a submission agrees with the accuracies of nets trained on their own."""
    config.require(settings, "submission", "truth")
    for path in filter(None, (settings.report, settings.plot)):
        files.require_writable(path)
    result = scoring.score(settings.submission, settings.truth, *submission.net_of(settings.submission), settings.seed)
    print(scoring.sheet(result))
    if settings.report:
        files.write_text(settings.report, scoring.sheet(result) + "\n")
    if settings.plot:
        scoring.plot(result, settings.plot)


def verify(settings):
    """Check a submission against the list it answers and the checkpoint it claims to come from."""
    config.require(settings, "submission", "archs")
    digest = files.sha256_of(checkpoint.read(settings.checkpoint).weights_file) if settings.checkpoint else None
    findings = submission.verify(settings.submission, settings.archs, digest)
    if findings:
        raise UserError(f"{settings.submission} is not ready to hand in: " + "; ".join(findings))
    print(f"{settings.submission} is complete and matches its list and manifest")


def export(settings):
    """Write one subnet, calibrated, as an inference model for paddle.inference."""
    config.require(settings, "checkpoint", "arch")
    net = checkpoint.build_supernet(checkpoint.read(settings.checkpoint))
    arch, images = ArchConfig.parse(settings.arch, net.space), data.load(settings)
    checkpoint.require_classes(net, images, settings.checkpoint)
    subnet = models.extract(net, arch)
    evaluate.calibrate_alone(subnet, evaluate.calibration_images(images, settings))
    save_inference(subnet, images.size, settings.output)
    print(f"wrote {settings.output}.*: input float32 [N, 3, {images.size}, {images.size}], normalised RGB")


def main(argv=None):
    function, settings = config.command_line(__doc__, {
        "run": (run, config.EvalConfig, None), "score": (score, config.ScoreConfig, None),
        "verify": (verify, config.VerifyConfig, None), "export": (export, config.ExportConfig, None)}, argv)
    function(settings)


if __name__ == "__main__":
    exit_on_user_error(main)
