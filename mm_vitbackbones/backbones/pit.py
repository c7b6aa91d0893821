"""Rethinking Spatial Dimensions of Vision Transformers (PiT: pooling-based vision transformer).

Heo et al., ICCV 2021, arXiv:2103.16302. Official code and weights: github.com/naver-ai/pit (Apache-2.0).

    level  stride  what happens
      0       4    level 1, upsampled by a learned transposed convolution: not in the published network
      1       8    overlapping patches, + position, blocks with full attention
      2      16    depthwise pooling to twice the width, blocks with full attention
      3      32    depthwise pooling to twice the width, blocks with full attention

A class token (two in the distilled variants) takes part in all attention, and each pooling has a linear
map for it. Neither it nor the classifier's final norm is part of a level.

No dense form is published. The official patches are not padded: 224 pixels give 27x27 cells of 8 pixels, with
centres at 8i + 8 (PiT-B: 31x31 of 7). Here the image is padded such that level 1 has ceil(H/8) x ceil(W/8) cells of 8
pixels, with centres at 8i + 4, in every variant; ``stem="published"`` keeps the official geometry, of three levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.base import STRIDES, Backbone, Level, Part, parts_of_stage
from mm_vitbackbones.backbones.checks import Count, Rate, check_spec
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers import (
    BICUBIC,
    Block,
    ChannelsLastConv2d,
    FeedForward,
    LearnedPosition,
    SelfAttention,
    Upsample2x,
    pad_to_multiple,
)
from mm_vitbackbones.layers.drop_path import drop_path_rates
from mm_vitbackbones.ops import joint, memory
from mm_vitbackbones.ops.anysize import ceil_div, first_cells
from mm_vitbackbones.registry import BACKBONES

STAGES = 3
CELL = 8
"""Side of a cell of level 1 in pixels."""


@dataclass(frozen=True)
class Arch:
    """Table 2 of the paper. Tuples have one entry per stage."""

    dims: tuple[int, ...]
    num_heads: tuple[int, ...]
    depths: tuple[int, ...] = (2, 6, 4)
    patch_size: int = 16
    patch_stride: int = 8
    """As published; the aligned stem steps by 8 pixels."""
    pretrain_grid: int = 27
    """Side of the position table: 224 pixels in published patches."""
    num_tokens: int = 1
    """1: the class token; 2: the class token and the distillation token."""

    def __post_init__(self) -> None:
        check_spec(self, STAGES)
        if any(after % before for before, after in zip(self.dims, self.dims[1:], strict=False)):
            raise ArgumentError(f"dims={self.dims}: give multiples of the stage before, as the pooling is depthwise")
        if self.patch_size < CELL or self.patch_size % 2:
            raise ArgumentError(f"patch_size={self.patch_size}: give an even number of at least {CELL} pixels")


ARCHS = {
    "ti": Arch(dims=(64, 128, 256), num_heads=(2, 4, 8)),
    "xs": Arch(dims=(96, 192, 384), num_heads=(2, 4, 8)),
    "s": Arch(dims=(144, 288, 576), num_heads=(3, 6, 12)),
    "b": Arch((256, 512, 1024), (4, 8, 16), depths=(3, 6, 4), patch_size=14, patch_stride=7, pretrain_grid=31),
}
ARCHS |= {f"{name}_distilled": replace(arch, num_tokens=2) for name, arch in ARCHS.items()}


class Stem(nn.Module):
    """Patches with their position, and the class tokens: (B, H, W, Cin) -> (B, T, C) and (B, H', W', C).

    H' is ceil(H/8); in the published form floor((H - patch_size) / patch_stride) + 1.
    """

    def __init__(self, in_channels: int, arch: Arch, published: bool) -> None:
        super().__init__()
        dim, side = arch.dims[0], arch.pretrain_grid
        self.multiple, stride, padding = CELL, CELL, (arch.patch_size - CELL) // 2
        if published:
            self.multiple, stride, padding = 1, arch.patch_stride, 0
        self.proj = ChannelsLastConv2d(in_channels, dim, arch.patch_size, stride, padding)
        self.position = LearnedPosition(dim, side, side, BICUBIC)
        self.class_tokens = nn.Parameter(torch.empty(1, arch.num_tokens, dim))
        nn.init.trunc_normal_(self.class_tokens, std=0.02)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        with memory.saving(image):
            grid = self.position(self.proj(pad_to_multiple(image, self.multiple)))
        return self.class_tokens[0].to(grid.dtype).expand(grid.shape[0], -1, -1), grid


class Pool(nn.Module):
    """Half the sides: (B, T, C) and (B, H, W, C) -> (B, T, C') and (B, ceil(H/2), ceil(W/2), C') (section 3.1)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(dim, out_dim, kernel_size=3, stride=2, padding=1, groups=dim)
        self.fc = nn.Linear(dim, out_dim)

    def forward(self, class_tokens: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(class_tokens), self.conv(grid)


class Stage(nn.Module):
    """Pooling (not in the first), blocks: class tokens (B, T, C) and a grid (B, H, W, C) -> both, of this stage."""

    def __init__(self, arch: Arch, index: int, drop_paths: list[float]) -> None:
        super().__init__()
        dim, heads = arch.dims[index], arch.num_heads[index]
        self.pool = Pool(arch.dims[index - 1], dim) if index > 0 else None
        self.blocks = nn.Sequential(
            *(
                Block(dim, SelfAttention(dim, heads, again=True), FeedForward(dim, 4 * dim), 1e-6, rate)
                for rate in drop_paths
            )
        )

    def forward(self, class_tokens: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        if self.pool is not None:
            class_tokens, grid = self.pool(class_tokens, grid)
        count, sides = class_tokens.shape[1], grid.shape[1:3]
        tokens = self.blocks(torch.cat((class_tokens, grid.flatten(1, 2)), dim=1))
        class_tokens, grid = joint.split(tokens, count)
        return class_tokens, grid.unflatten(1, sides)


@final
@BACKBONES.register_module()
class PiT(Backbone):
    """PiT as an encoder of four levels; the arguments are those of ``Backbone``, and

    stem: ``"aligned"``: strides 4, 8, 16 and 32, as the contract says. ``"published"``: the official geometry, whose
        levels 1 to 3 have strides 8, 16 and 32 (PiT-B: 7, 14 and 28), fewer cells than ceil(H/stride), and equal the
        official features; there is no level 0.
    drop_path_rate: of stochastic depth; block i of n has ``drop_path_rate * i / n``, as in the official code.

    Stages are counted as in the paper: level 0 needs the first only, and ``frozen_stages=4`` freezes its upsampling
    as well, which no published file holds.

    Raises:
        ValueError: besides what ``Backbone`` raises, for an unknown stem and for level 0 of the published one.
    """

    archs = ARCHS
    spec_type = Arch

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "s",
        in_channels: Count = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.1,
        stem: str = "aligned",
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.arch: Arch = self.resolve_arch(arch)
        if stem not in ("aligned", "published"):
            raise ArgumentError(f"stem={stem!r}: give 'aligned' or 'published'")
        published = stem == "published"
        if published and 0 in out_indices:
            raise ArgumentError(f"out_indices={out_indices!r}: the published geometry has levels 1, 2 and 3, and no 0")
        dims, stride = self.arch.dims, self.arch.patch_stride
        widths, strides = (dims[0], *dims), (0, stride, 2 * stride, 4 * stride) if published else STRIDES
        super().__init__(
            widths, in_channels, out_indices, frozen_stages, norm_eval, with_cp, init_cfg, strides, adapters=adapters
        )
        rates = drop_path_rates(drop_path_rate, self.arch.depths, last=False)
        self.stem = Stem(in_channels, self.arch, published)
        self.stages = nn.ModuleList(Stage(self.arch, i, rates[i]) for i in range(max(out_indices[-1], 1)))
        self.upsample = Upsample2x(dims[0]) if 0 in out_indices else None
        # As official, linear maps and convolutions begin as PyTorch makes them; the stem initialises its own tables.
        self.finish()

    def levels(self, image: Tensor) -> Iterator[Level]:
        class_tokens, grid = self.stem(image.permute(0, 2, 3, 1))
        for i, stage in enumerate(self.stages):
            class_tokens, grid = stage(class_tokens, grid)
            if i == 0:  # where nobody asks for level 0, it is the grid as it is
                size = [ceil_div(side, 4) for side in image.shape[2:]]
                yield Level(first_cells(self.upsample(grid), *size) if self.upsample else grid, class_tokens)
            yield Level(grid, class_tokens)

    def token_stride(self, stage: int) -> int:
        return int(self.stem.proj.stride[0]) * 2**stage

    def token_sides(self, stage: int, height: int, width: int) -> tuple[int, int]:
        conv, fill = self.stem.proj, self.stem.multiple
        sides = (-(-side // fill) * fill + 2 * int(conv.padding[0]) - conv.kernel_size[0] for side in (height, width))
        return tuple(-(-(side // conv.stride[0] + 1) // 2**stage) for side in sides)

    def parts(self) -> list[Part]:
        parts = [Part((self.stem,), 0, "open")]
        for index, stage in enumerate(self.stages):
            parts += parts_of_stage(stage, index)
            if index == 0 and self.upsample is not None:
                # Not a stage of the published network.
                parts.append(Part((self.upsample,), STAGES, "close", fresh=True))
        return parts

    def levels_of_block(self, output: Tensor, stage: int, levels: Sequence[Level], _: Tensor) -> list[Level]:
        count, sides = self.arch.num_tokens, levels[stage + 1].grid.shape[1:3]
        return [Level(output[:, count:].unflatten(1, sides), output[:, :count])]
