import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from small_runs import at, fixed_teacher, losses_of_step

from resnet48.evaluation.accuracy import calibrate_alone
from resnet48.nets.supernet import ResNet48, Supernet
from resnet48.system.errors import UserError
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


# ---- alpha-divergence

def logits(seed, count=6, classes=7, scale=1.0):
    values = np.random.default_rng(seed).standard_normal((count, classes)) * scale
    return paddle.to_tensor(values.astype("float32"), stop_gradient=False)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0, 2.0])
def test_the_alpha_divergence_of_equal_distributions_is_zero_and_pulls_nowhere(alpha):
    student = logits(0)
    divergence, loss = objectives.alpha_divergence(student, student + 3.0, alpha, 5.0)
    loss.sum().backward()
    assert np.allclose(divergence.numpy(), 0, atol=1e-5) and np.allclose(student.grad.numpy(), 0, atol=1e-5)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0, 2.0])
def test_the_loss_has_the_gradient_of_the_divergence_and_of_its_definition(alpha):
    student, teacher = logits(0), logits(1)
    divergence, loss = objectives.alpha_divergence(student, teacher, alpha, 1e6)
    loss.sum().backward()
    again = paddle.to_tensor(student.numpy(), stop_gradient=False)
    p, q = F.softmax(teacher.detach()), F.softmax(again)
    w = p / q
    defined = (q * w * w.log() if alpha == 1 else q * (w ** alpha - 1) / (alpha * (alpha - 1))).sum(axis=1)
    defined.sum().backward()
    assert np.allclose(divergence.numpy(), defined.numpy(), rtol=1e-4, atol=1e-5)
    assert np.allclose(student.grad.numpy(), again.grad.numpy(), rtol=1e-3, atol=1e-5)
    assert teacher.grad is None


def test_with_alpha_1_it_is_the_divergence_of_kullback_and_leibler():
    student, teacher = logits(0), logits(1)
    p, q = probabilities(teacher.numpy()), probabilities(student.numpy())
    divergence, _ = objectives.alpha_divergence(student, teacher, 1.0, 1e6)
    assert np.allclose(divergence.numpy(), (p * np.log(p / q)).sum(axis=1), rtol=1e-4)


def test_powers_of_the_ratio_are_clamped():
    student, teacher = logits(0, scale=4.0), logits(1, scale=4.0)
    p, q = probabilities(teacher.numpy()), probabilities(student.numpy())
    assert (q / p).max() > 5 and (p / q).max() > 5
    for alpha in (-1.0, 1.0):
        divergence, loss = objectives.alpha_divergence(student, teacher, alpha, 5.0)
        power = np.minimum((p / q) ** alpha, 5.0)
        rho = power if alpha == 1 else power / alpha + 0.5
        expected = (q * power * np.log(p / q)).sum(axis=1) if alpha == 1 else (q * (power - 1)).sum(axis=1) / 2
        assert np.allclose(divergence.numpy(), expected, rtol=1e-3, atol=1e-4)
        assert np.allclose(loss.numpy(), -(q * rho * np.log(q)).sum(axis=1), rtol=1e-3, atol=1e-4)


def test_of_two_divergences_the_larger_one_counts_for_each_image():
    student, teacher = logits(0, count=40, scale=0.2), logits(1, count=40, scale=0.5)
    (low, low_loss), (high, high_loss) = (objectives.alpha_divergence(student, teacher, alpha, 5.0)
                                          for alpha in (-1.0, 1.0))
    larger = low.numpy() > high.numpy()
    assert 0 < larger.sum() < 40
    loss = objectives.AlphaDivergence().distillation(student, teacher)
    assert float(loss) == pytest.approx(float(np.where(larger, low_loss.numpy(), high_loss.numpy()).mean()), rel=1e-5)


# ---- the ranking loss

def ranking(narrow, **values):
    objective = objectives.Ranking(**values)
    objective.prepare(narrow, None)
    return objective


def losses_of(*values):
    return [paddle.to_tensor(value, dtype="float32", stop_gradient=False) for value in values]


def ranked_gradients(objective, archs, *values):
    losses = losses_of(*values)
    loss = objective.ranking_loss(losses, archs)
    if not loss.stop_gradient:
        loss.backward()
    return float(loss), [0.0 if each.grad is None else float(each.grad) for each in losses]


