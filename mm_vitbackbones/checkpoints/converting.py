"""Converts checkpoint files from one layout to another, bit for bit and reversibly."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mm_vitbackbones import adapters
from mm_vitbackbones.checkpoints.layout import CLASSIFIER, State
from mm_vitbackbones.checkpoints.reading import read_checkpoint
from mm_vitbackbones.checkpoints.recognise import (
    Found,
    differences,
    find_archs,
    find_layout,
    looks_like,
    outline_of,
    twin_of,
)
from mm_vitbackbones.checkpoints.unwrapping import unwrap, unwrap_model
from mm_vitbackbones.errors import CheckpointError, CheckpointMismatch, OutputError, counted, shorten
from mm_vitbackbones.files import check_room, whole_file

TARGETS = ("official", "ours", "openmmlab", "timm")
ASIDE = CLASSIFIER.removesuffix(".")
"""The entry of a file, next to ``state_dict``, that keeps the classifier's tensors."""


@dataclass(frozen=True)
class Conversion:
    """What was converted. As text, one line for it and one for each note."""

    family: str
    arch: str
    source: str
    target: str
    tensors: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.family} {self.arch}: {self.tensors} tensors from the {self.source} to the {self.target} layout"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: str = "ours",
    arch: str | dict[str, Any] | None = None,
    force: bool = False,
    merge: bool = False,
) -> Conversion:
    """Writes the weights of one file in another layout; types and values stay bit for bit.

    'official' and 'timm' are a bare state dict, as published. 'ours' and 'openmmlab' put the backbone under
    ``state_dict`` and, where the source has them, the classifier's tensors under ``classifier``, so that the way back
    restores them. A destination ending in ``.safetensors`` is written in that format.

    Args:
        source: a file of any layout that can be loaded; also a URL.
        destination: the file to write.
        to: one of ``TARGETS``.
        arch: needed for weights of no published size: a dict of the spec's fields. If it is given, the weights
            have to match it.
        force: write over an existing destination.
        merge: merge low-rank adapters into the weights first; see ``adapters.merged``.

    Raises:
        FileExistsError: if the destination exists, without ``force``.
        CheckpointError: if the source cannot be read or recognised, or the target layout cannot hold it; for adapters
            without ``merge``, and for ``merge`` without adapters.
    """
    if to not in TARGETS:
        raise CheckpointError(f"there is no layout {to!r} to convert to; there are {', '.join(TARGETS)}")
    path = Path(destination).expanduser()
    _check_destination(path, force)
    _check_room(path)
    content = read_checkpoint(source)
    try:
        weights = unwrap(content)
        state, besides = weights.state, weights.besides
        if merge:
            state = adapters.merged(state)
        elif adapters.split(state)[1]:
            raise CheckpointError(f"has {adapters.described(state)}, which no layout holds: merge them with --merge")
        aside = _aside(content)
        found, ours, outside = _recognise(state)
        ours |= aside
        arch_name = _check_arch(found, state, ours, arch)
        theirs, nameless = _to_layout(found, ours, to)
    except CheckpointError as error:
        raise type(error)(f"{source}: {error}") from None
    flat = path.suffix == ".safetensors"
    kept = {key: ours[key] for key in nameless if _is_aside(key)}
    _check_room(path, sum(tensor.numel() * tensor.element_size() for tensor in (theirs | kept).values()))
    _write(_wrap(theirs, kept, found, arch_name, to, flat), path, force)

    besides = tuple(key for key in besides if not aside or key not in (ASIDE, "meta"))
    twin = twin_of(found, arch_name)
    lost = [key for key in nameless if not _is_aside(key) or to == "timm" or (flat and to == "openmmlab")]
    notes = [
        *weights.notes,
        *([f"left out, as not of the backbone: {shorten([*outside, *besides])}"] if outside or besides else []),
        *([f"left out, as this form has no room for it: {shorten(lost)}"] if lost else []),
        *([] if any(map(_is_aside, ours)) else ["the source holds no classifier, and so the result holds none"]),
        *([f"the weights may also be of {twin}, which has the same names and shapes"] if twin else []),
        *(text for layout, name, text in found.family.cautions if (layout, name) == (to, arch_name)),
    ]
    return Conversion(found.family.name, arch_name, found.layout.name, to, len(theirs), tuple(notes))


@dataclass(frozen=True)
class Merge:
    """What was merged. As text, one line for it and one for what was left out."""

    adapters: str
    tensors: int
    besides: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.adapters} were merged: {self.tensors} tensors, of a model without adapters"
        return "\n".join([head, *([f"note: left out: {shorten(self.besides)}"] if self.besides else [])])


