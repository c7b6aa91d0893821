"""The same weights in other implementations, through our loader: a second opinion next to the official numbers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.official import relative_error
from mm_vitbackbones.backbones import PVT, CaiT, MiT, MViTv2, PVTv2, Swin, XCiT
from mm_vitbackbones.checkpoints import load_pretrained

pytestmark = pytest.mark.parity
SIZES = dict(depths=(2, 1, 1, 1), dims=(8, 16, 40, 64))
"""mmdet's widths are its width per head times the heads."""


@pytest.mark.mmdet
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_features_equal_mmdets(version):
    pytest.importorskip("mmdet")
    from mmdet.models.backbones import PyramidVisionTransformer, PyramidVisionTransformerV2

    torch.manual_seed(0)
    if version == "v1":
        theirs, ours = PyramidVisionTransformer(embed_dims=8, num_layers=[2, 1, 1, 1]), PVT(arch=SIZES)
    else:
        theirs, ours = PyramidVisionTransformerV2(embed_dims=8, num_layers=[2, 1, 1, 1]), PVTv2(arch=SIZES)
    check_openmmlab(ours, theirs)


@pytest.mark.mmseg
def test_features_equal_mmsegs():
    pytest.importorskip("mmseg")
    from mmseg.models.backbones import MixVisionTransformer

    torch.manual_seed(0)
    theirs = MixVisionTransformer(embed_dims=8, num_layers=[2, 1, 1, 1], num_heads=[1, 2, 5, 8])
    check_openmmlab(MiT(arch=SIZES), theirs)


def check_openmmlab(ours, theirs):
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    load_pretrained(ours, theirs.state_dict())
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6  # theirs everywhere; the official code has 1e-5 after patch embedding and reduction
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours.eval()(image), theirs.eval()(image), strict=True):
            assert relative_error(a, b) <= 1e-5


@pytest.mark.mmdet
@pytest.mark.parametrize("size", [(64, 96), (93, 131)], ids=str)
def test_features_equal_mmdets_swin(size):
    pytest.importorskip("mmdet")
    from mmdet.models.backbones import SwinTransformer

    torch.manual_seed(0)
    sizes = dict(depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=3)
    theirs, ours = SwinTransformer(embed_dims=8, **sizes), Swin(arch=dict(sizes, dims=(8, 16, 32, 64)))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    load_pretrained(ours, theirs.state_dict())
    image = torch.randn(2, 3, *size)
    theirs.eval()  # which returns nothing here
    with torch.no_grad():
        for a, b in zip(ours.eval()(image), theirs(image), strict=True):
            assert relative_error(a, b) <= 1e-5


# ---- timm's, in this process where it can be imported


def timm_model(module, build):
    """A network of a module of timm, at toy size, with random weights and statistics."""
    from tools.benchmarks.contenders import declare_torchvision_operators

    declare_torchvision_operators()
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network = build(importlib.import_module(f"timm.models.{module}")).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.2)
    return network


def check_timm(ours, theirs, image, indices):
    load_pretrained(ours, theirs.state_dict())
    with torch.no_grad():
        expected = theirs.forward_intermediates(image, indices, intermediates_only=True)
        for a, b in zip(ours.eval()(image), expected, strict=True):
            assert relative_error(a, b) <= 1e-5


def test_cait_and_its_class_attention_equal_timms():
    sizes = dict(embed_dim=32, depth=3, num_heads=4, num_classes=5)
    theirs = timm_model("cait", lambda module: module.Cait(img_size=64, **sizes))
    image = torch.randn(2, 3, 64, 64)
    options = dict(arch=dict(dim=32, num_heads=4, depth=3, pretrain_grid=4), taps=(0, 2), pyramid=None)
    check_timm(CaiT(**options), theirs, image, [0, 2])
    ours = CaiT(**options, class_attention=True, final_norm=True).eval()
    load_pretrained(ours, theirs.state_dict())
    with torch.no_grad():
        level, expected = ours.features(image)[-1], theirs.forward_features(image)
    assert relative_error(level.class_tokens[:, 0], expected[:, 0]) <= 1e-5
    assert relative_error(level.grid.flatten(1, 2), expected[:, 1:]) <= 1e-5


@pytest.mark.parametrize("patch_size", [16, 8])
def test_xcit_equals_timms(patch_size):
    sizes = dict(embed_dim=32, depth=4, num_heads=4, eta=1.0, num_classes=5)
    theirs = timm_model("xcit", lambda module: module.Xcit(img_size=64, patch_size=patch_size, **sizes))
    ours = XCiT(dict(dim=32, num_heads=4, depth=4, patch_size=patch_size), pyramid=None)
    check_timm(ours, theirs, torch.randn(2, 3, 64, 96), [0, 1, 2, 3])


