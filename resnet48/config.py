"""Settings of a run: dataclass defaults, then a YAML file, then the command line.

A flag, its YAML key and its field have one name. Types and limits are checked in one place for both, and an
unknown name is an error that offers the nearest one.
"""

import argparse
import dataclasses
import difflib
import math
import os
import types
import typing
from dataclasses import dataclass, field

import yaml

from .errors import UserError

MOST_SEED = 2 ** 32 - 1  # what all generators take
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def option(default, help, least=None, above=None, most=None, choices=None):
    """A field of a config. least, most: the limits of its value; above: what it must exceed."""
    return field(default=default, metadata={"help": help, "least": least, "above": above, "most": most,
                                            "choices": choices})


@dataclass
class SpaceConfig:
    """How wide the net is; a narrow copy makes the whole road honest on a small machine."""

    base_channels: str = option("64,128,256,512", "widths of stages 1..4 at ratio 1, in channels")
    divisor: int = option(8, "widths are rounded to a multiple of this", least=1)

    def channels(self):
        try:
            return tuple(int(width) for width in self.base_channels.split(","))
        except ValueError:
            raise UserError(f"--base_channels takes four whole numbers, such as 64,128,256,512; "
                            f"got {self.base_channels!r}") from None


@dataclass
class DataConfig:
    """Which images, and at what size."""

    image_dir: str | None = option(None, "folder with train/<class>/ and val/<class>/; "
                                         "without it the built-in handwritten digits")
    image_size: int | None = option(None, "height and width in pixels [that of the checkpoint; 224; 32 for the digits]",
                                    least=1)
    num_workers: int = option(2, "processes that decode training images (0: none), threads that decode others", least=0)
    skip_bad_images: bool = option(False, "leave unreadable validation and calibration images out instead of stopping")
    cache_dir: str | None = option(None, "folder that keeps decoded validation and calibration images")


@dataclass
class TrainConfig(SpaceConfig, DataConfig):
    """What both training scripts share. The defaults are the official recipe."""

    crop_scale: float | None = option(None, "smallest part of an image's area in a training crop "
                                            "[0.08; 0.6 for the built-in digits]", above=0, most=1)
    train_cache: bool = option(False, "keep the training images in --cache_dir, shrunk to a short side of twice the "
                                      "image size: faster, but crops of under a quarter of the area are less sharp")
    batch_size: int = option(256, "images per step and process", least=1)
    max_epoch: int = option(90, "passes over the training images", least=1)
    warmup: float = option(0.0, "epochs in which the learning rate rises from 0", least=0)
    warmup_steps: int | None = option(None, "the same in steps, instead of --warmup", least=0)
    lr: float = option(0.1, "learning rate per 256 images of the global batch", above=0)
    schedule: str = option("cosine", "how the learning rate falls: cosine (to 0) or step", choices=("cosine", "step"))
    decay_epochs: float = option(30.0, "epochs between two falls, with --schedule step", above=0)
    decay_rate: float = option(0.1, "what the learning rate is multiplied by at a fall", above=0, most=1)
    momentum: float = option(0.9, "of SGD", least=0)
    weight_decay: float = option(1e-4, "L2 penalty added to every gradient", least=0)
    no_decay_norm: bool = option(False, "no weight decay for batch norms and biases")
    hold_unused: bool = option(False, "weights that no subnet of a step uses stay as they are, instead of following "
                                      "momentum and weight decay (all are used where the largest subnet is)")
    clip_norm: float | None = option(None, "scale gradients down to this norm of all of them together", above=0)
    clip_value: float | None = option(None, "cut every gradient off at plus and minus this", above=0)
    label_smoothing: float = option(0.0, "part of the label spread over all classes, in cross-entropy to labels",
                                    least=0, most=1)
    ema: float = option(0.0, "keep this moving average of the weights, such as 0.9999, and evaluate and publish it "
                             "(0: none)", least=0, most=1)
    accumulate: int = option(1, "parts in which a batch is run, to need less memory; only batch-norm statistics, which "
                                "are each part's own, tell the difference", least=1)
    amp: str = option("none", "mixed precision on a GPU: O1, or none", choices=("none", "O1"))
    amp_dtype: str = option("bf16", "of --amp: bf16, or fp16 with a loss scaler", choices=("bf16", "fp16"))
    channels_last: bool = option(False, "let Paddle lay features out as NHWC in mixed precision on a GPU")
    zero_residuals: bool = option(False, "start every block as its shortcut; helps short runs of narrow nets")
    pretrained: str | None = option(None, "weights to start from (.pdparams or a run's folder)")
    resume: str = option("auto", "auto (the newest checkpoint in --save_dir), none or a checkpoint's path")
    save_dir: str = option("output/train", "folder for checkpoints, config.yaml and metrics.csv")
    calib_images: int = option(512, "training images for the batch-norm statistics of a subnet", least=1)
    save_freq: int = option(1, "epochs between checkpoints", least=1)
    save_every_steps: int = option(0, "also steps between checkpoints (0: only after epochs)", least=0)
    eval_freq: int = option(1, "epochs between evaluations while training (0: only the last)", least=0)
    log_freq: int = option(100, "steps between log lines", least=1)
    visualdl: bool = option(False, "also log for VisualDL, to --save_dir/visualdl")
    seed: int = option(0, "of everything random", least=0, most=MOST_SEED)
    device: str = option("auto", "auto, cpu or gpu", choices=("auto", "cpu", "gpu"))
    dry_run: bool = option(False, "two steps, a checkpoint, a reload and one evaluation, to see that all is well")


