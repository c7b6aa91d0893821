"""Detectors of MMDetection as modules from an image to tensors, without lists of samples and data-dependent shapes.

What a head's ``predict`` cuts off stays here, with a score of 0: the candidates of an image are always as many as the
config says. The heads' own networks, anchors and box coders are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting import choices, dino
from mm_vitbackbones.exporting.operators import roi_align
from mm_vitbackbones.exporting.parts import Features, evaluating, maps_of_probe
from mm_vitbackbones.exporting.preprocessing import Preprocess, Preprocessing

BOXES = ("boxes", "scores", "labels")
"""The outputs of a file with NMS: (B, N, 4) in pixels of the input, (B, N), and (B, N), int64. The first ones are the
objects, from the highest score down; after them the scores are 0, and the labels -1."""

Made = tuple[nn.Module, tuple[str, ...], dict[str, Any], tuple[str, ...]]
"""A module, the names of its outputs, facts for the metadata, and notes for the user."""


def detector(model: Any, how: Preprocessing, with_nms: bool) -> Made:
    """A detector of MMDetection as a file has it.

    Raises:
        UserError: its head predicts in a way of its own.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors.single_stage import SingleStageDetector
    from mmdet.models.detectors.two_stage import TwoStageDetector

    if dino.is_known(model):
        facts: dict[str, Any] = {"queries": int(model.num_queries)}
        return dino.Dino(model, how, with_nms), BOXES if with_nms else dino.QUERIES, facts, ()
    if isinstance(model, TwoStageDetector):
        return _two_stage(model, how, with_nms)
    if not isinstance(model, SingleStageDetector) or not isinstance(model.bbox_head, BaseDenseHead):
        raise _unknown(model)
    head = model.bbox_head
    if type(model).extract_feat is not SingleStageDetector.extract_feat:
        raise _unknown(model)
    if not with_nms:
        names, levels = _raw_names(model)
        return RawHeads(model, how), names, {"levels": levels}, ()
    own = [
        name
        for name in ("predict", "predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")
        if getattr(type(head), name) is not getattr(BaseDenseHead, name)
    ]
    from mmdet.models.task_modules.prior_generators import AnchorGenerator, MlvlPointGenerator

    if not isinstance(getattr(head, "prior_generator", None), (AnchorGenerator, MlvlPointGenerator)):
        own.append("prior_generator")
    if own or getattr(getattr(head, "loss_cls", None), "custom_cls_channels", False):
        raise UserError(
            f"{type(head).__name__} makes boxes of its maps in a way of its own, which a file cannot: export without "
            "--with-nms, or the backbone alone"
        )
    return OneStage(model, how), BOXES, {"padding": {"scores": 0.0, "labels": -1}}, ()


def _two_stage(model: Any, how: Preprocessing, with_nms: bool) -> Made:
    from mmdet.models.dense_heads.rpn_head import RPNHead
    from mmdet.models.detectors.two_stage import TwoStageDetector
    from mmdet.models.roi_heads.bbox_heads.bbox_head import BBoxHead
    from mmdet.models.roi_heads.cascade_roi_head import CascadeRoIHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.standard_roi_head import StandardRoIHead

    roi = model.roi_head
    known = (
        type(model).extract_feat is TwoStageDetector.extract_feat
        and type(model.rpn_head) is RPNHead
        and type(roi) in (StandardRoIHead, CascadeRoIHead)
        and not roi.with_shared_head
        and all(
            type(head).predict_by_feat is BBoxHead.predict_by_feat
            and type(head).regress_by_class is BBoxHead.regress_by_class
            and not getattr(head, "custom_cls_channels", False)
            for head in stages(roi.bbox_head)
        )
        and (not roi.with_mask or all(type(head) is FCNMaskHead for head in stages(roi.mask_head)))
    )
    if not known:
        raise _unknown(model)
    if not with_nms:
        raise UserError(
            f"{type(model).__name__}: the second stage works on boxes that NMS has chosen, so a file has NMS inside: "
            "add --with-nms (with_nms=True)"
        )
    outputs = (*BOXES, "masks") if roi.with_mask else BOXES
    return TwoStage(model, how), outputs, {"padding": {"scores": 0.0, "labels": -1}}, ()


