import os

import numpy as np
import paddle
import pytest
from small_runs import SPACE, values

from resnet48.evaluation import accuracy
from resnet48.images import datasets
from resnet48.nets.export import save_inference
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


def test_a_path_that_cannot_be_written_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/subnet.pdiparams"):
        save_inference(extract(Supernet(SPACE, 6), SPACE.smallest()), 32, str(tmp_path / "file" / "subnet"))
