"""Pool in the tests over all families."""

from __future__ import annotations

from helpers.families import PYTORCH_CONVS, SMALL_LINEARS, Family, Toy, linear_to_the_last
from mm_vitbackbones.backbones import Pool

FAMILY = Family(
    Pool,
    toys={"pool": Toy(Pool, dict(depths=(1, 2, 1, 1), dims=(8, 16, 20, 32)))},
    drop_path=linear_to_the_last,
    rules={**SMALL_LINEARS, **PYTORCH_CONVS},
    wide=[dict(depths=(1, 2, 1, 1), dims=(64, 64, 128, 128))],
)
