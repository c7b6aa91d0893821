"""MViTv2 in the tests over all families."""

from __future__ import annotations

from helpers.families import PYTORCH_CONVS, SMALL, SMALL_LINEARS, WIDE_SPEC, Family, Toy, linear_to_the_last, norms
from mm_vitbackbones.backbones import MViTv2

FAMILY = Family(
    MViTv2,
    toys={
        "mvit_v2": Toy(
            MViTv2,
            dict(depths=(1, 2, 2, 2), dims=(8, 16, 32, 64), num_heads=(1, 2, 4, 8), window_size=8, pretrain_grid=16),
            classifier=norms(norm=64),
            head="head.projection.",
        ),
    },
    parameters={
        # With the norms of its levels, as detectron2 has it.
        "tiny": 23_405_664,
        "small": 34_102_560,
        "base": 50_705_088,
        "large": 212_484_384,
    },
    drop_path=linear_to_the_last,  # detectron2's mvit.py: linspace from 0 to the rate
    rules={
        # detectron2's mvit.py: as PVT; the tables are those of distances.
        **SMALL_LINEARS,
        **PYTORCH_CONVS,
        "table": SMALL,
    },
    wide=[{key: WIDE_SPEC[key] for key in ("depths", "num_heads")} | {"dims": (64, 128, 256, 512)}],
)
