"""PVTv2 in the tests over all families."""

from __future__ import annotations

from helpers.families import FAN_OUT_CONVS, SMALL_LINEARS, SPEC, WIDE_SPEC, Family, Toy, linear_to_the_last
from mm_vitbackbones.backbones import PVTv2

FAMILY = Family(
    PVTv2,
    toys={
        "pvt_v2": Toy(PVTv2, SPEC),
        "pvt_v2_linear": Toy(PVTv2, dict(SPEC, linear=True)),
    },
    parameters={
        "b0": 3_409_760,
        "b1": 13_496_000,
        "b2_li": 22_040_512,
        "b2": 24_849_856,
        "b3": 44_725_696,
        "b4": 62_043_072,
        "b5": 81_443_008,
    },
    drop_path=linear_to_the_last,  # whai362/PVT, classification/pvt_v2.py: linspace from 0 to the rate over all blocks
    rules={
        # The official code, and timm 1.0.31 (pvt_v2_b0, pvt_v2_b2_li): as PVT, and convolutions by fan-out.
        **SMALL_LINEARS,
        **FAN_OUT_CONVS,
    },
    wide=[WIDE_SPEC, WIDE_SPEC | {"linear": True}],
    golden={
        ("b0", (128, 160)): [
            (0.00582407, 1.00504, -1.36106, 0.0664353, 0.714336),
            (0.00182212, 1.00294, -0.68079, -2.5308, 1.21581),
            (0.000739462, 0.998176, -0.198225, 0.856686, 1.30078),
            (-0.00510559, 1.00769, -0.462036, 0.963351, -1.24606),
        ],
        ("b2_li", (128, 160)): [
            (0.0056865, 1.01047, -1.54222, -0.799049, -0.524179),
            (0.00060587, 1.00487, -0.237401, -2.32414, 1.11691),
            (-0.00330482, 0.994193, -0.455284, -0.0735156, 0.880428),
            (0.000803479, 1.00479, 0.458459, -1.03644, -0.636448),
        ],
    },
    on_gpu="b2",
)
