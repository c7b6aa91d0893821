"""XCiT in the tests over all families."""

from __future__ import annotations

from helpers.families import COLUMN, EIGHTH, ONE, PYTORCH_CONVS, SMALL_LINEARS, WIDE_COLUMN, Family, Toy, constant
from mm_vitbackbones.backbones import XCiT

FAMILY = Family(
    XCiT,
    toys={
        "xcit": Toy(XCiT, dict(COLUMN, dim=32), options=dict(norm_eval=True), recorded=False),
    },
    parameters={
        # With its pyramid, as the authors' detectors have it.
        "nano_12_p16": 2_724_032,
        "tiny_12_p16": 6_075_528,
        "tiny_24_p16": 11_476_152,
        "small_12_p16": 24_088_080,
        "small_24_p16": 45_506_160,
        "medium_24_p16": 80_722_688,
        "large_24_p16": 181_227_744,
        "nano_12_p8": 2_588_240,
        "tiny_12_p8": 5_770_080,
        "tiny_24_p8": 11_170_704,
        "small_12_p8": 22_866_624,
        "small_24_p8": 44_284_704,
        "medium_24_p8": 78_551_360,
        "large_24_p8": 176_342_592,
    },
    drop_path=constant,  # facebookresearch/xcit, xcit.py: one rate
    rules={
        # facebookresearch/xcit, xcit.py: as PVT; no rule for convolutions, and constants.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "temperature": ONE,
        "gamma": EIGHTH,
    },
    wide=[WIDE_COLUMN],
)
