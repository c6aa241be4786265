"""Files of weights, as Paddle writes them and as it does not."""

import collections
import os
import pickle
import pickletools
import struct

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from resnet48.nets.supernet import Supernet
from resnet48.space.arch import FULL
from resnet48.training import tensor_files
from resnet48.training.tensor_files import CheckpointError


def small_supernet():
    return Supernet(FULL.narrowed((2, 3, 4, 5), 1), 3)


def values(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
        and np.array_equal(one[name], other[name]) for name in one)


def read(tmp_path, data):
    path = tmp_path / "x.pdparams"
    path.write_bytes(data)
    return tensor_files.read(str(path))


def layout(weights):
    """What `paddle.save` pickles for a `state_dict`; 2.6.2 and 3.3.1 write the same bytes but for tensor names."""
    return {**weights, "StructuredToParameterName@@": {name: f"linear_{i}.w_0" for i, name in enumerate(weights)}}


# ---- what Paddle writes

@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_has_saved_is_read_as_paddle_reads_it(tmp_path, protocol):
    net, path = small_supernet(), str(tmp_path / "net.pdparams")
    paddle.save(net.state_dict(), path, protocol=protocol)
    assert same(tensor_files.read(path), values(net)) and same(tensor_files.read(path),
                                                               paddle.load(path, return_numpy=True))