@dataclass
class StandaloneConfig(TrainConfig):
    save_dir: str = option("output/standalone", "folder for checkpoints, config.yaml and metrics.csv")
    arch: str = option("", "arch code, 51 digits or 52 with a leading 1")
    mode: str = option("all", "train, eval (of --pretrained or of --save_dir), or all: both",
                       choices=("all", "train", "eval"))


@dataclass
class TruthConfig(TrainConfig):
    save_dir: str = option("output/truth", "folder for one run's folder per arch")
    archs: str = option("", "arch list in the official JSON format")
    limit: int | None = option(None, "only the first N archs", least=1)
    truth: str = option("output/truth.json", "where the measured accuracies go")


@dataclass
class SupernetConfig(TrainConfig):
    save_dir: str = option("output/supernet", "folder for checkpoints, config.yaml and metrics.csv")
    dyna_batch_size: int = option(4, "subnets per step, the largest included where the recipe trains it", least=1)
    recipe: str = option("sandwich", "which subnets a step trains and with what loss", choices=("sandwich", "demo"))
    space: str = option("pool", "which subnets are sampled: pool (as published) or full", choices=("pool", "full"))


@dataclass
class ListConfig:
    """Which archs of a list."""

    archs: str = option("", "arch list in the official JSON format")
    limit: int | None = option(None, "only the first N archs: a partial submission", least=1)
    every: int = option(1, "only every K-th arch of the list", least=1)
    keys: str | None = option(None, "only the archs with these keys, such as arch1,arch17")
    chunk: int | None = option(None, "images walked through the tree at once, or auto: as memory and time allow [auto]",
                               least=1)


@dataclass
class EvalConfig(DataConfig, ListConfig):
    checkpoint: str = option("", "a run's folder or a .pdparams file")
    output: str = option("output/submission.json", "submission file to write")
    calib_images: int = option(512, "training images for each subnet's batch-norm statistics (0: inherit)", least=0)
    val_images: int | None = option(None, "only so many validation images, of all classes alike", least=1)
    fresh: bool = option(False, "forget what earlier runs have evaluated")
    amp: str = option("none", "half precision on a GPU: fp16 or bf16", choices=("none", "fp16", "bf16"))
    channels_last: bool = option(False, "let Paddle lay features out as NHWC in half precision on a GPU")
    one_by_one: bool = option(False, "run each arch on its own: the slow reference")
    batch_size: int = option(256, "validation images at a time with --one_by_one", least=1)
    seed: int = option(0, "of the choice of images", least=0, most=MOST_SEED)
    device: str = option("auto", "auto, cpu or gpu", choices=("auto", "cpu", "gpu"))
    dry_run: bool = option(False, "two archs on a few images; writes nothing")


@dataclass
class StatusConfig:
    output: str = option("output/submission.json", "submission file that `run` was told to write")
    write: str | None = option(None, "write what is there so far as a submission to this file")


@dataclass
class PlanConfig(ListConfig, SpaceConfig):
    image_size: int = option(224, "height and width in pixels", least=1)
    images: int = option(50000, "validation images", least=1)
    num_classes: int = option(1000, "outputs of the classifier", least=1)
    calib_images: int = option(512, "training images for the batch-norm statistics of each subnet", least=0)
    ranks: int = option(1, "processes that share the work", least=1)
    gflops: float | None = option(None, "10^9 FLOP per second of one process [measured]", above=0)


@dataclass
class ScoreConfig:
    submission: str = option("", "submission file")
    truth: str = option("", "file in the same format with accuracies of nets trained on their own")
    report: str | None = option(None, "also write the score sheet to this Markdown file")
    plot: str | None = option(None, "also draw both rankings into this PNG file")
    seed: int = option(0, "of the bootstrap", least=0, most=MOST_SEED)


@dataclass
class VerifyConfig:
    submission: str = option("", "submission file")
    archs: str = option("", "arch list it must match")
    checkpoint: str | None = option(None, "run folder or .pdparams it claims to come from")


