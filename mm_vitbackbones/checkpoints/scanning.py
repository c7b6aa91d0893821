"""What a pickle would do, found by following its opcodes without doing any of it.

A pickle of a few bytes can ask for gigabytes, for a depth that overflows the stack, or for a time without end.
PyTorch's restricted unpickler prevents none of that. So its opcodes are followed first, with outlines in place of
objects: a tuple knows its depth and the cost of its hash, a storage its size. That takes a time that is linear in the
file. What goes over a limit (see ``limits``), and what reads outside of its storage, is an error.

Only the opcodes that the restricted unpickler knows are followed: no other one passes.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping, Sequence
from struct import unpack_from
from typing import Any

import torch

from mm_vitbackbones import limits
from mm_vitbackbones.errors import CheckpointError, UnsafeCheckpointError, printable
from mm_vitbackbones.limits import Limit

Buffer = Any
"""bytes or a memory map."""

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}

_ELEMENT = 64
"""Bytes that an entry of a list or dict takes, roughly."""

_LONGEST_NAME = 1_000

_STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
    "UntypedStorage": 1,
}
"""Bytes of an element, by the class's name."""

_OF_TORCH = {
    "torch",
    "torch.cuda",
    "torch.cuda.sparse",
    "torch.sparse",
    "torch.storage",
    "torch._utils",
    "torch._tensor",
    "torch.serialization",
    "torch.nn.parameter",
}
"""Modules of which the restricted unpickler takes some names for the real ones."""

_PARAMETER = "torch.nn.parameter.Parameter"

_NESTED = ("torch.nested.", "torch._utils._rebuild_nested_tensor")
"""How the names begin that a nested tensor is made by, jagged or strided."""

_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

DICT, LIST, OPAQUE, ANY = "dict", "list", "opaque", "any"
"""What a call of an unknown name stands for; see ``Scan``."""


class _Name(str):
    """A class or function that the pickle names."""

    __slots__ = ()


class _Node:
    """The outline of an object.

    Args:
        kind: dict, list, tuple, set, tensor, storage, opaque or any.
        items: what is in it; for a dict, the objects among its values.
    """

    __slots__ = ("count", "depth", "items", "kind", "weight")

    def __init__(self, kind: str, items: Any = ()) -> None:
        self.kind, self.items = kind, items
        self.count = 0  # entries of a dict
        self.depth = self.weight = 1  # of tuples within tuples; what their hash costs

    def add(self, values: Sequence[Any]) -> None:
        if self.items == ():
            self.items = []
        self.items += values


class _Storage(_Node):
    __slots__ = ("element", "numel")

    def __init__(self, numel: int, element: int) -> None:
        super().__init__("storage")
        self.numel, self.element = numel, element


