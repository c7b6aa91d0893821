"""Co-Scale Conv-Attentional Image Transformers (CoaT, and CoaT-Lite).

Xu et al., ICCV 2021, arXiv:2104.06399. Official code and weights: github.com/mlpc-ucsd/CoaT (Apache-2.0).

    level  stride  what happens
      0       4    4x4 patches, LayerNorm, serial blocks
      1       8    2x2 patches, LayerNorm, serial blocks  \\
      2      16    2x2 patches, LayerNorm, serial blocks   > CoaT: parallel blocks, in which the three levels meet
      3      32    2x2 patches, LayerNorm, serial blocks  /

CoaT-Lite has no parallel blocks. Each stage has a class token, which takes part in the attention of all its blocks and
is no part of what a level returns. Two kinds of depthwise convolutions replace position embeddings; the blocks of a
stage, serial and parallel, share them: the stage owns them and hands them to its blocks.

*Tokens* are here a pair: the class token (B, 1, 1, C) and the grid (B, H, W, C). All maps of tokens act on both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.backbones.base import STRIDES, Backbone, check_stages, recompute_mode
from mm_vitbackbones.layers import (
    ChannelsLastConv2d,
    DropPath,
    FeedForward,
    LayerNorm,
    PatchEmbed,
    add_residual,
    check_drop_path_rate,
    init_linears_and_norms,
)
from mm_vitbackbones.ops import onednn as fused
from mm_vitbackbones.ops.context import autocast_to, is_compiling
from mm_vitbackbones.ops.memory import recompute, recompute_between
from mm_vitbackbones.ops.resize import resize_grid
from mm_vitbackbones.registry import BACKBONES

Tokens = tuple[Tensor, Tensor]
"""The class token (B, 1, 1, C) and the grid (B, H, W, C)."""

NUM_HEADS = 8
WINDOWS = {3: 2, 5: 3, 7: 3}
"""Relative positions: the side of the window, and how many of the heads, in this order, look through it."""
PARALLEL = (1, 2, 3)
"""The levels that meet in the parallel blocks."""


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper. Tuples have one entry per stage."""

    depths: tuple[int, ...] = (2, 2, 2, 2)
    dims: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    parallel_depth: int = 0
    """Parallel blocks; 0 for CoaT-Lite. They need levels 1 to 3 of one width."""
    num_heads: ClassVar[tuple[int, ...]] = (NUM_HEADS,) * len(STRIDES)

    def __post_init__(self) -> None:
        check_stages(self)
        if self.parallel_depth < 0:
            raise ValueError(f"parallel_depth={self.parallel_depth}: give the number of parallel blocks, or 0")
        if self.parallel_depth and len({(self.dims[i], self.mlp_ratios[i]) for i in PARALLEL}) > 1:
            raise ValueError(
                f"dims={self.dims} and mlp_ratios={self.mlp_ratios}: those of the last three stages have to be equal, "
                "as the parallel blocks add their maps and share their feed-forward network"
            )


ARCHS = {
    "tiny": Arch(dims=(152, 152, 152, 152), mlp_ratios=(4, 4, 4, 4), parallel_depth=6),
    "mini": Arch(dims=(152, 216, 216, 216), mlp_ratios=(4, 4, 4, 4), parallel_depth=6),
    "small": Arch(dims=(152, 320, 320, 320), mlp_ratios=(4, 4, 4, 4), parallel_depth=6),
    "lite_tiny": Arch(dims=(64, 128, 256, 320)),
    "lite_mini": Arch(),
    "lite_small": Arch(depths=(3, 4, 6, 3)),
    "lite_medium": Arch(depths=(3, 6, 10, 8), dims=(128, 256, 320, 512), mlp_ratios=(4, 4, 4, 4)),
}


