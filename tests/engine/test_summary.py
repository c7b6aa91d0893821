"""What a run is about, in a few lines."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from helpers.toys import TOYS
from mm_vitbackbones.engine import summary
from mm_vitbackbones.engine.amp import BFloat16OptimWrapper

FILE = dict(type="Pretrained", checkpoint="pvt.pth")
PVT = dict(type="mm_vitbackbones.PVT")


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (dict(model=dict(backbone=PVT)), "random"),
        (dict(model=dict(backbone=PVT, init_cfg=dict(type="Normal")), load_from=None, resume=False), "random"),
        (dict(model=dict(backbone=dict(PVT, init_cfg=FILE))), "backbone from pvt.pth"),
        (dict(model=dict(backbone=dict(PVT, init_cfg=[dict(FILE)]))), "backbone from pvt.pth"),
        (
            dict(model=dict(backbone=dict(PVT, init_cfg=FILE), heads=[dict(init_cfg=FILE | dict(checkpoint="b.pth"))])),
            "backbone from pvt.pth; heads from b.pth",
        ),
        (dict(model=dict(init_cfg=dict(FILE, type="mmengine.Pretrained"))), "model from pvt.pth"),
        (dict(model=dict(backbone=dict(PVT, init_cfg=FILE)), load_from="all.pth"), "of all.pth"),
        (dict(model=dict(), load_from="epoch_3.pth", resume=True), "of epoch_3.pth, which is resumed"),
        (dict(model=dict(), load_from=None, resume=True), "of the latest checkpoint in the work dir, which is resumed"),
    ],
)
def test_where_weights_come_from(cfg, said):
    assert summary.describe_weights(SimpleNamespace(cfg=Config(cfg))) == said


class Detector(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.backbone = TOYS["pvt_v2"](**options)
        self.decode_head = nn.Conv2d(8, 2, 1)


def test_network():
    model = Detector()
    total = sum(p.numel() for p in model.parameters())
    said = summary.describe_model(model, dict(backbone=dict(arch="b0")))
    assert said == f"Detector with Conv2d, backbone PVTv2 b0, {total:,} parameters ({total - 18:,} of the backbone)"
    assert "PVTv2, " in summary.describe_model(model, dict(backbone=dict(arch=dict(depths=(1, 1)))))
    assert " frozen)" in summary.describe_model(Detector(frozen_stages=1), {})
    assert summary.describe_model(nn.Linear(1000, 2000), {}) == "Linear, 2.0 M parameters"


def test_wrappers_are_looked_into():
    inner = nn.Linear(1, 1)
    wrapper, outer = nn.Module(), nn.Module()
    wrapper.module, outer.module = inner, wrapper
    assert summary.unwrapped(outer) is inner


class Data:
    def __init__(self, count: int, classes=(), dataset=None) -> None:
        self.count, self.metainfo = count, dict(classes=classes)
        if dataset is not None:
            self.dataset = dataset

    def __len__(self) -> int:
        return self.count


def test_data():
    assert summary.describe_data(Data(42, ("tree",))) == "Data, 42 images, 1 class (tree)"
    many = tuple(f"c{i}" for i in range(150))
    assert summary.describe_data(Data(20210, many)) == (
        "Data, 20,210 images, 150 classes (c0, c1, c2, c3, c4, c5, ... (144 more))"
    )
    repeated = Data(168, ("tree",), dataset=Data(42))
    assert summary.describe_data(repeated) == "Data, 42 images (168 with repeats), 1 class (tree)"
    assert summary.describe_data(Data(3)) == "Data, 3 images"
    assert summary.describe_data(Data(1)) == "Data, 1 image"
    assert summary.describe_data(SimpleNamespace(metainfo=dict(classes=["tree"]))) == (
        "SimpleNamespace, 1 class (tree)"
    )


def test_schedule_by_iterations(monkeypatch):
    loop = SimpleNamespace(max_iters=160000, val_interval=4000, dataloader=SimpleNamespace(batch_size=2))
    assert summary.describe_schedule({"train": loop}) == "160,000 iterations, batch 2"
    monkeypatch.setattr(summary, "get_world_size", lambda: 8)
    assert summary.describe_schedule({"train": loop, "val": None}) == (
        "160,000 iterations, batch 16 (2 in each of 8 processes), evaluated every 4,000 iterations"
    )


def test_schedule_by_epochs():
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    loop.dataloader = Data(1)
    for epochs, interval, expected in (
        (1, 1, "1 epoch of 1 iteration, evaluated every epoch"),
        (12, 3, "12 epochs of 1 iteration, evaluated every 3 epochs"),
    ):
        loop._max_epochs, loop.val_interval = epochs, interval
        assert summary.describe_schedule({"train": loop, "val": None}) == expected


def test_batch_of_a_batch_sampler():
    loop = SimpleNamespace(max_iters=9, dataloader=SimpleNamespace(batch_size=None, batch_sampler=Data(3)))
    loop.dataloader.batch_sampler.batch_size = 4
    assert summary.describe_schedule({"train": loop}) == "9 iterations, batch 4"


def test_optimizers(monkeypatch):
    groups = [dict(params=[nn.Parameter(torch.zeros(1))], lr=lr) for lr in (6e-5, 6e-4)]
    plain = OptimWrapper(torch.optim.AdamW(groups, weight_decay=0.01), accumulative_counts=4)
    said = "AdamW, learning rate 6e-05 to 0.0006, weight decay 0.01, gradients of 4 batches together, fp32"
    assert summary.describe_optimizer(plain) == said
    # During a warm-up.
    for group in plain.optimizer.param_groups:
        group.update(initial_lr=group["lr"], lr=1e-9)
    assert summary.describe_optimizer(plain) == said
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    half = BFloat16OptimWrapper(sgd)
    assert summary.describe_optimizer(half) == "SGD, learning rate 0.1, weight decay 0, AMP in bfloat16"
    assert summary.describe_optimizer(OptimWrapperDict(backbone=half)).startswith("backbone: SGD, learning rate 0.1")
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.GradScaler", lambda **_: None)
    assert summary.describe_optimizer(AmpOptimWrapper(dtype="float16", optimizer=sgd)).endswith(", AMP in float16")


def test_device(monkeypatch):
    monkeypatch.setattr(summary, "get_world_size", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert summary.describe_device(torch.device("cpu")) == "CPU, 2 threads, 8 processes"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert summary.describe_device(torch.device("cuda:0")) == "NVIDIA H100, 8 processes"
