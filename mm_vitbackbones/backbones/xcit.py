"""XCiT: Cross-Covariance Image Transformers.

El-Nouby et al., NeurIPS 2021, arXiv:2106.09681. Official code and weights: github.com/facebookresearch/xcit
(Apache-2.0).

One grid of patches of 16 or 8 pixels, whose blocks have three branches:

    x = patches + positions
    x = x + ls1(attn(norm1(x)))  channels attend to channels: the cost grows with the number of tokens, not its square
    x = x + ls3(lpi(norm3(x)))   depthwise convolutions, by which neighbours see each other
    x = x + ls2(ffn(norm2(x)))

Positions are sines and cosines of any grid. The dense form of the paper (section 4.3) taps four blocks and makes levels
of them by transposed convolutions and max pooling. The class attention of the classifier is not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import Above, Count, Rate, check_heads, check_spec
from mm_vitbackbones.backbones.columnar import ColumnarBackbone
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers import (
    Branch,
    ChannelsLastConv2d,
    DropPath,
    FeedForward,
    LayerNorm,
    LayerScale,
    ResidualBlock,
)
from mm_vitbackbones.ops import context, covariance, depthwise, memory, norm, onednn, residual
from mm_vitbackbones.ops.chained import Forked, Pending, finished
from mm_vitbackbones.registry import BACKBONES

PATCH_SIZES = (8, 16)
FREQUENCIES, PERIOD = 32, 10000
"""Of the positions: features of each axis, and the longest period."""
TAPS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}
"""Of the paper's dense form, by depth."""


@dataclass(frozen=True)
class Arch:
    """Table 1 of the paper."""

    dim: int
    num_heads: int
    depth: int = 12
    patch_size: int = 16
    layer_scale: Annotated[float, Above(0)] = 1.0
    """The initial value of the factors."""
    taps: tuple[int, ...] | None = None
    """Default taps; None for the ends of the quarters."""

    def __post_init__(self) -> None:
        check_spec(self)
        check_heads(self.dim, self.num_heads)
        if self.patch_size not in PATCH_SIZES or self.dim % 8:
            raise ArgumentError(
                f"patch_size={self.patch_size} and dim={self.dim}: the stem has patches of 8 or 16 pixels, and halves "
                "the channels up to three times, so give a multiple of 8"
            )


SIZES = {
    "nano_12": (128, 4, 12),
    "tiny_12": (192, 4, 12),
    "tiny_24": (192, 4, 24),
    "small_12": (384, 8, 12),
    "small_24": (384, 8, 24),
    "medium_24": (512, 8, 24),
    "large_24": (768, 16, 24),
}
ARCHS = {
    f"{name}_p{patch}": Arch(dim, heads, depth, patch, 1.0 if depth == 12 else 1e-5, TAPS[depth])
    for name, (dim, heads, depth) in SIZES.items()
    for patch in (16, 8)
}


class FourierPosition(nn.Module):
    """Adds a linear map of sines and cosines of rows and columns to a grid (B, H, W, C) of any size (section 3.5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = ChannelsLastConv2d(2 * FREQUENCIES, dim, 1)

    def forward(self, grid: Tensor) -> Tensor:
        height, width = grid.shape[1:3]
        rows, columns = self.waves(height, grid.device), self.waves(width, grid.device)
        waves = torch.cat((rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)), dim=-1)
        return grid + self.proj(waves.unsqueeze(0).to(self.proj.weight.dtype))

    @staticmethod
    def waves(count: int, device: torch.device) -> Tensor:
        """The features of places 1 to ``count``, sines and cosines in turn: (count, FREQUENCIES)."""
        places = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        angles = places / (places[-1:] + 1e-6) * (2 * math.pi)
        exponents = torch.arange(0, FREQUENCIES, 2, dtype=torch.float32, device=device) / FREQUENCIES
        turns = angles[:, None] / PERIOD**exponents
        return torch.stack((turns.sin(), turns.cos()), dim=-1).flatten(1)


class Stem(nn.Module):
    """3x3 convolutions that halve the sides, each with a batch norm and, except for the last, a GELU; then positions:
    (B, H, W, Cin) -> (B, ceil(H/p), ceil(W/p), C)."""

    def __init__(self, in_channels: int, arch: Arch) -> None:
        super().__init__()
        self.multiple = arch.patch_size
        count = int(math.log2(arch.patch_size))
        widths = [in_channels, *(arch.dim // 2**i for i in reversed(range(count)))]
        self.convs = nn.ModuleList(
            ChannelsLastConv2d(widths[i], widths[i + 1], 3, 2, 1, bias=False) for i in range(count)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.position = FourierPosition(arch.dim)

    def forward(self, image: Tensor) -> Tensor:
        with memory.saving(image):
            return self.position(norm.convs_and_norms(image, [*self.convs], [*self.norms]))


@context.plain
class CrossCovarianceAttention(nn.Module):
    """Attention of the channels of each head over these channels, by their products over all tokens:
    (B, H, W, C) -> (B, H, W, C) (equation 3)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        return self.begun(grid)

    def begun(self, grid: Tensor | Forked) -> Tensor:
        """``forward``, of a norm that may be left to it."""
        inner: dict[str, Any] = self._modules  # `self.qkv` takes PyTorch as long as a launch
        return covariance.attend_between(grid, inner["qkv"], self.temperature, inner["proj"], self.num_heads)

    def looks_at(self, grid: Tensor) -> NoReturn:
        """There are none of places."""
        raise ArgumentError(
            "the attention of XCiT is over channels, so no place attends to another one, and the class attention of "
            "its classifier is no part of this network: look at similarity, features or receptive-field"
        )


