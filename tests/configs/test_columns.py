"""Segmentors on ViT, DINOv2, DINOv3 and CaiT: against the published recipes, which are written down here a second time,
and against MMSegmentation's own configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from helpers.paths import CONFIGS, recipe_files
from helpers.recipes import COLUMNS, build, load, weights_of

pytest.importorskip("mmseg")

import mmseg
from mmseg.registry import MODELS

from mm_vitbackbones.cli.config import use_local_norms
from mm_vitbackbones.engine.layer_decay import rules_without_effect

pytestmark = pytest.mark.mmseg
TAPS = {
    "upernet_mae_b_ade20k": (3, 5, 7, 11),
    "dpt_vit_l_ade20k": (5, 11, 17, 23),
    "upernet_cait_xxs24_ade20k": (5, 11, 17, 23),
    "upernet_cait_s24_ade20k": (5, 11, 17, 23),
}
THEIRS = {
    "upernet_deit_b_ade20k": "vit/vit_deit-b16_mln_upernet_8xb2-160k_ade20k-512x512",
    "upernet_mae_b_ade20k": "mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512",
    "dpt_vit_l_ade20k": "dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512",
}
every = pytest.mark.parametrize("name", COLUMNS)
libraries = pytest.mark.parametrize("name", THEIRS)


def theirs(name: str) -> Config:
    return Config.fromfile(Path(mmseg.__file__).parent / f".mim/configs/{THEIRS[name]}.py")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_config_is_tested() -> None:
    kinds = ("_deit_", "_mae_", "_dinov2_", "_dinov3_", "_vit_", "_cait_")
    files = {path.stem for path in recipe_files() if path.stem.endswith("_ade20k")}
    assert {name for name in files if any(kind in name for kind in kinds)} == {*COLUMNS}


@every
def test_network_is_the_published_one_and_its_parts_fit(name: str) -> None:
    kind, arch, drop_path, weights, frozen, millions, *_ = COLUMNS[name]
    cfg = load(name)
    model, backbone = build(cfg), cfg.model.backbone
    assert (backbone.type, backbone.arch, backbone.drop_path_rate) == (f"mm_vitbackbones.{kind}", arch, drop_path)
    assert weights_of(backbone) == weights
    network, taker = model.backbone, model.neck if model.with_neck else model.decode_head
    one = isinstance(taker.in_channels, int)  # the linear head's maps, side by side
    assert (sum(network.channels) if one else [*network.channels]) == taker.in_channels
    assert network.frozen_stages == (network.arch.depth if frozen else -1)
    head = cfg.model.decode_head
    assert (head.num_classes, head.align_corners) == (150, False)
    if name.startswith("linear_"):
        assert network.taps == (network.arch.depth - 1,)
        assert not isinstance(network.norm, nn.Identity)
        assert head.dropout_ratio == (0.1 if kind == "DINOv3" else 0.0)
    else:
        assert network.taps == TAPS.get(name, (2, 5, 8, 11))
        assert head.dropout_ratio == 0.1
    if name.startswith("upernet_") and network.pyramid is not None:
        assert network.strides == (4, 8, 16, 32)
    if model.with_auxiliary_head:
        assert model.auxiliary_head.num_classes == 150
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.006)


@every
def test_images_hold_whole_patches_and_are_prepared_as_published(name: str) -> None:
    cfg = load(name)
    steps = cfg.train_dataloader.dataset.pipeline
    train = {step["type"]: step for step in steps}
    assert tuple(train["RandomResize"]["scale"]) == (2048, 512)
    assert tuple(train["RandomResize"]["ratio_range"]) == (0.5, 2.0)
    assert tuple(train["RandomCrop"]["crop_size"]) == (512, 512)
    assert "ResizeToMultiple" not in [step["type"] for step in cfg.test_dataloader.dataset.pipeline]
    patch, preprocessor = build(cfg).backbone.patch_size, cfg.model.data_preprocessor
    if cfg.model.backbone.get("pyramid") is None:  # a pyramid makes exact levels of any image
        assert preprocessor.size[0] % patch == 0
        assert preprocessor.test_cfg.size_divisor % patch == 0
        assert 0 <= preprocessor.size[0] - 512 < patch
    whole = name.startswith(("upernet_deit", "upernet_dinov2", "upernet_cait", "dpt_"))
    assert cfg.model.test_cfg.mode == ("whole" if whole else "slide")
    if not whole:
        assert tuple(cfg.model.test_cfg.crop_size) == tuple(preprocessor.size)
        assert tuple(cfg.model.test_cfg.stride) == (341, 341)
    centre = 127.5 if name == "dpt_vit_l_ade20k" else 123.675
    assert preprocessor.mean[0] == centre


@every
def test_schedule_and_rates_are_the_published_ones(name: str) -> None:
    cfg = load(name)
    optimizer, (warm_up, decay) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    steps = 40000 if name.startswith("linear_") else 160000
    assert cfg.train_cfg.max_iters == decay.end == steps
    assert (warm_up.type, warm_up.start_factor, warm_up.end, decay.begin) == ("LinearLR", 1e-6, 1500, 1500)
    assert decay.type == ("CosineAnnealingLR" if name.startswith("linear_dinov3") else "PolyLR")
    assert decay.eta_min == 0.0
    assert decay.get("power", 1.0) == 1.0
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    assert optimizer.type == "AdamW"
    rates = {
        "upernet_deit_b_ade20k": (6e-5, 0.01),
        "upernet_mae_b_ade20k": (1e-4, 0.05),
        "dpt_vit_l_ade20k": (6e-5, 0.01),
        "upernet_cait_xxs24_ade20k": (6e-5, 0.01),
        "upernet_cait_s24_ade20k": (6e-5, 0.01),
        "linear_dinov2_s_ade20k": (1e-3, 1e-4),
        "linear_dinov2_b_ade20k": (1e-3, 1e-4),
        "linear_dinov3_s_ade20k": (1e-3, 1e-3),
        "linear_dinov3_b_ade20k": (1e-3, 1e-3),
    }
    assert (optimizer.lr, optimizer.weight_decay) == rates.get(name, (1e-4, 0.01))


@every
def test_every_rule_of_the_optimizer_matches(name: str) -> None:
    cfg = load(name)
    model, paramwise = build(cfg), cfg.optim_wrapper.get("paramwise_cfg") or {}
    rules = {key: value for key, value in paramwise.items() if key != "layer_decay_rate"}
    assert not rules_without_effect(rules, model)
    cfg.optim_wrapper.optimizer.pop("fused", None)  # not for tensors without data
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    base = cfg.optim_wrapper.optimizer
    for key, parameter in model.named_parameters():
        if id(parameter) not in of:
            assert not parameter.requires_grad, key
            continue
        group = of[id(parameter)]
        if name == "upernet_mae_b_ade20k":
            depth = 13 if key.startswith(("decode_head", "auxiliary_head", "backbone.pyramid")) else 0
            if key.startswith("backbone.blocks."):
                depth = int(key.split(".")[2]) + 1
            assert group["lr"] == pytest.approx(base.lr * 0.65 ** (13 - depth)), key
            spared = parameter.dim() == 1 or "position" in key or "class_tokens" in key
        else:
            assert group["lr"] == base.lr
            spared = bool(paramwise) and any(part in key for part in (".norm", ".bn.", "position", "class_tokens"))
        assert group["weight_decay"] == (0 if spared else base.weight_decay), key


@libraries
def test_rates_and_schedule_are_those_of_mmseg(name: str) -> None:
    ours, other = load(name), theirs(name)
    assert ours.optim_wrapper.optimizer == other.optim_wrapper.optimizer
    assert ours.optim_wrapper.paramwise_cfg.get("layer_decay_rate") == other.optim_wrapper.paramwise_cfg.get(
        "layer_decay_rate"
    )
    assert ours.param_scheduler == other.param_scheduler
    assert ours.train_cfg.max_iters == other.train_cfg.max_iters
    assert ours.train_dataloader.batch_size == other.train_dataloader.batch_size
    assert ours.model.backbone.drop_path_rate == other.model.backbone.get("drop_path_rate", 0.0)
    test, given = ours.model.test_cfg, other.model.test_cfg
    assert all(test[key] == given[key] for key in given)
    assert ours.crop_size == other.crop_size


@libraries
def test_neck_and_heads_have_as_many_parameters_as_those_of_mmseg(name: str) -> None:
    ours, other = load(name), theirs(name)
    model = build(ours)
    if name == "dpt_vit_l_ade20k":  # theirs is for a ViT-Base, as that of DINOv2 is here
        model = build(load("dpt_dinov2_b_ade20k"))
    with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"):
        heads = {
            part: MODELS.build(other.model[part]) for part in ("decode_head", "auxiliary_head") if other.model[part]
        }
        neck = MODELS.build(other.model.neck) if "neck" in other.model else nn.Identity()
    for part, head in heads.items():
        assert count(getattr(model, part)) == count(head)
    pyramid = model.backbone.pyramid if model.backbone.pyramid is not None else nn.Identity()
    assert count(model.neck if model.with_neck else pyramid) == count(neck)
    assert model.with_auxiliary_head == ("auxiliary_head" in heads)
    if model.with_auxiliary_head:
        assert model.auxiliary_head.in_index == heads["auxiliary_head"].in_index
        assert ours.model.auxiliary_head.loss_decode == other.model.auxiliary_head.loss_decode


@libraries
def test_backbone_has_the_parameters_and_taps_of_that_of_mmseg(name: str) -> None:
    ours, other = load(name), theirs(name)
    trunk = build(ours).backbone
    if name == "dpt_vit_l_ade20k":
        taps = build(load("dpt_dinov2_b_ade20k")).backbone.taps
        assert tuple(other.model.backbone.out_indices) == taps
        return
    assert tuple(other.model.backbone.out_indices) == trunk.taps
    with DefaultScope.overwrite_default_scope("mmseg"):
        network = MODELS.build(other.model.backbone | dict(img_size=(224, 224), init_cfg=None))
    extra = count(network) - count(trunk) + (count(trunk.pyramid) if trunk.pyramid is not None else 0)
    if name == "upernet_mae_b_ade20k":
        # Layer scale, and relative positions of a window of 14 with their three entries for the class token.
        assert extra == 12 * (2 * 768 + ((2 * 14 - 1) ** 2 + 3) * 12)
    else:
        assert extra == -768  # DeiT's patch embedding has a bias, which MMSegmentation leaves out


@pytest.mark.parametrize("gpus", [False, True])
def test_batch_norms_of_a_pyramid_are_synchronised_where_that_is_possible(
    gpus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    cfg = load("upernet_mae_b_ade20k")
    use_local_norms(cfg, distributed=True)
    assert cfg.get("sync_bn") == ("torch" if gpus else None)


@every
def test_file_says_what_it_is(name: str) -> None:
    lines = (CONFIGS / f"{name}.py").read_text().splitlines()
    comment = "\n".join(line for line in lines[:6] if line.startswith("#"))
    *_, published, tta = COLUMNS[name]
    assert f"configs/{name}.py" in comment
    assert f"mIoU {published}" in comment if published else "mIoU" not in comment
    assert (f"--tta {tta}" in comment) == (tta is not None)
    assert ("DINOv3 License" in comment) == ("dinov3" in name)
    assert ("non-commercial" in comment) == ("_mae_" in name)
