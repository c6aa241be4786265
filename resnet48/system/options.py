"""The settings of every command: each is declared once, with its default, its limits and its help.

A command's class inherits the groups that it needs. Values come from here, YAML files and flags, see `config`.
"""

from dataclasses import dataclass

from .config import MAX_SEED, Settings, option
from .errors import UserError, quoted

#: What `recipe` said in checkpoints before a recipe was a YAML file: sampler and objective.
OLD_RECIPES = {"sandwich": ("sandwich", "in_place_distillation"), "demo": ("uniform", "fixed_teacher")}


DATASETS = ("digits", "fashion-mnist", "cifar10", "cifar100")
AUGMENTS = ("crop", "shift")


# --- groups -----------------------------------------------------------------------------------------------------------

def is_space_file(text: str) -> bool:
    """Whether `--space` names a file: it ends as YAML files do."""
    return text.endswith((".yaml", ".yml"))


def _space(default, purpose):
    return option(default, f"{purpose}: published (what the 45,000 keep to), full, or a YAML file with a space of your "
                           "own", old_words={"pool": "published"}, path=True)


@dataclass
class SpaceSettings(Settings):
    """What a code means, how wide the net is (a narrow copy lets the full pipeline run on a CPU) and how blocks end.

    base_channels and divisor of a space that is a file stay None where only the file says them.
    """

    space: str = _space("full", "the space that codes are read in")
    base_channels: str | None = option(None, "widths of stages 1..4 at ratio 1, in channels [64,128,256,512, or "
                                             "what the YAML of --space says]", listable=True)
    divisor: int | None = option(None, "widths are rounded to a multiple of this [8, or what the YAML of --space says]",
                                 ge=1)
    activation: str = option("relu", "what blocks end with, behind the sum: relu, prelu (one slope a block) or mish",
                             choices=("relu", "prelu", "mish"))

    def __post_init__(self):
        if not is_space_file(self.space):
            self.base_channels = "64,128,256,512" if self.base_channels is None else self.base_channels
            self.divisor = self.divisor or 8

    def channels(self) -> tuple[int, ...] | None:
        """The base widths, or None for those of the space's file."""
        if self.base_channels is None:
            return None
        try:
            return tuple(int(width) for width in self.base_channels.split(","))
        except ValueError:
            raise UserError(f"--base_channels takes four whole numbers, such as 64,128,256,512; "
                            f"got {quoted(self.base_channels)}") from None


@dataclass
class ImageSettings(Settings):
    """Which images, and at what size."""

    image_dir: str | None = option(None, "folder with train/<class>/ and val/<class>/; "
                                         "without it the built-in handwritten digits", resumable=True, path=True)
    dataset: str | None = option(None, f"instead of --image_dir: {', '.join(DATASETS)} [that of the checkpoint; "
                                       "digits]", choices=DATASETS)
    dataset_dir: str | None = option(None, "folder that holds the files of --dataset as they are published [the usual "
                                           "places; otherwise Paddle downloads them]", resumable=True, path=True)
    augment: str | None = option(None, "crop: training sees random resized crops, evaluation the centre; shift: "
                                       "training sees images shifted by up to an eighth of their size, evaluation all "
                                       "of them [that of the checkpoint; shift for what --dataset downloads; crop]",
                                 choices=AUGMENTS, unset="auto")
    image_size: int | None = option(None, "height and width in pixels [that of the checkpoint; 224; 32 with --dataset]",
                                    ge=1, unset="auto")
    num_workers: int = option(2, "processes that decode training images (0: none), threads that decode others", ge=0,
                              resumable=True)
    skip_bad_images: bool = option(False, "leave unreadable validation and calibration images out instead of stopping",
                                   resumable=True)
    cache_dir: str | None = option(None, "folder that keeps decoded validation and calibration images", resumable=True,
                                   path=True)


