import argparse
import logging
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import DefaultScope
from torch import nn

from helpers.official import official_state, relative_error
from helpers.paths import DATA
from helpers.toys import RECORDED, SPEC, TOYS
from mm_vitbackbones.backbones import PVT, CoaT, MiT, PiT, PVTv2, Swin
from mm_vitbackbones.checkpoints import (
    CheckpointError,
    CheckpointMismatch,
    initialiser,
    layout_of,
    load_pretrained,
)
from mm_vitbackbones.checkpoints.initialiser import Pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES, looks_like
from mm_vitbackbones.checkpoints.surgery import adapt_in_channels
from mm_vitbackbones.errors import ArgumentError

CASES = [(name, layout.name) for name, toy in RECORDED.items() for layout in FAMILIES[toy.family.__name__].layouts]
for layout in ("timm", "timm-features"):
    CASES.remove(("swin", layout))  # which has no norms of levels: see tables/test_swin.py
CASES.remove(("mvit_v2", "timm"))  # for the same reason: see backbones/test_mvit_v2.py


def build(toy, **kwargs):
    return RECORDED[toy].official(**kwargs)


def renamed(toy, layout):
    family = FAMILIES[RECORDED[toy].family.__name__]
    return family.layout(layout).to_theirs(family.layout("official").to_ours(official_state(toy))[0])[0]


def check_loaded(backbone, toy):
    """The backbone gives what the official network gave."""
    with np.load(DATA / f"{toy}.npz") as arrays, torch.no_grad():
        maps = backbone.eval()(torch.from_numpy(arrays["input0"]))
        for i, level in zip(backbone.out_indices, maps, strict=True):
            feature = torch.from_numpy(arrays[f"feature0_{i - (toy == 'pit')}"])
            assert relative_error(level, feature) <= 1e-5


@pytest.fixture
def unchanged():
    """A check that what the backbone held is what it holds."""

    class Watch:
        def __call__(self, backbone):
            self.backbone, self.before = backbone, {k: v.clone() for k, v in backbone.state_dict().items()}
            return backbone

    watch = Watch()
    yield watch
    after = watch.backbone.state_dict()
    assert all(torch.equal(after[key], watch.before[key]) for key in watch.before)


@pytest.mark.parametrize(("toy", "layout"), CASES)
def test_each_layout_gives_the_official_features(toy, layout):
    backbone = build(toy)
    report = load_pretrained(backbone, renamed(toy, layout))
    check_loaded(backbone, toy)
    assert report.layout == layout
    assert report.parameters == sum(p.numel() for p in backbone.parameters())
    assert set(report.loaded) == set(backbone.state_dict())
    assert not report.fresh
    assert bool(report.left_out) == (layout != "openmmlab")


def hf_classifier(state):
    return {key if key.startswith("classifier.") else f"pvt.{key}": tensor for key, tensor in state.items()}


WRAPPERS = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "nested": lambda state: {"state_dict": {"model": state}},
    "ema next to it": lambda state: {"model": state, "model_ema": {k: torch.zeros_like(v) for k, v in state.items()}},
    "module": lambda state: {f"module.{k}": v for k, v in state.items()},
    "state_dict_ema": lambda state: {"state_dict_ema": state, "epoch": 3},
    "student and teacher": lambda state: {
        "student": {f"module.backbone.{k}": torch.zeros_like(v) for k, v in state.items()},
        "teacher": {f"module.backbone.{k}": v for k, v in state.items()},
    },
    "compiled": lambda state: {"model": {f"_orig_mod.{k}": v for k, v in state.items()}},
    "compiled backbone": lambda state: (
        {f"backbone._orig_mod.{k}": v for k, v in state.items()} | {"neck._orig_mod.w": torch.ones(1)}
    ),
    "detector": lambda state: {
        "state_dict": {f"backbone.{k}": v for k, v in state.items()}
        | {"neck.w": torch.ones(1), "bbox_head.w": torch.ones(1)}
    },
    "ddp detector": lambda state: (
        {f"module.backbone.{k}": v for k, v in state.items()} | {"module.neck.w": torch.ones(1)}
    ),
}


