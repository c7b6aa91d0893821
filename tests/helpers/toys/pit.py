"""PiT in the tests over all families."""

from __future__ import annotations

from helpers.families import NORMS, PYTORCH, PYTORCH_CONVS, SMALL, Family, Toy, linear_below_the_last
from mm_vitbackbones.backbones import PiT

PIT = dict(depths=(1, 2, 1), dims=(8, 16, 32), num_heads=(2, 4, 8), pretrain_grid=7)
WIDE = dict(dims=(64, 128, 256), num_heads=(2, 4, 8), depths=(2, 1, 1), pretrain_grid=9)

FAMILY = Family(
    PiT,
    toys={
        "pit": Toy(
            PiT,
            PIT,
            form=dict(stem="published", out_indices=(1, 2, 3)),
            classifier={"head_dist.weight": (10, 32), "head_dist.bias": (10,)},
        ),
        "pit_distilled": Toy(PiT, dict(PIT, num_tokens=2), recorded=False),
    },
    parameters={
        # As published without the final norm and the heads, and its upsampling to level 0, of 4 C^2 + C.
        "ti": 4_589_760 + 16_448,
        "xs": 10_233_120 + 36_960,
        "s": 22_883_760 + 83_088,
        "b": 72_737_792 + 262_400,
        "ti_distilled": 4_589_760 + 64 + 16_448,
        "xs_distilled": 10_233_120 + 96 + 36_960,
        "s_distilled": 22_883_760 + 144 + 83_088,
        "b_distilled": 72_737_792 + 256 + 262_400,
    },
    drop_path=linear_below_the_last,  # naver-ai/pit, pit.py: rate * i / (number of blocks)
    rules={
        # The official code, and timm 1.0.31 (pit_ti, pit_s_distilled): the table and the class tokens alone have a
        # rule. In the first stage of `ti` linear maps of 64 channels have a standard deviation of 0.072.
        "linear.weight": PYTORCH,
        "linear.bias": PYTORCH,
        **NORMS,
        **PYTORCH_CONVS,
        "table": SMALL,
    },
    wide=[WIDE, WIDE | {"num_tokens": 2}],
    golden={
        ("ti", (224, 224)): [
            (-0.189082, 1.16201, -0.0257937, 0.903083, 2.01985),
            (-0.232227, 2.75705, -4.64876, -4.32033, -2.82999),
            (-0.0784641, 3.19918, 3.25482, -2.5738, -3.74628),
        ],
    },
    on_gpu="s",
)
