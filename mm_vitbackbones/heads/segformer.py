"""The decoder of SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers.

Xie et al., NeurIPS 2021, arXiv:2105.15203, section 3.2.

    linear    each level to E channels
    upsample  each level to the grid of the first one, bilinearly
    fuse      the levels' 4E channels to E by a linear map, norm, ReLU
    classify  dropout, a linear map to the classes

A linear map of the channels and an interpolation between places commute, and two linear maps in a row are one. So a
level's linear map is composed with its part of the fusing one and applied on the level's own grid; what is upsampled is
added up. No map of 4E channels is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.ops import context, residual
from mm_vitbackbones.registry import MODELS, init_weights


@final
@MODELS.register_module()
class SegFormerHead(BaseDecodeHead):
    """Logits at the first level's grid out of maps of several levels.

    Args:
        in_channels: of each level.
        channels: E. As published 256 for MiT b0 and b1, 768 for b2 to b5.
        in_index: the levels to take, the finest first; all of ``in_channels`` by default.
        level_norm: MMSegmentation's variant: the levels' linear maps have no bias, and a norm and a ReLU after them.
        norm_cfg: the norm after the fusing map (and with ``level_norm`` those of the levels).
        kwargs: of MMSegmentation's decode heads: num_classes, loss_decode, dropout_ratio (0.1), align_corners (False),
            ignore_index (255), sampler, ... ``init_cfg=dict(type='Pretrained', checkpoint=PATH_OR_URL)`` takes the head
            out of a file of a whole SegFormer, of any known layout.

    Raises:
        ValueError: if ``in_channels`` and ``in_index`` are not of one length.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        in_index: Sequence[int] | None = None,
        level_norm: bool = False,
        norm_cfg: Any = None,
        **kwargs: Any,
    ) -> None:
        in_index = range(len(in_channels)) if in_index is None else in_index
        if len(in_index) != len(in_channels):
            raise ArgumentError(
                f"in_channels={in_channels!r} and in_index={in_index!r}: give one of each for every level"
            )
        norm_cfg = dict(type="BN") if norm_cfg is None else norm_cfg
        kwargs = dict(kwargs, input_transform="multiple_select", norm_cfg=norm_cfg)
        super().__init__([*in_channels], channels, in_index=[*in_index], **kwargs)
        self.linears = nn.ModuleList(nn.Linear(dim, channels, bias=not level_norm) for dim in in_channels)
        self.level_norms = nn.ModuleList(self._make_norm() for _ in in_channels if level_norm)
        self.fuse = nn.Linear(len(in_channels) * channels, channels, bias=False)
        """Its columns are the channels of the levels in the order of ``in_index``."""
        self.norm = self._make_norm()
        for linear in (*self.linears, self.fuse):
            nn.init.kaiming_normal_(linear.weight, mode="fan_out")

    def _make_norm(self) -> nn.Module:
        return build_norm_layer(self.norm_cfg, self.channels)[1]

    def init_weights(self) -> None:
        """MMEngine's hook: weights out of a file, or the classifier's own initialisation."""
        init_weights(self, super().init_weights)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i) of all levels -> logits (B, classes, H_0, W_0)."""
        maps = self._transform_inputs(inputs)
        # What a user attaches to the linear maps, such as an adapter, works in the paper's form alone.
        plain = context.is_plain(self.fuse) and all(map(context.is_plain, self.linears))
        fused = self.fused(maps) if plain else self.plain(maps)
        return self.cls_seg(F.relu(self.norm(fused), inplace=not context.has_hooks(self.norm)))

    def plain(self, maps: Sequence[Tensor]) -> Tensor:
        """As in the paper: maps (B, C_i, H_i, W_i) -> the fused map (B, E, H_0, W_0), before its norm."""
        size = maps[0].shape[2:]
        levels = [self._upsample(self._level(i, map), size) for i, map in enumerate(maps)]
        return self.fuse(torch.cat(levels, dim=1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """Equal to ``plain``. Interpolation keeps what is the same everywhere, so the last level's grid, which is the
        smallest, takes the biases of all levels."""
        size = maps[0].shape[2:]
        parts = self.fuse.weight.split(self.channels, dim=1)
        biases = [None] * (len(maps) - 1) + [self._bias()]
        composed = zip(maps, parts, biases, strict=True)
        first, *others = (self._part(i, map, part, bias) for i, (map, part, bias) in enumerate(composed))
        for level in others:
            upsampled = self._upsample(level, size)
            first = first + upsampled if upsampled is level else residual.add_fresh(first, upsampled)
        return first

    def _bias(self) -> Tensor | None:
        """What the biases of all levels add to the fused map: (E,)."""
        if self.level_norms:
            return None
        return self.fuse.weight @ torch.cat([cast(Tensor, linear.bias) for linear in self.linears])

    def _part(self, index: int, map: Tensor, part: Tensor, bias: Tensor | None) -> Tensor:
        """What a level adds to the fused map, on its own grid: (B, C_i, H, W) -> (B, E, H, W).

        ``part``: (E, E), the fusing map's columns for this level.
        """
        if self.level_norms:
            weight, grid = part, self._level(index, map).permute(0, 2, 3, 1)
        else:
            weight, grid = part @ cast(nn.Linear, self.linears[index]).weight, map.permute(0, 2, 3, 1)
        return F.linear(grid, weight, bias).permute(0, 3, 1, 2)

    def _level(self, index: int, map: Tensor) -> Tensor:
        """(B, C_i, H, W) -> (B, E, H, W)."""
        level = self.linears[index](map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.relu(self.level_norms[index](level)) if self.level_norms else level

    def _upsample(self, map: Tensor, size: torch.Size) -> Tensor:
        if map.shape[2:] == size:
            return map
        return F.interpolate(map, size=size, mode="bilinear", align_corners=self.align_corners)
