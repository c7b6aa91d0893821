"""Two operations whose results ONNX has in one node each, and which PyTorch's exporter cannot look into.

They have shapes that follow from those of their inputs, whatever the values: what is left out is marked, and not cut
off. So an exported detector has no shape that depends on data.

An exported program (``torch.export``) calls them by name: a program that loads one imports this module first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_vitbackbones.mmcv_ops.nms import nms
from mm_vitbackbones.mmcv_ops.roi_align import roi_align_forward

NAMESPACE = "mm_vitbackbones"


@torch.library.custom_op(f"{NAMESPACE}::nms_kept", mutates_args=())
def nms_kept(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Which boxes non-maximum suppression keeps, of those with a score above 0.

    Args:
        boxes: (B, N, 4): x1, y1, x2, y2.
        scores: (B, N), float32.
        most: of one image the first so many are kept, from the highest score down.

    Returns:
        (B, N), bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        above = (scores[image] > 0).nonzero()[:, 0]
        remain = nms(boxes[image][above], scores[image][above], iou_threshold, 0)
        kept[image, above[remain[:most]]] = True
    return kept


@nms_kept.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op(f"{NAMESPACE}::roi_align", mutates_args=())
def roi_align(
    levels: list[Tensor],
    regions: Tensor,
    images: Tensor,
    level: Tensor,
    scales: list[float],
    size: int,
    sampling_ratio: int,
) -> Tensor:
    """RoIAlign (half-pixel centres) of each region in the level that it belongs to.

    Args:
        levels: maps (B, C, H, W), one for each scale.
        regions: (N, 4): x1, y1, x2, y2, in pixels of the image.
        images: (N,), int64: the image of each region.
        level: (N,), int64: the position of its level; -1 for a region that counts for nothing.
        scales: of each level, cells in a pixel.
        size: bins in each direction.
        sampling_ratio: samples of a bin in each direction; 0 for as many as it has cells.

    Returns:
        (N, C, size, size); zeros where the level is -1.

    Source: He et al., "Mask R-CNN", arXiv 1703.06870, section 3.
    """
    out = levels[0].new_zeros(len(regions), levels[0].shape[1], size, size)
    for index, (map, scale) in enumerate(zip(levels, scales, strict=True)):
        at = (level == index).nonzero()[:, 0]
        rois = torch.cat((images[at, None].to(regions.dtype), regions[at]), 1)
        part = out.new_empty(len(at), *out.shape[1:])
        unused = out.new_empty(0)
        roi_align_forward(map, rois, part, unused, unused, size, size, scale, sampling_ratio, 1, True)
        out[at] = part
    return out


@roi_align.register_fake
def _(
    levels: list[Tensor],
    regions: Tensor,
    images: Tensor,
    level: Tensor,
    scales: list[float],
    size: int,
    sampling_ratio: int,
) -> Tensor:
    return levels[0].new_empty(regions.shape[0], levels[0].shape[1], size, size)
