"""A subnet in int8: quantised after training by PaddleSlim, with ranges measured on calibration images.

PaddleSlim quantises programs of the form that Paddle had before version 3, which Paddle 3 still writes if asked to as
it starts. So a process of its own does it: this module, run as a program.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import paddle

from ..space import description
from ..system import files
from ..system.config import HERE
from ..system.errors import UserError
from .supernet import ResNet48

MODEL = "model"
NAMED = ".int8"  # behind the path of an inference model: the one in float32 may lie beside it
BATCH = 16  # calibration images at a time
ENDINGS = (".pdiparams", ".pdmodel")


def quantize(net: ResNet48, image_size: int, calibration: np.ndarray, path: str) -> None:
    """Write `net`, whose weights and features of convolutions and classifier are quantised to 8 bits, for
    `paddle.inference` as `path`.pdmodel and `path`.pdiparams; input and output as for `export.save_inference`.

    Weights have a range per output channel, features one per layer: that of histograms over the images, cut at a
    quantile of .9999 (PaddleSlim's "hist"). calibration: float32 [N, 3, image_size, image_size], normalised.
    Raises `UserError` where Paddle and PaddleSlim as they are installed cannot do it, or the files cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        arch = net.arch
        what = {"kind": "standalone", "arch": arch.code, "stem": arch.stem, "stages": arch.stages,
                "activation": arch.activation, "num_classes": net.num_classes}
        files.write_json(os.path.join(folder, "net.json"), {"net": what, "image_size": image_size})
        np.savez(os.path.join(folder, "net.npz"), **{name: value.numpy() for name, value in net.state_dict().items()})
        np.save(os.path.join(folder, "calibration.npy"), calibration)
        environment = {**os.environ, "FLAGS_enable_pir_api": "0", "CUDA_VISIBLE_DEVICES": ""}
        ended = subprocess.run([sys.executable, "-m", "resnet48.nets.int8", folder], cwd=HERE, env=environment,
                               capture_output=True, text=True, errors="replace")
        written = [os.path.join(folder, "int8", MODEL + ending) for ending in ENDINGS]
        if ended.returncode or not all(map(os.path.isfile, written)):
            why = ([line for line in ended.stderr.splitlines() if line.strip()] or ["no message"])[-1]
            raise UserError(f"--int8 is not possible with Paddle {paddle.__version__} and PaddleSlim as they are "
                            f"installed ({why.strip()}); it is with Paddle 2.6.2 or 3.3.1 and PaddleSlim 2.6.0")
        Predictor(os.path.join(folder, "int8", MODEL))(paddle.to_tensor(calibration[:1]))
        for source, ending in zip(written, ENDINGS):  # the program last
            with files.atomic_write(path + ending) as temporary:
                shutil.copyfile(source, temporary)


class Predictor:
    """A function from normalised images to logits, by `paddle.inference` on the CPU, without oneDNN.

    path: as for `quantize`. (oneDNN's int8 convolutions gave other logits on a processor without VNNI: they saturate.)
    """

    def __init__(self, path: str):
        settings = paddle.inference.Config(path + ".pdmodel", path + ".pdiparams")
        settings.disable_gpu()
        settings.disable_glog_info()
        self.predictor = paddle.inference.create_predictor(settings)

    def eval(self) -> None:
        """It is never in training mode; nets are told."""

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        predictor = self.predictor
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(images.numpy())
        predictor.run()
        return paddle.to_tensor(predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu())


class _Images(paddle.io.Dataset):
    """Calibration images by the name of the program's input."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"images": self.images[index]}


def main(folder: str) -> None:
    """The program: read what `quantize` has left in a folder, write the quantised program to its folder int8."""
    from paddleslim.quant import quant_post_static  # here, for it is slow to import and not there for every Python

    with open(os.path.join(folder, "net.json")) as file:
        request = json.load(file)
    net = ResNet48(*description.read(request["net"]))
    with np.load(os.path.join(folder, "net.npz")) as weights:
        net.set_state_dict({name: paddle.to_tensor(weights[name]) for name in weights})
    net.eval()
    spec = paddle.static.InputSpec([None, 3, request["image_size"], request["image_size"]], "float32", "images")
    paddle.jit.save(paddle.jit.to_static(net, input_spec=[spec], full_graph=True), os.path.join(folder, MODEL))
    images = np.load(os.path.join(folder, "calibration.npy"), mmap_mode="r")
    paddle.enable_static()
    place = paddle.CPUPlace()
    quant_post_static(paddle.static.Executor(place), folder, os.path.join(folder, "int8"),
                      data_loader=paddle.io.DataLoader(_Images(images), batch_size=BATCH, places=place),
                      model_filename=f"{MODEL}.pdmodel", params_filename=f"{MODEL}.pdiparams",
                      save_model_filename=f"{MODEL}.pdmodel", save_params_filename=f"{MODEL}.pdiparams",
                      batch_nums=-(-len(images) // BATCH), algo="hist")


if __name__ == "__main__":
    main(sys.argv[1])