def stages(part: Any) -> list[Any]:
    """One part of a second stage, or those of each stage of a cascade."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _unknown(model: Any) -> UserError:
    return UserError(
        f"{type(model).__name__} predicts in a way of its own, which a file cannot: export its backbone alone"
    )


def _raw_names(model: Any) -> tuple[tuple[str, ...], int]:
    """The names of a head's maps, all levels of a kind one after the other; and how many levels there are."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    head = model.bbox_head
    with evaluating(model), torch.no_grad():
        kinds = head(maps_of_probe(model))
    lists = isinstance(kinds, (tuple, list)) and all(isinstance(kind, (tuple, list)) for kind in kinds)
    if not lists or not all(isinstance(map, Tensor) for kind in kinds for map in kind):
        raise _unknown(model)
    names: tuple[str, ...] = ("scores", "deltas", "factors")
    if len(kinds) > 2 and type(head).predict_by_feat is not BaseDenseHead.predict_by_feat:
        names = tuple(f"kind{kind}_level" for kind in range(len(kinds)))
    levels = len(kinds[0])
    return tuple(
        f"{name}{level}" for name, kind in zip(names, kinds, strict=False) for level in range(len(kind))
    ), levels


class RawHeads(nn.Module):
    """An image to the maps of a one-stage detector's head, all levels of a kind one after the other: scores before the
    sigmoid, deltas, and what a head with a third kind, such as centerness, multiplies the scores by."""

    def __init__(self, model: Any, how: Preprocessing) -> None:
        super().__init__()
        self.preprocess, self.features, self.head = Preprocess(how), Features(model), model.bbox_head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.head(self.features(self.preprocess(image)))
        return tuple(map for kind in maps for map in kind)


class OneStage(nn.Module):
    """An image to the boxes of a one-stage detector. See ``BOXES``."""

    def __init__(self, model: Any, how: Preprocessing) -> None:
        super().__init__()
        self.preprocess, self.features, self.head = Preprocess(how), Features(model), model.bbox_head
        self.rules = Rules(model.bbox_head.test_cfg)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = tuple(image.shape[2:])
        maps = self.head(self.features(self.preprocess(image)))
        return self.rules.result(*candidates(self.head, maps, size, self.rules))


class Rules:
    """What a config's ``test_cfg`` says of the boxes of a head.

    Raises:
        UserError: something that a file cannot do.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        nms = cfg.get("nms") or {}
        kind = nms.get("type", "nms")
        unknown = sorted(nms.keys() - {"type", "iou_threshold", "class_agnostic", "split_thr"})
        if not nms or kind != "nms" or unknown:
            raise UserError(
                f"test_cfg.nms={dict(nms)!r}: a file takes dict(type='nms', iou_threshold=...), and nothing else"
            )
        self.iou_threshold = float(nms["iou_threshold"])
        self.by_class = not nms.get("class_agnostic", False)
        self.threshold = float(cfg.get("score_thr", 0) or 0)
        self.first = int(cfg.get("nms_pre", -1) or -1)
        self.smallest = float(cfg.get("min_bbox_size", -1))
        self.most = int(cfg["max_per_img"])

    def result(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates (B, N, 4), (B, N), (B, N) -> what remains of them; see ``BOXES``."""
        boxes, scores = boxes.float(), scores.float()
        if self.smallest >= 0:
            scores = choices.large(scores, boxes, self.smallest)
        apart = boxes
        if self.by_class:  # boxes of two classes, moved so that they do not overlap
            farthest = torch.where(scores[..., None] > 0, boxes, 0.0).amax((1, 2), keepdim=True)
            apart = boxes + labels[..., None].to(boxes.dtype) * (farthest + 1)
        scores, at = choices.remaining(apart, scores, self.iou_threshold, self.most)
        some = scores > 0
        at = torch.where(some, at, 0)
        boxes = boxes.gather(1, at[..., None].expand(-1, -1, 4))
        labels = labels.gather(1, at)
        return torch.where(some[..., None], boxes, 0.0), scores, torch.where(some, labels, -1)


