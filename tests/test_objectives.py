import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from small_runs import fixed_teacher, losses_of_step

from resnet48.evaluation.accuracy import calibrate_alone
from resnet48.nets.supernet import ResNet48, Supernet
from resnet48.training import objectives, optim


@pytest.fixture
def supernet(narrow):
    paddle.seed(0)
    return Supernet(narrow, 5)


def batch(count=6, size=32):
    rng = np.random.default_rng(0)
    return (paddle.to_tensor(rng.standard_normal((count, 3, size, size)).astype("float32")),
            paddle.to_tensor(rng.integers(0, 5, count)))


def batch_norm(x, layer):
    """With statistics of the batch and without moving the running ones, so that one graph can hold several subnets."""
    def shaped(vector):
        return vector[:x.shape[1]].reshape([1, -1, 1, 1])

    centred = x - x.mean(axis=[0, 2, 3], keepdim=True)
    deviation = (centred.square().mean(axis=[0, 2, 3], keepdim=True) + 1e-5).sqrt()
    return centred / deviation * shaped(layer.weight) + shaped(layer.bias)


def cross_entropy(logits, labels):
    """Mean over the batch of minus the log of the right class's probability."""
    shifted = logits - logits.max(axis=1, keepdim=True)
    return (shifted.exp().sum(axis=1).log() - paddle.take_along_axis(shifted, labels.unsqueeze(1), 1)[:, 0]).mean()


def distillation(logits, teacher):
    """The same against a distribution [N, classes] given as numbers, through which no gradient can flow."""
    return -(paddle.to_tensor(teacher) * F.softmax(logits).log()).sum(axis=1).mean()


