"""Pretrained weights into a backbone: all of them, or none and an error that says why."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.logging import print_log
from torch import nn

from mm_vitbackbones import adapters
from mm_vitbackbones.checkpoints import published
from mm_vitbackbones.checkpoints.layout import CLASSIFIER, Family, State
from mm_vitbackbones.checkpoints.reading import read_checkpoint
from mm_vitbackbones.checkpoints.recognise import (
    FAMILIES,
    HEADS,
    Found,
    Outline,
    find_archs,
    find_layout,
    find_pattern,
    looks_like,
    outline_of,
    twin_of,
)
from mm_vitbackbones.checkpoints.record import Licence
from mm_vitbackbones.checkpoints.unwrapping import unwrap
from mm_vitbackbones.errors import CheckpointError, CheckpointMismatch, counted, did_you_mean, shorten
from mm_vitbackbones.registry import BACKBONES

KNOWN = FAMILIES | HEADS
"""What has key tables, by the registered class's name."""

_LOGGED: set[Licence] = set()


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint and of a network's parameters. As text, it is the one line that is logged."""

    source: str
    layout: str
    loaded: tuple[str, ...]
    """Our names of the parameters and buffers that the file gave."""
    parameters: int
    """Values in them."""
    fresh: tuple[str, ...] = ()
    """Our names of those that files of this family lack by design; they keep their initial values."""
    adapted: tuple[str, ...] = ()
    """The file's tensors of another shape that were made to fit, each with what was done."""
    cast: tuple[str, ...] = ()
    """Conversions between types, each with the number of tensors."""
    left_out: tuple[str, ...] = ()
    """The file's keys that belong to a classifier."""
    unbuilt: tuple[str, ...] = ()
    """The file's parameters of stages and parts that the backbone does not have, under our names."""
    stages: tuple[int, ...] = ()
    """Those stages."""
    parts: tuple[str, ...] = ()
    """Those parameters that are of other parts."""
    outside: tuple[str, ...] = ()
    """The file's keys that are not part of a backbone, such as a detector's neck and head."""
    besides: tuple[str, ...] = ()
    """The file's entries next to the weights, such as an optimizer's state."""
    notes: tuple[str, ...] = ()
    part: str = "backbone"
    """What was loaded: a backbone or a head."""

    def __str__(self) -> str:
        share = "all" if not self.fresh else f"{len(self.loaded)} of {len(self.loaded) + len(self.fresh)}"
        unused = "of the classifier" if self.part == "backbone" else "as unused"
        groups = Counter(key.removeprefix("module.").split(".")[0] for key in self.outside)
        return "; ".join(
            [
                f"{self.source} ({self.layout} layout): {share} tensors of the {self.part} come from the file, "
                f"{self.parameters:,} parameters ({self.parameters / 1e6:.2f} M)",
                f"fresh: {shorten(self.fresh) or 'none'}",
                *self.adapted,
                *self.cast,
                *([f"left out, {unused}: {shorten(self.left_out)}"] if self.left_out else []),
                *(
                    [f"left out, of stages that are not built: {', '.join(map(str, self.stages))}"]
                    if self.stages
                    else []
                ),
                *([f"left out, as not built: {shorten(self.parts)}"] if self.parts else []),
                *([f"not of the {self.part}: {', '.join(f'{k} ({n})' for k, n in groups.items())}"] if groups else []),
                *([f"next to the weights: {shorten(self.besides)}"] if self.besides else []),
                *self.notes,
            ]
        )


def layout_of(module: nn.Module, state: State) -> str | None:
    """The layout in which a state dict holds a module's weights; None if it is no known layout, or if
    ``load_pretrained`` does not take such a module."""
    family = family_of(type(module))
    found = find_layout(state, [family]) if family else None
    return found.layout.name if found else None


def part_under_our_names(module: nn.Module, name: str, state: State) -> State:
    """The state of a whole network in which the part ``name``, the given module, has our names, whatever layout it came
    in. The rest is unchanged, and so are keys that the layout does not know. Tensors keep the file's values and shapes.

    Raises:
        CheckpointError: if the state holds several such parts, such as a student's and a teacher's.
    """
    family = family_of(type(module))
    if not family or not (found := find_layout(state, [family])):
        return state
    inside, outside = found.split(state)
    ours, unknown = found.layout.to_ours(inside)
    part = {f"{name}.{key}": tensor for key, tensor in ours.items() if not key.startswith(CLASSIFIER)}
    return {key: state[key] for key in outside} | part | {f"{found.prefix}{key}": inside[key] for key in unknown}


def family_of(cls: type) -> Family | None:
    """What the loader knows of a class: one of ours, or one that derives from one of ours; None for any other.

    A class is identified by the class object and not by its name. A class that is not registered yet was never
    imported, so no module is an instance of it.
    """
    registered = {
        BACKBONES.module_dict[name]: family for name, family in KNOWN.items() if name in BACKBONES.module_dict
    }
    return next((registered[base] for base in cls.__mro__ if base in registered), None)