def candidates(
    head: Any, maps: Sequence[Sequence[Tensor]], size: tuple[int, ...], rules: Rules, by_level: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of a dense head's maps, before any suppression: (B, N, 4), clipped to the image; their scores (B, N), 0
    where they are below the threshold; and their labels (B, N).

    Of each level the ones with the highest scores are taken, as many as ``nms_pre``: pairs of a box and a class. With
    ``by_level`` (of an RPN, which has one class) the labels are the levels.
    """
    found = []
    for index in range(len(maps[0])):
        scores, deltas, *factors = (kind[index] for kind in maps)
        prior = priors(head.prior_generator, index, scores)
        batch = scores.shape[0]
        scores = scores.permute(0, 2, 3, 1).reshape(batch, -1, head.cls_out_channels).float()
        deltas = deltas.permute(0, 2, 3, 1).reshape(batch, -1, head.bbox_coder.encode_size).float()
        scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1, dtype=torch.float32)[..., :-1]
        classes = scores.shape[2]
        scores = choices.above(scores, scores, rules.threshold).flatten(1)
        if rules.first > 0:
            scores, at = choices.highest(choices.padded(scores, rules.first, 0.0), rules.first)
            at = torch.where(scores > 0, at, 0)
        else:
            at = torch.arange(scores.shape[1], device=scores.device).expand(batch, -1)
        box, label = at // classes, at % classes
        deltas = deltas.gather(1, box[..., None].expand(-1, -1, deltas.shape[2]))
        chosen = prior.index_select(0, box.flatten())
        boxes = decode(head.bbox_coder, chosen, deltas.flatten(0, 1)).reshape(batch, -1, 4)
        if factors:
            factor = factors[0].permute(0, 2, 3, 1).reshape(batch, -1).float().sigmoid()
            scores = scores * factor.gather(1, box)
        label = torch.full_like(label, index) if by_level else label
        found.append((clipped(boxes, size, head.bbox_coder), scores, label))
    boxes, scores, labels = (torch.cat(kind, 1) for kind in zip(*found, strict=True))
    return boxes, scores, labels


def priors(generator: Any, level: int, map: Tensor) -> Tensor:
    """The anchors (cells * anchors of a cell, 4) of a level, or its points (cells, 2), for a map (B, C, H, W).

    They are counted along the map itself, so that a file has no table of them and no arithmetic with sizes.
    """
    ones = torch.ones_like(map[0, 0], dtype=torch.float32)
    x, y = ones.cumsum(1) - 1, ones.cumsum(0) - 1
    wide, high = (float(stride) for stride in generator.strides[level])
    if hasattr(generator, "base_anchors"):
        shifts = torch.stack((x * wide, y * high, x * wide, y * high), -1).reshape(-1, 1, 4)
        return (shifts + generator.base_anchors[level].float()).reshape(-1, 4)
    offset = float(generator.offset)
    return torch.stack(((x + offset) * wide, (y + offset) * high), -1).reshape(-1, 2)


def decode(coder: Any, priors: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (N, 4) of a coder's deltas, not clipped."""
    boxes: Tensor = coder.decode(priors, deltas, max_shape=None)
    return boxes


def clipped(boxes: Tensor, size: tuple[int, ...], coder: Any = None) -> Tensor:
    """Boxes (..., 4) inside an image (height, width), if their coder wants it."""
    if not getattr(coder, "clip_border", True):
        return boxes
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1)


