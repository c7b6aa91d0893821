import os
import re
import subprocess
import sys

import pytest
import torch

from helpers.official import official_state
from helpers.paths import TOOLS
from helpers.runs import run_tool
from helpers.toys import RECORDED
from mm_vitbackbones.backbones import PVT, MiT, PiT, PVTv2
from mm_vitbackbones.checkpoints import CheckpointError, convert_checkpoint, load_pretrained, read_checkpoint
from mm_vitbackbones.checkpoints.recognise import FAMILIES

TOOL = TOOLS / "convert_checkpoint.py"


def build(toy):
    """A backbone with nothing that published files lack."""
    return RECORDED[toy].official()


def skip_without_layout(toy, *names):
    if missing := set(names) - {layout.name for layout in FAMILIES[RECORDED[toy].family.__name__].layouts}:
        pytest.skip(f"{toy} has no layout {', '.join(missing)}")


@pytest.fixture(params=RECORDED)
def toy(request):
    return request.param


@pytest.fixture
def source(tmp_path, toy):
    torch.save(official_state(toy), tmp_path / "official.pth")
    return tmp_path / "official.pth"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("between", "suffix"),
    [
        (["ours"], ".pth"),
        (["ours"], ".safetensors"),  # OpenMMLab's names leave the classifier no room in this format
        (["openmmlab"], ".pth"),
        (["ours", "openmmlab"], ".pth"),
        (["openmmlab", "ours"], ".pth"),
    ],
)
def test_round_trips_are_exact(source, toy, tmp_path, between, suffix, dtype):
    skip_without_layout(toy, *between)
    arch = RECORDED[toy].arch
    original = {k: t.to(dtype) if t.is_floating_point() else t for k, t in torch.load(source).items()}
    torch.save(original, source)
    previous = source
    for i, to in enumerate(between):
        convert_checkpoint(previous, tmp_path / f"{i}{suffix}", to, arch)
        previous = tmp_path / f"{i}{suffix}"
    convert_checkpoint(previous, tmp_path / "again.pth", "official", arch)
    assert same(torch.load(tmp_path / "again.pth"), original)


