"""Mean and standard deviation of the channels of a data set's images, as its pipeline loads them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mm_vitbackbones.data.image_parts import parts
from mm_vitbackbones.data.reading import ImageReader, LeftOutImage, naming
from mm_vitbackbones.errors import UserError


class Statistics:
    """Counts, means and squared deviations of channels, image by image. Values that are not finite do not count."""

    def __init__(self) -> None:
        self.images = 0
        self.left_out = 0
        self.count: np.ndarray | None = None
        self.mean: np.ndarray
        self._squares: np.ndarray

    def add(self, image: np.ndarray) -> None:
        """An image (height, width) or (height, width, channels).

        Raises:
            UserError: it has another number of channels than those before.
        """
        channels = image.shape[2] if image.ndim == 3 else 1
        if self.count is None:
            self.count, self.mean, self._squares = np.zeros((3, channels))
        elif len(self.count) != channels:
            raise UserError(f"it has {channels} channels, and the images before it have {len(self.count)}")
        self.images += 1
        for part in parts(image):
            values = part.reshape(-1, channels)
            if values.dtype == np.uint8:
                self._add_counted(values)
                continue
            with np.errstate(invalid="ignore"):  # a signalling NaN is left out as any other
                self._add_part(values.astype(np.float64))

    def _add_part(self, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        self.left_out += int(values.size - finite.sum())
        new = finite.sum(0)
        mean = np.where(finite, values, 0).sum(0) / np.maximum(new, 1)
        self._merge(new, mean, ((np.where(finite, values, mean) - mean) ** 2).sum(0))

    def _add_counted(self, values: np.ndarray) -> None:
        """``_add_part`` of bytes, by how often each value is there: an image of 100 million pixels takes a second."""
        levels = np.arange(256.0)[:, None]
        often = np.stack([np.bincount(channel, minlength=256) for channel in values.T], axis=1)
        mean = (often * levels).sum(0) / max(len(values), 1)
        self._merge(often.sum(0), mean, (often * (levels - mean) ** 2).sum(0))

    def _merge(self, new: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> None:
        """Take in so many more values of each channel, with their mean and the sum of their squared distances to it."""
        total = np.maximum(self.count + new, 1)
        apart = mean - self.mean
        self._squares = self._squares + squares + apart**2 * self.count * new / total
        self.mean = self.mean + apart * new / total
        self.count = self.count + new

    @property
    def std(self) -> np.ndarray:
        """Of each channel, over all pixels of all images."""
        assert self.count is not None
        return np.sqrt(self._squares / np.maximum(self.count, 1))


def add_images(statistics: Statistics, pipeline: Any, infos: Iterable[Mapping[str, Any]], where: str) -> Iterator[None]:
    """Add images of a data set, one at each step.

    Raises:
        UserError: one cannot be loaded, or has another number of channels than those before.
    """
    read = ImageReader(pipeline or ())
    for info in infos:
        with contextlib.suppress(LeftOutImage), naming(info, where):
            image = read(info, as_used=True)
            try:
                statistics.add(image)
            except UserError as error:
                raise UserError(f"{where}: {info.get('img_path')}: {error}") from None
        yield
