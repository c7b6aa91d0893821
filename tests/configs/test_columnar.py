"""Detectors on ViT and its successors: ViTDet against its published recipe, and frozen DINOv2 and DINOv3, CaiT."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

pytest.importorskip("mmdet")

from helpers import peft
from helpers.paths import CONFIGS
from helpers.recipes import COLUMNAR, build, decay_by_parameter, load, weights_of
from mm_vitbackbones.cli.config import use_local_norms
from mm_vitbackbones.engine.layer_decay import rules_without_effect
from mm_vitbackbones.heads.vitdet import LayerNorm2d

pytestmark = pytest.mark.mmdet

VITDET = [name for name in COLUMNAR if "_vitdet_" in name]
FROZEN = [name for name in COLUMNAR if "_frozen_" in name]
CAIT = [name for name in COLUMNAR if "_cait_" in name]
ADAPTED = [name for name in COLUMNAR if "_lora_" in name]
columnar = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=peft.needs_peft if name in ADAPTED else ()) for name in COLUMNAR]
)
vitdet = pytest.mark.parametrize("name", VITDET)
frozen = pytest.mark.parametrize("name", FROZEN)


@functools.cache
def network_of(name: str) -> nn.Module:
    cfg = load(name)
    use_local_norms(cfg, distributed=False)
    with peft.importable() if name in ADAPTED else nullcontext():
        return build(cfg)


@columnar
def test_builds_and_its_parts_fit(name: str) -> None:
    kind, arch, drop_path, weights, millions, _ = COLUMNAR[name]
    cfg, model = load(name), network_of(name)
    backbone = cfg.model.backbone
    assert (backbone.type, backbone.arch, backbone.drop_path_rate) == (f"mm_vitbackbones.{kind}", arch, drop_path)
    assert weights_of(backbone) == weights
    assert backbone.pyramid == "simple"
    assert set(model.backbone.channels) == {256} == {*cfg.model.neck.get("in_channels", [256])}
    assert model.backbone.strides == ((8, 16, 32) if name.startswith("retinanet_") else (4, 8, 16, 32))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    rules = {key: rule for key, rule in cfg.optim_wrapper.paramwise_cfg.items() if key != "layer_decay_rate"}
    assert not rules_without_effect(rules, model)


@columnar
def test_file_says_what_it_is(name: str) -> None:
    lines = [line for line in (CONFIGS / f"{name}.py").read_text().splitlines()[:5] if line[0] == "#"]
    results = COLUMNAR[name][5]
    assert ("not measured here" in lines[2]) == bool(results)
    assert ("untested" in lines[2]) == (not results)
    assert all(f"{what} AP {value}" in lines[2] for what, value in zip(("box", "mask"), results, strict=False))
    assert ("under the DINOv3 License: accept it" in " ".join(lines)) == ("dinov3" in name)


# ---- ViTDet


@vitdet
def test_vitdet_is_the_published_network(name: str) -> None:
    model, depth = network_of(name), 24 if "_l_" in name else 12
    backbone = model.backbone
    assert len(backbone.blocks) == depth
    assert backbone.global_blocks == ((5, 11, 17, 23) if depth == 24 else (2, 5, 8, 11))
    assert (backbone.window_size, backbone.relative_positions, backbone.taps) == (14, 64, (depth - 1,))
    assert len(model.rpn_head.rpn_conv) == 2
    cascade = name.startswith("cascade_")
    boxes = [*model.roi_head.bbox_head] if cascade else [model.roi_head.bbox_head]
    masks = [*model.roi_head.mask_head] if cascade else [model.roi_head.mask_head]
    assert len(boxes) == (3 if cascade else 1)
    for head in (*boxes, *masks):
        norms = [part for part in head.modules() if isinstance(part, LayerNorm2d)]
        assert [norm.eps for norm in norms] == [1e-6] * 4
    assert {len(head.shared_fcs) for head in boxes} == {1}
    assert {head.reg_class_agnostic for head in boxes} == {cascade}
    assert {type(head.loss_bbox).__name__ for head in boxes} == {"L1Loss"}
    stds = [head.bbox_coder.stds for head in boxes]
    published = [(10, 5), (20, 10), (30, 15)] if cascade else [(10, 5)]
    for std, (xy, wh) in zip(stds, published, strict=True):  # the official code writes one over them
        assert std == pytest.approx([1 / xy, 1 / xy, 1 / wh, 1 / wh])
    training = model.train_cfg.rcnn if cascade else [model.train_cfg.rcnn]
    thresholds = [(part.assigner.pos_iou_thr, part.assigner.neg_iou_thr) for part in training]
    assert thresholds == ([(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)] if cascade else [(0.5, 0.5)])
    assert {(part.sampler.num, part.sampler.pos_fraction) for part in training} == {(512, 0.25)}
    proposals = model.train_cfg.rpn_proposal
    assert (proposals.nms_pre, proposals.max_per_img, model.test_cfg.rpn.nms_pre) == (2000, 1000, 1000)


@vitdet
def test_every_parameter_of_vitdet_has_the_published_rate_and_decay(name: str) -> None:
    """Of detectron2: the rate falls by depth; norms of blocks and positions do not decay, all other parameters do."""
    cfg, model = load(name), network_of(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, tuple(optimizer.betas)) == ("AdamW", 1e-4, (0.9, 0.999))
    assert optimizer.weight_decay == 0.1
    assert "clip_grad" not in cfg.optim_wrapper
    rate, depth = (0.8, 24) if "_l_" in name else (0.7, 12)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        first, _, rest = key.removeprefix("backbone.").partition(".")
        layer = int(rest.split(".")[0]) + 1 if first == "blocks" else 0 if first == "stem" else depth + 1
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(1e-4 * rate ** (depth + 1 - layer)), key
        spared = "stem.position" in key or (first == "blocks" and ".norm" in key)
        assert group["weight_decay"] == (0.0 if spared else 0.1), key


@vitdet
def test_images_and_schedule_of_vitdet_are_the_published_ones(name: str) -> None:
    cfg = load(name)
    pipelines = (cfg[f"{split}_dataloader"].dataset.pipeline for split in ("train", "test"))
    training, testing = ({step["type"]: step for step in steps} for steps in pipelines)
    jitter, crop = training["RandomResize"], training["RandomCrop"]
    assert (tuple(jitter["scale"]), tuple(jitter["ratio_range"])) == ((1024, 1024), (0.1, 2.0))
    assert (tuple(crop["crop_size"]), crop["crop_type"], crop["recompute_bbox"]) == ((1024, 1024), "absolute", True)
    assert training["RandomFlip"]["prob"] == 0.5
    assert (tuple(testing["Resize"]["scale"]), testing["Resize"]["keep_ratio"]) == ((1024, 1024), True)
    assert cfg.model.data_preprocessor.pad_size_divisor == 1024
    assert cfg.train_dataloader.dataset.filter_cfg["filter_empty_gt"] is True
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 64
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.by_epoch, warm_up.end) == ("LinearLR", 0.001, False, 250)
    assert (steps.type, [*steps.milestones], steps.gamma) == ("MultiStepLR", [163889, 177546], 0.1)
    assert cfg.train_cfg.max_iters == 184375
    intervals = (cfg.train_cfg.val_interval, cfg.default_hooks.checkpoint.interval)
    assert [184375 % interval for interval in intervals] == [0, 0]


# ---- frozen


@frozen
def test_only_the_pyramid_of_a_frozen_backbone_trains(name: str) -> None:
    model = network_of(name).train()
    trained = {
        key.split(".")[1] for key, p in model.named_parameters() if key.startswith("backbone.") and p.requires_grad
    }
    assert trained == {"pyramid"}
    assert not any(part.training for part in (model.backbone.stem, *model.backbone.blocks))
    cfg = load(name)
    assert (cfg.train_cfg.max_epochs, 8 * cfg.train_dataloader.batch_size) == (12, 16)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (1e-4, 0.05)


# ---- CaiT


@pytest.mark.parametrize("name", CAIT)
def test_norms_and_positions_of_cait_do_not_decay(name: str) -> None:
    cfg, model = load(name), network_of(name)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs) == (1e-4, 12)
    for key, (kind, decay) in decay_by_parameter(cfg, model).items():
        spared = issubclass(kind, nn.LayerNorm) or "position" in key
        assert decay == (0.0 if spared else 0.05), key


# ---- adapters


@peft.needs_peft
@pytest.mark.parametrize("name", ADAPTED)
def test_only_adapters_and_the_pyramid_of_an_adapted_backbone_train(name: str) -> None:
    model, cfg = network_of(name), load(name)
    trained = [key for key, p in model.named_parameters() if key.startswith("backbone.") and p.requires_grad]
    assert {".lora_" in key or key.startswith("backbone.pyramid.") for key in trained} == {True}
    assert sum(".lora_A." in key for key in trained) == 4 * 12  # queries, keys, values and the projection
    frozen = load(name.replace("_lora_", "_frozen_"))
    for each in (cfg, frozen):
        for key in ("adapters", "frozen_stages"):
            each.model.backbone.pop(key, None)
        for key in ("adapters", "backbone"):
            each.pop(key, None)
    assert cfg.to_dict() == frozen.to_dict()
