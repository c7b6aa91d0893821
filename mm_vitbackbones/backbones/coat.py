"""Co-Scale Conv-Attentional Image Transformers (CoaT, and CoaT-Lite).

Xu et al., ICCV 2021, arXiv:2104.06399. Official code and weights: github.com/mlpc-ucsd/CoaT (Apache-2.0).

    level  stride  what happens
      0       4    4x4 patches, LayerNorm, serial blocks
      1       8    2x2 patches, LayerNorm, serial blocks  \\
      2      16    2x2 patches, LayerNorm, serial blocks   > CoaT: parallel blocks, which mix the three levels
      3      32    2x2 patches, LayerNorm, serial blocks  /

CoaT-Lite has no parallel blocks. Each stage has a class token, which takes part in the attention of all its blocks and
is not part of the returned level. Two kinds of depthwise convolutions replace position embeddings; the blocks of a
stage, serial and parallel, share them: the stage owns them and passes them to its blocks.

*Tokens* are the class token (B, 1, 1, C) and the grid (B, H, W, C): a pair, or on a GPU rows of one tensor, see
``ops.joint``. Functions of tokens act on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple, cast, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.base import STRIDES, AttentionLayer, Backbone, Level, Part
from mm_vitbackbones.backbones.checks import Count, Minimum, Rate, check_spec
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers import (
    Branch,
    ChannelsLastConv2d,
    DropPath,
    FeedForward,
    LayerNorm,
    PatchEmbed,
    Recomputable,
    ResidualBlock,
    init_linears_and_norms,
)
from mm_vitbackbones.ops import context, conv, coscale, depthwise, factorized, joint, looking, memory, residual
from mm_vitbackbones.ops.coscale import Levels
from mm_vitbackbones.ops.joint import Pair, Tokens
from mm_vitbackbones.registry import BACKBONES

NUM_HEADS = 8
WINDOWS = {3: 2, 5: 3, 7: 3}
"""Relative positions: the side of the window, and how many of the heads, in this order, use it."""
PARALLEL = (1, 2, 3)
"""The levels that the parallel blocks mix."""


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper. Tuples have one entry per stage."""

    depths: tuple[int, ...] = (2, 2, 2, 2)
    dims: tuple[int, ...] = (64, 128, 320, 512)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    parallel_depth: Annotated[int, Minimum(0)] = 0
    """Parallel blocks; 0 for CoaT-Lite. They need levels 1 to 3 of equal width."""
    num_heads: ClassVar[tuple[int, ...]] = (NUM_HEADS,) * len(STRIDES)

    def __post_init__(self) -> None:
        check_spec(self)
        if self.parallel_depth and len({(self.dims[i], self.mlp_ratios[i]) for i in PARALLEL}) > 1:
            widths = f"dims={self.dims} and mlp_ratios={self.mlp_ratios}"
            raise ArgumentError(f"{widths}: the parallel blocks need those of the last three stages to be equal")


ARCHS = {
    "tiny": Arch(dims=(152, 152, 152, 152), mlp_ratios=(4, 4, 4, 4), parallel_depth=6),
    "mini": Arch(dims=(152, 216, 216, 216), mlp_ratios=(4, 4, 4, 4), parallel_depth=6),
    "small": Arch(dims=(152, 320, 320, 320), mlp_ratios=(4, 4, 4, 4), parallel_depth=6),
    "lite_tiny": Arch(dims=(64, 128, 256, 320)),
    "lite_mini": Arch(),
    "lite_small": Arch(depths=(3, 4, 6, 3)),
    "lite_medium": Arch(depths=(3, 6, 10, 8), dims=(128, 256, 320, 512), mlp_ratios=(4, 4, 4, 4)),
}


