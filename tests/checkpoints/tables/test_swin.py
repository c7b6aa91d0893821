"""What the files of Swin have and others have not: stored indices and masks, two orders of merging, fresh norms."""

import gzip
import json

import pytest
import torch
import torch.nn.functional as F

from helpers.official import load_fixture, relative_error
from helpers.paths import DATA
from helpers.toys import TOYS
from mm_vitbackbones.backbones import Swin
from mm_vitbackbones.checkpoints import CheckpointError, CheckpointMismatch, load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES, find_layout, looks_like

FAMILY = FAMILIES["Swin"]
NORMS = [f"stages.{i}.norm.{part}" for i in range(4) for part in ("weight", "bias")]
TOY = TOYS["swin"].arch

# The names and shapes of each published classifier file, buffers included. Made from timm's networks (whose merging
# stands one stage later, and whose head is head.fc), with the two buffers that the official code adds to them.
OFFICIAL = json.loads(gzip.decompress((DATA / "swin_official.json.gz").read_bytes()))


def fixture_state():
    """A detector's state at toy size: names as official, with the norms of levels."""
    return load_fixture("swin").state


def classifier_state():
    state = {key: tensor for key, tensor in fixture_state().items() if not key.startswith("norm")}
    return state | {"norm.weight": torch.ones(64), "norm.bias": torch.zeros(64), "head.weight": torch.ones(10, 64)}


def renamed(state, layout):
    ours, unknown = FAMILY.layout("official").to_ours(state)
    assert not unknown
    return FAMILY.layout(layout).to_theirs(ours)[0]


@pytest.mark.parametrize("arch", Swin.archs)
def test_the_published_files_fit_by_name_and_shape(arch):
    state = {key: torch.empty(shape, device="meta") for key, shape in OFFICIAL[arch].items()}
    assert find_layout(state).layout.name == "official"
    weights = {key: tensor for key, tensor in state.items() if not key.endswith("_index")}
    ours, unknown = FAMILY.layout("official").to_ours(weights)
    assert not unknown
    with torch.device("meta"):
        backbone = Swin(arch)
    given = {key: tensor.shape for key, tensor in ours.items() if not key.startswith("classifier.")}
    expected = {key: tensor.shape for key, tensor in backbone.state_dict().items() if key not in NORMS}
    assert given == expected
    assert looks_like(weights) == f"Swin {arch}"
    back, nameless = FAMILY.layout("official").to_theirs(ours)
    assert not nameless
    assert {key: list(tensor.shape) for key, tensor in back.items()} == OFFICIAL[arch]


@pytest.mark.parametrize("layout", ["official", "timm", "timm-features", "huggingface", "huggingface-5", "openmmlab"])
def test_a_classifiers_file_leaves_the_norms_of_levels_fresh(layout):
    backbone = TOYS["swin"].official().eval()
    torch.nn.init.constant_(backbone.stages[1].norm.weight, 3.0)
    report = load_pretrained(backbone, renamed(classifier_state(), layout))
    assert report.layout == layout
    assert [*report.fresh] == NORMS
    assert torch.equal(backbone.stages[1].norm.weight.data, torch.full((16,), 3.0))
    fixture = load_fixture("swin")
    with torch.no_grad():
        for i, stage in enumerate(backbone.stages):
            stage.norm.weight.copy_(fixture.state[f"norm{i}.weight"])
            stage.norm.bias.copy_(fixture.state[f"norm{i}.bias"])
        for output, feature in zip(backbone(fixture.inputs[1]), fixture.features[1], strict=True):
            assert relative_error(output, feature) <= 1e-5


@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone."])
def test_norms_of_levels_that_are_not_returned_are_left_out(prefix):
    backbone = Swin(arch=TOY, out_indices=(1, 3))
    report = load_pretrained(backbone, {prefix + key: tensor for key, tensor in fixture_state().items()})
    assert not report.fresh
    assert "left out, as not built: stages.0.norm.weight, stages.0.norm.bias, stages.2.norm.weight" in str(report)
    # A detector of levels 1 to 3 has no norm0; it is fresh where level 0 is asked for.
    state = {prefix + key: tensor for key, tensor in fixture_state().items() if not key.startswith("norm0")}
    report = load_pretrained(Swin(arch=TOY), state)
    assert report.fresh == ("stages.0.norm.weight", "stages.0.norm.bias")


