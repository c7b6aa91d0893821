"""Going deeper with Image Transformers (CaiT).

Touvron et al., ICCV 2021, arXiv:2103.17239. Official code and weights: github.com/facebookresearch/deit (Apache-2.0).

A ViT with three changes, for more depth and better class tokens:

- layer scale: each channel of a branch has a factor that begins near zero, the nearer the deeper the network;
- talking heads: the scores of the heads are mixed before the softmax, and the shares after it;
- class attention: the class token joins after the last block. It alone is changed in two further blocks, in which it
  attends to itself and to the patches. A dense head needs the patches, so these blocks are an option here.

    x = patches + positions;  x = x + ls1(attn(norm1(x)));  x = x + ls2(ffn(norm2(x)))
    c = class token;          c = c + ls1(attn(norm1([c, x])));  c = c + ls2(ffn(norm2(c)))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.checks import Above, Count, Minimum, Rate, check_heads, check_spec
from mm_vitbackbones.backbones.columnar import ColumnarBackbone, PatchStem
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers import BICUBIC, Block, FeedForward, LayerNorm, LayerScale, LearnedPosition
from mm_vitbackbones.ops import attention, context, linear, looking, memory, talking_heads
from mm_vitbackbones.ops.chained import Forked
from mm_vitbackbones.registry import BACKBONES

INITIAL_SCALES = {18: 0.1, 24: 1e-5}
"""Section 2: the initial factors of layer scale, by the largest depth that each is for; 1e-6 for deeper networks."""


@dataclass(frozen=True)
class Arch:
    """Table 3 of the paper, and the released configurations."""

    dim: int
    num_heads: int
    depth: int = 24
    patch_size: int = 16
    pretrain_grid: int = 14
    """Side of the position table: 224 pixels in patches."""
    layer_scale: Annotated[float, Above(0)] | None = None
    """The initial value of the factors; None for the paper's rule by depth."""
    class_depth: Annotated[int, Minimum(1)] = 2
    """Blocks of class attention."""
    taps: tuple[int, ...] | None = None
    """Default taps; None for the ends of the quarters."""

    def __post_init__(self) -> None:
        check_spec(self)
        check_heads(self.dim, self.num_heads)

    @property
    def initial_scale(self) -> float:
        """Of the factors of layer scale."""
        if self.layer_scale is not None:
            return self.layer_scale
        return next((scale for depth, scale in INITIAL_SCALES.items() if self.depth <= depth), 1e-6)


XXS24 = Arch(192, 4)
XXS36 = replace(XXS24, depth=36, layer_scale=1e-5)  # as released; the rule says 1e-6
S24 = Arch(384, 8)
ARCHS = {
    "xxs24": XXS24,
    "xxs24_384": replace(XXS24, pretrain_grid=24),
    "xxs36": XXS36,
    "xxs36_384": replace(XXS36, pretrain_grid=24),
    "xs24_384": Arch(288, 6, pretrain_grid=24),
    "s24": S24,
    "s24_384": replace(S24, pretrain_grid=24),
    "s36_384": replace(S24, depth=36, pretrain_grid=24),
    "m36_384": Arch(768, 16, depth=36, pretrain_grid=24),
    "m48_448": Arch(768, 16, depth=48, pretrain_grid=28),
}
"""By name, which ends in the side of the images of the published weights if it is not 224."""


class Stem(PatchStem):
    """Patches with their positions: (B, H, W, Cin) -> (B, H', W', C)."""

    def __init__(self, in_channels: int, arch: Arch, patch_size: int, published: bool) -> None:
        super().__init__(in_channels, arch.dim, patch_size, published)
        self.position = LearnedPosition(arch.dim, arch.pretrain_grid, arch.pretrain_grid, BICUBIC)

    def forward(self, image: Tensor) -> Tensor:
        return self.position(self.patches(image))


@context.plain
class HeadMixing(nn.Linear):
    """A linear map of the heads. It is a class of its own, as adapters are for linear maps of channels: one here would
    ask for the scores of all heads as a whole."""


