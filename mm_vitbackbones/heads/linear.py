"""The linear probe of DINOv2 (Oquab et al., TMLR 2024, arXiv:2304.07193, section 7.4) and DINOv3 (Siméoni et al. 2025,
arXiv:2508.10104): how good frozen features are, by the least that a head can be.

    x = maps of one or several blocks, side by side;  logits = linear(batch_norm(dropout(x)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.registry import MODELS, init_weights


@final
@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Logits at the first map's grid, by a batch norm and a linear map of the channels.

    Args:
        in_channels: of each map; maps of other sizes are resized to that of the first.
        in_index: the maps to take; all of ``in_channels`` by default.
        dropout_ratio: of whole channels, before the norm: 0 for DINOv2, 0.1 for DINOv3.
        norm_cfg: of the batch norm.
        kwargs: of MMSegmentation's decode heads: num_classes, loss_decode, align_corners (False), ...
            ``init_cfg=dict(type='Pretrained', checkpoint=PATH_OR_URL)`` takes DINOv2's files of heads.

    Raises:
        ArgumentError: (a ValueError) if ``in_channels`` and ``in_index`` are not of one length.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        *,
        in_index: Sequence[int] | None = None,
        dropout_ratio: float = 0.0,
        norm_cfg: Any = None,
        **kwargs: Any,
    ) -> None:
        dims = [in_channels] if isinstance(in_channels, int) else [*in_channels]
        in_index = [*range(len(dims))] if in_index is None else [*in_index]
        if len(in_index) != len(dims):
            raise ArgumentError(
                f"in_channels={in_channels!r} and in_index={in_index!r}: give one of each for every map"
            )
        norm_cfg = dict(type="BN") if norm_cfg is None else norm_cfg
        kwargs = dict(kwargs, input_transform="resize_concat", norm_cfg=norm_cfg, dropout_ratio=dropout_ratio)
        super().__init__(dims, sum(dims), in_index=in_index, **kwargs)
        self.bn = build_norm_layer(norm_cfg, self.channels)[1]

    def init_weights(self) -> None:
        """MMEngine's hook: weights out of a file, or the classifier's own initialisation."""
        init_weights(self, super().init_weights)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i) -> logits (B, classes, H_0, W_0)."""
        x = self._transform_inputs(inputs)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.conv_seg(self.bn(x))