@dataclass
class SampledSpaceSettings(Settings):
    """Which subnets are drawn."""

    space: str = _space("published", "which subnets are sampled")


@dataclass
class CalibrationSettings(Settings):
    """Where a subnet's batch-norm statistics come from."""

    calib_images: int = option(512, "training images for the batch-norm statistics of each subnet (0: inherit the "
                                    "running ones)", ge=0)


@dataclass
class SeedSettings(Settings):
    seed: int = option(0, "of everything random", ge=0, le=MAX_SEED)


@dataclass
class DeviceSettings(Settings):
    """What computes, and how."""

    device: str = option("auto", "auto, cpu or gpu", choices=("auto", "cpu", "gpu"), resumable=True)
    precision: str = option("fp32", "fp32, or on a GPU bf16 or fp16 for convolutions and matrix products; --amp is its "
                                    "old name", choices=("fp32", "bf16", "fp16"), old_names=("amp",),
                            old_words={"none": "fp32", "O1": "bf16"})
    channels_last: bool = option(False, "let Paddle lay features out as NHWC in half precision on a GPU",
                                 resumable=True)

    @classmethod
    def upgrade(cls, values: dict) -> dict:
        dtype = values.pop("amp_dtype", "bf16")  # was a setting beside --amp O1
        if values.get("precision") == "O1":
            values["precision"] = dtype
        return super().upgrade(values)


@dataclass
class ListSettings(Settings):
    """Which archs of a list."""

    archs: str = option("", "arch list in the official JSON format", path=True)
    limit: int | None = option(None, "only the first N archs: a partial submission", ge=1, unset="none")
    every: int = option(1, "only every K-th arch of the list", ge=1)
    keys: str | None = option(None, "only the archs with these keys, such as arch1,arch17", unset="none", listable=True)
    chunk: int | None = option(None,
                               "images that go through the tree at once [as memory and time allow]",
                               ge=1, unset="auto")


# --- training ---------------------------------------------------------------------------------------------------------

@dataclass
class OptimizerSettings(Settings):
    """How weights begin and how they move."""

    init: str = option("he_fan_in", "initial weights of convolutions: he_fan_in (normal, deviation sqrt(2 / fan_in)), "
                                    "he_fan_out, or uniform (deviation sqrt(1 / (3 fan_in))), which trains narrow nets "
                                    "better in short runs", choices=("he_fan_in", "he_fan_out", "uniform"))
    zero_residuals: bool = option(False, "start every block as its shortcut; helps short runs of narrow nets")
    pretrained: str | None = option(None, "weights to start from (.pdparams or a run's folder)", resumable=True,
                                    path=True)
    optimizer: str = option("sgd", "sgd or adamw", choices=("sgd", "adamw"))
    momentum: float = option(0.9, "of sgd", ge=0)
    nesterov: bool = option(False, "Nesterov's momentum in sgd")
    weight_decay: float = option(1e-4, "L2 penalty added to every gradient; of adamw, apart from the gradient", ge=0)
    no_decay_norm: bool = option(False, "no weight decay for batch norms, biases and slopes of PReLUs")
    freeze_unused: bool = option(False, "weights that no subnet of a step uses stay as they are, instead of following "
                                        "momentum and weight decay (all are used where the largest subnet is)",
                                 old_names=("hold_unused",))
    clip_norm: float | None = option(None, "scale gradients down to this norm of all of them together", gt=0,
                                     unset="none")
    clip_value: float | None = option(None, "cut every gradient off at plus and minus this", gt=0, unset="none")
    lr: float = option(0.1, "learning rate per 256 images of the global batch", gt=0)
    schedule: str = option("cosine", "how the learning rate falls: cosine or linear (to 0) or step",
                           choices=("cosine", "linear", "step"))
    decay_epochs: float = option(30.0, "epochs between two falls, with --schedule step", gt=0)
    decay_rate: float = option(0.1, "what the learning rate is multiplied by at a fall", gt=0, le=1)
    warmup: float = option(0.0, "epochs in which the learning rate rises from 0", ge=0)
    warmup_steps: int | None = option(None, "the same in steps, instead of --warmup", ge=0, unset="none")
    ema: float = option(0.0, "keep this moving average of the weights, such as 0.9999, and evaluate and publish it "
                             "(0: none)", ge=0, le=1)


