"""Images of any number of bands from .npy and TIFF files, and which steps of the libraries take them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.logging import print_log
from PIL import TiffImagePlugin

from mm_vitbackbones import limits
from mm_vitbackbones.data.image_files import has, why_unreadable
from mm_vitbackbones.data.reading import OF_BANDS, is_own, of_library, transform_class
from mm_vitbackbones.data.tiff_parts import check_page
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import nodes, type_name

SAMPLES, SUBFILE, PLANAR = 277, 254, 284
"""TIFF tags: bands of a page; whether a page is a smaller copy (1) or a mask (4) of another one; how bands lie."""

WIDTH, HEIGHT, DEPTH, BITS = 256, 257, 32997, 258
"""TIFF tags: the size of a page, in pixels; bits of each band."""

LOADER = "mm_vitbackbones.LoadMultichannelImage"

THREE = {
    "AutoAugment": "",
    "AutoContrast": "",
    "CachedMixUp": "",
    "CachedMosaic": "",
    "Color": "",
    "Contrast": "",
    "CutOut": "fill_in",
    "Equalize": "",
    "Expand": "mean",
    "MixUp": "",
    "Mosaic": "",
    "Normalize": "",
    "PhotoMetricDistortion": "",
    "RGB2Gray": "",
    "RandAugment": "",
    "RandomCenterCropPad": "",
    "RandomCutOut": "fill_in",
    "RandomGrayscale": "channel_weights",
    "ShearX": "",
    "ShearY": "",
    "TranslateX": "",
    "TranslateY": "",
    "YOLOXHSVRandomAug": "",
}
"""Steps of the libraries that end with an error for other than three channels, or drop some, with the argument that
makes them fit if it has as many values."""

FOUR = ("FixShapeResize", "Pad")
"""Steps that take four channels at most: OpenCV pads no more."""


def read_bands(path: str | Path, bands: Sequence[int] | None = None, channels_first: bool = False) -> np.ndarray:
    """An image (height, width, bands), in the order of its file: uint8 where the file is, float32 otherwise.

    Args:
        path: a .npy file of an array (height, width) or (height, width, bands); a TIFF file with bands in its pages, in
            one page, or both.
        bands: those to take, in this order, numbered from 1. All, if None.
        channels_first: the array of a .npy file is (bands, height, width).

    Raises:
        UserError: it is no such file, or lacks a band; or it is larger than the limits, and nothing of it is decoded.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OF_BANDS:
        raise UserError(f"LoadMultichannelImage reads *{', *'.join(OF_BANDS)}; LoadImageFromFile reads other images")
    if why := why_unreadable(path):
        raise UserError(why)
    image = _read_npy(path, channels_first) if suffix == ".npy" else _read_tiff(path)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UserError(f"its array has the shape {image.shape}: it has to be (height, width, bands)")
    if image.dtype.kind not in "uifb":
        raise UserError(f"its array is of the type {image.dtype}: it has to be of numbers")
    image = image[..., None] if image.ndim == 2 else image
    if channels_first and suffix == ".npy" and image.shape[2] > 1:
        image = np.moveaxis(image, 0, 2)
    if bands is not None:
        if missing := [band for band in bands if band > image.shape[2]]:
            raise UserError(f"it has {image.shape[2]} bands, and bands={[*bands]} takes band {missing[0]}")
        image = image[..., [band - 1 for band in bands]]
    with np.errstate(invalid="ignore", over="ignore"):  # what float32 does not hold is infinite
        return np.ascontiguousarray(image, image.dtype if image.dtype == np.uint8 else np.float32)


def check_bands(bands: Any, what: str) -> None:
    """Check a choice of bands.

    Raises:
        UserError: it is no list of numbers from 1.
    """
    numbers = isinstance(bands, (list, tuple)) and all(type(band) is int and band > 0 for band in bands)
    if not numbers or not bands:
        raise UserError(f"{what} has to be a list of bands, numbered from 1, and is {bands!r}")


