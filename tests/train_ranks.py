"""Five steps of training with batch norm in evaluation mode, on as many ranks as it is launched on.

python3 train_ranks.py GLOBAL_BATCH OUTPUT [gpu]: rank 0 writes the weights to OUTPUT.standalone, OUTPUT.sandwich and
OUTPUT.ranking. The ranks share the images of a step, with the last the subnets.
Batch norm in training mode uses the statistics of each rank's own batch, so only in evaluation mode is the result the
same on one rank and on two. In float64, where that can be told from rounding.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from resnet48.images import datasets, loader  # noqa: E402
from resnet48.nets.supernet import ResNet48, Supernet  # noqa: E402
from resnet48.space.arch import FULL  # noqa: E402
from resnet48.system import runtime  # noqa: E402
from resnet48.training import objectives, optim, samplers, sharing  # noqa: E402

import paddle  # noqa: E402

STEPS = 5


def main(kind, global_batch, output):
    rank, world_size = runtime.rank(), runtime.world_size()
    runtime.seed_everything(rank)  # different on every rank, so that the weights of rank 0 have to be shared
    space = FULL.narrowed((4, 8, 16, 32), 1)
    images = datasets.load(workers=0)
    net = ResNet48(space.largest(), 10) if kind == "standalone" else Supernet(space, 10)
    objective = {"standalone": objectives.Standalone, "sandwich": objectives.InPlaceDistillation,
                 "ranking": objectives.Ranking}[kind]()
    objective.prepare(space, None)
    # Of uniform subnets: some of the weights are used on one rank only, some on none.
    sampler, shared = (samplers.uniform, world_size > 1) if kind == "ranking" else (samplers.sandwich, False)
    for name, parameter in net.named_parameters():
        if name.endswith("bn2.weight"):  # without batch statistics the features of 23 blocks would grow out of bounds
            parameter.set_value(paddle.full_like(parameter, 0.2))
    runtime.broadcast_from_rank0(net.state_dict().values())
    net.eval()
    optimizer = optim.make_optimizer(net, weight_decay=1e-4)
    optimizer.set_lr(0.01)
    part, parts = (0, 1) if shared else (rank, world_size)
    taken = loader.batches(images, 0, STEPS, global_batch // parts, 0, part, parts, print)
    combine = runtime.sum_gradients if shared else runtime.average_gradients
    for step, (pixels, labels) in enumerate(taken):
        moment = samplers.Moment(step, STEPS, 10.0)
        archs, pixels = sampler(space, 0, moment, 3), datasets.normalize(pixels).astype("float64")
        run = sharing.subnets_shared(net, archs, pixels, 10) if shared else net
        objective.step(run, archs, pixels, labels, objectives.Gradients(net), moment)
        combine(optim.trainable(net), False)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    if rank == 0:
        paddle.save(net.state_dict(), f"{output}.{kind}")


if __name__ == "__main__":
    runtime.start(sys.argv[3] if len(sys.argv) > 3 else "cpu")
    paddle.set_default_dtype("float64")
    for what in ("standalone", "sandwich", "ranking"):
        main(what, int(sys.argv[1]), sys.argv[2])
