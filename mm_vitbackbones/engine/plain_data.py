"""Checkpoints as plain data, which ``torch.load(weights_only=True)`` reads in any process.

MMEngine keeps histories of scalars, NumPy arrays and functions next to the weights. Since torch 2.6 such a file cannot
be loaded without naming each of these types first. ``make_plain`` replaces them by tensors, numbers, strings, lists and
dicts, and ``restore`` turns back what a resumed run needs as it was. A replaced object is a dict with ``MARK`` in it.
"""

from __future__ import annotations

import datetime
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

MARK = "mm_vitbackbones.type"
"""The key of a replaced object's type."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.Size, torch.dtype, torch.device)


def make_plain(checkpoint: MutableMapping[str, Any]) -> list[str]:
    """Replace, in a checkpoint, what ``weights_only=True`` refuses.

    What describes the data set (``meta``) becomes lists and strings, and the state of schedulers lists and dicts, which
    the libraries read as they are. Functions in that state are left out: the config makes them again.

    Returns:
        the places, with the types, of what is of an unknown type. It stays as it is.
    """
    unknown: list[str] = []
    for key, value in checkpoint.items():
        schedulers = key == "param_schedulers"
        checkpoint[key] = _Plain(key != "meta" and not schedulers, not schedulers, unknown)(value, key)
    return unknown


def restore(checkpoint: MutableMapping[str, Any]) -> None:
    """Turn back what ``make_plain`` has replaced with a mark. Files without marks stay as they are."""
    for key, value in checkpoint.items():
        checkpoint[key] = _restored(value)


class _Plain:
    """Plain data for any value; the value itself where it is plain already."""

    def __init__(self, marked: bool, functions: bool, unknown: list[str]) -> None:
        self.marked, self.functions, self.unknown = marked, functions, unknown

    def __call__(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, torch.Tensor):
            return value
        if isinstance(value, np.generic):
            return self(value.item(), where) if not isinstance(value.item(), np.generic) else str(value)
        base: Any
        for base in (int, float, str, bytes):  # an enumeration, a class of the user's
            if isinstance(value, base):
                return base.__new__(base, value)
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if isinstance(value, HistoryBuffer):
            log, count = value.data
            parts = {"log": self._array(log, where), "count": self._array(count, where), "max": int(value.max_length)}
            return {MARK: "HistoryBuffer", **parts}
        if isinstance(value, Counter) and self.marked:
            return {MARK: "Counter", "items": self(dict(value), where)}
        if isinstance(value, (set, frozenset)):
            items = [self(item, where) for item in sorted(value, key=repr)]
            return {MARK: "set", "items": items} if self.marked else items
        if isinstance(value, Mapping):
            return self._mapping(value, where)
        if isinstance(value, (list, tuple, deque)):
            items = [self(item, f"{where}[{index}]") for index, item in enumerate(value)]
            if kind in (list, tuple) and all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, (PurePath, datetime.date, datetime.time, datetime.timedelta)):
            return str(value)
        self.unknown.append(f"{where} ({kind.__module__}.{kind.__qualname__})")
        return value

    def _mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        plain: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        same = type(value) in (dict, OrderedDict)
        for key, item in value.items():
            if not self.functions and callable(item) and not isinstance(item, torch.Tensor):
                same = False
                continue
            name, new = self(key, where), self(item, f"{where}.{key}")
            same &= name is key and new is item
            plain[name] = new
        # A state dict has the versions of its modules as an attribute: where nothing is replaced it stays.
        return value if same else plain

    def _array(self, array: np.ndarray, where: str) -> Any:
        if not self.marked or array.dtype.kind not in "biufc":
            return self(array.tolist(), where)
        try:
            tensor = torch.from_numpy(np.array(array))
        except TypeError:  # a type that torch has not
            return self(array.tolist(), where)
        return {MARK: "ndarray", "tensor": tensor}


def _history(content: Mapping[str, Any]) -> HistoryBuffer:
    log, count = (_restored(content[key]) for key in ("log", "count"))
    return HistoryBuffer(log, count, content["max"])


_RESTORING: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "HistoryBuffer": _history,
    "Counter": lambda content: Counter(_restored(content["items"])),
    "set": lambda content: {_restored(item) for item in content["items"]},
    "ndarray": lambda content: content["tensor"].cpu().numpy(),
}


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        if (make := _RESTORING.get(str(value.get(MARK)))) is not None:
            return make(value)
        for key, item in value.items():
            if (new := _restored(item)) is not item:
                value[key] = new
    elif type(value) in (list, tuple):
        items = [_restored(item) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return type(value)(items)
    return value


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same as plain data; a list equals a tuple of the same items."""
    one, other = (_Plain(marked=False, functions=False, unknown=[])(value, "") for value in (one, other))
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return torch.is_tensor(one) and torch.is_tensor(other) and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(itertools.starmap(equal, zip(one, other, strict=True)))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return bool(one == other)
