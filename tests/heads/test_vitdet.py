"""What ViTDet's detectors take from this package: a norm over the channels of maps, and a coarsest level; and training
steps of detectors on ViT and DINOv2, of a frozen network and a whole one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from helpers.official import relative_error
from helpers.recipes import build, load
from mm_vitbackbones import libraries
from mm_vitbackbones.cli.dry_run import _batch, _draw_objects
from mm_vitbackbones.measuring import held_bytes
from mm_vitbackbones.registry import MODELS


@pytest.fixture
def norm() -> nn.Module:
    pytest.importorskip("mmdet")
    libraries.load("mmdet")
    with DefaultScope.overwrite_default_scope("mmdet"):
        name, layer = build_norm_layer(dict(type="mm_vitbackbones.LN2d", eps=1e-6), 6)
    assert name == "ln"
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.requires_grad_(False)


def test_norm_is_over_the_channels_of_each_place(norm: nn.Module) -> None:
    maps = torch.randn(2, 6, 3, 5) * 1e-3  # small, so that epsilon shows
    mean, variance = maps.mean(1, keepdim=True), maps.var(1, keepdim=True, unbiased=False)
    wanted = (maps - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert relative_error(norm(maps), wanted) < 1e-6


def test_norm_is_in_fp32_under_autocast(norm: nn.Module) -> None:
    maps = torch.randn(2, 6, 3, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(maps)
    assert found.dtype == torch.float32
    assert relative_error(found, norm(maps.float())) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_coarsest_level_has_every_second_place_of_the_last_one(size: tuple[int, int]) -> None:
    maps = [torch.randn(1, 4, 16, 16), torch.randn(1, 4, *size)]
    *same, coarse = MODELS.build(dict(type="mm_vitbackbones.MaxPoolLevel"))(maps)
    assert all(one is other for one, other in zip(same, maps, strict=True))
    assert torch.equal(coarse, maps[1][:, :, ::2, ::2])
    assert coarse.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))


# ---- training steps of whole detectors


def detector(name: str, frozen_stages: int | str) -> Any:
    """The network of a recipe with a toy of its backbone and few channels, and a batch of noise for it."""
    cfg = load(name)
    cfg.model.backbone.update(arch=dict(dim=32, num_heads=2, depth=4), frozen_stages=frozen_stages, drop_path_rate=0.0)
    del cfg.model.backbone["init_cfg"]
    cfg.model.data_preprocessor.pad_size_divisor = 32
    if "roi_head" in cfg.model:
        cfg.model.train_cfg.rcnn.sampler.num = 8
        cfg.model.train_cfg.rpn_proposal.max_per_img = 16
    torch.manual_seed(0)
    model = build(cfg, "cpu").train()
    return model, model.data_preprocessor(_batch(_draw_objects, 2, (3, 112, 112), 80), True)


def loss_of(model: Any, data: Any) -> Tensor:
    torch.manual_seed(1)  # of the samplers of boxes
    return model.parse_losses(model(**data, mode="loss"))[0]


detectors = pytest.mark.parametrize("name", ["retinanet_dinov2_s_frozen_coco", "mask_rcnn_vitdet_b_coco"])


@pytest.mark.mmdet
@detectors
def test_a_detector_on_a_frozen_trunk_keeps_what_its_pyramid_and_heads_need(name: str) -> None:
    kept = {}
    for frozen in (-1, "all"):
        model, data = detector(name, frozen)
        for _ in range(2):  # the first one fills caches
            kept[frozen] = held_bytes(lambda model=model, data=data: loss_of(model, data))
    with torch.no_grad():
        taps = model.backbone.trunk(data["inputs"].permute(0, 2, 3, 1))
    model.backbone.trunk = lambda image: taps
    for _ in range(2):
        alone = held_bytes(lambda: loss_of(model, data))
    tap = sum(level.grid.nbytes for level in taps.values())
    # The tap itself; and a second stage holds some thousand bytes more or less from run to run.
    assert abs(kept["all"] - alone) <= 2 * tap
    assert kept[-1] > kept["all"] + 4 * 8 * tap  # eight maps of each of four blocks


@pytest.mark.mmdet
@detectors
@pytest.mark.parametrize("frozen", ["all", -1])
def test_a_training_step_of_a_detector_changes_all_but_a_frozen_trunk(name: str, frozen: int | str) -> None:
    model, data = detector(name, frozen)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = loss_of(model, data)
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    trained = {key for key, _ in model.named_parameters()}
    if frozen == "all":
        trained = {key for key in trained if not key.startswith("backbone.") or key.startswith("backbone.pyramid.")}
    assert {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])} == trained
