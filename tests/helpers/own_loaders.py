"""Loading transforms as users write them: images of five bands and masks, from .npy files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS

from helpers.bands import write_boxes

BANDS = 5


@TRANSFORMS.register_module(force=True)
class LoadBands:
    """An image (H, W, 5), float32, from a .npy file."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = np.load(results["img_path"])
        return {**results, "img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


@TRANSFORMS.register_module(force=True)
class LoadNpyMask:
    """A label map from a .npy file, whose values are 10 times the labels."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        labels = (np.load(results["seg_map_path"]) // 10).astype(np.uint8)
        results["seg_fields"].append("gt_seg_map")
        return {**results, "gt_seg_map": labels}


def write_bands(root: Path, count: int = 2, size: tuple[int, int] = (48, 64)) -> None:
    """Images of five bands and masks of the labels 0 and 1, as .npy files, and a COCO-format file with one object in
    each image."""
    rng = np.random.default_rng(0)
    height, width = size
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        np.save(root / "images" / f"{index}.npy", rng.normal(1000, 300, (height, width, BANDS)).astype(np.float32))
        np.save(root / "masks" / f"{index}.npy", rng.integers(0, 2, (height, width), dtype=np.int64) * 10)
    write_boxes(root, [f"{index}.npy" for index in range(count)], size)
