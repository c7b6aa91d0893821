"""Operations in ONNX, as standard nodes: those of ``operators``, and those of PyTorch that its own exporter has no
translation of, or a long one. Imports onnxscript."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op

from mm_vitbackbones.exporting import operators as ours


def table(graph: torch.fx.Graph) -> Mapping[Any, Callable[..., Any]]:
    """The custom translations that ``torch.onnx.export`` takes, for the operations of a graph."""
    names, aten = torch.ops.mm_vitbackbones, torch.ops.aten
    assert ours.NAMESPACE == "mm_vitbackbones"
    found: dict[Any, Callable[..., Any]] = {
        names.nms_kept.default: nms_kept,
        names.roi_align.default: roi_align,
        aten.flatten.using_ints: flatten,
        aten.unflatten.int: unflatten,
        aten.to.dtype: to_dtype,
        aten.detach_.default: detach,
        aten.rsub.Scalar: rsub,
        aten.__and__.Tensor: both,
        aten.conv_transpose2d.input: conv_transpose2d,
        aten.mT.default: transposed,
        aten.view_as.default: view_as,
        aten.expand_as.default: expand_as,
    }
    conditional: list[tuple[Any, Callable[..., Any], Callable[..., bool]]] = [
        (aten.batch_norm.default, batch_norm, _has_weights_and_statistics),
        (aten.chunk.default, chunk, _can_be_divided),
    ]
    for target, translation, fits in conditional:
        if all(fits(*node.args) for node in graph.nodes if node.target is target):
            found[target] = translation
    return found


def _has_weights_and_statistics(tensor: Any, *arguments: Any) -> bool:
    *tensors, training = arguments[:5]
    return None not in tensors and not training


def _can_be_divided(tensor: torch.fx.Node, chunks: int, dim: int = 0) -> bool:
    size = tensor.meta["val"].shape[dim]
    return isinstance(size, int) and chunks > 1 and size % chunks == 0


def flatten(tensor: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    rank = len(tensor.shape)
    return _with_sizes(tensor, start_dim % rank, end_dim % rank, [-1]) if rank else _reshape(tensor, [-1])


def unflatten(tensor: Any, dim: int, sizes: Sequence[Any]) -> Any:
    dim %= len(tensor.shape)
    open = [size for size in sizes if not isinstance(size, int)]
    if len(open) == 1 and -1 not in sizes:  # Reshape finds it
        sizes = [size if isinstance(size, int) else -1 for size in sizes]
    return _with_sizes(tensor, dim, dim, sizes)


def _with_sizes(tensor: Any, first: int, last: int, sizes: Sequence[Any]) -> Any:
    """A tensor with other sizes in place of those from the first to the last dimension."""
    after = [
        size if isinstance(size, int) else op.Shape(tensor, start=dim, end=dim + 1)
        for dim, size in enumerate(tensor.shape)
        if dim > last
    ]
    return _reshape(tensor, [*[0] * first, *sizes, *after])  # 0: as it is


def _reshape(tensor: Any, sizes: Sequence[Any]) -> Any:
    if all(isinstance(size, int) for size in sizes):
        return op.Reshape(tensor, op.Constant(value_ints=[*sizes]))
    one = op.Constant(value_ints=[-1])
    parts = [op.Constant(value_ints=[size]) if isinstance(size, int) else op.Reshape(size, one) for size in sizes]
    return op.Reshape(tensor, op.Concat(*parts, axis=0))


def view_as(tensor: Any, other: Any) -> Any:
    return op.Reshape(tensor, op.Shape(other))


def expand_as(tensor: Any, other: Any) -> Any:
    return op.Expand(tensor, op.Shape(other))


def transposed(tensor: Any) -> Any:
    rank = len(tensor.shape)
    return op.Transpose(tensor, perm=[*range(rank - 2), rank - 1, rank - 2])


def chunk(tensor: Any, chunks: int, dim: int = 0) -> Any:
    return op.Split(tensor, axis=dim, num_outputs=chunks)


def to_dtype(tensor: Any, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: Any = None) -> Any:
    return op.Cast(tensor, to=dtype)


def detach(tensor: Any) -> Any:
    return op.Identity(tensor)


def rsub(tensor: Any, other: Any, alpha: Any = 1) -> Any:
    """``other - alpha * tensor``"""
    return op.Sub(_like(other, tensor), tensor if alpha == 1 else op.Mul(_like(alpha, tensor), tensor))


def _like(number: Any, tensor: Any) -> Any:
    if isinstance(number, int):
        number = op.Constant(value_int=number)
    elif isinstance(number, float):
        number = op.Constant(value_float=number)
    return op.CastLike(number, tensor)


def both(one: Any, other: Any) -> Any:
    return op.And(one, other)


def batch_norm(
    tensor: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    return op.BatchNormalization(tensor, weight, bias, mean, variance, epsilon=eps)


def conv_transpose2d(
    tensor: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> Any:
    return op.ConvTranspose(
        tensor,
        weight,
        bias,
        strides=_pair(stride),
        pads=_pair(padding) * 2,
        output_padding=_pair(output_padding),
        group=groups,
        dilations=_pair(dilation),
    )


def _pair(sizes: Sequence[int]) -> list[int]:
    return [*sizes] * (2 // len(sizes))


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