class Scan:
    """Follows the pickles of one file.

    Args:
        size: bytes of the file.
        values: what a call of a name that is not PyTorch's makes.
        strict: refuse other calls of such names. If not, what they make may be anything.
        records: bytes of each storage in a zip archive; None for the older form.

    Attributes:
        names: (module, name) of all that the pickles refer to, with the Python 2 names as Python 3 has them.
    """

    def __init__(
        self, size: int, values: Mapping[str, str], strict: bool = True, records: Mapping[str, int] | None = None
    ) -> None:
        self.size, self.values, self.strict, self.records = size, values, strict, records
        self.names: set[tuple[str, str]] = set()
        self._foreign: set[str] = set()
        self._storages: dict[Any, _Storage] = {}
        self._opcodes = self._calls = self._uses = self._odd_keys = self._copied = self._viewed = self._stored = 0
        self._most_opcodes = limits.OPCODES.value
        self._most_depth = min(limits.DEPTH.value, 4 * limits.DEPTH.most)  # Python's own stack ends later
        self._most_lookups = limits.LOOKUPS.value
        self._most_calls = limits.CALLS.value
        self._most_copied = limits.COPIES.value + 16 * size
        self._most_odd_keys, self._most_names = limits.ODD_KEYS.value, limits.CLASSES.value

    def pickle(self, data: Buffer, start: int = 0) -> tuple[Any, int]:
        """Follow one pickle.

        Returns:
            what it holds, as far as that is a number, text or a name; and where it ends.

        Raises:
            UnsafeCheckpointError: it asks for something to be called, or has other opcodes than ``torch.save`` writes.
            CheckpointError: it asks for more than the limits allow.
            Exception: it is damaged.
        """
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        steps, end = self._STEPS, len(data)
        most = self._most_opcodes - self._opcodes
        count = 0
        while True:
            if self.at >= end:
                raise EOFError("the pickle has no end")
            opcode = data[self.at]
            self.at += 1
            count += 1
            if count > most:
                self._over(limits.OPCODES, self._opcodes + count)
            if opcode == _STOP:
                break
            step = steps.get(opcode)
            if step is None:
                if (name := _NAMES.get(opcode)) is None:
                    raise ValueError(f"there is no opcode {opcode:#x}")
                raise UnsafeCheckpointError(
                    f"its pickle has the opcode {name}, which torch.save does not write with its pickle_protocol=2"
                )
            step(self)
        self._opcodes += count
        found = self.stack.pop()
        self._check_shape(found)
        self._over(limits.VALUES, self._viewed, 8 * self._stored)
        return found, self.at

    # ---- limits

    def _over(self, limit: Limit, found: int, besides: int = 0) -> None:
        if why := limit.exceeded(found, besides):
            raise CheckpointError(f"has {self.size:,} bytes and asks for {why}")

    def _too_deep(self, found: int, most: int) -> None:
        self._over(limits.DEPTH, found, most - limits.DEPTH.value)

    def _copy(self, size: int) -> None:
        self._copied += size
        if self._copied > self._most_copied:
            self._over(limits.COPIES, self._copied, 16 * self.size)

    def _use(self, name: str) -> None:
        if name not in _KNOWN:
            self._uses += 1
            if self._uses * len(self.names) > self._most_lookups:
                self._over(limits.LOOKUPS, self._uses * len(self.names))

    def _call(self) -> None:
        self._calls += 1
        if self._calls > self._most_calls:
            self._over(limits.CALLS, self._calls)

    def _key(self, key: Any) -> None:
        """A key of a dict, or an item of a set."""
        kind = type(key)
        if kind is str or kind is bytes or kind is bool or key is None:
            return
        if kind is int and -(2**31) <= key < 2**32:
            return
        self._odd_keys += 1
        if self._odd_keys > self._most_odd_keys:
            self._over(limits.ODD_KEYS, self._odd_keys)
        if kind is _Node and key.kind == "tuple":
            self._copy(key.weight * _ELEMENT)

    def _check_shape(self, root: Any) -> None:
        """Check how deep an object is, and how large if it is walked through without a memory of what was seen. Where a
        container holds itself, the walk stops."""
        if not isinstance(root, _Node):
            return
        sizes: dict[int, int] = {}
        path, sums, ahead = [(root, iter(root.items))], [1], {id(root)}
        while path:
            node, items = path[-1]
            for item in items:
                size = sizes.get(id(item)) if isinstance(item, _Node) else 1
                if size is None and item.items and id(item) not in ahead:
                    ahead.add(id(item))
                    path.append((item, iter(item.items)))
                    sums.append(1)
                    if len(path) > self._most_depth:
                        self._too_deep(len(path), self._most_depth)
                    break
                sums[-1] += size or 1
            else:
                path.pop()
                sizes[id(node)] = min(sums.pop(), 2**62)
                if sums:
                    sums[-1] += sizes[id(node)]
        self._over(limits.WALK, sizes[id(root)])

    # ---- what opcodes do

    def _take(self, size: int) -> bytes:
        begin, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise EOFError(f"the pickle asks for {size:,} bytes, and the file ends before")
        return self.data[begin : self.at]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _LONGEST_NAME)
        if end < 0:
            raise UnsafeCheckpointError(f"it has a name of more than {_LONGEST_NAME} characters")
        line = self.data[self.at : end]
        self.at = end + 1
        return line.decode()

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _global(self) -> None:
        module, name = self._line(), self._line()
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = _Name(f"{module}.{name}")
        if full.startswith(_NESTED):
            raise CheckpointError(
                f"holds a nested tensor{self._place()}, and those are not read: save the plain model's state_dict()"
            )
        if (module, name) not in self.names:
            self.names.add((module, name))
            if len(self.names) > self._most_names:
                self._over(limits.CLASSES, len(self.names))
            if full not in _KNOWN and module not in _OF_TORCH:
                self._foreign.add(full)
        self._use(full)
        self._push(full)

    def _place(self) -> str:
        """Under which key of a dict the pickle is, as " under KEY"; empty where there is no text for one."""
        frames = [*self.marks, self.stack]
        of_dicts, of_others = "", ""
        for index, frame in enumerate(frames):
            last = frames[index - 1][-1] if index and frames[index - 1] else None
            if text := next((item for item in reversed(frame) if type(item) is str), ""):
                of_others = text
                if not _is(last, LIST):
                    of_dicts = text
        key = of_dicts or of_others
        return f" under {printable(key[:200])}" if key else ""

    def _mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []
        if len(self.marks) > 2 * self._most_depth:
            self._too_deep(len(self.marks), 2 * self._most_depth)

    def _pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the pickle takes more from its stack than there is")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _tuple(self, items: list[Any]) -> None:
        node = _Node("tuple", items)
        for item in items:
            if type(item) is _Node and item.kind == "tuple":
                node.depth = max(node.depth, item.depth + 1)
                node.weight += item.weight
            else:
                node.weight += 1
        if node.depth > self._most_depth:
            self._too_deep(node.depth, self._most_depth)
        node.weight = min(node.weight, 2**62)
        self._push(node)

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not (isinstance(target, _Node) and target.kind in (LIST, ANY)):
            raise UnsafeCheckpointError("it appends to something that is no list")
        target.add(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not (isinstance(target, _Node) and target.kind in (DICT, ANY)):
            raise UnsafeCheckpointError("it sets items of something that is no dict")
        if len(items) % 2:
            raise IndexError("a key without a value")
        for key in items[::2]:
            self._key(key)
        target.count += len(items) // 2
        if children := [item for item in items if isinstance(item, _Node)]:
            target.add(children)

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _build(self) -> None:
        target, state = self._pop(2)
        self._push(target)
        if not (isinstance(target, _Node) and target.kind in (DICT, OPAQUE, ANY)):
            raise UnsafeCheckpointError("it sets the state of something that is neither a dict nor an unknown object")
        self._use("")
        if target.kind == DICT and not (isinstance(state, _Node) and state.kind in (DICT, "tuple")):
            raise UnsafeCheckpointError(f"it sets a state that is no dict{self._place()}")
        if isinstance(state, _Node):
            self._copy(_ELEMENT * max(state.count, len(state.items)))
            target.add([state])

    def _new(self) -> None:
        cls, args = self._pop(2)
        items = self._arguments(cls, args)
        self._call()
        self._use(cls)
        if cls in ("collections.OrderedDict", "collections.Counter") and not items:
            self._push(_Node(DICT))
        elif cls == "builtins.set" and not items:
            self._push(_Node("set"))
        elif cls == _PARAMETER and items and _is(items[0], "tensor"):
            self._push(_Node("tensor"))
        elif cls in self._foreign:
            self._push(_Node(DICT if self.strict else ANY))
        else:
            raise UnsafeCheckpointError(
                f"it asks for an object of {cls}{self._place()}, which a checkpoint has no need of"
            )

    def _reduce(self) -> None:
        function, args = self._pop(2)
        items = self._arguments(function, args)
        self._call()
        self._use(function)
        self._push(self._result(function, items))

    def _arguments(self, function: Any, args: Any) -> list[Any]:
        if type(function) is not _Name:
            raise UnsafeCheckpointError("it asks for a call of something that is no name")
        if not _is(args, "tuple"):
            raise UnsafeCheckpointError(f"it gives {function} arguments that are no tuple")
        self._copy(_ELEMENT * len(args.items))
        return args.items

    def _result(self, function: str, items: list[Any]) -> Any:
        if call := _CALLS.get(function):
            return call(self, items)
        if function in self.values:
            # An array's own pickle makes it empty, and then gives its values.
            if function.endswith("._reconstruct") and _ints(items[1]) != [0]:
                raise UnsafeCheckpointError(f"it asks for an array that is not empty by {function}")
            return _Node(self.values[function] if self.strict else ANY)
        if self.strict or function.startswith("torch."):
            raise UnsafeCheckpointError(
                f"it asks for a call of {function}{self._place()}, which a checkpoint has no need of"
            )
        return _Node(ANY)

    def _persistent(self) -> None:
        """A storage: ('storage', class, key, device, number of elements), and in the older form a view or None."""
        (pid,) = self._pop(1)
        parts = pid.items if _is(pid, "tuple") else []
        if len(parts) not in (5, 6) or parts[0] not in ("storage", b"storage"):
            raise UnsafeCheckpointError("it refers to something outside of it that is no storage")
        kind, key, numel = parts[1], parts[2], parts[4]
        element = _STORAGES.get(kind.rpartition(".")[2], 0) if type(kind) is _Name else 0
        if not element or type(numel) is not int or type(key) not in (str, bytes, int):
            raise UnsafeCheckpointError("it has a storage without a known type, size and key")
        size = numel * element
        if (known := self._storages.get(key)) is None:
            if self.records is None:
                most = self.size - self._stored
            else:
                most = self.records.get(key if type(key) is str else str(key), -1)
            if not 0 <= size <= most:
                raise _damaged(
                    f"its storage {str(key)[:40]!r} is said to have {size:,} bytes, and the file holds "
                    f"{max(most, 0):,} of it"
                )
            self._stored += size
            known = self._storages[key] = _Storage(numel, element)
        elif (known.numel, known.element) != (numel, element):
            raise _damaged(f"its storage {str(key)[:40]!r} is said to have two sizes")
        if len(parts) == 6 and parts[5] is not None:
            known = self._view(known, parts[5])
        self._push(known)

    def _view(self, root: _Storage, view: Any) -> _Storage:
        key, begin, numel = view.items
        if (
            type(key) not in (str, bytes, int)
            or type(begin) is not int
            or type(numel) is not int
            or not 0 <= begin <= begin + numel <= root.numel
        ):
            raise _damaged("a view of a storage is outside of it")
        return self._storages.setdefault(("view", key), _Storage(numel, root.element))

    # ---- what calls make

    def _tensor(self, items: list[Any], dtype: str = "") -> _Node:
        storage, offset, size, stride = items[:4]
        sizes, strides = _ints(size), _ints(stride)
        if not isinstance(storage, _Storage) or type(offset) is not int or sizes is None or strides is None:
            raise UnsafeCheckpointError("it has a tensor without a storage, an offset, a size and a stride")
        element = _DTYPES[dtype].itemsize if dtype else storage.element
        there = storage.numel * storage.element // element
        if len(sizes) != len(strides) or len(sizes) > 64 or min([offset, *sizes, *strides]) < 0:
            raise _damaged("a tensor has a negative size, or a size and a stride that do not fit")
        numel = 1
        for side in sizes:
            numel *= side
        last = offset + sum((side - 1) * step for side, step in zip(sizes, strides, strict=True))
        if numel and last >= there:
            raise _damaged(
                f"a tensor of shape {tuple(sizes)!r:.80} reaches to the value {last:,} of a storage that has {there:,}"
            )
        if numel * element >= 2**62:
            self._over(limits.VALUES, numel * element, 8 * self._stored)
        self._viewed += numel * element
        return _Node("tensor")

    def _tensor_of_type(self, items: list[Any]) -> _Node:
        dtype = items[6]
        if dtype not in _DTYPES:
            raise UnsafeCheckpointError("it has a tensor of no known type")
        return self._tensor(items, dtype)

    def _inner_call(self, items: list[Any]) -> _Node:
        function, _, args = items[:3]
        if function not in _TENSORS or not _is(args, "tuple"):
            raise UnsafeCheckpointError(f"it asks for a tensor made by {function!r:.80}{self._place()}")
        return self._result(function, args.items)

    def _parameter(self, items: list[Any]) -> _Node:
        if not items or not _is(items[0], "tensor"):
            raise UnsafeCheckpointError("it has a parameter that is no tensor")
        return _Node("tensor")

    def _any_tensor(self, items: list[Any]) -> _Node:
        return _Node("tensor", [item for item in items if isinstance(item, _Node)])

    def _ordered(self, items: list[Any]) -> _Node:
        node = _Node(DICT)
        if items:
            pairs = items[0].items if _is(items[0], LIST) else None
            if pairs is None or not all(isinstance(p, _Node) and len(p.items) == 2 for p in pairs):
                raise UnsafeCheckpointError("it has an ordered dict that is not made of pairs")
            for pair in pairs:
                self._key(pair.items[0])
            self._copy(_ELEMENT * len(pairs))
            node.count = len(pairs)
            node.add([pair.items[1] for pair in pairs if isinstance(pair.items[1], _Node)])
        return node

    def _counter(self, items: list[Any]) -> _Node:
        if items and not _is(items[0], DICT):
            raise UnsafeCheckpointError("it has a counter that is not made of a dict")
        node = _Node(DICT, list(items))
        node.count = items[0].count if items else 0
        self._copy(_ELEMENT * node.count)
        return node

    def _make_set(self, items: list[Any]) -> _Node:
        if not items or not _is(items[0], LIST):
            raise UnsafeCheckpointError("it has a set that is not made of a list")
        for item in items[0].items:
            self._key(item)
        self._copy(_ELEMENT * len(items[0].items))
        return _Node("set")

    def _size(self, items: list[Any]) -> _Node:
        sizes = _ints(items[0]) if items else []
        if sizes is None:
            raise UnsafeCheckpointError("it has a size that is not made of numbers")
        self._copy(_ELEMENT * len(sizes))
        return _Node("tuple", sizes)

    def _encode(self, items: list[Any]) -> bytes:
        if len(items) != 2 or type(items[0]) is not str or items[1] not in ("latin1", "latin-1", "utf-8", "ascii"):
            raise UnsafeCheckpointError("it encodes something in another way than bytes are written")
        self._copy(len(items[0]))
        return b""

    def _bytearray(self, items: list[Any]) -> _Node:
        if items and type(items[0]) is int:
            self._copy(max(items[0], 0))
        elif items and type(items[0]) not in (str, bytes):
            raise UnsafeCheckpointError("it has a bytearray that is not made of bytes")
        elif items:
            self._copy(len(items[0]))
        return _Node("bytes")

    def _small(self, items: list[Any]) -> _Node:
        if any(isinstance(item, _Node) or (isinstance(item, (str, bytes)) and len(item) > 100) for item in items):
            raise UnsafeCheckpointError("it has a device, a layout or a complex number of an unknown form")
        return _Node("value")

    _STEPS: Mapping[int, Callable[[Scan], None]] = {}


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(f"is damaged or truncated: {why}; download or copy it again")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _Node) and value.kind == kind


