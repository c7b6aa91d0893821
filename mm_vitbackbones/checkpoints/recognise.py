"""The families that have key tables, and what a file looks like by its keys and shapes."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from mm_vitbackbones.checkpoints import tables
from mm_vitbackbones.checkpoints.layout import CLASSIFIER, Family, Layout, State
from mm_vitbackbones.errors import CheckpointError
from mm_vitbackbones.registry import BACKBONES

_TABLED: list[Family] = tables.gather("FAMILY")

FAMILIES = {family.name: family for family in _TABLED if family.spec_of is None}
HEADS = {family.name: family for family in _TABLED if family.spec_of is not None}

# Files of other networks, by keys that all of them hold. A family that gets a table leaves this list.
OTHERS = (
    ("a hybrid of a ResNet and a ViT", r"patch_embed\.backbone\.stem\.conv\.weight"),
    ("an MViTv2 that widens in its feed-forward networks", r"stages\.1\.blocks\.0\.shortcut_proj_mlp\.weight"),
    ("an MViT of a kind that is not known here", r"blocks\.0\.attn\.pool_q\.weight"),
    ("a BEiT", r"blocks\.0\.attn\.q_bias"),
    ("a ViT with two attentions side by side in a block", r"blocks\.0\.attn1\.qkv\.weight"),
    ("a ViT with a stem of several convolutions", r"patch_embed\.proj\.0\.0\.weight"),
    ("a ViT of a kind that is not known here", r"blocks\.0\.attn\.qkv\.weight"),
    ("a ResNet", r"layer1\.0\.conv1\.weight"),
    ("a ConvNeXt", r"(stages|downsample_layers)\.0\.0\.(dwconv|0)\.weight"),
)

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Found:
    """Where a backbone was found in a state dict: its layout, and the prefix of its keys."""

    family: Family
    layout: Layout
    prefix: str

    def split(self, state: State) -> tuple[State, list[str]]:
        """The backbone's part (and its classifier's) under the layout's names, and the keys of everything else."""
        outer = self.prefix.removesuffix(self.layout.own_prefix)
        besides = tuple(outer + start for start in self.layout.besides)
        outside = [key for key in state if not key.startswith(outer) or key.startswith(besides)]
        inside = {
            key.removeprefix(outer).removeprefix(self.layout.own_prefix): tensor
            for key, tensor in state.items()
            if key.startswith(outer) and not key.startswith(besides)
        }
        return inside, outside


def find_layout(state: State, families: Iterable[Family] = FAMILIES.values()) -> Found | None:
    """The layout whose marks are among the keys, under any prefix; None if there is none. If two families have it,
    the one that claims the weights.

    Raises:
        CheckpointError: if there are several, such as a student and a teacher.
    """
    found = [
        Found(family, layout, prefix)
        for family in families
        for layout in family.layouts
        for prefix in _prefixes(state, layout.marks, layout.without)
    ]
    if len(found) > 1:
        found = [x for x in found if x.family.claims(x.layout.to_ours(x.split(state)[0])[0])]
    if len(found) > 1:
        where = ", ".join(repr(x.prefix) for x in found)
        raise CheckpointError(f"holds {len(found)} backbones, under the prefixes {where}: save the one that you mean")
    return found[0] if found else None


def _prefixes(keys: Collection[str], marks: tuple[str, ...], without: tuple[str, ...] = ()) -> list[str]:
    """The prefixes under which all the marks are found, and nothing that must not be there."""
    known, first = set(keys), marks[0]
    starts = {key.removesuffix(first) for key in keys if key == first or key.endswith(f".{first}")}
    return sorted(
        start
        for start in starts
        if all(start + mark in known for mark in marks) and not any(start + key in known for key in without)
    )