@dataclass
class TrainSettings(SpaceSettings, ImageSettings, OptimizerSettings, CalibrationSettings, SeedSettings, DeviceSettings):
    """What both training scripts share. The defaults are the official recipe."""

    recipes = True
    share = "images"  # see `SupernetSettings`: a net on its own has nothing else to share out

    crop_scale: float | None = option(None, "smallest part of an image's area in a training crop "
                                            "[0.08; 0.6 for the built-in digits]", gt=0, le=1, unset="auto")
    train_images: int | None = option(None, "only the first N training images, as many of each class as possible",
                                      ge=1, unset="all")
    train_cache: bool = option(False, "keep the training images in --cache_dir, shrunk to a short side of twice the "
                                      "image size: faster, but crops of under a quarter of the area are less sharp")
    batch_size: int = option(256, "images per step and process", ge=1)
    accumulate: int = option(1, "parts in which a batch is run, to need less memory; only batch-norm statistics, which "
                                "are each part's own, tell the difference", ge=1)
    max_epoch: int = option(90, "passes over the training images", ge=1, resumable=True)
    label_smoothing: float = option(0.0, "part of the label spread over all classes, in cross-entropy to labels",
                                    ge=0, le=1)
    save_dir: str = option("output/train", "folder for checkpoints, config.yaml and metrics.csv", resumable=True,
                           path=True)
    resume: str = option("auto", "auto (the newest checkpoint in --save_dir), none or a checkpoint's path",
                         resumable=True, path=True)
    save_freq: int = option(1, "epochs between checkpoints", ge=1, resumable=True)
    save_every_steps: int = option(0, "also steps between checkpoints (0: only after epochs)", ge=0, resumable=True)
    eval_freq: int = option(1, "epochs between evaluations while training (0: only the last)", ge=0, resumable=True)
    log_freq: int = option(100, "steps between log lines", ge=1, resumable=True)
    visualdl: bool = option(False, "also log for VisualDL, to --save_dir/visualdl", resumable=True)
    dry_run: bool = option(False, "two steps, a checkpoint, a reload and one evaluation, to see that all is well",
                           resumable=True)


@dataclass
class StandaloneSettings(TrainSettings):
    save_dir: str = option("output/standalone", "folder for checkpoints, config.yaml and metrics.csv", resumable=True,
                           path=True)
    arch: str = option("", "arch code, 51 digits or 52 with a leading 1")
    dropout: float = option(0.0, "part of the classifier's input that is zeroed in training", ge=0, le=0.9)
    mode: str = option("all", "train, eval (of --pretrained or of --save_dir), or all: both",
                       choices=("all", "train", "eval"), resumable=True)


@dataclass
class TruthSettings(TrainSettings):
    save_dir: str = option("output/truth", "folder for one run's folder per arch", resumable=True, path=True)
    archs: str = option("", "arch list in the official JSON format", resumable=True, path=True)
    limit: int | None = option(None, "only the first N archs", ge=1, resumable=True, unset="none")
    processes: int | None = option(None, "trainings at once on a CPU, of one thread each unless OMP_NUM_THREADS says "
                                         "otherwise [as many as fit the cores; 1 on a GPU]", ge=1, resumable=True,
                                   unset="auto")
    dropout: float = option(0.0, "part of the classifier's input that is zeroed in training", ge=0, le=0.9)
    truth: str = option("output/truth.json", "where the measured accuracies go", resumable=True, path=True)


