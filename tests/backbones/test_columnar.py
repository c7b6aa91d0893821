"""ViT, DINOv2 and DINOv3 against recorded networks of their authors, and what these networks alone have."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.memory import kept_bytes
from helpers.official import load_fixture, relative_error
from helpers.paths import DATA
from helpers.weights import as_detectron2_saves
from mm_vitbackbones.backbones import DINOv2, DINOv3, ViT
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES, find_layout
from mm_vitbackbones.errors import ArgumentError, CheckpointMismatch
from mm_vitbackbones.layers.pyramid import ResizePyramid, SimplePyramid
from mm_vitbackbones.ops.rotary import Rotation

TRUNK = dict(taps=(0, 2), pyramid=None, final_norm=True, stem="published")
SPEC = dict(dim=32, num_heads=2, depth=3)


def vit(arch: dict, **arguments: object) -> Callable[[], ViT]:
    return lambda **more: ViT(SPEC | dict(pretrain_grid=4) | arch, **TRUNK | arguments | more)


def dinov2(**arch: object) -> Callable[[], DINOv2]:
    return lambda **more: DINOv2(SPEC | dict(pretrain_grid=6) | arch, **TRUNK | more)


def dinov3(**arch: object) -> Callable[[], DINOv3]:
    return lambda **more: DINOv3(SPEC | arch, **TRUNK | more)


NETWORKS = {
    "vit_deit": vit({}),
    "vit_deit_distilled": vit(dict(num_tokens=2)),
    "deit3": vit(dict(token_positions=False, layer_scale=1e-4)),
    "dino": vit(dict(patch_size=8, pretrain_grid=8), positions="by_scale"),
    "dinov2": dinov2(),
    "dinov2_reg": dinov2(registers=4),
    "dinov2_swiglu": dinov2(gated=True),
    "dinov3": dinov3(),
    "dinov3_swiglu": dinov3(gated=True, hidden_dim=128),
    "dinov3_7b": dinov3(dim=40, gated=True, hidden_dim=128, qkv_bias=False),
}
VITDET = dict(window_size=4, global_blocks=(1, 3), relative_positions=6)
networks = pytest.mark.parametrize("name", NETWORKS)


def expected_levels(name: str) -> list[str]:
    """What the recorded levels are, in words."""
    with np.load(DATA / f"{name}.npz") as file:
        return json.loads(str(file["arch"]))["levels"]


@networks
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_blocks_normed_taps_and_tokens_of_the_official_networks(name, grad):
    fixture, network = load_fixture(name), NETWORKS[name]().eval()
    load_pretrained(network, fixture.state)
    words = expected_levels(name)
    for image, features in zip(fixture.inputs, fixture.features, strict=True):
        with torch.set_grad_enabled(grad):
            raw, normed = network.features(image, blocks=[0, 2]), network.features(image)
        for what, levels in (("raw", raw), ("normed", normed)):
            grids = [f for f, said in zip(features, words, strict=True) if said.startswith("grid") and what in said]
            for level, grid in zip(levels, grids, strict=True):
                assert level.grid.shape == grid.shape
                assert relative_error(level.grid, grid) <= 1e-5
            tokens = [
                f.reshape(1, -1, f.shape[-1])
                for f, said in zip(features, words, strict=True)
                if not said.startswith("grid") and what in said
            ]
            assert relative_error(levels[-1].class_tokens, torch.cat(tokens, dim=1)) <= 1e-5


@networks
def test_maps_of_the_official_networks_in_training_and_finite_gradients(name):
    fixture, network = load_fixture(name), NETWORKS[name](drop_path_rate=0.0).train()
    load_pretrained(network, fixture.state)
    maps = network(fixture.inputs[-1])
    for one, grid in zip(maps, fixture.features[-1][2:4], strict=True):
        assert relative_error(one.permute(0, 2, 3, 1), grid) <= 1e-5
    sum(one.square().sum() for one in maps).backward()
    for parameter_name, p in network.named_parameters():
        assert torch.isfinite(p.grad).all(), parameter_name


@pytest.mark.parametrize("pickled", [False, True], ids=["state dict", "file"])
def test_windows_global_blocks_and_relative_positions_of_vitdet(tmp_path, pickled):
    fixture = load_fixture("vitdet")
    network = ViT(SPEC | dict(depth=4, pretrain_grid=4), **TRUNK | dict(taps=(3,), final_norm=False), **VITDET).eval()
    content = {"model": {f"backbone.net.{key}": tensor for key, tensor in fixture.state.items()}}
    load_pretrained(network, as_detectron2_saves(tmp_path, content) if pickled else fixture.state)
    for image, features in zip(fixture.inputs, fixture.features, strict=True):
        for level, grid in zip(network.features(image, blocks=[0, 1]), features[:2], strict=True):
            assert relative_error(level.grid, grid) <= 1e-5
        assert relative_error(network(image)[0], features[2]) <= 1e-5


def test_the_simple_pyramid_of_vitdet():
    fixture = load_fixture("simple_fpn")
    layout = FAMILIES["ViT"].layout("official")
    pyramid = SimplePyramid(32, 16, {0: 4, 1: 8, 2: 16, 3: 32}, out_channels=16, ceil=False)
    ours, unknown = layout.to_ours(fixture.state)
    assert not unknown
    pyramid.load_state_dict({key.removeprefix("pyramid."): tensor for key, tensor in ours.items()})
    for grid, features in zip(fixture.inputs, fixture.features, strict=True):
        for i in range(4):
            level = pyramid.level(grid.permute(0, 2, 3, 1), i).permute(0, 3, 1, 2)
            assert relative_error(level, features[i]) <= 1e-5


# ---- files


@networks
def test_each_layout_is_recognised_and_holds_every_weight(name):
    fixture, network = load_fixture(name), NETWORKS[name]().eval()
    family = FAMILIES[type(network).__name__]
    load_pretrained(network, fixture.state)
    found = find_layout(fixture.state)
    assert (found.family.name, found.layout.name) == (family.name, "official")
    ours, unknown = found.layout.to_ours(found.split(fixture.state)[0])
    again, nameless = found.layout.to_theirs(ours)
    assert not unknown
    assert not nameless
    assert again.keys() == fixture.state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in fixture.state.items())

    with torch.no_grad():
        expected = network(fixture.inputs[1])
    own = network.state_dict()
    for layout in family.layouts:
        theirs, nameless = layout.to_theirs(own)
        if [key for key in nameless if key != "stem.periods"]:
            assert layout.name in LACKING.get(name, ()), (layout.name, nameless)
            continue
        other = NETWORKS[name]().eval()
        load_pretrained(other, theirs)
        with torch.no_grad():
            for a, b in zip(other(fixture.inputs[1]), expected, strict=True):
                # Periods that are not in a file follow from the formula; the recorded ones are rounded.
                assert relative_error(a, b) <= (2e-3 if name == "dinov3" else 1e-6)


LACKING = {
    "vit_deit_distilled": ("mmseg",),
    "deit3": ("huggingface", "huggingface5", "mmseg"),
}
"""Layouts of projects that have no such network."""


def test_files_of_mae_start_vitdet():
    source = ViT(SPEC | dict(pretrain_grid=4), **TRUNK)
    network = ViT(SPEC | dict(pretrain_grid=4), window_size=2, relative_positions=4, pyramid="simple", taps=[-1])
    report = load_pretrained(network, source.state_dict())
    assert {name.rpartition(".")[2] for name in report.fresh if "attn" in name} == {"rows", "columns"}
    assert all(name.startswith("pyramid.") or ".attn." in name for name in report.fresh)
    assert set(report.unbuilt) >= {"stem.class_tokens", "stem.token_positions"}
    assert torch.equal(network.blocks[1].ffn.fc1.weight, source.blocks[1].ffn.fc1.weight)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("blocks.0.attn1.qkv.weight", "two attentions side by side"),
        ("blocks.0.attn.q_bias", "a BEiT"),
        ("blocks.0.attn.pool_q.weight", "an MViT"),
    ],
)
def test_networks_that_only_look_like_a_vit_are_refused_by_name(key, what):
    with pytest.raises(CheckpointMismatch, match=what):
        load_pretrained(NETWORKS["vit_deit"](), load_fixture("vit_deit").state | {key: torch.zeros(2)})


def test_a_patch_embedding_of_another_size_gives_what_resized_patches_give():
    before = DINOv2(SPEC | dict(pretrain_grid=6), **TRUNK)
    after = DINOv2(SPEC | dict(pretrain_grid=6), patch_size=16, **TRUNK)
    report = load_pretrained(after, before.state_dict())
    assert any("patches of 14 pixels to 3 and 16" in line for line in report.adapted)
    patch = torch.randn(1, 3, 14, 14)
    larger = torch.nn.functional.interpolate(patch, size=(16, 16), mode="bilinear")
    a, b = before.stem.proj(patch.permute(0, 2, 3, 1)), after.stem.proj(larger.permute(0, 2, 3, 1))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- levels


@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_cells_of_levels_are_where_their_stride_says(patch_size):
    """A grid whose cells hold the positions of their own centres, resized, holds those of the levels' cells."""
    grid = patch_size * (torch.arange(20) + 0.5)
    grid = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1)[None]
    layer = ResizePyramid(2, patch_size, {0: 4, 1: 8, 2: 16, 3: 32})
    for index, stride in enumerate((4, 8, 16, 32)):
        side = -(-20 * patch_size // stride)
        level = layer.level(grid, index, (side, side))
        assert level.shape == (1, side, side, 2)
        centres = stride * (torch.arange(side) + 0.5)
        inside = (centres > patch_size / 2) & (centres < 19.5 * patch_size)
        torch.testing.assert_close(level[0, :, 3, 0][inside], centres[inside])
        torch.testing.assert_close(level[0, 2, :, 1][inside], centres[inside])


def test_a_patch_of_14_pixels_sees_an_image_that_it_does_not_fill_as_a_padded_one():
    network = DINOv2(SPEC | dict(pretrain_grid=6), taps=[-1]).eval()
    image = torch.randn(1, 3, 65, 50)
    with torch.no_grad():
        maps, padded = network(image), network(torch.nn.functional.pad(image, (0, 6, 0, 5)))
    for a, b in zip(maps, padded, strict=True):
        torch.testing.assert_close(a, b[:, :, : a.shape[2], : a.shape[3]])


def test_levels_that_are_not_asked_for_are_not_built():
    network = ViT(SPEC | dict(depth=4), pyramid="taps", out_indices=(1, 2))
    assert len(network.blocks) == 3
    assert [*network.pyramid.resizes] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(taps=(0, 1)), "taps=.*pyramid='resize': give 1 or 4"),
        (dict(taps=(0, 1), pyramid="simple"), "give 1 of them"),
        (dict(stem="published"), "a pyramid needs them"),
        (dict(global_blocks=(1,)), "without window_size all blocks are global"),
        (dict(positions="by_scale", frozen_stages="none"), "frozen_stages='none'"),
        (dict(arch=dict(SPEC, num_heads=5)), "32 is not divisible by 5"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_one_line(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ViT(**{"arch": SPEC | dict(depth=4)} | arguments)


# ---- frozen trunks


@pytest.mark.parametrize("family", [ViT, DINOv2, DINOv3])
def test_a_frozen_trunk_keeps_nothing_and_its_pyramid_trains(family):
    network = family(SPEC | dict(depth=4), pyramid="simple", frozen_stages="all").train()
    image = torch.randn(1, 3, 64, 64)
    assert not any(part.training for part in (network.stem, *network.blocks))
    sum(one.sum() for one in network(image)).backward()
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {"pyramid"}
    without = family(SPEC | dict(depth=4), frozen_stages="all").train()
    assert kept_bytes(without, lambda: without(image)) == 0
    assert not without(image)[0].requires_grad


def test_a_parameter_that_somebody_trains_in_a_frozen_trunk_gets_its_gradient():
    network = ViT(SPEC | dict(depth=4), frozen_stages="all").train()
    network.blocks[2].attn.proj.weight.requires_grad_(True)
    sum(one.sum() for one in network(torch.randn(1, 3, 64, 64))).backward()
    assert network.blocks[2].attn.proj.weight.grad.abs().sum() > 0


# ---- random factors of the coordinates of DINOv3


def rescaled(**arguments: object) -> DINOv3:
    return DINOv3(SPEC | dict(depth=4, layer_scale=0.5), rescale_positions=2.0, **arguments)


def angles_of(rotation: Rotation) -> Tensor:
    return torch.atan2(rotation.sin[:, :, 1], rotation.cos.squeeze(1))


def test_coordinates_are_rescaled_in_training_alone_by_a_factor_for_each_batch():
    stem, image = rescaled().stem, torch.randn(2, 48, 64, 3)
    torch.manual_seed(0)
    angles = [angles_of(stem(image)[1]) for _ in range(50)]
    plain = angles_of(stem.eval()(image)[1])
    slow = plain.abs().amax((0, 1)) < 0.5 * torch.pi  # these do not pass a full turn
    factors = [(each[..., slow] / plain[..., slow]).nanmedian() for each in angles]
    for each, factor in zip(angles, factors, strict=True):
        assert torch.allclose(each[..., slow], factor * plain[..., slow], atol=1e-4)
    assert 0.5 <= min(factors) < 0.6
    assert 1.7 < max(factors) <= 2.0
    assert 15 < sum(factor < 1 for factor in factors) < 35  # the logarithm is uniform


def test_a_network_that_is_evaluated_or_frozen_rescales_nothing():
    image = torch.randn(1, 3, 64, 64)
    network = rescaled(frozen_stages="all").eval()
    plain = DINOv3(network.arch).eval()
    for block in plain.blocks:  # so that the positions matter
        torch.nn.init.normal_(block.attn.q.weight, std=0.5)
        torch.nn.init.normal_(block.attn.k.weight, std=0.5)
    network.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected = plain(image)
    for found in (network(image), network.train()(image)):
        assert all(relative_error(one, other) < 1e-5 for one, other in zip(found, expected, strict=True))
    whole = rescaled().train()
    whole.load_state_dict(plain.state_dict())
    assert relative_error(whole(image)[0], expected[0]) > 1e-3