@pytest.mark.parametrize("layout", ["official", "ours", "openmmlab", "huggingface"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_and_prefixes_are_opened(tmp_path, wrapper, layout):
    backbone = build("pvt")
    torch.save(WRAPPERS[wrapper](renamed("pvt", layout)), tmp_path / "file.pth")
    report = load_pretrained(backbone, tmp_path / "file.pth")
    check_loaded(backbone, "pvt")
    assert ("neck" in str(report)) == ("detector" in wrapper or wrapper == "compiled backbone")
    assert ("were taken" in str(report)) == (wrapper in ("ema next to it", "student and teacher"))
    assert ("optimizer" in str(report)) == (wrapper == "state_dict")


def test_published_form_of_hugging_face_loads():
    backbone = build("pvt")
    report = load_pretrained(backbone, hf_classifier(renamed("pvt", "huggingface")))
    check_loaded(backbone, "pvt")
    assert "classifier.weight" in report.left_out
    assert not report.outside


DECODE_HEADS = {
    "official": ("linear_c4.proj.weight", "linear_fuse.conv.weight", "linear_fuse.bn.weight", "linear_pred.weight"),
    "openmmlab": ("convs.0.conv.weight", "fusion_conv.conv.weight", "conv_seg.weight"),
    "huggingface": ("linear_c.0.proj.weight", "linear_fuse.weight", "batch_norm.weight", "classifier.weight"),
    "huggingface-5": ("linear_projections.0.proj.weight", "batch_norm.weight", "classifier.weight"),
}


@pytest.mark.parametrize("layout", DECODE_HEADS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_whole_segformer_gives_its_encoder(layout, prefix):
    encoder = {key: t for key, t in renamed("mit", layout).items() if not key.startswith(("head.", "classifier."))}
    own = "segformer." if layout.startswith("huggingface") else "backbone."
    head = {f"{prefix}decode_head.{key}": torch.ones(1) for key in DECODE_HEADS[layout]}
    backbone = build("mit")
    report = load_pretrained(backbone, {"state_dict": {f"{prefix}{own}{k}": t for k, t in encoder.items()} | head})
    check_loaded(backbone, "mit")
    assert (report.layout, report.outside, report.left_out) == (layout, tuple(head), ())
    assert f"not of the backbone: decode_head ({len(head)})" in str(report)


def test_safetensors_load(tmp_path):
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in renamed("pvt_v2", "timm").items()}, tmp_path / "model.safetensors")
    backbone = build("pvt_v2")
    load_pretrained(backbone, str(tmp_path / "model.safetensors"))
    check_loaded(backbone, "pvt_v2")


@pytest.mark.parametrize("kind", ["Pretrained", "mm_vitbackbones.Pretrained", PretrainedInit, Pretrained])
@pytest.mark.parametrize("alone", [True, False])
def test_init_cfg_loads_strictly_alone_or_in_a_list_by_a_name_or_a_class(tmp_path, kind, alone):
    state = official_state("pvt_v2")
    file = dict(type=kind, checkpoint=str(tmp_path / "file.pth"))
    # In a list MMEngine would load what it can, and what comes after it would write over it.
    backbone = build("pvt_v2", init_cfg=file if alone else [file, dict(type="Constant", layer="LayerNorm", val=3.0)])
    torch.save({key: state[key] for key in state if key != "norm1.weight"}, tmp_path / "file.pth")
    with pytest.raises(CheckpointMismatch, match=r"1 missing: norm1\.weight"):
        backbone.init_weights()
    torch.save(state, tmp_path / "file.pth")
    backbone.init_weights()
    check_loaded(backbone, "pvt_v2")
    assert backbone.is_init
    assert backbone.init_cfg == (file if alone else [file, dict(type="Constant", layer="LayerNorm", val=3.0)])


def test_a_file_of_init_cfg_is_loaded_once_and_its_lack_is_reported(tmp_path, caplog, monkeypatch):
    torch.save(official_state("pvt_v2"), tmp_path / "file.pth")
    file = dict(type="Pretrained", checkpoint=str(tmp_path / "file.pth"))
    reads = []
    monkeypatch.setattr(initialiser, "load_pretrained", lambda *given: reads.append(given) or load_pretrained(*given))
    logger = MMLogger.get_instance("init_cfg")
    logger.addHandler(caplog.handler)
    image = torch.rand(1, 3, 32, 32)

    def warned(backbone):
        caplog.clear()
        for _ in range(2):
            backbone(image)
            backbone.features(image)
        return [record.getMessage() for record in caplog.records if "random weights" in record.getMessage()]

    said = warned(build("pvt_v2", init_cfg=file))
    assert len(said) == 1
    assert "call init_weights() first" in said[0]
    for init_cfg in (file, [dict(type="Constant", layer="Linear", val=0.5), file]):
        backbone = build("pvt_v2", init_cfg=init_cfg)
        reads.clear()
        backbone.init_weights()  # by hand
        backbone.init_weights()
        detector = BaseModule()
        detector.backbone = backbone
        detector.init_weights()  # as a runner does
        assert len(reads) == 1
        check_loaded(backbone, "pvt_v2")
        assert not warned(backbone)
    assert not warned(build("pvt_v2"))
    for load in (
        lambda one: one.load_state_dict(backbone.state_dict()),
        lambda one: load_pretrained(one, file["checkpoint"]),
    ):
        other = build("pvt_v2", init_cfg=file)
        load(other)
        assert not warned(other)


def test_a_prefix_chooses_one_of_several_networks(tmp_path):
    state = official_state("pvt_v2")
    both = {f"student.backbone.{key}": torch.zeros_like(tensor) for key, tensor in state.items()}
    torch.save(both | {f"teacher.backbone.{key}": tensor for key, tensor in state.items()}, tmp_path / "file.pth")
    file = dict(type="Pretrained", checkpoint=str(tmp_path / "file.pth"), map_location="cpu")
    backbone = build("pvt_v2", init_cfg=dict(file, prefix="teacher."))
    backbone.init_weights()
    check_loaded(backbone, "pvt_v2")
    with pytest.raises(CheckpointError, match=r"begins with prefix='teacherr\.'; did you mean 'teacher\.'"):
        build("pvt_v2", init_cfg=dict(file, prefix="teacherr.")).init_weights()
    with pytest.raises(CheckpointError, match=r"holds 2 backbones"):
        build("pvt_v2", init_cfg=file).init_weights()
    with pytest.raises(ArgumentError, match="no argument 'checkpoints'; did you mean 'checkpoint'"):
        build("pvt_v2", init_cfg=dict(type="Pretrained", checkpoints="x.pth"))


@pytest.mark.parametrize("scope", [None, "mmengine"])
def test_init_cfg_loads_whatever_the_default_scope(tmp_path, scope):
    torch.save(official_state("pvt_v2"), tmp_path / "file.pth")
    backbone = build("pvt_v2", init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "file.pth")})
    with DefaultScope.overwrite_default_scope(scope):
        backbone.init_weights()
    check_loaded(backbone, "pvt_v2")


