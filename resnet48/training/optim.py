"""The optimizer, and the learning rate as a pure function of the step."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import paddle

from ..space.nodes import used_shapes
from ..space.split import Split
from ..system.options import OptimizerSettings

Clip = paddle.nn.ClipGradByGlobalNorm | paddle.nn.ClipGradByValue


def scaled_lr(lr: float, batch_size: int, world_size: int) -> float:
    """The linear scaling rule (arXiv 1706.02677): `lr` is per 256 images of the global batch."""
    return lr * batch_size * world_size / 256


def epochs_to_steps(epochs: float, steps_per_epoch: int) -> int:
    """Epochs, possibly a fraction, as whole steps. The one place where human units become steps."""
    return round(epochs * steps_per_epoch)


def cosine(step: int, base: float, steps: int, warmup_steps: int) -> float:
    """Learning rate at `step` (from 0): linear from base / warmup_steps to base, then half a cosine to 0."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def linear(step: int, base: float, steps: int, warmup_steps: int) -> float:
    """Learning rate at `step` (from 0): base (1 - step / steps), which rises linearly to that line at first."""
    return base * (1 - step / steps) * min(1.0, (step + 1) / max(1, warmup_steps))


def step_decay(step: int, base: float, decay_steps: int, factor: float, warmup_steps: int) -> float:
    """Learning rate at `step` (from 0): linear to base, multiplied by `factor` after every `decay_steps` steps."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    return base * factor ** (step // decay_steps)


def schedule(settings: OptimizerSettings, base: float, steps: int, warmup_steps: int,
             steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of a stage of `steps` steps as a function of its step (from 0). base: the highest."""
    if settings.schedule == "step":
        decay_steps = max(1, epochs_to_steps(settings.decay_epochs, steps_per_epoch))
        return lambda step: step_decay(step, base, decay_steps, settings.decay_rate, warmup_steps)
    fall = linear if settings.schedule == "linear" else cosine
    return lambda step: fall(step, base, steps, warmup_steps)


def make_optimizer(net: paddle.nn.Layer, name: str = "sgd", momentum: float = 0.9, nesterov: bool = False,
                   weight_decay: float = 0.0, no_decay_norm: bool = False,
                   clip: Clip | None = None) -> paddle.optimizer.Optimizer:
    """An optimizer whose learning rate is set at every step with `set_lr`.

    name: sgd, with `momentum` (arXiv 1706.02677's form; `nesterov`: arXiv 1212.0901, eq. 7) and the decay in the
    gradient; or adamw (arXiv 1711.05101, betas .9 and .999), with the decay apart from it.
    no_decay_norm: leave weights and biases of batch norms, slopes of PReLUs and the classifier's bias out of the decay.
    clip: of `clipping`.
    """
    parameters = trainable(net)
    if no_decay_norm:
        parameters = [{"params": [each for each in parameters if each.ndim > 1]},
                      {"params": [each for each in parameters if each.ndim == 1], "weight_decay": 0.0}]
    if name == "adamw":
        return paddle.optimizer.AdamW(learning_rate=0.0, parameters=parameters, weight_decay=weight_decay,
                                      grad_clip=clip)
    # Not with use_multi_tensor, one pass for all: it pairs gradients with the parameters that had one at the first step
    # by position, and fails where the next subnet uses other blocks. (On a CPU it takes as long.)
    return paddle.optimizer.Momentum(learning_rate=0.0, momentum=momentum, parameters=parameters, use_nesterov=nesterov,
                                     weight_decay=weight_decay, grad_clip=clip)


def clipping(norm: float | None = None, value: float | None = None) -> Clip | None:
    """Gradient clipping for `make_optimizer`: all gradients together to a norm, or each number to a size."""
    if norm:
        return paddle.nn.ClipGradByGlobalNorm(norm)
    return paddle.nn.ClipGradByValue(value) if value else None


def trainable(net: paddle.nn.Layer) -> list[paddle.Tensor]:
    """The parameters that gradients move (running statistics are parameters too, in Paddle)."""
    return [parameter for parameter in net.parameters() if not parameter.stop_gradient]