def test_a_pair_that_is_ordered_by_the_margin_or_more_costs_nothing(narrow):
    pair = [narrow.largest(), narrow.smallest()]  # they lie 1 apart, so the margin is .1
    assert ranked_gradients(ranking(narrow), pair, 1.0, 1.11) == (0.0, [0.0, 0.0])
    cost, gradients = ranked_gradients(ranking(narrow), pair, 1.0, 1.05)
    assert cost == pytest.approx(0.05, abs=1e-6) and gradients == [1.0, 0.0]


def test_only_the_larger_net_of_a_pair_is_pushed_and_the_order_of_the_pair_does_not_matter(narrow):
    large, small = narrow.largest(), narrow.smallest()
    one = ranked_gradients(ranking(narrow), [large, small], 2.0, 1.0)
    other = ranked_gradients(ranking(narrow), [small, large], 1.0, 2.0)
    assert one[0] == other[0] == pytest.approx(1.1, abs=1e-6)
    assert one[1] == [1.0, 0.0] and other[1] == [0.0, 1.0]


def test_pairs_that_are_close_by_are_left_out(narrow):
    assert ranked_gradients(ranking(narrow), [narrow.largest()] * 2, 2.0, 1.0) == (0.0, [0.0, 0.0])
    pair = [narrow.largest(), narrow.smallest()]
    assert ranked_gradients(ranking(narrow, min_gap=1.1), pair, 2.0, 1.0) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize("proxy", objectives.PROXIES)
def test_every_proxy_puts_the_largest_above_the_smallest(narrow, proxy):
    cost, gradients = ranked_gradients(ranking(narrow, proxy=proxy), [narrow.largest(), narrow.smallest()], 2.0, 1.0)
    assert cost > 1 and gradients == [1.0, 0.0]


def test_a_proxy_that_is_not_there_is_refused(narrow):
    with pytest.raises(UserError, match="proxy takes macs, parameters, depth, zen_score; got 'flops'"):
        ranking(narrow, proxy="flops")


@pytest.mark.parametrize("epoch, warming_up, weight", [(4.0, True, 0.0), (0.0, False, 0.0), (5.0, False, 0.5),
                                                       (50.0, False, 2.0)])
def test_the_ranking_loss_grows_after_the_warm_up_and_adds_to_the_others(supernet, narrow, epoch, warming_up, weight):
    images, labels = batch()
    archs, objective = [("smallest", narrow.smallest()), ("random", narrow.largest())], ranking(narrow)
    own = [cross_entropy(supernet(images, arch, norm=batch_norm), labels) for _, arch in archs]
    teacher = probabilities(supernet(images, archs[0][1], norm=batch_norm).numpy())
    student = distillation(supernet(images, archs[1][1], norm=batch_norm), teacher)
    expected = own[0] + student + weight * objective.ranking_loss(own, [arch for _, arch in archs])
    expected = paddle.grad(expected, optim.trainable(supernet), allow_unused=True)
    moment = at(7, 100, epoch, warming_up)
    losses = losses_of_step(objective, supernet, archs, images, labels, moment)
    assert_same_gradients(left_gradients(supernet), expected)
    assert ("ranking" in losses) == (weight > 0)
    assert float(losses["random"]) == pytest.approx(float(student), rel=1e-3)


# ---- complexity-aware learning

def complexity_aware(narrow):
    objective = objectives.ComplexityAware()
    objective.prepare(narrow, None)
    return objective


def test_every_subnets_loss_counts_fully_at_first_and_then_by_its_size(narrow, rng):
    objective = complexity_aware(narrow)
    archs = sorted((narrow.sample(rng) for _ in range(5)), key=lambda arch: arch.params())
    archs = [narrow.smallest(), *archs, narrow.largest()]
    assert [objective.weight(arch, at(0, 100)) for arch in archs] == [1.0] * 7
    later = [objective.weight(arch, at(60, 100)) for arch in archs]
    assert later == sorted(later) and later[0] < 0.1 and later[-1] > 1


def test_with_a_linear_rate_a_subnets_own_rate_is_a_power_of_the_time_that_is_left(narrow):
    objective = complexity_aware(narrow)
    for step in (0, 30, 60, 80):
        left = 1 - step / 100
        for arch, power in ((narrow.smallest(), 4.0), (narrow.largest(), 0.25)):
            rate = optim.linear(step, 1.0, 100, 0) * objective.weight(arch, at(step, 100))
            assert rate == pytest.approx(left ** power)
    assert objective.weight(narrow.largest(), at(99, 100)) == 4.0  # it is clipped near the end
