"""Everything after training: plan, run and watch the evaluation, score, rank, verify, report, bundle, export."""

import dataclasses
import tempfile

from resnet48.system import signals, streams

if __name__ == "__main__":  # before Paddle is imported
    signals.hold()
    streams.outlive_readers()

from resnet48.evaluation import accuracy, evaluator, forecast, inference_model, prefix_tree, recheck, tree_forward
from resnet48.evaluation.journal import Journal
from resnet48.images import datasets
from resnet48.nets import supernet
from resnet48.ranking import (bundle as bundling, gathered, measured, page, provenance, rankings, score as scoring,
                              submission)
from resnet48.space import arch_list, space_file
from resnet48.space.arch import ANY, ArchConfig
from resnet48.system import archives, config, files, options, runtime
from resnet48.system.errors import UserError, exit_on_user_error, shown
from resnet48.training import checkpoint, portable, resume


def run(settings):
    """Evaluate the archs of a list with the supernet's weights and write the submission; resumes where it stopped."""
    config.require(settings, "checkpoint", "archs")
    files.require_writable(settings.output)
    # The ranks meet in the journal's folder and nowhere else.
    runtime.start(settings.device, join=False, channels_last=settings.channels_last)
    found = checkpoint.load(settings.checkpoint)
    net, digest = checkpoint.build_supernet(found), files.sha256_of(found.weights_file)
    entries = arch_list.read_list(settings.archs, net.space)
    chosen = arch_list.select(entries, settings.limit, settings.every, settings.keys)
    submission.require_outputs(settings.output, settings.archs, found.weights_file, [entry.arch for entry in chosen])
    images = load_images(settings, found)
    checkpoint.require_classes(net, images, settings.checkpoint)
    if settings.dry_run:
        return dry_run(net, digest, chosen, images, settings)
    sample = accuracy.Sample.of(images, settings.val_images, settings.calib_images, settings.seed)
    root = journal_root(settings.output)
    with runtime.stoppable("nothing is kept of --one_by_one" if settings.one_by_one else
                           f"what is finished is kept in {root}, the same command resumes"):
        digests = sample.fingerprints(None if settings.one_by_one else root)
        counts, total = evaluated(net, digest, chosen, sample, settings, root)
    about = {"net": checkpoint.describe(net), "image_size": images.size, "settings": dataclasses.asdict(settings),
             "versions": runtime.versions(), "images": digests}
    runtime.log_main(submission.write_submission(settings.output, settings.archs, digest, entries, chosen, counts,
                                                 total, about, resume.unfinished(found.state)))


def evaluated(net, digest, entries, sample, settings, root):
    """Counts (top-1, top-5) of every entry, and the number of images."""
    archs = [entry.arch for entry in entries]
    if settings.one_by_one:
        return evaluator.counts_one_by_one(net, archs, sample, settings.batch_size)
    steps = prefix_tree.traversal(archs, net.split)
    journal = evaluator.open_journal(root, digest, entries, steps, net, sample,
                                     runtime.usable_precision(settings.precision), settings.chunk, settings.fresh)
    return evaluator.evaluate_list(net, journal, steps, sample)


def dry_run(net, digest, entries, images, settings):
    few = datasets.subset(images, settings.calib_images or 1, evaluator.SMALLEST_CHUNK)
    sample = accuracy.Sample.of(few, None, settings.calib_images, settings.seed)
    with tempfile.TemporaryDirectory() as root:
        counts, total = evaluated(net, digest, entries[:2], sample, settings, root)
    runtime.log_main(f"dry run passed: {len(counts)} archs on {total} images; nothing was written")


