"""The segmentation configs against the published recipes, which are written down here a second time."""

from __future__ import annotations

import re

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from helpers.paths import CONFIGS, TEST_CONFIGS, recipe_files
from helpers.recipes import COLUMNS, build, load, weights_of

pytest.importorskip("mmseg")

from mm_vitbackbones.cli.config import load_config, use_local_norms
from mm_vitbackbones.engine.layer_decay import rules_without_effect

# config: (backbone, arch, drop path, weights, parameters of the segmentor in M, published mIoU, with --tta)
RECIPES = {
    "segformer_mit_b0_ade20k": ("MiT", "b0", 0.1, "mit_b0_20220624-7e0fe6dd.pth", 3.75, 37.4, 38.0),
    "segformer_mit_b1_ade20k": ("MiT", "b1", 0.1, "mit_b1_20220624-02e5a6a1.pth", 13.72, 42.2, 43.1),
    "segformer_mit_b2_ade20k": ("MiT", "b2", 0.1, "mit_b2_20220624-66e8bf70.pth", 27.46, 46.5, 47.5),
    "segformer_mit_b3_ade20k": ("MiT", "b3", 0.1, "mit_b3_20220624-13b1141c.pth", 47.34, 49.4, 50.0),
    "segformer_mit_b4_ade20k": ("MiT", "b4", 0.1, "mit_b4_20220624-d588d980.pth", 64.11, 50.3, 51.1),
    "segformer_mit_b5_ade20k": ("MiT", "b5", 0.1, "mit_b5_20220624-658746d9.pth", 84.71, None, None),
    "segformer_mit_b5_640_ade20k": ("MiT", "b5", 0.1, "mit_b5_20220624-658746d9.pth", 84.71, 51.0, 51.8),
    "segformer_coat_lite_s_ade20k": ("CoaT", "lite_small", 0.1, "coat_lite_small_8d362f48.pth", 22.59, None, None),
    "segformer_pit_s_ade20k": ("PiT", "s", 0.1, "model.safetensors", 26.33, None, None),
    "fpn_pvt_t_ade20k": ("PVT", "tiny", 0.1, "pvt_tiny.pth", 16.98, 36.6, None),
    "fpn_pvt_s_ade20k": ("PVT", "small", 0.1, "pvt_small.pth", 28.24, 41.9, None),
    "fpn_pvt_m_ade20k": ("PVT", "medium", 0.1, "pvt_medium.pth", 47.96, 43.5, None),
    "fpn_pvt_l_ade20k": ("PVT", "large", 0.1, "pvt_large.pth", 65.12, 43.5, None),
    "fpn_pvt_v2_b0_ade20k": ("PVTv2", "b0", 0.1, "pvt_v2_b0.pth", 7.55, 37.2, None),
    "fpn_pvt_v2_b1_ade20k": ("PVTv2", "b1", 0.1, "pvt_v2_b1.pth", 17.76, 42.5, None),
    "fpn_pvt_v2_b2_li_ade20k": ("PVTv2", "b2_li", 0.1, "pvt_v2_b2_li.pth", 26.31, 45.1, None),
    "fpn_pvt_v2_b2_ade20k": ("PVTv2", "b2", 0.1, "pvt_v2_b2.pth", 29.12, 45.2, None),
    "fpn_pvt_v2_b3_ade20k": ("PVTv2", "b3", 0.1, "pvt_v2_b3.pth", 48.99, 47.3, None),
    "fpn_pvt_v2_b4_ade20k": ("PVTv2", "b4", 0.1, "pvt_v2_b4.pth", 66.31, 47.9, None),
    "fpn_pvt_v2_b5_ade20k": ("PVTv2", "b5", 0.1, "pvt_v2_b5.pth", 85.71, 48.7, None),
    "upernet_swin_t_ade20k": ("Swin", "tiny", 0.3, "swin_tiny_patch4_window7_224.pth", 59.94, 44.51, 45.81),
    "upernet_swin_s_ade20k": ("Swin", "small", 0.3, "swin_small_patch4_window7_224.pth", 81.26, 47.64, 49.47),
    "upernet_swin_b_ade20k": ("Swin", "base", 0.3, "swin_base_patch4_window7_224.pth", 121.28, 48.13, 49.72),
    "upernet_coat_s_ade20k": ("CoaT", "small", 0.2, "coat_small_7479cf9b.pth", 50.72, None, None),
    "fpn_xcit_t12_p16_ade20k": ("XCiT", "tiny_12_p16", 0.0, "xcit_tiny_12_p16_384_dist.pth", 8.90, 38.1, None),
    "fpn_xcit_t12_p8_ade20k": ("XCiT", "tiny_12_p8", 0.0, "xcit_tiny_12_p8_384_dist.pth", 8.59, 39.9, None),
    "fpn_xcit_s12_p16_ade20k": ("XCiT", "small_12_p16", 0.05, "xcit_small_12_p16_384_dist.pth", 32.22, 43.9, None),
    "fpn_xcit_s12_p8_ade20k": ("XCiT", "small_12_p8", 0.05, "xcit_small_12_p8_384_dist.pth", 31.00, 44.2, None),
    "fpn_xcit_s24_p16_ade20k": ("XCiT", "small_24_p16", 0.1, "xcit_small_24_p16_384_dist.pth", 53.64, 44.6, None),
    "fpn_xcit_s24_p8_ade20k": ("XCiT", "small_24_p8", 0.1, "xcit_small_24_p8_384_dist.pth", 52.42, 47.1, None),
    "fpn_xcit_m24_p16_ade20k": ("XCiT", "medium_24_p16", 0.2, "xcit_medium_24_p16_384_dist.pth", 94.04, 45.9, None),
    "fpn_xcit_m24_p8_ade20k": ("XCiT", "medium_24_p8", 0.2, "xcit_medium_24_p8_384_dist.pth", 91.86, 46.9, None),
    "upernet_xcit_t12_p16_ade20k": ("XCiT", "tiny_12_p16", 0.0, "xcit_tiny_12_p16_384_dist.pth", 34.17, 41.5, None),
    "upernet_xcit_t12_p8_ade20k": ("XCiT", "tiny_12_p8", 0.0, "xcit_tiny_12_p8_384_dist.pth", 33.87, 43.5, None),
    "upernet_xcit_s12_p16_ade20k": ("XCiT", "small_12_p16", 0.05, "xcit_small_12_p16_384_dist.pth", 54.20, 45.9, None),
    "upernet_xcit_s12_p8_ade20k": ("XCiT", "small_12_p8", 0.05, "xcit_small_12_p8_384_dist.pth", 52.98, 46.6, None),
    "upernet_xcit_s24_p16_ade20k": ("XCiT", "small_24_p16", 0.1, "xcit_small_24_p16_384_dist.pth", 75.62, 46.9, None),
    "upernet_xcit_s24_p8_ade20k": ("XCiT", "small_24_p8", 0.1, "xcit_small_24_p8_384_dist.pth", 74.40, 48.1, None),
    "upernet_xcit_m24_p16_ade20k": (
        "XCiT",
        "medium_24_p16",
        0.15,
        "xcit_medium_24_p16_384_dist.pth",
        112.18,
        47.6,
        None,
    ),
    "upernet_xcit_m24_p8_ade20k": ("XCiT", "medium_24_p8", 0.15, "xcit_medium_24_p8_384_dist.pth", 110.01, 48.4, None),
}
EVERY = [*RECIPES, "segformer_mit_b0_mini"]

