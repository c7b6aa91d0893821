"""The decode head: its fast form against the plain one, and what a user of MMSegmentation expects of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from helpers.official import relative_error

pytest.importorskip("mmseg")

from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.errors import CheckpointMismatch
from mm_vitbackbones.heads.segformer import SegFormerHead
from mm_vitbackbones.measuring import OperatorCount, held_bytes, peak_bytes
from mm_vitbackbones.registry import MODELS

pytestmark = pytest.mark.mmseg
DIMS = (8, 12, 20, 32)
SIZES = ((19, 26), (10, 13), (5, 7), (3, 4))
FORMS = [*itertools.product((False, True), (False, True))]
forms = pytest.mark.parametrize(("level_norm", "align_corners"), FORMS, ids=lambda v: str(int(v)))


def make_head(**kwargs) -> SegFormerHead:
    torch.manual_seed(0)
    head = SegFormerHead(**dict(in_channels=DIMS, channels=24, num_classes=5, dropout_ratio=0.0) | kwargs)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return head


def make_maps(sizes=SIZES, dims=DIMS, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, dim, *size, requires_grad=True) for dim, size in zip(dims, sizes, strict=True)]


@forms
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_equals_the_plain_form_in_output_and_every_gradient(level_norm, align_corners, training):
    head = make_head(level_norm=level_norm, align_corners=align_corners).double().train(training)
    maps = [map.detach().double().requires_grad_() for map in make_maps()]
    weights = torch.randn(2, 5, *SIZES[0], dtype=torch.float64)
    results = []
    for form in (head.plain, head.fused):
        logits = head.cls_seg(torch.relu(head.norm(form(maps))))
        gradients = torch.autograd.grad((logits * weights).sum(), [*head.parameters(), *maps])
        results.append((logits, *gradients))
    assert torch.equal(head(maps), results[1][0])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-9)


@forms
def test_equals_the_plain_form_in_fp32_inference(level_norm, align_corners):
    head, maps = make_head(level_norm=level_norm, align_corners=align_corners).eval(), make_maps()
    with torch.no_grad():
        assert relative_error(head.fused(maps), head.plain(maps)) < 1e-5
        before = [map.clone() for map in maps]
        head(maps)
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


class Published(nn.Module):
    """The head as the paper draws it, under the authors' names."""

    def __init__(self, dims, channels: int, classes: int) -> None:
        super().__init__()
        for i, dim in enumerate(dims, start=1):
            self.add_module(f"linear_c{i}", nn.ModuleDict(dict(proj=nn.Linear(dim, channels))))
        self.linear_fuse = nn.ModuleDict(
            dict(conv=nn.Conv2d(4 * channels, channels, 1, bias=False), bn=nn.BatchNorm2d(channels))
        )
        self.linear_pred = nn.Conv2d(channels, classes, 1)
        self.conv_seg = nn.Conv2d(128, classes, 1)

    def forward(self, maps) -> Tensor:
        levels = []
        for i, map in reversed([*enumerate(maps, start=1)]):
            level = getattr(self, f"linear_c{i}").proj(map.flatten(2).transpose(1, 2))
            level = level.transpose(1, 2).unflatten(2, map.shape[2:])
            levels.append(nn.functional.interpolate(level, size=maps[0].shape[2:], mode="bilinear"))
        return self.linear_pred(self.linear_fuse.bn(self.linear_fuse.conv(torch.cat(levels, 1))).relu())


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + (0.1 if name.endswith("running_var") else -0.3))
    return module.eval()


def whole_file(head: nn.Module) -> dict:
    """A checkpoint of a whole network with this head."""
    return {"state_dict": {f"decode_head.{k}": v for k, v in head.state_dict().items()} | {"backbone.x": torch.ones(1)}}


def test_official_weights_give_the_published_logits():
    theirs, head, maps = randomised(Published(DIMS, 24, 5)), make_head().eval(), make_maps()
    report = load_pretrained(head, whole_file(theirs))
    assert report.left_out == ("conv_seg.weight", "conv_seg.bias")
    assert "all tensors of the head come from the file" in str(report)
    assert "not of the head: backbone (1)" in str(report)
    with torch.no_grad():
        assert relative_error(head(maps), theirs(maps)) < 1e-5


