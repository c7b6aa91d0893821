"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (ViT).

Dosovitskiy et al., ICLR 2021, arXiv:2010.11929. One class for these weights, as the networks differ in options alone:

- DeiT (Touvron et al., ICML 2021, arXiv:2012.12877), with and without a distillation token;
- DeiT III (Touvron et al., ECCV 2022, arXiv:2204.07118): layer scale, and no position for the class token;
- DINO (Caron et al., ICCV 2021, arXiv:2104.14294), whose positions are resized in a way of their own (``positions``);
- MAE (He et al., CVPR 2022, arXiv:2111.06377);
- ViTDet (Li et al., ECCV 2022, arXiv:2203.16527): windows, global blocks, relative positions, and no class token.

    x = patches + positions;  x = x + attn(norm1(x));  x = x + ffn(norm2(x))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import Above, Count, Minimum, Rate, check_heads, check_spec
from mm_vitbackbones.backbones.columnar import ColumnarBackbone, PatchStem, ends_of_quarters
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers import (
    BICUBIC,
    Block,
    FeedForward,
    LearnedPosition,
    RelativeAttention,
    SelfAttention,
)
from mm_vitbackbones.ops.resize import TableResize
from mm_vitbackbones.registry import BACKBONES

POSITIONS = {
    "by_size": BICUBIC,  # DeiT, MAE, ViTDet
    "by_scale": TableResize("bicubic", offset=0.1),  # DINO
    "bilinear": TableResize("bilinear"),  # DPT
}
"""How the table of positions is resized for other grids."""


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper."""

    dim: int
    num_heads: int
    depth: int = 12
    patch_size: int = 16
    pretrain_grid: int = 14
    """Side of the position table: 224 pixels in patches."""
    num_tokens: int = 1
    """1: the class token; 2: the class token and DeiT's distillation token."""
    token_positions: bool = True
    """Whether these tokens have positions."""
    layer_scale: Annotated[float, Above(0)] | None = None
    """The initial value of the factors of DeiT III."""
    drop_paths_grow: bool = True
    """Whether the rate of stochastic depth grows from 0 to that of the last block; in DeiT III all blocks have it."""
    mlp_ratio: Annotated[int, Minimum(1)] = 4
    taps: tuple[int, ...] | None = None
    """Default taps; None for the ends of the quarters."""

    def __post_init__(self) -> None:
        check_spec(self)
        check_heads(self.dim, self.num_heads)


TINY, SMALL, BASE = Arch(192, 3), Arch(384, 6), Arch(768, 12)
LARGE, HUGE = Arch(1024, 16, depth=24), Arch(1280, 16, depth=32, patch_size=14, pretrain_grid=16)
DEIT3: dict[str, Any] = dict(token_positions=False, layer_scale=1e-4, drop_paths_grow=False)
ARCHS = {"tiny": TINY, "small": SMALL, "base": BASE, "large": LARGE, "huge": HUGE}
ARCHS |= {f"{name}_p8": replace(ARCHS[name], patch_size=8, pretrain_grid=28) for name in ("small", "base")}
ARCHS |= {"base_384": replace(BASE, pretrain_grid=24), "large_384": replace(LARGE, pretrain_grid=24)}
ARCHS |= {
    f"{name}_distilled{size}": replace(ARCHS[f"{name}{size}"], num_tokens=2)
    for name, size in (("tiny", ""), ("small", ""), ("base", ""), ("base", "_384"))
}
ARCHS |= {
    f"deit3_{name}": replace(arch, **DEIT3)
    for name, arch in (("small", SMALL), ("medium", Arch(512, 8)), ("base", BASE), ("large", LARGE), ("huge", HUGE))
}
ARCHS |= {
    f"{name}_384": replace(ARCHS[name], pretrain_grid=24) for name in ("deit3_small", "deit3_base", "deit3_large")
}


