"""CaiT in the tests over all families."""

from __future__ import annotations

from helpers.families import COLUMN, EIGHTH, PYTORCH_CONVS, SMALL, SMALL_LINEARS, WIDE_COLUMN, Family, Toy, constant
from helpers.junk import NO_BOOL
from mm_vitbackbones.backbones import CaiT

FAMILY = Family(
    CaiT,
    toys={
        "cait": Toy(CaiT, dict(COLUMN, pretrain_grid=3, layer_scale=0.5), recorded=False),
    },
    parameters={
        # Without the final norm and what its class token alone passes through.
        "xxs24": 10_872_192,
        "xxs24_384": 10_945_152,
        "xxs36": 16_215_648,
        "xxs36_384": 16_288_608,
        "xs24_384": 24_380_928,
        "s24": 42_979_584,
        "s24_384": 43_125_504,
        "s36_384": 64_430_016,
        "m36_384": 256_271_232,
        "m48_448": 341_510_400,
    },
    drop_path=constant,  # facebookresearch/deit, cait_models.py: one rate, and none for class attention
    rules={
        # facebookresearch/deit, cait_models.py: as ViT.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "table": SMALL,
        "gamma": EIGHTH,
    },
    wide=[WIDE_COLUMN | {"pretrain_grid": 9, "num_heads": 16}],
    wrong={"class_attention": NO_BOOL},
)
