"""Detectors on MViTv2 against the published recipe, which is written down here a second time."""

from __future__ import annotations

import functools

import pytest
from torch import nn

pytest.importorskip("mmdet")

from helpers.paths import CONFIGS
from helpers.recipes import MVIT_V2, build, decay_by_parameter, load, weights_of
from mm_vitbackbones.cli.config import use_local_norms
from mm_vitbackbones.engine.layer_decay import rules_without_effect

pytestmark = pytest.mark.mmdet
each = pytest.mark.parametrize("name", MVIT_V2)


@functools.cache
def network_of(name: str) -> nn.Module:
    cfg = load(name)
    use_local_norms(cfg, distributed=False)
    return build(cfg)


@each
def test_network_is_the_published_one(name: str) -> None:
    arch, drop_path, weights, millions, _ = MVIT_V2[name]
    cfg, model = load(name), network_of(name)
    backbone, cascade = cfg.model.backbone, name.startswith("cascade_")
    assert (backbone.type, backbone.arch, backbone.drop_path_rate) == ("mm_vitbackbones.MViTv2", arch, drop_path)
    assert weights_of(backbone) == weights
    assert tuple(cfg.model.neck.in_channels) == model.backbone.channels
    assert (cfg.model.neck.out_channels, cfg.model.data_preprocessor.pad_size_divisor) == (256, 32)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    roi = model.roi_head
    boxes, masks = ([*roi.bbox_head], [*roi.mask_head]) if cascade else ([roi.bbox_head], [roi.mask_head])
    for head in (*boxes, *masks):  # four convolutions with a norm each, in a cascade
        assert sum(isinstance(part, nn.BatchNorm2d) for part in head.modules()) == (4 if cascade else 0)
    assert {len(head.shared_fcs) for head in boxes} == {1 if cascade else 2}
    assert {head.reg_class_agnostic for head in boxes} == {cascade}
    assert {type(head.loss_bbox).__name__ for head in boxes} == {"L1Loss"}
    stds = [(10, 5), (20, 10), (30, 15)] if cascade else [(10, 5)]
    for head, (xy, wh) in zip(boxes, stds, strict=True):
        assert head.bbox_coder.stds == pytest.approx([1 / xy, 1 / xy, 1 / wh, 1 / wh])
    training = model.train_cfg.rcnn if cascade else [model.train_cfg.rcnn]
    limits = [(part.assigner.pos_iou_thr, part.assigner.neg_iou_thr) for part in training]
    assert limits == ([(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)] if cascade else [(0.5, 0.5)])
    assert cfg.model.rpn_head.get("num_convs", 1) == (2 if cascade else 1)


@each
def test_every_parameter_has_the_published_decay(name: str) -> None:
    cfg, model = load(name), network_of(name)
    assert (cfg.optim_wrapper.optimizer.type, "clip_grad" in cfg.optim_wrapper) == ("AdamW", False)
    assert not rules_without_effect(cfg.optim_wrapper.paramwise_cfg, model)
    assert cfg.optim_wrapper.optimizer.lr == 1.6e-4
    for key, (kind, decay) in decay_by_parameter(cfg, model).items():
        spared = issubclass(kind, (nn.LayerNorm, nn.BatchNorm2d)) or key.endswith((".attn.rows", ".attn.columns"))
        assert decay == (0.0 if spared else 0.1), key


@each
def test_images_and_schedule_are_the_published_ones(name: str) -> None:
    cfg = load(name)
    loader = cfg.train_dataloader
    (any_scale,), (small, crop, again) = next(
        step["transforms"] for step in loader.dataset.pipeline if step["type"] == "RandomChoice"
    )
    assert any_scale == again
    assert [*any_scale["scales"]] == [(1333, side) for side in range(480, 801, 32)]
    assert [scale[1] for scale in small["scales"]] == [400, 500, 600]
    assert (tuple(crop["crop_size"]), crop["crop_type"]) == ((384, 600), "absolute_range")
    test = {step["type"]: step for step in cfg.test_dataloader.dataset.pipeline}
    assert tuple(test["Resize"]["scale"]) == (1333, 800)
    assert 8 * loader.batch_size == cfg.auto_scale_lr.base_batch_size == 64
    assert (cfg.train_cfg.type, loader.sampler.type) == ("IterBasedTrainLoop", "InfiniteSampler")
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.by_epoch, warm_up.end) == ("LinearLR", 0.001, False, 250)
    assert (steps.type, [*steps.milestones], steps.gamma) == ("MultiStepLR", [52500, 62500], 0.1)
    assert (steps.by_epoch, steps.end, cfg.train_cfg.max_iters) == (False, 67500, 67500)
    intervals = (cfg.train_cfg.val_interval, cfg.default_hooks.checkpoint.interval)
    assert [67500 % interval for interval in intervals] == [0, 0]


@each
def test_file_says_what_it_is(name: str) -> None:
    _, command, result, *_ = (CONFIGS / f"{name}.py").read_text().splitlines()
    box, mask = MVIT_V2[name][4]
    assert f"configs/{name}.py" in command
    assert f"(the authors' repository, not measured here): box AP {box}, mask AP {mask}." in result
