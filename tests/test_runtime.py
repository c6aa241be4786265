import paddle
import pytest

from resnet48.system import runtime
from resnet48.system.errors import UserError

#: What Paddle 2.6.2 raises where cuDNN is not there.
WITHOUT_CUDNN = """

--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
PreconditionNotMetError: Cannot load cudnn shared library. Cannot invoke method cudnnGetVersion.
  [Hint: cudnn_dso_handle should not be null.] (at ../paddle/phi/backends/dynload/cudnn.cc:64)
"""


def test_a_gpu_whose_libraries_are_missing_is_one_sentence_that_names_them(monkeypatch):
    def conv2d(*_):
        raise RuntimeError(WITHOUT_CUDNN)

    monkeypatch.setattr(paddle.nn.functional, "conv2d", conv2d)
    with pytest.raises(UserError, match=r"cannot run a convolution on this GPU \(.*Cannot load cudnn shared library.*"
                                        r"need libcudnn.so.8 and libcublas.so.11") as caught:
        runtime._require_convolution()
    assert "\n" not in str(caught.value)


def test_a_device_that_convolves_is_taken():
    runtime._require_convolution()
