"""The operations of ``operators`` in ONNX: standard nodes. Imports onnxscript."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op

from mm_vitbackbones.exporting import operators as ours


def table() -> Mapping[Any, Callable[..., Any]]:
    """The custom translations that ``torch.onnx.export`` takes."""
    names = torch.ops.mm_vitbackbones
    assert ours.NAMESPACE == "mm_vitbackbones"
    return {names.nms_kept.default: nms_kept, names.roi_align.default: roi_align}


def nms_kept(boxes: Any, scores: Any, iou_threshold: float, most: int) -> Any:
    chosen = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[0.0]),
    )  # (K, 3): image, class, box
    at = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
    count = op.Shape(chosen, start=0, end=1)
    false = op.ConstantOfShape(op.Shape(scores), value=_one(onnx.TensorProto.BOOL, False))
    true = op.ConstantOfShape(count, value=_one(onnx.TensorProto.BOOL, True))
    return op.ScatterND(false, at, true)


def roi_align(
    levels: Sequence[Any],
    regions: Any,
    images: Any,
    level: Any,
    scales: Sequence[float],
    size: int,
    sampling_ratio: int,
) -> Any:
    sizes = op.Concat(
        op.Shape(regions, start=0, end=1),
        op.Shape(levels[0], start=1, end=2),
        op.Constant(value_ints=[size, size]),
        axis=0,
    )
    out = op.CastLike(op.ConstantOfShape(sizes), levels[0])
    for index, (map, scale) in enumerate(zip(levels, scales, strict=True)):
        at = op.Transpose(op.NonZero(op.Equal(level, op.Constant(value_int=index))), perm=[1, 0])  # (M, 1)
        flat = op.Squeeze(at, op.Constant(value_ints=[1]))
        part = op.RoiAlign(
            map,
            op.CastLike(op.Gather(regions, flat, axis=0), map),
            op.Gather(images, flat, axis=0),
            coordinate_transformation_mode="half_pixel",
            mode="avg",
            output_height=size,
            output_width=size,
            sampling_ratio=sampling_ratio,
            spatial_scale=scale,
        )
        out = op.ScatterND(out, at, part)
    return out


def _one(kind: int, value: Any) -> Any:
    return onnx.helper.make_tensor("value", kind, [1], [value])
