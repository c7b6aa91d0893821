"""Mask R-CNN, Cascade Mask R-CNN and the 3x and other RetinaNet configs against the published recipes."""

from __future__ import annotations

import pytest
from torch import nn

pytest.importorskip("mmdet")

from helpers.paths import CONFIGS, recipe_files
from helpers.recipes import COLUMNAR, MVIT_V2, RETINANET_1X, build, decay_by_parameter, load, weights_of
from mm_vitbackbones.cli.config import load_config, use_local_norms
from mm_vitbackbones.engine.layer_decay import rules_without_effect

pytestmark = pytest.mark.mmdet

# config: (drop path, millions of parameters of the detector or None, published box AP and mask AP)
ZOO: dict[str, tuple[float, float | None, tuple[float, ...]]] = {
    "retinanet_pvt_t_3x_coco": (0.1, 22.96, (39.4,)),
    "retinanet_pvt_s_3x_coco": (0.1, 34.22, (42.2,)),
    "retinanet_pvt_m_3x_coco": (0.0, 53.94, (43.2,)),
    "retinanet_pvt_l_3x_coco": (0.0, 71.10, (43.4,)),
    "retinanet_swin_t_coco": (0.2, 38.46, (41.5,)),
    "retinanet_swin_s_coco": (0.2, 59.78, ()),
    "retinanet_swin_b_coco": (0.3, 98.39, ()),
    "retinanet_coat_lite_mini_coco": (0.0, 20.75, ()),
    "retinanet_coat_lite_s_coco": (0.0, 29.57, ()),
    "retinanet_coat_mini_coco": (0.0, 19.61, ()),
    "retinanet_coat_s_coco": (0.2, 31.18, ()),
    "retinanet_pit_s_coco": (0.1, None, ()),
    "retinanet_pit_b_coco": (0.1, None, ()),
    "retinanet_mit_b0_coco": (0.1, 12.86, ()),
    "retinanet_mit_b2_coco": (0.1, 34.45, ()),
    "mask_rcnn_pvt_t_coco": (0.1, 32.88, (36.7, 35.1)),
    "mask_rcnn_pvt_s_coco": (0.1, 44.14, (40.4, 37.8)),
    "mask_rcnn_pvt_m_coco": (0.0, 63.86, (42.0, 39.0)),
    "mask_rcnn_pvt_l_coco": (0.0, 81.02, (42.9, 39.5)),
    "mask_rcnn_pvt_t_3x_coco": (0.1, 32.88, (39.8, 37.4)),
    "mask_rcnn_pvt_s_3x_coco": (0.1, 44.14, (43.0, 39.9)),
    "mask_rcnn_pvt_m_3x_coco": (0.0, 63.86, (44.2, 40.5)),
    "mask_rcnn_pvt_l_3x_coco": (0.0, 81.02, (44.5, 40.7)),
    "mask_rcnn_pvt_v2_b0_coco": (0.1, 23.45, (38.2, 36.2)),
    "mask_rcnn_pvt_v2_b1_coco": (0.1, 33.66, (41.8, 38.8)),
    "mask_rcnn_pvt_v2_b2_li_coco": (0.1, 42.21, (44.1, 40.5)),
    "mask_rcnn_pvt_v2_b2_coco": (0.1, 45.02, (45.3, 41.2)),
    "mask_rcnn_pvt_v2_b3_coco": (0.1, 64.89, (47.0, 42.5)),
    "mask_rcnn_pvt_v2_b4_coco": (0.1, 82.21, (47.5, 42.7)),
    "mask_rcnn_pvt_v2_b5_coco": (0.1, 101.61, (47.4, 42.5)),
    "mask_rcnn_pvt_v2_b0_3x_coco": (0.1, 23.45, (41.6, 38.2)),
    "mask_rcnn_pvt_v2_b2_3x_coco": (0.1, 45.02, (47.8, 43.1)),
    "mask_rcnn_swin_t_coco": (0.1, 47.79, (43.7, 39.8)),
    "mask_rcnn_swin_s_coco": (0.2, 69.11, (44.8, 40.9)),
    "mask_rcnn_swin_b_coco": (0.3, 107.14, (46.9, 42.3)),
    "mask_rcnn_swin_t_3x_coco": (0.2, 47.79, (46.0, 41.6)),
    "mask_rcnn_swin_s_3x_coco": (0.2, 69.11, (48.5, 43.3)),
    "mask_rcnn_coat_lite_mini_coco": (0.0, 30.66, (41.4, 38.0)),
    "mask_rcnn_coat_lite_s_coco": (0.0, 39.49, (45.2, 40.7)),
    "mask_rcnn_coat_mini_coco": (0.0, 30.23, (45.1, 40.6)),
    "mask_rcnn_coat_s_coco": (0.2, 41.56, (46.5, 41.8)),
    "mask_rcnn_coat_lite_mini_3x_coco": (0.0, 30.66, (42.9, 38.9)),
    "mask_rcnn_coat_lite_s_3x_coco": (0.0, 39.49, (45.7, 41.1)),
    "mask_rcnn_coat_mini_3x_coco": (0.0, 30.23, (46.5, 41.8)),
    "mask_rcnn_coat_s_3x_coco": (0.2, 41.56, (49.0, 43.7)),
    "mask_rcnn_xcit_t12_p16_3x_coco": (0.0, 26.18, (42.7, 38.5)),
    "mask_rcnn_xcit_t12_p8_3x_coco": (0.0, 25.87, (44.5, 40.3)),
    "mask_rcnn_xcit_s12_p16_3x_coco": (0.05, 44.39, (45.3, 40.8)),
    "mask_rcnn_xcit_s12_p8_3x_coco": (0.05, 43.17, (47.0, 42.3)),
    "mask_rcnn_xcit_s24_p16_3x_coco": (0.1, 65.8, (46.5, 41.8)),
    "mask_rcnn_xcit_s24_p8_3x_coco": (0.1, 64.58, (48.1, 43.0)),
    "mask_rcnn_xcit_m24_p16_3x_coco": (0.15, 101.15, (46.7, 42.0)),
    "mask_rcnn_xcit_m24_p8_3x_coco": (0.15, 98.98, (48.5, 43.7)),
    "mask_rcnn_pit_s_coco": (0.1, None, ()),
    "mask_rcnn_pit_b_coco": (0.1, None, ()),
    "mask_rcnn_mit_b0_coco": (0.1, 23.36, ()),
    "mask_rcnn_mit_b2_coco": (0.1, 44.36, ()),
    "cascade_mask_rcnn_swin_t_coco": (0.0, 86.0, (48.1, 41.7)),
    "cascade_mask_rcnn_swin_t_3x_coco": (0.2, 86.0, (50.4, 43.7)),
    "cascade_mask_rcnn_swin_s_3x_coco": (0.2, 107.0, (51.9, 45.0)),
    "cascade_mask_rcnn_swin_b_3x_coco": (0.3, 145.0, (51.9, 45.0)),
    "cascade_mask_rcnn_coat_lite_s_coco": (0.0, None, (49.1, 42.5)),
    "cascade_mask_rcnn_coat_s_coco": (0.2, None, (50.4, 43.5)),
    "cascade_mask_rcnn_coat_lite_s_3x_coco": (0.0, None, (48.9, 42.6)),
    "cascade_mask_rcnn_coat_s_3x_coco": (0.2, None, (52.2, 45.1)),
    "cascade_mask_rcnn_pvt_v2_b2_li_3x_coco": (0.1, 80.0, (50.9, 44.0)),
    "cascade_mask_rcnn_pvt_v2_b2_3x_coco": (0.1, 83.0, (51.1, 44.4)),
}
zoo = pytest.mark.parametrize("name", ZOO)


