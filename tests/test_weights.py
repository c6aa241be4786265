import pickle

import numpy as np
import paddle
import pytest

from resnet48.images import datasets
from resnet48.nets.supernet import Supernet
from resnet48.space.arch import FULL
from resnet48.training import checkpoint, foreign_weights
from resnet48.training.checkpoint import CheckpointError


def small_supernet(classes=3):
    return Supernet(FULL.narrowed((2, 3, 4, 5), 1), classes)


def values(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def save_foreign(path, weights):
    paddle.save({name: paddle.to_tensor(value) for name, value in weights.items()}, str(path))
    return str(path)


def wrapped(name):
    return name.replace("conv.", "conv.fn.").replace("conv1.", "conv1.fn.").replace("fc.", "fc.fn.")


@pytest.mark.parametrize("prefix", ["", "model.", "_layers.", "model._layers.", "_layers.model.",
                                    "_layers.model._layers.", "model._layers.model._layers."])
@pytest.mark.parametrize("teacher", [None, "ofa_teacher_model.", "ofa_teacher_model.model.",
                                     "_layers.ofa_teacher_model.model."])
def test_foreign_names_are_read_as_our_own_and_a_teacher_beside_them_is_left_out(prefix, teacher):
    weights = {name: np.full(3, i) for i, name in enumerate(small_supernet().state_dict())}
    foreign = {prefix + wrapped(name): value for name, value in weights.items()}
    if teacher:
        foreign.update({teacher + wrapped(name): value + 1 for name, value in weights.items()})
    assert same(foreign_weights.canonical(foreign), weights)


def test_foreign_weights_become_a_net(tmp_path):
    net = small_supernet()
    foreign = {"model." + wrapped(name): value for name, value in values(net).items()}
    foreign.update({"ofa_teacher_model." + name: value + 1 for name, value in foreign.items()})
    path = save_foreign(tmp_path / "official.pdparams", foreign)
    (tmp_path / "official.json").write_text('["a file of somebody else"]')
    assert same(values(checkpoint.build(checkpoint.load(path))), values(net))


@pytest.mark.parametrize("precision", ["float16", "float64"])
def test_weights_of_another_precision_are_converted(tmp_path, precision):
    net = small_supernet()
    weights = {name: value.astype(precision) for name, value in values(net).items()}
    path = save_foreign(tmp_path / "net.pdparams", weights)
    for name, value in values(checkpoint.build(checkpoint.load(path))).items():
        assert value.dtype == np.float32 and np.allclose(value, values(net)[name], atol=1e-2), name


@pytest.mark.parametrize("change, message", [
    (lambda weights: weights.pop("blocks.3.bn1._mean"), r"1 weights are missing \(blocks.3.bn1._mean\), 0 are not kn"),
    (lambda weights: weights.update({"blocks.30.x": np.zeros(1)}), r"0 weights are missing .*1 are not known .*30.x'\)"),
    (lambda weights: weights.update({"blocks.2.conv1.weight": np.zeros((2, 2, 1, 1))}),
     r"blocks.2.conv1.weight is \[2, 2, 1, 1\], needed is \[2, 2, 3, 3\]"),
    (lambda weights: weights["blocks.2.bn1.bias"].put(0, np.nan), "blocks.2.bn1.bias holds values that are not finite"),
    (lambda weights: weights.update({"blocks.0.bn.bias": np.array([1e300, 0])}),
     "blocks.0.bn.bias holds values that are not finite in float32"),
    (lambda weights: weights.update({"blocks.0.bn.bias": np.array([0, -np.longdouble("1e4000")])}),
     "blocks.0.bn.bias holds values that are not finite in float32"),
    (lambda weights: weights["blocks.0.bn._variance"].put(0, np.inf), "blocks.0.bn._variance holds values that are n"),
    (lambda weights: weights.update({"blocks.0.bn.bias": "text"}), "blocks.0.bn.bias is not a tensor of floating-poin"),
    (lambda weights: weights.update({"blocks.0.bn.bias": np.zeros(2, "int64")}), "blocks.0.bn.bias is not a tensor")])
def test_weights_that_do_not_fit_are_one_clear_sentence(change, message):
    net = small_supernet()
    weights, before = {name: value.copy() for name, value in values(net).items()}, values(net)
    change(weights)
    with pytest.raises(CheckpointError, match=f"^some.pdparams is .*{message}"):
        checkpoint.load_weights(net, weights, "some.pdparams")
    assert same(values(net), before)


def test_another_number_of_classes_is_said_in_these_words():
    with pytest.raises(CheckpointError, match="it was trained on 5 classes, not on 3"):
        checkpoint.load_weights(small_supernet(3), values(small_supernet(5)), "some.pdparams")
    images = datasets.ImageSet("my photos", ("a", "b"), None, None, 32)
    with pytest.raises(CheckpointError, match="some.pdparams is for 3 classes, but my photos has 2"):
        checkpoint.require_classes(small_supernet(3), images, "some.pdparams")


NOT_CHECKPOINTS = {"a text": b"just some text\n", "nothing": b"", "zeros": bytes(100), "half a pickle": b"\x80\x04\x95",
                   "a list": pickle.dumps([1, 2]), "numbers": pickle.dumps({1: 2}), "no names": pickle.dumps({}),
                   "other names": pickle.dumps({"fc.weight": np.zeros((2, 2))}),
                   "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50)}


@pytest.mark.parametrize("content", NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_one_clear_sentence(tmp_path, content):
    path = tmp_path / "weights.pdparams"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{path} (is not a Paddle checkpoint|does not hold)") as error:
        checkpoint.load(str(path))
    assert "\n" not in str(error.value)


def test_a_path_without_a_checkpoint_is_one_clear_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.pdparams"):
        with pytest.raises(CheckpointError, match=f"^there is no checkpoint at {path}; expected is"):
            checkpoint.load(str(path))