@context.plain
class ConvPosition(nn.Module):
    """The convolutional position encoding, x + dwconv3x3(x) over a grid (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, grid: Tensor) -> Tensor:
        return residual.add_conv(grid, self.conv)


@context.plain
class ConvRelativePosition(nn.Module):
    """The convolutional relative position encoding: a depthwise convolution of each head's values. The side of its
    window differs between heads."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widths = [heads * dim // NUM_HEADS for heads in WINDOWS.values()]
        windows = zip(self.widths, WINDOWS, strict=True)
        self.convs = nn.ModuleList(ChannelsLastConv2d(c, c, k, padding=k // 2, groups=c) for c, k in windows)

    def forward(self, value: Tensor) -> Tensor:
        """Values (B, H, W, C) -> (B, H, W, C)."""
        return depthwise.split(value, [*self.convs], self.widths)


class Shared(NamedTuple):
    """What the blocks of a stage share."""

    cpe: ConvPosition
    crpe: ConvRelativePosition
    convs: list[nn.Module]
    """Those of ``crpe``."""
    windows: conv.Windows | None
    """What is called in the place of ``crpe``; see ``ops.conv.windows``."""

    def relative_position(self, value: Tensor) -> Tensor:
        """``crpe`` of a grid of values (B, H, W, C)."""
        return self.crpe(value) if self.windows is None else conv.depthwise(value, *self.windows)


@context.plain
class FactorizedAttention(Recomputable):
    """Factorised attention with relative positions (equations 2 and 9):

        Q (softmax(K)' V) / sqrt(d) + Q * crpe(V)

    The softmax is over all tokens, including the class token. So the queries are multiplied by one d x d matrix for
    each head, and there is no matrix of tokens by tokens. Relative positions are for the grid alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qk = nn.Linear(dim, 2 * dim)
        self.v = nn.Linear(dim, dim)  # separate, so that the convolution gets a contiguous map
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tokens, shared: Shared) -> Tokens:
        maps, positions = (self.qk, self.v, self.proj), (shared.relative_position, shared.convs, shared.windows)
        again = self.recompute == memory.ALL_BUT_ATTENTION and self.training
        return factorized.attend_all(tokens, maps, *positions, NUM_HEADS, self.lightly, again)

    def looks_at(self, tokens: Tokens, shared: Shared) -> looking.Shares:
        """The effective attention weights of chosen queries."""
        cls, grid = joint.pair(joint.linear(tokens, self.qk))
        query, key = torch.cat((cls.flatten(1, 2), grid.flatten(1, 2)), dim=1).chunk(2, dim=-1)
        return looking.factorized(query, key, NUM_HEADS, (grid.shape[1], grid.shape[2]))


class CoatBlock(ResidualBlock):
    """What serial and parallel blocks share. Drop path treats the class token and the grid as one sample."""

    residuals: Callable[..., Any]

    def forward(self, tokens: Any, shared: Any) -> Any:
        return self.drawn_and_computed(coscale.samples(tokens), tokens, shared)

    def computed(self, drawn: Sequence[Tensor], tokens: Any, shared: Any) -> Any:
        return coscale.in_graph(lambda x: self.wholly(self.residuals, x, shared, *drawn), tokens, self, shared)


@context.plain
class SerialBlock(CoatBlock):
    """x = cpe(x), then x + attn(norm1(x)), then x + ffn(norm2(x))."""

    def __init__(self, dim: int, hidden_dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = FactorizedAttention(dim)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.ffn = FeedForward(dim, hidden_dim)
        self.drop_path = DropPath(drop_path)

    def residuals(self, tokens: Tokens, shared: Shared, *drawn: Tensor) -> Tokens:
        first, second = self.drops(drawn)
        with memory.saving(coscale.samples(tokens)):
            x = joint.add_conv(tokens, shared.cpe)
            attn = Branch(self.norm1, cast(nn.Module, partial(self.attn, shared=shared)), first)
            ffn = Branch(self.norm2, self.ffn, second)
            return joint.add_branches(x, attn, ffn, [self.attn, shared.crpe], self.lightly)


@context.plain
class ParallelBlock(CoatBlock):
    """Each level attends to itself, then adds the results of all levels, resized to its grid. A level that is not
    ``needed`` after this block attends and ends here."""

    def __init__(self, dim: int, hidden_dim: int, needed: Sequence[int], drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({str(level): LayerNorm(dim, eps=1e-6) for level in PARALLEL})
        self.attn = nn.ModuleDict({str(level): FactorizedAttention(dim) for level in PARALLEL})
        self.norm2 = nn.ModuleDict({str(level): LayerNorm(dim, eps=1e-6) for level in needed})
        self.ffn = FeedForward(dim, hidden_dim)
        self.drop_path = DropPath(drop_path)
        self.branch_count = 2 * len(self.norm2)

    def residuals(self, tokens: Levels, shared: Mapping[int, Shared], *drawn: Tensor) -> Levels:
        drops = iter(self.drops(drawn))
        with memory.saving(coscale.samples(tokens)):
            x = coscale.add_convs(tokens, {level: shared[level].cpe for level in PARALLEL})
            attns, ffns = {}, {}
            for name, attn in self.attn.items():
                level, ends = int(name), name not in self.norm2
                function = cast(nn.Module, partial(attn, shared=shared[level]))
                attns[level] = Branch(self.norm1[name], function, self.drop_path if ends else next(drops))
                if not ends:
                    ffns[level] = Branch(self.norm2[name], self.ffn, next(drops))
            parts = {int(name): (attn, shared[int(name)].crpe) for name, attn in self.attn.items()}
            return coscale.add_branches(x, attns, ffns, parts, self.lightly)


class Stage(nn.Module):
    """Patch embedding and serial blocks: (B, H, W, Cin) -> tokens of (B, ceil(H/patch), ceil(W/patch), C)."""

    def __init__(self, in_channels: int, arch: Arch, index: int, drop_path: float) -> None:
        super().__init__()
        dim, patch = arch.dims[index], 4 if index == 0 else 2
        self.patch_embed = PatchEmbed(in_channels, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.cpe = ConvPosition(dim)
        self.crpe = ConvRelativePosition(dim)
        hidden_dim, depth = arch.mlp_ratios[index] * dim, arch.depths[index]
        self.blocks = nn.ModuleList(SerialBlock(dim, hidden_dim, drop_path) for _ in range(depth))
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def shared(self) -> Shared:
        """What its blocks and the parallel ones share."""
        convs = [*self.crpe.convs]
        return Shared(self.cpe, self.crpe, convs, conv.windows(convs))

    def forward(self, grid: Tensor) -> Pair:
        grid, shared = self.patch_embed(grid), self.shared()
        cls = self.cls_token.unsqueeze(0).expand(grid.shape[0], -1, -1, -1)
        tokens = joint.join(cls, grid, self.blocks, shared)
        for block in self.blocks:
            tokens = block(tokens, shared)
        return joint.pair(tokens)


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
        in_channels: Count = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.0,
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.arch: Arch = self.resolve_arch(arch)
        super().__init__(
            self.arch.dims, in_channels, out_indices, frozen_stages, norm_eval, with_cp, init_cfg, adapters=adapters
        )
        # In the parallel blocks each level needs all the others, except for level 0.
        parallel_depth = self.arch.parallel_depth if out_indices[-1] in PARALLEL else 0
        count = len(STRIDES) if parallel_depth else out_indices[-1] + 1
        dims = (in_channels, *self.arch.dims)
        self.stages = nn.ModuleList(Stage(dims[i], self.arch, i, drop_path_rate) for i in range(count))
        asked = tuple(level for level in PARALLEL if level in out_indices)
        needs = [PARALLEL] * (parallel_depth - 1) + [asked] * (parallel_depth > 0)
        block = partial(ParallelBlock, dims[-1], self.arch.mlp_ratios[-1] * dims[-1])
        self.parallel_blocks = nn.ModuleList(block(need, drop_path_rate) for need in needs)
        init_linears_and_norms(self)
        self.finish()

    def levels(self, image: Tensor) -> Iterator[Level]:
        grid = image.permute(0, 2, 3, 1)
        tokens: dict[int, Pair] = {}
        for level, stage in enumerate(self.stages):
            _, grid = tokens[level] = stage(grid)
        if self.parallel_blocks:
            shared = {level: cast(Stage, self.stages[level]).shared() for level in PARALLEL}
            levels = coscale.join({level: tokens[level] for level in PARALLEL}, self.parallel_blocks, shared)
            for block in self.parallel_blocks:
                levels = block(levels, shared)
            tokens |= coscale.pairs(levels)
        yield from (Level(grid, cls.flatten(1, 2)) for cls, grid in tokens.values())

    def attentions(self) -> list[AttentionLayer]:
        parallel = {layer: int(i) for block in self.parallel_blocks for i, layer in cast(Any, block).attn.items()}
        return [each._replace(stage=parallel.get(each.module, each.stage)) for each in super().attentions()]

    def parts(self) -> list[Part]:
        parts = []
        for index, stage in enumerate(map(partial(cast, Stage), self.stages)):
            parts.append(Part((stage.patch_embed,), index, "open"))
            parts.append(Part((stage.cls_token, stage.cpe, stage.crpe), index, "shared"))
            parts += [Part((block,), index, "block") for block in stage.blocks]
        return parts + [Part((block,), PARALLEL[-1], "block") for block in self.parallel_blocks]

    def levels_of_block(self, output: Pair | dict[int, Pair], stage: int, *_: Any) -> list[Level]:
        every = output.values() if isinstance(output, dict) else [output]
        return [Level(grid, cls.flatten(1, 2)) for cls, grid in every]
