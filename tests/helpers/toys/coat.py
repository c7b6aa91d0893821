"""CoaT in the tests over all families."""

from __future__ import annotations

from helpers.families import PYTORCH_CONVS, SMALL, SMALL_LINEARS, Family, Toy, constant, norms
from mm_vitbackbones.backbones import CoaT

WIDE = dict(depths=(1, 2, 1, 1), dims=(64, 64, 64, 64), mlp_ratios=(4, 4, 4, 4))

FAMILY = Family(
    CoaT,
    toys={
        "coat": Toy(
            CoaT,
            dict(depths=(1, 1, 1, 1), dims=(16, 24, 24, 24), mlp_ratios=(4, 4, 4, 4), parallel_depth=2),
            classifier={
                "aggregate.weight": (1, 3, 1),
                "aggregate.bias": (1,),
                **norms(norm1=16, norm2=24, norm3=24, norm4=24),
            },
        ),
        "coat_lite": Toy(
            CoaT,
            dict(depths=(1, 2, 1, 1), dims=(16, 16, 24, 32)),
            classifier=norms(norm1=16, norm2=16, norm3=24, norm4=32),
        ),
    },
    parameters={
        "tiny": 5_344_624,
        "mini": 10_118_704,
        "small": 21_370_984,
        "lite_tiny": 5_400_320,
        "lite_mini": 10_497_536,
        "lite_small": 19_324_480,
        "lite_medium": 44_057_024,
    },
    drop_path=constant,  # mlpc-ucsd/CoaT, src/models/coat.py: one rate, in serial and parallel blocks
    rules={
        # The official code, and timm 1.0.31 (coat_tiny, coat_lite_tiny): as PVT; none for depthwise convolutions.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "table": SMALL,
    },
    wide=[WIDE, WIDE | {"parallel_depth": 1}],
    golden={
        ("lite_tiny", (128, 160)): [
            (-0.0268535, 3.52164, -2.43494, -2.26293, -2.17971),
            (-0.0660351, 3.25601, -0.914822, -1.63297, 1.38761),
            (-0.033502, 3.08721, -3.20051, -1.31836, 5.62177),
            (-0.0359849, 2.88291, 0.129763, -6.49556, -3.79994),
        ],
        ("tiny", (128, 160)): [
            (-0.00677053, 3.3345, 0.829315, 1.56351, -0.362149),
            (-286.602, 3840.72, 145.669, -45.0431, -14.131),
            (5.42513, 829.994, 10.3015, -516.293, 26.8287),
            (-4.68765, 450.413, 49.5765, -11.0696, 20.2518),
        ],
    },
    on_gpu="lite_small",
)
