"""Every family at toy size: each stage and each kind of block, in milliseconds."""

from __future__ import annotations

from mm_vitbackbones.backbones import PVT, CoaT, MiT, PiT, PVTv2, Swin

TINY = dict(depths=(2, 1, 1, 2), dims=(8, 16, 20, 32), num_heads=(1, 2, 5, 8))
TINY_PIT = dict(depths=(2, 2, 2), dims=(8, 16, 32), num_heads=(1, 2, 4), pretrain_grid=7, num_tokens=2)
COAT = dict(depths=(2, 1, 1, 2), mlp_ratios=(4, 4, 4, 4))
TOYS = {
    "coat": lambda **kw: CoaT(arch=dict(COAT, dims=(8, 24, 24, 24), parallel_depth=2), **kw),
    "coat_lite": lambda **kw: CoaT(arch=dict(COAT, dims=(8, 16, 24, 32)), **kw),
    "pvt": lambda **kw: PVT(arch=dict(TINY, pretrain_grid=16), **kw),
    "pvt_v2": lambda **kw: PVTv2(arch=TINY, **kw),
    "pvt_v2_linear": lambda **kw: PVTv2(arch=dict(TINY, linear=True), **kw),
    "mit": lambda **kw: MiT(arch=TINY, **kw),
    "pit": lambda **kw: PiT(arch=TINY_PIT, **kw),
    "swin": lambda **kw: Swin(arch=dict(TINY, window_size=5), **kw),
}
"""A backbone of each, by its arguments."""
