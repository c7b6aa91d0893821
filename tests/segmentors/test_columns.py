"""Segmentors on ViT, DINOv2 and DINOv3: what a training step keeps and changes, of a frozen network and a whole one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmseg")

from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mm_vitbackbones import libraries
from mm_vitbackbones.measuring import held_bytes
from mm_vitbackbones.registry import MODELS

pytestmark = pytest.mark.mmseg
TRUNK = dict(dim=32, num_heads=2, depth=4)
PAIRS = dict(pyramid=None, with_class_token=True)
HEADS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "dpt": (PAIRS, dict(type="mm_vitbackbones.DPTHead", in_channels=32, channels=16)),
    "linear": (dict(pyramid=None, taps=[-1]), dict(type="mm_vitbackbones.LinearHead", in_channels=32)),
    "upernet": (
        dict(pyramid="taps"),
        dict(type="UPerHead", in_channels=[32] * 4, in_index=[0, 1, 2, 3], channels=8, norm_cfg=dict(type="BN")),
    ),
}
heads = pytest.mark.parametrize("head", HEADS)


def build(head: str, family: str = "DINOv2", classes: int = 3, **arguments: Any) -> Any:
    libraries.use("mmseg")
    backbone, decoder = HEADS[head]
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type="mm_vitbackbones.BandedEncoderDecoder",
            data_preprocessor=dict(
                type="SegDataPreProcessor",
                mean=[127.5] * 3,
                std=[127.5] * 3,
                size=(112, 112),
                test_cfg=dict(size_divisor=14),
            ),
            backbone=dict(type=f"mm_vitbackbones.{family}", arch=TRUNK, **backbone) | arguments,
            decode_head=dict(decoder, num_classes=classes, align_corners=False),
            test_cfg=dict(mode="whole", logits=False),
        )
    )


def batch(images: Tensor, labels: Tensor) -> dict[str, Any]:
    size = tuple(images.shape[2:])
    samples = [
        SegDataSample(metainfo=dict(img_shape=size, ori_shape=size), gt_sem_seg=PixelData(data=each[None]))
        for each in labels
    ]
    return dict(inputs=[*images], data_samples=samples)


def noise(side: int = 112) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    return batch(images, torch.randint(0, 3, (2, side, side), generator=generator))


def loss_of(model: Any, data: Mapping[str, Any]) -> Tensor:
    return model.parse_losses(model(**data, mode="loss"))[0]


@heads
def test_a_frozen_network_keeps_what_its_decoder_needs_and_nothing_else(head):
    kept = {}
    for frozen in (-1, "all"):
        model = build(head, frozen_stages=frozen).train()
        data = model.data_preprocessor(noise(), True)
        loss_of(model, data)  # caches
        kept[frozen] = held_bytes(lambda model=model, data=data: loss_of(model, data))
    images = data["inputs"]
    with torch.no_grad():
        taps = model.backbone.trunk(images.permute(0, 2, 3, 1))
    # The same decoder on what the network gives, at hand already.
    model.backbone.trunk = lambda image: taps
    alone = held_bytes(lambda: loss_of(model, data))
    given = sum(level.grid.nbytes + level.class_tokens.nbytes for level in taps.values())
    assert alone <= kept["all"] <= alone + 1.1 * given
    # Of each block a whole network keeps several maps besides.
    assert kept[-1] > kept["all"] + 4 * 8 * images.shape[0] * (112 // 14) ** 2 * TRUNK["dim"] * 4


@heads
def test_a_training_step_changes_the_decoder_alone_on_a_frozen_network(head):
    model = build(head, frozen_stages="all").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model, model.data_preprocessor(noise(), True)).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"} < changed
    assert all(name.startswith(("decode_head.", "backbone.pyramid.")) for name in changed)
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    whole = build(head).train()
    loss_of(whole, whole.data_preprocessor(noise(), True)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in whole.parameters())


@pytest.mark.parametrize("family", ["ViT", "DINOv2", "DINOv3"])
@heads
def test_predictions_have_the_size_of_the_image(head, family):
    model = build(head, family).eval()
    image = torch.randint(0, 256, (1, 3, 75, 90), dtype=torch.uint8)
    (sample,) = model.test_step(batch(image, torch.zeros(1, 75, 90, dtype=torch.long)))
    assert sample.pred_sem_seg.data.shape == (1, 75, 90)


@pytest.mark.parametrize("head", ["dpt", "linear"])
def test_autocast_trains_on_a_frozen_network(head):
    model = build(head, frozen_stages="all").train()
    data = model.data_preprocessor(noise(), True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss_of(model, data)
    half.backward()
    assert half.item() == pytest.approx(loss_of(model, data).item(), rel=0.1)
    assert all(p.grad.isfinite().all() for p in model.decode_head.parameters())


def squares() -> dict[str, Any]:
    """Four images of two colours; the class of a pixel is its colour's."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.zeros(4, 112, 112, dtype=torch.long)
    for i, (top, left) in enumerate([(14, 28), (42, 14), (28, 42), (56, 56)]):
        labels[i, top : top + 42, left : left + 42] = 1
    images = 80 + 90 * labels[:, None].repeat(1, 3, 1, 1)
    return batch((images + torch.randint(-20, 21, images.shape, generator=generator)).to(torch.uint8), labels)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [-1, "all"], ids=["whole", "frozen"])
@heads
def test_it_learns_a_handful_of_images(head, frozen):
    model = build(head, classes=2, frozen_stages=frozen, drop_path_rate=0.0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    data = model.data_preprocessor(squares(), True)
    for _ in range(80):
        optimizer.zero_grad()
        loss = loss_of(model, data)
        loss.backward()
        optimizer.step()
    images = squares()
    found = model.eval().test_step(images)
    right = [
        (sample.pred_sem_seg.data == truth.gt_sem_seg.data).float().mean()
        for sample, truth in zip(found, images["data_samples"], strict=True)
    ]
    assert min(map(float, right)) > 0.93
