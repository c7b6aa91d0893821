"""The detection configs against the published recipes, which are written down here a second time."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from helpers.paths import CONFIGS, TEST_CONFIGS, recipe_files
from helpers.recipes import RETINANET_1X as RECIPES
from helpers.recipes import build, load, weights_of

pytest.importorskip("mmdet")

# The published box AP, which the first comment of each config has to quote.
PUBLISHED = dict(zip(RECIPES, (36.7, 40.4, 41.9, 42.6, 37.2, 41.2, 43.6, 44.6, 45.9, 46.1, 46.2), strict=True))
SMALL = ["retinanet_pvt_t_mini", "retinanet_pvt_v2_b0_trees"]

pytestmark = pytest.mark.mmdet


def transforms(pipeline: list[dict]) -> dict[str, dict]:
    return {transform["type"]: transform for transform in pipeline}


def test_every_published_1x_config_is_tested() -> None:
    pvt = [path.stem for path in recipe_files() if path.stem.startswith("retinanet_pvt_") and "_3x_" not in path.stem]
    assert sorted(pvt) == sorted([*RECIPES, *SMALL])


@pytest.mark.parametrize("name", [*RECIPES, *SMALL])
def test_neck_takes_what_the_backbone_gives(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    assert tuple(cfg.model.neck.in_channels) == model.backbone.channels
    assert model.backbone.strides == (8, 16, 32)
    assert cfg.get("custom_imports") is None
    if name in RECIPES:
        # A position table has 1 + 49 rows in the published counts of the last stage; ours has no class row.
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert count == pytest.approx(RECIPES[name][5], abs=0.006)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_the_published_one(name: str) -> None:
    kind, arch, drop_path, weights, batch, _ = RECIPES[name]
    cfg = load(name)

    backbone = cfg.model.backbone
    assert (backbone.type, backbone.arch) == (f"mm_vitbackbones.{kind}", arch)
    assert backbone.drop_path_rate == drop_path
    assert tuple(backbone.out_indices) == (1, 2, 3)
    assert weights_of(backbone) == weights
    assert (cfg.model.neck.add_extra_convs, cfg.model.neck.num_outs) == ("on_input", 5)
    assert (cfg.model.bbox_head.type, cfg.model.bbox_head.num_classes) == ("RetinaHead", 80)

    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer.type == "AdamW"
    assert wrapper.optimizer.lr == pytest.approx(1e-4 if batch == 2 else 1e-4 / 1.4)
    assert wrapper.optimizer.weight_decay == 1e-4
    assert "paramwise_cfg" not in wrapper
    assert "clip_grad" not in wrapper
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.by_epoch, warm_up.end) == ("LinearLR", 0.001, False, 500)
    assert (steps.type, steps.by_epoch, [*steps.milestones], steps.gamma) == ("MultiStepLR", True, [8, 11], 0.1)
    assert cfg.train_cfg.max_epochs == 12

    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr == {"enable": False, "base_batch_size": 8 * batch}


@pytest.mark.parametrize("name", RECIPES)
def test_images_are_prepared_as_published(name: str) -> None:
    cfg = load(name)
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert preprocessor.bgr_to_rgb is True
    assert preprocessor.pad_size_divisor == 32

    train, test = (transforms(cfg[f"{split}_dataloader"].dataset.pipeline) for split in ("train", "test"))
    for pipeline in (train, test):
        assert tuple(pipeline["Resize"]["scale"]) == (1333, 800)
        assert pipeline["Resize"]["keep_ratio"] is True
    assert train["RandomFlip"]["prob"] == 0.5
    assert cfg.train_dataloader.dataset.filter_cfg["filter_empty_gt"] is True
    assert cfg.train_dataloader.dataset.data_root.rstrip("/") == "data/coco"
    assert cfg.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json"
    assert cfg.val_dataloader.dataset.ann_file == "annotations/instances_val2017.json"


@pytest.mark.parametrize("name", [*RECIPES, *SMALL])
def test_file_says_what_it_is(name: str) -> None:
    lines = (CONFIGS / f"{name}.py").read_text().splitlines()
    comment = "\n".join(line for line in lines[:4] if line.startswith("#"))
    assert f"configs/{name}.py" in comment
    if name in RECIPES:
        assert "Published" in comment
        assert f"box AP {PUBLISHED[name]};" in comment


def test_peer_of_the_mini_config_differs_in_the_backbone_only() -> None:
    ours = load("retinanet_pvt_t_mini")
    theirs = Config.fromfile(TEST_CONFIGS / "retinanet_mmdet_pvt_t_mini.py")
    # mmdet's cannot be built on the meta device.
    sizes = {sum(p.numel() for p in build(cfg, "cpu").backbone.parameters()) for cfg in (ours, theirs)}
    assert len(sizes) == 1
    del ours.model["backbone"], theirs.model["backbone"]
    assert ours.to_dict() == theirs.to_dict()