def load_pretrained(
    backbone: nn.Module, checkpoint: str | os.PathLike[str] | Mapping[str, Any] | None, prefix: str | None = None
) -> LoadReport:
    """Loads published or own weights, of any layout that the backbone's family (or the head) is known in.

    The weights may be wrapped (``state_dict``, ``model``, ``model_ema``) and prefixed (``module.``, ``backbone.``).
    A stem for RGB images is adapted to the backbone's ``in_channels``, position tables are resized to its own. One
    line is logged.

    Args:
        backbone: one of ours, or a ``SegFormerHead``.
        checkpoint: the name of a published file of the backbone's arch, such as ``"imagenet1k"`` (see
            ``published.resolve``), a path, a URL, or what such a file holds.
        prefix: take only the weights whose names begin with it, in a file that holds several such networks.

    Raises:
        CheckpointMismatch: if a parameter of the backbone is not in the file, or one of the file not in the backbone.
        CheckpointError: if the file cannot be read, or holds NaN or infinite weights; for None (a config that
            names no file), and for the name of a file that does not exist.

    If it raises, the backbone is unchanged.
    """
    family = _family(backbone)
    if isinstance(checkpoint, Mapping):
        source, content = "the given state dict", dict(checkpoint)
    else:
        checkpoint = published.resolve(checkpoint, family.name, arch_name(backbone))
        source, content = os.fspath(checkpoint), read_checkpoint(checkpoint)
    try:
        report = _load(backbone, content, source, prefix)
    except CheckpointError as error:
        raise type(error)(f"{source}: {error}") from None
    print_log(str(report), logger="current")
    _log_licence(family.name, source)
    return report


def _load(backbone: nn.Module, content: Any, source: str, prefix: str | None) -> LoadReport:
    weights = unwrap(content)
    state = weights.state
    aside = [key for key in state if prefix and not key.startswith(prefix)]
    if prefix and not (state := {key: tensor for key, tensor in state.items() if key.startswith(prefix)}):
        near = did_you_mean(prefix, {key.partition(".")[0] + "." for key in aside})
        raise CheckpointError(f"no weight has a name that begins with prefix={prefix!r}{near}")
    family, network, whole = _family(backbone), _describe(backbone), state
    state, _ = adapters.split(whole)
    other = find_pattern(family.others, state)
    if other or not (found := find_layout(state, [family])):
        raise CheckpointMismatch(
            f"the file looks like {other or looks_like(state)}, and the {_part(family)} is {network}: give a file of "
            f"{family.name}; nothing was loaded"
        )
    inside, outside = found.split(whole)
    inside, adapted_by = adapters.split(inside)
    ours, unknown = found.layout.to_ours(inside)
    target, own = adapters.split(backbone.state_dict())
    if reason := adapters.misfit(adapted_by, own, required=False):
        raise CheckpointMismatch(f"{reason}; nothing was loaded")

    stage_of = _outline(backbone, family).stage_of
    built = max(map(stage_of, target))
    unbuilt = [k for k in ours if stage_of(k) > built or (k not in target and family.is_optional(k))]
    given = {key: t for key, t in ours.items() if not key.startswith(CLASSIFIER) and key not in unbuilt}
    fresh = [key for key in target if key not in given and family.files_may_lack(key)]
    prepared, adapted, misfits = _fit(given, target, family)
    missing = [key for key in target if key not in given and key not in fresh]
    unexpected = [key for key in given if key not in target]
    if missing or unexpected or misfits or unknown:
        difference = _difference(found, inside, unknown, ours, target, missing, unexpected, misfits)
        raise CheckpointMismatch(
            f"the file looks like {looks_like(state)} ({found.layout.name} layout), which is not {network}: "
            f"{difference}. {_advice(family, ours, backbone)}"
        )
    cast = Counter(
        f"{str(given[key].dtype)[6:]} to {str(target[key].dtype)[6:]}"
        for key in prepared
        if given[key].dtype != target[key].dtype
    )
    prepared = {key: tensor.to(target[key].dtype) for key, tensor in prepared.items()}
    _check_finite(given | adapted_by, prepared)
    backbone.load_state_dict(target | prepared | own | adapted_by)

    renamed = {key: found.layout.keys.to_ours(key) or "" for key in inside}
    split_off = set(ours) - set(renamed.values())
    twin = twin_of(found, arch_name(backbone))
    return LoadReport(
        source=source,
        layout=found.layout.name,
        loaded=(*prepared, *adapted_by),
        parameters=sum(tensor.numel() for tensor in prepared.values()),
        fresh=tuple(fresh),
        adapted=tuple(adapted),
        cast=tuple(f"{counted(count, 'tensor')} cast from {types}" for types, count in cast.items()),
        left_out=(
            *(key for key, name in renamed.items() if name.startswith(CLASSIFIER)),
            *sorted(key for key in split_off if key.startswith(CLASSIFIER)),
        ),
        unbuilt=tuple(unbuilt),
        stages=tuple(sorted({stage_of(key) for key in unbuilt if stage_of(key) > built})),
        parts=tuple(key for key in unbuilt if stage_of(key) <= built),
        outside=(*outside, *aside),
        besides=weights.besides,
        notes=(
            *weights.notes,
            *([f"{adapters.described(own)}: {'from the file' if adapted_by else 'fresh'}"] if own else []),
            *((f"the file may also be of {twin}, which has the same names and shapes",) if twin else ()),
        ),
        part=_part(family),
    )


