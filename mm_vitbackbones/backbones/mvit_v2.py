"""MViTv2: Improved Multiscale Vision Transformers for Classification and Detection.

Li et al., CVPR 2022, arXiv:2112.01526. Official code and weights: github.com/facebookresearch/mvit (Apache-2.0); the
dense form is that of detectron2 (Apache-2.0).

    level  stride  what happens
      0       4    overlapping 7x7 patches, blocks
      1       8    blocks, the first of which halves the grid and doubles the channels
      2      16    the same
      3      32    the same

Queries, keys and values are pooled by convolutions before attention, keys and values more than queries:

    q, k, v = norm(pool(linear(x)));  attn(x) = linear(softmax(q k' / sqrt(d) + R) v + q)

R are terms for the distance in rows and in columns. Blocks attend in windows, except for the last of each later stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.backbones.base import Backbone, Level, Part, parts_of_stage
from mm_vitbackbones.backbones.checks import Count, Rate, check_spec
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers import (
    Branch,
    ChannelsLastConv2d,
    DropPath,
    FeedForward,
    LayerNorm,
    ResidualBlock,
    drop_path_rates,
    init_linears_and_norms,
)
from mm_vitbackbones.ops import context, linear, looking, memory, norm, pooling, residual
from mm_vitbackbones.ops.chained import Forked, Pending, finished
from mm_vitbackbones.registry import BACKBONES

KEY_STRIDES = (4, 2, 1, 1)
"""Of the keys and values, by stage. The last block of the second and third stage has twice as much: it is global."""
EPS = 1e-6


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper. Tuples have one entry per stage."""

    depths: tuple[int, ...]
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    window_size: int = 56
    """Of the first stage, in patches; in later stages half of the one before."""
    pretrain_grid: int = 56
    """Side of the first stage's grid that the tables of distances are for: 224 pixels in patches."""

    def __post_init__(self) -> None:
        check_spec(self)
        if self.window_size % 8 or self.pretrain_grid % 8:
            raise ArgumentError(
                f"window_size={self.window_size} and pretrain_grid={self.pretrain_grid}: give multiples of 8, as later "
                "stages halve them three times"
            )


ARCHS = {
    "tiny": Arch(depths=(1, 2, 5, 2)),
    "small": Arch(depths=(1, 2, 11, 2)),
    "base": Arch(depths=(2, 3, 16, 3)),
    "large": Arch(depths=(2, 6, 36, 4), dims=(144, 288, 576, 1152), num_heads=(2, 4, 8, 16)),
}