def probabilities(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def left_gradients(net):
    return [parameter.grad for parameter in optim.trainable(net)]


def assert_same_gradients(left, expected):
    for got, wanted in zip(left, expected, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:  # rounding grows on the way back through two dozen blocks
            assert float((got - wanted).norm()) < 1e-2 * float(wanted.norm()) + 1e-6


def sandwich_archs(narrow, rng):
    return [("largest", narrow.largest()), ("smallest", narrow.smallest()),
            ("random", narrow.sample(rng)), ("random", narrow.sample(rng))]


def test_the_gradients_of_a_sandwich_step_are_those_of_the_summed_loss(supernet, narrow, rng):
    (images, labels), archs = batch(), sandwich_archs(narrow, rng)
    logits = [supernet(images, arch, norm=batch_norm) for _, arch in archs]
    teacher = probabilities(logits[0].numpy())
    total = cross_entropy(logits[0], labels) + sum(distillation(each, teacher) for each in logits[1:])
    expected = paddle.grad(total, optim.trainable(supernet), allow_unused=True)
    losses_of_step(objectives.InPlaceDistillation(), supernet, archs, images, labels)
    assert_same_gradients(left_gradients(supernet), expected)


def test_the_gradients_of_a_fixed_teacher_step_are_those_of_the_summed_loss(supernet, narrow, rng):
    (images, labels), teacher = batch(), ResNet48(narrow.largest(), 5)
    archs = [("random", narrow.sample(rng)), ("random", narrow.sample(rng))]
    teacher.eval()
    calibrate_alone(teacher, np.random.default_rng(1).integers(0, 256, (6, 3, 32, 32)).astype("uint8"))
    target = probabilities(teacher(images).numpy())
    logits = [supernet(images, arch, norm=batch_norm) for _, arch in archs]
    total = sum(cross_entropy(each, labels) + distillation(each, target) for each in logits)
    expected = paddle.grad(total, optim.trainable(supernet), allow_unused=True)
    losses_of_step(fixed_teacher(teacher), supernet, archs, images, labels)
    assert_same_gradients(left_gradients(supernet), expected)
    assert all(gradient is None for gradient in left_gradients(teacher))


def test_the_gradients_of_a_cross_entropy_step_are_those_of_the_summed_loss_with_every_arch_alike(supernet, narrow,
                                                                                                  rng):
    (images, labels), archs = batch(), sandwich_archs(narrow, rng)
    total = sum(cross_entropy(supernet(images, arch, norm=batch_norm), labels) for _, arch in archs)
    expected = paddle.grad(total, optim.trainable(supernet), allow_unused=True)
    losses = losses_of_step(objectives.CrossEntropy(), supernet, archs, images, labels)
    assert list(losses) == ["largest", "smallest", "random"]
    assert_same_gradients(left_gradients(supernet), expected)


def test_the_gradients_of_a_standalone_step_are_those_of_cross_entropy(narrow):
    (images, labels), net = batch(), ResNet48(narrow.smallest(), 5)
    loss = cross_entropy(net(images, norm=batch_norm), labels)
    expected = paddle.grad(loss, optim.trainable(net))
    losses = losses_of_step(objectives.Standalone(), net, [], images, labels)
    assert losses.keys() == {"loss"} and np.isclose(float(losses["loss"]), float(loss), rtol=1e-5)
    assert_same_gradients(left_gradients(net), expected)


def test_the_fixed_teacher_runs_once_per_step_whatever_the_number_of_subnets(supernet, narrow, rng):
    (images, labels), calls = batch(2), []

    def teacher(given):
        calls.append(paddle.is_grad_enabled())
        assert given is images
        return paddle.zeros([2, 5])

    archs = [("random", narrow.sample(rng)) for _ in range(3)]
    losses_of_step(fixed_teacher(teacher), supernet, archs, images, labels)
    assert calls == [False]


def test_soft_cross_entropy_gives_the_student_its_gradient_and_the_teacher_none():
    rng = np.random.default_rng(0)
    student, teacher = (paddle.to_tensor(rng.standard_normal((4, 7)).astype("float32"), stop_gradient=False)
                        for _ in range(2))
    loss = objectives.soft_cross_entropy(student, teacher)
    p, q = probabilities(student.numpy()), probabilities(teacher.numpy())
    assert np.isclose(float(loss), -(q * np.log(p)).sum(axis=1).mean(), rtol=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert np.allclose(student.grad.numpy(), (p - q) / 4, atol=1e-6)


def test_losses_come_by_role_as_means_and_hold_no_graph(supernet, narrow, rng):
    (images, labels), archs = batch(), sandwich_archs(narrow, rng)
    losses = losses_of_step(objectives.InPlaceDistillation(), supernet, archs, images, labels)
    logits = [supernet(images, arch, norm=batch_norm) for _, arch in archs]
    teacher = probabilities(logits[0].numpy())
    expected = [float(distillation(each, teacher)) for each in logits]
    assert list(losses) == ["largest", "smallest", "random"]
    assert np.isclose(float(losses["largest"]), float(cross_entropy(logits[0], labels)), rtol=1e-4)
    assert np.isclose(float(losses["smallest"]), expected[1], rtol=1e-4)
    assert np.isclose(float(losses["random"]), (expected[2] + expected[3]) / 2, rtol=1e-4)
    assert all(loss.stop_gradient for loss in losses.values())


# ---- what an objective can be made of

def test_one_loss_may_join_the_graphs_of_several_subnets_in_training(supernet, narrow):
    """As a ranking loss does, which compares the losses of two."""
    (images, labels), pair = batch(), [narrow.largest(), narrow.smallest()]

    def difference(norm=None):
        one, other = (cross_entropy(supernet(images, arch, norm=norm), labels) for arch in pair)
        return F.relu(one - other + 5)

    expected = paddle.grad(difference(batch_norm), optim.trainable(supernet), allow_unused=True)
    gradients = objectives.Gradients(supernet)
    gradients.add("ranking", difference())
    assert_same_gradients(left_gradients(supernet), expected)
    assert list(gradients.means()) == ["ranking"]


def test_gradients_of_single_subnets_can_be_looked_at_changed_and_put_back(supernet, narrow):
    """As conflict-aware methods do."""
    (images, labels), pair = batch(), [narrow.largest(), narrow.smallest()]
    supernet.eval()

    def loss(arch):
        return cross_entropy(supernet(images, arch), labels)

    gradients = objectives.Gradients(supernet, parts=2)
    gradients.add("largest", loss(pair[0]))
    before = [None if each is None else each.clone() for each in left_gradients(supernet)]
    alone = gradients.of(loss(pair[1]))
    assert_same_gradients(left_gradients(supernet), before)  # nothing was added
    expected = paddle.grad(loss(pair[1]) / 2, optim.trainable(supernet), allow_unused=True)
    assert_same_gradients(alone, expected)
    gradients.put([None if each is None else 3 * each for each in alone])
    total = [one if other is None else one + 3 * other for one, other in zip(before, expected)]
    assert_same_gradients(left_gradients(supernet), total)


def test_gradients_are_put_where_there_were_none(narrow):
    net = ResNet48(narrow.smallest(), 5)
    gradients = objectives.Gradients(net)
    alone = gradients.of(cross_entropy(net(batch()[0]), batch()[1]))
    assert all(each is None for each in left_gradients(net))
    gradients.put(alone)
    assert_same_gradients(left_gradients(net), alone)
