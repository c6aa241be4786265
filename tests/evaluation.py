"""A small evaluation of digits by a narrow net, for tests of the evaluator's command line and of its processes."""

import json
import os
import threading

import numpy as np
import paddle
from tqdm import tqdm

from resnet48.evaluation import evaluator
from resnet48.nets.supernet import Supernet
from resnet48.space.arch import FULL, PUBLISHED
from resnet48.training import checkpoint

IMAGES = 60  # of the validation images, in chunks of 16


def write_supernet(folder, seed=0, split=None):
    """Weights of a narrow supernet that has learnt nothing; the path of their file."""
    paddle.seed(seed)
    net = Supernet(FULL.narrowed((4, 8, 16, 32), 1), 10, split)
    path = os.path.join(folder, "final.pdparams")
    paddle.save(net.state_dict(), path)
    with open(os.path.join(folder, "final.json"), "w") as file:
        json.dump({"net": checkpoint.describe(net)}, file)
    return path


def write_archs(folder, count):
    """A list of random archs under keys that are in no order; its path."""
    rng, path = np.random.default_rng(5), os.path.join(folder, "list.json")
    with open(path, "w") as file:
        json.dump({f"arch{key}": {"acc": 0.0, "arch": "1" + PUBLISHED.sample(rng).code}
                   for key in rng.permutation(count).tolist()}, file)
    return path


def words(weights, archs, output, *more):
    """The command line that evaluates them."""
    return ["run", "--checkpoint", weights, "--archs", archs, "--output", str(output), "--val_images", str(IMAGES),
            "--chunk", "16", "--calib_images", "20", "--device", "cpu", "--num_workers", "1", *map(str, more)]


def run(archs_per_shard, command_line):
    """In a process of its own: evaluate in several shards."""
    import eval_supernet  # here: imported already where this is called, and slow to import where it is not

    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and one that is killed would be reported for it
    evaluator.ARCHS_PER_SHARD = archs_per_shard
    eval_supernet.main(command_line)