def family(name: str) -> str:
    return load(name).model.backbone.type.removeprefix("mm_vitbackbones.")


def test_every_config_is_tested() -> None:
    small = {f"retinanet_{name}_mini" for name in ("cait", "dino_t", "mvit_v2", "pvt_t", "xcit_n")}
    known = {*ZOO, *RETINANET_1X, *COLUMNAR, *MVIT_V2, *small, "mask_rcnn_swin_t_mini", "retinanet_pvt_v2_b0_trees"}
    starts = ("retinanet_", "mask_rcnn_", "cascade_mask_rcnn_")
    assert {path.stem for path in recipe_files() if path.stem.startswith(starts)} == known


@zoo
def test_builds_and_its_parts_fit(name: str) -> None:
    cfg = load(name)
    use_local_norms(cfg, distributed=False)
    model = build(cfg)
    assert tuple(cfg.model.neck.in_channels) == model.backbone.channels
    assert model.backbone.strides == ((8, 16, 32) if name.startswith("retinanet_") else (4, 8, 16, 32))
    assert not rules_without_effect(cfg.optim_wrapper.get("paramwise_cfg"), model)
    if parameters := ZOO[name][1]:
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        # Those of the cascade are printed as whole millions.
        assert count == pytest.approx(parameters, abs=0.6 if name.startswith("cascade_") else 0.006)


