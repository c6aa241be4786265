"""Reading pickles that are not trusted: checkpoints, and archives of images.

The opcodes are interpreted one by one. They can build numpy arrays of plain numbers, dictionaries with text for keys,
lists, tuples, text and numbers; nothing in here could call, import or set anything else. (A subclass of
`pickle.Unpickler` would not do: without calling a foreign function it can still be made to take tens of gigabytes for
one index, or to overflow the stack by hashing a nested tuple.)
"""

import math
import pickletools
from collections.abc import Callable

import numpy as np

#: A checkpoint of ours has some 10,000, an archive of images some 300,000. The memory that a pickle can take beyond its
#: own size is bounded by this, and by arrays being views of what was read: none is copied, however often a pickle
#: repeats it.
MAX_OPCODES = 1_000_000
MAX_AXES, MAX_SIZE = 16, 2 ** 40  # of an array
LONGEST_NAME = 300  # in characters
NUMBERS = ("b1", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
#: Opcodes whose argument is the value itself.
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE",
            "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Malformed(Exception):
    """What is wrong with a pickle: the end of a sentence that begins with its path."""

    def __init__(self, reason: str, begin: str = "is not a Paddle checkpoint, or is corrupt: "):
        super().__init__(begin + reason)
        self.reason = reason


def interpret(data: bytes) -> object:
    """What a pickle means: an `Array` for each of its arrays, everything else as it is.

    Raises `Malformed` and, for what is no pickle at all, whatever pickletools and numpy think of bytes without meaning.
    """
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
            raise Malformed(f"it has more than {MAX_OPCODES:,} parts")
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
            require(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            value = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else since_mark()
            require(stack[-1], dict).update(zip(map(_name, value[::2]), value[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_builder(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_builder(f"{module} {attribute}"))
        elif name == "REDUCE":
            arguments, builder = stack.pop(), stack.pop()
            stack.append(require(builder, _Builder).function(*require(arguments, tuple)))
            encoded += len(stack[-1]) if isinstance(stack[-1], bytes) else 0
            if encoded > len(data):
                raise Malformed("it repeats its bytes")
        elif name == "BUILD":
            state = stack.pop()
            require(stack[-1], _Unfinished).finish(*require(state, tuple))
        elif name == "STOP":
            return stack.pop()
        elif name == "FRAME" and argument > len(data):
            raise Malformed("it is cut short")
        elif name not in ("PROTO", "FRAME"):
            raise Malformed(f"it asks for {name}, which no checkpoint needs")


def require(value: object, kind: type) -> object:
    """The same value. Raises `Malformed` unless it is of this kind."""
    if not isinstance(value, kind):
        raise Malformed("its parts do not fit together")
    return value


def _name(key):
    if not isinstance(key, str):
        raise Malformed(f"a name is {kind_of(key)}", "does not hold named weights: ")
    if len(key) > LONGEST_NAME or not key.isprintable():
        raise Malformed(f"a name in it has more than {LONGEST_NAME} characters or some that cannot be printed")
    return key


def kind_of(value: object) -> str:
    """What a message calls a value."""
    return "an array" if isinstance(value, Array) else f"a {type(value).__name__}"


def _builder(name):
    if name not in BUILDERS:
        raise Malformed(f"it asks for {name[:60]!r}, and a checkpoint may hold arrays, text and numbers only")
    return BUILDERS[name]


# --- what can be built ------------------------------------------------------------------------------------------------

class _Unfinished:
    """An object that a pickle makes empty and then fills."""

    def finish(self, *state):
        raise NotImplementedError


class _Dtype(_Unfinished):
    """numpy.dtype(kind, align, copy), of plain numbers."""

    def __init__(self, kind, align=False, copy=True):
        if kind not in NUMBERS:
            raise Malformed(f"it holds an array of something else than numbers: {str(kind)[:20]!r}")
        self.dtype = np.dtype(kind)

    def finish(self, version, order, *others):
        if order not in ("<", "|"):  # on all machines that Paddle runs on
            raise Malformed("it holds numbers in another order of bytes")


class Array(_Unfinished):
    """numpy.ndarray, empty at first."""

    def __init__(self):
        self.content = None

    def finish(self, version, shape, kind, fortran, content):
        self.content = _array(content, kind, shape, "F" if fortran else "C")

    def finished(self) -> np.ndarray:
        """The array, which is a view of what was read. Raises `Malformed` for one that was never filled."""
        if self.content is None:
            raise Malformed("it holds an array without content")
        return self.content


class _Builder:
    """A function that a pickle may call."""

    def __init__(self, function: Callable):
        self.function = function


def _array(content, kind, shape, order):
    if isinstance(content, str):
        content = content.encode("latin1")  # of Python 2
    dtype, content = require(kind, _Dtype).dtype, require(content, (bytes, bytearray))
    if len(require(shape, tuple)) > MAX_AXES or not all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape):
        raise Malformed("it holds an array of an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise Malformed(f"it holds an array whose {len(content)} bytes are not those of its shape")
    return np.ndarray(shape, dtype, content, order=order)


def _reconstruct(kind, shape, typecode):
    if kind is not BUILDERS["numpy ndarray"]:
        raise Malformed("it holds an array of an unknown kind")
    return Array()


def _from_buffer(content, kind, shape, order):
    array = Array()
    array.content = _array(content, kind, shape, order)
    return array


def _scalar(kind, content):
    return _array(content, kind, (), "C")[()]


def _encode(text, encoding):
    """Bytes, as Python 3 writes them for protocol 2."""
    if encoding != "latin1":
        raise Malformed("it holds bytes in an unknown encoding")
    return require(text, str).encode("latin1")


def _no_call(*arguments):
    raise Malformed("it holds an array of an unknown kind")


BUILDERS = {"numpy ndarray": _Builder(_no_call), "numpy dtype": _Builder(_Dtype), "_codecs encode": _Builder(_encode)}
BUILDERS |= dict.fromkeys(("builtins tuple", "__builtin__ tuple"), _Builder(lambda items: require(items, tuple)))
BUILDERS |= dict.fromkeys(("builtins bytes", "__builtin__ bytes"), _Builder(lambda: b""))  # empty ones in protocol 2
BUILDERS |= {"collections OrderedDict": _Builder(lambda: {})}
for _core in ("core", "_core"):  # before and since numpy 2
    BUILDERS |= {f"numpy.{_core}.multiarray _reconstruct": _Builder(_reconstruct),
                 f"numpy.{_core}.multiarray scalar": _Builder(_scalar),
                 f"numpy.{_core}.numeric _frombuffer": _Builder(_from_buffer)}