def test_report_is_one_line(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        "mm_vitbackbones.checkpoints.loading.print_log",
        lambda text, logger=None, level=logging.INFO: lines.append(text),
    )
    backbone = build("pvt", arch=SPEC | {"pretrain_grid": 24}, in_channels=1, out_indices=(0, 2))
    torch.save({k: v.half() for k, v in official_state("pvt").items()}, tmp_path / "file.pth")
    report = load_pretrained(backbone, tmp_path / "file.pth")
    (line,) = lines
    assert line == str(report)
    assert "\n" not in line
    for part in (
        "file.pth (official layout): all tensors",
        f"{report.parameters:,} parameters",
        "fresh: none",
        "stages.0.patch_embed.proj.weight adapted from 3 to 1 input channels",
        "stages.2.position.table resized from 4x4 to 6x6",
        "tensors cast from float16 to float32",
        "head.weight",
        "cls_token",
        "stages that are not built: 3",
    ):
        assert part in line


# ---- what is made to fit


def test_a_position_table_of_another_grid_is_resized():
    backbone = build("pvt", arch=SPEC | {"pretrain_grid": 32})
    state = official_state("pvt")
    report = load_pretrained(backbone, state)
    assert len(report.adapted) == 4
    table = state["pos_embed1"].reshape(1, 16, 16, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(table, size=(32, 32), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(backbone.stages[0].position.table.data, expected)


def test_pits_table_is_resized_bicubically():
    backbone, state = build("pit", arch=RECORDED["pit"].arch | {"pretrain_grid": 12}), official_state("pit")
    report = load_pretrained(backbone, state)
    assert report.adapted == ("stem.position.table resized from 7x7 to 12x12",)
    expected = F.interpolate(state["pos_embed"], size=(12, 12), mode="bicubic", align_corners=False)
    torch.testing.assert_close(backbone.stem.position.table.data, expected.permute(0, 2, 3, 1))


def test_a_table_that_is_not_square_comes_in_our_layout_only(unchanged):
    state = build("pvt").state_dict()
    state["stages.0.position.table"] = state["stages.0.position.table"][:, :8]
    report = load_pretrained(build("pvt"), state)
    assert report.adapted == ("stages.0.position.table resized from 8x16 to 16x16",)
    with pytest.raises(CheckpointError, match=r"\(1, 128, 8\).*square"):
        load_pretrained(unchanged(build("pvt")), official_state("pvt") | {"pos_embed1": torch.zeros(1, 128, 8)})


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
def test_adapted_stem_gives_the_same_for_equal_channels(channels):
    weight = torch.randn(8, 3, 4, 4)
    adapted = adapt_in_channels(weight, torch.Size((8, channels, 4, 4)))
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(
        F.conv2d(image.expand(1, channels, 16, 16), adapted), F.conv2d(image.expand(1, 3, 16, 16), weight)
    )
    if channels % 3 == 0:
        assert torch.equal(adapted[:, :3], (weight * (3 / channels)))
    if channels == 1:
        torch.testing.assert_close(adapted, weight.sum(1, keepdim=True))


@pytest.mark.parametrize("toy", RECORDED)
def test_a_backbone_of_other_channels_loads(toy):
    backbone = build(toy, in_channels=5)
    report = load_pretrained(backbone, official_state(toy))
    stem = "stem.proj" if toy == "pit" else "stages.0.patch_embed.proj"
    assert report.adapted == (f"{stem}.weight adapted from 3 to 5 input channels",)


def test_only_an_rgb_stem_is_adapted(unchanged):
    state = build("pvt_v2", in_channels=4).state_dict()
    with pytest.raises(CheckpointMismatch, match=r"patch_embed\.proj\.weight \(8, 4, 7, 7\) for \(8, 5, 7, 7\)"):
        load_pretrained(unchanged(build("pvt_v2", in_channels=5)), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_cast(dtype):
    backbone = build("pvt_v2")
    report = load_pretrained(backbone, {key: tensor.to(dtype) for key, tensor in official_state("pvt_v2").items()})
    count = len(backbone.state_dict())
    assert report.cast == (f"{count} tensors cast from {str(dtype)[6:]} to float32",)
    assert all(p.dtype == torch.float32 for p in backbone.parameters())


def test_stages_that_are_not_built_are_left_out():
    backbone = build("pvt_v2", out_indices=(0, 1))
    report = load_pretrained(backbone, official_state("pvt_v2"))
    check_loaded(backbone, "pvt_v2")
    assert {key.split(".")[1] for key in report.unbuilt} == {"2", "3"}


def test_an_upsampling_that_no_published_file_holds_stays_fresh():
    backbone = build("pit", stem="aligned", out_indices=(0, 1, 2, 3))
    before = {key: tensor.clone() for key, tensor in backbone.upsample.state_dict().items()}
    report = load_pretrained(backbone, official_state("pit"))
    assert report.fresh == ("upsample.weight", "upsample.bias")
    assert all(torch.equal(before[key], tensor) for key, tensor in backbone.upsample.state_dict().items())
    # Files of ours hold it; a backbone without level 0 does not build it.
    state = {key: tensor + 1 for key, tensor in backbone.state_dict().items()}
    assert not load_pretrained(backbone, state).fresh
    assert torch.equal(backbone.upsample.bias, before["bias"] + 1)
    report = load_pretrained(build("pit"), state)
    assert report.unbuilt == ("upsample.weight", "upsample.bias")
    assert "left out, as not built: upsample.weight, upsample.bias" in str(report)


@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, 2), (1, 2), (3,)])
def test_parallel_blocks_load_with_any_levels(out_indices):
    backbone = build("coat", out_indices=out_indices)
    report = load_pretrained(backbone, official_state("coat"))
    check_loaded(backbone, "coat")
    assert bool(report.unbuilt) == (out_indices != (0, 1, 2, 3))
    again = build("coat", out_indices=out_indices)
    assert not load_pretrained(again, backbone.state_dict()).unbuilt
    with pytest.raises(CheckpointMismatch, match=r"missing: "):
        load_pretrained(build("coat"), backbone.state_dict())


