"""What PyTorch refuses of a batch or of its workers is fixed, or reported in one line before training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader

from helpers.paths import CONFIGS
from helpers.toy_runs import ToyData, logged, toy_config, toy_runner
from mm_vitbackbones.cli import batches
from mm_vitbackbones.cli.batches import FeasibleHook, check_lone_images, last_batch, lone_values, without_workers
from mm_vitbackbones.errors import UserError

# ---- workers


@pytest.mark.parametrize("workers", [dict(num_workers=0), {}])
def test_options_for_workers_are_left_out_without_workers(
    workers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(batches, "print_log", lambda text, **_: lines.append(text))
    loader = dict(batch_size=2, persistent_workers=True, prefetch_factor=4, multiprocessing_context="fork", **workers)
    splits = ("train", "val", "test")
    cfg = Config({f"{split}_dataloader": copy.deepcopy(loader) for split in splits})
    without_workers(cfg)
    for split in splits:
        next(iter(DataLoader(ToyData(), **cfg[f"{split}_dataloader"])))
    assert lines[0] == (
        "train_dataloader has num_workers=0: persistent_workers, prefetch_factor, multiprocessing_context are left out"
    )
    assert len(lines) == 3


def test_options_for_workers_stay_with_workers() -> None:
    loader = dict(batch_size=2, num_workers=2, persistent_workers=True, prefetch_factor=4)
    cfg = Config({"train_dataloader": loader, "val_dataloader": None})
    without_workers(cfg)
    assert dict(cfg.train_dataloader) == loader


# ---- batches of one image


@pytest.mark.parametrize(
    ("images", "options", "last"),
    [
        (2, {}, 2),
        (3, {}, 2),
        (7, {}, 1),
        (7, dict(drop_last=True), None),
        (1, {}, 1),
        (7, dict(sampler=InfiniteSampler), None),
        (7, dict(sampler=DefaultSampler), 1),
    ],
)
def test_last_batch_of_an_epoch_is_foreseen(images: int, options: dict[str, Any], last: int | None) -> None:
    data = ToyData()
    options = {key: value(data) if key == "sampler" else value for key, value in options.items()}
    loader = DataLoader(data, batch_size=images, **options)
    assert last_batch(loader) == last
    if last is not None:
        assert [len(batch["inputs"]) for batch in loader][-1] == last


def test_last_batch_of_a_batch_sampler_is_foreseen() -> None:
    data = ToyData()
    for drop_last, last in ((True, None), (False, 2)):
        sampler = BatchSampler(range(len(data)), 3, drop_last)
        loader = DataLoader(data, batch_sampler=sampler)
        loader.batch_sampler.sampler = sampler.sampler
        assert batches.batch_size(loader) == 3
        assert last_batch(SimpleNamespace(batch_sampler=sampler, sampler=data)) == last


HEADS: dict[str, tuple[dict[str, Any], bool]] = {
    "pyramid pooling": (dict(type="UPerHead", pool_scales=(1, 2)), True),
    "image pooling": (dict(type="ASPPHead", dilations=(1, 2), in_channels=32, in_index=3), True),
    "pyramid pooling with GN": (
        dict(type="UPerHead", pool_scales=(1, 2), norm_cfg=dict(type="GN", num_groups=2, requires_grad=True)),
        False,
    ),
    "pyramid pooling without 1x1": (dict(type="UPerHead", pool_scales=(2,)), False),
    "no pooling": (dict(type="FCNHead", in_channels=32, in_index=3, num_convs=1), False),
    "semantic FPN": (dict(type="mm_vitbackbones.SegFormerHead"), False),
}


def segmentor(head: dict[str, Any]) -> Config:
    pytest.importorskip("mmseg")
    cfg = Config.fromfile(CONFIGS / "segformer_mit_b0_mini.py")
    arch = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 32), num_heads=(1, 2, 2, 4), mlp_ratios=(2, 2, 2, 2))
    cfg.model.backbone.update(arch=arch, init_cfg=None)
    common = dict(
        in_channels=[8, 16, 16, 32],
        in_index=[0, 1, 2, 3],
        channels=8,
        num_classes=3,
        align_corners=False,
        norm_cfg=dict(type="BN", requires_grad=True),
        loss_decode=dict(type="CrossEntropyLoss"),
    )
    if head["type"].endswith("SegFormerHead"):
        common.pop("in_index")
    cfg.model.decode_head = {**common, **head}
    scale = dict(type="RandomResize", scale=(96, 96), ratio_range=(0.5, 2.0), keep_ratio=True)
    crop = dict(type="RandomCrop", crop_size=(64, 64))
    cfg.train_dataloader.dataset.pipeline = [dict(type="LoadImageFromFile"), scale, crop, dict(type="PackSegInputs")]
    cfg.model.data_preprocessor.size = (64, 64)
    return cfg


@pytest.fixture
def run_of() -> Callable[..., Any]:
    def make(cfg: Config, images: int = 1, data: int = 8, **options: Any) -> Any:
        model = batches.build_model(copy.deepcopy(cfg))
        loader = DataLoader(range(data), batch_size=images, **options)
        return SimpleNamespace(cfg=cfg, model=model, train_loop=SimpleNamespace(dataloader=loader), world_size=1)

    return make


@pytest.mark.mmseg
@pytest.mark.parametrize("head", HEADS)
def test_one_image_is_refused_where_pytorch_refuses_it_and_nowhere_else(head: str, run_of: Callable[..., Any]) -> None:
    options, fails = HEADS[head]
    runner = run_of(segmentor(options))
    model = runner.model.train()
    image = torch.rand(1, 3, 64, 64)
    if fails:
        with pytest.raises(ValueError, match=batches.REFUSAL):
            model.decode_head(model.extract_feat(image))
        with pytest.raises(UserError, match=r"batch_size=1 .*decode_head\.\S+ would .*batch_size to at least 2.*GN"):
            check_lone_images(runner)
    else:
        model.decode_head(model.extract_feat(image))
        check_lone_images(runner)


@pytest.mark.mmseg
def test_a_last_batch_of_one_image_is_refused(run_of: Callable[..., Any]) -> None:
    cfg = segmentor(HEADS["pyramid pooling"][0])
    with pytest.raises(UserError, match=r"the last batch of an epoch \(batch_size=3\).*drop_last=True"):
        check_lone_images(run_of(cfg, images=3, data=7))
    check_lone_images(run_of(cfg, images=3, data=7, drop_last=True))
    check_lone_images(run_of(cfg, images=3, data=8))
    frozen = run_of(cfg)
    frozen.model.decode_head.train = lambda mode=True: frozen.model.decode_head  # as norm_eval has it
    frozen.model.decode_head.apply(lambda module: setattr(module, "training", False))
    check_lone_images(frozen)


LOAD, PACK = dict(type="LoadImageFromFile"), dict(type="mmdet.PackDetInputs")


@pytest.mark.parametrize(
    ("steps", "preprocessor", "size"),
    [
        ([dict(type="Resize", scale=(1333, 800), keep_ratio=True)], {}, (1333, 800)),
        ([dict(type="Resize", scale=(1333, 800), keep_ratio=True)], dict(pad_size_divisor=32), (1344, 800)),
        ([dict(type="RandomChoiceResize", scales=[(480, 1333), (800, 1333)])], {}, (1333, 800)),
        ([dict(type="RandomResize", scale=(100, 50), ratio_range=(0.5, 2.0))], {}, (200, 100)),
        ([dict(type="Resize", scale=(90, 30)), dict(type="RandomCrop", crop_size=(64, 96))], {}, (64, 90)),
        (
            [dict(type="Resize", scale=(90, 30)), dict(type="RandomCrop", crop_size=(64, 64))],
            dict(size=(80, 80)),
            (80, 80),
        ),
        ([dict(type="Resize", scale_factor=2.0)], {}, None),
        ([dict(type="Resize", scale=(90, 30)), dict(type="Mosaic")], {}, None),
        ([], {}, None),
    ],
)
def test_largest_image_of_a_training_is_found(
    steps: list[dict[str, Any]], preprocessor: dict[str, Any], size: tuple[int, int] | None
) -> None:
    dataset = dict(type="CocoDataset", pipeline=[LOAD, *steps, PACK])
    cfg = Config(dict(train_dataloader=dict(dataset=dataset), model=dict(data_preprocessor=preprocessor)))
    assert batches.largest_image(cfg) == size
    cfg.train_dataloader.dataset = dict(type="MultiImageMixDataset", dataset=dataset, pipeline=[dict(type="Mosaic")])
    assert batches.largest_image(cfg) is None


def test_refusals_that_were_not_foreseen_are_one_line() -> None:
    with pytest.raises(UserError, match="a single value per channel"), lone_values():
        torch.nn.BatchNorm2d(4)(torch.ones(1, 4, 1, 1))
    with pytest.raises(ValueError, match="other"), lone_values():
        raise ValueError("other")


# ---- schedules


@pytest.mark.parametrize(
    ("options", "fails"),
    [
        (dict(by_epoch=False, total_steps=8), True),
        (dict(by_epoch=False, total_steps=8, end=8), False),
        (dict(by_epoch=False, total_steps=16), False),
        (dict(by_epoch=True, total_steps=2), True),
        (dict(by_epoch=True, total_steps=4), False),
    ],
)
def test_a_one_cycle_schedule_that_ends_too_early_is_refused(
    options: dict[str, Any], fails: bool, tmp_path: Path
) -> None:
    one_cycle = dict(type="OneCycleLR", eta_max=0.1, **options)
    runner = toy_runner(toy_config(param_scheduler=[one_cycle]), tmp_path)
    if fails:
        with pytest.raises(ValueError, match="Tried to step"):
            runner.train()
        runner = toy_runner(toy_config(param_scheduler=[one_cycle]), tmp_path)
        runner.register_hook(FeasibleHook())
        with pytest.raises(
            UserError, match=r"OneCycleLR has total_steps=\d+.*set total_steps=(16|4), or end=.*--skip-checks"
        ):
            runner.train()
    else:
        runner.register_hook(FeasibleHook())
        with logged(runner):
            runner.train()
