"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows.

Liu et al., ICCV 2021, arXiv:2103.14030. Official code and weights: github.com/microsoft/Swin-Transformer (MIT); what
dense prediction adds is in github.com/SwinTransformer/Swin-Transformer-Object-Detection (Apache-2.0).

    level  stride  what happens
      0       4    4x4 patches, LayerNorm, blocks with attention in windows and shifted windows, alternating
      1       8    2x2 neighbours merged, blocks as above
      2      16    2x2 neighbours merged, blocks as above
      3      32    2x2 neighbours merged, blocks as above

Each returned level has a LayerNorm of its own, which the classifier's files lack and the next stage does not use.
A grid that the windows do not fill is padded with zeros at the bottom and right, after the norm: the padding takes part
in attention, as official.
A grid of one window is shifted, too, as in the official detectors and segmentors. The official classifier, and timm, do
not shift there: at 224x224 their last level differs.

Shapes: B images, H x W grid, C channels, h heads, w side of a window, n = w*w places in it, K windows in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.base import Backbone, Level, Part, parts_of_stage
from mm_vitbackbones.backbones.checks import Count, Minimum, Rate, check_spec
from mm_vitbackbones.layers import (
    Block,
    FeedForward,
    LayerNorm,
    PatchEmbed,
    drop_path_rates,
    init_linears_and_norms,
    pad_to_multiple,
)
from mm_vitbackbones.ops import attention, context, looking, merging, window_heads, windows
from mm_vitbackbones.ops.chained import Forked, Pending, finished
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Arch:
    """Section 3.3 of the paper. Tuples have one entry per stage."""

    depths: tuple[int, ...]
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: Annotated[int, Minimum(2)] = 7
    """12 in the networks that were trained at 384 pixels."""

    def __post_init__(self) -> None:
        check_spec(self)


BASE = Arch(depths=(2, 2, 18, 2), dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32))
LARGE = Arch(depths=(2, 2, 18, 2), dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48))
ARCHS = {
    "tiny": Arch(depths=(2, 2, 6, 2)),
    "small": Arch(depths=(2, 2, 18, 2)),
    "base": BASE,
    "large": LARGE,
    "base_w12": replace(BASE, window_size=12),
    "large_w12": replace(LARGE, window_size=12),
}


@context.plain
class WindowAttention(nn.Module):
    """Self-attention in windows of w x w tokens, with a bias by relative position (section 3.2):

        softmax(Q K' / sqrt(d) + B) V

    With a shift, the windows begin ``shift`` rows and columns later. The windows at the end also hold the
    first rows and columns, and a mask, which is part of the bias, separates them.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # The official name: optimizer rules exempt it from weight decay by this name.
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, grid: Tensor) -> Tensor:
        return finished(self.begun(grid))

    def begun(self, grid: Tensor | Forked) -> Tensor | Pending:
        """``forward``, whose last map may be left to the caller."""
        inner, sizes = cast("dict[str, Any]", self._modules), (self.window_size, self.shift, self.num_heads)
        table = self.relative_position_bias_table
        return window_heads.attention(grid, inner["qkv"], self.attend, inner["proj"], table, *sizes)

    def looks_at(self, grid: Tensor) -> looking.Shares:
        """The attention weights of chosen queries."""
        table = windows.bias_of(self.relative_position_bias_table, self.window_size, self.shift)

        def bias(_: Tensor, place: Tensor, group: Tensor) -> Tensor:
            return table[group, :, place].transpose(0, 1).unsqueeze(0)

        return looking.in_windows(grid, self.qkv, self.num_heads, self.window_size, self.shift, bias)

    def attend(self, qkv: Tensor, bias: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """In each window: queries, keys and values (K, n, 3C) and biases -> (K, n, C)."""
        return attention.attend_with_bias(qkv, bias, self.num_heads, sizes)


@context.plain
class PatchMerging(nn.Module):
    """2x2 neighbours as one token of fewer channels: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), dim)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * in_channels, eps=1e-5)
        self.reduction = nn.Linear(4 * in_channels, dim, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        return merging.merged(pad_to_multiple(grid, 2), self.norm, self.reduction)


class Stage(nn.Module):
    """Patch embedding or merging, then blocks: (B, H, W, Cin) -> (B, ceil(H/stride), ceil(W/stride), C).

    ``norm`` is for the returned level, not for the next stage; a level that is not returned has none.
    """

    def __init__(
        self,
        in_channels: int,
        arch: Arch,
        index: int,
        drop_paths: list[float],
        returned: bool,
    ) -> None:
        super().__init__()
        dim, heads, side = arch.dims[index], arch.num_heads[index], arch.window_size
        self.patch_embed = PatchEmbed(in_channels, dim, 4, 4) if index == 0 else PatchMerging(in_channels, dim)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    attn=WindowAttention(dim, heads, side, shift=side // 2 if i % 2 else 0),
                    ffn=FeedForward(dim, 4 * dim),
                    norm_eps=1e-5,
                    drop_path=drop_path,
                )
                for i, drop_path in enumerate(drop_paths)
            )
        )
        self.norm = LayerNorm(dim, eps=1e-5) if returned else nn.Identity()

    def forward(self, grid: Tensor) -> Tensor:
        return self.blocks(self.patch_embed(grid))


@final
@BACKBONES.register_module()
class Swin(Backbone):
    """Swin as an encoder of four levels; the arguments are those of ``Backbone``, and ``drop_path_rate``, the rate of
    stochastic depth at the last block (it grows linearly from 0; the dense recipes take 0.2 for tiny, 0.3 for larger
    ones)."""

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
        widths = (in_channels, *self.arch.dims)
        self.stages = nn.ModuleList(
            Stage(widths[i], self.arch, i, rates[i], returned=i in out_indices) for i in range(out_indices[-1] + 1)
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
