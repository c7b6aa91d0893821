"""CaiT against the recorded network of its authors, and what it alone has: layer scale by depth, class attention."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.official import load_fixture, relative_error
from helpers.toys import COLUMN, TOYS
from mm_vitbackbones.backbones import CaiT
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES, find_layout, looks_like
from mm_vitbackbones.errors import ArgumentError, CheckpointMismatch
from mm_vitbackbones.ops import talking_heads

SPEC = dict(dim=32, num_heads=4, depth=3, pretrain_grid=4)
FAMILY = FAMILIES["CaiT"]
recorded = partial(CaiT, SPEC, taps=(2,), pyramid=None, stem="published")


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("rows", [3, 10**6])
def test_patches_of_the_official_network(grad, rows, monkeypatch):
    monkeypatch.setattr(talking_heads, "FEWEST_QUERIES", 1)
    monkeypatch.setattr(talking_heads, "BAND_BYTES", 4 * 16 * 4 * rows)
    fixture, network = load_fixture("cait"), recorded().eval()
    load_pretrained(network, fixture.state)
    with torch.set_grad_enabled(grad):
        (level,) = network.features(fixture.inputs[0])
    assert relative_error(level.grid.flatten(1, 2), fixture.features[0][0]) <= 1e-5
    assert level.class_tokens is None


@pytest.mark.parametrize("with_cp", ["nothing", "all_but_attention", "all"])
def test_gradients_in_bands_are_those_of_the_written_out_network(with_cp, monkeypatch):
    fixture = load_fixture("cait")
    image = torch.randn(2, 3, 80, 112)
    monkeypatch.setattr(talking_heads, "FEWEST_QUERIES", 1)
    found = []
    for in_bands in (True, False):
        network = recorded(with_cp=with_cp).train()
        load_pretrained(network, fixture.state)
        monkeypatch.setattr(talking_heads, "BAND_BYTES", 4 * 35 * 4 * 9)
        if not in_bands:
            monkeypatch.setattr(talking_heads, "_mixes_in_bands", lambda *_: False)
        (out,) = network(image)
        out.square().sum().backward()
        found.append((out.detach(), {name: p.grad for name, p in network.named_parameters()}))
    (a, of_a), (b, of_b) = found
    assert relative_error(a, b) <= 1e-5
    for name, gradient in of_b.items():
        if name.endswith("proj_l.bias"):  # which the softmax does not see
            assert of_a[name].abs().max() == 0
        else:
            assert relative_error(of_a[name], gradient) <= 1e-5, name


def class_attention(state: dict[str, Tensor], patches: Tensor) -> Tensor:
    """The official class token after the final norm, of patches (B, N, C), as equations 5 to 8 say."""
    dim, heads = patches.shape[-1], 4

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    cls = state["cls_token"].expand(len(patches), -1, -1)
    for i in range(2):
        prefix = f"blocks_token_only.{i}"
        tokens = norm(torch.cat((cls, patches), 1), f"{prefix}.norm1")
        q, k, v = (linear(tokens, f"{prefix}.attn.{part}").unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv")
        shares = (q[:, :, :1] @ k.mT * (dim // heads) ** -0.5).softmax(-1)
        out = linear((shares @ v).transpose(1, 2).flatten(2), f"{prefix}.attn.proj")
        cls = cls + state[f"{prefix}.gamma_1"] * out
        hidden = F.gelu(linear(norm(cls, f"{prefix}.norm2"), f"{prefix}.mlp.fc1"))
        cls = cls + state[f"{prefix}.gamma_2"] * linear(hidden, f"{prefix}.mlp.fc2")
    return norm(cls, "norm")


def test_class_attention_gives_the_class_token_of_the_last_block():
    fixture = load_fixture("cait")
    network = recorded(taps=(1, 2), class_attention=True, final_norm=True).eval()
    report = load_pretrained(network, fixture.state)
    assert report.left_out == ("head.weight", "head.bias")
    assert not report.unbuilt
    image = fixture.inputs[0]
    with torch.no_grad():
        first, last = network.features(image)
        raw = network.features(image, blocks=[0, -1])
    assert first.class_tokens is None
    assert raw[0].class_tokens is None
    expected = class_attention(fixture.state, fixture.features[0][0])
    assert relative_error(last.class_tokens, expected) <= 1e-5
    assert relative_error(network.norm(raw[1].class_tokens), expected) <= 1e-5


def test_class_attention_trains_by_its_tokens_and_is_frozen_with_the_last_block():
    network = CaiT(COLUMN, class_attention=True).train()
    network.features(torch.randn(2, 3, 64, 64))[-1].class_tokens.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.get_layer_depth("class_attention.token") == (4, 6)
    frozen = CaiT(COLUMN, class_attention=True, frozen_stages="all").train()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.features(torch.randn(1, 3, 64, 64))[-1].class_tokens.requires_grad
    assert any(
        p.requires_grad for p in CaiT(COLUMN, class_attention=True, frozen_stages=3).class_attention.parameters()
    )


def test_class_attention_without_the_last_block_is_one_line():
    with pytest.raises(ArgumentError, match=r"class_attention=True, and no level of out_indices=\(0, 1\) is made of"):
        CaiT(COLUMN, class_attention=True, out_indices=(0, 1))


def test_without_class_attention_nothing_of_it_is_built():
    names = {name.split(".")[0] for name, _ in CaiT(COLUMN).named_parameters()}
    assert names == {"stem", "blocks"}


@pytest.mark.parametrize(("depth", "initial"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (48, 1e-6)])
def test_layer_scale_begins_at_the_papers_value_for_the_depth(depth, initial):
    with torch.device("meta"):
        assert CaiT.resolve_arch(COLUMN | dict(depth=depth)).initial_scale == initial
    block = CaiT(COLUMN | dict(depth=depth), out_indices=(0,), taps=[0] if depth < 4 else None, class_attention=False)
    assert block.blocks[0].ls1.gamma.eq(initial).all()
    assert block.blocks[0].ls2.gamma.eq(initial).all()


def test_released_configurations_have_their_own_value():
    released = {name: arch.initial_scale for name, arch in CaiT.archs.items()}
    assert {name for name, value in released.items() if value == 1e-6} == {"s36_384", "m36_384", "m48_448"}
    assert {value for value in released.values() if value != 1e-6} == {1e-5}


# ---- files


def test_files_go_both_ways_and_are_named():
    state = load_fixture("cait").state
    found = find_layout({f"module.{key}": tensor for key, tensor in state.items()})
    assert (found.family.name, found.layout.name, found.prefix) == ("CaiT", "official", "module.")
    official = FAMILY.layout("official")
    ours, unknown = official.to_ours(state)
    assert not unknown
    assert official is FAMILY.layout("timm")
    assert FAMILY.layout("ours").to_theirs(ours)[0] == ours
    again, nameless = official.to_theirs(ours)
    assert not nameless
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    for layout in FAMILY.layouts:
        network = recorded(class_attention=True, final_norm=True)
        report = load_pretrained(network, {"model": layout.to_theirs(ours)[0]})
        assert (report.layout, report.fresh) == (layout.name, ())
        assert torch.equal(network.class_attention.blocks[1].attn.k.weight, state["blocks_token_only.1.attn.k.weight"])


def test_what_class_attention_needs_is_left_out_by_name_and_never_invented():
    state = load_fixture("cait").state
    report = load_pretrained(recorded(), state)
    left = {key for key in report.unbuilt if key.startswith("class_attention.")}
    assert len(left) == 1 + sum(key.startswith("blocks_token_only.") for key in state)
    assert "left out, as not built: class_attention.token" in str(report)
    del state["blocks_token_only.1.attn.k.weight"]
    with pytest.raises(CheckpointMismatch, match=r"1 missing: blocks_token_only\.1\.attn\.k\.weight"):
        load_pretrained(recorded(class_attention=True), state)


@pytest.mark.parametrize("other", ["vit", "dinov2"])
def test_files_of_look_alikes_are_refused_both_ways(other):
    network, toy = CaiT(TOYS["cait"].arch), TOYS[other]()
    name = type(toy).__name__
    with pytest.raises(CheckpointMismatch, match=f"looks like a {name} of no published arch"):
        load_pretrained(network, toy.state_dict())
    for state in (network.state_dict(), load_fixture("cait").state):
        with pytest.raises(CheckpointMismatch, match="looks like a CaiT of no published arch"):
            load_pretrained(toy, state)


@pytest.mark.parametrize("arch", ["xxs24", "xxs36_384", "m48_448"])
def test_a_published_arch_is_known_by_its_weights(arch):
    with torch.device("meta"):
        state = CaiT(arch, class_attention=True).state_dict()
    assert looks_like(FAMILY.layout("official").to_theirs(state)[0]) == f"CaiT {arch}"


def test_blocks_of_another_block_count_are_refused():
    with pytest.raises(CheckpointMismatch, match=r"unexpected: blocks\.2\."):
        load_pretrained(CaiT(SPEC | dict(depth=2), taps=(1,), pyramid=None), load_fixture("cait").state)
