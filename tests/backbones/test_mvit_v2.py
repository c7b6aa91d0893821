"""What MViTv2 alone has: windows and strides by place, files of classifiers and of detectron2. (Its features are
compared with the recorded ones in test_official_parity.py.)"""

from __future__ import annotations

import pytest
import torch

from helpers.official import load_fixture, relative_error
from helpers.toys import TOYS
from helpers.weights import as_detectron2_saves
from mm_vitbackbones.backbones import MViTv2
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES, find_layout, looks_like
from mm_vitbackbones.errors import ArgumentError, CheckpointMismatch

FAMILY, TOY = FAMILIES["MViTv2"], TOYS["mvit_v2"]


def test_windows_and_strides_of_each_block():
    with torch.device("meta"):
        network = MViTv2("tiny")
    found = [
        (block.attn.windows, block.attn.pool_q.stride[0], block.attn.pool_k.stride[0], len(block.attn.rows))
        for stage in network.stages
        for block in stage.blocks
    ]
    middle = ((14, 14), 1, 1, 27)
    assert found == [
        ((56, 14), 1, 4, 111),
        ((28, 28), 2, 2, 55),
        (None, 1, 4, 55),
        ((14, 28), 2, 1, 55),
        *[middle] * 3,
        (None, 1, 2, 27),
        ((7, 14), 2, 1, 27),
        (None, 1, 1, 13),
    ]


def test_an_own_spec_has_windows_that_can_be_halved():
    with pytest.raises(ArgumentError, match="window_size=12 and pretrain_grid=16: give multiples of 8"):
        MViTv2(dict(TOY.arch, window_size=12))


def test_the_next_stage_takes_what_the_norm_of_a_level_has_not_seen():
    network = TOY().eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(image)
        network.stages[0].norm.weight.mul_(2)
        after = network(image)
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


# ---- files


def classifier() -> dict[str, torch.Tensor]:
    state = {key: tensor for key, tensor in load_fixture("mvit_v2").state.items() if not key.startswith("scale")}
    extra = {
        "norm.weight": (64,),
        "norm.bias": (64,),
        "head.projection.weight": (10, 64),
        "head.projection.bias": (10,),
    }
    return state | {key: torch.randn(shape) for key, shape in extra.items()}


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "file"])
def test_detectron2s_file_is_read_next_to_its_pyramid(tmp_path, pickled):
    state = {f"backbone.bottom_up.{key}": tensor for key, tensor in load_fixture("mvit_v2").state.items()}
    state |= {"backbone.fpn_lateral2.weight": torch.ones(1), "proposal_generator.rpn_head.conv.weight": torch.ones(1)}
    content = {"model": state, "iteration": 3}
    report = load_pretrained(TOY(), as_detectron2_saves(tmp_path, content) if pickled else content)
    assert not report.fresh
    assert set(report.outside) == {"backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight"}


@pytest.mark.parametrize("layout", ["official", "timm", "ours"])
@pytest.mark.parametrize("token", [False, True], ids=["", "class token"])
def test_a_classifiers_file_of_each_layout_leaves_the_norms_of_levels_fresh(layout, token):
    official, wanted = FAMILY.layout("official"), FAMILY.layout(layout)
    state = classifier() | ({"cls_token": torch.randn(1, 1, 64)} if token else {})
    ours, unknown = official.to_ours(state)
    theirs, nameless = wanted.to_theirs(ours)
    assert not unknown
    assert not nameless
    assert find_layout(theirs).layout.name == layout
    back, unknown = wanted.to_ours(theirs)
    assert not unknown
    again = official.to_theirs(back)[0]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    network = TOY().eval()
    report = load_pretrained(network, {"model_state": theirs, "cfg": "..."})
    assert report.layout == layout
    assert {*report.fresh} == {f"stages.{i}.norm.{part}" for i in range(4) for part in ("weight", "bias")}
    fixture = load_fixture("mvit_v2")
    with torch.no_grad():
        for i, stage in enumerate(network.stages):
            stage.norm.weight.copy_(fixture.state[f"scale{i + 2}_norm.weight"])
            stage.norm.bias.copy_(fixture.state[f"scale{i + 2}_norm.bias"])
        for level, feature in zip(network(fixture.inputs[1]), fixture.features[1], strict=True):
            assert relative_error(level, feature) <= 1e-5


def test_names_of_timm_are_those_of_stages():
    theirs = FAMILY.layout("timm").to_theirs(FAMILY.layout("official").to_ours(classifier())[0])[0]
    assert theirs["stages.1.blocks.0.shortcut_proj_attn.weight"].shape == (16, 8)
    assert theirs["head.fc.weight"].shape == (10, 64)
    assert "stages.3.blocks.1.attn.rel_pos_w" in theirs


@pytest.mark.parametrize("arch", MViTv2.archs)
def test_a_published_arch_is_known_by_its_weights(arch):
    with torch.device("meta"):
        state = MViTv2(arch).state_dict()
    assert looks_like(FAMILY.layout("official").to_theirs(state)[0]) == f"MViTv2 {arch}"


def test_networks_that_only_look_like_one_are_refused_by_name():
    theirs = FAMILY.layout("timm").to_theirs(FAMILY.layout("official").to_ours(classifier())[0])[0]
    wide = theirs | {"stages.1.blocks.0.shortcut_proj_mlp.weight": torch.ones(16, 8)}
    with pytest.raises(CheckpointMismatch, match="looks like an MViTv2 that widens in its feed-forward networks"):
        load_pretrained(TOY(), wide)
    first = {key: tensor for key, tensor in classifier().items() if "rel_pos" not in key}  # as MViTv1
    with pytest.raises(CheckpointMismatch, match="looks like an MViT of a kind that is not known"):
        load_pretrained(TOY(), first)
    with pytest.raises(CheckpointMismatch, match="looks like a ViT"):
        load_pretrained(TOY(), TOYS["vit"]().state_dict())
    with pytest.raises(CheckpointMismatch, match="looks like a MViTv2 of no published arch"):
        load_pretrained(TOYS["swin"](), TOY().state_dict())


def test_a_file_of_other_depths_is_refused():
    with pytest.raises(CheckpointMismatch, match=r"missing: stages\.2\.blocks\.2\."):
        load_pretrained(MViTv2(dict(TOY.arch, depths=(1, 2, 3, 2))), load_fixture("mvit_v2").state)
