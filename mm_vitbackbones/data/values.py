"""Images whose values make no sense for the network: nearly black, or far from what it is normalised by."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS

from mm_vitbackbones.data.bands import check_steps, warn_of_pages
from mm_vitbackbones.data.reading import ImageReader, LeftOutImage, is_local, list_dataset, naming, of_library
from mm_vitbackbones.errors import UserError, counted
from mm_vitbackbones.libraries import look_up

DETECTION = "MultichannelDetDataPreprocessor"
"""The class of ours that normalises images of any number of channels in detection."""

SAMPLE, LARGE_SAMPLE = 10, 100
"""How many images are read, spread evenly over the data set; the second number, where every image is to be checked."""

DARK = 20
"""8-bit images without a larger value are nearly black."""

NARROW = 0.05
"""Normalised images that vary by less, of a standard deviation of 1, are nearly constant."""

FAR = 10.0
"""Normalised images have a mean nearer to 0 than this."""


def check_values(
    dataset: Mapping[str, Any],
    preprocessor: Any,
    in_channels: int | None,
    where: str,
    every: bool = False,
    outer: Sequence[Any] = (),
) -> None:
    """Look at some images of a data set's config. Warn about values that make no sense.

    A data set that loads images without a pipeline is not looked at.

    Args:
        preprocessor: the config of the model's ``data_preprocessor``, with the mean and std that images are normalised
            by, or None.
        in_channels: of the network, if known.
        outer: the steps of data sets around this one, which come after its pipeline.

    Raises:
        UserError: an image cannot be loaded, has another number of channels than the network, or than a step takes.
    """
    pipeline = [*(dataset.get("pipeline") or ())]
    read = ImageReader(pipeline)
    config = preprocessor if isinstance(preprocessor, Mapping) else {}

    def images() -> Iterator[np.ndarray]:
        first = True
        for info in entries(dataset, LARGE_SAMPLE if every else SAMPLE, where):
            try:
                with naming(info, where):
                    image = read(info, as_used=True)
                    if first:
                        first = False
                        warn_of_pages(pipeline, str(info.get("img_path")), where)
                        loaded = read(info)
                        check_steps([*pipeline, *outer], loaded.shape[2] if loaded.ndim == 3 else 1)
                        _, results = read.whole(info)
                        check_channels(results, config, in_channels)
            except LeftOutImage:
                continue
            except WrongChannels as error:
                raise UserError(f"{where}: {error}") from None
            yield image

    if wrong := strange_values(images(), config.get("mean"), config.get("std")):
        print_log(f"{where}: {wrong}", logger="current", level=logging.WARNING)


class WrongChannels(UserError):
    """An image with another number of channels than the model takes."""


def check_channels(results: Any, preprocessor: Mapping[str, Any], in_channels: int | None) -> None:
    """Check that the image that a pipeline gives (C, H, W) has as many channels as what takes it.

    Args:
        results: what the last step of the pipeline gives.
        preprocessor: the config of the model's ``data_preprocessor``.
        in_channels: of the network, if known.

    Raises:
        WrongChannels: otherwise.
    """
    inputs = results.get("inputs") if isinstance(results, Mapping) else None
    kind = look_up(MODELS, preprocessor.get("type"))
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 3 or (kind and not of_library(kind)):
        return
    channels = len(inputs)
    has = f"images have {counted(channels, 'channel')}"
    mmdets = kind is not None and issubclass(kind, ImgDataPreprocessor)
    if mmdets and channels != 3 and (preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr")):
        raise WrongChannels(f"{has}, and bgr_to_rgb=True of data_preprocessor takes three of them: set it to False")
    if in_channels not in (None, channels):
        raise WrongChannels(
            f"{has}, and the backbone takes {in_channels}: set model.backbone.in_channels={channels}, or load images "
            "in another way (color_type of LoadImageFromFile, bands of LoadMultichannelImage)"
        )
    any_number = getattr(kind, "__name__", "") == DETECTION
    allowed = {channels} if any_number else {1, 3} & {1, channels} if mmdets else {1, channels}
    for name in ("mean", "std"):
        values = preprocessor.get(name)
        if values is not None and len(values) not in allowed:
            give = f"give {' or '.join(map(str, sorted(allowed)))}, or mean=None and std=None"
            if any_number:
                give = f"give {channels}"
            elif mmdets and channels != 3:
                give += f", or {channels} with data_preprocessor.type='mm_vitbackbones.{DETECTION}'"
            raise WrongChannels(
                f"{has}, and data_preprocessor.{name} {len(values)} values, which do not fit: {give} (check_data "
                "--statistics computes them)"
            )


def entries(dataset: Mapping[str, Any], count: int, where: str) -> Iterator[Mapping[str, Any]]:
    """Some entries of a data set, spread evenly over it."""
    if not is_local(dataset):
        return
    kind = look_up(DATASETS, dataset.get("type"))
    if kind is None or not issubclass(kind, BaseDataset):
        return
    if any(getattr(kind, name) is not getattr(BaseDataset, name) for name in ("__getitem__", "prepare_data")):
        return
    listed = list_dataset(dataset, where)
    for index in range(0, len(listed), max(1, len(listed) // count)):
        yield listed.get_data_info(index)


def strange_values(
    images: Iterable[np.ndarray], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> str | None:
    """What is strange about the values of images as they are loaded, and what to do; None if nothing is.

    Args:
        images: looked at one by one, and not kept.
        mean, std: what the model normalises its images by, for each channel or for all.
    """
    with np.errstate(invalid="ignore"):  # infinite values of both signs have no mean, which nothing asks for then
        seen = [(image.min(), image.max(), np.mean(image, dtype=np.float64), image.dtype) for image in images]
    if not seen:
        return None
    lows, highs, middles, kinds = zip(*seen, strict=True)
    low, high, kind = float(np.min(lows)), float(np.max(highs)), kinds[0]
    found = f"of {counted(len(seen), 'image')} ({kind}) that were looked at, the values are {low:g} to {high:g}"
    if not np.isfinite([low, high]).all():
        return f"{found}: a NaN or an infinite value makes every loss NaN; replace them when images are loaded"
    if kind == np.uint8 and high < DARK:
        return (
            f"{found} of 255, nearly black: images of 10 or 12 bits, or labels, may be read as 8 bits; save them with "
            "values up to 255, or load them with color_type='unchanged' and set data_preprocessor's mean and std"
        )
    if mean is None or std is None:
        return None
    centre, spread = float(np.mean(mean)), float(np.mean(std))
    if (centre, spread) == (0, 1):  # as they are
        return None
    middle = float(np.mean(middles))
    normalised = f"{found}, and data_preprocessor normalises them by mean {centre:g} and std {spread:g}"
    if (high - low) / spread < NARROW:
        return f"{normalised}, which leaves hardly any difference: set mean and std to those of the images"
    if abs(middle - centre) / max(spread, abs(centre) / 10) > FAR:
        return f"{normalised}, which leaves values around {(middle - centre) / spread:.0f}: set them to the images' own"
    return None