@pytest.mark.parametrize("to", ["official", "ours", "openmmlab"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_converted_files_load(source, toy, tmp_path, to, suffix):
    skip_without_layout(toy, to)
    convert_checkpoint(source, tmp_path / f"out{suffix}", to, RECORDED[toy].arch)
    expected, backbone = build(toy), build(toy)
    load_pretrained(expected, source)
    report = load_pretrained(backbone, tmp_path / f"out{suffix}")
    assert report.layout == to
    assert same(backbone.state_dict(), expected.state_dict())


def test_our_file_is_the_backbones_own_state_dict(source, toy, tmp_path):
    cls, arch = RECORDED[toy].family, RECORDED[toy].arch
    convert_checkpoint(source, tmp_path / "ours.pth", "ours", arch)
    content = torch.load(tmp_path / "ours.pth")
    build(toy).load_state_dict(content["state_dict"], strict=True)
    assert content["meta"]["family"] == cls.__name__
    assert f"{RECORDED[toy].head}weight" in content["classifier"]


def test_tensors_outside_of_the_backbone_are_named(tmp_path, toy):
    arch = RECORDED[toy].arch
    state = {f"backbone.{key}": tensor for key, tensor in build(toy).state_dict().items()} | {"neck.w": torch.ones(1)}
    torch.save({"state_dict": state, "optimizer": {}}, tmp_path / "detector.pth")
    text = str(convert_checkpoint(tmp_path / "detector.pth", tmp_path / "out.pth", "official", arch))
    assert "left out, as not of the backbone: neck.w, optimizer" in text
    assert "holds no classifier" in text
    backbone = build(toy)
    load_pretrained(backbone, tmp_path / "out.pth")
    assert same(backbone.state_dict(), {k.removeprefix("backbone."): v for k, v in state.items() if k != "neck.w"})


def test_tensors_that_a_layout_cannot_hold_are_named(source, toy, tmp_path):
    skip_without_layout(toy, "openmmlab")
    result = convert_checkpoint(source, tmp_path / "out.safetensors", "openmmlab", RECORDED[toy].arch)
    assert "no room for it: classifier." in str(result)


def test_an_upsampling_stays_in_our_layout(tmp_path):
    state = PiT("ti_distilled", out_indices=(0, 3)).state_dict()
    torch.save(state, tmp_path / "in.pth")
    result = convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth", "official")
    assert result.arch == "ti_distilled"
    assert "no room for it: upsample.weight, upsample.bias" in str(result)
    convert_checkpoint(tmp_path / "out.pth", tmp_path / "again.pth", "ours")
    again = torch.load(tmp_path / "again.pth")["state_dict"]
    assert same(again, {key: tensor for key, tensor in state.items() if not key.startswith("upsample.")})


def test_the_published_archs_are_recognised(tmp_path):
    for backbone, arch in {
        PVT("tiny"): "tiny",
        PVT("large", out_indices=(0,)): "small or medium or large",
        PVTv2("b0", in_channels=4): "b0",
        PVTv2("b2_li", out_indices=(0, 1)): "b2_li",
    }.items():
        torch.save(backbone.state_dict(), tmp_path / "in.pth")
        result = convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth", "openmmlab", force=True)
        assert result.arch == arch
        assert ("no linear attention" in str(result)) == (arch == "b2_li")


def test_twins_are_named_in_the_result(tmp_path):
    for source, other in ((MiT, "huggingface"), (PVTv2, "timm")):
        weights, layouts = source("b5", out_indices=(0,)).state_dict(), FAMILIES[source.__name__]
        for layout in ("official", other):
            torch.save(layouts.layout(layout).to_theirs(weights)[0], tmp_path / "in.pth")
            text = str(convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth", arch="b5", force=True))
            assert ("may also be of PVTv2 b5" in text) == (layout == "official")


def test_a_table_that_is_not_square_stays_in_our_layout(tmp_path):
    state = PVT("tiny").state_dict()
    state["stages.0.position.table"] = state["stages.0.position.table"][:, :28]
    torch.save(state, tmp_path / "in.pth")
    convert_checkpoint(tmp_path / "in.pth", tmp_path / "ours.pth", "ours")
    for to in ("official", "openmmlab"):
        with pytest.raises(CheckpointError, match=f"the {to} layout cannot hold these weights"):
            convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth", to)
    assert not (tmp_path / "out.pth").exists()


def run_alone(*args):
    """In a process that has imported nothing before."""
    environment = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.run([sys.executable, TOOL, *map(str, args)], capture_output=True, text=True, env=environment)


def test_tool_converts_and_overwrites_only_with_force(tmp_path):
    state, _ = FAMILIES["PVTv2"].layout("official").to_theirs(PVTv2("b0").state_dict())
    torch.save(state, tmp_path / "in.pth")
    done = run_alone(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "openmmlab")
    assert done.returncode == 0
    assert "PVTv2 b0" in done.stdout
    written = (tmp_path / "out.pth").read_bytes()

    again = run_tool("convert_checkpoint", tmp_path / "in.pth", tmp_path / "out.pth", "--to", "official")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "out.pth exists" in again.stderr
    assert (tmp_path / "out.pth").read_bytes() == written

    forced = run_tool("convert_checkpoint", tmp_path / "out.pth", tmp_path / "out.pth", "--to", "official", "--force")
    assert forced.returncode == 0
    assert same(read_checkpoint(tmp_path / "out.pth"), state)
    assert {path.name for path in tmp_path.iterdir()} == {"in.pth", "out.pth"}


def toy_with_an_extra_tensor():
    return official_state("pvt") | {"extra.weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (lambda: {"w": torch.ones(1)}, {}, "no network that is known"),
        (lambda: official_state("pvt"), {}, "no published arch.*--arch"),
        (lambda: official_state("pvt"), {"arch": "tiny"}, "is not of arch tiny"),
        (lambda: official_state("pvt"), {"arch": "tny"}, "--arch: PVT has no arch 'tny'"),
        (lambda: official_state("pvt"), {"arch": {"depth": 1}}, "--arch: .*depth"),
        (toy_with_an_extra_tensor, {"arch": RECORDED["pvt"].arch}, r"has no extra\.weight"),
        (lambda: official_state("pvt"), {"to": "jax"}, "no layout 'jax'"),
        (
            lambda: official_state("pit"),
            {"to": "openmmlab", "arch": RECORDED["pit"].arch},
            "PiT has no layout 'openmmlab'",
        ),
        (
            lambda: official_state("coat"),
            {"to": "openmmlab", "arch": RECORDED["coat"].arch},
            "CoaT has no layout 'openmmlab'",
        ),
        (lambda: {"a": 1}, {}, "no state dict"),
    ],
)
def test_unfit_files_are_refused(tmp_path, content, arguments, message):
    torch.save(content(), tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_unwritable_targets_are_refused(source, toy, tmp_path):
    with pytest.raises(CheckpointError, match="no folder"):
        convert_checkpoint(source, tmp_path / "no" / "out.pth", arch=RECORDED[toy].arch)
    with pytest.raises(FileExistsError, match="exists"):
        convert_checkpoint(source, tmp_path, arch=RECORDED[toy].arch)


def test_interrupted_write_leaves_the_old_file(source, toy, tmp_path, monkeypatch):
    (tmp_path / "out.pth").write_bytes(b"precious")

    def fails(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match="No space left"):
        convert_checkpoint(source, tmp_path / "out.pth", arch=RECORDED[toy].arch, force=True)
    assert (tmp_path / "out.pth").read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"official.pth", "out.pth"}


# ---- timm: the names of its networks, and of their forms of features_only

TIMM = ["swin", "pvt_v2", "pit", "coat", "coat_lite"]
IN_FEATURES = {
    "swin": ("layers.", "layers_"),
    "pvt_v2": ("stages.", "stages_"),
    "pit": ("", "body."),
    "coat": ("", "model."),
    "coat_lite": ("", "model."),
}
"""The beginning of a name in timm's network, and in that of its levels."""


@pytest.mark.parametrize("toy", TIMM)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timms_layout_is_written_and_read_back(toy, suffix, tmp_path):
    arch, state = RECORDED[toy].arch, official_state(toy)
    torch.save(state, tmp_path / "official.pth")
    text = str(convert_checkpoint(tmp_path / "official.pth", tmp_path / f"timm{suffix}", "timm", arch))
    timms = read_checkpoint(tmp_path / f"timm{suffix}")
    assert all(isinstance(tensor, torch.Tensor) for tensor in timms.values())  # as timm's load_state_dict takes it
    assert ("no room for it" in text) == (toy == "swin")  # norms of levels
    convert_checkpoint(tmp_path / f"timm{suffix}", tmp_path / "again.pth", "official", arch)
    again = torch.load(tmp_path / "again.pth")
    lost = r"norm\d\.(weight|bias)|.*\.attn_mask" if toy == "swin" else ""
    assert same(again, {key: tensor for key, tensor in state.items() if not re.fullmatch(lost, key)})


@pytest.mark.parametrize("toy", TIMM)
def test_the_file_of_timms_features_only_loads(toy, tmp_path):
    torch.save(official_state(toy), tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "timm.pth", "timm", RECORDED[toy].arch)
    whole, level = IN_FEATURES[toy]
    features = {
        level + key if not whole else key.replace(whole, level, 1) if key.startswith(whole) else key: tensor
        for key, tensor in torch.load(tmp_path / "timm.pth").items()
        if not key.startswith(("head", "norm.", "aggregate"))
    }
    expected, backbone = build(toy), build(toy)
    load_pretrained(expected, torch.load(tmp_path / "timm.pth"))
    load_pretrained(backbone, features)
    fresh = "stages.0.norm.weight" if toy == "swin" else ""
    assert same(
        {key: tensor for key, tensor in backbone.state_dict().items() if not (fresh and ".norm." in key)},
        {key: tensor for key, tensor in expected.state_dict().items() if not (fresh and ".norm." in key)},
    )
    torch.save(features, tmp_path / "features.pth")
    assert (
        convert_checkpoint(tmp_path / "features.pth", tmp_path / "t.pth", "timm", RECORDED[toy].arch).target == "timm"
    )


@pytest.mark.parametrize("family", ["PVT", "MiT"])
def test_a_family_that_timm_has_not_is_refused(family):
    with pytest.raises(CheckpointError, match=f"{family} has no layout 'timm'; it has official"):
        FAMILIES[family].layout("timm")


def test_what_the_official_code_stores_and_timm_computes_is_named(tmp_path):
    state = {key: tensor for key, tensor in official_state("swin").items() if not key.startswith("norm")}
    assert "layers.0.blocks.1.attn_mask" in state
    torch.save(state, tmp_path / "in.pth")
    text = str(convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.pth", "timm", RECORDED["swin"].arch))
    assert "no room for it: " in text
    assert "classifier.stages.0.blocks.1.attn_mask" in text
    assert not any(key.endswith("attn_mask") for key in torch.load(tmp_path / "out.pth"))
