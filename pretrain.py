"""Train and evaluate subnets on their own ("standalone"): the ground truth that a supernet's ranking is judged by."""

import dataclasses
import functools
import os
import sys

from resnet48.system import machine, signals, streams

if __name__ == "__main__":  # before Paddle is imported
    signals.hold()
    streams.outlive_readers()
    if sys.argv[1:2] == ["truth"] and machine.local_ranks(os.environ) == 1:
        machine.prepare(cpus=1)  # of each training, so that its sums are the same however many run at once

from resnet48.evaluation import accuracy, truth as truths
from resnet48.images import datasets
from resnet48.nets.initial_weights import initialize
from resnet48.nets.supernet import ResNet48, extract, zero_residuals
from resnet48.ranking import submission
from resnet48.space import arch_list, space_file
from resnet48.space.arch import FULL, ArchConfig
from resnet48.system import config, files, options, runtime
from resnet48.system.errors import UserError, exit_on_user_error, shown
from resnet48.training import checkpoint, loop, recipes

RECIPE = os.path.join(config.RECIPES, "standalone.yaml")


def run(settings):
    """Train and/or evaluate one subnet on its own."""
    config.require(settings, "arch")
    images = start(settings)
    space = space_file.of(settings)
    arch = ArchConfig.parse(settings.arch, space, allow_untied=True)
    if settings.mode != "eval":
        return train_one(arch, images, settings, lambda: accuracy.validate_standalone(images, settings.batch_size),
                         validates=settings.mode == "all")
    path = settings.pretrained or settings.save_dir
    found = checkpoint.load(path)
    arch = dataclasses.replace(arch, activation=checkpoint.activation(found))
    net = initial_net(arch, images, found, path, settings)
    top1 = accuracy.validate_standalone(images, settings.batch_size)(net)["val"]
    runtime.log_main(f"top-1 of {arch.code} from {path}: {top1:.2f} % of {len(images.val)} validation images")


def truth(settings):
    """Train every subnet of a list on its own and write their accuracies; resumes where it stopped."""
    config.require(settings, "archs")
    space = space_file.of(settings)
    entries = arch_list.read_list(settings.archs, space)[:settings.limit]
    files.require_output("--truth", settings.truth, {},
                         lambda path: submission.reason_to_keep(path, [arch for _, _, arch in entries],
                                                                made_by=functools.partial(has_run, settings)))
    # What all archs see alike is made once in each process: training images unless other processes decode them, and
    # validation images.
    images = dataclasses.replace(start(settings), shown=None if settings.num_workers else {})
    validate_of_all = functools.cache(lambda: accuracy.validate_standalone(images, settings.batch_size))
    accuracies = truths.measure(entries, settings, images,
                                lambda arch, its_settings: train_one(arch, images, its_settings, validate_of_all))
    if runtime.rank() == 0 and not settings.dry_run:
        submission.write_accuracies(settings.truth, entries, accuracies)
        runtime.log_main(f"wrote {settings.truth}: {len(entries)} archs, top-1 {min(accuracies):.2f} to "
                         f"{max(accuracies):.2f} %")


def has_run(settings, arch):
    """Whether --save_dir holds a run of this arch, so that its accuracy is measured, or read, again."""
    return os.path.isdir(os.path.join(settings.save_dir, arch.code))


def start(settings):
    """Device, peers, printed settings, images."""
    runtime.start(settings.device, channels_last=settings.channels_last)
    runtime.log_main(config.dump(settings))
    return datasets.for_settings(settings)


def train_one(arch, images, settings, make_validate, validates=True):
    """Train one subnet; its top-1 in percent, if it validates. make_validate(): the `validate` of `loop.fit`."""
    loop.require_runnable(images, settings)
    runtime.seed_everything(settings.seed)
    found = settings.pretrained and checkpoint.load(settings.pretrained)
    net = initial_net(arch, images, found, settings.pretrained, settings)
    arguments = net, recipes.standalone(settings), images, settings
    if settings.dry_run:
        return loop.dry_run(*arguments, lambda few: accuracy.validate_standalone(few, settings.batch_size))["val"]
    accuracies = loop.fit(*arguments, make_validate() if validates else None)
    if validates:
        runtime.log_main(f"top-1 of {arch.code}: {accuracies['val']:.2f} % of {len(images.val)} validation images")
        return accuracies["val"]


def initial_net(arch, images, found, path, settings):
    """The subnet with new weights, or with those `found` at `path`, which may also be a supernet's."""
    net = ResNet48(arch, len(images.classes))
    if not found:
        initialize(net, settings.init)
        if settings.zero_residuals:
            zero_residuals(net)
        return net
    foreign = "sha256" not in found.state  # of another program, and a net on its own if it fits
    if found.state["net"]["kind"] == "standalone" or foreign and checkpoint.fits(net, found.weights):
        checkpoint.start_from(net, found.weights, path)
        return net
    supernet = checkpoint.build_supernet(found)
    checkpoint.require_classes(supernet, images, path)
    if dataclasses.replace(ArchConfig.parse(arch.code, supernet.space), activation=arch.activation) != arch:
        widths = ",".join(map(str, supernet.space.base_channels))
        raise UserError(f"{shown(path)} is a supernet of other widths; it needs --base_channels {widths} "
                        f"--divisor {supernet.space.divisor}"
                        + ("" if supernet.space.ratios == FULL.ratios else " and the --space that it was trained in"))
    subnet = extract(supernet, arch)
    # The running statistics of a supernet belong to none of its subnets.
    accuracy.calibrate_alone(subnet, accuracy.calibration_images(images, settings.calib_images, settings.seed))
    checkpoint.start_from(net, {name: value.numpy() for name, value in subnet.state_dict().items()}, path)
    return net


def main(argv=None):
    function, settings = config.command_line(__doc__, {
        "run": (run, options.StandaloneSettings, RECIPE), "truth": (truth, options.TruthSettings, RECIPE)}, argv)
    function(settings)


if __name__ == "__main__":
    exit_on_user_error(main)
