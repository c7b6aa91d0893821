from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from mm_vitbackbones.layers.block import Block
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.layers.patch_embed import PatchEmbed


class OverlapStage(nn.Module):
    """Overlapping patch embedding, blocks, norm: (B, H, W, Cin) -> (B, ceil(H/stride), ceil(W/stride), C)
    (PVTv2, section 3; SegFormer, section 3.1).

    The first stage has stride 4 and 7x7 patches, the others stride 2 and 3x3. ``blocks`` are taken once the patch
    embedding is there, so that a generator builds them in the network's order.
    """

    def __init__(self, in_channels: int, dim: int, first: bool, blocks: Iterable[Block]) -> None:
        super().__init__()
        kernel_size, stride = (7, 4) if first else (3, 2)
        self.patch_embed = PatchEmbed(in_channels, dim, kernel_size, stride)
        self.blocks = nn.Sequential(*blocks)
        self.norm = LayerNorm(dim, eps=1e-6)

    def forward(self, grid: Tensor) -> Tensor:
        return self.norm(self.blocks(self.patch_embed(grid)))
