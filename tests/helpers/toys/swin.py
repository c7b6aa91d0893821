"""Swin in the tests over all families."""

from __future__ import annotations

from helpers.families import PYTORCH_CONVS, SMALL, SMALL_LINEARS, WIDE_SPEC, Family, Toy, linear_to_the_last, norms
from mm_vitbackbones.backbones import Swin

FAMILY = Family(
    Swin,
    toys={
        "swin": Toy(
            Swin,
            dict(depths=(2, 2, 2, 2), dims=(8, 16, 32, 64), num_heads=(1, 2, 2, 4)),
            classifier={"layers.0.blocks.1.attn_mask": (9, 49, 49), **norms(norm=64)},
        ),
    },
    parameters={
        "tiny": 27_520_698,
        "small": 48_838_602,
        "base": 86_745_016,
        "large": 194_998_164,
        "base_w12": 86_880_376,
        "large_w12": 195_201_204,
    },
    drop_path=linear_to_the_last,  # microsoft/Swin-Transformer, models/swin_transformer.py: linspace
    rules={
        # The official code, and timm 1.0.31 (swin_tiny): as PVT; the tables are those of relative positions.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "table": SMALL,
    },
    wide=[{key: WIDE_SPEC[key] for key in ("depths", "dims", "num_heads")}],
    golden={
        ("tiny", (128, 160)): [
            (0.00836523, 0.99433, 0.00594268, -0.967311, 1.02365),
            (0.00559938, 1.00487, 0.409309, -0.717527, -0.00149185),
            (-0.00249709, 1.00876, -0.868779, 1.36329, -0.409074),
            (0.00208088, 1.00043, 1.54167, 0.0270249, 0.855238),
        ],
        ("tiny", (130, 165)): [
            (0.00861164, 0.994313, -0.0665889, -1.57951, 1.08936),
            (0.00640199, 1.00551, -0.66939, -1.38361, -0.756622),
            (-0.00292475, 1.00736, -0.0775049, 0.801413, -0.154375),
            (0.000917597, 1.00104, 1.41733, 0.612394, -0.21362),
        ],
    },
    on_gpu="tiny",
)
