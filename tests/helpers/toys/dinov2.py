"""DINOv2 in the tests over all families."""

from __future__ import annotations

from helpers.families import (
    COLUMN,
    EIGHTH,
    PYTORCH_CONVS,
    SMALL,
    SMALL_LINEARS,
    TINY,
    WIDE_COLUMN,
    Family,
    Toy,
    constant,
)
from mm_vitbackbones.backbones import DINOv2

FAMILY = Family(
    DINOv2,
    toys={
        "dinov2": Toy(DINOv2, dict(COLUMN, pretrain_grid=4, registers=2, gated=True, layer_scale=0.5), recorded=False),
    },
    parameters={
        # Without the final norm, which only some dense heads have.
        "small": 22_056_192,
        "base": 86_579_712,
        "large": 304_367_616,
        "giant": 1_136_479_232,
        "small_reg": 22_057_728,
        "base_reg": 86_582_784,
        "large_reg": 304_371_712,
        "giant_reg": 1_136_485_376,
    },
    drop_path=constant,  # facebookresearch/dinov2: drop_path_uniform
    rules={
        # facebookresearch/dinov2: as ViT, except for tokens that begin near zero.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "table": SMALL,
        "token": TINY,
        "gamma": EIGHTH,
    },
    wide=[WIDE_COLUMN | {"pretrain_grid": 9, "registers": 30}],
    on_gpu="small_reg",
)