class TwoStage(nn.Module):
    """An image to the boxes of a Faster R-CNN, or to those of a Mask R-CNN and their masks, (B, N, 28, 28): for each
    box, inside it, how likely each cell belongs to the object.

    Cascade R-CNN has several second stages, each of which moves the boxes of the one before. Its scores are means over
    the stages, taken before the softmax; its masks are means, too.

    Source: Cai and Vasconcelos, "Cascade R-CNN: High Quality Object Detection and Instance Segmentation", arXiv
    1906.09756.
    """

    def __init__(self, model: Any, how: Preprocessing) -> None:
        super().__init__()
        self.preprocess, self.features = Preprocess(how), Features(model)
        roi = model.roi_head
        self.rpn, self.boxes = model.rpn_head, nn.ModuleList(stages(roi.bbox_head))
        self.box_regions = nn.ModuleList(map(Regions, stages(roi.bbox_roi_extractor)))
        self.masks = nn.ModuleList(stages(roi.mask_head) if roi.with_mask else [])
        self.mask_regions = nn.ModuleList(map(Regions, stages(roi.mask_roi_extractor)) if roi.with_mask else [])
        self.proposed, self.rules = Rules(model.rpn_head.test_cfg), Rules(roi.test_cfg)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        size = tuple(image.shape[2:])
        maps = self.features(self.preprocess(image))
        boxes, scores, _ = self.proposed.result(*candidates(self.rpn, self.rpn(maps), size, self.proposed, True))
        found = self.rules.result(*self._classified(maps, boxes, scores > 0, size))
        if not self.masks:
            return found
        boxes, _, labels = found
        boxes = choices.regions(boxes)
        together = []
        for head, regions in zip(self.masks, self.mask_regions, strict=True):
            masks = head(regions(maps, boxes, labels >= 0))  # (B * N, classes, 28, 28)
            own = torch.zeros_like(labels) if head.class_agnostic else labels.clamp(min=0)
            own = own.flatten()[:, None, None, None].expand(-1, 1, *masks.shape[2:])
            together.append(masks.gather(1, own).float().sigmoid().reshape(*labels.shape, *masks.shape[2:]))
        return (*found, torch.where((labels >= 0)[..., None, None], mean(together), 0.0))

    def _classified(
        self, maps: Sequence[Tensor], boxes: Tensor, some: Tensor, size: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A candidate for each pair of a proposal and a class."""
        batch, count = some.shape
        together = []
        for index, (head, regions) in enumerate(zip(self.boxes, self.box_regions, strict=True)):
            boxes = choices.regions(boxes)
            scores, deltas = head(regions(maps, boxes, some))
            together.append(scores.float())
            each = deltas.shape[1] // 4  # the number of classes, or one for all of them
            priors = boxes.reshape(-1, 1, 4)
            deltas = deltas.float().reshape(-1, each, 4)
            if index + 1 < len(self.boxes) and each > 1:  # the box of the class with the highest score alone
                best = choices.highest(scores[:, :-1], 1, -torch.inf)[1]
                deltas = deltas.gather(1, best[..., None].expand(-1, -1, 4))
            priors = priors.expand(-1, deltas.shape[1], 4)
            moved = decode(head.bbox_coder, priors.reshape(-1, 4), deltas.reshape(-1, 4)).reshape(deltas.shape)
            boxes = clipped(moved, size, head.bbox_coder)
            if index + 1 < len(self.boxes):
                boxes = boxes.reshape(batch, count, 4)
        scores = mean(together).softmax(-1, dtype=torch.float32)[:, :-1]
        classes = scores.shape[1]
        scores = torch.where(some.flatten()[:, None], scores, 0.0).reshape(batch, -1)
        scores = choices.above(scores, scores, self.rules.threshold)
        labels = torch.arange(classes, device=scores.device).expand(batch, count, classes)
        boxes = boxes.expand(-1, classes, 4).reshape(batch, -1, 4)
        return boxes, scores, labels.reshape(batch, -1)


def mean(same: Sequence[Tensor]) -> Tensor:
    """Of tensors of one shape."""
    total = same[0]
    for each in same[1:]:
        total = total + each
    return total / len(same) if len(same) > 1 else total


class Regions(nn.Module):
    """What RoIAlign takes of the maps for each box, each from the level that its size says.

    Raises:
        UserError: the extractor is another one.

    Source: Lin et al., "Feature Pyramid Networks", arXiv 1612.03144, section 4.2.
    """

    def __init__(self, extractor: Any) -> None:
        from mmcv.ops import RoIAlign
        from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

        super().__init__()
        layers = extractor.roi_layers if type(extractor) is SingleRoIExtractor else [extractor]
        if not all(type(layer) is RoIAlign and layer.aligned and layer.pool_mode == "avg" for layer in layers):
            raise UserError(
                f"{type(extractor).__name__}: a file takes a SingleRoIExtractor with an aligned RoIAlign of means"
            )
        self.scales = [float(layer.spatial_scale) for layer in layers]
        self.size, self.sampling_ratio = int(layers[0].output_size[0]), int(layers[0].sampling_ratio)
        self.finest = float(extractor.finest_scale)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, some: Tensor) -> Tensor:
        """Boxes (B, N, 4), of which ``some`` (B, N) count -> (B * N, C, size, size)."""
        batch, count = some.shape
        sides = choices.sides_of(boxes)
        level = torch.log2((sides[..., 0] * sides[..., 1]).clamp(min=0).sqrt() / self.finest + 1e-6).floor()
        level = torch.where(some, level.clamp(0, len(self.scales) - 1).long(), -1)
        images = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count)
        levels = [map.float() for map in maps[: len(self.scales)]]
        return roi_align(
            levels,
            boxes.reshape(-1, 4),
            images.reshape(-1),
            level.reshape(-1),
            self.scales,
            self.size,
            self.sampling_ratio,
        )