@dataclass
class ExportConfig(DataConfig):
    checkpoint: str = option("", "a supernet's run folder or .pdparams file")
    arch: str = option("", "arch code of the subnet to export")
    output: str = option("output/subnet", "path of the inference model, without ending")
    calib_images: int = option(512, "training images for the batch-norm statistics of the subnet", least=1)
    seed: int = option(0, "of the choice of calibration images", least=0, most=MOST_SEED)


def command_line(description, commands, argv=None):
    """Parse `argv` into (function, config). commands: name -> (function, config class, default YAML or None).

    Raises `UserError` for unknown names, wrong types and values out of range.
    """
    parser = _Parser(description=description, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", metavar="{" + ",".join(commands) + "}", parser_class=_Parser)
    for name, (function, config_class, default_file) in commands.items():
        summary = (function.__doc__ or "").strip().splitlines()[0]
        sub = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False, add_help=True)
        shown = f" [{os.path.relpath(default_file, HERE)}]" if default_file else ""
        sub.add_argument("--config", metavar="FILE", default=default_file,
                         help=f"YAML file with any of these settings; flags win{shown}")
        for item in dataclasses.fields(config_class):
            _add_flag(sub, item)
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command is None:
        raise UserError(f"say what to do: {', '.join(commands)} (--help explains)")
    function, config_class, _ = commands[arguments.command]
    names = [item.name for item in dataclasses.fields(config_class)]
    for word in unknown:
        flag = word.split("=")[0]
        raise UserError(f"unknown flag {flag}" + _nearest(flag.lstrip("-"), names + ["config", "help"], "--")
                        if word.startswith("-") else f"unexpected argument {word!r}")
    flags = {name: value for name, value in vars(arguments).items() if name in names}
    values = {**_read_yaml(arguments.config, names), **flags} if arguments.config else flags
    return function, build(config_class, values)


def build(config_class, values):
    """A config from a mapping, with every type and limit checked. Raises `UserError`."""
    hints = typing.get_type_hints(config_class)
    fields = {item.name: item for item in dataclasses.fields(config_class)}
    checked = {name: _check(name, value, hints[name], fields[name].metadata) for name, value in values.items()}
    for name, value in checked.items():
        if value == "" != fields[name].default:  # as from `--image_dir "$UNSET"`, which must not mean: without it
            raise UserError(f"--{name} is empty: {fields[name].metadata['help']}")
    return config_class(**checked)


def require(config, *names):
    """Raise `UserError` unless each of the named settings has been given."""
    for name in names:
        if not getattr(config, name):
            raise UserError(f"--{name} is needed: {config.__dataclass_fields__[name].metadata['help']}")


def dump(config):
    """The resolved settings as YAML text, which `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message[:1].lower() + message[1:])


def _add_flag(parser, item):
    default = "" if item.default in (None, "") or item.default is False else f" [{item.default}]"  # 0 is shown
    kwargs = {"dest": item.name, "default": argparse.SUPPRESS, "help": item.metadata["help"] + default}
    if item.type in (bool, "bool"):
        parser.add_argument(f"--{item.name}", action=argparse.BooleanOptionalAction, **kwargs)
    else:
        parser.add_argument(f"--{item.name}", metavar="X", **kwargs)


def _check(name, value, hint, limits):
    """`value` as the field's type, from YAML (typed) or from a flag (text)."""
    optional = isinstance(hint, types.UnionType)
    kind = [part for part in typing.get_args(hint) if part is not type(None)][0] if optional else hint
    if optional and value in (None, "none", "null", "auto"):
        return None
    try:
        if kind is bool and not isinstance(value, bool):
            raise ValueError
        if isinstance(value, bool) and kind is not bool or value is None or isinstance(value, dict):
            raise ValueError
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        if kind is str and isinstance(value, (list, tuple)):  # base_channels: [8, 16, 32, 64]
            value = ",".join(map(str, value))
        value = kind(value)
    except (ValueError, TypeError, OverflowError):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise UserError(f"--{name} takes {expected}, got {value!r}") from None
    if kind is float and not math.isfinite(value):
        raise UserError(f"--{name} takes a finite number, got {value}")
    if limits["least"] is not None and value < limits["least"]:
        raise UserError(f"--{name} must be {limits['least']} or more, got {value}")
    if limits["above"] is not None and value <= limits["above"]:
        raise UserError(f"--{name} must be more than {limits['above']}, got {value}")
    if limits["most"] is not None and value > limits["most"]:
        raise UserError(f"--{name} must be {limits['most']} or less, got {value}")
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"--{name} takes {', '.join(limits['choices'])}; got {value!r}")
    return value


def _read_yaml(path, names):
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"config {path} must hold `name: value` lines, found {type(content).__name__}")
    for key in content:
        if key not in names:
            raise UserError(f"config {path}: unknown key {key!r}" + _nearest(str(key), names, ""))
    return content


def _nearest(name, names, prefix):
    match = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f"; the nearest is {prefix}{match[0]}" if match else ""
