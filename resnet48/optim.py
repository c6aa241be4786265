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
    state, named = {}, {}
    for key, value in optimizer.state_dict().items():
        named[key] = value
    for name, parameter in net.named_parameters():
        for key, value in named.items():
            if key.startswith(parameter.name + "_") and hasattr(value, "numpy"):
                state[f"{name}/{key[len(parameter.name) + 1:]}"] = value.numpy()
    return state


def load_state(net, optimizer, state):
    """The inverse of `state_by_name`. Raises `KeyError` for names that the net does not have."""
    tensor_names = {name: parameter.name for name, parameter in net.named_parameters()}
    restored = {}
    for key, value in state.items():
        name, suffix = key.rsplit("/", 1)
        restored[f"{tensor_names[name]}_{suffix}"] = paddle.to_tensor(value)
    optimizer.set_state_dict(restored)
