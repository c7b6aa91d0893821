"""SegFormer's decode head: its weights as published by the authors, OpenMMLab and Hugging Face, mostly in the files of
whole networks."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap
from mm_vitbackbones.checkpoints.layout import Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.surgery import pointwise

FUSE = "fuse.weight"


def _reverse_levels(state: State) -> State:
    """(E, L * E) with the levels' columns in the opposite order; its own inverse."""

    def reverse(key: str) -> bool:
        tensor = state[key]
        return key == FUSE and tensor.dim() == 2 and tensor.shape[0] > 0 and tensor.shape[1] % tensor.shape[0] == 0

    return {key: t.unflatten(1, (-1, t.shape[0])).flip(1).flatten(1) if reverse(key) else t for key, t in state.items()}


SQUEEZE = pointwise(r"fuse\.weight|linears\.\d+\.weight")
SQUEEZE_FUSE = pointwise(r"fuse\.weight")
COARSEST_FIRST = Surgery(_reverse_levels, _reverse_levels)
"""The authors and Hugging Face join the levels from the coarsest to the finest."""

# The authors' files hold MMSegmentation's classifier too, which their network does not use.
OFFICIAL = Layout(
    "official",
    marks=("linear_c1.proj.weight", "linear_fuse.conv.weight"),
    keys=KeyMap(
        [
            ("linear_c{level+1}.proj.", "linears.{level}."),
            ("linear_fuse.conv.weight", FUSE),
            ("linear_fuse.bn.", "norm."),
            ("linear_pred.", "conv_seg."),
            ("conv_seg.", "classifier.conv_seg."),
        ]
    ),
    surgery=(SQUEEZE_FUSE, COARSEST_FIRST),
)


def _huggingface(name: str, linears: str) -> Layout:
    return Layout(
        name,
        marks=(f"{linears}.0.proj.weight", "linear_fuse.weight"),
        keys=KeyMap(
            [
                (f"{linears}.{{level}}.proj.", "linears.{level}."),
                ("linear_fuse.weight", FUSE),
                ("batch_norm.", "norm."),
                ("classifier.", "conv_seg."),
            ]
        ),
        surgery=(SQUEEZE_FUSE, COARSEST_FIRST),
    )


HUGGINGFACE = _huggingface("huggingface", "linear_c")
HUGGINGFACE_5 = _huggingface("huggingface-5", "linear_projections")
"""What a model of transformers 5 holds; it saves and publishes files in the layout above."""

OPENMMLAB = Layout(
    "openmmlab",
    marks=("convs.0.conv.weight", "fusion_conv.conv.weight"),
    keys=KeyMap(
        [
            ("convs.{level}.conv.", "linears.{level}."),
            ("convs.{level}.bn.", "level_norms.{level}."),
            ("fusion_conv.conv.weight", FUSE),
            ("fusion_conv.bn.", "norm."),
            ("conv_seg.", "conv_seg."),
        ]
    ),
    surgery=(SQUEEZE,),
)

OURS = Layout(
    "ours",
    marks=("linears.0.weight", FUSE),
    keys=KeyMap([(name, name) for name in ("linears.", "level_norms.", FUSE, "norm.", "conv_seg.")]),
)


def spec_of(ours: State) -> str:
    """The arguments that the head of these weights was made with."""
    fuse, classes = ours.get(FUSE), ours.get("conv_seg.weight")
    parts = {
        "channels": None if fuse is None or not fuse.dim() else fuse.shape[0],
        "num_classes": None if classes is None or not classes.dim() else classes.shape[0],
        "level_norm": any(key.startswith("level_norms.") for key in ours),
    }
    return ", ".join(f"{name}={value}" for name, value in parts.items() if value is not None)


FAMILY = Family(
    "SegFormerHead",
    layouts=(OFFICIAL, HUGGINGFACE, HUGGINGFACE_5, OPENMMLAB, OURS),
    may_be_fresh=(r".*\.num_batches_tracked",),
    spec_of=spec_of,
)
