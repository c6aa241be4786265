"""The optimizer, and the learning rate as a pure function of the step."""

import math

import paddle


def base_rate(lr, batch_size, ranks):
    """The linear scaling rule (arXiv 1706.02677): `lr` is per 256 images of the global batch."""
    return lr * batch_size * ranks / 256


def steps_of(epochs, steps_per_epoch):
    """Epochs, possibly a fraction, as whole steps. The one place where human units become steps."""
    return round(epochs * steps_per_epoch)


def cosine(step, base, steps, warmup_steps):
    """Learning rate at `step` (from 0): linear from base / warmup_steps to base, then half a cosine to 0."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def sgd(net, momentum, weight_decay):
    """SGD with momentum; the rate is set at every step with `set_lr`."""
    return paddle.optimizer.Momentum(learning_rate=0.0, momentum=momentum, parameters=trainable(net),
                                     weight_decay=weight_decay)


def trainable(net):
    """The parameters that gradients move (running statistics are parameters too, in Paddle)."""
    return [parameter for parameter in net.parameters() if not parameter.stop_gradient]


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
    state, tensors = optimizer.state_dict(), {}
    for name, parameter in net.named_parameters():
        for key, value in state.items():
            if key.startswith(parameter.name + "_") and isinstance(value, paddle.Tensor):
                what = key[len(parameter.name) + 1:].rsplit("_", 1)[0]  # without how many optimizers there have been
                tensors[f"{name}/{what}_0"] = value
    return tensors
