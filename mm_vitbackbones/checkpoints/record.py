"""The record of a published weights file, and the words that records of several families have in common.

The records of a family stand in its table, ``tables/<family>.py``, as ``FILES``, with the words that are its own.
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Licence:
    """The terms of a file: their name, and whether they allow commercial use."""

    name: str
    commercial: bool = True

    def __str__(self) -> str:
        return self.name if self.commercial else f"{self.name} (non-commercial)"


APACHE = Licence("Apache-2.0")
MIT_LICENCE = Licence("MIT")
CC_BY_NC = Licence("CC BY-NC 4.0", commercial=False)

IN1K = "ImageNet-1k"
IN22K = "ImageNet-22k"
IN22K_TO_1K = "ImageNet-22k, then ImageNet-1k"
IN21K = "ImageNet-21k"
IN21K_TO_1K = "ImageNet-21k, then ImageNet-1k"
UNLABELLED = "ImageNet-1k without labels"
IN1K_TO_COCO = "ImageNet-1k, then COCO"
IN1K_TO_ADE20K = "ImageNet-1k, then ADE20K"

BY_AUTHORS, BY_OPENMMLAB, BY_TIMM = "the authors", "OpenMMLab, converted", "timm, converted"

META = "https://dl.fbaipublicfiles.com"
"""The host of the files of DeiT's, DINO's and MViT's authors."""


@dataclass(frozen=True)
class PublishedFile:
    """One weights file that can be downloaded.

    Args:
        family: the registered class that it is for.
        arch: its arch.
        name: its name in ``checkpoint=``, unique for this arch.
        url: where it is.
        licence: its terms.
        source: who publishes it.
        data: what it was trained on.
        size: side of the training images or crops, in pixels; their largest shorter side, where it varies.
        top1: accuracy on ImageNet-1k in percent, from the paper; None for files that do not predict its classes.
        sha256: the first digits of the file's SHA-256, as the file name carries them; empty where it carries none.
        gated: whether its publisher gives it only to those who have accepted its licence; then the URL is the page
            where they do.
    """

    family: str
    arch: str
    name: str
    url: str
    licence: Licence
    source: str
    data: str = IN1K
    size: int = 224
    top1: float | None = None
    sha256: str = ""
    gated: bool = False

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return file_name_of(self.url)


def size_of(name: str) -> int:
    """The image size that a name says: 384 pixels, or 224 without one."""
    return 384 if "384" in name else 224


def file_name_of(url: str) -> str:
    """The last part of a URL's path."""
    return Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
