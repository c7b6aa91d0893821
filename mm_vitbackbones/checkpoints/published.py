"""The published weights files by name. What a config, a table or a log says of such a file comes from here.

The records stand in the table of their family, ``tables/<family>.py``, as ``FILES``.

A record is found by family, arch and name: ``checkpoint='imagenet1k'`` in the config of ``Swin(arch='tiny')`` is the
file that Swin's authors trained on ImageNet-1k. A name says the data, and the image size where it is not 224 pixels.
The first record of an arch is its default.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

from mm_vitbackbones.checkpoints import tables
from mm_vitbackbones.checkpoints.record import Licence, PublishedFile
from mm_vitbackbones.errors import CheckpointError

FILES: tuple[PublishedFile, ...] = tuple(itertools.chain.from_iterable(tables.gather("FILES")))
"""Every published file whose address is known, family by family."""

NAMES = frozenset(file.name for file in FILES)


def files_of(family: str, arch: str | None) -> dict[str, PublishedFile]:
    """The published files of an arch by name, the default one first; empty if there is none."""
    return {file.name: file for file in FILES if (file.family, file.arch) == (family, arch)}


def default_of(family: str, arch: str | None) -> PublishedFile:
    """The file that stands for "pretrained" without a name.

    Raises:
        CheckpointError: if none of this arch is known.
    """
    for file in files_of(family, arch).values():
        return file
    raise CheckpointError(_what_there_is(family, arch))


def resolve(checkpoint: str | os.PathLike[str] | None, family: str, arch: str | None) -> str | os.PathLike[str]:
    """The URL that the name of a published file stands for; a path or a URL is returned as it is.

    A bare word is a name. What has a slash or a suffix (``./imagenet1k``, ``file.pth``) is a path or a URL, and so is
    a bare word that is no published name where a file of that name exists. A bare word that is a published name
    never means a local file: write ``./imagenet1k`` for that.

    Args:
        checkpoint: a name, a path or a URL; None for a config that gives none.
        family: the registered class that the weights are for.
        arch: its arch; None for a spec of the user's own, which has no published files.

    Raises:
        CheckpointError: for None, and for a name of which this arch has no file. The message lists the known files.
    """
    if checkpoint is not None:
        check_is_address(checkpoint)
    if checkpoint is None:
        raise CheckpointError(f"checkpoint=None names no weights: {_what_there_is(family, arch)}")
    if not isinstance(checkpoint, str) or not _is_bare_word(checkpoint):
        record = by_address(checkpoint) if isinstance(checkpoint, str) and "://" in checkpoint else None
        return _address(record) if record else checkpoint
    known = files_of(family, arch)
    if checkpoint in known:
        return _address(known[checkpoint])
    if checkpoint not in NAMES and Path(checkpoint).exists():
        return checkpoint
    raise CheckpointError(f"checkpoint={checkpoint!r} names no weights: {_what_there_is(family, arch)}")


def _address(file: PublishedFile) -> str:
    """The URL of a file.

    Raises:
        CheckpointError: if nobody can download it without an account.
    """
    if file.gated:
        raise CheckpointError(
            f"the weights of {file.family} {file.arch} ({file.name}) are under the {file.licence}: accept it at "
            f"{file.url}, download the weights there, and give the path of the .safetensors or .pth file"
        )
    return file.url


def check_is_address(checkpoint: Any) -> None:
    """Checks that a checkpoint is given by a text or a path.

    Raises:
        CheckpointError: if not.
    """
    if not isinstance(checkpoint, (str, os.PathLike)) or "\0" in os.fspath(checkpoint) or not os.fspath(checkpoint):
        given = f"a list of {len(checkpoint)}" if isinstance(checkpoint, (list, tuple)) else repr(checkpoint)
        raise CheckpointError(
            f"checkpoint is {given[:60]}: give a path, a URL or the name of a published file, as text"
        )


def by_address(checkpoint: str) -> PublishedFile | None:
    """The record of a URL, or of a local file that has a published file's name."""
    if "://" in checkpoint:
        return next((file for file in FILES if file.url == checkpoint), None)
    found = [file for file in FILES if file.file_name == Path(checkpoint).name]
    return found[0] if len(found) == 1 else None  # several mirrors have a model.safetensors


def licence_of(family: str) -> Licence | None:
    """The terms of a family's published weights, whoever hosts or converts them; None if none are known, or if they
    differ from file to file."""
    licences = {file.licence for file in FILES if file.family == family}
    return licences.pop() if len(licences) == 1 else None


def _is_bare_word(checkpoint: str) -> bool:
    return bool(re.fullmatch(r"[^/\\.:~]+", checkpoint))


def _what_there_is(family: str, arch: str | None) -> str:
    known = files_of(family, arch)
    if known:
        return f"of {family} {arch} there are {', '.join(map(_listed, known.values()))}, or give a path or a URL"
    which = f"{family} {arch}" if arch else f"this {family}"
    return f"of {which} no published file is known, so give a path or a URL"


def _listed(file: PublishedFile) -> str:
    accuracy = f", top-1 {file.top1}" if file.top1 else ""
    return f"{file.name!r} ({file.data} at {file.size}{accuracy}; {file.source})"
