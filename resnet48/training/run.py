"""The state of a training run: what a step changes, what a checkpoint holds, and where it resumes."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import paddle

from ..images import transforms
from ..images.datasets import ImageSet
from ..images.loader import steps_per_epoch
from ..space import description
from ..space.split import Split
from ..system import config, files, runtime
from ..system.errors import UserError
from ..system.options import TrainSettings
from . import checkpoint, optim, recipes, resume, sharing
from .precision import Precision


@dataclass
class Run:
    """What training changes, and where it stands.

    new_optimizer(): makes one for the parameters that the net has now. facts: what a checkpoint says of the run beside
    (what a resume must find unchanged). saved: the newest checkpoint.
    """

    net: paddle.nn.Layer
    new_optimizer: Callable[[], paddle.optimizer.Optimizer]
    precision: Precision
    ema: optim.Ema | None
    spans: list[recipes.Span]
    steps_per_epoch: int
    facts: dict
    step: int = 0
    best: float | None = None
    best_step: int | None = None
    accuracies: dict = field(default_factory=dict)
    saved: str | None = None

    def __post_init__(self):
        self.optimizer = self.new_optimizer()

    @property
    def steps(self) -> int:
        return self.spans[-1].last

    @property
    def kept_net(self) -> paddle.nn.Layer:
        """The net to evaluate and to publish."""
        return self.ema.net if self.ema else self.net

    def span(self, step: int) -> recipes.Span:
        """The stage that a step (from 0) belongs to; the last one for what lies behind."""
        return recipes.span_at(self.spans, step)

    def divide(self, split: Split) -> None:
        """Split the net, which is not split yet.

        Every copy begins with the weights, running statistics, optimizer's state and moving average of what it is a
        copy of.
        """
        state = optim.state_by_name(self.net, self.optimizer)
        first_of = self.net.divide(split)
        for name, first in first_of.items():
            state |= {name + key.removeprefix(first): value for key, value in state.items()
                      if key.startswith(f"{first}/")}
        self.optimizer = self.new_optimizer()  # of the copies, too
        optim.load_state(self.net, self.optimizer, state)
        if self.ema:
            self.ema.divide(split)

    def state(self) -> dict:
        """Plain data for a checkpoint."""
        span = self.span(self.step)
        return {"step": self.step, "steps": self.steps, "finished": self.step >= self.steps, "best": self.best,
                "best_step": self.best_step, "accuracies": self.accuracies, **self.facts,
                "scaler": self.precision.state(), "stage": span.index, "objective": span.stage.objective.state(),
                "sampler": span.stage.strata.state() if span.stage.strata else {}}

    def load(self, found: checkpoint.Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        split = description.read_split(found.state["net"])
        if split and not self.net.split:
            self.divide(split)
        trained, optimizer_state = checkpoint.trained_weights(found)
        if self.ema and trained is found.weights:
            raise checkpoint.CheckpointError(f"{found.path} holds the average of the weights, but not the weights "
                                             "themselves, so the run cannot resume")
        checkpoint.load_weights(self.net, trained, found.path)
        if self.ema:
            checkpoint.load_weights(self.ema.net, found.weights, found.path)
        try:
            optim.load_state(self.net, self.optimizer, optimizer_state)
        except KeyError as error:
            raise checkpoint.CheckpointError(f"{found.path} does not hold the state of this optimizer: "
                                             f"{error.args[0] or repr('')} is missing, or not known") from error
        except ValueError as error:
            raise checkpoint.CheckpointError(f"{found.path} does not hold the state of this optimizer: {error}"
                                             ) from error
        try:
            self.precision.load(found.state.get("scaler"))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise checkpoint.CheckpointError(f"{found.path} does not hold the state of the loss scaler") from error
        for name in ("step", "best", "best_step", "accuracies"):
            setattr(self, name, found.state[name])
        self.saved = found.path
        stage = self.span(self.step).stage
        try:
            stage.objective.load(found.state.get("objective", {}))
        except (KeyError, TypeError, UserError) as error:
            raise checkpoint.CheckpointError(f"{found.path} does not hold the state of this objective") from error
        stage.objective.load_tensors(checkpoint.remembered(found), found.path)
        if stage.strata:
            try:
                stage.strata.load(found.state.get("sampler", {}))
            except (KeyError, TypeError, ValueError) as error:
                raise checkpoint.CheckpointError(f"{found.path} does not hold the state of the sampler") from error


def start(net: paddle.nn.Layer, stages: list[recipes.Stage], images: ImageSet, settings: TrainSettings) -> Run:
    """The run where it begins or resumes, with the same weights on every rank.

    Raises `UserError` for a checkpoint in `settings.save_dir` that this run cannot resume exactly.
    """
    _, batches = sharing.image_share(settings)
    per_epoch = steps_per_epoch(images, settings.batch_size, batches)
    split = recipes.split_of(stages)

    def new_optimizer():
        return optim.make_optimizer(net, settings.optimizer, settings.momentum, settings.nesterov,
                                    settings.weight_decay, settings.no_decay_norm,
                                    optim.clipping(settings.clip_norm, settings.clip_value))

    if split and net.split not in (None, split):
        raise UserError(f"--pretrained holds a net that is split by the {net.split}, and the recipe splits it by the "
                        f"{split}; a net can be split once")
    facts = {"ranks": runtime.world_size(), "images": len(images.train), "names": images.train.names_digest(),
             "classes": list(images.classes), "settings": config.as_data(settings), "paddle": paddle.__version__}
    run = Run(net, new_optimizer, Precision(settings.precision), optim.Ema(net, settings.ema) if settings.ema else None,
              recipes.in_steps(stages, settings, per_epoch, batches), per_epoch, facts)
    recipes.note_long_warmups(run.spans)
    found = resume.find(net, facts, settings, split)
    if found:
        resume.require_length(found, run.steps, settings)
        run.load(found)
        runtime.log_main(f"resumed {found.path} at step {run.step}")
        note = resume.change_of_length(found, settings, lambda settings: recipes.span_at(
            recipes.in_steps(stages, settings, per_epoch, batches), run.step))
        if note:
            runtime.log_main(note)
    runtime.broadcast_from_rank0(net.state_dict().values())
    if runtime.rank() == 0:
        files.write_text(os.path.join(settings.save_dir, "config.yaml"), config.dump(settings))
    runtime.log_main(f"training {images.name}: {len(images.train)} images of {len(images.classes)} classes, "
                     f"{images.size} px; steps {run.step} to {run.steps}, {per_epoch} per epoch, "
                     f"on {runtime.world_size()} process(es); images by {transforms.libraries()}")
    return run