def test_frozen_parameters_are_loaded_and_stay_frozen():
    backbone = build("pvt", frozen_stages=2)
    load_pretrained(backbone, official_state("pvt"))
    check_loaded(backbone, "pvt")
    assert not backbone.stages[1].position.table.requires_grad


# ---- what is refused, with the backbone as it was


def test_missing_and_unexpected_keys_are_refused(unchanged):
    state = official_state("pvt_v2")
    state["block1.0.attn.w.weight"] = state.pop("block1.0.attn.q.bias")
    message = r"1 missing: block1\.0\.attn\.q\.bias; 1 unexpected: block1\.0\.attn\.w\.weight"
    with pytest.raises(CheckpointMismatch, match=message):
        load_pretrained(unchanged(build("pvt_v2")), state)


@pytest.mark.parametrize("layout", ["openmmlab", "huggingface", "timm", "ours"])
def test_any_missing_key_is_refused(layout):
    state = renamed("pvt_v2", layout)
    backbone = build("pvt_v2")
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    kinds = {re.sub(r"\d+", "#", key): key for key in state if "head" not in key and "classifier" not in key}
    assert len(kinds) >= 18
    for key in kinds.values():
        rest = {name: tensor for name, tensor in state.items() if name != key}
        with pytest.raises(CheckpointMismatch):
            load_pretrained(backbone, rest)
    assert all(torch.equal(before[key], tensor) for key, tensor in backbone.state_dict().items())


