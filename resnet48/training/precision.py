"""Mixed precision and loss scaling."""

from collections.abc import Callable

import paddle

DTYPES = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}


class Precision:
    """float32, or on a GPU convolutions and matrix products in bf16 or fp16 and the rest in float32.

    The rest is as Paddle's O1 lists say; logits come out as float32, so losses and distillation are computed in it.
    fp16 has few exponents: losses are scaled up before they are differentiated, and a step whose gradients overflowed
    is left out (arXiv 1710.03740, section 3.2). name: a key of DTYPES; on a CPU all are float32.
    """

    def __init__(self, name: str = "fp32"):
        on_gpu = paddle.device.get_device().startswith("gpu")  # Paddle has it for accelerators only
        self._dtype = DTYPES[name] if on_gpu else None
        self._scaler = paddle.amp.GradScaler() if self._dtype == "float16" else None

    def net(self, net: Callable) -> Callable:
        """`net` as a function that computes in this precision and returns float32."""
        if self._dtype is None:
            return net

        def forward(*arguments):
            with paddle.amp.auto_cast(level="O1", dtype=self._dtype):
                logits = net(*arguments)
            return logits.astype("float32")

        return forward

    def scale(self, loss: paddle.Tensor) -> paddle.Tensor:
        """A loss as it is to be differentiated."""
        return self._scaler.scale(loss) if self._scaler else loss

    def step(self, optimizer: paddle.optimizer.Optimizer) -> None:
        """One step of the optimizer with the gradients, without their scale."""
        if self._scaler is None:
            return optimizer.step()
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict:
        """What a checkpoint needs to resume, as plain data."""
        state = self._scaler.state_dict() if self._scaler else {}
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in state.items()}

    def load(self, state: dict | None) -> None:
        """The inverse of `state`."""
        if self._scaler and state:
            scale = paddle.to_tensor(state["scale"], "float32").numpy()
            self._scaler.load_state_dict({**state, "scale": scale})
