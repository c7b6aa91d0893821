"""Pickles of NumPy arrays, as detectron2 publishes weights (``model_final_*.pkl``), read without an unpickler.

Such a file is ``pickle.dump`` of dicts, plain data and arrays. Its opcodes are followed here, and nothing is ever
imported or called: a name of a class is a text, and the few calls of which an array's pickle is made are known by their
names. So there is no opcode that could do harm. Each takes a time that is linear in the bytes that it reads, and what
all arrays take together has a limit, however often they share their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import unpack
from typing import Any

import torch
from torch import Tensor

from mm_vitbackbones import limits
from mm_vitbackbones.errors import CheckpointError, UnsafeCheckpointError, printable

Buffer = Any
"""bytes or a memory map."""

_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "c8": torch.complex64,
    "c16": torch.complex128,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
"""PyTorch's types by the codes of NumPy's."""

_PROTOCOLS = range(2, 6)


class _Name(str):
    """A class or function that the pickle names."""

    __slots__ = ()


class _Mark:
    """Where the items of a container begin on the stack."""


@dataclass
class _Type:
    """A type of NumPy's; its byte order follows after it is made."""

    code: str
    order: str = "<"


@dataclass
class _Array:
    """An array's object, before its values follow."""

    tensor: Tensor | None = None


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a pickle of a protocol that is read here."""
    return len(head) > 1 and head[0] == 0x80 and head[1] in _PROTOCOLS


def holds_arrays(content: Any) -> bool:
    """Whether a dict, or one of the dicts in it, has a tensor."""
    values = content.values() if isinstance(content, dict) else ()
    return any(
        isinstance(value, Tensor) or (isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values()))
        for value in values
    )


def read(data: Buffer) -> Any:
    """What a pickle of arrays and plain data holds, with a tensor in place of each array.

    Raises:
        UnsafeCheckpointError: it asks for a class or a call that is not an array's.
        CheckpointError: its arrays are of a type that PyTorch lacks, or share their values more than files do.
        Exception: it is damaged.
    """
    return _Reader(data).read()


class _Reader:
    def __init__(self, data: Buffer) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def read(self) -> Any:
        while True:
            opcode = self.take(1)
            if opcode == b".":
                return _finished(self.stack.pop())
            if (step := _STEPS.get(opcode)) is None:
                raise UnsafeCheckpointError(f"its pickle has the opcode {opcode!r}, which plain data has no need of")
            step(self)

    # ---- bytes of the pickle

    def take(self, size: int) -> bytes:
        begin, self.at = self.at, self.at + size
        if size < 0 or self.at > len(self.data):
            raise EOFError(f"the pickle asks for {size:,} bytes, and the file ends before")
        return self.data[begin : self.at]

    def number(self, form: str, size: int) -> Any:
        return unpack(form, self.take(size))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        return str(self.take(end - self.at + 1), "utf-8").rstrip("\n")

    # ---- the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("the pickle takes more from its stack than there is")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return [_finished(item) for item in items]

    def to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _Mark:
            items.append(_finished(item))
        return items[::-1]

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise UnsafeCheckpointError("it appends to something that is no list")
        self.stack[-1].extend(items)

    def set(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise UnsafeCheckpointError("it sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, bytes, int)):
                raise UnsafeCheckpointError(
                    f"it has a key that is a {type(key).__name__}, and keys of weights are text"
                )
            self.stack[-1][_text_of(key)] = value

    # ---- what calls make

    def name(self, module: Any, name: Any) -> None:
        known = _Name(f"{module}.{name}").replace("numpy._core", "numpy.core")
        if known not in _CALLS and known not in ("numpy.ndarray", "collections.OrderedDict"):
            raise UnsafeCheckpointError(
                f"it asks for {printable(known[:200])}, and what torch.save did not write is read if it holds plain "
                "data and NumPy arrays alone"
            )
        self.push(_Name(known))

    def call(self, new: bool = False) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise UnsafeCheckpointError("it asks for a call of something that is no name")
        if function == "collections.OrderedDict" and not arguments:
            self.push({})
        elif (make := _CALLS.get(function)) and not new:
            self.push(make(self, *arguments))
        else:
            raise UnsafeCheckpointError(f"it asks for a call of {function}, which an array has no need of")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Type):
            target.order = _text_of(state[1])
        elif isinstance(target, _Array) and target.tensor is None:
            _, shape, kind, by_columns, values = state
            target.tensor = self.array(values, kind, shape, "F" if by_columns else "C")
        else:
            raise UnsafeCheckpointError("it sets the state of something that is no array")

    def array(self, values: Any, kind: Any, shape: Any, order: Any) -> Tensor:
        """The tensor of an array's bytes."""
        if not (isinstance(kind, _Type) and isinstance(values, (bytes, bytearray)) and isinstance(shape, tuple)):
            raise CheckpointError("has an array that is not made of numbers: save model.state_dict() with torch.save")
        if (dtype := _TYPES.get(kind.code)) is None:
            raise CheckpointError(
                f"has an array of NumPy's type {kind.code!r}, which PyTorch lacks: save it as float32"
            )
        if math.prod(shape) * dtype.itemsize != len(values) or min(shape, default=0) < 0:
            raise ValueError(f"an array of the shape {shape} has {len(values):,} bytes")
        self.copied += len(values)
        if why := limits.VALUES.exceeded(self.copied, 2 * len(self.data)):
            raise CheckpointError(f"has {len(self.data):,} bytes and asks for {why}")
        if not values:
            return torch.empty(shape, dtype=dtype)
        plain = torch.frombuffer(bytearray(values), dtype=torch.uint8)
        if kind.order == ">":
            part = dtype.itemsize // (2 if dtype.is_complex else 1)
            plain = plain.reshape(-1, part).flip(1).flatten()
        tensor = plain.view(dtype)
        if order == "F":
            return tensor.reshape(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
        return tensor.reshape(shape)

    def scalar(self, kind: Any, value: Any) -> Any:
        return self.array(value, kind, (), "C").item()

    def empty_array(self, cls: Any, shape: Any, code: Any) -> _Array:
        if cls != "numpy.ndarray":
            raise UnsafeCheckpointError(f"it has an array of the class {cls!r:.80}")
        return _Array()

    def type(self, code: Any, *_: Any) -> _Type:
        return _Type(_text_of(code))

    def encoded(self, text: Any, encoding: Any) -> bytes:
        """How the second protocol writes bytes."""
        return text.encode("latin1")

    def no_bytes(self) -> bytes:
        """How it writes empty ones."""
        return b""


def _text_of(value: Any) -> Any:
    """Text of Python 2, which is bytes, as text."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _finished(value: Any) -> Any:
    """A value as it stands in its container: an array as its tensor."""
    return value.tensor if isinstance(value, _Array) else value


_CALLS: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _Reader.empty_array,
    "numpy.core.multiarray.scalar": _Reader.scalar,
    "numpy.core.numeric._frombuffer": _Reader.array,
    "numpy.dtype": _Reader.type,
    "_codecs.encode": _Reader.encoded,
    "__builtin__.bytes": _Reader.no_bytes,
}
"""What the pickle of an array calls, by NumPy's own names, and what is done here."""

_Step = Callable[[_Reader], None]


def _skip(form: str, size: int) -> _Step:
    return lambda reader: reader.number(form, size)


def _value(value: Any) -> _Step:
    return lambda reader: reader.push(value)


def _number(form: str, size: int) -> _Step:
    return lambda reader: reader.push(reader.number(form, size))


def _bytes(form: str, size: int) -> _Step:
    return lambda reader: reader.push(reader.take(reader.number(form, size)))


def _text(form: str, size: int) -> _Step:
    return lambda reader: reader.push(str(reader.take(reader.number(form, size)), "utf-8", "surrogatepass"))


def _tuple_of(count: int) -> _Step:
    return lambda reader: reader.push(tuple(reader.pop(count)))


def _put(form: str, size: int) -> _Step:
    return lambda reader: reader.memo.__setitem__(reader.number(form, size), reader.stack[-1])


def _get(form: str, size: int) -> _Step:
    return lambda reader: reader.push(reader.memo[reader.number(form, size)])


def _integer(reader: _Reader) -> None:
    reader.push(int.from_bytes(reader.take(reader.take(1)[0]), "little", signed=True))


_STEPS: Mapping[bytes, _Step] = {
    b"\x80": _skip("<B", 1),  # the protocol
    b"\x95": _skip("<Q", 8),  # a frame's size
    b"c": lambda reader: reader.name(reader.line(), reader.line()),
    b"\x93": lambda reader: reader.name(*reader.pop(2)),
    b"(": _value(_Mark),
    b"t": lambda reader: reader.push(tuple(reader.to_mark())),
    b")": _value(()),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"]": lambda reader: reader.push([]),
    b"a": lambda reader: reader.append(reader.pop(1)),
    b"e": lambda reader: reader.append(reader.to_mark()),
    b"}": lambda reader: reader.push({}),
    b"s": lambda reader: reader.set(reader.pop(2)),
    b"u": lambda reader: reader.set(reader.to_mark()),
    b"R": _Reader.call,
    b"\x81": lambda reader: reader.call(new=True),
    b"b": _Reader.build,
    b"N": _value(None),
    b"\x88": _value(True),
    b"\x89": _value(False),
    b"J": _number("<i", 4),
    b"K": _number("<B", 1),
    b"M": _number("<H", 2),
    b"\x8a": _integer,
    b"G": _number(">d", 8),
    b"X": _text("<I", 4),
    b"\x8c": _text("<B", 1),
    b"\x8d": _text("<Q", 8),
    b"B": _bytes("<I", 4),
    b"C": _bytes("<B", 1),
    b"\x8e": _bytes("<Q", 8),
    b"\x96": _bytes("<Q", 8),  # a bytearray
    b"U": _bytes("<B", 1),  # text of Python 2
    b"T": _bytes("<i", 4),
    b"q": _put("<B", 1),
    b"r": _put("<I", 4),
    b"\x94": lambda reader: reader.memo.__setitem__(len(reader.memo), reader.stack[-1]),
    b"h": _get("<B", 1),
    b"j": _get("<I", 4),
}
"""What Python writes for plain data and arrays with the protocols 2 to 5."""
