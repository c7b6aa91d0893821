from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mm_vitbackbones.layers.attention import SpatialReductionAttention
from mm_vitbackbones.layers.block import Block, Recomputable
from mm_vitbackbones.layers.feed_forward import MixFeedForward
from mm_vitbackbones.layers.norm import LayerNorm
from mm_vitbackbones.layers.patch_embed import PatchEmbed


class OverlapStage(Recomputable):
    """Overlapping patch embedding, blocks, norm: (B, H, W, Cin) -> (B, ceil(H/stride), ceil(W/stride), C)
    (PVTv2, section 3; SegFormer, section 3.1).

    The first stage has stride 4 and 7x7 patches, the others stride 2 and 3x3. There is a block for each drop path;
    ``reduction`` makes the module by which its attention reduces the keys, see ``SpatialReductionAttention``.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        num_heads: int,
        mlp_ratio: int,
        first: bool,
        reduction: Callable[[], nn.Module | None],
        drop_paths: list[float],
        relu: bool = False,
    ) -> None:
        super().__init__()
        kernel_size, stride = (7, 4) if first else (3, 2)
        self.patch_embed = PatchEmbed(in_channels, dim, kernel_size, stride)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    attn=SpatialReductionAttention(dim, num_heads, reduction()),
                    ffn=MixFeedForward(dim, mlp_ratio * dim, relu=relu),
                    norm_eps=1e-6,
                    drop_path=drop_path,
                )
                for drop_path in drop_paths
            )
        )
        self.norm = LayerNorm(dim, eps=1e-6)

    def forward(self, grid: Tensor) -> Tensor:
        return self.norm(self.blocks(self.recomputed(self.patch_embed, grid)))
