import contextlib
import os
import resource

import numpy as np
import paddle
import pytest
from small_runs import SPACE, content, values

from resnet48.evaluation import accuracy
from resnet48.images import datasets
from resnet48.nets.export import require_path, save_inference
from resnet48.nets.supernet import Supernet, extract
from resnet48.system.errors import UserError


def images(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size)).astype("uint8")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(path, the calibrated subnet's logits as a function of float32 images)."""
    paddle.seed(0)
    subnet = extract(Supernet(SPACE, 6), SPACE.smallest())
    accuracy.calibrate_alone(subnet, images(20, seed=1))
    path = str(tmp_path_factory.mktemp("model") / "deep" / "subnet")
    expected = extracted_logits(subnet)
    subnet.train()
    before = values(subnet)
    save_inference(subnet, 32, path)
    assert all(np.array_equal(value, before[name]) for name, value in values(subnet).items())
    return path, expected


def extracted_logits(subnet):
    """The logits of a copy in evaluation mode, made before the export touches the net."""
    copy = type(subnet)(subnet.arch, subnet.num_classes)
    copy.set_state_dict(values(subnet))
    copy.eval()

    def logits(given):
        with paddle.no_grad():
            return copy(paddle.to_tensor(given)).numpy()

    return logits


@pytest.mark.parametrize("count", [1, 5])
def test_the_inference_model_gives_the_logits_of_the_calibrated_subnet(exported, count):
    path, logits = exported
    given = datasets.normalize(paddle.to_tensor(images(count))).numpy()
    loaded = paddle.jit.load(path)
    loaded.eval()
    assert np.allclose(loaded(paddle.to_tensor(given)).numpy(), logits(given), rtol=1e-3, atol=1e-4)
    assert logits(given).std() > 1e-2


def test_paddle_inference_reads_it_with_an_input_named_images(exported):
    path, logits = exported
    program = path + (".json" if os.path.exists(path + ".json") else ".pdmodel")
    predictor = paddle.inference.create_predictor(paddle.inference.Config(program, path + ".pdiparams"))
    assert predictor.get_input_names() == ["images"]
    given = datasets.normalize(paddle.to_tensor(images(3))).numpy()
    predictor.get_input_handle("images").copy_from_cpu(given)
    predictor.run()
    output = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    assert np.allclose(output, logits(given), rtol=1e-3, atol=1e-4)


def subnet():
    return extract(Supernet(SPACE, 6), SPACE.smallest())


def test_a_path_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/subnet.pdiparams"):
        save_inference(subnet(), 32, str(tmp_path / "file" / "subnet"))


@pytest.mark.parametrize("output, words", [
    ("", "out/subnet instead of"), ("/", "out/subnet instead of"), ("/m.pdmodel", "out/m instead of .*out/m.pdmodel"),
    ("/m.pdiparams", "out/m instead of"), ("/m.json", "out/m instead of"), ("/m.pdiparams.info", "out/m instead of"),
    ("/no/", "out/no/subnet instead of .*out/no/"), ("/taken", "cannot write .*out/taken.pdmodel: it is a folder")])
def test_a_path_that_is_a_folder_or_has_an_ending_is_refused_before_the_work(tmp_path, output, words):
    (tmp_path / "out" / "taken.pdmodel").mkdir(parents=True)
    for refuse in (require_path, lambda path: save_inference(None, 32, path)):
        with pytest.raises(UserError, match=words):
            refuse(f"{tmp_path}/out{output}")
    assert content(tmp_path) == {}


@contextlib.contextmanager
def disk_of(size):
    """What a full disk does: no file gets more than `size` bytes, and Paddle does not notice."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 3000, 9000, 30_000])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path, size):
    (tmp_path / "m.pdiparams").write_text("an older one")
    for place in ("m", "new/folder/m"):
        with disk_of(size), pytest.raises(UserError, match=f"cannot write {tmp_path}/{place}.*: "):
            save_inference(subnet(), 32, str(tmp_path / place))
    assert content(tmp_path) == {"m.pdiparams": b"an older one"} and os.listdir(tmp_path) == ["m.pdiparams"]


def test_a_model_that_is_not_the_net_is_refused(tmp_path, monkeypatch):
    other, save = subnet(), paddle.jit.save
    other.blocks["24"]["fc"].bias.set_value(paddle.ones([6]))
    other.eval()
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "images")]
    other = paddle.jit.to_static(other, input_spec=spec, full_graph=True)
    monkeypatch.setattr(paddle.jit, "save", lambda net, path: save(other, path))
    with pytest.raises(UserError, match="gives other logits than the net"):
        save_inference(subnet(), 32, str(tmp_path / "m"))
    assert os.listdir(tmp_path) == []


def test_an_older_model_is_replaced(tmp_path):
    for _ in range(2):
        net = subnet()
        save_inference(net, 32, str(tmp_path / "m"))
    loaded = paddle.jit.load(str(tmp_path / "m"))
    loaded.eval()
    given = paddle.randn([2, 3, 32, 32])
    assert np.allclose(loaded(given).numpy(), net(given).numpy(), atol=1e-4)
    assert all(name.startswith("m.") for name in os.listdir(tmp_path))