@context.plain
class LocalPatchInteraction(nn.Module):
    """conv(batchnorm(GELU(conv(x)))) of depthwise 3x3 convolutions over grids (B, H, W, C) (section 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (ChannelsLastConv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(2))
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, grid: Tensor) -> Tensor:
        return finished(self.begun(grid))

    def begun(self, grid: Tensor | Forked) -> Tensor | Pending:
        """``forward``, whose last convolution may be left to the caller."""
        inner: dict[str, Any] = self._modules
        hidden = norm.batch_norm(onednn.conv_gelu(grid, inner["conv1"]), inner["norm"])
        return depthwise.begun(hidden, inner["conv2"])


class XCiTBlock(ResidualBlock):
    """x + ls1(attn(norm1(x))), then x + ls3(lpi(norm3(x))), then x + ls2(ffn(norm2(x))), over grids (B, H, W, C)."""

    branch_count = 3

    def __init__(self, arch: Arch, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        dim = arch.dim
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = CrossCovarianceAttention(dim, arch.num_heads)
        self.norm3 = LayerNorm(dim, eps=norm_eps)
        self.lpi = LocalPatchInteraction(dim)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.ffn = FeedForward(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)
        self.ls1, self.ls2, self.ls3 = (LayerScale(dim, arch.layer_scale) for _ in range(3))

    def forward(self, grid: Tensor, shared: Any = None) -> Tensor:
        """Args:
        shared: nothing, here.
        """
        return self.drawn_and_computed(grid, grid)

    def computed(self, drawn: Sequence[Tensor], grid: Tensor) -> Tensor:
        return self.recomputed(self.residuals, grid, *drawn)

    def residuals(self, grid: Tensor, *drawn: Tensor) -> Tensor:
        first, second, third = self.drops(drawn)
        parts: dict[str, Any] = self._modules  # `self.norm1` takes PyTorch as long as a launch
        branches = (
            Branch(parts["norm1"], parts["attn"], first, parts["ls1"]),
            Branch(parts["norm3"], parts["lpi"], second, parts["ls3"]),
            Branch(parts["norm2"], parts["ffn"], third, parts["ls2"]),
        )
        with memory.saving(grid):
            return residual.add_branches(grid, branches, self.lightly)


@final
@BACKBONES.register_module()
class XCiT(ColumnarBackbone):
    """XCiT as an encoder; the arguments are those of ``ColumnarBackbone`` except for the size of patches and the form
    of the stem. All blocks have the same rate of stochastic depth. Batch norms are in the stem, in the blocks, and in
    level 0 of the authors' pyramid, ``"taps"``, which is the default."""

    archs = ARCHS
    spec_type = Arch
    default_arch = "small_12_p16"
    norms_taps = False
    drop_paths_grow = False

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "small_12_p16",
        in_channels: Count = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int | str = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.0,
        taps: Sequence[int] | None = None,
        pyramid: str | None = "taps",
        final_norm: bool | None = None,
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
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
            init_cfg=init_cfg,
            adapters=adapters,
        )

    def make_stem(self, in_channels: int, published: bool) -> nn.Module:
        return Stem(in_channels, self.arch)

    def make_block(self, index: int, drop_path: float) -> ResidualBlock:
        return XCiTBlock(self.arch, self.norm_eps, drop_path)
