"""A backbone without a config."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from mmengine.registry import DefaultScope

import mm_vitbackbones
from helpers.official import load_fixture
from helpers.toys import BY_FAMILY
from mm_vitbackbones.backbones import PVT, CoaT, PiT, PVTv2, Swin
from mm_vitbackbones.build import backbone_names
from mm_vitbackbones.checkpoints import CheckpointMismatch


@pytest.mark.parametrize(
    ("name", "family", "arch"),
    [
        ("pvt_tiny", PVT, "tiny"),
        ("pvt_v2_b2_li", PVTv2, "b2_li"),
        ("swin_base_w12", Swin, "base_w12"),
        ("coat_lite_small", CoaT, "lite_small"),
        ("pit_s_distilled", PiT, "s_distilled"),
    ],
)
def test_backbones_are_built_by_name(name, family, arch):
    with torch.device("meta"):
        backbone = mm_vitbackbones.build_backbone(name)
    assert isinstance(backbone, family)
    assert backbone.arch == family.archs[arch]


def test_the_default_scope_does_not_matter():
    with DefaultScope.overwrite_default_scope("mmengine"), torch.device("meta"):
        assert isinstance(mm_vitbackbones.build_backbone("pvt_tiny"), PVT)


def test_every_arch_has_a_name():
    known = backbone_names()
    assert len(known) == len(set(known.values())) == sum(len(f.archs) for f in {f for f, _ in known.values()})
    assert {family for family, _ in known.values()} == {family.network for family in BY_FAMILY.values()}


def test_arguments_and_weights_reach_the_backbone(tmp_path):
    torch.save(load_fixture("pvt_v2").state, tmp_path / "toy.pth")
    with pytest.raises(CheckpointMismatch, match="which is not PVTv2 b0"):
        mm_vitbackbones.build_backbone("pvt_v2_b0", pretrained=tmp_path / "toy.pth")
    weights = mm_vitbackbones.build_backbone("pvt_v2_b0").state_dict()
    backbone = mm_vitbackbones.build_backbone("pvt_v2_b0", pretrained=weights, out_indices=(1, 3), in_channels=4)
    assert backbone.channels == (64, 256)
    assert backbone.in_channels == 4
    assert torch.equal(backbone.stages[3].norm.weight, weights["stages.3.norm.weight"])
    assert [*backbone(torch.randn(1, 4, 64, 64))[0].shape] == [1, 64, 8, 8]


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="there is no backbone 'pvt_v2b2'; did you mean 'pvt_v2_b2'"):
        mm_vitbackbones.build_backbone("pvt_v2b2")
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        mm_vitbackbones.no_such_name  # noqa: B018


def test_no_openmmlab_package_but_mmengine_is_imported():
    script = (
        "import sys, mm_vitbackbones\n"
        "assert 'torch' not in sys.modules\n"
        "mm_vitbackbones.build_backbone('pit_ti')\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'mmengine', 'mmcv', 'mmdet', 'mmseg'})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{'mmengine'}"
