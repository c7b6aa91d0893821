"""XCiT against the recorded networks of its authors, its batch norms, and its files."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from helpers.official import load_fixture, relative_error
from helpers.toys import COLUMN, TOYS
from mm_vitbackbones.backbones import XCiT
from mm_vitbackbones.backbones.xcit import Arch, XCiTBlock
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES, find_layout, looks_like
from mm_vitbackbones.errors import ArgumentError, CheckpointMismatch
from mm_vitbackbones.ops import context, covariance, memory

FAMILY = FAMILIES["XCiT"]
NAMES = ("xcit_p16", "xcit_p8")
names = pytest.mark.parametrize("name", NAMES)


def recorded(name: str, **arguments: object) -> XCiT:
    return XCiT(dict(dim=32, num_heads=4, depth=4, patch_size=int(name[6:])), **arguments)


@names
@pytest.mark.parametrize("mode", ["inference", "eval", "train"])
def test_levels_of_the_official_networks(name, mode):
    fixture, network = load_fixture(name), recorded(name, norm_eval=True)
    load_pretrained(network, fixture.state)
    network.train(mode == "train")
    for image, features in zip(fixture.inputs, fixture.features, strict=True):
        with torch.set_grad_enabled(mode != "inference"):
            maps = network(image)
        for level, feature in zip(maps, features, strict=True):
            assert relative_error(level, feature) <= 1e-5
    if mode == "train":
        sum(level.square().sum() for level in maps).backward()
        assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in network.parameters())


@names
@pytest.mark.parametrize("with_cp", ["nothing", "all_but_attention", "all"])
def test_gradients_are_those_of_the_written_out_network(name, with_cp, monkeypatch):
    fixture, found = load_fixture(name), []
    image = torch.randn(2, 3, 80, 48)
    for fast in (True, False):
        network = recorded(name, with_cp=with_cp).train()
        load_pretrained(network, fixture.state)
        if not fast:
            monkeypatch.setattr(covariance, "attend", covariance.reference)
        maps = network(image)
        sum(level.square().mean() for level in maps).backward()
        found.append({parameter: p.grad for parameter, p in network.named_parameters()})
    ours, expected = found
    for parameter, gradient in expected.items():
        # Some are zero except for rounding: those of biases before a norm.
        assert (ours[parameter] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-6, parameter


# ---- batch norms


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("with_cp", ["all_but_attention", "all"])
def test_what_is_computed_again_counts_its_batch_once(with_cp):
    torch.manual_seed(0)
    plain = XCiT(COLUMN).train()
    saving = XCiT(COLUMN, with_cp=with_cp).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 64)
    for network in (plain, saving):
        sum(level.sum() for level in network(image)).backward()
    expected, before = statistics(plain), statistics(XCiT(COLUMN))
    for name, buffer in statistics(saving).items():
        torch.testing.assert_close(buffer, expected[name], msg=name)
        assert name.endswith("var") or not torch.equal(buffer, before[name])
    assert saving.blocks[0].lpi.norm.momentum == plain.blocks[0].lpi.norm.momentum


def test_norm_eval_keeps_statistics_and_training_moves_them():
    image = torch.randn(2, 3, 64, 64)
    for norm_eval in (True, False):
        network = XCiT(COLUMN, norm_eval=norm_eval).train()
        before = statistics(network)
        network(image)
        moved = [name for name, buffer in statistics(network).items() if not torch.equal(buffer, before[name])]
        assert len(moved) == (0 if norm_eval else len(before))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_synchronised_batch_norms_take_the_place_of_all(mode):
    torch.manual_seed(0)
    network = XCiT(COLUMN).train(mode == "train")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    counts = [
        sum(isinstance(part, kind) for part in converted.modules()) for kind in (nn.SyncBatchNorm, nn.BatchNorm2d)
    ]
    assert counts == [4 + 4 + 1, 0]
    assert converted.state_dict().keys() == network.state_dict().keys()
    image = torch.randn(2, 3, 48, 80)
    for a, b in zip(converted(image), network(image), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_stages_keep_their_statistics():
    network = XCiT(COLUMN, frozen_stages=2).train()
    before = statistics(network)
    network(torch.randn(2, 3, 64, 64))
    kept = {name for name, buffer in statistics(network).items() if torch.equal(buffer, before[name])}
    assert kept == {name for name in before if name.startswith(("stem.", "blocks.0.", "blocks.1."))}


# ---- what it is made of


def test_positions_stretch_with_the_grid():
    position = XCiT(COLUMN).stem.position
    short, long = position.waves(4, torch.device("cpu")), position.waves(8, torch.device("cpu"))
    torch.testing.assert_close(short, long[1::2])
    assert short.shape == (4, 32)
    torch.testing.assert_close(short[-1, :2], torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch=COLUMN | dict(patch_size=14)), "patches of 8 or 16 pixels"),
        (dict(arch=COLUMN | dict(dim=12)), "a multiple of 8"),
        (dict(arch="small_12"), "did you mean 'small_12_p"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        XCiT(**arguments)


@pytest.mark.parametrize(("arch", "taps"), [("nano_12_p8", (3, 5, 7, 11)), ("large_24_p16", (7, 11, 15, 23))])
def test_the_authors_taps_are_the_default(arch, taps):
    with torch.device("meta"):
        assert XCiT(arch).taps == taps


# ---- files


def classifier(name: str) -> dict[str, torch.Tensor]:
    """An official classifier's file: without a pyramid, with class attention."""
    state = {key: tensor for key, tensor in load_fixture(name).state.items() if not key.startswith("fpn")}
    joint = {f"attn.qkv.{part}": (96, 32) if part == "weight" else (96,) for part in ("weight", "bias")}
    shapes = {"gamma1": (32,), "norm1.weight": (32,), "mlp.fc1.weight": (128, 32), "mlp.fc2.bias": (32,), **joint}
    extra = {f"cls_attn_blocks.{i}.{key}": torch.randn(shape) for i in (0, 1) for key, shape in shapes.items()}
    rest = {"cls_token": torch.randn(1, 1, 32), "norm.weight": torch.randn(32), "norm.bias": torch.randn(32)}
    return state | extra | rest


