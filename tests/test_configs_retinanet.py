"""The detection configs against the published recipes, which are written down here a second time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

pytest.importorskip("mmdet")

CONFIGS = Path(__file__).parents[1] / "configs"
RELEASE = "https://github.com/whai362/PVT/releases/download/v2/"

# config: (backbone type, arch, drop path, weights, images per GPU, parameters of the detector in M)
RECIPES = {
    "retinanet_pvt_t_coco": ("PVT", "tiny", 0.1, "pvt_tiny.pth", 2, 22.96),
    "retinanet_pvt_s_coco": ("PVT", "small", 0.1, "pvt_small.pth", 2, 34.22),
    "retinanet_pvt_m_coco": ("PVT", "medium", 0.0, "pvt_medium.pth", 2, 53.94),
    "retinanet_pvt_l_coco": ("PVT", "large", 0.0, "pvt_large.pth", 2, 71.10),
    "retinanet_pvt_v2_b0_coco": ("PVTv2", "b0", 0.1, "pvt_v2_b0.pth", 2, 12.95),
    "retinanet_pvt_v2_b1_coco": ("PVTv2", "b1", 0.1, "pvt_v2_b1.pth", 2, 23.75),
    "retinanet_pvt_v2_b2_li_coco": ("PVTv2", "b2_li", 0.1, "pvt_v2_b2_li.pth", 2, 32.29),
    "retinanet_pvt_v2_b2_coco": ("PVTv2", "b2", 0.1, "pvt_v2_b2.pth", 2, 35.10),
    "retinanet_pvt_v2_b3_coco": ("PVTv2", "b3", 0.1, "pvt_v2_b3.pth", 2, 54.98),
    "retinanet_pvt_v2_b4_coco": ("PVTv2", "b4", 0.1, "pvt_v2_b4.pth", 1, 72.29),
    "retinanet_pvt_v2_b5_coco": ("PVTv2", "b5", 0.1, "pvt_v2_b5.pth", 1, 91.69),
}
# The published box AP, which the first comment of each config has to quote.
PUBLISHED = dict(zip(RECIPES, (36.7, 40.4, 41.9, 42.6, 37.2, 41.2, 43.6, 44.6, 45.9, 46.1, 46.2), strict=True))
SMALL = ["retinanet_pvt_t_mini", "retinanet_pvt_v2_b0_trees"]

pytestmark = pytest.mark.mmdet


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f"{name}.py")


def build(cfg: Config, device: str = "meta") -> torch.nn.Module:
    from mmdet.registry import MODELS

    with DefaultScope.overwrite_default_scope("mmdet"), torch.device(device):
        return MODELS.build(cfg.model)


def transforms(pipeline: list[dict]) -> dict[str, dict]:
    return {transform["type"]: transform for transform in pipeline}


def test_every_published_1x_config_is_tested() -> None:
    pvt = [path.stem for path in CONFIGS.glob("retinanet_pvt_*.py") if "_3x_" not in path.stem]
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
    assert backbone.init_cfg == {"type": "Pretrained", "checkpoint": RELEASE + weights}
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


def test_inheritance_is_at_most_two_levels_deep() -> None:
    bases = [*CONFIGS.glob("_base_/**/*.py")]
    assert bases
    for path in bases:
        assert "_base_ =" not in path.read_text()


def test_the_peer_of_the_mini_config_differs_in_the_backbone_alone() -> None:
    ours = load("retinanet_pvt_t_mini")
    theirs = Config.fromfile(Path(__file__).parent / "configs" / "retinanet_mmdet_pvt_t_mini.py")
    # mmdet's cannot be built on the meta device.
    sizes = {sum(p.numel() for p in build(cfg, "cpu").backbone.parameters()) for cfg in (ours, theirs)}
    assert len(sizes) == 1
    del ours.model["backbone"], theirs.model["backbone"]
    assert ours.to_dict() == theirs.to_dict()