class ConvPosition(nn.Module):
    """The convolutional position encoding, x + dwconv3x3(x) over a grid (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, grid: Tensor) -> Tensor:
        return add_residual(grid, self.conv(grid))


class ConvRelativePosition(nn.Module):
    """The weights of the convolutional relative position encoding: depthwise windows over the values.

    Heads differ in the side of their window. The smaller windows are framed with zeros, so that a stage's heads are
    one convolution over the whole map: faster than one for each side, which would cut the map apart and join it again.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = {side: heads * dim // NUM_HEADS for side, heads in WINDOWS.items()}
        self.convs = nn.ModuleList(
            ChannelsLastConv2d(width, width, side, groups=width) for side, width in widths.items()
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        """The weight (C, 1, 7, 7) and the bias (C,) of the one convolution."""
        convs = [cast(nn.Conv2d, conv) for conv in self.convs]
        largest = max(WINDOWS)
        framed = [F.pad(conv.weight, [(largest - conv.kernel_size[0]) // 2] * 4) for conv in convs]
        weight = torch.cat(framed).contiguous(memory_format=torch.channels_last)
        return weight, torch.cat([cast(Tensor, conv.bias) for conv in convs])


class Shared(NamedTuple):
    """What the blocks of a stage share."""

    cpe: ConvPosition
    weight: Tensor
    """Of the relative positions, and their bias: see ``ConvRelativePosition``."""
    bias: Tensor

    def relative_position(self, value: Tensor) -> Tensor:
        """What the heads see around each place of a grid of values (B, H, W, C), before the query weighs it."""
        maps = value.permute(0, 3, 1, 2)
        padding = self.weight.shape[-1] // 2
        return F.conv2d(maps, self.weight, self.bias, padding=padding, groups=len(self.weight)).permute(0, 2, 3, 1)


def heads(tokens: Tensor) -> Tensor:
    """A view: (..., N, C) -> (..., heads, N, C / heads)."""
    return tokens.unflatten(-1, (NUM_HEADS, -1)).transpose(-3, -2)


class FactorizedAttention(nn.Module):
    """Factorised attention with relative positions: q (softmax(k)' v) / sqrt(d) + q * crpe(v).

    The softmax is over the tokens, the class token among them, so that what the queries meet is a matrix of d x d for
    each head and never one of tokens by tokens. Relative positions are for the grid alone.
    """

    def __init__(self, dim: int, recomputed: str | None = None) -> None:
        super().__init__()
        self.recomputed = recomputed
        self.scale = (dim // NUM_HEADS) ** -0.5
        self.qk = nn.Linear(dim, 2 * dim)
        self.v = nn.Linear(dim, dim)  # apart, so that the convolution finds a map of its own
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tokens, norm: nn.Module, shared: Shared) -> Tokens:
        cls, grid = tokens
        cls_normed = norm(cls).flatten(1, 2)
        cls_query, cls_key = self.qk(cls_normed).chunk(2, dim=-1)
        attend = self._fast if fused.usable(grid) else self._lean
        grid, context = attend(grid, norm, shared, cls_key, self.v(cls_normed))
        cls_out = (heads(cls_query) @ context).transpose(1, 2).flatten(2)
        return self.proj(cls_out).view_as(cls), grid

    def _lean(
        self, grid: Tensor, norm: nn.Module, shared: Shared, cls_key: Tensor, cls_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The grid's attention, and the context (B, heads, d, d) of all tokens. In training the norm's result and the
        softmax are computed again in the backward pass instead of kept."""
        query_key, value = recompute_between(grid, norm, lambda normed: (self.qk(normed), self.v(normed)))
        query, key = query_key.flatten(1, 2).chunk(2, dim=-1)
        # Compilers choose by themselves what to compute again.
        contract = self._context if is_compiling() else partial(recompute, self._context)
        context = contract(key, value.flatten(1, 2), cls_key, cls_value).to(query.dtype)
        combine = partial(recompute, self._combine) if self.recomputed == "ffn" and self.training else self._combine
        return combine(query, value, context, shared), context

    def _combine(self, query: Tensor, value: Tensor, context: Tensor, shared: Shared) -> Tensor:
        position = shared.relative_position(value).flatten(1, 2)
        out = torch.addcmul((heads(query) @ context).transpose(1, 2).flatten(2), query, position)
        return self.proj(out).view_as(value)

    def _context(self, key: Tensor, value: Tensor, cls_key: Tensor, cls_value: Tensor) -> Tensor:
        """softmax(k)' v / sqrt(d) of all tokens: keys and values (B, N, C) and (B, 1, C) -> (B, heads, d, d).

        In fp32 at least: of a hundred thousand tokens a narrower type would lose most.
        """
        with autocast_to(key.device, None):
            dtype = torch.promote_types(key.dtype, torch.float32)
            key, value, cls_key, cls_value = (x.to(dtype) for x in (key, value, cls_key, cls_value))
            largest = torch.maximum(key.amax(1, keepdim=True), cls_key).detach()
            weight, cls_weight = (key - largest).exp(), (cls_key - largest).exp()
            total = weight.sum(1, keepdim=True) + cls_weight
            context = heads(weight).mT @ heads(value) + heads(cls_weight).mT @ heads(cls_value)
            return context * (self.scale / heads(total).mT)

    def _fast(
        self, grid: Tensor, norm: nn.Module, shared: Shared, cls_key: Tensor, cls_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Equal to ``_lean``, for inference on CPU: in place, and head by head, which copies nothing."""
        normed = norm(grid)
        query, key = fused.linear(normed, self.qk).flatten(1, 2).chunk(2, dim=-1)
        value = fused.linear(normed, self.v)
        del normed
        largest = torch.maximum(key.amax(1, keepdim=True), cls_key)
        weight, cls_weight = key.sub_(largest).exp_(), (cls_key - largest).exp_()
        total = weight.sum(1, keepdim=True).add_(cls_weight)
        context = torch.stack([heads(w).mT @ heads(v) for w, v in zip(weight, value.flatten(1, 2), strict=True)])
        context = context.add_(heads(cls_weight).mT @ heads(cls_value)).mul_(self.scale / heads(total).mT)
        out = shared.relative_position(value).flatten(1, 2).mul_(query)
        for image, q, matrices in zip(out, query, context, strict=True):
            for result, head, matrix in zip(heads(image), heads(q), matrices, strict=True):
                result.addmm_(head, matrix)
        return fused.linear(out, self.proj).view_as(grid), context


def add_residuals(tokens: Tokens, branches: Tokens, drop_path: DropPath) -> Tokens:
    """``add_residual`` of both parts; drop path treats them alike, as parts of one sample."""
    cls, grid = drop_path.alike(*branches)
    return add_residual(tokens[0], cls), add_residual(tokens[1], grid)


def feed_forward(tokens: Tokens, ffn: FeedForward, norm: nn.Module, recomputed: bool) -> Tokens:
    """ffn(norm(x)) of both parts, of which training keeps nothing but x where it is ``recomputed``."""
    cls, grid = tokens
    grid = recompute(lambda x: ffn.plain(x, norm), grid) if recomputed else ffn(grid, norm)
    return ffn.plain(cls, norm), grid


class SerialBlock(nn.Module):
    """x = cpe(x), then x + attn(norm1(x)), then x + ffn(norm2(x))."""

    def __init__(self, dim: int, hidden_dim: int, drop_path: float, recomputed: str | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = FactorizedAttention(dim, recomputed)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.ffn = FeedForward(dim, hidden_dim)
        self.drop_path = DropPath(drop_path)
        self.recomputed = recomputed

    def forward(self, tokens: Tokens, shared: Shared) -> Tokens:
        if self.recomputed == "block" and self.training:
            return recompute(self._residuals, tokens, shared, random=self.drop_path.rate > 0)
        return self._residuals(tokens, shared)

    def _residuals(self, tokens: Tokens, shared: Shared) -> Tokens:
        cls, grid = tokens
        tokens = cls, shared.cpe(grid)
        tokens = add_residuals(tokens, self.attn(tokens, self.norm1, shared), self.drop_path)
        branches = feed_forward(tokens, self.ffn, self.norm2, self.recomputed == "ffn" and self.training)
        return add_residuals(tokens, branches, self.drop_path)


class ParallelBlock(nn.Module):
    """The levels attend each for itself, and each adds what all of them give, resized to its grid.

    Args:
        dim: the width of the levels.
        hidden_dim: of the feed-forward network that they share.
        needed: the levels that anything after this block uses. The others attend, and end here.
        drop_path: its rate.
        recomputed: as of the serial block.
    """

    def __init__(
        self, dim: int, hidden_dim: int, needed: Sequence[int], drop_path: float, recomputed: str | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({str(level): LayerNorm(dim, eps=1e-6) for level in PARALLEL})
        self.attn = nn.ModuleDict({str(level): FactorizedAttention(dim, recomputed) for level in PARALLEL})
        self.norm2 = nn.ModuleDict({str(level): LayerNorm(dim, eps=1e-6) for level in needed})
        self.ffn = FeedForward(dim, hidden_dim)
        self.drop_path = DropPath(drop_path)
        self.recomputed = recomputed

    def forward(self, tokens: Mapping[int, Tokens], shared: Mapping[int, Shared]) -> dict[int, Tokens]:
        """The tokens of each level -> those of the needed levels."""
        if self.recomputed == "block" and self.training:
            return recompute(self._residuals, tokens, shared, random=self.drop_path.rate > 0)
        return self._residuals(tokens, shared)

    def _residuals(self, tokens: Mapping[int, Tokens], shared: Mapping[int, Shared]) -> dict[int, Tokens]:
        tokens = {level: (cls, shared[level].cpe(grid)) for level, (cls, grid) in tokens.items()}
        attended = {
            level: self.attn[str(level)](x, self.norm1[str(level)], shared[level]) for level, x in tokens.items()
        }
        cls_branches, grids = zip(*attended.values(), strict=True)
        results: dict[int, Tokens] = {}
        for level in map(int, self.norm2):
            _, height, width, _ = tokens[level][1].shape
            branches = torch.stack(cls_branches).sum(0), resized_sum(grids, height, width)
            x = add_residuals(tokens[level], branches, self.drop_path)
            recomputed = self.recomputed == "ffn" and self.training
            branches = feed_forward(x, self.ffn, self.norm2[str(level)], recomputed)
            results[level] = add_residuals(x, branches, self.drop_path)
        return results


def resized_sum(grids: Sequence[Tensor], height: int, width: int) -> Tensor:
    """The sum of grids (B, *, *, C), each resized to (B, height, width, C)."""
    # The one that has this size goes first: a resized one is a fresh tensor, into which a sum may be written.
    own, *others = sorted(grids, key=lambda grid: grid.shape[1:3] != (height, width))
    for grid in others:
        own = add_residual(own, resize_grid(grid, height, width))
    return own


class Stage(nn.Module):
    """Patch embedding and serial blocks: (B, H, W, Cin) -> tokens of (B, ceil(H/patch), ceil(W/patch), C)."""

    def __init__(self, in_channels: int, arch: Arch, index: int, drop_path: float, recomputed: str | None) -> None:
        super().__init__()
        dim, patch = arch.dims[index], 4 if index == 0 else 2
        self.patch_embed = PatchEmbed(in_channels, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.cpe = ConvPosition(dim)
        self.crpe = ConvRelativePosition(dim)
        self.blocks = nn.ModuleList(
            SerialBlock(dim, arch.mlp_ratios[index] * dim, drop_path, recomputed) for _ in range(arch.depths[index])
        )
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def shared(self) -> Shared:
        """What its blocks and the parallel ones share."""
        return Shared(self.cpe, *self.crpe())

    def forward(self, grid: Tensor) -> Tokens:
        grid = self.patch_embed(grid)
        tokens = self.cls_token.unsqueeze(0).expand(len(grid), -1, -1, -1), grid
        shared = self.shared()
        for block in self.blocks:
            tokens = block(tokens, shared)
        return tokens


@final
@BACKBONES.register_module()
class CoaT(Backbone):
    """CoaT or CoaT-Lite as an encoder of four levels; the arguments are those of ``Backbone``, and ``drop_path_rate``,
    the rate of stochastic depth, equal in all blocks (the detection recipes take 0.2 for small, 0 for the others)."""

    archs = ARCHS
    spec_type = Arch

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "lite_small",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: float = 0.0,
        init_cfg: Any = None,
    ) -> None:
        self.arch: Arch = self.resolve_arch(arch)
        super().__init__(self.arch.dims, in_channels, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        check_drop_path_rate(drop_path_rate)
        # In the parallel blocks each level needs all the others, except for level 0.
        parallel_depth = self.arch.parallel_depth if out_indices[-1] in PARALLEL else 0
        count = len(STRIDES) if parallel_depth else out_indices[-1] + 1
        widths, recomputed = (in_channels, *self.arch.dims), recompute_mode(with_cp)
        self.stages = nn.ModuleList(Stage(widths[i], self.arch, i, drop_path_rate, recomputed) for i in range(count))
        dim, hidden_dim = widths[-1], self.arch.mlp_ratios[-1] * widths[-1]
        asked = [level for level in PARALLEL if level in out_indices]
        self.parallel_blocks = nn.ModuleList(
            ParallelBlock(dim, hidden_dim, needed, drop_path_rate, recomputed)
            for needed in [PARALLEL] * (parallel_depth - 1) + [asked] * (parallel_depth > 0)
        )
        init_linears_and_norms(self)
        self.freeze()

    def levels(self, image: Tensor) -> Iterator[Tensor]:
        grid = image.permute(0, 2, 3, 1)
        tokens: dict[int, Tokens] = {}
        for level, stage in enumerate(self.stages):
            tokens[level] = stage(grid)
            grid = tokens[level][1]
        if self.parallel_blocks:
            meeting = {level: tokens[level] for level in PARALLEL}
            shared = {level: cast(Stage, self.stages[level]).shared() for level in PARALLEL}
            for block in self.parallel_blocks:
                meeting = block(meeting, shared)
            tokens |= meeting
        yield from (grid for _, grid in tokens.values())

    def freezable(self) -> list[list[nn.Module]]:
        stages: list[list[nn.Module]] = [[stage] for stage in self.stages]
        stages[-1].extend(self.parallel_blocks)
        return [[cast(Stage, self.stages[0]).patch_embed], *stages]
