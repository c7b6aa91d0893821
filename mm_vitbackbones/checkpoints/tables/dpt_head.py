"""DPT's decode head for segmentation: its weights as published by the authors, OpenMMLab and Hugging Face, mostly in
the files of whole networks."""

from __future__ import annotations

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout, State

Pairs = list[tuple[str, str]]
LEVELS = range(4)
COARSEST = LEVELS[-1]


def _norm(norm: str, ours: str) -> Pairs:
    return [(f"{norm}.", f"{ours}.")]


def _unit(conv: str, norm: str) -> Pairs:
    """The layers of a residual unit; {n} is the number of a layer."""
    pairs: Pairs = []
    for n in "12":
        pairs += [(conv.replace("{n}", n), f"conv{n}.weight"), *_norm(norm.replace("{n}", n), f"norm{n}")]
    return pairs


def _fusions(theirs: str, unit: str, project: str, layers: Pairs, reversed: bool, unused: bool) -> Pairs:
    """Of the four fusions, which some publishers count from 1 with the finest, and others from 0 with the coarsest.
    The first unit of the coarsest one, which nothing uses, is in the files of some, and stays there."""
    pairs: Pairs = []
    for i in LEVELS:
        name = f"{theirs}{COARSEST - i if reversed else i + 1}"
        pairs.append((f"{name}.{project}.", f"fusions.{i}.project."))
        for n in "12":
            idle = i == COARSEST and n == "1"
            if unused or not idle:
                ours = f"{'classifier.' if idle else ''}fusions.{i}.unit{n}."
                pairs += under(f"{name}.{unit}{n}.", ours, layers)
    return pairs


def _classifier(theirs: str, ours: str = "") -> Pairs:
    """A convolution, a norm and the classes' linear map, after a ReLU and dropout."""
    return [
        (f"{theirs}.0.weight", f"{ours}project.weight"),
        (f"{theirs}.1.", f"{ours}norm."),
        (f"{theirs}.4.", f"{ours}conv_seg."),
    ]


AUXILIARY = "classifier.auxiliary."
"""A second classifier, which the authors' training has."""

OFFICIAL = Layout(
    "official",
    marks=("scratch.layer1_rn.weight", "scratch.refinenet1.resConfUnit1.bn1.weight", "scratch.output_conv.1.weight"),
    keys=KeyMap(
        [
            ("pretrained.act_postprocess{level+1}.0.project.0.", "reassemble.{level}.readout."),
            ("pretrained.act_postprocess{level+1}.3.", "reassemble.{level}.project."),
            ("pretrained.act_postprocess{level+1}.4.", "reassemble.{level}.resize."),
            ("scratch.layer{level+1}_rn.weight", "laterals.{level}.weight"),
            *_fusions(
                "scratch.refinenet",
                "resConfUnit",
                "out_conv",
                _unit("conv{n}.weight", "bn{n}"),
                reversed=False,
                unused=True,
            ),
            *_classifier("scratch.output_conv"),
            *_classifier("auxlayer", AUXILIARY),
        ]
    ),
    besides=("pretrained.model.", "backbone."),
    without=("scratch.output_conv.2.weight", "pretrained.model.patch_embed.backbone.stem.conv.weight"),
)

_HF_UNIT = "neck.fusion_stage.layers.0.residual_layer2"
HUGGINGFACE = Layout(
    "huggingface",
    marks=(
        "neck.convs.0.weight",
        "neck.fusion_stage.layers.0.residual_layer2.batch_norm1.weight",
        "head.head.1.weight",
    ),
    keys=KeyMap(
        [
            ("neck.reassemble_stage.readout_projects.{level}.0.", "reassemble.{level}.readout."),
            ("neck.reassemble_stage.layers.{level}.projection.", "reassemble.{level}.project."),
            ("neck.reassemble_stage.layers.{level}.resize.", "reassemble.{level}.resize."),
            ("neck.convs.{level}.weight", "laterals.{level}.weight"),
            *_fusions(
                "neck.fusion_stage.layers.",
                "residual_layer",
                "projection",
                _unit("convolution{n}.weight", "batch_norm{n}"),
                reversed=True,
                unused=True,
            ),
            *_classifier("head.head"),
            *_classifier("auxiliary_head.head", AUXILIARY),
        ]
    ),
    besides=("dpt.", "backbone."),
)

OPENMMLAB = Layout(
    "openmmlab",
    marks=("reassemble_blocks.projects.0.conv.weight", "fusion_blocks.0.project.conv.weight", "conv_seg.weight"),
    keys=KeyMap(
        [
            ("reassemble_blocks.readout_projects.{level}.0.", "reassemble.{level}.readout."),
            ("reassemble_blocks.projects.{level}.conv.", "reassemble.{level}.project."),
            ("reassemble_blocks.resize_layers.{level}.", "reassemble.{level}.resize."),
            ("convs.{level}.conv.weight", "laterals.{level}.weight"),
            *_fusions(
                "fusion_blocks.",
                "res_conv_unit",
                "project.conv",
                _unit("conv{n}.conv.weight", "conv{n}.bn"),
                reversed=True,
                unused=False,
            ),
            ("project.conv.weight", "project.weight"),
            ("project.bn.", "norm."),
            ("conv_seg.", "conv_seg."),
        ]
    ),
)

OURS = Layout(
    "ours",
    marks=("reassemble.0.project.weight", "fusions.0.project.weight"),
    keys=KeyMap(
        [(name, name) for name in ("reassemble.", "laterals.", "fusions.", "project.", "norm.", "conv_seg.")]
        + [("classifier.", "classifier.")]
    ),
)

_HYBRID = "DPT-Hybrid, whose trunk is a ResNet and a ViT"
_DEPTH = "the depth form of DPT, which has no classes"
OTHERS = (
    (_HYBRID, r"patch_embed\.backbone\.stem\.conv\.weight"),
    (_HYBRID, r"embeddings\.backbone\.bit\..*"),
    (_DEPTH, r"scratch\.output_conv\.2\.weight"),
    (_DEPTH, r"(conv_depth|depth_head)\..*"),
    (_DEPTH, rf"{_HF_UNIT}\.convolution1\.bias"),
)


def spec_of(ours: State) -> str:
    """The arguments that the head of these weights was made with."""
    projections = [ours.get(f"reassemble.{level}.project.weight") for level in LEVELS]
    lateral, classes = ours.get("laterals.0.weight"), ours.get("conv_seg.weight")
    known = all(tensor is not None and tensor.dim() == 4 for tensor in projections)
    parts = {
        "in_channels": tuple(tensor.shape[1] for tensor in projections if tensor is not None) if known else None,
        "channels": lateral.shape[0] if lateral is not None and lateral.dim() else None,
        "num_classes": classes.shape[0] if classes is not None and classes.dim() else None,
        "widths": tuple(tensor.shape[0] for tensor in projections if tensor is not None) if known else None,
        "readout": "'project'" if "reassemble.0.readout.weight" in ours else "'ignore' or 'add'",
    }
    return ", ".join(f"{name}={value}" for name, value in parts.items() if value is not None)


FAMILY = Family(
    "DPTHead",
    layouts=(OFFICIAL, HUGGINGFACE, OPENMMLAB, OURS),
    may_be_fresh=(r"(?!classifier\.).*\.num_batches_tracked",),
    spec_of=spec_of,
    others=OTHERS,
)