@context.plain
class PoolingAttention(nn.Module):
    """Attention with pooled queries, keys and values: (B, H, W, C) -> (B, ceil(H/s), ceil(W/s), C') for queries of
    stride s.

    Args:
        stride: of the queries.
        key_stride: of the keys and values.
        window_size: side of the windows, in tokens of the input; None: all attend to all.
        side: of the input's grid that the tables are for.
    """

    def __init__(
        self, dim: int, out_dim: int, num_heads: int, stride: int, key_stride: int, window_size: int | None, side: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.strides = (stride, key_stride)
        self.windows = None if window_size is None else (window_size // stride, window_size // key_stride)
        self.qkv = nn.Linear(dim, 3 * out_dim)
        self.proj = nn.Linear(out_dim, out_dim)
        width = out_dim // num_heads
        self.pool_q, self.pool_k, self.pool_v = (
            ChannelsLastConv2d(width, width, 3, s, 1, groups=width, bias=False)
            for s in (stride, key_stride, key_stride)
        )
        self.norm_q, self.norm_k, self.norm_v = (LayerNorm(width, eps=EPS) for _ in range(3))
        count = 2 * max(side // stride, side // key_stride) - 1
        self.rows, self.columns = (nn.Parameter(torch.empty(count, width)) for _ in range(2))
        for table in (self.rows, self.columns):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, grid: Tensor) -> Tensor:
        return finished(self.begun(grid))

    def begun(self, grid: Tensor | Forked) -> Tensor | Pending:
        """``forward``, whose last map may be left to the caller."""
        inner: dict[str, Any] = self._modules  # `self.qkv` takes PyTorch as long as a launch
        pools = inner["pool_q"], inner["pool_k"], inner["pool_v"]
        norms = inner["norm_q"], inner["norm_k"], inner["norm_v"]
        pooled = pooling.pooled_parts(linear.linear(grid, inner["qkv"]), pools, self.num_heads)
        query, key, value = (norm.for_linear(x, each, again=False) for x, each in zip(pooled, norms, strict=True))
        out = pooling.attend(query, key, value, self.rows, self.columns, self.windows)
        return linear.begun(out, inner["proj"])

    def looks_at(self, grid: Tensor) -> looking.Shares:
        """The attention weights of chosen queries, which are pooled as the keys are."""
        query, key, _ = linear.linear(grid, self.qkv).chunk(3, dim=-1)
        query = self.norm_q(pooling.pooled(query, self.pool_q, self.num_heads))
        key = self.norm_k(pooling.pooled(key, self.pool_k, self.num_heads))
        tables, extent = (self.rows, self.columns), (grid.shape[1], grid.shape[2])
        return looking.of_pooled(query, key, *tables, self.windows, self.strides, extent)


@context.plain
class PoolingBlock(ResidualBlock):
    """x + attn(norm1(x)), then x + ffn(norm2(x)). In the first block of a later stage, the first x is
    maxpool(shortcut(norm1(x))): half the grid and other channels."""

    def __init__(self, attn: PoolingAttention, dim: int, out_dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=EPS)
        self.attn = attn
        self.shortcut = nn.Linear(dim, out_dim) if dim != out_dim else None
        self.norm2 = LayerNorm(out_dim, eps=EPS)
        self.ffn = FeedForward(out_dim, 4 * out_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, grid: Tensor) -> Tensor:
        return self.drawn_and_computed(grid, grid)

    def computed(self, drawn: Sequence[Tensor], grid: Tensor) -> Tensor:
        return self.recomputed(self.residuals, grid, *drawn)

    def residuals(self, grid: Tensor, *drawn: Tensor) -> Tensor:
        first, second = self.drops(drawn)
        parts: dict[str, Any] = self._modules
        attn, ffn = Branch(parts["norm1"], parts["attn"], first), Branch(parts["norm2"], parts["ffn"], second)
        with memory.saving(grid):
            if (shortcut := parts.get("shortcut")) is None:
                return residual.add_branches(grid, (attn, ffn), self.lightly)
            normed = norm.for_linear(grid, attn.norm)
            # Under autocast the sums stay in fp32, also after a linear map.
            grid = halved(linear.linear(normed, shortcut).to(grid.dtype)) + first(attn.function(normed))
            return residual.add_branches(grid, (ffn,), self.lightly)


def halved(grid: Tensor) -> Tensor:
    """The largest of 3x3 cells around every second one: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C)."""
    return F.max_pool2d(grid.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Overlapping patches: (B, H, W, Cin) -> (B, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = ChannelsLastConv2d(in_channels, dim, 7, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).to(image.dtype)


class Stage(nn.Module):
    """(B, H, W, Cin) -> (B, ceil(H/stride), ceil(W/stride), C). ``norm`` is for the returned level, not for the next
    stage; a level that is not returned has none."""

    def __init__(self, in_channels: int, arch: Arch, index: int, drop_paths: list[float], returned: bool) -> None:
        super().__init__()
        if index == 0:
            self.patch_embed = PatchEmbed(in_channels, arch.dims[0])
        self.blocks = nn.Sequential(*(self.make_block(arch, index, i, rate) for i, rate in enumerate(drop_paths)))
        self.norm = LayerNorm(arch.dims[index], eps=EPS) if returned else nn.Identity()

    @staticmethod
    def make_block(arch: Arch, index: int, i: int, drop_path: float) -> PoolingBlock:
        """Block ``i`` of stage ``index``."""
        strided, last = index > 0 and i == 0, i == arch.depths[index] - 1
        before = index - 1 if strided else index  # the stage whose grid enters
        key_stride = KEY_STRIDES[index] * (2 if last and index in (1, 2) else 1)
        attn = PoolingAttention(
            arch.dims[before],
            arch.dims[index],
            arch.num_heads[index],
            stride=2 if strided else 1,
            key_stride=key_stride,
            window_size=None if last and index else arch.window_size // 2**before,
            side=arch.pretrain_grid // 2**before,
        )
        return PoolingBlock(attn, arch.dims[before], arch.dims[index], drop_path)

    def forward(self, grid: Tensor) -> Tensor:
        return self.blocks(self.patch_embed(grid) if hasattr(self, "patch_embed") else grid)


@final
@BACKBONES.register_module()
class MViTv2(Backbone):
    """MViTv2 as an encoder of four levels; the arguments are those of ``Backbone``, and ``drop_path_rate``, the rate of
    stochastic depth at the last block (it grows linearly from 0; the dense recipes take 0.2 for tiny and small, 0.4 for
    base, 0.5 for large)."""

    archs = ARCHS
    spec_type = Arch

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "tiny",
        in_channels: Count = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.2,
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.arch: Arch = self.resolve_arch(arch)
        super().__init__(
            self.arch.dims, in_channels, out_indices, frozen_stages, norm_eval, with_cp, init_cfg, adapters=adapters
        )
        rates = drop_path_rates(drop_path_rate, self.arch.depths)
        self.stages = nn.ModuleList(
            Stage(in_channels, self.arch, i, rates[i], returned=i in out_indices) for i in range(out_indices[-1] + 1)
        )
        init_linears_and_norms(self)
        self.finish()

    def levels(self, image: Tensor) -> Iterator[Level]:
        grid = image.permute(0, 2, 3, 1)
        for stage in self.stages:
            grid = stage(grid)
            yield Level(cast(Stage, stage).norm(grid))

    def parts(self) -> list[Part]:
        parts = (part for index, stage in enumerate(self.stages) for part in parts_of_stage(stage, index))
        return [part._replace(fresh=part.kind == "close") for part in parts]  # the norms of levels