def plan(settings):
    """Say what an evaluation would cost: nodes, MACs, time, memory, disk."""
    config.require(settings, "archs")
    rate = settings.gflops and settings.gflops * 1e9
    device = forecast.device_for(settings.device, rate, settings.memory and settings.memory * 1e9)
    space, split, classes, size = space_file.of(settings), None, settings.num_classes, settings.image_size
    if settings.checkpoint:
        found = checkpoint.load(settings.checkpoint)
        net = checkpoint.build_supernet(found)
        space, split, classes = net.space, net.split, net.num_classes
        size = size or found.state.get("settings", {}).get("image_size")
    entries = arch_list.read_list(settings.archs, space)
    chosen = arch_list.select(entries, settings.limit, settings.every, settings.keys)
    print(forecast.plan_text([entry.arch for entry in chosen], split, size or 224, settings.images, classes, space,
                             settings.chunk, settings.ranks, settings.calib_images, device, rate))
    if not settings.checkpoint:
        print("note: this is for a supernet that is not split; --checkpoint tells whether it is")


def status(settings):
    """Say how far an evaluation is, and write what is there so far if asked to."""
    journal = Journal.newest(journal_root(settings.output))
    print(forecast.status_text(journal))
    if settings.write:
        archs = [ArchConfig.parse(code, ANY, allow_untied=True) for _, code in journal.plan["codes"]]
        files.require_output("--write", settings.write, {},
                             lambda path: submission.reason_to_keep(path, archs, finished_too=True))
        print(submission.write_partial(settings.write, journal.plan["codes"], *journal.counts(),
                                       journal.plan["images"]))


def journal_root(output):
    return files.beside(output, ".journal")


def score(settings):
    """Say how well a submission agrees with the accuracies of nets trained on their own."""
    config.require(settings, "submission", "truth")
    inputs = {"--submission": settings.submission, "--truth": settings.truth}
    if settings.report:
        files.require_output("--report", settings.report, {**inputs, "--plot": settings.plot},
                             scoring.reason_to_keep_report)
    if settings.plot:
        files.require_output("--plot", settings.plot, inputs, scoring.reason_to_keep_plot)
    result = scoring.score(settings.submission, settings.truth, *submission.read_manifest_net(settings.submission),
                           settings.seed)
    print(scoring.report_markdown(result))
    if settings.report:
        files.write_text(settings.report, scoring.report_markdown(result) + "\n")
    if settings.plot:
        scoring.plot(result, settings.plot)


def rank(settings):
    """Write another ranking of a submission's archs, for a search: a prediction, which is no submission."""
    config.require(settings, "submission")
    files.require_output("--output", settings.output, {"--submission": settings.submission}, rankings.reason_to_keep)
    space, image_size, classes = submission.read_manifest_net(settings.submission)
    found = measured.read(settings.submission, "submission", space)
    print(rankings.write(settings.output, found, settings.method, image_size, classes))


def report(settings):
    """Write one HTML page of everything that is there: training, score, accuracy against MACs, sharing, manifest."""
    config.require(settings, "output")
    paths = gathered.sources(settings.output, settings.truth, settings.checkpoint)
    target = settings.page or files.beside(paths.submission, ".html")
    files.require_output("--page", target, {"--output": paths.submission, "--truth": paths.truth,
                                            "--checkpoint": paths.metrics}, page.reason_to_keep)
    found = gathered.gather(paths, settings.seed)
    try:
        trained = paths.run_folder and checkpoint.weights_digest(paths.run_folder)
    except UserError:  # no checkpoint is there yet, or no more
        trained = None
    archs = list(found.found.archs.values())
    shared = tree_forward.cost(prefix_tree.traversal(archs, found.split), found.image_size, found.num_classes)
    print(page.write(target, paths, found, page.Sharing(
        sum(len(arch.nodes()) for arch in archs), shared.nodes,
        prefix_tree.separate_macs(archs, found.image_size, found.num_classes), shared.macs), trained))


def verify(settings):
    """Check a submission against the list it answers and the checkpoint it claims to come from."""
    config.require(settings, "submission", "archs")
    digest = checkpoint.weights_digest(settings.checkpoint) if settings.checkpoint else None
    require_ready(settings.submission, settings.archs, digest, settings.allow_unfinished)
    print(f"{settings.submission} is complete and matches its list and manifest")
    if settings.recheck:
        print(rechecked(settings))


