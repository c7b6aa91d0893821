"""Attention to a few positions per level (Zhu et al., Deformable DETR, 2021, equation 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.mmcv_ops.precision import widened


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Each query reads P positions of each of L maps, bilinearly, and sums what it finds by its attention weights.

    Args:
        value: (B, S, heads, C), the tokens of all maps, one map after the other.
        value_spatial_shapes: (L, 2), height and width of each map.
        value_level_start_index: (L,), where each map begins in S; it follows from the shapes, and is not read.
        sampling_locations: (B, Q, heads, L, P, 2), x and y, where 0 and 1 are the outer edges of a map. The value
            outside a map is zero.
        attention_weights: (B, Q, heads, L, P).
        im2col_step: how many images a compiled kernel takes at once; it changes no result, and is not read.

    Returns:
        (B, Q, heads * C). One level's positions are held at a time.
    """
    batch, queries, heads = sampling_locations.shape[:3]
    output = widened(value).new_zeros(batch * heads, value.shape[3], queries)
    for level, (tokens, shape) in enumerate(_levels(value, value_spatial_shapes)):
        output += _read(tokens, shape, sampling_locations[:, :, :, level], attention_weights[:, :, :, level])
    return output.view(batch, -1, queries).transpose(1, 2).to(value.dtype, memory_format=torch.contiguous_format)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Writes the gradients of the three inputs; each level is computed again, and is run backward by autograd."""
    batch, queries, heads = sampling_locations.shape[:3]
    grad = widened(grad_output).view(batch, queries, heads, -1).permute(0, 2, 3, 1).flatten(0, 1)
    start = 0
    for level, (tokens, shape) in enumerate(_levels(value, value_spatial_shapes)):
        parts = (tokens, sampling_locations[:, :, :, level], attention_weights[:, :, :, level])
        leaves = [part.detach().requires_grad_() for part in parts]
        with torch.enable_grad():
            read = _read(leaves[0], shape, leaves[1], leaves[2])
        of_tokens, of_locations, of_weights = torch.autograd.grad(read, leaves, grad)
        grad_value[:, start : start + tokens.shape[1]] = of_tokens
        grad_sampling_loc[:, :, :, level] = of_locations
        grad_attn_weight[:, :, :, level] = of_weights
        start += tokens.shape[1]


def _levels(value: Tensor, shapes: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
    """The tokens of each map (B, H * W, heads, C) and its shape."""
    sizes = [(height, width) for height, width in shapes.tolist()]
    return list(zip(value.split([height * width for height, width in sizes], 1), sizes, strict=True))


def _read(tokens: Tensor, shape: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
    """What all queries read in one map: (B * heads, C, Q)."""
    maps = widened(tokens).permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape)
    grid = widened(locations).mul(2).sub(1).transpose(1, 2).flatten(0, 1)
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (found * widened(weights).transpose(1, 2).flatten(0, 1)[:, None]).sum(3)
