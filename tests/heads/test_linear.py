"""The linear head: what it computes, its files, and what it trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("mmseg")

from mm_vitbackbones.backbones import DINOv2
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.errors import ArgumentError, CheckpointMismatch
from mm_vitbackbones.heads.linear import LinearHead

pytestmark = pytest.mark.mmseg


def make_head(**arguments) -> LinearHead:
    torch.manual_seed(0)
    head = LinearHead(**dict(in_channels=8, num_classes=5) | arguments)
    for tensor in (head.bn.weight, head.bn.bias, head.bn.running_mean):
        nn.init.normal_(tensor)
    return head.eval()


def test_is_a_norm_and_a_linear_map_of_every_cell():
    head, map = make_head(), torch.randn(2, 8, 3, 4)
    # In eval mode that is one linear map.
    scale = head.bn.weight / torch.sqrt(head.bn.running_var + head.bn.eps)
    cells = (map.permute(0, 2, 3, 1) - head.bn.running_mean) * scale + head.bn.bias
    expected = cells @ head.conv_seg.weight[:, :, 0, 0].t() + head.conv_seg.bias
    torch.testing.assert_close(head([map]), expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_several_maps_stand_side_by_side_at_the_grid_of_the_first():
    head = make_head(in_channels=[8, 4], in_index=[2, 0])
    maps = [torch.randn(1, 4, 2, 2), torch.randn(1, 9, 1, 1), torch.randn(1, 8, 4, 6)]
    resized = nn.functional.interpolate(maps[0], size=(4, 6), mode="bilinear")
    expected = head.conv_seg(head.bn(torch.cat((maps[2], resized), dim=1)))
    torch.testing.assert_close(head(maps), expected)


def test_whole_channels_are_dropped_before_the_norm():
    head = make_head(in_channels=256, dropout_ratio=0.5).train()
    seen = []
    head.bn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    head([torch.ones(1, 256, 3, 4)])
    dropped = (seen[0] == 0).flatten(2)
    assert torch.equal(dropped.any(-1), dropped.all(-1))
    assert 80 < int(dropped.all(-1).sum()) < 176


def test_maps_and_indices_go_together():
    with pytest.raises(ArgumentError, match="one of each for every map"):
        make_head(in_channels=[8, 8], in_index=[0])


def test_file_of_the_authors_is_taken_whole():
    source = make_head()
    file = {"state_dict": {f"decode_head.{name}": tensor for name, tensor in source.state_dict().items()}}
    head = make_head()
    nn.init.zeros_(head.conv_seg.weight)
    report = load_pretrained(head, file)
    assert not report.fresh
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in head.state_dict().items())
    with pytest.raises(CheckpointMismatch, match="channels=8, num_classes=5"):
        load_pretrained(make_head(num_classes=7), file)


def test_nothing_but_the_head_trains_on_a_frozen_trunk():
    backbone = DINOv2(
        dict(dim=8, num_heads=2, depth=2), pyramid=None, taps=[-1], patch_size=16, frozen_stages="all"
    ).train()
    head = make_head().train()
    head(backbone(torch.randn(2, 3, 64, 48))).square().mean().backward()
    assert all(p.grad is not None for p in head.parameters())
    assert all(p.grad is None for p in backbone.parameters())
