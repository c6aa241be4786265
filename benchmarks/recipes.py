"""What a step of each recipe costs, relative to the sandwich recipe's, in one run.

    python3 benchmarks/recipes.py

Narrow nets on random images, on one thread of the CPU: all recipes in turn, several times, the shortest time of each,
which is CPU time, so that other programs disturb it less.
"""

import os
import time

import common

os.environ.setdefault("OMP_NUM_THREADS", "1")
CHANNELS, BATCH, SIZE, CLASSES, TIMES = (6, 12, 24, 48), 128, 32, 10, 8


def steps():
    """(name, function that takes one training step) of every stage of every recipe for supernets, teachers included."""
    import resnet48  # noqa: F401  the settings of the machine, before Paddle
    import paddle
    from resnet48.nets.supernet import ResNet48, Supernet
    from resnet48.space.arch import FULL
    from resnet48.system import config, options
    from resnet48.training import recipes
    space = FULL.narrowed(CHANNELS, 1)
    images, labels = paddle.randn([BATCH, 3, SIZE, SIZE]), paddle.randint(0, CLASSES, [BATCH])
    teacher = ResNet48(space.largest(), CLASSES)
    teacher.eval()
    for name in sorted(name for name in os.listdir(config.RECIPES) if name.endswith(".yaml")):
        path = os.path.join(config.RECIPES, name)
        with open(path) as file:
            if not any(line.startswith(("sampler:", "objective:", "stages:", "activation:")) for line in file):
                continue
        _, settings = config.command_line(__doc__, {"run": (steps, options.SupernetSettings, path)}, ["run"])
        own_space = space.narrowed(CHANNELS, 1, settings.activation)
        for number, stage in enumerate(recipes.supernet(settings, own_space, teacher), 1):
            label = name.removesuffix(".yaml") + (f", stage {number}" if settings.stages else "")
            yield label, one_step(Supernet(own_space, CLASSES, stage.split), stage, images, labels)


def one_step(net, stage, images, labels):
    """A function that takes one training step of a stage."""
    import paddle
    from resnet48.training import objectives, optim, samplers
    optimizer = optim.make_optimizer(net)
    optimizer.set_lr(0.01)
    moment = samplers.Moment(50, 100, 100.0)  # spaces that open are open
    images = paddle.repeat_interleave(images, stage.objective.views, axis=0)

    def step():
        gradients, again = objectives.Gradients(net), objectives.Gradients(net)
        archs = stage.sampler(0, moment)
        stage.objective.step(net, archs, images, labels, gradients, moment)
        float(sum(gradients.means().values()))
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        if stage.objective.after(net, again, moment):
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)

    few = 8 * stage.objective.views
    for before in range(20):  # what an objective remembers of earlier steps, for which few images will do
        earlier = moment._replace(step=before)
        stage.objective.step(net, stage.sampler(0, earlier), images[:few], labels[:8], objectives.Gradients(net),
                             earlier)
    optimizer.clear_grad(set_to_zero=False)
    return step


def main():
    every = dict(steps())
    best = dict.fromkeys(every, float("inf"))
    for _ in range(1 + TIMES):  # the first is to warm up, and never the shortest
        for name, step in every.items():
            started = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - started)
    print(f"{common.machine()}; base widths {CHANNELS}, {SIZE} px, batch {BATCH}, 4 subnets a step")
    for name, seconds in sorted(best.items(), key=lambda item: item[1]):
        print(f"{name:19} {1000 * seconds:6.0f} ms  {seconds / best['sandwich']:5.2f}")


if __name__ == "__main__":
    main()
