"""Loading of images of any number of bands, as the first step of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm_vitbackbones.data.bands import check_bands, read_bands
from mm_vitbackbones.errors import DataError, UserError
from mm_vitbackbones.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadMultichannelImage:
    """Loads the image ``img_path`` with all its bands from a .npy or TIFF file, in the order of the file.

    The image is (height, width, bands), uint8 where the file is and float32 otherwise. A TIFF file may have a page for
    each band, or (with the package tifffile) several bands in a page.

    Args:
        bands: those to take, in this order, numbered from 1. All, if None.
        channels_first: the array of a .npy file is (bands, height, width).

    Raises:
        UserError: ``bands`` is no list of numbers from 1.
    """

    def __init__(self, bands: Sequence[int] | None = None, channels_first: bool = False) -> None:
        if bands is not None:
            check_bands(bands, "bands of LoadMultichannelImage")
        self.bands = bands
        self.channels_first = channels_first

    def __call__(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Adds ``img``, ``img_shape`` and ``ori_shape``, both (height, width).

        Raises:
            DataError: the file cannot be read.
        """
        path = results["img_path"]
        try:
            image = read_bands(path, self.bands, self.channels_first)
        except (OSError, UserError) as error:
            raise DataError(f"{error}: {path}") from None
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bands={self.bands}, channels_first={self.channels_first})"
