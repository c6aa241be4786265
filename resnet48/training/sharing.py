"""What the processes of a launch share out of a step: its images, or its subnets."""

import collections
from collections.abc import Callable, Sequence

import paddle

from ..space.arch import ArchConfig
from ..system import runtime
from ..system.errors import UserError
from ..system.options import TrainSettings
from .samplers import Pairs

#: What a convolution and its batch norm cost beside their sums, in multiply-adds that take as long on a CPU: in narrow
#: nets half of a step is the number of operations.
LAYER_MACS = 5e6


def image_share(settings: TrainSettings) -> tuple[int, int]:
    """(part, parts): which part of the images of a step is this process's. With shared subnets all have all images."""
    return (runtime.rank(), runtime.world_size()) if settings.share == "images" else (0, 1)


def combine_gradients(settings: TrainSettings) -> Callable:
    """How the gradients of the processes become those of the step: an average over images, or a sum over subnets."""
    return runtime.average_gradients if settings.share == "images" else runtime.sum_gradients


def owners(costs: Sequence[float], processes: int) -> list[int]:
    """Which process takes each of some jobs: the longest first, each by the process with the least to do until then.

    Longest processing time first (Graham, SIAM Journal on Applied Mathematics 17, 1969), at most 4/3 of the best.
    """
    loads, taken_by = [0.0] * processes, [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
        taken_by[job] = loads.index(min(loads))
        loads[taken_by[job]] += costs[job]
    return taken_by


def cost(arch: ArchConfig, images: int, image_size: int) -> float:
    """What a step costs for a subnet, in multiply-adds: those of its values and both gradients, and `LAYER_MACS`."""
    return 3 * images * arch.macs(image_size) + LAYER_MACS * len(arch.convolutions())


def subnets_shared(net: Callable, archs: Pairs, images: paddle.Tensor, classes: int) -> Callable:
    """`net` for one step whose subnets are shared out: a function (images, arch) that gives each subnet's logits once.

    net(images, arch): logits [N, classes]; images: float32 [N, 3, H, W], the same in every process. This process runs
    its own subnets at once. Of the others it learns the logits, without a graph: their losses give no gradients here.
    The function raises `UserError` for anything but the subnets of the step.
    """
    every = [arch for _, arch in archs]
    count, _, size = images.shape[:3]
    taken_by = owners([cost(arch, count, size) for arch in every], runtime.world_size())
    own = {place: net(images, arch) for place, arch in enumerate(every) if taken_by[place] == runtime.rank()}
    nothing = paddle.zeros([count, classes])
    known = runtime.summed(paddle.stack([own[place].detach() if place in own else nothing
                                         for place in range(len(every))]))
    waiting = collections.defaultdict(collections.deque)
    for place, arch in enumerate(every):
        waiting[arch].append(own.get(place, known[place]))

    def logits(images: paddle.Tensor, arch: ArchConfig | None = None, *others) -> paddle.Tensor:
        if others or not waiting[arch]:
            raise UserError("--share subnets: this objective runs more than each subnet of a step once, so its subnets "
                            "cannot be shared out; --share images does without")
        return waiting[arch].popleft()

    return logits