def test_missing_keys_have_the_files_own_names(unchanged):
    state = {f"backbone.{k}": v for k, v in renamed("pvt", "openmmlab").items()}
    del state["backbone.layers.1.1.1.attn.attn.in_proj_weight"]
    with pytest.raises(CheckpointMismatch, match=r"missing: backbone\.layers\.1\.1\.1\.attn\.attn\.in_proj_weight\."):
        load_pretrained(unchanged(build("pvt")), state)


def test_half_of_a_joined_pair_is_refused(unchanged):
    state = renamed("pvt", "huggingface")
    del state["encoder.block.0.1.attention.self.key.weight"]
    with pytest.raises(CheckpointMismatch, match=r"1 missing: encoder\.block\.0\.1\.attention\.self\.key\.weight"):
        load_pretrained(unchanged(build("pvt")), state)


@pytest.mark.parametrize(
    ("backbone", "state", "message"),
    [
        (lambda: PVT("tiny"), lambda: PVT("small").state_dict(), r"looks like PVT small .*Give arch='small'"),
        (
            lambda: PVTv2("b2", out_indices=(0, 1)),
            lambda: PVTv2("b2_li", out_indices=(0, 1)).state_dict(),
            r"looks like PVTv2 b2_li .*Give arch='b2_li'",
        ),
        (
            lambda: PVTv2("b0"),
            lambda: PVTv2("b1").state_dict(),
            r"looks like PVTv2 b1 .*not PVTv2 b0.*of another shape",
        ),
        (lambda: PVTv2("b0"), lambda: PVT("tiny").state_dict(), "looks like PVT tiny, and the backbone is PVTv2 b0"),
        (
            lambda: PiT("ti", out_indices=(0,)),
            lambda: PiT("ti_distilled", out_indices=(0,)).state_dict(),
            r"looks like PiT ti_distilled .*not PiT ti: .*class_tokens \(1, 2, 64\).*Give arch='ti_distilled'",
        ),
        (lambda: PVT("tiny"), lambda: PiT("xs", out_indices=(1, 2)).state_dict(), "looks like PiT xs, and"),
        (
            lambda: CoaT("lite_tiny"),
            lambda: CoaT("mini", out_indices=(1,)).state_dict(),
            r"looks like CoaT mini .*not CoaT lite_tiny.*Give arch='mini'",
        ),
        (lambda: PVT("tiny"), lambda: {"layer1.0.conv1.weight": torch.ones(1)}, "looks like a ResNet"),
        (lambda: PVT("tiny"), lambda: {"blocks.0.attn.qkv.weight": torch.ones(1)}, "looks like a ViT"),
        (
            lambda: PVT("tiny"),
            lambda: FAMILIES["Swin"].layout("timm").to_theirs(Swin("small").state_dict())[0],
            "looks like Swin small",
        ),
        (lambda: PVT("tiny"), lambda: {"encoder.weight": torch.ones(1)}, "no network that is known"),
    ],
)
def test_refusals_say_what_the_file_looks_like(unchanged, backbone, state, message):
    with pytest.raises(CheckpointMismatch, match=message):
        load_pretrained(unchanged(backbone()), state())


