"""DINOv3.

Siméoni et al., 2025, arXiv:2508.10104. Weights: by their authors, under the DINOv3 licence, after its acceptance. This
file is written from the paper.

A ViT of patches of 16 pixels with registers, layer scale and rotary positions, which come from the grid at hand: no
table is resized. Keys have no bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import Above, Count, Minimum, Rate, check_heads, check_spec
from mm_vitbackbones.backbones.columnar import ColumnarBackbone, PatchStem
from mm_vitbackbones.layers import Block, FeedForward, GatedFeedForward, RotaryAttention
from mm_vitbackbones.ops import rotary
from mm_vitbackbones.registry import BACKBONES

BASE_PERIOD = 100.0


@dataclass(frozen=True)
class Arch:
    """Table 2 of the paper, and its family of distilled models."""

    dim: int
    num_heads: int
    depth: int = 12
    hidden_dim: Count | None = None
    """Of the feed-forward network; None for four times the channels."""
    gated: bool = False
    """SwiGLU in place of the feed-forward network."""
    patch_size: int = 16
    registers: Annotated[int, Minimum(0)] = 4
    qkv_bias: bool = True
    """Whether queries and values have a bias."""
    layer_scale: Annotated[float, Above(0)] = 1e-5
    taps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_spec(self)
        check_heads(self.dim, self.num_heads, multiple=4)


ARCHS = {
    "small": Arch(384, 6),
    "small_plus": Arch(384, 6, hidden_dim=1536, gated=True),
    "base": Arch(768, 12),
    "large": Arch(1024, 16, depth=24),
    "huge_plus": Arch(1280, 20, depth=32, hidden_dim=5120, gated=True),
    "7b": Arch(4096, 32, depth=40, hidden_dim=8192, gated=True, qkv_bias=False),
}


class Stem(PatchStem):
    """The class token, registers and patches: (B, H, W, Cin) -> (B, 1 + R + N, C).

    ``periods`` (d/4,) of the rotation of positions are stored, as the published ones are rounded.
    """

    periods: Tensor

    def __init__(
        self, in_channels: int, arch: Arch, patch_size: int, published: bool, rescale: float | None = None
    ) -> None:
        super().__init__(in_channels, arch.dim, patch_size, published)
        self.rescale = rescale
        self.class_tokens = nn.Parameter(torch.empty(1, 1, arch.dim))
        self.registers = nn.Parameter(torch.empty(1, arch.registers, arch.dim)) if arch.registers else None
        for tokens in (self.class_tokens, self.registers):
            if tokens is not None:
                nn.init.normal_(tokens, std=0.02)
        count = arch.dim // arch.num_heads // 4
        self.register_buffer("periods", BASE_PERIOD ** (torch.arange(count) / count))

    def forward(self, image: Tensor) -> tuple[Tensor, rotary.Rotation]:
        """The tokens, and how they turn."""
        grid = self.patches(image)
        tokens = self.after([self.class_tokens, self.registers], grid)
        others = tokens.shape[1] - grid.shape[1] * grid.shape[2]
        return tokens, rotary.rotation(self._periods(), grid.shape[1], grid.shape[2], others)

    def _periods(self) -> Tensor:
        """In training divided by a random factor, which is as if all coordinates were multiplied by it."""
        if self.rescale is None or not self.training:
            return self.periods
        exponent = torch.rand((), device=self.periods.device) * 2 - 1
        return self.periods / self.rescale**exponent


@final
@BACKBONES.register_module()
class DINOv3(ColumnarBackbone):
    """DINOv3 as an encoder; the arguments are those of ``ColumnarBackbone``, and

    rescale_positions: r: in training, the coordinates of patches are multiplied by a factor between 1 / r and r, one
        for each batch, whose logarithm is uniform. The authors trained with 2. None: by none.

    All blocks have the same rate of stochastic depth. Class tokens are the class token and the registers.
    """

    archs = ARCHS
    spec_type = Arch
    default_arch = "small"
    norms_taps = True
    drop_paths_grow = False
    norm_eps = 1e-5

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "small",
        in_channels: Count = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int | str = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.0,
        taps: Sequence[int] | None = None,
        pyramid: str | None = "resize",
        final_norm: bool | None = None,
        patch_size: Count | None = None,
        with_class_token: bool = False,
        stem: str = "aligned",
        rescale_positions: Annotated[float, Above(1)] | None = None,
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.rescale_positions = rescale_positions
        super().__init__(
            arch,
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
    def num_tokens(self) -> int:
        return 1 + self.arch.registers

    def make_stem(self, in_channels: int, published: bool) -> nn.Module:
        return Stem(in_channels, self.arch, self.patch_size, published, self.rescale_positions)

    def make_block(self, index: int, drop_path: float) -> Block:
        arch = self.arch
        ffn = GatedFeedForward if arch.gated else FeedForward
        attn = RotaryAttention(arch.dim, arch.num_heads, arch.qkv_bias)
        hidden = arch.hidden_dim or 4 * arch.dim
        return Block(arch.dim, attn, ffn(arch.dim, hidden), self.norm_eps, drop_path, arch.layer_scale)

    def embed(self, image: Tensor) -> tuple[Tensor, Any]:
        return self.stem(image)
