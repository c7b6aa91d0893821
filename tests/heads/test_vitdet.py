"""What ViTDet's detectors take from this package: a norm over the channels of maps, and a coarsest level."""

from __future__ import annotations

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import DefaultScope
from torch import nn

from helpers.official import relative_error
from mm_vitbackbones import libraries
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