@zoo
def test_recipe_is_the_published_one(name: str) -> None:
    cfg, kind = load(name), family(name)
    backbone, wrapper, long = cfg.model.backbone, cfg.optim_wrapper, "_3x_" in name
    assert backbone.drop_path_rate == ZOO[name][0]
    assert weights_of(backbone).endswith((".pth", ".safetensors"))
    assert backbone.init_cfg.checkpoint == ("imagenet1k_distilled_384" if kind == "XCiT" else "imagenet1k")
    strong_decay = kind in ("Swin", "CoaT", "XCiT") or (kind == "PVTv2" and long)
    one_image = name in ("mask_rcnn_pvt_l_coco", "mask_rcnn_pvt_v2_b4_coco", "mask_rcnn_pvt_v2_b5_coco")
    rate = 1e-4 if name.startswith("retinanet_") or strong_decay else 2e-4
    assert wrapper.optimizer.type == "AdamW"
    assert wrapper.optimizer.lr == pytest.approx(rate / 1.4 if one_image else rate)
    assert wrapper.optimizer.weight_decay == (0.05 if strong_decay else 1e-4)
    assert (wrapper.get("paramwise_cfg", {}).get("norm_decay_mult") == 0.0) == (
        strong_decay and kind not in ("CoaT", "XCiT")
    )
    assert "clip_grad" not in wrapper
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.by_epoch, warm_up.end) == ("LinearLR", 0.001, False, 500)
    assert (steps.type, [*steps.milestones], steps.gamma) == ("MultiStepLR", [27, 33] if long else [8, 11], 0.1)
    assert cfg.train_cfg.max_epochs == (36 if long else 12)
    assert cfg.train_dataloader.batch_size == (1 if one_image else 2)
    assert cfg.auto_scale_lr.base_batch_size == (8 if one_image else 16)


@zoo
def test_images_are_prepared_as_published(name: str) -> None:
    cfg, kind = load(name), family(name)
    steps = {step["type"]: step for step in cfg.train_dataloader.dataset.pipeline}
    masks = not name.startswith("retinanet_")
    assert bool(steps["LoadAnnotations"].get("with_mask")) == masks
    assert cfg.val_evaluator.metric == (["bbox", "segm"] if masks else "bbox")
    assert steps["RandomFlip"]["prob"] == 0.5
    long = "_3x_" in name
    if masks and (kind in ("Swin", "CoaT", "XCiT") or (kind == "PVTv2" and long)):
        (any_scale,), (small, crop, again) = steps["RandomChoice"]["transforms"]
        assert any_scale == again
        assert [scale[1] for scale in any_scale["scales"]] == [*range(480, 801, 32)]
        assert {scale[0] for scale in any_scale["scales"]} == {1333}
        assert [scale[1] for scale in small["scales"]] == [400, 500, 600]
        assert (tuple(crop["crop_size"]), crop["crop_type"]) == ((384, 600), "absolute_range")
    elif long:
        assert steps["RandomResize"]["scale"] == [(1333, 640), (1333, 800)]
    else:
        assert tuple(steps["Resize"]["scale"]) == (1333, 800)
    test = {step["type"]: step for step in cfg.test_dataloader.dataset.pipeline}
    assert tuple(test["Resize"]["scale"]) == (1333, 800)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32


@zoo
def test_file_says_what_it_is(name: str) -> None:
    comment = "\n".join(line for line in (CONFIGS / f"{name}.py").read_text().splitlines()[:5] if line[0] == "#")
    assert f"configs/{name}.py" in comment
    published = ZOO[name][2]
    assert ("not measured here" in comment) == bool(published)
    assert ("untested" in comment) == (not published)
    for what, value in zip(("box", "mask"), published, strict=False):
        assert f"{what} AP {value}" in comment


@pytest.mark.parametrize("name", [name for name in ZOO if "_xcit_" in name])
def test_layer_norms_of_xcit_alone_do_not_decay(name: str) -> None:
    """The authors' rule is for names with "norm", as their batch norms have none."""
    cfg = load(name)
    assert cfg.sync_bn == "torch"
    kinds = (nn.LayerNorm, nn.BatchNorm2d, nn.Linear, nn.Conv2d)
    decays = decay_by_parameter(cfg, build(cfg)).values()
    found = {kind: {decay for type_, decay in decays if issubclass(type_, kind)} for kind in kinds}
    assert found == {nn.LayerNorm: {0.0}, nn.BatchNorm2d: {0.05}, nn.Linear: {0.05}, nn.Conv2d: {0.05}}


def test_one_number_of_classes_sets_every_head() -> None:
    cfg = load_config(CONFIGS / "cascade_mask_rcnn_swin_t_coco.py", {"num_classes": 7})
    roi = cfg.model.roi_head
    assert [head.num_classes for head in roi.bbox_head] == [7, 7, 7]
    assert roi.mask_head.num_classes == 7
    assert "num_classes" not in cfg.model.rpn_head
