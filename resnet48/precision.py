"""In what precision a step computes, and how its losses become gradients."""

import paddle


class Precision:
    """float32, or with `amp="O1"` on a GPU: convolutions and matrix products in `dtype` (bf16 or fp16), the rest in
    float32 as Paddle's O1 lists say; logits come out as float32, so losses and distillation are computed in it.

    fp16 has few exponents: losses are scaled up before they are differentiated, and a step whose gradients overflowed
    is left out (arXiv 1710.03740, section 3.2). parts: a batch is run in so many, whose losses are averaged.
    """

    def __init__(self, amp="none", dtype="bf16", parts=1):
        on = amp == "O1" and paddle.device.get_device().startswith("gpu")  # Paddle has it for accelerators only
        self._dtype, self.parts = {"bf16": "bfloat16", "fp16": "float16"}[dtype] if on else None, parts
        self._scaler = paddle.amp.GradScaler() if self._dtype == "float16" else None

    def net(self, net):
        """`net` as a function that computes in this precision and returns float32."""
        if self._dtype is None:
            return net

        def run(*arguments):
            with paddle.amp.auto_cast(level="O1", dtype=self._dtype):
                logits = net(*arguments)
            return logits.astype("float32")

        return run

    def backward(self, loss):
        """Add the gradients of one part's loss to those that are there."""
        loss = loss if self.parts == 1 else loss / self.parts
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def step(self, optimizer):
        """One step of the optimizer with the gradients, without their scale."""
        if self._scaler is None:
            return optimizer.step()
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self):
        """What a checkpoint needs to go on, as plain data."""
        state = self._scaler.state_dict() if self._scaler else {}
        return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in state.items()}

    def load(self, state):
        """The inverse of `state`."""
        if self._scaler and state:
            scale = paddle.to_tensor(state["scale"], "float32").numpy()
            self._scaler.load_state_dict({**state, "scale": scale})
