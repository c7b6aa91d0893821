"""DINOv3 in the tests over all families."""

from __future__ import annotations

from helpers.families import COLUMN, EIGHTH, PYTORCH_CONVS, SMALL, SMALL_LINEARS, WIDE_COLUMN, Family, Toy, constant
from helpers.junk import NO_NUMBER
from mm_vitbackbones.backbones import DINOv3

FAMILY = Family(
    DINOv3,
    toys={
        "dinov3": Toy(DINOv3, dict(COLUMN, layer_scale=0.5), recorded=False),
    },
    parameters={
        # Without the final norm, which only some dense heads have, the bias of the keys, which is masked, and the norm
        # that its 7b has for training alone.
        "small": 21_600_768 - 4_608,
        "small_plus": 28_697_088 - 4_608,
        "base": 85_668_864 - 9_216,
        "large": 303_153_152 - 24_576,
        "huge_plus": 840_632_320 - 40_960,
        "7b": 6_716_039_168 - 8_192,
    },
    drop_path=constant,  # as DINOv2
    rules={
        # The paper, and timm 1.0.31 (vit_small_patch16_dinov3): as ViT; there is no table.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "token": SMALL,
        "gamma": EIGHTH,
    },
    wide=[WIDE_COLUMN | {"registers": 30}],
    wrong={"rescale_positions": (*NO_NUMBER, 0, 1, -2.0)},
    on_gpu="small",
)