def _check_size(pixels: int, values: int, bits: int) -> None:
    """Check an image before it is decoded.

    Args:
        pixels: of one band.
        values: of all bands.
        bits: of a value in the file. Other than 8 become 32.

    Raises:
        UserError: it is larger than the limits.
    """
    size = values * (1 if bits == 8 else max(4, -(-bits // 8)))
    if why := has(limits.PIXELS.exceeded(pixels) or limits.IMAGE.exceeded(size)):
        raise UserError(why)


def _read_npy(path: str | Path, channels_first: bool) -> np.ndarray:
    try:
        # NumPy takes memory for all that a header says before it reads on. A link to the file's bytes takes none.
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of a size above 64 bits
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(mapped, np.ndarray) and mapped.ndim in (2, 3):
            height, width = mapped.shape[1:] if channels_first and mapped.ndim == 3 else mapped.shape[:2]
            _check_size(height * width, mapped.size, 8 if mapped.dtype == np.uint8 else 8 * max(4, mapped.itemsize))
        image = np.array(mapped) if isinstance(mapped, np.ndarray) else mapped
    except (ValueError, EOFError, OverflowError, MemoryError, RuntimeWarning) as error:
        raise UserError(f"it is no .npy file of numbers ({error})") from None
    if not isinstance(image, np.ndarray):
        raise UserError("it holds several arrays (.npz): save one array by numpy.save")
    return image


def tiff_pages(path: str | Path) -> list[tuple[int, bool]]:
    """Of each page of a TIFF file that is no smaller copy or mask of another one: how many bands it has, and whether
    these lie one after the other.

    Raises:
        UserError: it is no TIFF file, or larger than the limits.
    """
    pages: list[tuple[int, bool]] = []
    values, most_bits = 0, 8
    with Path(path).open("rb") as file:
        try:
            header = file.read(8)
            if header[2:3] == b"+":  # BigTIFF
                header += file.read(8)
            page = TiffImagePlugin.ImageFileDirectory_v2(header)
            seen = set()
            while page.next and page.next not in seen:
                seen.add(page.next)
                file.seek(page.next)
                page.load(file)
                samples, bits = int(page.get(SAMPLES, 1)), page.get(BITS, 1)
                if not page.get(SUBFILE, 0) & 5:
                    pages.append((samples, page.get(PLANAR, 1) == 2))
                pixels = int(page.get(WIDTH, 0)) * int(page.get(HEIGHT, 0)) * int(page.get(DEPTH, 1))
                values += pixels * samples  # of copies and masks, too: OpenCV decodes all pages
                most_bits = max(most_bits, *bits) if isinstance(bits, tuple) else max(most_bits, int(bits))
                _check_size(pixels, values, most_bits)
        except UserError:
            raise
        except Exception:  # Pillow raises errors of many kinds
            raise UserError("it is no TIFF file, or broken") from None
    return pages


def _read_tiff(path: str | Path) -> np.ndarray:
    pages = tiff_pages(path)
    if all(samples == 1 for samples, _ in pages):
        with contextlib.redirect_stderr(io.StringIO()):
            _, read = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
        if len(read) == len(pages):
            return _stack(read)
    try:
        import tifffile  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(
            "it has several bands in a page, or a form that OpenCV does not read: `pip install tifffile imagecodecs`, "
            "or save it as .npy, or with one page for each band"
        ) from None
    try:
        with tifffile.TiffFile(path) as file, Path(path).open("rb") as raw:
            kept = [page for page in file.pages if not int(page.tags.valueof(SUBFILE, default=0)) & 5]
            for page in kept:
                check_page(raw, page)
            return _stack([_channels_last(page.asarray(), page) for page in kept])
    except UserError:
        raise
    except Exception as error:  # tifffile raises errors of many kinds
        raise UserError(f"tifffile cannot read it: {error}") from None


def _channels_last(image: np.ndarray, page: Any) -> np.ndarray:
    return np.moveaxis(image, 0, 2) if image.ndim == 3 and page.planarconfig == 2 else image


def _stack(pages: Sequence[np.ndarray]) -> np.ndarray:
    """Pages (height, width) or (height, width, bands) as one image."""
    if len({page.shape[:2] for page in pages}) != 1:
        sizes = ", ".join(f"{page.shape[1]}x{page.shape[0]}" for page in pages[:4])
        raise UserError(f"its pages differ in size ({sizes}), and bands have to be of one size")
    return np.concatenate([page[..., None] if page.ndim == 2 else page for page in pages], axis=2)


def check_steps(pipeline: Iterable[Any], channels: int) -> None:
    """Check that the steps of the libraries, up to the first one of the user's own that comes after loading, take
    images of so many channels.

    Raises:
        UserError: one does not.
    """
    if channels in (1, 3):
        return
    for index, outer in enumerate(pipeline):
        if index and is_own(outer):
            return  # it may change the channels
        for _, step in nodes(outer, ""):
            name = type_name(step)
            if (name not in THREE and name not in FOUR) or not of_library(transform_class(step)):
                continue
            argument = THREE.get(name)
            given = step.get(argument) if argument else None
            if (name in FOUR and channels <= 4) or (isinstance(given, (list, tuple)) and len(given) == channels):
                continue
            if name in FOUR:
                advice = "use pad_size_divisor (MMDetection) or size (MMSegmentation) of data_preprocessor for padding"
            else:
                advice = f"give it {argument}=[...] of {channels} values, or remove it" if argument else "remove it"
            takes = "at most 4" if name in FOUR else "3"
            raise UserError(f"the step {name} takes images of {takes} channels, and these have {channels}: {advice}")


def warn_of_pages(pipeline: Sequence[Any], path: str, where: str) -> None:
    """Log that the libraries' loader takes one page of a TIFF file with several, or three bands of more."""
    if Path(path).suffix.lower() not in (".tif", ".tiff") or not any(map(_is_plain_loader, pipeline)):
        return
    try:
        bands = sum(samples for samples, _ in tiff_pages(path))
    except (OSError, UserError):
        return
    if bands > 4:
        print_log(
            f"{where}: {path} has {bands} bands, of which LoadImageFromFile takes some: load it by "
            f"dict(type='{LOADER}')",
            logger="current",
            level=logging.WARNING,
        )


def _is_plain_loader(step: Any) -> bool:
    return type_name(step) == "LoadImageFromFile" and of_library(transform_class(step))
