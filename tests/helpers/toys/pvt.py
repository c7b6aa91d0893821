"""PVT in the tests over all families."""

from __future__ import annotations

from helpers.families import (
    PYTORCH_CONVS,
    SMALL,
    SMALL_LINEARS,
    SPEC,
    WIDE_SPEC,
    Family,
    Toy,
    linear_to_the_last,
    norms,
)
from mm_vitbackbones.backbones import PVT

FAMILY = Family(
    PVT,
    toys={
        "pvt": Toy(PVT, dict(SPEC, pretrain_grid=16), classifier={"cls_token": (1, 1, 32), **norms(norm=32)}),
    },
    parameters={
        "tiny": 12_714_240,
        "small": 23_970_816,
        "medium": 43_693_056,
        "large": 60_854_272,
    },
    drop_path=linear_to_the_last,  # whai362/PVT, classification/pvt.py: linspace from 0 to the rate over all blocks
    rules={
        # The official code: linear maps and tables truncated normal of 0.02, norms 1 and 0, nothing for convolutions.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "table": SMALL,
    },
    wide=[WIDE_SPEC],
    golden={
        ("tiny", (128, 160)): [
            (0.101043, 1.48045, -0.41218, -1.81596, 0.682162),
            (-0.0525269, 1.61555, -1.2355, -0.391113, 0.0537295),
            (-0.0399286, 1.93097, -1.71993, -0.314054, 0.00780907),
            (-0.00502605, 1.95473, -2.43295, 0.75816, -0.422008),
        ],
    },
    on_gpu="small",
)