def find_archs(family: Family, ours: State) -> tuple[str, ...]:
    """The published archs that a state has the names and shapes of: one, or several if it lacks the later stages.

    A state that is the whole of one arch and the beginning of a deeper one is of the first. Of archs that differ only
    in what can be adapted, those that need the fewest adaptations are returned.
    """
    outlines = _outlines(family.name).items()
    fits = {arch: outline for arch, outline in outlines if not differences(family, outline, ours)}
    whole = {arch: x for arch, x in fits.items() if max(map(x.stage_of, ours), default=0) == x.last}
    archs = {arch: outline.shapes for arch, outline in (whole or fits).items()}
    adapted = {arch: sum(ours[k].shape != shapes[k] for k in ours if k in shapes) for arch, shapes in archs.items()}
    return tuple(arch for arch in archs if adapted[arch] == min(adapted.values()))


def differences(family: Family, whole: Outline, ours: State) -> list[str]:
    """The names that only one of them has, or that differ in shape; what adapters can fit may differ.

    Stages that the state does not reach are not compared: a detector may have been trained without them. Nor are
    optional parts that only one of them has.
    """
    given = {key: tensor.shape for key, tensor in ours.items() if not key.startswith(CLASSIFIER)}
    last = max(map(whole.stage_of, given), default=0)
    expected = {key: shape for key, shape in whole.shapes.items() if whole.stage_of(key) <= last}
    return sorted(
        key
        for key in given.keys() | expected.keys()
        if given.get(key) != expected.get(key)
        and not (family.adapter(key) if key in given and key in expected else family.is_optional(key))
    )


class Outline:
    """The names of a whole network's parameters and buffers, with the shape and the stage of each.

    Args:
        shapes: by name.
        stages: by name, as the parts of the network say; none for a head.
    """

    def __init__(self, shapes: Shapes, stages: Mapping[str, int]) -> None:
        self.shapes = shapes
        self.last = max(stages.values(), default=0)
        """The last stage."""
        self._stages: dict[str, set[int]] = {}
        for name, stage in stages.items():
            while name:
                self._stages.setdefault(name, set()).add(stage)
                name = name.rpartition(".")[0]

    def stage_of(self, name: str) -> int:
        """The stage of a name. For a name that the network does not have, such as an extra block, the stage of the
        names next to it; 0 if these have none or several."""
        while name and name not in self._stages:
            name = name.rpartition(".")[0]
        stages = self._stages.get(name, {0})
        return stages.copy().pop() if len(stages) == 1 else 0


def outline_of(family: Family, arch: object) -> Outline:
    """The outline of a backbone with all its levels; ValueError for an unknown arch."""
    with torch.device("meta"):
        backbone = BACKBONES.get(family.name)(arch=arch)
    return Outline(
        {key: tensor.shape for key, tensor in backbone.state_dict().items()},
        backbone.parameter_stages(),
    )


@functools.cache
def _outlines(name: str) -> dict[str, Outline]:
    return {arch: outline_of(FAMILIES[name], arch) for arch in BACKBONES.get(name).archs}


def twin_of(found: Found, arch: str | None) -> str | None:
    """The other network, such as 'MiT b5', whose files of this layout have the names and shapes of this arch's."""
    shared = any(found.layout in family.layouts for family in FAMILIES.values() if family is not found.family)
    return dict(found.family.twins).get(arch or "") if shared else None


def looks_like(state: State) -> str:
    """The network that a state dict seems to belong to, for messages."""
    if found := find_layout(state):
        family, layout = found.family, found.layout
        ours, _ = layout.to_ours(found.split(state)[0])
        if archs := find_archs(family, ours):
            twin = next(filter(None, (twin_of(found, arch) for arch in archs)), None)
            name = f"{family.name} {' or '.join(archs)}"
            return name + (f" (or {twin}, which has the same names and shapes)" if twin else "")
        return f"a {family.name} of no published arch"
    return find_pattern(OTHERS, state) or "no network that is known here"


def find_pattern(others: Iterable[tuple[str, str]], state: State) -> str | None:
    """The first name of (name, pattern) pairs whose pattern is the end of a key, from the beginning of a name on."""
    return next((name for name, pattern in others if any(re.search(rf"(^|\.){pattern}$", key) for key in state)), None)
