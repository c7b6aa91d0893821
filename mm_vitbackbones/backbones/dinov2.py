"""DINOv2: Learning Robust Visual Features without Supervision.

Oquab et al., TMLR 2024, arXiv:2304.07193; registers: Darcet et al., ICLR 2024, arXiv:2309.16588. Official code and
weights: github.com/facebookresearch/dinov2 (Apache-2.0).

A ViT of patches of 14 pixels, with layer scale, and with SwiGLU in the giant. Registers are further tokens, without
positions, between the class token and the patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import Above, Minimum, check_heads, check_spec
from mm_vitbackbones.backbones.columnar import ColumnarBackbone, PatchStem
from mm_vitbackbones.layers import (
    Block,
    FeedForward,
    GatedFeedForward,
    LearnedPosition,
    SelfAttention,
)
from mm_vitbackbones.ops.resize import TableResize
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Arch:
    """Table 17 of the paper."""

    dim: int
    num_heads: int
    depth: int = 12
    patch_size: int = 14
    pretrain_grid: int = 37
    """Side of the position table: 518 pixels in patches."""
    registers: Annotated[int, Minimum(0)] = 0
    gated: bool = False
    """SwiGLU in place of the feed-forward network."""
    layer_scale: Annotated[float, Above(0)] = 1e-5
    taps: tuple[int, ...] | None = None
    """The blocks that the official dense heads read, if they are not the ends of the quarters."""

    def __post_init__(self) -> None:
        check_spec(self)
        check_heads(self.dim, self.num_heads)

    @property
    def hidden_dim(self) -> int:
        """Of the feed-forward network; with a gate two thirds, as that has a third matrix."""
        return 8 * -(-(4 * self.dim * 2 // 3) // 8) if self.gated else 4 * self.dim


ARCHS = {
    "small": Arch(384, 6),
    "base": Arch(768, 12),
    "large": Arch(1024, 16, depth=24, taps=(4, 11, 17, 23)),
    "giant": Arch(1536, 24, depth=40, gated=True),
}
ARCHS |= {f"{name}_reg": replace(arch, registers=4) for name, arch in ARCHS.items()}


class Stem(PatchStem):
    """The class token with its position, registers, and patches with theirs: (B, H, W, Cin) -> (B, 1 + R + N, C)."""

    def __init__(self, in_channels: int, arch: Arch, patch_size: int, published: bool) -> None:
        super().__init__(in_channels, arch.dim, patch_size, published)
        dim, side = arch.dim, arch.pretrain_grid
        # The code for registers resizes positions by the size, smoothed; the other one by the scale, with an offset.
        resize = TableResize("bicubic", antialias=True) if arch.registers else TableResize("bicubic", offset=0.1)
        self.position = LearnedPosition(dim, side, side, resize)
        self.class_tokens = nn.Parameter(torch.empty(1, 1, dim))
        self.token_positions = nn.Parameter(torch.empty(1, 1, dim))
        self.registers = nn.Parameter(torch.empty(1, arch.registers, dim)) if arch.registers else None
        nn.init.trunc_normal_(self.token_positions, std=0.02)
        for tokens in (self.class_tokens, self.registers):
            if tokens is not None:
                nn.init.normal_(tokens, std=1e-6)

    def forward(self, image: Tensor) -> Tensor:
        grid = self.position(self.patches(image))
        return self.after([self.class_tokens + self.token_positions, self.registers], grid)


@final
@BACKBONES.register_module()
class DINOv2(ColumnarBackbone):
    """DINOv2 as an encoder; the arguments are those of ``ColumnarBackbone``. All blocks have the same rate of
    stochastic depth. Class tokens are the class token and the registers."""

    archs = ARCHS
    spec_type = Arch
    default_arch = "small"
    norms_taps = True
    drop_paths_grow = False

    @property
    def num_tokens(self) -> int:
        return 1 + self.arch.registers

    def make_stem(self, in_channels: int, published: bool) -> nn.Module:
        return Stem(in_channels, self.arch, self.patch_size, published)

    def make_block(self, index: int, drop_path: float) -> Block:
        arch = self.arch
        ffn = GatedFeedForward if arch.gated else FeedForward
        attn = SelfAttention(arch.dim, arch.num_heads)
        return Block(arch.dim, attn, ffn(arch.dim, arch.hidden_dim), self.norm_eps, drop_path, arch.layer_scale)