@pytest.mark.parametrize(("window", "rows"), [(12, 529), (4, 49)])
def test_bias_tables_of_another_window_are_resized(window, rows):
    backbone, state = Swin(arch=dict(TOY, window_size=window)), fixture_state()
    report = load_pretrained(backbone, state)
    assert len(report.adapted) == 8
    name = "blocks.1.attn.relative_position_bias_table"
    assert report.adapted[3] == f"stages.1.{name} resized from 169 to {rows} relative positions"
    side = 2 * window - 1
    table = state[f"layers.3.{name}"].T.view(1, 4, 13, 13)
    expected = F.interpolate(table, size=(side, side), mode="bicubic", align_corners=False).view(4, -1).T
    torch.testing.assert_close(backbone.stages[3].blocks[1].attn.relative_position_bias_table.data, expected)


def test_tables_of_other_heads_are_not_resized():
    state = fixture_state() | {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(529, 2)}
    del state["layers.0.blocks.0.attn.relative_position_index"]
    with pytest.raises(CheckpointMismatch, match=r"bias_table \(529, 2\) for \(169, 1\)"):
        load_pretrained(Swin(arch=TOY), state)


@pytest.mark.parametrize("arch", ["base", "base_w12"])
def test_archs_are_distinguished_by_their_window(arch):
    state = Swin(arch, out_indices=(0, 1)).state_dict()
    assert looks_like(state) == f"Swin {arch}"
    report = load_pretrained(Swin("base", out_indices=(0, 1)), state)
    assert len(report.adapted) == (4 if arch == "base_w12" else 0)


def test_an_index_of_another_order_is_refused():
    state = fixture_state()
    state["layers.2.blocks.1.attn.relative_position_index"] = state[
        "layers.2.blocks.1.attn.relative_position_index"
    ].T.contiguous()
    with pytest.raises(CheckpointError, match=r"stages\.2\.blocks\.1\.attn\.relative_position_index is not that of"):
        load_pretrained(Swin(arch=TOY), state)


def test_the_stored_index_is_restored():
    state = fixture_state()
    back = renamed(state, "official")
    indices = [key for key in state if key.endswith("_index")]
    assert len(indices) == 8
    assert all(torch.equal(back[key], state[key]) for key in indices)


def test_openmmlab_merges_channel_by_channel():
    torch.manual_seed(0)
    state = fixture_state()
    theirs = renamed(state, "openmmlab")
    grid = torch.randn(1, 6, 8, 8)
    unfolded = F.unfold(grid.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    weight, norm = theirs["stages.0.downsample.reduction.weight"], "stages.0.downsample.norm"
    expected = F.layer_norm(unfolded, (32,), theirs[f"{norm}.weight"], theirs[f"{norm}.bias"]) @ weight.T
    backbone = Swin(arch=TOY)
    load_pretrained(backbone, theirs)
    merged = backbone.stages[1].patch_embed(grid)
    torch.testing.assert_close(merged.flatten(1, 2), expected, rtol=1e-5, atol=1e-6)
    # And the official order is (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
    official = torch.cat([grid[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
    norm = "layers.0.downsample.norm"
    normed = F.layer_norm(official, (32,), state[f"{norm}.weight"], state[f"{norm}.bias"])
    torch.testing.assert_close(merged, normed @ state["layers.0.downsample.reduction.weight"].T, rtol=1e-5, atol=1e-6)


def test_a_map_of_one_window_is_shifted_as_in_the_official_detectors():
    """The official classifier, and timm, do not shift there; the official detectors and segmentors do, and decide."""
    backbone = TOYS["swin"].official().eval()
    load_pretrained(backbone, fixture_state())
    fixture = load_fixture("swin")
    assert max(fixture.features[0][3].shape[2:]) <= backbone.arch.window_size
    last = backbone.stages[3].blocks
    with torch.no_grad():
        shifted = backbone(fixture.inputs[0])
        for block in last:
            for module in block.modules():
                if hasattr(module, "shift"):
                    module.shift = 0
        plain = backbone(fixture.inputs[0])
    for level in range(3):
        assert torch.equal(plain[level], shifted[level])
    assert relative_error(shifted[3], fixture.features[0][3]) <= 1e-5
    assert relative_error(plain[3], fixture.features[0][3]) > 1e-3
