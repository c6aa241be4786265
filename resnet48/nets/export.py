"""A subnet as an inference model, which needs no code of this project."""

import paddle

from ..system import files


def save_inference(net: paddle.nn.Layer, image_size: int, path: str) -> None:
    """Write `net` for `paddle.inference` as `path`.pdiparams and `path`.json (`path`.pdmodel before Paddle 3).

    Its input is named `images`: float32 [N, 3, image_size, image_size], normalised; its output the logits [N, classes].
    The net is left in evaluation mode. Raises `UserError` where the files cannot be written.
    """
    files.require_writable(path + ".pdiparams")
    net.eval()
    spec = paddle.static.InputSpec([None, 3, image_size, image_size], "float32", "images")
    paddle.jit.save(paddle.jit.to_static(net, input_spec=[spec], full_graph=True), path)