@contextlib.contextmanager
def freeze_unused(net: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer, archs: list) -> Iterator[None]:
    """A block that steps the optimizer, after which what none of the archs uses is as before, its momentum too.

    A gradient covers a whole tensor, with zeros where no subnet of the step reached; weight decay and momentum would
    move those parts all the same. archs: (role, arch) pairs of the step.
    """
    used, before = [used_shapes(arch, net.num_classes, net.split) for _, arch in archs], {}
    state = _state_tensors(net, optimizer)
    for name, parameter in net.named_parameters():
        parts = [sizes[name] for sizes in used if name in sizes]
        whole = any(tuple(parameter.shape[:len(part)]) == part for part in parts)
        if parameter.stop_gradient or not parts or whole:  # an absent gradient moves nothing
            continue
        mask = np.zeros(parameter.shape, bool)
        for part in parts:
            mask[tuple(map(slice, part))] = True
        before[name] = paddle.to_tensor(mask), parameter.clone(), {
            key: tensor.clone() for key, tensor in state.get(name, {}).items()}
    yield
    state = _state_tensors(net, optimizer)
    with paddle.no_grad():
        for name, parameter in net.named_parameters():
            if name in before:
                mask, value, values = before[name]
                parameter.set_value(paddle.where(mask, parameter, value))
                for key, tensor in state[name].items():
                    if tensor.shape == parameter.shape:  # not the counters that AdamW has beside
                        was = values[key] if key in values else paddle.zeros_like(tensor)  # made at the first gradient
                        tensor.set_value(paddle.where(mask, tensor, was))


def growing_decay(decay: float, steps: int) -> float:
    """Of a moving average after so many steps: grows to its final value, so that initial values are forgotten."""
    return min(decay, (1 + steps) / (10 + steps))


class Ema:
    """An exponential moving average of a net's weights and running statistics, as a net: what to evaluate and to keep.

    Polyak averaging with a `growing_decay`.
    """

    def __init__(self, net: paddle.nn.Layer, decay: float):
        self.net, self._of, self._decay = copy.deepcopy(net), net, decay
        for parameter in self.net.parameters():
            parameter.stop_gradient = True
        self._pair()

    def divide(self, split: Split) -> None:
        """Follow a supernet that has been split: every copy begins with the average of what it is a copy of."""
        self.net.divide(split)
        self._pair()

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """After `step` (from 1) of the net."""
        decay = growing_decay(self._decay, step)
        for average, value in self._pairs:
            average.set_value(paddle.lerp(value, average, decay))

    def _pair(self):
        self._pairs = list(zip(self.net.state_dict().values(), self._of.state_dict().values(), strict=True))


def state_by_name(net: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict[str, np.ndarray]:
    """Optimizer state under structured names, such as `blocks.0.conv.weight/velocity_0`.

    Paddle keys it by tensor names that count through the process, so they fit only a process that built the same
    nets in the same order.
    """
    return {f"{name}/{key}": tensor.numpy() for name, tensors in _state_tensors(net, optimizer).items()
            for key, tensor in tensors.items()}


def load_state(net: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer, state: dict[str, np.ndarray]) -> None:
    """The inverse of `state_by_name`, into a new optimizer.

    Parameters that had no gradient yet have no state. Raises `KeyError` for what the net or this kind of optimizer does
    not have, or has and the state lacks, and `ValueError` for a value of another shape or type, or that is not finite.
    """
    given = {}
    for key, value in state.items():
        name, _, kind = key.rpartition("/")
        given.setdefault(name, {})[kind] = value
    parameters = dict(net.named_parameters())
    for name in sorted(given.keys() - parameters.keys()):
        raise KeyError(name)
    if given:
        # Paddle makes a parameter's state at its first gradient; until then it would neither load nor save it. So give
        # a gradient to those that have one, and take a step at rate 0, which moves nothing.
        sum(parameters[name].sum() * 0 for name in given).backward()
        optimizer.set_lr(0.0)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    for name, tensors in _state_tensors(net, optimizer).items():
        for kind in sorted(tensors.keys() ^ given[name].keys()):
            raise KeyError(f"{name}/{kind}")
        for kind, tensor in tensors.items():
            value = given[name][kind]
            if not isinstance(value, np.ndarray) or list(value.shape) != list(tensor.shape) or value.dtype.kind != "f":
                raise ValueError(f"{name}/{kind} is not a tensor of floating-point numbers {list(tensor.shape)}")
            with np.errstate(over="ignore"):
                value = value.astype(str(tensor.dtype).removeprefix("paddle."))
            if not np.isfinite(value).all():
                raise ValueError(f"{name}/{kind} is not finite")
            tensor.set_value(value)


def _state_tensors(net, optimizer):
    """The optimizer's tensors by parameter name and kind, such as `velocity_0`: {name: {kind: tensor}}."""
    names, found = {parameter.name: name for name, parameter in net.named_parameters()}, {}
    for key, value in optimizer.state_dict().items():
        if isinstance(value, paddle.Tensor):
            owner = max((name for name in names if key.startswith(name + "_")), key=len)
            kind, _ = key[len(owner) + 1:].rsplit("_", 1)  # what follows counts the optimizers there have been
            found.setdefault(names[owner], {})[f"{kind}_0"] = value
    return found