def _part(family: Family) -> str:
    return "backbone" if family.name in FAMILIES else "head"


def _outline(module: nn.Module, family: Family) -> Outline:
    """The outline of a backbone's arch with all its levels; an empty one for a head, whose parts have no stage."""
    return outline_of(family, module.arch) if family.name in FAMILIES else Outline({}, {})


def _family(backbone: nn.Module) -> Family:
    cls = type(backbone)
    if family := family_of(cls):
        return family
    ours = f" of {cls.__module__}, which does not derive from ours" if cls.__name__ in KNOWN else ""
    raise CheckpointError(f"there is no key table for {cls.__name__}{ours}; there are tables for {', '.join(KNOWN)}")


def _log_licence(family: str, source: str) -> None:
    """Names the terms of weights that may not be used commercially: one line for each licence and process."""
    record = published.by_address(source)
    family = record.family if record else family
    common = published.licence_of(family)
    licence = record.licence if record else common
    if licence and not licence.commercial and licence not in _LOGGED:
        _LOGGED.add(licence)
        which = f"the published weights of {family}" if common else f"the published weights {source}"
        print_log(
            f"{which} are under the {licence}, in any layout and from any mirror",
            logger="current",
            level=logging.WARNING,
        )


def arch_name(backbone: Any) -> str | None:
    """The name of a backbone's arch; None for a spec that no name stands for, and for what has no archs."""
    archs = getattr(type(backbone), "archs", {})
    return next((name for name, arch in archs.items() if arch == backbone.arch), None)


def _describe(backbone: Any) -> str:
    if spec_of := _family(backbone).spec_of:
        return f"{type(backbone).__name__}({spec_of(backbone.state_dict())})"
    return f"{type(backbone).__name__} {arch_name(backbone) or backbone.arch}"


def _fit(given: State, target: State, family: Family) -> tuple[State, list[str], list[str]]:
    """The given tensors that the target has, in its shapes; what was adapted; and which cannot be."""
    prepared: State = {}
    adapted: list[str] = []
    misfits: list[str] = []
    for key in given.keys() & target.keys():
        tensor, shape = given[key], target[key].shape
        if tensor.is_floating_point() != target[key].is_floating_point():
            misfits.append(key)
            continue
        if tensor.shape != shape:
            try:
                adapter = family.adapter(key)
                if adapter is None:
                    raise ValueError("no two shapes of it mean the same")
                source, tensor = tensor.shape, adapter.fit(tensor, shape)
                adapted.append(f"{key} {adapter.report.format(source=source, target=shape)}")
            except ValueError:
                misfits.append(key)
                continue
        prepared[key] = tensor
    return {key: prepared[key] for key in target if key in prepared}, sorted(adapted), sorted(misfits)


def _check_finite(given: State, prepared: State) -> None:
    broken = [key for key, tensor in given.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"the file holds NaN or infinite weights, under {shorten(broken)}: it is of no use")
    too_large = [key for key, t in prepared.items() if t.is_floating_point() and not t.isfinite().all()]
    if too_large:
        raise CheckpointError(f"weights of the file are too large for the backbone's type: {shorten(too_large)}")


def _difference(
    found: Found,
    inside: State,
    unknown: list[str],
    given: State,
    target: State,
    missing: list[str],
    unexpected: list[str],
    misfits: list[str],
) -> str:
    """What is missing, unexpected or of another shape, in the file's own names where it has any."""

    def theirs(state: State) -> State:
        named, nameless = found.layout.to_theirs(state)
        return named | {key: state[key] for key in nameless if key in state}

    lacks = [key for key in theirs({key: target[key] for key in missing}) if key not in inside]
    too_much = [*unknown, *(key for key in theirs({key: given[key] for key in unexpected}) if key not in lacks)]
    in_file, in_network = theirs({k: given[k] for k in misfits}), theirs({k: target[k] for k in misfits})
    shapes = [
        f"{found.prefix}{key} {tuple(in_file[key].shape)} for {tuple(in_network[key].shape)}"
        for key in in_file
        if key in in_network
    ]
    parts = {
        "missing": [found.prefix + key for key in lacks],
        "unexpected": [found.prefix + key for key in too_much],
        "of another shape or type": shapes,
    }
    return "; ".join(f"{len(keys)} {what}: {shorten(keys)}" for what, keys in parts.items() if keys)


def _advice(family: Family, ours: State, backbone: Any) -> str:
    if family.spec_of:
        return f"The file's is {family.name}({family.spec_of(ours)}); nothing was loaded"
    archs = find_archs(family, ours)
    if archs and arch_name(backbone) not in archs:
        return f"Give arch={' or '.join(map(repr, archs))}, or the file of the arch that you want; nothing was loaded"
    return "Give the file of this arch; nothing was loaded"
