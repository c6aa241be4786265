"""Reading .pdparams and .pdopt, files that are not trusted.

Paddle writes them as pickles, and `paddle.load` does whatever a pickle asks for; here `pickles` reads them.
"""

import numpy as np

from ..system import pickles
from ..system.errors import UserError
from ..system.pickles import Malformed

NAME_TABLE = "StructuredToParameterName@@"  # Paddle's own name of each tensor; we need none
SPLIT_TENSORS = "UnpackBigParamInfor@@"  # which tensors of a gigabyte and more lie in slices (protocols 2 and 3)


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupt, foreign or for another net."""


def read(path: str) -> dict[str, object]:
    """What Paddle has saved at `path` under each name: read-only numpy arrays, or plain data for the caller to judge.

    Raises `CheckpointError` for a file that cannot be read, is not a pickle of named values, is torn, or asks for more
    than data.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        content = pickles.interpret(data)
        if not isinstance(content, dict):
            raise Malformed(f"but {pickles.kind_of(content)}", "does not hold named weights, ")
        return _joined({name: _value(value) for name, value in content.items() if name != NAME_TABLE}, len(data))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} is too large for the memory of this machine") from error
    except Malformed as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # whatever pickletools and numpy think of bytes without meaning
        raise CheckpointError(f"{path} is not a Paddle checkpoint, or is corrupt") from error


def _value(value):
    """A value of the dictionary as it is for the caller: an array, also where Paddle has put its name beside it."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], pickles.Array):
        value = value[1]
    return value.finished() if isinstance(value, pickles.Array) else value


def _joined(content, size):
    """The same with tensors in one piece that lie in slices. size: bytes of the file."""
    for name, info in pickles.require(content.pop(SPLIT_TENSORS, {}), dict).items():
        slices = [pickles.require(content.pop(part), np.ndarray) for part in info["slices"]]
        size -= sum(each.nbytes for each in slices)
        if size < 0:
            raise Malformed("it repeats its bytes")
        content[name] = np.concatenate(slices).reshape(info["OriginShape"])
    return content