@names
def test_a_detectors_file_holds_the_pyramid(name):
    state = load_fixture(name).state
    report = load_pretrained(recorded(name), {"state_dict": {f"backbone.{k}": t for k, t in state.items()}, "meta": {}})
    assert (report.layout, report.fresh, report.left_out) == ("official", (), ())
    ours, unknown = FAMILY.layout("official").to_ours(state)
    assert not unknown
    again = FAMILY.layout("official").to_theirs(ours)[0]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


@names
@pytest.mark.parametrize("layout", ["official", "timm", "openmmlab", "ours"])
def test_a_classifiers_file_of_each_layout_gives_all_but_the_pyramid(name, layout):
    official, wanted = FAMILY.layout("official"), FAMILY.layout(layout)
    state = classifier(name)
    ours, unknown = official.to_ours(state)
    theirs, nameless = wanted.to_theirs(ours)
    assert not unknown
    assert not nameless
    found = find_layout(theirs)
    assert (found.family.name, found.layout.name) == ("XCiT", layout)
    back, unknown = wanted.to_ours(theirs)
    assert not unknown
    again = official.to_theirs(back)[0]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    if layout in ("timm", "openmmlab"):
        prefix = {"timm": "cls_attn_blocks", "openmmlab": "ca_layers"}[layout]
        assert theirs[f"{prefix}.0.attn.q.weight"].shape == (32, 32)
        assert not any(key.startswith(prefix) and ".attn.qkv." in key for key in theirs)

    network = recorded(name, pyramid=None)
    report = load_pretrained(network, {"model": theirs})
    assert not report.fresh
    assert {key.partition(".")[0] for key in report.unbuilt} == {"norm"}
    fixture = load_fixture(name)
    with torch.no_grad():
        levels = network.eval()(fixture.inputs[1])
    plain = 2 - NAMES.index(name)  # the level that the pyramid leaves as it is
    assert relative_error(levels[plain], fixture.features[1][plain]) <= 1e-5
    report = load_pretrained(recorded(name), theirs)
    assert report.fresh
    assert all(key.startswith("pyramid.") for key in report.fresh)