class Stem(PatchStem):
    """Patches with their positions, after the class tokens with theirs: (B, H, W, Cin) -> (B, T + N, C).

    Args:
        num_tokens: T. Without class tokens the result is a grid (B, H', W', C).
    """

    def __init__(
        self, in_channels: int, arch: Arch, patch_size: int, published: bool, num_tokens: int, resize: TableResize
    ) -> None:
        super().__init__(in_channels, arch.dim, patch_size, published)
        side = arch.pretrain_grid
        self.position = LearnedPosition(arch.dim, side, side, resize)
        self.class_tokens = self.token_positions = None
        if num_tokens:
            self.class_tokens = nn.Parameter(torch.empty(1, num_tokens, arch.dim))
            nn.init.trunc_normal_(self.class_tokens, std=0.02)
            if arch.token_positions:
                self.token_positions = nn.Parameter(torch.empty(1, num_tokens, arch.dim))
                nn.init.trunc_normal_(self.token_positions, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        grid = self.position(self.patches(image))
        if self.class_tokens is None:
            return grid
        tokens = self.class_tokens if self.token_positions is None else self.class_tokens + self.token_positions
        return self.after([tokens], grid)


@final
@BACKBONES.register_module()
class ViT(ColumnarBackbone):
    """ViT as an encoder; the arguments are those of ``ColumnarBackbone``, and

    positions: how the position table is resized: ``"by_size"``; ``"by_scale"`` for DINO's weights; ``"bilinear"`` for
        those of a DPT.
    window_size: side of the windows that blocks attend in, as in ViTDet (14), in patches; None: all blocks attend to
        all patches.
    global_blocks: with windows, the blocks that attend to all patches. Default: the last of each quarter.
    relative_positions: side of the grid of patches that the relative positions of global blocks are for (ViTDet: 64,
        which is 1024 pixels); those of other blocks are for the windows. None: no relative positions.
    drop_path_rate: grows linearly from 0 at the first block to this at the last; in DeiT III all blocks have it.

    With windows or relative positions there is no class token, as in ViTDet.
    """

    archs = ARCHS
    spec_type = Arch
    default_arch = "small"
    norms_taps = False

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "small",
        in_channels: Count = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int | str = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.1,
        taps: Sequence[int] | None = None,
        pyramid: str | None = "resize",
        final_norm: bool | None = None,
        patch_size: Count | None = None,
        with_class_token: bool = False,
        stem: str = "aligned",
        positions: str = "by_size",
        window_size: Count | None = None,
        global_blocks: Sequence[int] | None = None,
        relative_positions: Count | None = None,
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        spec: Arch = self.resolve_arch(arch)
        if not isinstance(positions, str) or positions not in POSITIONS:
            raise ArgumentError(f"positions={positions!r}: give {', '.join(map(repr, POSITIONS))}")
        if window_size is None and global_blocks is not None:
            raise ArgumentError(f"global_blocks={global_blocks!r}: without window_size all blocks are global")
        self.global_blocks = tuple(ends_of_quarters(spec.depth) if global_blocks is None else global_blocks)
        if any(i not in range(spec.depth) for i in self.global_blocks):
            raise ArgumentError(f"global_blocks={global_blocks!r}: give blocks out of {spec.depth}, counted from 0")
        self.positions = POSITIONS[positions]
        self.window_size, self.relative_positions = window_size, relative_positions
        super().__init__(
            spec,
            in_channels,
            out_indices,
            frozen_stages,
            norm_eval,
            with_cp,
            drop_path_rate,
            taps,
            pyramid,
            final_norm,
            patch_size,
            with_class_token,
            stem,
            init_cfg,
            adapters,
        )

    @property
    def drop_paths_grow(self) -> bool:  # type: ignore[override]
        return self.arch.drop_paths_grow

    @property
    def num_tokens(self) -> int:
        return self.arch.num_tokens if self.window_size is None and self.relative_positions is None else 0

    def make_stem(self, in_channels: int, published: bool) -> nn.Module:
        return Stem(in_channels, self.arch, self.patch_size, published, self.num_tokens, self.positions)

    def make_block(self, index: int, drop_path: float) -> Block:
        arch = self.arch
        attn: nn.Module = SelfAttention(arch.dim, arch.num_heads)
        if not self.num_tokens:
            window = None if index in self.global_blocks else self.window_size
            table = window if window and self.relative_positions else self.relative_positions
            attn = RelativeAttention(arch.dim, arch.num_heads, window, table)
        ffn = FeedForward(arch.dim, arch.mlp_ratio * arch.dim)
        return Block(arch.dim, attn, ffn, self.norm_eps, drop_path, arch.layer_scale)
