"""What a file computes: of a backbone its maps, of a segmentor scores or labels, of a detector boxes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting import detectors, dino, mask2former, preprocessing
from mm_vitbackbones.exporting.parts import Features
from mm_vitbackbones.exporting.preprocessing import Preprocess, Preprocessing
from mm_vitbackbones.exporting.programs import SMALLEST


@dataclass(frozen=True)
class Network:
    """A module from an image (B, C, H, W) to tensors, and what there is to know about them."""

    module: nn.Module
    outputs: tuple[str, ...]
    kind: str
    """``backbone``, ``segmentor`` or ``detector``."""
    preprocessing: Preprocessing
    channels: int = 3
    facts: dict[str, Any] = field(default_factory=dict)
    """More for the metadata, as plain data."""
    notes: tuple[str, ...] = ()
    """What a user should know of it, a line each."""
    smallest: int = SMALLEST
    """Pixels of an image's side, at least."""


def network_of(
    module: nn.Module,
    with_nms: bool = False,
    labels: bool = False,
    preprocess: bool = False,
) -> Network:
    """A module as a file has it.

    Raises:
        UserError: it is none that is known, or an option does not fit it.
    """
    if isinstance(module, Backbone):
        _refuse(with_nms, "with_nms", "boxes", "backbone")
        _refuse(labels, "labels", "classes", "backbone")
        how = Preprocessing(inside=preprocess)
        if preprocess and module.in_channels != len(how.mean):
            raise UserError(
                f"the backbone takes {module.in_channels} channels, whose mean and deviation nobody gave: leave "
                "preprocessing out of the file"
            )
        return Network(
            BackboneFile(module, how),
            tuple(f"level{i}" for i in module.out_indices),
            "backbone",
            how,
            module.in_channels,
            {"strides": [*module.strides], "channels": [*module.channels]},
        )
    how = preprocessing.of_config(getattr(module, "data_preprocessor", None), preprocess)
    channels = getattr(getattr(module, "backbone", None), "in_channels", len(how.mean) if len(how.mean) > 1 else 3)
    if hasattr(module, "decode_head"):
        _refuse(with_nms, "with_nms", "boxes", "segmentor")
        return _segmentor(module, how, channels, labels)
    if hasattr(module, "bbox_head") or hasattr(module, "rpn_head"):
        _refuse(labels, "labels", "maps of labels", "detector")
        made, outputs, facts, notes = detectors.detector(module, how, with_nms)
        smallest = dino.smallest_side(module, how) if isinstance(made, dino.Dino) else SMALLEST
        return Network(made, outputs, "detector", how, channels, facts, notes, max(SMALLEST, smallest))
    if mask2former.is_known(getattr(module, "panoptic_head", None)):
        _refuse(labels, "labels", "maps of labels", "detector")
        if with_nms:
            raise UserError(
                f"with_nms: {type(module).__name__} has no NMS; its file gives the scores and masks of all queries: "
                "leave it out"
            )
        head: Any = module.panoptic_head
        made = mask2former.QueriesFile(module, how)
        return Network(made, mask2former.QUERIES, "detector", how, channels, {"queries": int(head.num_queries)})
    raise UserError(
        f"{type(module).__name__} is no backbone of this package, and no detector or segmentor of MMDetection or "
        "MMSegmentation that has a bbox_head, rpn_head or decode_head: export its backbone alone"
    )


def _refuse(given: bool, option: str, what: str, kind: str) -> None:
    if given:
        raise UserError(f"{option}: a {kind} gives no {what}: leave it out")


class BackboneFile(nn.Module):
    """An image (B, C, H, W) to the maps of a backbone; class tokens are left out."""

    def __init__(self, backbone: Backbone, how: Preprocessing) -> None:
        super().__init__()
        self.preprocess, self.backbone = Preprocess(how), backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = self.backbone(self.preprocess(image))
        return tuple(level if isinstance(level, Tensor) else level[0] for level in levels)


def _segmentor(model: Any, how: Preprocessing, channels: int, labels: bool) -> Network:
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder

    from mm_vitbackbones.segmentors.banded import BandedEncoderDecoder

    head = model.decode_head
    known = type(model) in (EncoderDecoder, BandedEncoderDecoder)
    by_queries = mask2former.is_known(head) and model.out_channels > 1
    if not known or not (by_queries or type(head).predict is BaseDecodeHead.predict):
        raise UserError(
            f"{type(model).__name__} with a {type(head).__name__} has a prediction of its own, which cannot be "
            "exported: export its backbone alone"
        )
    binary = model.out_channels == 1
    facts: dict[str, Any] = {"threshold": head.threshold} if binary else {}
    notes = []
    if model.test_cfg.get("mode", "whole") == "slide":
        crop = "x".join(map(str, model.test_cfg["crop_size"]))
        notes.append(
            f"the file looks at an image as a whole; the config's test_cfg does so in windows of {crop}, and in larger "
            "images finds something else"
        )
    return Network(
        SegmentorFile(model, how, labels),
        ("labels",) if labels else ("logits",),
        "segmentor",
        how,
        channels,
        facts,
        tuple(notes),
    )


class SegmentorFile(nn.Module):
    """An image (B, C, H, W) to scores (B, K, H, W), or to labels (B, H, W), int64."""

    def __init__(self, model: Any, how: Preprocessing, labels: bool) -> None:
        super().__init__()
        self.preprocess, self.labels, self.align_corners = Preprocess(how), labels, bool(model.align_corners)
        # Only what predicts: auxiliary heads are for training.
        self.features, self.head = Features(model), model.decode_head
        self.by_queries = mask2former.is_known(model.decode_head)
        if self.by_queries:
            self.head = mask2former.Semantic(model.decode_head)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        image = self.preprocess(image)
        maps, size = self.features(image), tuple(image.shape[2:])
        if self.by_queries:
            scores = self.head(maps, size)
        else:
            scores = F.interpolate(self.head(maps), size=size, mode="bilinear", align_corners=self.align_corners)
        scores = scores[:, :, :height, :width]
        if not self.labels:
            return scores
        if scores.shape[1] == 1:
            return (scores[:, 0].sigmoid() > self.head.threshold).long()
        return scores.argmax(1)


def outputs_of(network: Network, image: Tensor) -> tuple[Tensor, ...]:
    """What a network computes in eager mode."""
    with torch.no_grad():
        found = network.module(image)
    return (found,) if isinstance(found, Tensor) else tuple(found)