def test_mvit_in_the_form_of_classifiers_equals_timms():
    from tools.benchmarks.contenders import as_classifier

    sizes = dict(depths=(1, 2, 2, 2), num_heads=(1, 2, 4, 8))

    def build(module):
        return module.MultiScaleVit(module.MultiScaleVitCfg(embed_dim=8, **sizes), img_size=(64, 64), num_classes=5)

    theirs = timm_model("mvitv2", build)
    ours = as_classifier(MViTv2(dict(sizes, dims=(8, 16, 32, 64), window_size=8, pretrain_grid=16)))
    for stage in ours.stages:
        stage.norm = nn.Identity()  # timm's have no norms of levels
    check_timm(ours, theirs, torch.randn(2, 3, 64, 64), [0, 1, 2, 3])


LIVE = """
import sys
sys.path.append(sys.argv[1])
import torch
from mm_vitbackbones.backbones import PVT, CaiT, CoaT, MiT, MViTv2, PiT, PVTv2, Swin, XCiT
from tools.benchmarks.contenders import as_classifier, declare_torchvision_operators, timm_coat
from mm_vitbackbones.checkpoints import load_pretrained, read_checkpoint

declare_torchvision_operators()
torch.manual_seed(0)
image = torch.randn(1, 3, 224, 224)


def check(name, ours, theirs, levels, weights=torch.nn.Module.state_dict):
    theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        load_pretrained(ours, weights(theirs))
        for a, b in zip(ours.eval()(image), levels(theirs), strict=True):
            error = float((a - b).abs().max() / b.abs().max())
            assert a.shape == b.shape and error <= 1e-5, (name, error)
    print(name, "ok")


import timm

for arch in ("b0", "b2", "b2_li"):
    model = timm.create_model(f"pvt_v2_{arch}")
    check(f"timm {arch}", PVTv2(arch=arch), model, lambda m: m.forward_intermediates(image, intermediates_only=True))

for arch in ("ti", "s", "b", "s_distilled"):
    model = timm.create_model(f"pit_{arch}_224")
    check(
        f"timm pit {arch}",
        PiT(arch, stem="published", out_indices=(1, 2, 3)),
        model,
        lambda m: m.forward_intermediates(image, intermediates_only=True),
    )

image = torch.randn(2, 3, 64, 96)  # theirs takes sides divisible by 32
for arch in ("mini", "lite_tiny", "lite_small"):
    check(f"timm coat {arch}", CoaT(arch=arch), timm_coat(f"coat_{arch}"), lambda m: m(image))
image = torch.randn(1, 3, 224, 224)

import transformers

config = transformers.PvtV2Config(depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256], num_channels=3)
model = transformers.PvtV2Model(config)
for module in model.modules():  # theirs is one epsilon for all
    if isinstance(module, torch.nn.LayerNorm):
        module.eps = 1e-6
ours = PVTv2(arch="b0")
for name, module in ours.named_modules():
    if isinstance(module, torch.nn.LayerNorm):
        module.eps = 1e-6
check("transformers b0", ours, model, lambda m: m(image, output_hidden_states=True).hidden_states)

import tempfile


def saved(model):  # files have other names than the model has
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read_checkpoint(f"{folder}/model.safetensors")


for arch, weights in (("b0", torch.nn.Module.state_dict), ("b2", saved)):
    ours = MiT(arch=arch)
    config = transformers.SegformerConfig(depths=[*ours.arch.depths], hidden_sizes=[*ours.arch.dims])
    model = transformers.SegformerForSemanticSegmentation(config)
    for module in (*model.modules(), *ours.modules()):
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    levels = lambda m: m.segformer(image, output_hidden_states=True).hidden_states
    check(f"transformers mit {arch}", ours, model, levels, weights)

from mm_vitbackbones.heads.segformer import SegFormerHead

for arch, channels in (("b0", 256), ("b2", 768)):
    ours = MiT(arch=arch)
    config = transformers.SegformerConfig(
        depths=[*ours.arch.depths], hidden_sizes=[*ours.arch.dims], decoder_hidden_size=channels, num_labels=150
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    for module in (*model.modules(), *ours.modules()):
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    head = SegFormerHead(ours.arch.dims, channels, num_classes=150).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.02)
        for part in (ours, head):
            load_pretrained(part, saved(model))
        a, b = head(ours.eval()(image)), model(image).logits
    error = float((a - b).abs().max() / b.abs().max())
    assert a.shape == b.shape and error <= 1e-4, (arch, error)
    print("transformers segformer", arch, "ok")

# timm's names both ways: our file in timm's network, and the file of its features_only in ours.
import os
from mm_vitbackbones.checkpoints import convert_checkpoint

image = torch.randn(1, 3, 224, 224)
for name, ours in (
    ("swin_tiny_patch4_window7_224", Swin("tiny")),
    ("pvt_v2_b0", PVTv2("b0")),
    ("pit_ti_224", PiT("ti", stem="published", out_indices=(1, 2, 3))),
    ("coat_lite_tiny", CoaT("lite_tiny")),
):
    theirs = timm.create_model(name)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        torch.save(theirs.state_dict(), os.path.join(folder, "theirs.pth"))
        convert_checkpoint(os.path.join(folder, "theirs.pth"), os.path.join(folder, "ours.pth"), "ours")
        convert_checkpoint(os.path.join(folder, "ours.pth"), os.path.join(folder, "timm.pth"), "timm")
        again = torch.load(os.path.join(folder, "timm.pth"))
    theirs.load_state_dict(again, strict=True)
    features = timm.create_model(name, features_only=True).eval()
    for stage in ours.stages:
        if isinstance(ours, Swin):
            stage.norm = torch.nn.Identity()  # timm's have no norms of levels
    load_pretrained(ours, features.state_dict())
    last = 3 if isinstance(ours, Swin) else 4  # timm does not shift the one window of the last level
    with torch.no_grad():
        levels = [x.permute(0, 3, 1, 2) if isinstance(ours, Swin) else x for x in features(image)]
        for a, b in zip(ours.eval()(image)[:last], levels[:last], strict=True):
            assert a.shape == b.shape and float((a - b).abs().max() / b.abs().max()) <= 1e-5, name
    print("timm names of", name, "ok")

# At 224 pixels the last grid is one window, which classifiers do not shift, and dense networks do.
for arch, name in (("tiny", "tiny_patch4_window7_224"), ("base_w12", "base_patch4_window12_384")):
    side = 64 * Swin.archs[arch].window_size
    image = torch.randn(1, 3, side, side)
    ours = Swin(arch=arch)
    for stage in ours.stages:
        stage.norm = torch.nn.Identity()  # timm's have no norms of levels
    model = timm.create_model(f"swin_{name}", img_size=side)
    check(f"timm {arch}", ours, model, lambda m: m.forward_intermediates(image, intermediates_only=True))

image = torch.randn(1, 3, 224, 224)
for arch in ("xxs24", "s24"):
    model = timm.create_model(f"cait_{arch}_224")
    taps = lambda m: m.forward_intermediates(image, [5, 11, 17, 23], intermediates_only=True)
    check(f"timm cait {arch}", CaiT(arch, pyramid=None), model, taps)
for arch in ("nano_12_p16", "tiny_12_p8", "tiny_24_p16"):
    model, ours = timm.create_model(f"xcit_{arch}_224"), XCiT(arch, pyramid=None)
    taps = lambda m: m.forward_intermediates(image, [*ours.taps], intermediates_only=True)
    check(f"timm xcit {arch}", ours, model, taps)
for arch in ("tiny", "base"):
    ours = as_classifier(MViTv2(arch))
    for stage in ours.stages:
        stage.norm = torch.nn.Identity()  # timm's have no norms of levels
    model = timm.create_model(f"mvitv2_{arch}")
    check(f"timm mvit {arch}", ours, model, lambda m: m.forward_intermediates(image, intermediates_only=True))

image = torch.randn(1, 3, 448, 448)
config = transformers.SwinConfig(image_size=448, out_features=["stage1", "stage2", "stage3", "stage4"])
check("transformers swin", Swin(arch="tiny"), transformers.SwinBackbone(config), lambda m: m(image).feature_maps)
"""


