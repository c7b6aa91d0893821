"""MiT in the tests over all families."""

from __future__ import annotations

from helpers.families import FAN_OUT_CONVS, SMALL_LINEARS, SPEC, WIDE_SPEC, Family, Toy, linear_to_the_last
from mm_vitbackbones.backbones import MiT

FAMILY = Family(
    MiT,
    toys={
        "mit": Toy(MiT, dict(SPEC, mlp_ratios=(4, 4, 4, 4))),
    },
    parameters={
        "b0": 3_319_392,
        "b1": 13_151_424,
        "b2": 24_196_288,
        "b3": 44_072_128,
        "b4": 60_842_688,
        "b5": 81_443_008,
    },
    drop_path=linear_to_the_last,  # MMSegmentation's mit.py: linspace from 0 to the rate
    rules={
        # The official code: as PVTv2.
        **SMALL_LINEARS,
        **FAN_OUT_CONVS,
    },
    wide=[WIDE_SPEC],
    golden={
        ("b0", (128, 160)): [
            (0.00320481, 1.01568, -1.29001, 0.395065, 1.0498),
            (0.00236004, 0.997464, 0.333381, -0.639095, -0.461327),
            (0.000797111, 1.00221, 0.207271, 0.845313, 0.45469),
            (-0.00411594, 0.998844, -0.480134, 1.07764, -1.12451),
        ],
        ("b0", (130, 165)): [
            (0.010199, 1.01586, 1.51615, -0.769339, -0.544479),
            (-0.00089886, 0.99971, 0.518343, -0.440262, -1.51944),
            (0.00268683, 0.98972, 0.404306, -0.693525, -0.336041),
            (-0.00227916, 1.00749, 0.00506519, 0.534394, -0.466935),
        ],
    },
    on_gpu="b2",
)
