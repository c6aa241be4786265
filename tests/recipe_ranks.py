"""Every recipe at small size on the ranks that this is launched on: once through, and resumed inside of each stage.

python3 recipe_ranks.py FOLDER: rank 0 writes a line to FOLDER/done.txt for every recipe after checking that all ranks
end with the same weights, and that a resumed run ends with those of the uninterrupted one, to the bit.
"""

import dataclasses
import os
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

from small_runs import CLASSES, PER_EPOCH, SPACE, images, uniform_teacher  # noqa: E402
from test_recipes import SUPERNETS, small, stopping  # noqa: E402

from resnet48.nets.supernet import Supernet  # noqa: E402
from resnet48.system import runtime  # noqa: E402
from resnet48.system.errors import Stopped  # noqa: E402
from resnet48.training import loop, optim, recipes  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402


def trained(settings, stop_after=None):
    """(weights, running statistics, state of the samplers) after a run; None where it was stopped after a step."""
    stages = recipes.supernet(settings, SPACE, uniform_teacher)
    if stop_after:
        stages = [stopping(each, stages, settings, stop_after) for each in stages]
    adapts = any(stage.strata for stage in stages)
    paddle.seed(runtime.rank())  # different on every rank, so that the weights of rank 0 have to be shared
    net = Supernet(SPACE, len(CLASSES))
    try:
        # Six steps per epoch; 8 of 56 are kept out.
        loop.fit(net, stages, images(56 if adapts else 24 if settings.share == "subnets" else 48), settings)
    except Stopped:
        runtime.all_reduce_sum([0.0])  # which ranks that are started again need not do: until rank 0 has written
        return None
    weights = {id(each) for each in optim.trainable(net)}
    values = [[value.numpy() for value in net.state_dict().values() if (id(value) in weights) == part]
              for part in (True, False)]
    return *values, [stage.strata and stage.strata.state() for stage in stages]


def check(name, folder, share="images"):
    folder = os.path.join(folder, share)
    whole = dataclasses.replace(small(name, os.path.join(folder, name, "whole")), share=share)
    adapts = any(stage.strata for stage in recipes.supernet(whole, SPACE, uniform_teacher))
    whole = dataclasses.replace(whole, max_epoch=3 if adapts else 1, eval_freq=0)  # what is measured twice changes
    spans = recipes.in_steps(recipes.supernet(whole, SPACE, uniform_teacher), whole, PER_EPOCH, 2)
    through, parts = trained(whole), dataclasses.replace(whole, save_dir=os.path.join(folder, name, "parts"))
    for span in spans:  # ranks stop one step after they were asked to
        assert trained(parts, (span.first + span.last) // 2) is None, name
    resumed = trained(parts)
    for one, other in zip(through[0], resumed[0], strict=True):
        assert np.array_equal(one, other), name
    if runtime.rank() == 0:  # the running statistics that are kept are its own
        assert all(map(np.array_equal, through[1], resumed[1])), name
    assert through[2] == resumed[2], name
    for value in (*through[0], *(np.array(state["weights"] + state["losses"]) for state in through[2] if state)):
        of_rank0 = paddle.to_tensor(value)
        runtime.broadcast_from_rank0([of_rank0])
        assert np.array_equal(of_rank0.numpy(), value), name
    assert not adapts or len(set(through[2][0]["weights"])) > 1


if __name__ == "__main__":
    runtime.start("cpu")
    assert runtime.world_size() == 2
    for recipe, what in [*((each, "images") for each in SUPERNETS), ("ranking.yaml", "subnets")]:
        check(recipe, sys.argv[1], what)
        if runtime.rank() == 0:
            with open(os.path.join(sys.argv[1], "done.txt"), "a") as done:
                done.write(recipe + " with shared subnets" * (what == "subnets") + "\n")
