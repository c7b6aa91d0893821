"""Addresses of checkpoints with a scheme, such as ``open-mmlab://...``: what each stands for.

MMEngine knows names of published files by the schemes of its own lists. It would download them without a time-out or a
limit, and read those of ``torchvision://`` and of URLs by an unpickler that runs code. So the lists are MMEngine's, and
downloading and reading are ours.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mm_vitbackbones.errors import CheckpointError, did_you_mean

STORAGE = re.compile(r"(\S+:)?(s3|petrel)://")
"""Addresses that MMEngine's storage client fetches, which each cluster sets up for itself."""

_BY_HAND = "give an https address, or download the file by hand and give its path"

_ELSEWHERE = {
    "timm": "files of timm have addresses such as https://huggingface.co/timm/NAME/resolve/main/model.safetensors",
    "hf": "files have addresses such as https://huggingface.co/OWNER/NAME/resolve/main/model.safetensors",
    "mmdet": "MMDetection's model zoo has the https address of each file",
    "mmseg": "MMSegmentation's model zoo has the https address of each file",
}
"""What to give in place of addresses that nobody resolves."""


def resolved(address: str) -> str:
    """The path or URL that an address stands for, or an address of a storage client or of a scheme of the user's own.

    Raises:
        CheckpointError: nobody knows the scheme, or its list lacks the name.
    """
    scheme, separator, name = address.partition("://")
    if not separator or scheme.lower() in ("http", "https") or STORAGE.match(address):
        return address
    if scheme == "file":
        return _path(address)
    if scheme in ("torchvision", "modelzoo"):
        return _listed(address, _torchvision())
    if scheme in ("open-mmlab", "openmmlab", "mmcls"):
        return _openmmlab(address, scheme, name)
    if loader_of_user(address):
        return address
    raise CheckpointError(f"{address} is not fetched, as {scheme}:// is no kind of address: {_advice(scheme)}")


def _advice(scheme: str) -> str:
    return f"{_ELSEWHERE[scheme]}; {_BY_HAND}" if scheme in _ELSEWHERE else _BY_HAND


def _path(address: str) -> str:
    parts = urllib.parse.urlparse(address)
    path = urllib.parse.unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path:
        raise CheckpointError(f"{address} is no address of a file on this machine, file:///FOLDER/FILE: give its path")
    return path


def _openmmlab(address: str, scheme: str, name: str) -> str:
    from mmengine.runner.checkpoint import (
        _get_mmengine_home,
        get_deprecated_model_names,
        get_external_models,
        get_mmcls_models,
    )

    if scheme == "mmcls":
        return _listed(address, get_mmcls_models())
    found = _listed(f"{scheme}://{get_deprecated_model_names().get(name, name)}", get_external_models())
    return found if "://" in found else os.path.join(_get_mmengine_home(), found)


def _torchvision() -> Mapping[str, str]:
    """torchvision's list; without torchvision, the one that MMEngine has of an older release."""
    import mmengine
    from mmengine.runner.checkpoint import get_torchvision_models

    try:
        return get_torchvision_models()
    except ImportError:
        return mmengine.load(os.path.join(mmengine.__path__[0], "hub", "torchvision_0.12.json"))


def _listed(address: str, known: Mapping[str, str]) -> str:
    scheme, _, name = address.partition("://")
    if name not in known:
        near = did_you_mean(name, known)
        raise CheckpointError(f"MMEngine's list of {scheme}:// has no {name!r}{near}; {_BY_HAND}")
    return known[name]


def loader_of_user(address: str) -> Callable[..., Any] | None:
    """The loader that a user's own code has registered with MMEngine for an address, if any."""
    from mmengine.runner import CheckpointLoader

    loader = CheckpointLoader._get_checkpoint_loader(address)
    ours = getattr(loader, "__module__", "").partition(".")[0] in ("mmengine", "mm_vitbackbones")
    return None if ours else loader


OF_MMENGINE = (
    "",
    "http://",
    "https://",
    "file://",
    "torchvision://",
    "modelzoo://",
    "open-mmlab://",
    "openmmlab://",
    "mmcls://",
    "pavi://",
    r"(\S+\:)?s3://",
    r"(\S+\:)?petrel://",
)
"""The schemes of MMEngine's own loaders, as it registers them, and ``file://``."""


@contextmanager
def loaders(load: Callable[..., Any], schemes: tuple[str, ...] = OF_MMENGINE) -> Iterator[None]:
    """Within it, MMEngine reads checkpoints of these schemes by a function, for networks of others, too.

    Args:
        load: takes a path or an address, and where to put the weights.
    """
    from mmengine.runner import CheckpointLoader

    before = CheckpointLoader._schemes
    CheckpointLoader._schemes = dict(before)
    try:
        CheckpointLoader.register_scheme(schemes, load, force=True)
        yield
    finally:
        CheckpointLoader._schemes = before
