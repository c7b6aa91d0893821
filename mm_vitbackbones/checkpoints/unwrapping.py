"""Takes the weights out of everything that a checkpoint file wraps them in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm_vitbackbones.checkpoints.layout import State
from mm_vitbackbones.errors import CheckpointError, shorten

CONTAINERS = ("state_dict", "model", "model_state", "model_ema", "state_dict_ema", "teacher", "student")
"""Where files keep their weights, next to other things. Of several the first is taken, and the log says so."""

COMPILED, PARALLEL = r"(^|(?<=\.))_orig_mod\.", r"^(module\.)+"
"""What ``torch.compile`` and parallel training put into the names of weights, as patterns."""

DEEPEST = 8
"""How deep containers may be nested. A dict can hold itself."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint."""

    state: State
    besides: tuple[str, ...] = ()
    """The file's entries next to the weights, such as an optimizer's state."""
    notes: tuple[str, ...] = ()
    """Which weights were taken, where the file holds several."""


def unwrap(content: Any) -> Weights:
    """The tensors of a checkpoint's content by name. ``torch.compile``'s ``_orig_mod.`` is removed from the names.

    Raises:
        CheckpointError: if it holds no state dict, or tensors without plain values.
    """
    besides: list[str] = []
    notes: list[str] = []
    for _ in range(DEEPEST):
        entries = _entries(content)
        holding = [name for name in CONTAINERS if _holds_tensors(entries.get(name))]
        if not holding:
            break
        if len(holding) > 1:
            notes.append(f"the file holds weights under {', '.join(holding)}: those under {holding[0]} were taken")
        besides += [_name(key) for key in entries if key != holding[0]]
        content = entries[holding[0]]
    entries = _entries(content)
    state = {k: Tensor.detach(v) for k, v in entries.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        size = f" of {len(content)}" if isinstance(content, (list, tuple, dict)) else ""
        holds = f"its content is of type {kind_of(content)}{size}"
        if entries:
            holds = f"it holds {shorten([_name(key) for key in entries])}"
        raise CheckpointError(f"holds no state dict ({holds}): save model.state_dict(), bare or under 'state_dict'")
    for key, tensor in state.items():
        fake = tensor.is_meta or hasattr(tensor, "fake_mode")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or fake:
            raise CheckpointError(
                f"{key} is quantized, sparse, nested or without data: save the plain model's state_dict()"
            )
    besides += [_name(key) for key in entries if not (isinstance(key, str) and key in state)]
    return Weights(_without(COMPILED, state), tuple(besides), tuple(notes))


def kind_of(content: Any) -> str:
    """What a file's content is, in a word."""
    return "tensor" if isinstance(content, Tensor) else type(content).__name__


def unwrap_model(content: Any) -> Weights:
    """The same for the file of a whole model, whose names begin with its parts': without ``module.`` before them."""
    weights = unwrap(content)
    return Weights(_without(PARALLEL, weights.state), weights.besides, weights.notes)


def _name(key: Any) -> str:
    """A key as text. What is neither text nor a number is named by its type: its own text may have no end."""
    return str(key)[:200] if isinstance(key, (str, int, float, bytes)) else f"a {kind_of(key)}"


def _entries(content: Any) -> dict[Any, Any]:
    # dict's own methods: a method that a pickle has set on a dict object is never called.
    return dict(dict.items(content)) if isinstance(content, dict) else {}


def _holds_tensors(content: Any) -> bool:
    """Whether there are tensors in a dict or in its containers."""
    pending, seen = [content], set[int]()
    while pending:
        entries = _entries(content := pending.pop())
        if any(isinstance(value, Tensor) for value in entries.values()):
            return True
        if id(content) not in seen:
            seen.add(id(content))
            pending += [entries[name] for name in CONTAINERS if name in entries]
    return False


def _without(prefix: str, state: State) -> State:
    renamed: State = {}
    for key, tensor in state.items():
        name = re.sub(prefix, "", key)
        if name in renamed:
            raise CheckpointError(f"two keys of the file stand for {name}, the second is {key}: keep one of them")
        renamed[name] = tensor
    return renamed