@pytest.mark.parametrize(("theirs", "ours"), [(MiT, PVTv2), (PVTv2, MiT)], ids=["mit", "pvt_v2"])
@pytest.mark.parametrize("arch", ["b0", "b1", "b2", "b3", "b4"])
@pytest.mark.parametrize("layout", ["official", "openmmlab", "ours"])
def test_mit_and_pvt_v2_are_distinguished(unchanged, theirs, ours, arch, layout):
    with torch.device("meta"):
        weights = theirs(arch).state_dict()
    state, _ = FAMILIES[theirs.__name__].layout(layout).to_theirs(weights)
    assert looks_like(state) == f"{theirs.__name__} {arch}"
    state = {f"backbone.{key}": torch.zeros_like(tensor, device="cpu") for key, tensor in state.items()}
    message = rf"looks like {theirs.__name__} {arch} \({layout} layout\), which is not {ours.__name__} b0: "
    if arch == "b0":  # the hidden maps of two times two blocks differ, by two linears and a convolution
        message += "20 of another shape"
    with pytest.raises(CheckpointMismatch, match=message):
        load_pretrained(unchanged(ours("b0")), state)


@pytest.mark.parametrize("cls", [MiT, PVTv2])
def test_twins_are_named_where_their_keys_are_equal(cls):
    with torch.device("meta"):
        weights = cls("b5").state_dict()
    for layout in FAMILIES[cls.__name__].layouts:
        name = looks_like(layout.to_theirs(weights)[0])
        if layout.name in ("official", "openmmlab", "ours"):
            assert name == "MiT b5 (or PVTv2 b5, which has the same names and shapes)"
        else:
            assert name == f"{cls.__name__} b5"


def test_weights_of_twins_load_into_both(tmp_path):
    torch.save(PVTv2("b5", out_indices=(0,)).state_dict(), tmp_path / "file.pth")
    for backbone, twin in ((MiT("b5", out_indices=(0,)), "PVTv2 b5"), (PVTv2("b5", out_indices=(0,)), "MiT b5")):
        assert f"may also be of {twin}" in str(load_pretrained(backbone, tmp_path / "file.pth"))
    huggingface, _ = FAMILIES["MiT"].layout("huggingface").to_theirs(MiT("b5", out_indices=(0,)).state_dict())
    assert "may as well" not in str(load_pretrained(MiT("b5", out_indices=(0,)), huggingface))


