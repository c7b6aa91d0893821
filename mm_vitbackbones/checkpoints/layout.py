"""The layouts that a family's weights are published in: names by a table, tensors by named surgery.

All surgery works on our names, so that families and layouts share it. A ``Surgery`` splits or joins tensors to get our
form, and undoes that bit for bit. What only the classifier has is kept under names that begin with ``classifier.``: a
backbone does not use it, but a conversion back needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mm_vitbackbones.checkpoints.key_map import KeyMap
from mm_vitbackbones.errors import CheckpointError

State = dict[str, Tensor]
CLASSIFIER = "classifier."


@dataclass(frozen=True)
class Surgery:
    """Two functions of a state dict under our names, each the inverse of the other."""

    to_ours: Callable[[State], State]
    to_theirs: Callable[[State], State]


@dataclass(frozen=True)
class Layout:
    """One naming of a family's weights.

    Args:
        name: official, openmmlab, huggingface, timm or ours; timm-features for the names of timm's ``features_only``.
        marks: keys that every file of this layout holds, and no file of another layout of the known families.
        keys: the table.
        surgery: steps from their tensors to ours, in this order.
        own_prefix: a prefix that a published file has before the backbone's keys and not before the classifier's.
        besides: beginnings of further keys of such a file, which are not the backbone's or the classifier's.
        without: keys that no file of this layout holds, where ``marks`` alone would fit files of others, too.
    """

    name: str
    marks: tuple[str, ...]
    keys: KeyMap
    surgery: tuple[Surgery, ...] = ()
    own_prefix: str = ""
    besides: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def to_ours(self, theirs: State) -> tuple[State, list[str]]:
        """The state under our names, and the keys that the table does not know."""
        state, unknown = _rename(theirs, self.keys.to_ours)
        for step in self.surgery:
            state = step.to_ours(state)
        return state, unknown

    def to_theirs(self, ours: State) -> tuple[State, list[str]]:
        """The state under their names, and our keys that this layout has no name for."""
        for step in reversed(self.surgery):
            ours = step.to_theirs(ours)
        return _rename(ours, self.keys.to_theirs)


@dataclass(frozen=True)
class Adapter:
    """Makes a tensor of another shape fit, where that is meaningful.

    Args:
        key: a pattern of our names.
        fit: (tensor, shape) -> tensor of that shape; ValueError where that is not meaningful.
        report: what was done, as a template of ``source`` and ``target``, both shapes.
    """

    key: re.Pattern[str]
    fit: Callable[[Tensor, torch.Size], Tensor]
    report: str


@dataclass(frozen=True)
class Family:
    """What the loader knows of a family of backbones, or of a head.

    Args:
        name: the registered class.
        layouts: each layout that its weights come in.
        adapters: the shapes that may differ.
        may_be_fresh: patterns of our names that published files lack by design.
        level_only: patterns of our names that a backbone lacks where it does not return their level.
        claims: whether weights under our names are of this family, asked where a file has the names of two; exactly
            one of them has to claim it.
        twins: for an arch, another network with the same names and shapes in the layouts that both have.
        cautions: (layout, arch, text): what to know of weights that are converted to that layout.
        also: (name, layout): another publisher's name for a layout that it has, too.
        spec_of: of a head, which has no archs: the arguments that weights under our names were made with.
        others: (name, pattern of a key): networks whose files have some of the same names, and no weights for this one.
    """

    name: str
    layouts: tuple[Layout, ...]
    adapters: tuple[Adapter, ...] = ()
    may_be_fresh: tuple[str, ...] = ()
    level_only: tuple[str, ...] = ()
    claims: Callable[[State], bool] = lambda ours: True
    twins: tuple[tuple[str, str], ...] = ()
    cautions: tuple[tuple[str, str, str], ...] = ()
    also: tuple[tuple[str, str], ...] = ()
    spec_of: Callable[[State], str] | None = None
    others: tuple[tuple[str, str], ...] = ()

    def layout(self, name: str) -> Layout:
        """The layout of this name; CheckpointError if the family has none."""
        wanted = dict(self.also).get(name, name)
        for layout in self.layouts:
            if layout.name == wanted:
                return layout
        names = [*(x.name for x in self.layouts), *dict(self.also)]
        raise CheckpointError(f"{self.name} has no layout {name!r}; it has {', '.join(names)}")

    def files_may_lack(self, key: str) -> bool:
        """Whether published files lack the tensor of this name by design; backbones may, too."""
        return any(re.fullmatch(pattern, key) for pattern in self.may_be_fresh)

    def is_optional(self, key: str) -> bool:
        """Whether a backbone may lack the tensor of this name without lacking its stage."""
        return any(re.fullmatch(pattern, key) for pattern in self.may_be_fresh + self.level_only)

    def adapter(self, key: str) -> Adapter | None:
        """The adapter for the tensor of this name, if there is one."""
        return next((adapter for adapter in self.adapters if adapter.key.fullmatch(key)), None)


def _rename(state: State, rename: Callable[[str], str | None]) -> tuple[State, list[str]]:
    renamed: State = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        name = rename(key)
        if name is None:
            unknown.append(key)
        elif name in renamed:
            raise CheckpointError(f"two keys of the file stand for {name}, the second is {key}: keep one of them")
        else:
            renamed[name] = tensor
    return renamed, unknown