@dataclass(frozen=True)
class StageSettings(Settings):
    """One stage of a recipe, an item of `stages` in a YAML file; what it leaves out is as in the recipe."""

    epochs: float = option(1.0, "how long; with --max_epoch, in proportion to the other stages", gt=0)
    lr: float | None = option(None, "learning rate per 256 images, scheduled over the stage", gt=0)
    warmup: float | None = option(None, "epochs of warm-up [--warmup in the first stage, 0 in the others]", ge=0)
    sampler: str | None = option(None, "as --sampler")
    objective: str | None = option(None, "as --objective")
    split: str | None = option(None, "depth(stage=4) or width(stage=4): from here on the weights of this stage of the "
                                     "net are in copies, one for each of its depths or output widths")


@dataclass
class SupernetSettings(TrainSettings):
    space: str = _space("published", "which subnets are sampled")
    save_dir: str = option("output/supernet", "folder for checkpoints, config.yaml and metrics.csv", resumable=True,
                           path=True)
    dyna_batch_size: int = option(4, "subnets per step, the largest included where the sampler draws it", ge=1)
    sampler: str = option("sandwich", "which subnets a step trains: a name, or name(key=value, ...)")
    objective: str = option("in_place_distillation", "what a step minimises: a name, or name(key=value, ...)")
    share: str = option("images", "what of a step the processes of a launch share out: images (each has a batch of its "
                                  "own) or subnets (all have one batch, and each runs some of the subnets on it), which "
                                  "is faster for narrow nets on a CPU", choices=("images", "subnets"))
    channel_fairness: bool = option(False, "multiply the gradient of a channel by the mean use of its layer's channels "
                                           "over its own, 2 at most: later channels are in fewer subnets")
    stages: tuple[StageSettings, ...] = option((), "in a YAML file: a list of stages, each with epochs and, where they "
                                                   "differ, lr, warmup, sampler, objective and split", unset="none")

    @classmethod
    def upgrade(cls, values: dict) -> dict:
        if values.get("recipe") in OLD_RECIPES:
            values["sampler"], values["objective"] = OLD_RECIPES[values.pop("recipe")]
        if isinstance(values.get("stages"), list):  # of a checkpoint from before there were splits
            values["stages"] = [{"split": None, **stage} if isinstance(stage, dict) else stage
                                for stage in values["stages"]]
        return super().upgrade(values)


# --- after training ---------------------------------------------------------------------------------------------------

@dataclass
class EvalSettings(ImageSettings, CalibrationSettings, SeedSettings, DeviceSettings, ListSettings):
    checkpoint: str = option("", "a run's folder or a .pdparams file", path=True)
    output: str = option("output/submission.json", "submission file to write", path=True)
    val_images: int | None = option(None, "only so many validation images, of all classes alike", ge=1, unset="none")
    fresh: bool = option(False, "forget what earlier runs have evaluated")
    one_by_one: bool = option(False, "run each arch on its own: the slow reference")
    batch_size: int = option(256, "validation images at a time with --one_by_one", ge=1)
    dry_run: bool = option(False, "two archs on a few images; writes nothing")


@dataclass
class StatusSettings(Settings):
    output: str = option("output/submission.json", "submission file that `run` was told to write", path=True)
    write: str | None = option(None, "write what is there so far as a submission to this file", path=True)


@dataclass
class PlanSettings(ListSettings, SpaceSettings, CalibrationSettings):
    checkpoint: str | None = option(None, "run folder or .pdparams of the supernet, which then says space, split, "
                                          "classes and image size", path=True)
    image_size: int | None = option(None, "height and width in pixels [that of the checkpoint; 224]", ge=1,
                                    unset="auto")
    images: int = option(50000, "validation images", ge=1)
    num_classes: int = option(1000, "outputs of the classifier, without --checkpoint", ge=1)
    ranks: int = option(1, "processes that share the work", ge=1)
    gflops: float | None = option(None, "10^9 FLOP per second of one process [measured]", gt=0, unset="auto")
    device: str = option("auto", "what a process computes with: cpu, gpu, or auto: with --gflops a GPU from 1000 on, "
                                 "without it what is here", choices=("auto", "cpu", "gpu"))
    memory: float | None = option(None, "10^9 bytes that one process has, of a GPU or of the machine [as here; 16 for "
                                        "a GPU that is not here]", gt=0, unset="auto")