def test_long_lists_are_shortened(unchanged):
    with pytest.raises(CheckpointMismatch, match=r"\.\.\. \(\d+ more\)") as caught:
        load_pretrained(unchanged(build("pvt")), PVT("tiny", out_indices=(0, 1, 2)).state_dict())
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_weights_are_refused(unchanged, value):
    state = official_state("pvt")
    state["block2.0.norm1.weight"] = torch.full((16,), value)
    with pytest.raises(CheckpointError, match=r"NaN or infinite.*stages\.1\.blocks\.0\.norm1\.weight"):
        load_pretrained(unchanged(build("pvt")), state)


def test_values_too_large_for_a_narrow_type_are_refused(unchanged):
    state = official_state("pvt")
    state["block2.0.norm1.weight"] = torch.full((16,), 1e6)
    with pytest.raises(CheckpointError, match="too large"):
        load_pretrained(unchanged(build("pvt").half()), state)


def test_two_backbones_in_one_file_are_refused(unchanged):
    state = official_state("pvt")
    both = {f"{who}.{key}": tensor for who in ("student", "teacher") for key, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"2 backbones, under the prefixes 'student\.', 'teacher\.'"):
        load_pretrained(unchanged(build("pvt")), both)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no state dict"),
        ({"epoch": 3, "lr": 0.1}, r"no state dict \(it holds epoch, lr\)"),
        ({"model": {}}, "no state dict"),
        ([torch.ones(1)], "no state dict"),
        (torch.ones(3), "no state dict"),
        (nn.Parameter(torch.ones(2, 2)), "no state dict"),
    ],
)
def test_files_without_weights_are_refused(unchanged, tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=rf"file\.pth: holds {message}"):
        load_pretrained(unchanged(build("pvt")), tmp_path / "file.pth")


@pytest.mark.parametrize("broken", [torch.ones(8).to_sparse(), torch.ones(8, device="meta")])
def test_tensors_without_plain_values_are_refused(unchanged, broken):
    with pytest.raises(CheckpointError, match=r"block1\.0\.norm1\.weight is quantized, sparse, nested or without data"):
        load_pretrained(unchanged(build("pvt")), official_state("pvt") | {"block1.0.norm1.weight": broken})


def test_integer_tensors_are_refused(unchanged):
    with pytest.raises(CheckpointMismatch, match=r"of another shape or type: block1\.0\.norm1\.weight"):
        load_pretrained(
            unchanged(build("pvt")), official_state("pvt") | {"block1.0.norm1.weight": torch.ones(8, dtype=torch.int64)}
        )


def test_a_class_that_derives_from_ours_is_of_its_family():
    class Mine(PVT):
        pass

    class MiT(PVT):  # called like another of ours
        pass

    for cls in (Mine, MiT):
        backbone = cls(arch=TOYS["pvt"].arch)
        load_pretrained(backbone, official_state("pvt"))
        check_loaded(backbone, "pvt")
        assert layout_of(backbone, official_state("pvt")) == "official"
        with pytest.raises(CheckpointMismatch, match=f"which is not {cls.__name__} tiny"):
            load_pretrained(cls("tiny", out_indices=(0,)), PVT("small", out_indices=(0,)).state_dict())


def test_a_class_that_is_called_like_ours_is_not_of_its_family():
    class PVT(nn.Linear):
        pass

    backbone = PVT(1, 1)
    assert layout_of(backbone, official_state("pvt")) is None
    with pytest.raises(CheckpointError, match=r"no key table for PVT of \S*test_loading, which does not derive"):
        load_pretrained(backbone, official_state("pvt"))


def test_network_without_a_key_table_is_refused():
    with pytest.raises(CheckpointError, match="no key table for Linear"):
        load_pretrained(nn.Linear(1, 1), official_state("pvt"))