def test_files_of_look_alikes_are_refused():
    vit, xcit = TOYS["vit"](), TOYS["xcit"]()
    with pytest.raises(CheckpointMismatch, match="looks like a ViT of no published arch"):
        load_pretrained(xcit, vit.state_dict())
    with pytest.raises(CheckpointMismatch, match="looks like a XCiT of no published arch"):
        load_pretrained(vit, load_fixture("xcit_p16").state)


def test_patches_of_another_size_are_refused():
    with pytest.raises(CheckpointMismatch, match=r"stem|patch_embed\.proj"):
        load_pretrained(recorded("xcit_p8"), load_fixture("xcit_p16").state)


@pytest.mark.parametrize("arch", ["tiny_12_p16", "tiny_24_p8"])
def test_a_published_arch_is_known_by_its_weights(arch):
    with torch.device("meta"):
        state = XCiT(arch, pyramid="resize").state_dict()
    assert looks_like(FAMILY.layout("official").to_theirs(state)[0]) == f"XCiT {arch}"


def test_the_authors_file_of_a_whole_segmentor_is_taken(tmp_path):
    pytest.importorskip("mmseg")
    from helpers.recipes import build, load
    from mm_vitbackbones.cli.weights import load_weights

    models = [build(load("fpn_xcit_t12_p16_ade20k"), "cpu") for _ in range(2)]
    expected = models[0].state_dict()
    backbone = {key.removeprefix("backbone."): x for key, x in expected.items() if key.startswith("backbone.")}
    theirs, nameless = FAMILY.layout("official").to_theirs(backbone)
    assert not nameless
    heads = {key: x for key, x in expected.items() if not key.startswith("backbone.")}
    names = {
        "backbone.fpn1.0.weight",
        "backbone.pos_embeder.token_projection.weight",
        "neck.lateral_convs.0.conv.weight",
    }
    state = {f"backbone.{key}": x for key, x in theirs.items()} | heads
    assert names < state.keys()
    load_weights(models[1], {"state_dict": state, "meta": {"iter": 80000}}, tmp_path / "sem_fpn_xcit_tiny_12_p16.pth")
    found = models[1].state_dict()
    assert all(torch.equal(found[key], x) for key, x in expected.items())


def test_records_of_dense_files_are_those_of_their_recipes():
    from mm_vitbackbones.checkpoints.published import files_of

    names = ("coco_mask_rcnn", "ade20k_fpn", "ade20k_upernet")
    found = {arch: [*files_of("XCiT", arch)] for arch in XCiT.archs}
    dense = {arch for arch, known in found.items() if {*names} & {*known}}
    sizes = ("tiny_12", "small_12", "small_24", "medium_24")
    assert dense == {f"{size}_p{patch}" for size in sizes for patch in (16, 8)}
    for arch in dense:
        assert found[arch][0] == "imagenet1k"  # the default
        assert found[arch][-3:] == [*names]
        urls = [files_of("XCiT", arch)[name].url.rpartition("/xcit/")[2] for name in names]
        assert urls == [f"{kind}_xcit_{arch}.pth" for kind in ("coco/maskrcnn", "ade/sem_fpn", "ade/upernet")]


def nodes(y: Tensor) -> Counter[str]:
    """The functions of a backward pass, without those that add up the gradients of parameters."""
    seen, found = {y.grad_fn}, [y.grad_fn]
    for node in found:  # which grows
        inner = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= inner
        found += inner
    return Counter(node.name() for node in found if "AccumulateGrad" not in node.name())


@pytest.mark.parametrize("recompute", [memory.NOTHING, memory.ALL_BUT_ATTENTION, memory.ALL])
def test_norms_and_convolutions_of_a_block_are_parts_of_other_functions_on_cuda(recompute: str) -> None:
    torch.manual_seed(0)
    block, x = XCiTBlock(Arch(16, 2, 1), 1e-6, 0.0), torch.randn(2, 4, 6, 16, requires_grad=True)
    inputs = (x, *block.parameters())
    expected = torch.autograd.grad(block(x).square().sum(), inputs)
    block.recompute = recompute
    with context.pretend_device("cuda"):
        y = block(x)
        found = nodes(y)
        gradients = torch.autograd.grad(y.square().sum(), inputs)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
    if recompute == memory.NOTHING:
        ours = {"_ChainedBackward": 2, "_SublayerBackward": 1}
        assert found == ours | {"NativeBatchNormBackward0": 1, "PermuteBackward0": 2}
