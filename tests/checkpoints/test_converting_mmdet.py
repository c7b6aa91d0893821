import pytest
import torch

pytest.importorskip("mmdet")

from mmdet.models.backbones import PyramidVisionTransformer, PyramidVisionTransformerV2, SwinTransformer

from mm_vitbackbones.backbones import PVT, PVTv2, Swin
from mm_vitbackbones.checkpoints import convert_checkpoint, load_pretrained

pytestmark = pytest.mark.mmdet
SPEC = {"depths": (2, 1, 1, 1), "dims": (8, 16, 40, 64)}  # mmdet's widths are multiples of the heads
SWIN = {"depths": (2, 2, 2, 2), "dims": (8, 16, 32, 64), "num_heads": (1, 2, 2, 4), "window_size": 3}
TOY = {"embed_dims": 8, "num_layers": [2, 1, 1, 1]}
PAIRS = [
    (PVT, SPEC | {"pretrain_grid": 16}, PyramidVisionTransformer, TOY | {"pretrain_img_size": 64}),
    (PVTv2, SPEC, PyramidVisionTransformerV2, TOY),
    (Swin, SWIN, SwinTransformer, {k: v for k, v in SWIN.items() if k != "dims"} | {"embed_dims": 8}),
]


@pytest.mark.parametrize(("ours", "arch", "theirs", "kwargs"), PAIRS)
def test_mmdets_own_module_takes_the_converted_file_and_ours_takes_its(tmp_path, ours, arch, theirs, kwargs):
    source = ours(arch)
    torch.save(source.state_dict(), tmp_path / "ours.pth")
    convert_checkpoint(tmp_path / "ours.pth", tmp_path / "openmmlab.pth", "openmmlab", arch)
    module = theirs(**kwargs)
    module.load_state_dict(torch.load(tmp_path / "openmmlab.pth")["state_dict"], strict=True)
    back = ours(arch)
    load_pretrained(back, module.state_dict())
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in back.state_dict().items())
