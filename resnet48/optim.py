"""The optimizer, and the learning rate as a pure function of the step."""

import contextlib
import copy
import math

import numpy as np
import paddle

from .nodes import used_shapes


def base_rate(lr, batch_size, ranks):
    """The linear scaling rule (arXiv 1706.02677): `lr` is per 256 images of the global batch."""
    return lr * batch_size * ranks / 256


def steps_of(epochs, steps_per_epoch):
    """Epochs, possibly a fraction, as whole steps. The one place where human units become steps."""
    return round(epochs * steps_per_epoch)


def warmup_steps(config, steps_per_epoch):
    """`--warmup` in steps, unless `--warmup_steps` says it so."""
    return steps_of(config.warmup, steps_per_epoch) if config.warmup_steps is None else config.warmup_steps


def cosine(step, base, steps, warmup_steps):
    """Learning rate at `step` (from 0): linear from base / warmup_steps to base, then half a cosine to 0."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def staircase(step, base, fall_every, factor, warmup_steps):
    """Learning rate at `step` (from 0): linear to base, multiplied by `factor` after every `fall_every` steps."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    return base * factor ** (step // fall_every)


def schedule(config, steps_per_epoch, ranks):
    """The learning rate as a function of the step (from 0), by the settings of `config.TrainConfig`."""
    base, steps = base_rate(config.lr, config.batch_size, ranks), config.max_epoch * steps_per_epoch
    warmup = warmup_steps(config, steps_per_epoch)
    if config.schedule == "step":
        fall_every = max(1, steps_of(config.decay_epochs, steps_per_epoch))
        return lambda step: staircase(step, base, fall_every, config.decay_rate, warmup)
    return lambda step: cosine(step, base, steps, warmup)


def sgd(net, momentum, weight_decay, no_decay_norm=False, clip=None):
    """SGD with momentum; the rate is set at every step with `set_lr`.

    no_decay_norm: leave weights and biases of batch norms, and the classifier's bias, out of the weight decay.
    clip: of `clipping`.
    """
    parameters = trainable(net)
    if no_decay_norm:
        parameters = [{"params": [each for each in parameters if each.ndim > 1]},
                      {"params": [each for each in parameters if each.ndim == 1], "weight_decay": 0.0}]
    # Not with use_multi_tensor, one pass for all: it pairs gradients with the parameters that had one at the first step
    # by position, and fails where the next subnet uses other blocks. (On a CPU it takes as long.)
    return paddle.optimizer.Momentum(learning_rate=0.0, momentum=momentum, parameters=parameters,
                                     weight_decay=weight_decay, grad_clip=clip)


def clipping(norm=None, value=None):
    """Gradient clipping for `sgd`, or None: all gradients together to a norm, or each number to a size."""
    if norm:
        return paddle.nn.ClipGradByGlobalNorm(norm)
    return paddle.nn.ClipGradByValue(value) if value else None


def trainable(net):
    """The parameters that gradients move (running statistics are parameters too, in Paddle)."""
    return [parameter for parameter in net.parameters() if not parameter.stop_gradient]


@contextlib.contextmanager
def unused_held(net, optimizer, archs):
    """A block that steps the optimizer, after which what none of the archs uses is as before, its momentum too.

    A gradient covers a whole tensor, with zeros where no subnet of the step reached; weight decay and momentum would
    move those parts all the same. archs: (role, arch) pairs of the step.
    """
    used = [used_shapes(arch, net.num_classes) for _, arch in archs]
    tensors, before = _tensors_by_name(net, optimizer), {}
    for name, parameter in net.named_parameters():
        parts = [sizes[name] for sizes in used if name in sizes]
        whole = any(tuple(parameter.shape[:len(part)]) == part for part in parts)
        if parameter.stop_gradient or not parts or whole:  # an absent gradient moves nothing
            continue
        mask = np.zeros(parameter.shape, bool)
        for part in parts:
            mask[tuple(map(slice, part))] = True
        velocity = tensors.get(f"{name}/velocity_0", paddle.zeros_like(parameter))  # made at the first gradient
        before[name] = paddle.to_tensor(mask), parameter.clone(), velocity.clone()
    yield
    tensors = _tensors_by_name(net, optimizer)
    with paddle.no_grad():
        for name, parameter in net.named_parameters():
            if name in before:
                mask, *values = before[name]
                for tensor, value in zip((parameter, tensors[f"{name}/velocity_0"]), values):
                    tensor.set_value(paddle.where(mask, tensor, value))


class Average:
    """A moving average of a net's weights and running statistics, as a net: what to evaluate and to keep.

    Polyak averaging with a decay that grows to its final value over the first steps, (1 + n) / (10 + n) after n, so
    that the initial weights are forgotten.
    """

    def __init__(self, net, decay):
        self.net, self._decay = copy.deepcopy(net), decay
        for parameter in self.net.parameters():
            parameter.stop_gradient = True
        self._pairs = list(zip(self.net.state_dict().values(), net.state_dict().values()))

    @paddle.no_grad()
    def update(self, step):
        """After `step` (from 1) of the net."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, value in self._pairs:
            average.set_value(paddle.lerp(value, average, decay))


def state_by_name(net, optimizer):
    """Optimizer state under structured names, such as `blocks.0.conv.weight/velocity_0`, as numpy arrays.

    Paddle keys it by tensor names that count through the process, so they fit only a process that built the same
    nets in the same order.
    """
    return {name: value.numpy() for name, value in _tensors_by_name(net, optimizer).items()}


def load_state(net, optimizer, state):
    """The inverse of `state_by_name`, into a new optimizer. Raises `KeyError` for names that the net does not have.

    Parameters that had no gradient yet have no state; they get the zeros that they would have begun with.
    """
    # Paddle makes a parameter's state at its first gradient; until then it would neither load nor save it. So give
    # every one a gradient, and take a step at rate 0, which moves nothing.
    sum(parameter.sum() * 0 for parameter in trainable(net)).backward()
    optimizer.set_lr(0.0)
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)
    tensors = _tensors_by_name(net, optimizer)
    for name in state.keys() - tensors.keys():
        raise KeyError(name)
    for name, tensor in tensors.items():
        tensor.set_value(state[name] if name in state else paddle.zeros_like(tensor))


def _tensors_by_name(net, optimizer):
    names, tensors = {parameter.name: name for name, parameter in net.named_parameters()}, {}
    for key, value in optimizer.state_dict().items():
        if isinstance(value, paddle.Tensor):
            parameter, _ = key.rsplit("_velocity_", 1)  # what follows counts the optimizers there have been
            tensors[f"{names[parameter]}/velocity_0"] = value
    return tensors