@dataclass
class ScoreSettings(SeedSettings):
    submission: str = option("", "submission file", path=True)
    truth: str = option("", "file in the same format with accuracies of nets trained on their own", path=True)
    report: str | None = option(None, "also write the score sheet to this Markdown file", path=True)
    plot: str | None = option(None, "also draw both rankings into this PNG file", path=True)


@dataclass
class RankSettings(Settings):
    submission: str = option("", "submission file that `run` wrote, with its counts and manifest beside it", path=True)
    method: str = option("smooth", "smooth (additive smoothing of top-1) or hybrid (top-1 and a little of log MACs)",
                         choices=("smooth", "hybrid"))
    output: str = option("output/ranking.json", "ranking file to write, which is no submission", path=True)


@dataclass
class ReportSettings(SeedSettings):
    output: str = option("output/submission.json", "what `run` wrote: the submission, or the folder that holds "
                                                   "submission.json", path=True)
    truth: str | None = option(None, "file with accuracies of nets trained on their own, to score against [truth.json "
                                     "beside the submission]", path=True)
    checkpoint: str | None = option(None, "run folder of the training, whose metrics.csv is drawn [the folder train "
                                          "beside the submission, or its own]", path=True)
    page: str | None = option(None, "HTML file to write [beside the submission: a.html for a.json]", path=True)


@dataclass
class VerifySettings(ImageSettings, SeedSettings, DeviceSettings):
    """Images, seed and device are those of --recheck; images that are left open are those of the manifest."""

    submission: str = option("", "submission file", path=True)
    archs: str = option("", "arch list it must match", path=True)
    checkpoint: str | None = option(None, "run folder or .pdparams it claims to come from", path=True)
    allow_unfinished: bool = option(False, "take also one from a supernet whose training was stopped before its end")
    recheck: int | None = option(None, "also evaluate K archs again, drawn by --seed, one by one in float32 from "
                                       "--checkpoint, on the images that the manifest names or the flags give", ge=1)
    recheck_tolerance: int = option(0, "images by which hits of these archs may differ, as on another device or in "
                                       "half precision; 0 also compares cross-entropies, to 1e-5 nats per image", ge=0)


@dataclass
class BundleSettings(Settings):
    submission: str = option("", "submission file, with its counts and manifest beside it", path=True)
    archs: str = option("", "arch list it answers", path=True)
    checkpoint: str = option("", "run folder or .pdparams it comes from", path=True)
    output: str = option("output/bundle.tar.gz", "file to write, a .tar.gz or .zip archive", path=True)


@dataclass
class ExportSettings(ImageSettings, CalibrationSettings, SeedSettings):
    checkpoint: str = option("", "a supernet's run folder or .pdparams file", path=True)
    arch: str = option("", "arch code of the subnet to export")
    output: str = option("output/subnet", "path of the inference model, without ending", path=True)
    format: str = option("paddle", "paddle (for paddle.inference) or onnx (needs requirements-onnx.txt)",
                         choices=("paddle", "onnx"))
    int8: bool = option(False, "quantise weights and features to 8 bits by PaddleSlim, with ranges measured on the "
                               "calibration images; writes --output.int8.* and says what it costs in accuracy")


# --- arch codes -------------------------------------------------------------------------------------------------------

@dataclass
class DescribeSettings(SpaceSettings):
    arch: str = option("", "arch code, 51 digits or 52 with a leading 1")
    image_size: int = option(224, "height and width in pixels", ge=1)
    num_classes: int = option(1000, "outputs of the classifier", ge=1)


