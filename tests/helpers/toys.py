"""One table of toy networks: each stage and each kind of block, in milliseconds.

The tests over all families take their networks from here. A new family adds its toys, and nothing else in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mm_vitbackbones.backbones import (
    PVT,
    Backbone,
    CaiT,
    CoaT,
    DINOv2,
    DINOv3,
    MiT,
    MViTv2,
    PiT,
    PVTv2,
    Swin,
    ViT,
    XCiT,
)

SPEC = dict(
    depths=(2, 1, 1, 1),
    dims=(8, 16, 20, 32),
    num_heads=(1, 2, 5, 8),
    reductions=(8, 4, 2, 1),
    mlp_ratios=(8, 8, 4, 4),
)
"""Of PVT and what follows from it."""
COLUMN = dict(dim=16, num_heads=2, depth=4)
"""Of ViT and its successors."""
PIT = dict(depths=(1, 2, 1), dims=(8, 16, 32), num_heads=(2, 4, 8), pretrain_grid=7)


@dataclass(frozen=True)
class Toy:
    """A small network of a family. Called with arguments of the backbone, it builds one."""

    family: type[Backbone]
    arch: Mapping[str, Any]
    form: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that give the network the form of the official one."""
    classifier: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Names and shapes of what the official classifier's file holds besides this network's weights and the head."""
    head: str = "head."
    """What the names of the official classifier's last linear map begin with."""
    recorded: bool = True
    """The official network of this size has its weights and features in tests/data/<name>.npz."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its own, which select what the family can do besides its default."""

    def __call__(self, **arguments: Any) -> Backbone:
        return self.family(**{"arch": self.arch, **self.options} | arguments)

    def official(self, **arguments: Any) -> Backbone:
        """In the form of the official network, which drops no paths."""
        return self(**dict(self.form, drop_path_rate=0.0) | arguments)


def norms(**widths: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for name, width in widths.items() for part in ("weight", "bias")}


TOYS = {
    "pvt": Toy(PVT, dict(SPEC, pretrain_grid=16), classifier={"cls_token": (1, 1, 32), **norms(norm=32)}),
    "pvt_v2": Toy(PVTv2, SPEC),
    "pvt_v2_linear": Toy(PVTv2, dict(SPEC, linear=True)),
    "mit": Toy(MiT, dict(SPEC, mlp_ratios=(4, 4, 4, 4))),
    "pit": Toy(
        PiT,
        PIT,
        form=dict(stem="published", out_indices=(1, 2, 3)),
        classifier={"head_dist.weight": (10, 32), "head_dist.bias": (10,)},
    ),
    "pit_distilled": Toy(PiT, dict(PIT, num_tokens=2), recorded=False),
    "swin": Toy(
        Swin,
        dict(depths=(2, 2, 2, 2), dims=(8, 16, 32, 64), num_heads=(1, 2, 2, 4)),
        classifier={"layers.0.blocks.1.attn_mask": (9, 49, 49), **norms(norm=64)},
    ),
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
    "vit": Toy(ViT, dict(COLUMN, pretrain_grid=3), options=dict(pyramid="taps", norm_eval=True), recorded=False),
    "vit_windows": Toy(
        ViT,
        dict(COLUMN, pretrain_grid=3),
        options=dict(window_size=2, relative_positions=4, pyramid="simple"),
        recorded=False,
    ),
    "dinov2": Toy(DINOv2, dict(COLUMN, pretrain_grid=4, registers=2, gated=True, layer_scale=0.5), recorded=False),
    "dinov3": Toy(DINOv3, dict(COLUMN, layer_scale=0.5), recorded=False),
    "cait": Toy(CaiT, dict(COLUMN, pretrain_grid=3, layer_scale=0.5), recorded=False),
    "mvit_v2": Toy(
        MViTv2,
        dict(depths=(1, 2, 2, 2), dims=(8, 16, 32, 64), num_heads=(1, 2, 4, 8), window_size=8, pretrain_grid=16),
        classifier=norms(norm=64),
        head="head.projection.",
    ),
    "xcit": Toy(XCiT, dict(COLUMN, dim=32), options=dict(norm_eval=True), recorded=False),
}
RECORDED = {name: toy for name, toy in TOYS.items() if toy.recorded}
"""Those to compare with the official networks."""
