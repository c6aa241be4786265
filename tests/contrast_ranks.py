"""Three steps of momentum contrast on as many ranks as it is launched on.

python3 contrast_ranks.py OUTPUT: each rank writes what its objective remembers to OUTPUT<rank>.npz.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from resnet48.nets.supernet import Supernet  # noqa: E402
from resnet48.space.arch import FULL  # noqa: E402
from resnet48.system import runtime  # noqa: E402
from resnet48.training import objectives, optim, samplers  # noqa: E402
from resnet48.training.objectives.contrast import what_it_reads  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.nn.functional as F  # noqa: E402


def main(output):
    rank, space = runtime.rank(), FULL.narrowed((2, 3, 4, 5), 1)
    runtime.seed_everything(0)
    net, objective = Supernet(space, 5), objectives.MomentumContrast()
    objective.prepare(space, None)
    optimizer = optim.make_optimizer(net)
    optimizer.set_lr(0.1)
    rng = np.random.default_rng(rank)
    for step in range(3):
        images = paddle.to_tensor(rng.standard_normal((16, 3, 32, 32)).astype("float32"))
        moment = samplers.Moment(step, 3, 0.0)
        objective.step(net, samplers.largest(space, 0, moment, 1), images, None, objectives.Gradients(net), moment)
        with paddle.no_grad():
            keys = F.normalize(objective._encoder(images[1::2], linear=what_it_reads))
        runtime.average_gradients(optim.trainable(net), False)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    of_all = runtime.gathered(keys).numpy()
    np.savez(f"{output}{rank}.npz", own=keys.numpy(), **{"last keys of rank 1": of_all[8:]}, **objective.tensors())


if __name__ == "__main__":
    runtime.start("cpu")
    main(sys.argv[1])
