"""Train the supernet: one set of weights for every subnet of the space."""

import os

from resnet48.system import signals, streams

if __name__ == "__main__":  # before Paddle is imported
    signals.hold()
    streams.outlive_readers()

from resnet48.evaluation import accuracy
from resnet48.images import datasets
from resnet48.nets.initial_weights import initialize
from resnet48.nets.supernet import Supernet, extract, sort_channels, zero_residuals
from resnet48.space import space_file
from resnet48.space.arch import FULL
from resnet48.system import config, options, runtime
from resnet48.system.errors import exit_on_user_error
from resnet48.system.options import is_space_file
from resnet48.training import checkpoint, loop, recipes, resume

RECIPE = os.path.join(config.RECIPES, "ranking.yaml")


def run(settings):
    """Train the supernet."""
    sampled = resume.sampled_space(settings)
    runtime.start(settings.device, channels_last=settings.channels_last)
    runtime.log_main(config.dump(settings))
    images = datasets.for_settings(settings)
    loop.require_runnable(images, settings)
    runtime.seed_everything(settings.seed)
    net, teacher = initial_nets(images, settings, sampled)
    stages = recipes.supernet(settings, sampled, teacher)

    def validate_of(some_images):
        return accuracy.validate_supernet(some_images, sampled, settings.calib_images, settings.seed,
                                          settings.batch_size)

    if settings.dry_run:
        loop.dry_run(net, stages, images, settings, validate_of)
    else:
        loop.fit(net, stages, images, settings, validate_of(images))
        runtime.log_main(f"trained: {settings.save_dir}/final.pdparams")


def initial_nets(images, settings, sampled):
    """The supernet to train and, with `--pretrained`, the full net as it was given, in evaluation mode.

    The supernet of a named space serves the full space, that of a file's serves this one.
    """
    space = sampled if is_space_file(settings.space) else space_file.narrowed(FULL, settings)
    net = Supernet(space, len(images.classes))
    if not settings.pretrained:
        initialize(net, settings.init)
        if settings.zero_residuals:
            zero_residuals(net)
        return net, None
    given = checkpoint.build_supernet(checkpoint.load(settings.pretrained))
    checkpoint.require_classes(given, images, settings.pretrained)
    if given.split:
        net.divide(given.split)
    checkpoint.start_from(net, {name: value.numpy() for name, value in given.state_dict().items()},
                          settings.pretrained)
    sort_channels(net)
    teacher = extract(given, space.largest())
    teacher.eval()
    return net, teacher


def main(argv=None):
    function, settings = config.command_line(__doc__, {"run": (run, options.SupernetSettings, RECIPE)}, argv)
    function(settings)


if __name__ == "__main__":
    exit_on_user_error(main)