@context.plain
class TalkingHeadsAttention(nn.Module):
    """Attention of every token of a grid over all of them, with heads that are mixed: (B, H, W, C) -> (B, H, W, C)
    (Shazeer et al. 2020, arXiv:2003.02436):

        softmax(proj_l(Q K' / sqrt(d))), then proj_w of it, times V
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj_l = HeadMixing(num_heads, num_heads)
        self.proj_w = HeadMixing(num_heads, num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        return self.begun(grid)

    def begun(self, grid: Tensor | Forked) -> Tensor:
        """``forward``, of a norm that may be left to it."""
        inner: dict[str, Any] = self._modules  # `self.qkv` takes PyTorch as long as a launch
        maps = inner["qkv"], inner["proj_l"], inner["proj_w"], inner["proj"]
        return talking_heads.attend_between(grid, *maps, self.num_heads)

    def looks_at(self, grid: Tensor) -> looking.Shares:
        """The weights of chosen queries after the softmax: ``proj_w``, which mixes heads, does not take part."""
        query, key, _ = linear.linear(grid.flatten(1, 2), self.qkv).chunk(3, dim=-1)
        return looking.of_tokens(query, key, self.num_heads, self.proj_l).on_grid((grid.shape[1], grid.shape[2]))


@context.plain
class ClassAttention(nn.Module):
    """Attention of the class token over all tokens: (B, 1 + N, C), the class token first -> (B, 1, C) (equations 5 to
    8)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.q(tokens[:, :1]), linear.linear(tokens, self.k), linear.linear(tokens, self.v)
        return self.proj(attention.attend(query, key, value, self.num_heads))

    def looks_at(self, tokens: Tensor) -> looking.Shares:
        """The attention weights of the class token, which is the only query."""
        return looking.of_tokens(self.q(tokens[:, :1]), linear.linear(tokens, self.k), self.num_heads)


@context.plain
class ClassBlock(nn.Module):
    """A class token (B, 1, C) that attends to itself and to patches (B, N, C), which stay as they are."""

    def __init__(self, arch: Arch, norm_eps: float) -> None:
        super().__init__()
        dim = arch.dim
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = ClassAttention(dim, arch.num_heads)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.ffn = FeedForward(dim, 4 * dim)
        self.ls1, self.ls2 = (LayerScale(dim, arch.initial_scale) for _ in range(2))

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        with memory.saving(patches):
            tokens = torch.cat((cls, patches), dim=1)
            cls = cls + self.ls1(self.attn(self.norm1(tokens)))
            return cls + self.ls2(self.ffn(self.norm2(cls)))


@context.plain
class ClassAttentionStage(nn.Module):
    """The class token after the blocks that it passes through alone: a grid (B, H, W, C) -> (B, 1, C)."""

    def __init__(self, arch: Arch, norm_eps: float) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, arch.dim))
        self.blocks = nn.ModuleList(ClassBlock(arch, norm_eps) for _ in range(arch.class_depth))
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, grid: Tensor) -> Tensor:
        patches = grid.flatten(1, 2)
        cls = self.token.to(grid.dtype).expand(grid.shape[0], -1, -1)
        for block in self.blocks:
            cls = block(cls, patches)
        return cls


@final
@BACKBONES.register_module()
class CaiT(ColumnarBackbone):
    """CaiT as an encoder; the arguments are those of ``ColumnarBackbone``, and

    class_attention: whether ``features()`` gives the class token of the last block, by the blocks of class attention.
        They take part in no map, so a detector or a segmentor leaves their parameters without gradients. Without it
        they are not built.
    drop_path_rate: all blocks have it.

    Raises:
        ArgumentError: besides what ``ColumnarBackbone`` raises, for class attention where the last block is not tapped.
    """

    archs = ARCHS
    spec_type = Arch
    default_arch = "xxs24"
    norms_taps = False
    drop_paths_grow = False

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "xxs24",
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
        stem: str = "aligned",
        class_attention: bool = False,
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self._gives_class_tokens = class_attention
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
            stem=stem,
            init_cfg=init_cfg,
            adapters=adapters,
        )

    def make_stem(self, in_channels: int, published: bool) -> nn.Module:
        return Stem(in_channels, self.arch, self.patch_size, published)

    def make_block(self, index: int, drop_path: float) -> Block:
        arch: Arch = self.arch
        attn, ffn = TalkingHeadsAttention(arch.dim, arch.num_heads), FeedForward(arch.dim, 4 * arch.dim)
        return Block(arch.dim, attn, ffn, self.norm_eps, drop_path, arch.initial_scale)

    def make_class_attention(self) -> nn.Module | None:
        arch: Arch = self.arch
        if not self._gives_class_tokens:
            return None
        if len(self.blocks) < arch.depth:
            raise ArgumentError(
                f"class_attention=True, and no level of out_indices={self.out_indices} is made of block "
                f"{arch.depth - 1}, the last, which the class token attends to: add one, or leave class_attention out"
            )
        return ClassAttentionStage(arch, self.norm_eps)