@dataclass
class SampleSettings(SampledSpaceSettings, SeedSettings):
    count: int | None = option(None, "how many archs, all with different codes", ge=1)
    output: str = option("", "arch list to write, in the official JSON format", path=True)
    spread: bool = option(False, "not random archs, but as many of each tenth of the space's MACs, spread over depths "
                                 "and widths of stages; the first ones of a longer list are those of a shorter one")


# --- the study -------------------------------------------------------------------------------------------------------

@dataclass
class StudiedTruthSettings(TruthSettings):
    """`truth` of a study file: how each arch is trained on its own."""

    seeds: str = option("0,1", "every arch is trained with the first of these, every second arch with all of them",
                        listable=True)


@dataclass
class StudiedRecipeSettings(SupernetSettings):
    """An item of `supernets` of a study file: how a supernet is trained, and what the report calls it."""

    name: str = option("", "what the report calls it")
    seeds: str = option("0,1,2", "a supernet is trained with each", listable=True)
    rates: str = option("", "learning rates, such as 0.1,0.2,0.4, of which the one is taken that in a shorter training "
                            "has the lowest loss on training images [--lr alone]", listable=True)


@dataclass(frozen=True)
class ContrastSettings(Settings):
    """An item of `contrasts` of a study file: a difference in tau that the study is to test."""

    one: str = option("", "a recipe, or a free ranking such as macs")
    other: str = option("", "what it is compared with")
    score: str | None = option(None, "how supernets are scored [the first of --scores]")


@dataclass
class StudySettings(Settings):
    output: str = option("output/study", "folder of the study; processes that name the same one share the work",
                         path=True)
    processes: int = option(1, "how many to start, of one thread each", ge=1)
    only: str | None = option(None, "only this part: rates, truth, supernets, scores, or the report of what is "
                                    "there", choices=("rates", "truth", "supernets", "scores", "report"), unset="all")
    spread: int = option(120, "archs spread over the space, as many in each tenth of its MACs", ge=0)
    bands: int = option(40, "archs in two bands of nearly equal MACs", ge=0)
    arch_seed: int = option(0, "of the choice of archs", ge=0, le=MAX_SEED)
    shared: dict | None = option(None, "in a YAML file: settings of all trainings, of the truth and of supernets alike")
    truth: dict | None = option(None, "in a YAML file: settings of the trainings of single archs, and their seeds")
    supernets: tuple[dict, ...] = option((), "in a YAML file: a list of recipes under test, each with a name, its "
                                             "seeds and what it is: recipe, sampler, objective, lr and so on")
    subnet_epochs: int = option(60, "the cost of every supernet: epochs times subnets per step", ge=1)
    rate_epochs: int = option(20, "the cost of a training that tries a learning rate, likewise", ge=1)
    random_weights: int = option(3, "supernets with random weights, which show what training adds", ge=0)
    scores: str = option("top1", "how supernets are scored; the first is the one that contrasts are about",
                         listable=True)
    free: str = option("macs,params,depth,zen_score", "rankings that cost no training", listable=True)
    contrasts: tuple[ContrastSettings, ...] = option((), "in a YAML file: a list of differences to test, each with one "
                                                         "and other, named before the study is run")
    default: str | None = option(None, "the recipe that is shown beside the best one [the first]")
    val_images: int | None = option(None, "validation images that supernets are scored on [all]", ge=1, unset="all")
    resamples: int = option(2000, "of the bootstrap", ge=100, le=100000)


# --- what is kept -----------------------------------------------------------------------------------------------------

@dataclass
class CacheSettings(Settings):
    cache_dir: str = option("", "the folder of --cache_dir, or the .journal folder of an evaluation", path=True)
    remove: str | None = option(None, "remove these: names as they are listed, separated by commas, or all",
                                listable=True)
    days: float = option(0.0, "only what was not used for so many days", ge=0)