def _ints(value: Any) -> list[int] | None:
    """The numbers in a tuple or list; None for anything else."""
    if isinstance(value, _Node) and value.kind in ("tuple", LIST) and all(type(item) is int for item in value.items):
        return list(value.items)
    return None


_TENSORS: Mapping[str, Callable[[Scan, list[Any]], Any]] = {
    "torch._utils._rebuild_tensor": Scan._tensor,
    "torch._utils._rebuild_tensor_v2": Scan._tensor,
    "torch._utils._rebuild_tensor_v3": Scan._tensor_of_type,
    "torch._utils._rebuild_qtensor": Scan._tensor,
    "torch._utils._rebuild_parameter": Scan._parameter,
    "torch._utils._rebuild_parameter_with_state": Scan._parameter,
    "torch._utils._rebuild_sparse_tensor": Scan._any_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": Scan._any_tensor,
}

_CALLS: Mapping[str, Callable[[Scan, list[Any]], Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": Scan._inner_call,
    "collections.OrderedDict": Scan._ordered,
    "collections.Counter": Scan._counter,
    "builtins.set": Scan._make_set,
    "builtins.bytearray": Scan._bytearray,
    "builtins.complex": Scan._small,
    "_codecs.encode": Scan._encode,
    "torch.Size": Scan._size,
    "torch.device": Scan._small,
    "torch.serialization._get_layout": Scan._small,
}
"""What PyTorch's restricted unpickler calls, and how that is followed. It calls other things, too: none is needed."""

_KNOWN = {
    *_CALLS,
    *_DTYPES,
    _PARAMETER,
    *(f"{place}.{name}" for place in ("torch", "torch.cuda") for name in _STORAGES),
}
"""Names that PyTorch finds without a search."""


def _number(form: str, size: int) -> Callable[[Scan], None]:
    def step(scan: Scan) -> None:
        scan.stack.append(unpack_from(form, scan._take(size))[0])

    return step


def _constant(value: Any) -> Callable[[Scan], None]:
    return lambda scan: scan.stack.append(value)


def _empty(kind: str) -> Callable[[Scan], None]:
    return lambda scan: scan.stack.append(_Node(kind))


def _tuple_of(count: int) -> Callable[[Scan], None]:
    return lambda scan: scan._tuple(scan._pop(count))


def _unicode(scan: Scan) -> None:
    (size,) = unpack_from("<I", scan._take(4))
    scan.stack.append(str(scan._take(size), "utf-8", "surrogatepass"))


def _string(scan: Scan) -> None:
    scan.stack.append(scan._take(scan._take(1)[0]))


def _long(scan: Scan) -> None:
    scan.stack.append(int.from_bytes(scan._take(scan._take(1)[0]), "little", signed=True))


def _skip(scan: Scan) -> None:
    scan._take(1)


_STOP = ord(".")
_FLOAT = _number(">d", 8)
Scan._STEPS = {
    ord(code): step
    for code, step in {
        "\x80": _skip,
        "c": Scan._global,
        "(": Scan._mark,
        "t": lambda scan: scan._tuple(scan._pop_mark()),
        ")": lambda scan: scan._tuple([]),
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "a": lambda scan: scan._append(scan._pop(1)),
        "e": lambda scan: scan._append(scan._pop_mark()),
        "s": lambda scan: scan._set(scan._pop(2)),
        "u": lambda scan: scan._set(scan._pop_mark()),
        "b": Scan._build,
        "\x81": Scan._new,
        "R": Scan._reduce,
        "Q": Scan._persistent,
        "N": _constant(None),
        "\x89": _constant(False),
        "\x88": _constant(True),
        "]": _empty(LIST),
        "}": _empty(DICT),
        "\x8f": _empty("set"),
        "J": _number("<i", 4),
        "K": _number("<B", 1),
        "M": _number("<H", 2),
        "G": _FLOAT,
        "X": _unicode,
        "U": _string,
        "\x8a": _long,
        "h": lambda scan: scan.stack.append(scan.memo[scan._take(1)[0]]),
        "j": lambda scan: scan.stack.append(scan.memo[unpack_from("<I", scan._take(4))[0]]),
        "q": lambda scan: scan._put(scan._take(1)[0]),
        "r": lambda scan: scan._put(unpack_from("<I", scan._take(4))[0]),
    }.items()
}
