"""The same weights in other implementations, through our loader: a second opinion beside the official numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from official import relative_error
from torch import nn

from mm_vitbackbones.backbones import PVT, PVTv2
from mm_vitbackbones.checkpoints import load_pretrained

pytestmark = pytest.mark.parity
SIZES = dict(depths=(2, 1, 1, 1), dims=(8, 16, 40, 64))
"""mmdet's widths are its width per head times the heads."""


@pytest.mark.mmdet
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_mmdet(version):
    pytest.importorskip("mmdet")
    from mmdet.models.backbones import PyramidVisionTransformer, PyramidVisionTransformerV2

    torch.manual_seed(0)
    if version == "v1":
        theirs, ours = PyramidVisionTransformer(embed_dims=8, num_layers=[2, 1, 1, 1]), PVT(arch=SIZES)
    else:
        theirs, ours = PyramidVisionTransformerV2(embed_dims=8, num_layers=[2, 1, 1, 1]), PVTv2(arch=SIZES)
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


LIVE = """
import sys
sys.path.append(sys.argv[1])
import torch
from mm_vitbackbones.backbones import PVT, PVTv2
from mm_vitbackbones.benchmarking import declare_torchvision_operators
from mm_vitbackbones.checkpoints import load_pretrained

declare_torchvision_operators()
torch.manual_seed(0)
image = torch.randn(1, 3, 224, 224)


def check(name, ours, theirs, levels):
    theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        load_pretrained(ours, theirs.state_dict())
        for a, b in zip(ours.eval()(image), levels(theirs), strict=True):
            error = float((a - b).abs().max() / b.abs().max())
            assert a.shape == b.shape and error <= 1e-5, (name, error)
    print(name, "ok")


import timm

for arch in ("b0", "b2", "b2_li"):
    model = timm.create_model(f"pvt_v2_{arch}")
    check(f"timm {arch}", PVTv2(arch=arch), model, lambda m: m.forward_intermediates(image, intermediates_only=True))

from mm_vitbackbones.backbones import CoaT
from mm_vitbackbones.benchmarking import timm_coat

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
"""


@pytest.mark.slow
def test_timm_and_transformers_at_full_size():
    peers = Path(sys.prefix, "peers")
    if not peers.is_dir():
        pytest.skip("timm and transformers are not installed: `make test-all` installs them beside the environment")
    run = subprocess.run([sys.executable, "-c", LIVE, str(peers)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    said = [line for line in run.stdout.splitlines() if line.endswith(" ok")]
    coats = ["timm coat mini ok", "timm coat lite_tiny ok", "timm coat lite_small ok"]
    assert said == ["timm b0 ok", "timm b2 ok", "timm b2_li ok", *coats, "transformers b0 ok"]