pytestmark = pytest.mark.mmseg


def test_every_config_is_tested() -> None:
    files = {path.stem for path in recipe_files()}
    others = {*COLUMNS}  # in test_columns.py
    assert {name for name in files if name.startswith(("segformer_", "fpn_", "upernet_"))} - others == {*EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_builds_and_its_parts_fit(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    taker = cfg.model.get("neck") or cfg.model.decode_head
    assert tuple(taker["in_channels"]) == model.backbone.channels
    assert model.backbone.strides == (4, 8, 16, 32)
    assert model.decode_head.num_classes == cfg.num_classes
    if model.with_auxiliary_head:
        assert model.auxiliary_head.in_channels == model.backbone.channels[model.auxiliary_head.in_index]
        assert model.auxiliary_head.num_classes == cfg.num_classes
    size = tuple(cfg.crop_size)
    assert tuple(cfg.model.data_preprocessor.size) == size
    assert tuple(step["crop_size"] for step in cfg.train_pipeline if step["type"] == "RandomCrop") == (size,)
    if name in RECIPES:
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert count == pytest.approx(RECIPES[name][4], abs=0.006)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_the_published_one(name: str) -> None:
    kind, arch, drop_path, weights, *_ = RECIPES[name]
    cfg = load(name)
    backbone, head = cfg.model.backbone, cfg.model.decode_head
    assert (backbone.type, backbone.arch, backbone.drop_path_rate) == (f"mm_vitbackbones.{kind}", arch, drop_path)
    assert weights_of(backbone) == weights
    assert (head.dropout_ratio, head.num_classes, head.align_corners) == (0.1, 150, False)
    optimizer, fpn = cfg.optim_wrapper.optimizer, name.startswith("fpn_")
    (*warm_up, poly), images = cfg.param_scheduler, cfg.train_dataloader.batch_size
    assert (optimizer.type, poly.type, poly.eta_min, poly.by_epoch) == ("AdamW", "PolyLR", 0.0, False)
    if fpn and kind == "XCiT":
        assert (optimizer.lr, optimizer.weight_decay, images) == (6e-5, 0.01, 2)
        assert (cfg.train_cfg.max_iters, poly.power, poly.begin, poly.end) == (80000, 1.0, 1500, 80000)
        assert (warm_up[0].type, warm_up[0].start_factor, warm_up[0].end) == ("LinearLR", 1e-6, 1500)
        assert (cfg.model.neck.out_channels, cfg.sync_bn) == (cfg.model.neck.in_channels[0], "torch")
        assert head.in_channels == cfg.model.neck.in_channels
    elif fpn:
        first = kind == "PVT"
        assert (optimizer.lr, optimizer.weight_decay, images) == ((2e-4, 1e-4, 4) if first else (1e-4, 1e-4, 2))
        assert (cfg.train_cfg.max_iters, poly.power, poly.begin, poly.end) == (40000, 0.9, 0, 40000)
        assert not warm_up
        assert "paramwise_cfg" not in cfg.optim_wrapper
    else:
        assert (optimizer.lr, optimizer.weight_decay, images) == (6e-5, 0.01, 2)
        assert (cfg.train_cfg.max_iters, poly.power, poly.begin, poly.end) == (160000, 1.0, 1500, 160000)
        assert (warm_up[0].type, warm_up[0].start_factor, warm_up[0].end) == ("LinearLR", 1e-6, 1500)
    assert cfg.auto_scale_lr.base_batch_size == 8 * images
    if name.startswith("segformer_"):
        assert head.channels == (256 if arch in ("b0", "b1") else 768)


@pytest.mark.parametrize("name", RECIPES)
def test_images_are_prepared_as_published(name: str) -> None:
    cfg = load(name)
    short = 640 if "_640_" in name else 512
    train = {step["type"]: step for step in cfg.train_dataloader.dataset.pipeline}
    assert tuple(train["RandomResize"]["scale"]) == (2048, short)
    assert tuple(train["RandomResize"]["ratio_range"]) == (0.5, 2.0)
    assert train["RandomCrop"]["cat_max_ratio"] == 0.75
    assert train["RandomFlip"]["prob"] == 0.5
    assert "PhotoMetricDistortion" in train
    aligned = "swin" not in name and "xcit" not in name
    assert aligned or not cfg.model.data_preprocessor.get("test_cfg")
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        steps = loader.dataset.pipeline
        types = [step["type"] for step in steps]
        assert tuple(steps[1]["scale"]) == (2048, short)
        assert ("ResizeToMultiple" in types) == aligned
        assert types[-2:] == ["LoadAnnotations", "PackSegInputs"]
    sizes, *between, flips, _, _ = cfg.tta_pipeline[1]["transforms"]
    assert [size["scale"][1] / short for size in sizes] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert len(between) == aligned
    assert [flip["prob"] for flip in flips] == [0.0, 1.0]
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]


@pytest.mark.parametrize("name", EVERY)
def test_every_rule_of_the_optimizer_matches(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    assert not rules_without_effect(cfg.optim_wrapper.get("paramwise_cfg"), model)
    cfg.optim_wrapper.optimizer.pop("fused", None)  # not for tensors without data
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    named = {id(parameter): key for key, parameter in model.named_parameters()}
    of = {named[id(p)]: group for group in groups for p in group["params"] if id(p) in named}
    assert len(of) == len(named)
    base = cfg.optim_wrapper.optimizer
    for key, group in of.items():
        in_head = key.startswith("decode_head.")
        if name.startswith("segformer_") and name in RECIPES:
            assert group["lr"] == pytest.approx(base.lr * (10 if in_head else 1)), key
            assert group["weight_decay"] == (0 if ".norm" in key and not in_head else base.weight_decay), key
        elif "_xcit_" in name:
            assert group["lr"] == base.lr
            spared = re.search(r"backbone\.blocks\.\d+\.norm[123]\.", key)  # batch norms do decay
            assert group["weight_decay"] == (0 if spared else base.weight_decay), key
        elif name.startswith("upernet_"):
            assert group["lr"] == base.lr
            spared = ".norm" in key or "relative_position" in key or ".bn." in key
            assert group["weight_decay"] == (0 if spared else base.weight_decay), key


@pytest.mark.parametrize("name", EVERY)
def test_file_says_what_it_is(name: str) -> None:
    comment = "\n".join(line for line in (CONFIGS / f"{name}.py").read_text().splitlines()[:4] if line[0] == "#")
    assert f"configs/{name}.py" in comment
    if name in RECIPES:
        *_, published, tta = RECIPES[name]
        assert f"mIoU {published}" in comment if published else "mIoU" not in comment
        assert (f"--tta {tta}" in comment) == (tta is not None)


def test_one_number_of_classes_sets_every_head() -> None:
    cfg = load_config(CONFIGS / "upernet_swin_t_ade20k.py", {"num_classes": 7})
    assert (cfg.model.decode_head.num_classes, cfg.model.auxiliary_head.num_classes) == (7, 7)


def test_peer_of_the_mini_config_differs_in_the_network_only() -> None:
    ours = load("segformer_mit_b0_mini")
    theirs = Config.fromfile(TEST_CONFIGS / "segformer_mmseg_mit_b0_mini.py")
    use_local_norms(theirs, distributed=False)
    from mmseg.registry import MODELS

    with DefaultScope.overwrite_default_scope("mmseg"):  # theirs cannot be built on the meta device
        backbones = [MODELS.build(cfg.model.backbone) for cfg in (ours, theirs)]
        head = MODELS.build(theirs.model.decode_head)
    assert len({sum(p.numel() for p in backbone.parameters()) for backbone in backbones}) == 1
    assert head.num_classes == ours.num_classes
    assert head.channels == ours.model.decode_head.channels
    theirs = Config.fromfile(TEST_CONFIGS / "segformer_mmseg_mit_b0_mini.py")
    for cfg in (ours, theirs):
        del cfg.model["backbone"], cfg.model["decode_head"]
    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize("name", ["cait", "mvit_v2", "xcit_n"])
def test_segmentor_on_mini_differs_in_the_backbone_and_the_schedule_only(name: str) -> None:
    """The backbone is that of the detector on `mini`, and the head takes its levels."""
    path = TEST_CONFIGS / f"segformer_{name}_mini.py"
    ours, other = load("segformer_mit_b0_mini"), Config.fromfile(path)
    detector = load(f"retinanet_{name}_mini").model.backbone
    del detector["out_indices"]
    assert other.model.backbone.to_dict() == detector.to_dict()
    assert tuple(other.model.decode_head.in_channels) == build(Config.fromfile(path)).backbone.channels
    ours.train_cfg.update(max_iters=1100, val_interval=1100)
    ours.param_scheduler[1].update(T_max=1100, end=1100)
    other.pop("small", None)
    for cfg in (ours, other):
        del cfg.model["backbone"], cfg.model.decode_head["in_channels"]
    assert ours.to_dict() == other.to_dict()
