"""Convolutions over grids, whose weights (O, C, k, k) are contiguous parameters.

The maps of such a convolution are permuted grids, that is, channels-last. On a CPU its weight then has to be in
channels-last memory, too: a copy at each call. For small images this copy costs as much as the convolution. So on a CPU
the smaller of two things is copied: the weight, or the patches of the grid. (Keeping the copy of the weight between
calls would take twice the memory, and checking whether it is still valid would take as long as copying it.)

B images, H x W grid, h x w results, C channels in, O channels out, k the side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import anysize, context, linear, memory, onednn, tile_maps
from mm_vitbackbones.ops import depthwise as one_pass
from mm_vitbackbones.ops.once import typed

MANY_PLACES = 16
"""With more places in a patch than this, one strided copy is faster than one copy for each place."""


def over_grid(grid: Tensor, conv: nn.Conv2d) -> Tensor | None:
    """``conv`` over a grid: (B, H, W, C) -> (B, h, w, O). On a CPU, and in training of tiles on CUDA, as a linear map
    of its patches. None where the convolution itself is to be called."""
    if context.is_eager_on_cuda(grid):
        if has_tiles(conv) and linear.trains_on_cuda(grid, conv):
            return tile_maps.over_tiles(grid, conv)
        return _over_maps(grid, conv)
    if context.device_type(grid) == "cuda" and context.is_compiling_to_run():
        return _over_tiles(grid, conv)
    return over_patches(grid, conv)


def _over_tiles(grid: Tensor, conv: nn.Conv2d) -> Tensor | None:
    """A convolution of patches side by side, as a linear map of them, in a graph for images of one size. Its compiler
    makes one pass of what comes before and of the patches, and chooses no other order of memory for the grids: it does
    where there are convolutions, for all that leads to them."""
    height, width = grid.shape[1:3]
    if not has_tiles(conv) or not anysize.are_known(height, width):
        return None
    (down, right), weight = conv.kernel_size, conv.weight
    rows, columns = height // down, width // right
    whole = grid[:, : rows * down, : columns * right]
    tiles = whole.unflatten(1, (rows, down)).unflatten(3, (columns, right)).transpose(2, 3).flatten(3)
    return F.linear(tiles, weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _over_maps(grid: Tensor, conv: nn.Conv2d) -> Tensor | None:
    """The convolution itself, with few calls around it."""
    weight = conv.weight
    if conv.groups > 1 or weight.shape[1] == 1 or conv.padding_mode != "zeros":
        return None
    maps, weight = grid.permute(0, 3, 1, 2), copied(weight)
    return F.conv2d(maps, weight, conv.bias, conv.stride, conv.padding, conv.dilation).permute(0, 2, 3, 1)


def over_patches(grid: Tensor, conv: nn.Conv2d) -> Tensor | None:
    """A linear map of the patches. None where the convolution itself is faster."""
    if context.device_type(grid) != "cpu" or not context.is_eager():
        return None
    if conv.groups > 1 or isinstance(conv.padding, str) or max(conv.dilation) > 1 or conv.padding_mode != "zeros":
        return None
    weight = conv.weight
    places = Places(conv.kernel_size, conv.stride, conv.padding)
    rows, columns = places.results(grid)
    if len(grid) * rows * columns * weight[0].numel() >= weight.numel():
        return None
    linear_by = onednn.linear_by if context.is_plain(conv) else F.linear
    return linear_by(memory.cheap(places.patches, grid), weight.flatten(1), conv.bias)


def conv_norm(grid: Tensor, conv: nn.Module, norm: nn.Module, gelu: bool) -> Tensor | None:
    """``norm(conv(grid))``, with a GELU if asked for, by one operator: (B, H, W, C) -> (B, H', W', C'). In fp32
    inference on a CPU a batch norm is a factor and a term of each channel, which a convolution takes in; None
    elsewhere."""
    if type(norm) is not nn.BatchNorm2d or norm.training or not onednn.usable(grid):
        return None
    if not (isinstance(conv, nn.Conv2d) and context.is_plain(conv) and context.is_plain(norm)):
        return None
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or not grid.dtype == conv.weight.dtype == mean.dtype:
        return None
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return None
    factor = (variance + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight
    term = -mean if conv.bias is None else conv.bias - mean
    term = term * factor if norm.bias is None else norm.bias + term * factor
    weight = channels_last(conv.weight * factor[:, None, None, None])
    return onednn.convolution(grid, conv, weight, term, "gelu" if gelu else "none")


def has_tiles(conv: nn.Conv2d) -> bool:
    """Whether the patches are side by side, without padding, and each is mapped as a whole."""
    return conv.kernel_size == conv.stride and conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.groups == 1


def repeated(maps: Tensor, weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """Maps (B, C, H, W) and groups for a convolution of one channel to several. On CUDA each channel is repeated for
    each of its results: cuDNN has kernels for one result of each channel; for several it would run hundreds, one after
    another."""
    if context.device_type(maps) != "cuda" or weight.shape[1] > 1 or len(weight) == groups or maps.shape[1] != groups:
        return maps, groups
    grid = maps.permute(0, 2, 3, 1).unsqueeze(-1).expand(-1, -1, -1, -1, len(weight) // groups).flatten(3)
    return grid.permute(0, 3, 1, 2), len(weight)


def maps_of(grid: Tensor) -> Tensor:
    """The maps of a grid, for a convolution: (B, H, W, C) -> (B, C, H, W). A view, except in an export."""
    return anysize.in_order(grid.permute(0, 3, 1, 2))


def grid_of(maps: Tensor) -> Tensor:
    """The grid of the maps that a convolution gives: (B, C, H, W) -> (B, H, W, C). A view, except in an export."""
    return anysize.in_order(maps.permute(0, 2, 3, 1))


def channels_last(weight: Tensor) -> Tensor:
    """The weight in channels-last memory. A convolution over a permuted grid then gives a permuted grid, also where
    both formats describe the same memory. In an export it stays as it is, and under function transforms: ``vmap`` over
    weights knows no such format."""
    if context.is_exporting() or context.is_transformed():
        return weight
    if weight.shape[1] == 1:
        # Both formats describe the same memory. These views give it channels-last strides, and its gradient contiguous
        # ones: distributed training warns where the strides of a gradient are not those of its parameter.
        return weight.squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)
    return memory.cheap(copied, weight)


def copied(weight: Tensor) -> Tensor:
    """The weight in channels-last memory."""
    return weight.contiguous(memory_format=torch.channels_last)


Windows = tuple[list[Tensor], list[Tensor]]
"""The weights (C, 1, k, k) and the biases (C,) of depthwise convolutions, each of the next channels."""


def windows(convs: Sequence[nn.Module]) -> Windows | None:
    """What is called in place of several depthwise convolutions, each on channels of its own, more than once. On a CPU
    it is a single one, with zeros around the smaller windows, which splits no map. In eager mode on CUDA, where the
    largest window for all channels takes five times as long (measured on an H200 in bf16), it is the same ones in
    autocast's type.

    Returns:
        None where something is attached to one of them, where one has no bias, and where ``ops.depthwise.split`` is
        faster.
    """
    if not (all(map(context.is_plain, convs)) or all(map(context.is_plain_in_export, convs))):
        return None
    if any(conv.bias is None for conv in convs):
        return None
    weights, biases = [cast(Tensor, conv.weight) for conv in convs], [cast(Tensor, conv.bias) for conv in convs]
    if one_pass.is_for(weights[0]):
        return None
    if context.device_type(weights[0]) == "cuda":
        if not context.is_eager():
            return None
        narrow = context.autocast_dtype_of(weights[0])
        return [typed(x, narrow or x.dtype) for x in weights], [typed(x, narrow or x.dtype) for x in biases]
    largest = max(weight.shape[-1] for weight in weights)
    frames = [F.pad(weight, [(largest - weight.shape[-1]) // 2] * 4) for weight in weights]
    return [torch.cat(frames)], [torch.cat(biases)]


def depthwise(grid: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """``windows`` of a grid, which keep the size: (B, H, W, C) -> (B, H, W, C)."""
    parts = [grid] if len(weights) == 1 else grid.split([len(weight) for weight in weights], -1)
    found = []
    for part, weight, bias in zip(parts, map(channels_last, weights), biases, strict=True):
        padding = [side // 2 for side in weight.shape[2:]]  # PyTorch 2.9 traces no single number
        found.append(grid_of(F.conv2d(maps_of(part), weight, bias, padding=padding, groups=len(weight))))
    return found[0] if len(found) == 1 else torch.cat(found, -1)


class Places:
    """The places of a patch, and the patches of a grid."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.tiles = kernel == stride and not any(padding)
        """Whether the patches are side by side, without gaps, overlaps or padding."""

    def results(self, grid: Tensor) -> tuple[int, int]:
        """h and w."""
        sides = zip(grid.shape[1:3], self.kernel, self.stride, self.padding, strict=True)
        rows, columns = ((side + 2 * pad - kernel) // stride + 1 for side, kernel, stride, pad in sides)
        return rows, columns

    def patches(self, grid: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, h, w, C * k * k), in the order of a flat weight."""
        height, width = self.kernel
        if self.tiles and height * width > MANY_PLACES:
            rows, columns = self.results(grid)
            whole = grid[:, : rows * height, : columns * width]
            tiled = whole.unflatten(1, (rows, height)).unflatten(3, (columns, width))
            return tiled.permute(0, 1, 3, 5, 2, 4).flatten(3)
        bottom, right = self.padding
        padded = F.pad(grid, (0, 0, right, right, bottom, bottom)) if any(self.padding) else grid
        return _Patches.apply(padded, self)

    def at_each_place(self, padded: Tensor, rows: int, columns: int) -> list[Tensor]:
        """Views (B, h, w, C) of a padded grid: the values at each place of the patches."""
        (height, width), (down, right) = self.kernel, self.stride
        return [
            padded[:, y : y + down * rows : down, x : x + right * columns : right]
            for y in range(height)
            for x in range(width)
        ]


class _Patches(torch.autograd.Function):
    """The patches of a padded grid. PyTorch's gradient of each slice would be a full grid, mostly zeros."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Places) -> Tensor:
        (height, width), (down, right) = places.kernel, places.stride
        rows, columns = (padded.shape[1] - height) // down + 1, (padded.shape[2] - width) // right + 1
        ctx.places, ctx.shape, ctx.results = places, padded.shape, (rows, columns)
        return torch.stack(places.at_each_place(padded, rows, columns), -1).flatten(3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Overlaid.apply(grad, ctx.places, ctx.shape, ctx.results), None


class _Overlaid(torch.autograd.Function):
    """The sum of patches at their places in the padded grid: the transpose of ``_Patches``, and its gradient."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, places: Places, shape: torch.Size, results: tuple[int, int]) -> Tensor:
        ctx.places = places
        out = patches.new_zeros(shape)
        values = patches.unflatten(3, (shape[3], -1)).unbind(-1)
        for view, value in zip(places.at_each_place(out, *results), values, strict=True):
            view.add_(value)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Patches.apply(grad, ctx.places), None, None, None