def test_weights_of_mmsegs_head_give_its_logits():
    from mmseg.models.decode_heads import SegformerHead

    theirs = SegformerHead(
        in_channels=[*DIMS], in_index=[0, 1, 2, 3], channels=24, num_classes=5, norm_cfg=dict(type="BN")
    )
    head, maps = make_head(level_norm=True).eval(), make_maps()
    assert load_pretrained(head, whole_file(randomised(theirs))).layout == "openmmlab"
    with torch.no_grad():
        assert relative_error(head(maps), theirs(maps)) < 1e-5


def test_weights_of_another_head_are_refused_with_its_arguments():
    head = make_head()
    before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    with pytest.raises(CheckpointMismatch, match="channels=24, num_classes=7, level_norm=False"):
        load_pretrained(head, whole_file(Published(DIMS, 24, 7)))
    with pytest.raises(CheckpointMismatch, match="channels=24, num_classes=5, level_norm=True"):
        load_pretrained(head, make_head(level_norm=True).state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in head.state_dict().items())


def test_init_cfg_loads(tmp_path):
    theirs = randomised(Published(DIMS, 24, 5))
    torch.save(whole_file(theirs), tmp_path / "file.pth")
    head = make_head(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "file.pth")))
    head.init_weights()
    assert torch.equal(head.conv_seg.weight, theirs.linear_pred.weight)


def published(channels: int, dims: tuple[int, ...]) -> int:
    with torch.device("meta"):
        head = MODELS.build(
            dict(type="mm_vitbackbones.SegFormerHead", in_channels=dims, channels=channels, num_classes=150)
        )
    return sum(parameter.numel() for parameter in head.parameters())


def test_parameters_are_the_published_ones():
    assert published(768, (64, 128, 320, 512)) == 3_265_686
    assert published(256, (32, 64, 160, 256)) == 433_302
    assert published(256, (64, 128, 320, 512)) == 564_374
    with torch.device("meta"):
        head = SegFormerHead((64, 128, 320, 512), 256, level_norm=True, num_classes=150)
    assert sum(parameter.numel() for parameter in head.parameters()) == 565_398


def test_every_parameter_learns_and_the_loss_is_mmsegs():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    head = make_head(loss_decode=dict(type="CrossEntropyLoss"), dropout_ratio=0.1).train()
    labels = torch.randint(0, 5, (2, 1, 76, 104))
    labels[:, :, :8] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    losses = head.loss(make_maps(), samples, None)
    losses["loss_ce"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert 0 <= float(losses["acc_seg"]) <= 100


def test_levels_are_chosen_by_in_index():
    head, maps = make_head(in_channels=DIMS[1:3], in_index=(1, 2)), make_maps()
    assert head(maps).shape == (2, 5, *SIZES[1])
    with pytest.raises(ValueError, match="one of each for every level"):
        make_head(in_index=(0, 1))


def test_no_map_of_all_levels_is_made():
    dims, sizes = (8, 8, 8, 8), ((64, 64), (32, 32), (16, 16), (8, 8))
    head, maps = make_head(in_channels=dims, channels=64).eval(), make_maps(sizes, dims, batch=1)
    fused_bytes = 64 * 64 * 64 * 4

    def run():
        with torch.no_grad():
            return head(maps)

    run()
    # The sum, what is added to it, and the result of the norm; the levels' maps together would be four and the
    # fused one.
    assert peak_bytes(run) < 2.6 * fused_bytes
    with torch.no_grad(), OperatorCount() as count:
        head(maps)
    assert count.by_name["aten.cat"] == 1  # the biases
    assert count.total <= 31, count.by_name


def test_training_keeps_three_fused_maps():
    dims, sizes = (8, 8, 8, 8), ((64, 64), (32, 32), (16, 16), (8, 8))
    head, maps = make_head(in_channels=dims, channels=64, dropout_ratio=0.1).train(), make_maps(sizes, dims, batch=1)
    # What the norm took, the ReLU's result, and what dropout leaves of it.
    assert held_bytes(lambda: head(maps)) < 3.5 * 64 * 64 * 64 * 4
