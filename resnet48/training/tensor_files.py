"""Reading .pdparams and .pdopt, files that are not trusted.

Paddle writes them as pickles, and `paddle.load` does whatever a pickle asks for. Here the opcodes are interpreted one
by one. They can build numpy arrays of plain numbers, dictionaries with text for keys, lists, tuples, text and numbers;
nothing in here could call, import or set anything else. (A subclass of `pickle.Unpickler` would not do: without calling
a foreign function it can still be made to take tens of gigabytes for one index, or to overflow the stack by hashing a
nested tuple.)
"""

import math
import pickletools
from collections.abc import Callable

import numpy as np

from ..system.errors import UserError

#: A checkpoint of ours has some 10,000. The memory that a pickle can take beyond its own size is bounded by this, and
#: by arrays being views of what was read: none is copied, however often a pickle repeats it.
MAX_OPCODES = 1_000_000
MAX_AXES, MAX_SIZE = 16, 2 ** 40  # of an array
LONGEST_NAME = 300  # in characters
NAME_TABLE = "StructuredToParameterName@@"  # Paddle's own name of each tensor; we need none
SPLIT_TENSORS = "UnpackBigParamInfor@@"  # which tensors of a gigabyte and more lie in slices (protocols 2 and 3)
NUMBERS = ("b1", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
#: Opcodes whose argument is the value itself.
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE",
            "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupt, foreign or for another net."""


class _Malformed(Exception):
    """What is wrong with a pickle: the end of a sentence that begins with its path."""

    def __init__(self, reason: str, begin: str = "is not a Paddle checkpoint, or is corrupt: "):
        super().__init__(begin + reason)


def read(path: str) -> dict[str, object]:
    """What Paddle has saved at `path` under each name: read-only numpy arrays, or plain data for the caller to judge.

    Raises `CheckpointError` for a file that cannot be read, is not a pickle of named values, is torn, or asks for more
    than data.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        content = _interpret(data)
        if not isinstance(content, dict):
            raise _Malformed(f"but {_kind(content)}", "does not hold named weights, ")
        return _joined({name: _value(value) for name, value in content.items() if name != NAME_TABLE}, len(data))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} is too large for the memory of this machine") from error
    except _Malformed as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # whatever pickletools and numpy think of bytes without meaning
        raise CheckpointError(f"{path} is not a Paddle checkpoint, or is corrupt") from error


# --- the interpreter --------------------------------------------------------------------------------------------------

def _interpret(data):
    """What a pickle means. Raises `_Malformed` and, for what is no pickle at all, anything else."""
    stack, marks, memo, encoded = [], [], {}, 0

    def since_mark():
        first = marks.pop()
        items = stack[first:]
        del stack[first:]
        return items

    # Lengths are those of what is really there: a `BytesIO`, as which pickletools reads bytes, gives no more.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if count >= MAX_OPCODES:
            raise _Malformed(f"it has more than {MAX_OPCODES:,} parts")
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(items[::-1]))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            _require(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            value = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else since_mark()
            _require(stack[-1], dict).update(zip(map(_name, value[::2]), value[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_builder(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_builder(f"{module} {attribute}"))
        elif name == "REDUCE":
            arguments, builder = stack.pop(), stack.pop()
            stack.append(_require(builder, _Builder).function(*_require(arguments, tuple)))
            encoded += len(stack[-1]) if isinstance(stack[-1], bytes) else 0
            if encoded > len(data):
                raise _Malformed("it repeats its bytes")
        elif name == "BUILD":
            state = stack.pop()
            _require(stack[-1], _Unfinished).finish(*_require(state, tuple))
        elif name == "STOP":
            return stack.pop()
        elif name == "FRAME" and argument > len(data):
            raise _Malformed("it is cut short")
        elif name not in ("PROTO", "FRAME"):
            raise _Malformed(f"it asks for {name}, which no checkpoint needs")


def _require(value, kind):
    if not isinstance(value, kind):
        raise _Malformed("its parts do not fit together")
    return value


def _name(key):
    if not isinstance(key, str):
        raise _Malformed(f"a name is {_kind(key)}", "does not hold named weights: ")
    if len(key) > LONGEST_NAME or not key.isprintable():
        raise _Malformed(f"a name in it has more than {LONGEST_NAME} characters or some that cannot be printed")
    return key


def _kind(value):
    return "an array" if isinstance(value, _Array) else f"a {type(value).__name__}"


def _builder(name):
    if name not in BUILDERS:
        raise _Malformed(f"it asks for {name[:60]!r}, and a checkpoint may hold arrays, text and numbers only")
    return BUILDERS[name]


def _value(value):
    """A value of the dictionary as it is for the caller: an array, also where Paddle has put its name beside it."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array):
        value = value[1]
    return value.finished() if isinstance(value, _Array) else value


def _joined(content, size):
    """The same with tensors in one piece that lie in slices. size: bytes of the file."""
    for name, info in _require(content.pop(SPLIT_TENSORS, {}), dict).items():
        slices = [_require(content.pop(part), np.ndarray) for part in info["slices"]]
        size -= sum(each.nbytes for each in slices)
        if size < 0:
            raise _Malformed("it repeats its bytes")
        content[name] = np.concatenate(slices).reshape(info["OriginShape"])
    return content


# --- what can be built ------------------------------------------------------------------------------------------------

class _Unfinished:
    """An object that a pickle makes empty and then fills."""

    def finish(self, *state):
        raise NotImplementedError


class _Dtype(_Unfinished):
    """numpy.dtype(kind, align, copy), of plain numbers."""

    def __init__(self, kind, align=False, copy=True):
        if kind not in NUMBERS:
            raise _Malformed(f"it holds an array of something else than numbers: {str(kind)[:20]!r}")
        self.dtype = np.dtype(kind)

    def finish(self, version, order, *others):
        if order not in ("<", "|"):  # on all machines that Paddle runs on
            raise _Malformed("it holds numbers in another order of bytes")


class _Array(_Unfinished):
    """numpy.ndarray, empty at first."""

    def __init__(self):
        self.content = None

    def finish(self, version, shape, kind, fortran, content):
        self.content = _array(content, kind, shape, "F" if fortran else "C")

    def finished(self):
        if self.content is None:
            raise _Malformed("it holds an array without content")
        return self.content


class _Builder:
    """A function that a pickle may call."""

    def __init__(self, function: Callable):
        self.function = function


def _array(content, kind, shape, order):
    if isinstance(content, str):
        content = content.encode("latin1")  # of Python 2
    dtype, content = _require(kind, _Dtype).dtype, _require(content, (bytes, bytearray))
    if len(_require(shape, tuple)) > MAX_AXES or not all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape):
        raise _Malformed("it holds an array of an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise _Malformed(f"it holds an array whose {len(content)} bytes are not those of its shape")
    return np.ndarray(shape, dtype, content, order=order)


def _reconstruct(kind, shape, typecode):
    if kind is not BUILDERS["numpy ndarray"]:
        raise _Malformed("it holds an array of an unknown kind")
    return _Array()


def _from_buffer(content, kind, shape, order):
    array = _Array()
    array.content = _array(content, kind, shape, order)
    return array


def _scalar(kind, content):
    return _array(content, kind, (), "C")[()]


def _encode(text, encoding):
    """Bytes, as Python 3 writes them for protocol 2."""
    if encoding != "latin1":
        raise _Malformed("it holds bytes in an unknown encoding")
    return _require(text, str).encode("latin1")


def _no_call(*arguments):
    raise _Malformed("it holds an array of an unknown kind")


BUILDERS = {"numpy ndarray": _Builder(_no_call), "numpy dtype": _Builder(_Dtype), "_codecs encode": _Builder(_encode)}
BUILDERS |= dict.fromkeys(("builtins tuple", "__builtin__ tuple"), _Builder(lambda items: _require(items, tuple)))
BUILDERS |= dict.fromkeys(("builtins bytes", "__builtin__ bytes"), _Builder(lambda: b""))  # empty ones in protocol 2
BUILDERS |= {"collections OrderedDict": _Builder(lambda: {})}
for _core in ("core", "_core"):  # before and since numpy 2
    BUILDERS |= {f"numpy.{_core}.multiarray _reconstruct": _Builder(_reconstruct),
                 f"numpy.{_core}.multiarray scalar": _Builder(_scalar),
                 f"numpy.{_core}.numeric _frombuffer": _Builder(_from_buffer)}
