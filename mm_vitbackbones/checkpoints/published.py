"""The published weights files: one record each. What a config, a table or a log says of such a file comes from here.

A record is found by family, arch and name: ``checkpoint='imagenet1k'`` in the config of ``Swin(arch='tiny')`` is the
file that Swin's authors trained on ImageNet-1k. A name says the data, and the image size where it is not 224 pixels.
The first record of an arch is its default.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_vitbackbones.errors import CheckpointError


@dataclass(frozen=True)
class Licence:
    """The terms of a file: their name, and whether they allow commercial use."""

    name: str
    commercial: bool = True

    def __str__(self) -> str:
        return self.name if self.commercial else f"{self.name} (non-commercial)"


APACHE = Licence("Apache-2.0")
MIT_LICENCE = Licence("MIT")
NVIDIA = Licence("NVIDIA Source Code License", commercial=False)
CC_BY_NC = Licence("CC BY-NC 4.0", commercial=False)
DINOV3 = Licence("DINOv3 License")

IN1K = "ImageNet-1k"
IN22K = "ImageNet-22k"
IN22K_TO_1K = "ImageNet-22k, then ImageNet-1k"
IN21K = "ImageNet-21k"
IN21K_TO_1K = "ImageNet-21k, then ImageNet-1k"
UNLABELLED = "ImageNet-1k without labels"
LVD142M, LVD1689M, SAT493M = "LVD-142M without labels", "LVD-1689M without labels", "SAT-493M without labels"


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
        size: side of the training images, in pixels.
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


_PVT = "https://github.com/whai362/PVT/releases/download/v2"
_SEGFORMER = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download"
_SWIN_OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin"
_META = "https://dl.fbaipublicfiles.com"
_DINOV3 = "https://huggingface.co/facebook"
_COAT = "https://vcl.ucsd.edu/coat/pretrained"
_TIMM = "https://huggingface.co/timm"
_TIMM_VIT = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"

_AUTHORS, _OPENMMLAB, _BY_TIMM = "the authors", "OpenMMLab, converted", "timm, converted"


def _pvt(arch: str, top1: float) -> PublishedFile:
    return PublishedFile("PVT", arch, "imagenet1k", f"{_PVT}/pvt_{arch}.pth", APACHE, _AUTHORS, top1=top1)


def _pvt_v2(arch: str, top1: float) -> PublishedFile:
    return PublishedFile("PVTv2", arch, "imagenet1k", f"{_PVT}/pvt_v2_{arch}.pth", APACHE, _AUTHORS, top1=top1)


def _mit(arch: str, top1: float, sha256: str) -> PublishedFile:
    url = f"{_SEGFORMER}/mit_{arch}_20220624-{sha256}.pth"
    return PublishedFile("MiT", arch, "imagenet1k", url, NVIDIA, _OPENMMLAB, top1=top1, sha256=sha256)


def _pit(arch: str, top1: float) -> PublishedFile:
    url = f"{_TIMM}/pit_{arch}_224.in1k/resolve/main/model.safetensors"
    return PublishedFile("PiT", arch, "imagenet1k", url, APACHE, _BY_TIMM, top1=top1)


def _swin(arch: str, name: str, file: str, top1: float | None, release: str = "v1.0.0") -> PublishedFile:
    url = f"{_SWIN}/{release}/swin_{file}.pth"
    return PublishedFile("Swin", arch, name, url, MIT_LICENCE, _AUTHORS, _data(name), _size(name), top1)


def _swin_openmmlab(arch: str, name: str, file: str, sha256: str, top1: float | None) -> PublishedFile:
    url = f"{_SWIN_OPENMMLAB}/swin_{file}-{sha256}.pth"
    name = f"{name}_openmmlab"
    return PublishedFile("Swin", arch, name, url, MIT_LICENCE, _OPENMMLAB, _data(name), _size(name), top1, sha256)


def _coat(arch: str, top1: float, sha256: str, name: str = "imagenet1k") -> PublishedFile:
    size = _size(name)
    url = f"{_COAT}/coat_{arch}{f'_{size}x{size}' if size != 224 else ''}_{sha256}.pth"
    return PublishedFile("CoaT", arch, name, url, APACHE, _AUTHORS, size=size, top1=top1, sha256=sha256)


def _vit(arch: str, sha256: str) -> PublishedFile:
    name, url = "imagenet21k_to_1k_384", f"{_TIMM_VIT}/jx_vit_{arch.removesuffix('_384')}_p16_384-{sha256}.pth"
    return PublishedFile("ViT", arch, name, url, APACHE, _BY_TIMM, IN21K_TO_1K, _size(name), sha256=sha256)


def _deit(arch: str, file: str, sha256: str, top1: float, name: str = "imagenet1k") -> PublishedFile:
    url = f"{_META}/deit/deit_{file}-{sha256}.pth"
    return PublishedFile("ViT", arch, name, url, APACHE, _AUTHORS, size=_size(name), top1=top1, sha256=sha256)


def _deit3(arch: str, data: str, top1: float | None = None) -> PublishedFile:
    kind, _, size = arch.removeprefix("deit3_").partition("_")
    file = f"deit_3_{kind}_{size or 224}_{data}{'_v1' if (kind, data) == ('huge', '21k') else ''}"
    name = ("imagenet1k" if data == "1k" else "imagenet21k_to_1k") + (f"_{size}" if size else "")
    trained = IN1K if data == "1k" else IN21K_TO_1K
    return PublishedFile(
        "ViT", arch, name, f"{_META}/deit/{file}.pth", APACHE, _AUTHORS, trained, int(size or 224), top1
    )


def _dino(arch: str, file: str) -> PublishedFile:
    url = f"{_META}/dino/dino_{file}_pretrain/dino_{file}_pretrain.pth"
    return PublishedFile("ViT", arch, "dino", url, APACHE, _AUTHORS, UNLABELLED)


def _mae(arch: str) -> PublishedFile:
    url = f"{_META}/mae/pretrain/mae_pretrain_vit_{arch}.pth"
    return PublishedFile("ViT", arch, "mae", url, CC_BY_NC, _AUTHORS, UNLABELLED)


def _dinov2(arch: str) -> PublishedFile:
    name = f"dinov2_vit{arch[0]}14"
    url = f"{_META}/dinov2/{name}/{name}{'_reg4' if arch.endswith('_reg') else ''}_pretrain.pth"
    return PublishedFile("DINOv2", arch, "lvd142m", url, APACHE, _AUTHORS, LVD142M, size=518)


def _dinov3(arch: str, file: str, data: str = LVD1689M) -> PublishedFile:
    name = data.partition(" ")[0].replace("-", "").lower()
    url = f"{_DINOV3}/dinov3-{file}-pretrain-{name}"
    return PublishedFile("DINOv3", arch, name, url, DINOV3, _AUTHORS, data, size=256, gated=True)


def _cait(arch: str, top1: float) -> PublishedFile:
    kind, _, side = arch.partition("_")
    name = f"imagenet1k_{side}" if side else "imagenet1k"
    url = f"{_META}/deit/{kind.upper()}_{side or 224}.pth"
    return PublishedFile("CaiT", arch, name, url, APACHE, _AUTHORS, size=int(side or 224), top1=top1)


def _xcit(arch: str, *top1: float) -> tuple[PublishedFile, ...]:
    """Trained on images of 224 pixels, the same with distillation, and then of 384 pixels, in this order."""
    kinds = zip(("", "_distilled", "_distilled_384"), ("224", "224_dist", "384_dist"), top1, strict=True)
    return tuple(
        PublishedFile(
            "XCiT",
            arch,
            f"imagenet1k{kind}",
            f"{_META}/xcit/xcit_{arch}_{file}.pth",
            APACHE,
            _AUTHORS,
            size=_size(kind),
            top1=accuracy,
        )
        for kind, file, accuracy in kinds
    )


def _xcit_dino(arch: str) -> PublishedFile:
    file = f"dino_xcit_{arch}_pretrain"
    return PublishedFile("XCiT", arch, "dino", f"{_META}/dino/{file}/{file}.pth", APACHE, _AUTHORS, UNLABELLED)


def _mvit_v2(arch: str, top1: float | None = None) -> PublishedFile:
    """Without an accuracy: of ImageNet-21k."""
    name, data = ("imagenet21k", IN21K) if top1 is None else ("imagenet1k", IN1K)
    url = f"{_META}/mvit/mvitv2_models/MViTv2_{arch[0].upper()}_in{name[8:]}.pyth"
    return PublishedFile("MViTv2", arch, name, url, APACHE, _AUTHORS, data, top1=top1)


def _data(name: str) -> str:
    return IN22K_TO_1K if "to_1k" in name else IN22K if "22k" in name else IN1K


def _size(name: str) -> int:
    return 384 if "384" in name else 224


FILES = (
    _pvt("tiny", 75.1),
    _pvt("small", 79.8),
    _pvt("medium", 81.2),
    _pvt("large", 81.7),
    _pvt_v2("b0", 70.5),
    _pvt_v2("b1", 78.7),
    _pvt_v2("b2_li", 82.1),
    _pvt_v2("b2", 82.0),
    _pvt_v2("b3", 83.1),
    _pvt_v2("b4", 83.6),
    _pvt_v2("b5", 83.8),
    _mit("b0", 70.5, "7e0fe6dd"),
    _mit("b1", 78.7, "02e5a6a1"),
    _mit("b2", 81.6, "66e8bf70"),
    _mit("b3", 83.1, "13b1141c"),
    _mit("b4", 83.6, "d588d980"),
    _mit("b5", 83.8, "658746d9"),
    _pit("ti", 73.0),
    _pit("ti_distilled", 74.6),
    _pit("xs", 78.1),
    _pit("xs_distilled", 79.1),
    _pit("s", 80.9),
    _pit("s_distilled", 81.9),
    _pit("b", 82.0),
    _pit("b_distilled", 84.0),
    _swin("tiny", "imagenet1k", "tiny_patch4_window7_224", 81.2),
    _swin("tiny", "imagenet22k", "tiny_patch4_window7_224_22k", None, "v1.0.8"),
    _swin("tiny", "imagenet22k_to_1k", "tiny_patch4_window7_224_22kto1k_finetune", 80.9, "v1.0.8"),
    _swin_openmmlab("tiny", "imagenet1k", "tiny_patch4_window7_224_20220317", "1cdeb081", 81.2),
    _swin("small", "imagenet1k", "small_patch4_window7_224", 83.2),
    _swin("small", "imagenet22k", "small_patch4_window7_224_22k", None, "v1.0.8"),
    _swin("small", "imagenet22k_to_1k", "small_patch4_window7_224_22kto1k_finetune", 83.2, "v1.0.8"),
    _swin_openmmlab("small", "imagenet1k", "small_patch4_window7_224_20220317", "7ba6d6dd", 83.2),
    _swin("base", "imagenet1k", "base_patch4_window7_224", 83.5),
    _swin("base", "imagenet22k", "base_patch4_window7_224_22k", None),
    _swin("base", "imagenet22k_to_1k", "base_patch4_window7_224_22kto1k", 85.2),
    _swin_openmmlab("base", "imagenet1k", "base_patch4_window7_224_20220317", "e9b98025", 83.5),
    _swin_openmmlab("base", "imagenet22k", "base_patch4_window7_224_22k_20220317", "4f79f7c0", None),
    _swin("large", "imagenet22k", "large_patch4_window7_224_22k", None),
    _swin("large", "imagenet22k_to_1k", "large_patch4_window7_224_22kto1k", 86.3),
    _swin_openmmlab("large", "imagenet22k", "large_patch4_window7_224_22k_20220412", "aeecf2aa", None),
    _swin("base_w12", "imagenet1k_384", "base_patch4_window12_384", 84.5),
    _swin("base_w12", "imagenet22k_384", "base_patch4_window12_384_22k", None),
    _swin("base_w12", "imagenet22k_to_1k_384", "base_patch4_window12_384_22kto1k", 86.4),
    _swin_openmmlab("base_w12", "imagenet1k_384", "base_patch4_window12_384_20220317", "55b0104a", 84.5),
    _swin_openmmlab("base_w12", "imagenet22k_384", "base_patch4_window12_384_22k_20220317", "e5c09f74", None),
    _swin("large_w12", "imagenet22k_384", "large_patch4_window12_384_22k", None),
    _swin("large_w12", "imagenet22k_to_1k_384", "large_patch4_window12_384_22kto1k", 87.3),
    _swin_openmmlab("large_w12", "imagenet22k_384", "large_patch4_window12_384_22k_20220412", "6580f57d", None),
    _coat("tiny", 78.3, "c6efc33c"),
    _coat("mini", 81.0, "40667eec"),
    _coat("small", 82.1, "7479cf9b"),
    _coat("lite_tiny", 77.5, "e88e96b0"),
    _coat("lite_mini", 79.1, "6b4a8ae5"),
    _coat("lite_small", 81.9, "8d362f48"),
    _coat("lite_medium", 83.6, "a750cd63"),
    _coat("lite_medium", 84.5, "f9129688", "imagenet1k_384"),
    _deit("tiny", "tiny_patch16_224", "a1311bcf", 72.2),
    _deit("small", "small_patch16_224", "cd65a155", 79.9),
    _dino("small", "deitsmall16"),
    _deit("base", "base_patch16_224", "b5f2ef4d", 81.8),
    _dino("base", "vitbase16"),
    _mae("base"),
    _mae("large"),
    _mae("huge"),
    _dino("small_p8", "deitsmall8"),
    _dino("base_p8", "vitbase8"),
    _deit("base_384", "base_patch16_384", "8de9b5d1", 82.9, "imagenet1k_384"),
    _vit("large_384", "b3be5167"),
    _deit("tiny_distilled", "tiny_distilled_patch16_224", "b40b3cf7", 74.5),
    _deit("small_distilled", "small_distilled_patch16_224", "649709d9", 81.2),
    _deit("base_distilled", "base_distilled_patch16_224", "df68dfff", 83.4),
    _deit("base_distilled_384", "base_distilled_patch16_384", "d0272ac0", 85.2, "imagenet1k_384"),
    _deit3("deit3_small", "1k", 81.4),
    _deit3("deit3_small", "21k", 83.1),
    _deit3("deit3_medium", "1k", 83.0),
    _deit3("deit3_medium", "21k"),
    _deit3("deit3_base", "1k", 83.8),
    _deit3("deit3_base", "21k", 85.7),
    _deit3("deit3_large", "1k", 84.9),
    _deit3("deit3_large", "21k"),
    _deit3("deit3_huge", "1k"),
    _deit3("deit3_huge", "21k"),
    _deit3("deit3_small_384", "1k"),
    _deit3("deit3_small_384", "21k"),
    _deit3("deit3_base_384", "1k"),
    _deit3("deit3_base_384", "21k"),
    _deit3("deit3_large_384", "1k"),
    _deit3("deit3_large_384", "21k"),
    _dinov2("small"),
    _dinov2("base"),
    _dinov2("large"),
    _dinov2("giant"),
    _dinov2("small_reg"),
    _dinov2("base_reg"),
    _dinov2("large_reg"),
    _dinov2("giant_reg"),
    _dinov3("small", "vits16"),
    _dinov3("small_plus", "vits16plus"),
    _dinov3("base", "vitb16"),
    _dinov3("large", "vitl16"),
    _dinov3("large", "vitl16", SAT493M),
    _dinov3("huge_plus", "vith16plus"),
    _dinov3("7b", "vit7b16"),
    _dinov3("7b", "vit7b16", SAT493M),
    _cait("xxs24", 78.4),
    _cait("xxs24_384", 80.95),
    _cait("xxs36", 79.75),
    _cait("xxs36_384", 82.2),
    _cait("xs24_384", 84.1),
    _cait("s24", 83.5),
    _cait("s24_384", 85.1),
    _cait("s36_384", 85.4),
    _cait("m36_384", 86.1),
    _cait("m48_448", 86.5),
    *_xcit("nano_12_p16", 69.9, 72.2, 75.4),
    *_xcit("tiny_12_p16", 77.1, 78.6, 80.9),
    *_xcit("tiny_24_p16", 79.4, 80.4, 82.6),
    *_xcit("small_12_p16", 82.0, 83.3, 84.7),
    _xcit_dino("small_12_p16"),
    *_xcit("small_24_p16", 82.6, 83.9, 85.1),
    *_xcit("medium_24_p16", 82.7, 84.3, 85.4),
    _xcit_dino("medium_24_p16"),
    *_xcit("large_24_p16", 82.9, 84.9, 85.8),
    *_xcit("nano_12_p8", 73.8, 76.3, 77.8),
    *_xcit("tiny_12_p8", 79.7, 81.2, 82.4),
    *_xcit("tiny_24_p8", 81.9, 82.6, 83.7),
    *_xcit("small_12_p8", 83.4, 84.2, 85.1),
    _xcit_dino("small_12_p8"),
    *_xcit("small_24_p8", 83.9, 84.9, 85.6),
    *_xcit("medium_24_p8", 83.7, 85.1, 85.8),
    _xcit_dino("medium_24_p8"),
    *_xcit("large_24_p8", 84.4, 85.4, 86.0),
    _mvit_v2("tiny", 82.3),
    _mvit_v2("small", 83.6),
    _mvit_v2("base", 84.4),
    _mvit_v2("base"),
    # That of ImageNet-1k is of another network, which widens in its feed-forward networks.
    _mvit_v2("large"),
)
"""Every published file whose address is known. The authors of MiT and PiT publish theirs on Google Drive, which has no
address to download from: those files are OpenMMLab's and timm's."""

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


def file_name_of(url: str) -> str:
    """The last part of a URL's path."""
    return Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name


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