REST = [
    *(f"timm {arch} ok" for arch in ("tiny", "base_w12")),
    *(f"timm cait {arch} ok" for arch in ("xxs24", "s24")),
    *(f"timm xcit {arch} ok" for arch in ("nano_12_p16", "tiny_12_p8", "tiny_24_p16")),
    *(f"timm mvit {arch} ok" for arch in ("tiny", "base")),
    "transformers swin ok",
]


@pytest.mark.slow
def test_features_equal_timms_and_transformers_at_full_size():
    peers, found = Path(sys.prefix, "peers"), importlib.util.find_spec("timm")
    if found is not None and found.origin is not None:
        peers = Path(found.origin).parents[1]
    if not peers.is_dir():
        pytest.skip("timm and transformers are not installed: `make test-all` installs them next to the environment")
    run = subprocess.run([sys.executable, "-c", LIVE, str(peers)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    said = [line for line in run.stdout.splitlines() if line.endswith(" ok")]
    assert said == [
        *(f"timm {arch} ok" for arch in ("b0", "b2", "b2_li")),
        *(f"timm pit {arch} ok" for arch in ("ti", "s", "b", "s_distilled")),
        *(f"timm coat {arch} ok" for arch in ("mini", "lite_tiny", "lite_small")),
        *(f"transformers {arch} ok" for arch in ("b0", "mit b0", "mit b2", "segformer b0", "segformer b2")),
        *(
            f"timm names of {name} ok"
            for name in ("swin_tiny_patch4_window7_224", "pvt_v2_b0", "pit_ti_224", "coat_lite_tiny")
        ),
        *REST,
    ]