def test_the_layout_of_this_file_is_what_paddle_writes(tmp_path):
    net, path = small_supernet(), str(tmp_path / "net.pdparams")
    paddle.save(net.state_dict(), path, protocol=4)
    names = {name: tensor.name for name, tensor in net.state_dict().items()}
    assert set(names) == set(layout(values(net))["StructuredToParameterName@@"])

    def used(data):
        return {opcode.name for opcode, _, _ in pickletools.genops(data)}

    with open(path, "rb") as file:
        data = file.read()
    assert used(data) == used(pickle.dumps(layout(values(net)), protocol=4))
    with open(path, "rb") as file:
        assert list(pickle.load(file)) == list(layout(values(net)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_weights_of_the_official_layout_and_of_numpy_2_are_read(tmp_path, protocol):
    weights = {f"model.{name.replace('conv.', 'conv.fn.')}": value for name, value in values(small_supernet()).items()}
    weights |= {"ofa_teacher_model." + name: value for name, value in weights.items()}
    data = pickle.dumps(layout(weights), protocol=protocol)
    assert same(read(tmp_path, data), weights)
    if protocol < 4:  # names end in a line break there, so they may be longer
        assert same(read(tmp_path, data.replace(b"numpy.core.", b"numpy._core.")), weights)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_that_a_state_holds_besides_arrays_is_read(tmp_path, protocol):
    content = {"lr": {"last_lr": 0.1, "epochs": [1, -2, 2 ** 40, None, True, False], "name": "cosine"},
               "e": np.float32(3), "half": np.ones(3, "float16"), "counts": np.arange(6).reshape(2, 3),
               "flags": np.array([True, False]),
               "empty": np.zeros((0, 3)), "scalar": np.array(2.5), "fortran": np.asfortranarray(np.eye(3)[:2]),
               "bytes": b"\0\xff", "tuple": (1, (2, ()), "three", 4), "long": "ü" * 300}
    found = read(tmp_path, pickle.dumps(content, protocol=protocol))
    for name, value in content.items():
        assert type(found[name]) is type(value)
        assert np.array_equal(found[name], value) if isinstance(value, np.ndarray) else found[name] == value


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_tensors_with_their_names_beside_and_in_a_dictionary_with_an_order_are_read(tmp_path, protocol):
    class Named:
        def __reduce__(self):
            return tuple, (("generated_tensor_0", np.arange(3.0)),)

    named = {"a": Named()}
    assert same(read(tmp_path, pickle.dumps(named, protocol=protocol)), {"a": np.arange(3.0)})
    path = str(tmp_path / "b.pdparams")
    paddle.save({"a": paddle.arange(3.0), "deep": {"lr": 1}}, path, protocol=protocol)
    assert np.array_equal(tensor_files.read(path)["a"], np.arange(3.0))
    ordered = collections.OrderedDict(b=np.zeros(2), a=np.ones(1))
    assert list(read(tmp_path, pickle.dumps(ordered, protocol=protocol))) == ["b", "a"]


def test_a_tensor_that_paddle_has_split_is_one_again(tmp_path):
    whole = np.arange(12.0, dtype="float32").reshape(3, 4)
    split = {"w@@.0": whole.ravel()[:5], "w@@.1": whole.ravel()[5:],
             "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}}}
    assert same(read(tmp_path, pickle.dumps(split, protocol=2)), {"w": whole})


# ---- what nobody writes

def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def calling(name, arguments=b"("):
    """A pickle of a dictionary whose value is what a function gives."""
    return opcodes(b"}", text(b"w"), b"c" + name.replace(" ", "\n").encode() + b"\n", arguments + b"tR", b"s")


class Reduced:
    def __init__(self, *how):
        self.how = how

    def __reduce__(self):
        return self.how


CALLED = ["os system", "posix system", "nt system", "subprocess Popen", "subprocess check_output", "builtins eval",
          "builtins exec", "__builtin__ eval", "builtins getattr", "builtins __import__", "builtins open",
          "builtins compile", "builtins type", "builtins map", "builtins print", "builtins globals",
          "builtins bytearray", "builtins list", "builtins dict", "builtins set", "builtins complex", "builtins range",
          "sys exit",
          "sys setrecursionlimit", "_pickle loads", "pickle loads", "pickle load", "marshal loads", "types CodeType",
          "types FunctionType", "functools partial", "functools reduce", "operator attrgetter", "operator methodcaller",
          "importlib import_module", "runpy run_path", "code interact", "pty spawn", "socket socket", "shutil rmtree",
          "webbrowser open", "ctypes CDLL", "numpy load", "numpy fromfile", "numpy memmap", "numpy f2py",
          "numpy.testing._private.utils runstring", "numpy.core.multiarray fromfile", "numpy.core.multiarray ndarray",
          "paddle load", "paddle.framework.io load", "collections namedtuple", "collections defaultdict",
          "codecs encode", "_codecs decode", "copyreg _reconstructor", "copyreg __newobj__", "asyncio run",
          "resnet48.training.tensor_files read", "resnet48 __import__", "numpy.core.multiarray  _reconstruct"]


@pytest.mark.parametrize("name", CALLED)
def test_nothing_that_a_file_names_is_called(tmp_path, name):
    for arguments in (b"(", b"(" + text(b"touch marker")):
        with pytest.raises(CheckpointError, match="it asks for '.*, and a checkpoint may hold arrays, text"):
            read(tmp_path, calling(name, arguments))
    as_protocol_4 = b"\x80\x04}" + b"".join(b"\x8c" + bytes([len(part)]) + part for part in
                                           (b"w", *name.encode().split(b" ", 1))) + b"\x93)Rs."
    with pytest.raises(CheckpointError, match="it asks for"):
        read(tmp_path, as_protocol_4)


ARRAY = pickle.dumps({"w": np.zeros(2, "float32")}, protocol=2)
DEEP = b"(" * 900_000 + b"t" * 900_000
HOSTILE = {
    "an instance": opcodes(b"(ios\nsystem\n"), "an object": opcodes(b"(cos\nsystem\no"),
    "a new object": opcodes(b"cbuiltins\nobject\n)\x81"), "a persistent id": opcodes(b"Pid\n"),
    "a persistent id of the stack": opcodes(text(b"id"), b"Q"), "an extension": opcodes(b"\x82\x01"),
    "a buffer from outside": b"\x80\x05\x97.", "a set": b"\x80\x04\x8f.", "a state for a dictionary": opcodes(b"}}b"),
    "a state for a function": opcodes(b"ccollections\nOrderedDict\n}", text(b"__call__"), b"Nsb"),
    "a state for an array type": opcodes(b"cnumpy\nndarray\n)b"), "an array type": opcodes(b"cnumpy\nndarray\n)R"),
    "an array as a function": ARRAY[:-1] + b")R.", "a number as a function": opcodes(b"K\x01)R"),
    "an array of objects": ARRAY.replace(b"X\x02\x00\x00\x00f4", b"X\x02\x00\x00\x00O8"),
    "an array of texts": ARRAY.replace(b"X\x02\x00\x00\x00f4", b"X\x02\x00\x00\x00U1"),
    "an array of records": ARRAY.replace(b"X\x02\x00\x00\x00f4", b"X\x05\x00\x00\x00f4,f4"),
    "an array of another size": ARRAY.replace(b"K\x02\x85", b"K\x03\x85"),
    "an array of a negative size": ARRAY.replace(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
    "an array of no content": opcodes(b"}", text(b"w"), b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n",
                                      b"K\x00\x85", text(b"b"), b"\x87Rs"),
    "an array of another type": opcodes(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85", text(b"b"),
                                        b"\x87R"),
    "more bytes than there are": b"\x80\x04}\x8c\x01w\x8e" + struct.pack("<Q", 2 ** 62) + b"x" * 50,
    "32 bits more bytes than there are": b"\x80\x03}X\x01\0\0\0wB" + b"\xff\xff\xff\xff" + b"x" * 50,
    "more text than there is": b"\x80\x04\x8d" + struct.pack("<Q", 2 ** 40) + b"x" * 50,
    "a frame of 2 ** 63 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2 ** 63) + b"}.",
    "a place of 2 ** 32": opcodes(b"}r\xff\xff\xff\xff]"), "a place that is empty": opcodes(b"h\x07"),
    "an integer of 2 ** 31 bytes": opcodes(b"\x8b\xff\xff\xff\x7f1"),
    "a negative length": opcodes(b"\x8b\xff\xff\xff\xff"),
    "a tuple a million deep": b"\x80\x02}" + DEEP + b"K\x01s.",
    "a million parts": b"\x80\x02]" + b"}a" * 600_000 + b".", "a list in itself": opcodes(b"]q\x00h\x00a"),
    "a dictionary in itself": opcodes(b"}q\x00", text(b"a"), b"h\x00s."), "a tuple as a name": opcodes(b"})K\x01s"),
    "a name that is a list": opcodes(b"}]K\x01s"), "a name without a value": opcodes(b"}(", text(b"w"), b"u"),
    "a name with a line break": pickle.dumps({"a\nb": 1}), "a surrogate as a name": pickle.dumps({"\ud800": 1}),
    "a name of a thousand characters": pickle.dumps({"a" * 1000: 1}), "an empty stack": opcodes(b""),
    "too few for a tuple": opcodes(b"K\x01\x87"), "no mark": opcodes(b"t"), "text of protocol 0": b"(dp0\nS'w'\nI1\ns.",
    "a number of a million digits": b"\x80\x02I" + b"9" * 10 ** 6 + b"\n.", "no end": b"\x80\x02}", "nothing": b"",
    "a zip": b"PK\x03\x04" + bytes(100), "bytes that repeat": opcodes(
        b"}(", *(text(b"w%d" % i) + (b"c_codecs\nencode\n" + (text(b"x" * 1000) + b"q\x01" if not i else b"h\x01")
                                     + text(b"latin1") + b"\x86R") for i in range(300)), b"u"),
    "slices that repeat": pickle.dumps({**{f"s{i}": None for i in range(300)}, "UnpackBigParamInfor@@": {
        "w": {"OriginShape": (3,), "slices": [f"s{i}" for i in range(300)]}}}),
    "slices that are missing": pickle.dumps({"UnpackBigParamInfor@@": {"w": {"OriginShape": (3,), "slices": ["s"]}}}),
    "slices of text": pickle.dumps({"UnpackBigParamInfor@@": "w"}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_of_another_kind_is_one_sentence(tmp_path, case):
    with pytest.raises(CheckpointError, match="is not a Paddle checkpoint, or is corrupt|does not hold named") as said:
        found = read(tmp_path, HOSTILE[case])
        assert case == "a dictionary in itself" and found["a"]["a"]["a"]  # it is data, if odd, and weights it is not
        raise CheckpointError("does not hold named we")
    assert str(said.value).isprintable() and len(str(said.value)) < len(str(tmp_path)) + 200


def test_what_python_would_raise_by_a_pickle_is_not_raised(tmp_path):
    for error in (SystemExit, KeyboardInterrupt, OverflowError, MemoryError, RecursionError, StopIteration):
        data = pickle.dumps({"w": Reduced(error, ("text",))})
        with pytest.raises(CheckpointError, match="it asks for 'builtins"):
            read(tmp_path, data)


def test_a_file_that_is_cut_anywhere_is_one_sentence(tmp_path):
    data = pickle.dumps(layout({"a": np.arange(100.0), "b": np.zeros((3, 4), "float32")}), protocol=4)
    for size in range(len(data)):
        with pytest.raises(CheckpointError):
            read(tmp_path, data[:size])


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="^cannot read .*: No such file"):
        tensor_files.read(str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="^cannot read .*: Is a directory"):
        tensor_files.read(str(tmp_path))
    with open(tmp_path / "sparse", "wb") as file:
        os.truncate(file.fileno(), 2 ** 42)
    with pytest.raises(CheckpointError, match="too large for the memory of this machine"):
        tensor_files.read(str(tmp_path / "sparse"))


# ---- anything

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=9)
PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
                     lambda deeper: st.lists(deeper, max_size=3) | st.tuples(deeper) | st.dictionaries(NAMES, deeper,
                                                                                                       max_size=3))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, PLAIN), st.integers(2, 5))
def test_plain_data_comes_back(tmp_path_factory, content, protocol):
    assert read(tmp_path_factory.getbasetemp(), pickle.dumps(content, protocol=protocol)) == content


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 700), st.integers(0, 60), st.integers(2, 4))
def test_a_file_in_which_bytes_have_changed_is_read_or_refused_and_nothing_else(tmp_path_factory, change, at, skip,
                                                                               protocol):
    data = pickle.dumps(layout({"a": np.arange(20.0), "b": np.zeros((3, 4), "float32"), "c": 3}), protocol=protocol)
    try:
        found = read(tmp_path_factory.getbasetemp(), data[:at] + change + data[at + skip:])
    except CheckpointError as error:
        assert str(error).isprintable()
    else:
        assert all(isinstance(name, str) for name in found)