def merge_checkpoint(source: str | os.PathLike[str], destination: str | os.PathLike[str], force: bool = False) -> Merge:
    """Writes all weights of a file, such as a detector's, with the low-rank adapters merged into those of the backbone:
    for the same model without adapters, whose results are the same.

    Of what stands next to the weights, the description of the data set stays: its classes.

    Raises:
        FileExistsError: if the destination exists, without ``force``.
        CheckpointError: if the source cannot be read, or holds no adapters.
    """
    path = Path(destination).expanduser()
    _check_destination(path, force)
    content = read_checkpoint(source)
    try:
        weights = unwrap_model(content)
        state = adapters.merged(weights.state)
    except CheckpointError as error:
        raise type(error)(f"{source}: {error}") from None
    _check_room(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()))
    state = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
    meta = content.get("meta") if isinstance(content, dict) else None
    data = meta.get("dataset_meta") if isinstance(meta, dict) else None
    kept = {"dataset_meta": data} if _is_plain(data) and data else {}
    _write(state if path.suffix == ".safetensors" else {"state_dict": state, "meta": kept}, path, force)
    besides = tuple(name for name in weights.besides if name != "meta")
    return Merge(adapters.described(weights.state), len(state), besides)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else type(value) in _PLAIN


_PLAIN = (str, int, float, bool, type(None))


def _check_destination(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: choose another name, or overwrite it with --force")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the name of the file to write")
    if not path.parent.is_dir():
        raise CheckpointError(f"there is no folder {path.parent} to write {path.name} to: make it first")


def _check_room(path: Path, size: int = 1) -> None:
    try:
        check_room(path.parent, f"OUT {path}", size)
    except OutputError as error:
        raise CheckpointError(str(error)) from None


def _is_aside(key: str) -> bool:
    return key.startswith(CLASSIFIER)


def _aside(content: Any) -> State:
    """The classifier's tensors that an earlier conversion put next to the backbone's."""
    aside = content.get(ASIDE) if isinstance(content, dict) else None
    return {CLASSIFIER + key: t for key, t in unwrap(aside).state.items()} if isinstance(aside, dict) and aside else {}


def _recognise(state: State) -> tuple[Found, State, list[str]]:
    if not (found := find_layout(state)):
        raise CheckpointError(f"looks like {looks_like(state)}; the families that can be converted are known by name")
    inside, outside = found.split(state)
    ours, unknown = found.layout.to_ours(inside)
    if unknown:
        raise CheckpointMismatch(f"{found.family.name} ({found.layout.name} layout) has no {shorten(unknown)}")
    return found, ours, outside


def _check_arch(found: Found, state: State, ours: State, arch: str | dict[str, Any] | None) -> str:
    """The arch by name, or as text; raises if the weights are not all that it has."""
    if arch is None:
        if not (archs := find_archs(found.family, ours)):
            raise CheckpointError(
                f"looks like {looks_like(state)}: tensors are missing or too many, or it was made with another spec, "
                "which --arch would have to give as a dict of its fields"
            )
        return " or ".join(archs)
    try:
        expected = outline_of(found.family, arch)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"--arch: {error}") from None
    if differing := differences(found.family, expected, ours):
        raise CheckpointMismatch(f"is not of arch {arch} in {counted(len(differing), 'tensor')}: {shorten(differing)}")
    return str(arch)


def _to_layout(found: Found, ours: State, to: str) -> tuple[State, list[str]]:
    """The tensors by their names in a layout, and our names of those that it has no names for."""
    layout = found.family.layout(to)
    theirs, nameless = layout.to_theirs(ours)
    if to == "ours":
        nameless = [key for key in theirs if _is_aside(key)]
        theirs = {key: tensor for key, tensor in theirs.items() if not _is_aside(key)}
    try:
        back, _ = layout.to_ours(theirs)
    except CheckpointError as error:
        raise CheckpointError(f"the {to} layout cannot hold these weights: {error}") from None
    changed = [key for key in ours if key not in nameless and not (key in back and _same(back[key], ours[key]))]
    if changed:
        raise CheckpointError(f"the {to} layout cannot hold these weights: {shorten(changed)} would be changed")
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in theirs.items()}, nameless


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, NaN and all."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)))


def _wrap(theirs: State, aside: State, found: Found, arch: str, to: str, flat: bool) -> dict[str, Any]:
    if to in ("official", "timm"):
        return theirs
    if flat:  # names and tensors alone; OpenMMLab's modules would report the classifier's names as a mistake
        return theirs | aside if to == "ours" else theirs
    meta = {"family": found.family.name, "arch": arch, "layout": to}
    content: dict[str, Any] = {"state_dict": theirs, "meta": meta}
    if aside:
        content[ASIDE] = {key.removeprefix(CLASSIFIER): t.clone() for key, t in aside.items()}
    return content


def _write(content: dict[str, Any], path: Path, force: bool) -> None:
    """Writes a file whole, or leaves the destination unchanged."""
    try:
        with whole_file(path, replace=force) as file:
            if path.suffix == ".safetensors":
                try:
                    from safetensors.torch import save
                except ImportError:
                    raise CheckpointError(f"{path} needs the safetensors library: pip install safetensors") from None
                file.write(save(content, metadata={"format": "pt"}))
            else:
                torch.save(content, file)
            _check_destination(path, force)
    except FileExistsError:
        _check_destination(path, force)
        raise
    except OutputError as error:
        raise CheckpointError(str(error)) from None
