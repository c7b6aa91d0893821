"""ViT in the tests over all families."""

from __future__ import annotations

from helpers.families import (
    COLUMN,
    EIGHTH,
    PYTORCH_CONVS,
    SMALL,
    SMALL_LINEARS,
    WIDE_COLUMN,
    Family,
    Toy,
    linear_to_the_last,
)
from helpers.junk import JUNK, NO_INTEGER, NO_LIST
from mm_vitbackbones.backbones import ViT

FAMILY = Family(
    ViT,
    toys={
        "vit": Toy(ViT, dict(COLUMN, pretrain_grid=3), options=dict(pyramid="taps", norm_eval=True), recorded=False),
        "vit_windows": Toy(
            ViT,
            dict(COLUMN, pretrain_grid=3),
            options=dict(window_size=2, relative_positions=4, pyramid="simple"),
            recorded=False,
        ),
    },
    parameters={
        # Without the final norm, which only some dense heads have.
        "tiny": 5_524_032,
        "small": 21_664_896,
        "base": 85_797_120,
        "tiny_distilled": 5_524_416,
        "small_distilled": 21_665_664,
        "base_distilled": 85_798_656,
        "deit3_small": 21_673_728,
        "deit3_medium": 38_335_488,
        "deit3_base": 85_814_784,
        "deit3_large": 303_347_712,
        "deit3_huge": 630_842_880,
        "small_p8": 21_669_504,
        "base_p8": 85_806_336,
        "base_384": 86_088_960,
        "base_distilled_384": 86_090_496,
        "deit3_small_384": 21_819_648,
        "deit3_base_384": 86_106_624,
        "deit3_large_384": 303_736_832,
        "large": 303_299_584,
        "large_384": 303_688_704,
        "huge": 630_762_240,
    },
    drop_path=linear_to_the_last,  # facebookresearch/deit, models.py, and detectron2's vit.py: linspace
    rules={
        # facebookresearch/deit, models.py with timm's ViT: as PVT; layer scale is a constant.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "table": SMALL,
        "gamma": EIGHTH,
    },
    wide=[WIDE_COLUMN | {"pretrain_grid": 9}],
    wrong={
        "positions": (*JUNK, True, "size", ["by_size"]),
        "window_size": (*NO_INTEGER, 0, -1),
        "global_blocks": (*NO_LIST, (0, 9)),
        "relative_positions": (*NO_INTEGER, 0, -1),
    },
    on_gpu="small",
)
