"""DPT's head against what its authors' code computed, against MMSegmentation's, and with backbones of this package."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.official import Fixture, load_fixture, relative_error
from helpers.paths import DATA

pytest.importorskip("mmseg")

from mmseg.models.decode_heads import DPTHead as MMSegDPTHead

from mm_vitbackbones.backbones import DINOv2, DINOv3, ViT
from mm_vitbackbones.backbones.columnar import Tap
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES, HEADS, find_layout
from mm_vitbackbones.errors import ArgumentError, CheckpointMismatch
from mm_vitbackbones.heads.dpt import DPTHead
from mm_vitbackbones.registry import MODELS

pytestmark = pytest.mark.mmseg
FAMILY = HEADS["DPTHead"]
TOY = dict(in_channels=32, channels=16, widths=(8, 16, 24, 32), num_classes=5, dropout_ratio=0.0)


def make_head(**arguments) -> DPTHead:
    torch.manual_seed(0)
    return randomised(DPTHead(**TOY | arguments))


def randomised(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.2)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
    return module.eval()


def taps_of(tokens: Tensor, grid) -> list[tuple[Tensor, Tensor]]:
    """Recorded tokens (4, B, 1 + h * w, C), class token first."""
    return [(tap[:, 1:].transpose(1, 2).unflatten(2, tuple(grid)), tap[:, 0]) for tap in tokens]


def recorded() -> tuple[Fixture, list[list[int]]]:
    with np.load(DATA / "dpt_head.npz") as file:
        return load_fixture("dpt_head"), json.loads(str(file["arch"]))["grids"]


def make_taps(size=(4, 6), batch: int = 2, dim: int = 32) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(batch, dim, *size), torch.randn(batch, dim)) for _ in range(4)]


# ---- what it computes


@pytest.mark.filterwarnings("ignore:When align_corners=True")  # MMSegmentation's, of every such resize
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_levels_paths_and_scores_of_the_official_head(grad):
    (fixture, grids), head = recorded(), make_head()
    load_pretrained(head, fixture.state)
    for tokens, grid, features in zip(fixture.inputs, grids, fixture.features, strict=True):
        taps = taps_of(tokens, grid)
        with torch.set_grad_enabled(grad):
            levels = head.levels(taps)
            paths = head.paths(levels)
            # The head's last upsampling is that of the segmentor, to the size of the image: 16 times the grid.
            scores = head.predict_by_feat(head(taps), [dict(img_shape=tuple(16 * side for side in grid))])
        for ours, theirs in zip([*levels, *reversed(paths), scores], features, strict=True):
            assert ours.shape == theirs.shape
            assert relative_error(ours, theirs) <= 1e-5


def test_training_gives_finite_gradients_to_every_parameter():
    (fixture, grids), head = recorded(), make_head()
    load_pretrained(head, fixture.state)
    head.train()
    taps = [[part.requires_grad_() for part in tap] for tap in taps_of(fixture.inputs[1], grids[1])]
    head(taps).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert all(part.grad.abs().sum() > 0 for tap in taps for part in tap)


@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_equals_the_head_of_mmseg_in_scores_and_every_gradient(readout, training):
    theirs = MMSegDPTHead(
        in_channels=[32] * 4,
        channels=16,
        embed_dims=32,
        post_process_channels=[8, 16, 24, 32],
        readout_type=readout,
        num_classes=5,
        dropout_ratio=0.0,
        input_transform="multiple_select",
        in_index=[0, 1, 2, 3],
    )
    theirs, head = randomised(theirs).double().train(training), make_head(readout=readout).double().train(training)
    assert load_pretrained(head, theirs.state_dict()).layout == "openmmlab"
    taps = [(map.double().requires_grad_(), token.double().requires_grad_()) for map, token in make_taps()]
    leaves = [part for map, token in taps for part in ((map,) if readout == "ignore" else (map, token))]
    results = []
    for each in (theirs, head):
        scores = each(taps)
        names, parameters = zip(*each.named_parameters(), strict=True)
        gradients = torch.autograd.grad(scores.square().sum(), (*parameters, *leaves))
        of_parameters = dict(zip(names, gradients, strict=False))
        results.append((scores, of_parameters, gradients[len(names) :]))
    (a, their_gradients, c), (x, our_gradients, z) = results
    torch.testing.assert_close(x, a)
    for mine, other in zip(z, c, strict=True):
        torch.testing.assert_close(mine, other)
    renamed, unknown = FAMILY.layout("openmmlab").to_ours(their_gradients)
    assert not unknown
    assert renamed.keys() == our_gradients.keys()
    for name, gradient in renamed.items():
        torch.testing.assert_close(our_gradients[name], gradient, msg=name, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 4), (37, 37)], ids=str)
def test_any_grid_of_patches_gives_eight_times_its_cells(size):
    head = make_head()
    with torch.no_grad():
        assert head(make_taps(size, batch=1)).shape == (1, 5, 8 * size[0], 8 * size[1])


def test_entries_of_a_batch_are_independent():
    head, taps = make_head(), make_taps((3, 5))
    with torch.no_grad():
        whole = head(taps)
        alone = head([(map[1:], token[1:]) for map, token in taps])
    torch.testing.assert_close(whole[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_near_to_full_precision(dtype):
    head, taps = make_head(), make_taps()
    with torch.no_grad():
        full = head(taps)
        with torch.autocast("cpu", dtype=dtype):
            half = head(taps)
    assert half.dtype == dtype
    assert relative_error(half.float(), full) < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_a_path_has_the_grid_of_the_next_level_where_a_side_is_odd():
    head = make_head(readout="ignore")
    paths = head.paths([torch.randn(1, width, *size) for width, size in zip((8, 16, 24, 32), SIZES, strict=True)])
    assert [tuple(path.shape[2:]) for path in paths] == [(40, 56), *SIZES[:3]]


SIZES = [(20, 28), (10, 14), (5, 7), (3, 4)]


# ---- with backbones

TRUNK = dict(dim=32, num_heads=2, depth=4)
PAIRS = dict(pyramid=None, with_class_token=True)


@pytest.mark.parametrize("family", [ViT, DINOv2, DINOv3])
@pytest.mark.parametrize("size", [(64, 96), (71, 50)], ids=str)
def test_reads_a_backbone_of_any_patch_on_an_image_of_any_size(family, size):
    backbone, head = family(TRUNK, pyramid=None, with_class_token=True).eval(), make_head()
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        taps, levels = backbone(image), backbone.features(image)
        rows, columns = (-(-side // backbone.patch_size) for side in size)
        assert head(taps).shape == (1, 5, 8 * rows, 8 * columns)
    for tap, level in zip(taps, levels, strict=True):
        assert torch.equal(tap.map, level.grid.permute(0, 3, 1, 2))
        assert torch.equal(tap.class_token, level.class_tokens[:, 0])


def test_head_of_mmseg_reads_such_a_backbone_too():
    backbone = ViT(TRUNK, pyramid=None, with_class_token=True)
    head = MMSegDPTHead(
        in_channels=[32] * 4,
        channels=16,
        embed_dims=32,
        post_process_channels=[8, 16, 24, 32],
        readout_type="project",
        num_classes=5,
        input_transform="multiple_select",
        in_index=[0, 1, 2, 3],
    )
    assert head(backbone(torch.randn(2, 3, 64, 64))).shape == (2, 5, 32, 32)


def test_a_readout_without_class_tokens_reads_maps_and_pairs():
    head, taps = make_head(readout="ignore"), make_taps()
    with torch.no_grad():
        assert torch.equal(head(taps), head([map for map, _ in taps]))


@pytest.mark.parametrize(
    ("arguments", "inputs", "message"),
    [
        ({}, [map for map, _ in make_taps()], "readout='project' needs the class tokens.*with_class_token=True"),
        (dict(readout="add"), [map for map, _ in make_taps()], "readout='add' needs the class tokens"),
        ({}, make_taps(dim=24), "in_channels=.32, 32, 32, 32., and got a map of 24 channels"),
        ({}, [*make_taps()[:3], make_taps((2, 3))[0]], "maps of one grid.*pyramid=None"),
    ],
    ids=["maps", "maps_added", "channels", "pyramid"],
)
def test_maps_that_do_not_suit_the_head_are_one_line(arguments, inputs, message):
    with pytest.raises(ArgumentError, match=message):
        make_head(**arguments)(inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(in_channels=[32, 32]), r"in_channels=\[32, 32\]: give 4"),
        (dict(widths=(8,)), r"widths=\[8\]: give 4"),
        (dict(in_index=(0, 1)), "in_index=.*: give 4"),
        (dict(readout="concat"), "readout='concat': give 'ignore', 'add' or 'project'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_make_no_head_are_one_line(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        make_head(**arguments)


@pytest.mark.parametrize(
    "head",
    [
        dict(type="FCNHead", in_channels=32, num_convs=1, in_index=3),
        dict(type="UPerHead", in_channels=[32] * 4, in_index=[0, 1, 2, 3]),
        dict(type="SETRUPHead", in_channels=32, in_index=3),
        dict(type="mm_vitbackbones.SegFormerHead", in_channels=[32] * 4),
    ],
    ids=lambda head: head["type"],
)
def test_other_heads_refuse_pairs_in_one_line(head):
    from mm_vitbackbones import libraries

    libraries.use("mmseg")
    backbone = ViT(TRUNK, pyramid=None, with_class_token=True)
    built = MODELS.build(dict(head, channels=8, num_classes=5))
    with pytest.raises(ArgumentError, match="reads maps, and the backbone has with_class_token=True"):
        built(backbone(torch.randn(2, 3, 64, 64)))


def test_a_pair_is_still_a_pair():
    tap = Tap(torch.ones(1), torch.zeros(1))
    map, token = tap
    assert (map, token) == (tap.map, tap.class_token)
    assert not hasattr(tap, "nothing")
    assert not hasattr(tap, "shape")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(pyramid="simple"), "give pyramid=None as well"),
        (dict(pyramid=None, window_size=2), "with windows or relative positions there is no class token"),
    ],
    ids=str,
)
def test_class_tokens_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ViT(TRUNK, with_class_token=True, **arguments)


# ---- files


def test_official_file_is_recognised_and_comes_back_whole():
    fixture = load_fixture("dpt_head")
    trunk = {f"pretrained.model.{name}": torch.ones(2) for name in ("cls_token", "head.weight", "blocks.0.norm1.bias")}
    found = find_layout(fixture.state | trunk, [FAMILY])
    assert found.layout.name == "official"
    inside, outside = found.split(fixture.state | trunk)
    assert {*outside} == {*trunk}
    ours, unknown = found.layout.to_ours(inside)
    again, nameless = found.layout.to_theirs(ours)
    assert not unknown
    assert not nameless
    assert again.keys() == fixture.state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in fixture.state.items())
    report = load_pretrained(make_head(), {"model": fixture.state | trunk, "optimizer": {}})
    unused = {name for name in fixture.state if re.match(r"auxlayer|scratch\.refinenet4\.resConfUnit1", name)}
    assert {*report.left_out} == unused
    assert not report.unbuilt
    assert not report.fresh


@pytest.mark.parametrize("layout", FAMILY.layouts, ids=lambda layout: layout.name)
@pytest.mark.parametrize("readout", ["ignore", "project"])
def test_every_layout_is_recognised_and_holds_every_weight(layout, readout):
    head, taps = make_head(readout=readout), make_taps()
    theirs, nameless = layout.to_theirs(head.state_dict())
    assert not nameless
    other = make_head(readout=readout)
    nn.init.zeros_(other.conv_seg.weight)
    whole = {f"decode_head.{name}": tensor for name, tensor in theirs.items()} | {"backbone.x": torch.ones(1)}
    published = theirs | {"backbone.x": torch.ones(1)}  # next to a backbone that has our names already
    for file in (theirs, whole, published) if layout.besides else (theirs, whole):
        assert load_pretrained(other, file).layout == layout.name
        with torch.no_grad():
            assert torch.equal(other(taps), head(taps))


def hybrid() -> dict[str, Tensor]:
    state = load_fixture("dpt_head").state
    return {"pretrained.model.patch_embed.backbone.stem.conv.weight": torch.zeros(2)} | {
        name: tensor for name, tensor in state.items() if not name.startswith("pretrained.act_postprocess1")
    }


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (lambda: load_fixture("dpt_depth_head").state, "the depth form of DPT, which has no classes"),
        (lambda: {"decode_head.conv_depth.head.0.weight": torch.zeros(2)}, "the depth form of DPT"),
        (hybrid, "DPT-Hybrid, whose trunk is a ResNet and a ViT"),
    ],
    ids=["depth", "depth_of_dinov2", "hybrid"],
)
def test_weights_of_its_relatives_are_refused_by_name(state, what):
    head = make_head()
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with pytest.raises(CheckpointMismatch, match=f"looks like {what}.*, and the head is DPTHead"):
        load_pretrained(head, state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def test_the_trunk_of_a_hybrid_is_refused_by_name():
    state = {f"pretrained.model.{name}": tensor for name, tensor in load_fixture("vit_deit").state.items()}
    network = ViT(dict(dim=32, num_heads=2, depth=3, pretrain_grid=4), pyramid=None, taps=[-1])
    load_pretrained(network, state)
    with pytest.raises(CheckpointMismatch, match="a hybrid of a ResNet and a ViT"):
        load_pretrained(network, state | {"pretrained.model.patch_embed.backbone.stem.conv.weight": torch.zeros(2)})


def test_weights_of_another_head_are_refused_with_its_arguments():
    with pytest.raises(CheckpointMismatch, match=r"channels=16, num_classes=5, widths=\(8, 16, 24, 32\)"):
        load_pretrained(make_head(num_classes=7), load_fixture("dpt_head").state)
    with pytest.raises(CheckpointMismatch, match="readout='project'"):
        load_pretrained(make_head(readout="ignore"), load_fixture("dpt_head").state)


@pytest.mark.parametrize(("trunk", "layout"), [("pretrained.model.", "official"), ("dpt.", "huggingface")])
def test_published_file_of_a_whole_network_fills_a_segmentor(trunk, layout):
    from mm_vitbackbones import libraries
    from mm_vitbackbones.cli.weights import load_weights

    libraries.use("mmseg")
    model = MODELS.build(
        dict(
            type="mm_vitbackbones.BandedEncoderDecoder",
            backbone=dict(type="mm_vitbackbones.ViT", arch=TRUNK, positions="bilinear", **PAIRS),
            decode_head=dict(TOY, type="mm_vitbackbones.DPTHead"),
            test_cfg=dict(mode="whole"),
        )
    ).eval()
    names = FAMILIES["ViT"].layout(layout)
    published = {trunk + key: tensor for key, tensor in names.to_theirs(model.backbone.state_dict())[0].items()}
    # Classifiers have these besides.
    final = "norm." if layout == "official" else "layernorm."
    published |= {f"{trunk}{final}{part}": torch.ones(32) for part in ("weight", "bias")}
    if layout == "official":
        published |= {f"{trunk}head.weight": torch.ones(10, 32), f"{trunk}head.bias": torch.ones(10)}
    head = FAMILY.layout(layout).to_theirs(model.decode_head.state_dict())[0]
    published = {key: tensor.clone() for key, tensor in (published | head).items()}
    image = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        expected = model(image)
        for parameter in model.parameters():
            parameter.zero_()
        load_weights(model, {"state_dict": published}, "dpt.pt")
        assert torch.equal(model(image), expected)


def test_init_cfg_loads(tmp_path):
    state = load_fixture("dpt_head").state
    torch.save(state, tmp_path / "dpt.pt")
    head = make_head(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "dpt.pt")))
    head.init_weights()
    assert torch.equal(head.conv_seg.weight, state["scratch.output_conv.4.weight"])


def test_parameters_are_those_of_dpt_large():
    with torch.device("meta"):
        head = DPTHead(1024, widths=(256, 512, 1024, 1024), num_classes=150)
    count = sum(parameter.numel() for parameter in head.parameters())
    # The authors' coarsest fusion has a first unit that nothing uses.
    assert count + 2 * (256 * 256 * 9 + 2 * 256) == 39_640_726