def require_ready(path, archs, digest, allow_unfinished=False):
    findings = submission.verify(path, archs, digest, allow_unfinished)
    if findings:
        raise UserError(f"{shown(path)} is not ready to submit: " + "; ".join(findings))


def rechecked(settings):
    """Evaluate some archs of a submission again; what was found, as text."""
    config.require(settings, "checkpoint")
    runtime.start(settings.device, join=False, channels_last=settings.channels_last)
    found = checkpoint.load(settings.checkpoint)
    net, (stated, digests) = checkpoint.build_supernet(found), provenance.evaluation(settings.submission)
    entries, rows, count = provenance.counts(settings.submission, net.space)
    images = load_images(provenance.with_images_of(settings, stated), found)
    checkpoint.require_classes(net, images, settings.checkpoint)
    sample = accuracy.Sample.of(images, stated.val_images, stated.calib_images, stated.seed)
    sample.require(digests)
    return recheck.recheck(net, entries, rows, sample, count, settings.recheck, settings.seed, stated.batch_size,
                           settings.recheck_tolerance)


def bundle(settings):
    """Put a submission and all that repeats it into one archive: supernet, list, settings, code, commands."""
    config.require(settings, "submission", "archs", "checkpoint")
    archives.require_ending("--output", settings.output)
    found = checkpoint.load(settings.checkpoint)
    files.require_output("--output", settings.output, {
        "--submission": settings.submission, "--archs": settings.archs, "--checkpoint": found.weights_file},
        bundling.reason_to_keep)
    require_ready(settings.submission, settings.archs, files.sha256_of(found.weights_file))
    print(bundling.write(settings.output, settings.submission, settings.archs,
                         *portable.settings(found, bundling.RETRAINED), portable.image_source(found),
                         portable.members(found, bundling.SUPERNET)))


def export(settings):
    """Write one subnet, calibrated, as an inference model: for paddle.inference, in int8 too, or ONNX."""
    config.require(settings, "checkpoint", "arch")
    inference_model.require_possible(settings)
    found = checkpoint.load(settings.checkpoint)
    inference_model.require_output(settings, found.weights_file)
    net = checkpoint.build_supernet(found)
    arch, images = ArchConfig.parse(settings.arch, net.space), load_images(settings, found)
    checkpoint.require_classes(net, images, settings.checkpoint)
    subnet = supernet.extract(net, arch)
    pixels = accuracy.calibration_images(images, settings.calib_images, settings.seed)
    accuracy.calibrate_alone(subnet, pixels)
    print(inference_model.write(subnet, images, pixels, settings))


def load_images(settings, found):
    """The images of the training and as it showed them, unless the settings say others."""
    trained = found.state.get("settings", {})
    return datasets.load(settings.image_dir, settings.image_size or trained.get("image_size"),
                         workers=settings.num_workers, skip_bad=settings.skip_bad_images, cache_dir=settings.cache_dir,
                         dataset=settings.dataset or (None if settings.image_dir else trained.get("dataset")),
                         dataset_dir=settings.dataset_dir, augment=settings.augment or trained.get("augment"),
                         train_images=trained.get("train_images"))


def main(argv=None):
    function, settings = config.command_line(__doc__, {
        "run": (run, options.EvalSettings, None), "plan": (plan, options.PlanSettings, None),
        "status": (status, options.StatusSettings, None), "score": (score, options.ScoreSettings, None),
        "rank": (rank, options.RankSettings, None), "verify": (verify, options.VerifySettings, None),
        "report": (report, options.ReportSettings, None), "bundle": (bundle, options.BundleSettings, None),
        "export": (export, options.ExportSettings, None)}, argv)
    function(settings)


if __name__ == "__main__":
    exit_on_user_error(main)
