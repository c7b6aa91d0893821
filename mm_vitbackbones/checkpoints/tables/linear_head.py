"""The linear head on DINOv2: its weights as the authors publish them."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap
from mm_vitbackbones.checkpoints.layout import Family, Layout, State

OURS = Layout(
    "ours",
    marks=("bn.running_mean", "conv_seg.weight"),
    keys=KeyMap([(name, name) for name in ("bn.", "conv_seg.")]),
)
"""The authors' names are ours."""


def spec_of(ours: State) -> str:
    """The arguments that the head of these weights was made with."""
    classifier = ours.get("conv_seg.weight")
    if classifier is None or classifier.dim() < 2:
        return ""
    return f"channels={classifier.shape[1]}, num_classes={classifier.shape[0]}"


FAMILY = Family("LinearHead", layouts=(OURS,), may_be_fresh=(r".*\.num_batches_tracked",), spec_of=spec_of)
