"""Every config: a training step and a test step on small images of noise, and a dump that gives the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import mmengine.config.config
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from helpers import peft
from helpers.paths import CONFIGS, recipe_files
from helpers.recipes import load

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.build import families
from mm_vitbackbones.cli import dry_run
from mm_vitbackbones.cli.dry_run import Trial, _quiet, image_size, main, try_config
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import nodes, type_name

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


NAMES = [path.stem for path in recipe_files()]
ALIKE = (
    *("cascade_mask_rcnn_mvit_v2_b_3x_coco", "cascade_mask_rcnn_mvit_v2_b_in21k_3x_coco"),
    "cascade_mask_rcnn_vitdet_l_coco",
    "dino_pvt_v2_b2_coco",
    "dino_swin_l_coco",
    "mask2former_mit_b2_ade20k",
    "mask2former_swin_b_ade20k",
    "mask2former_swin_s_coco",
    "mask_rcnn_cait_s24_coco",
    "mask_rcnn_dinov3_b_frozen_coco",
    "mask_rcnn_dinov3_b_lora_coco",
    "mask_rcnn_mvit_v2_t_3x_coco",
    "mask_rcnn_vitdet_l_coco",
    "retinanet_dinov2_b_frozen_coco",
    *("mask_rcnn_xcit_t12_p8_3x_coco", "upernet_xcit_t12_p8_ade20k"),
    *(
        f"{head}_xcit_{size}_p{patch}_{data}"
        for head, data in (("mask_rcnn", "3x_coco"), ("fpn", "ade20k"), ("upernet", "ade20k"))
        for size in ("s12", "s24", "m24")
        for patch in (16, 8)
    ),
)
"""Those that differ in the backbone alone from one with the same head, and take seconds: they run at full depth."""
SIZES = {
    f"{head}_{other}_{data}": f"{head}_{one}_{data}"
    for head, data, one, others in (
        ("cascade_mask_rcnn", "3x_coco", "swin_t", ("swin_b",)),
        ("fpn", "ade20k", "pvt_v2_b0", ("pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5")),
        ("mask_rcnn", "3x_coco", "coat_mini", ("coat_s",)),
        ("mask_rcnn", "3x_coco", "pvt_v2_b0", ("pvt_v2_b2",)),
        ("mask_rcnn", "coco", "coat_mini", ("coat_s",)),
        ("mask_rcnn", "coco", "mit_b0", ("mit_b2",)),
        ("mask_rcnn", "coco", "pvt_v2_b0", ("pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3")),
        ("mask_rcnn", "coco", "pvt_v2_b4", ("pvt_v2_b5",)),
        ("mask_rcnn", "coco", "swin_t", ("swin_b",)),
        ("retinanet", "coco", "coat_mini", ("coat_s",)),
        ("retinanet", "coco", "mit_b0", ("mit_b2",)),
        ("retinanet", "coco", "pvt_v2_b0", ("pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3")),
        ("retinanet", "coco", "pvt_v2_b4", ("pvt_v2_b5",)),
        ("retinanet", "coco", "swin_t", ("swin_b",)),
        ("segformer", "ade20k", "mit_b0", ("mit_b1",)),
        ("upernet", "ade20k", "swin_t", ("swin_b",)),
    )
    for other in others
}
"""By those that differ from another in the sizes of the backbone alone, the other. They run at full depth. That a head
takes the channels of its backbone is tested of every config (tests/configs)."""


def with_few_boxes(cfg: Config) -> Config:
    """The second stage of a detector takes by far the longest, and as long for small images as for large ones."""
    for _, node in nodes(cfg.model, "model"):
        if isinstance(node, dict) and node.get("type") == "RandomSampler":
            node["num"] = 16
        if isinstance(node, dict) and "nms_pre" in node:
            node["max_per_img"] = 20
    return cfg


def with_few_queries(cfg: Config) -> Config:
    """A small image has fewer places than DINO has queries. Mask2Former and ViTDet pad images to the size of their
    crops, and Mask2Former compares masks at 12,544 points of any image."""
    if "num_queries" in cfg.model:
        cfg.model.num_queries = 60
    cfg.model.data_preprocessor.pop("batch_augments", None)
    if "pad_size_divisor" in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.pad_size_divisor = 32
    for _, node in nodes(cfg.model, "model"):
        if isinstance(node, dict) and "num_points" in node and "assigner" in node:
            node["num_points"] = 100
    return cfg


def with_few_blocks(cfg: Config) -> Config:
    """At most two blocks in a stage, two layers of each encoder and decoder, windows smaller than the image, and few
    channels of a second stage's own: each kind of block is there, and archs that differ in depth alone are equal."""
    for _, node in nodes(cfg.model, "model"):
        if isinstance(node, dict):
            few = {"num_layers": 2, "conv_out_channels": 64, "fc_out_channels": 64}
            node.update({name: value for name, value in few.items() if name in node})
    backbone = cfg.model.backbone
    family = families()[type_name(backbone)]
    arch = family.archs[backbone.arch] if isinstance(backbone.arch, str) else family.spec_type(**backbone.arch)
    if hasattr(arch, "depths"):
        depths: dict[str, Any] = {"depths": tuple(min(depth, 2) for depth in arch.depths)}
    elif "decode_head" not in cfg.model:  # one column of blocks
        depths = {"depth": 2}
    else:  # with four for the taps, and narrow
        depths = {"depth": 4, "dim": 64, "num_heads": 4}
        if len(backbone.get("taps", ())) == 4:
            backbone.taps = (0, 1, 2, 3)
        for part in ("neck", "decode_head", "auxiliary_head"):
            narrow(cfg.model.get(part) or {})
    if getattr(arch, "parallel_depth", 0):
        depths["parallel_depth"] = 1
    if getattr(arch, "taps", None):
        depths["taps"] = None
    if (getattr(arch, "window_size", None) or 0) > 32:  # a small image would be padded to one of them
        depths["window_size"] = 8
    backbone.arch = dataclasses.asdict(dataclasses.replace(arch, **depths))
    if backbone.get("frozen_stages") != "all":
        backbone.drop_path_rate = 0.1
    backbone.pop("init_cfg", None)
    return cfg


def narrow(part: dict[str, Any]) -> None:
    """64 channels for those of the network, and for more of a head's own."""
    for name, value in part.items():
        if name in ("in_channels", "out_channels", "channels", "widths"):
            part[name] = [64] * len(value) if isinstance(value, (list, tuple)) else min(value, 64)


TRIALS: dict[str, Trial] = {}
"""By the network and the optimizer. Many configs differ in their schedule, their weights and their depth alone."""


def adapters_of(cfg: Config) -> AbstractContextManager[None]:
    """Within it, the library of adapters can be imported, if the config has some."""
    if not cfg.model.backbone.get("adapters"):
        return nullcontext()
    if not peft.IS_THERE:
        pytest.skip("peft is not installed: `make test` installs it")
    return peft.importable()


def uncounted(run: Callable[[], Any]) -> int:
    """In place of the peak, whose record takes a sixth of the time."""
    run()
    return 0


def trial_of(cfg: Config) -> Trial:
    parts = {"model": cfg.model.to_dict(), "optim_wrapper": cfg.optim_wrapper.to_dict()}
    key = json.dumps(parts, sort_keys=True)
    if key not in TRIALS:
        with adapters_of(cfg):
            TRIALS[key] = try_config(cfg, size=(64, 96), images=2)
    return TRIALS[key]


@pytest.mark.xdist_group("dry_run")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*ALIKE, *SIZES)])
def test_training_and_test_step_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "peak_bytes", uncounted)
    cfg = with_few_blocks(with_few_queries(with_few_boxes(load(name))))
    check_trial(name, cfg.default_scope, trial_of(cfg))


def of_any_size(name: str) -> dict[str, Any]:
    """The model and the optimizer, without widths of the backbone, numbers of its blocks and heads, and channels that a
    head takes."""
    cfg = with_few_blocks(load(name))
    for field in ("depths", "dims", "num_heads", "mlp_ratios"):
        cfg.model.backbone.arch.pop(field, None)
    for _, node in nodes(cfg.model, "model"):
        if isinstance(node, dict):
            node.pop("in_channels", None)
    return {"model": cfg.model.to_dict(), "optim_wrapper": cfg.optim_wrapper.to_dict()}


def test_configs_that_another_stands_for_differ_in_sizes_of_the_backbone_alone() -> None:
    assert not SIZES.keys() & {*SIZES.values()}
    of_others = {name: of_any_size(name) for name in SIZES.values()}
    assert [name for name, other in SIZES.items() if of_any_size(name) != of_others[other]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_and_test_step_run_at_full_depth(name: str) -> None:
    cfg = with_few_queries(with_few_boxes(load(name)))
    with adapters_of(cfg):
        check_trial(name, cfg.default_scope, try_config(cfg, size=(64, 96), images=2))


def check_trial(name: str, scope: str, trial: Trial) -> None:
    assert trial.losses.keys() > {"loss"}
    assert all(torch.tensor(value).isfinite() for value in trial.losses.values()), trial.losses
    assert not trial.unreached
    if scope == "mmseg":
        assert trial.result.pred_sem_seg.data.shape == (1, 64, 96)
    else:
        assert trial.result.pred_instances.bboxes.isfinite().all()
        assert ("masks" in trial.result.pred_instances) == ("mask_rcnn" in name or "mask2former" in name)


@pytest.mark.parametrize("name", NAMES)
def test_dumped_config_is_equal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load(name)
    if name != NAMES[0]:  # most of the time goes into the look of the file
        monkeypatch.setattr(mmengine.config.config, "FormatCode", lambda text, **_: (text, True))
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == cfg.to_dict()


def test_the_table_of_memory_has_every_config() -> None:
    lines = (CONFIGS.parent / "docs" / "memory.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("|")[1].strip() for line in lines if line.startswith("| ")} - {"config", "---"}
    assert rows == {*NAMES}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("retinanet_pvt_t_coco", (800, 1333)),
        ("mask_rcnn_swin_t_mini", (224, 224)),
        ("segformer_mit_b5_640_ade20k", (640, 640)),
    ],
)
def test_image_size_comes_from_the_config(name: str, size: tuple[int, int]) -> None:
    assert image_size(load(name)) == size


def test_memory_counts_what_a_step_holds() -> None:
    cfg = load("segformer_mit_b0_mini")
    small, large, more = (try_config(cfg, (side, 64), images) for side, images in ((64, 1), (256, 1), (64, 4)))
    parameters = 3.7e6 * 4
    # Weights, gradients and the two moments of AdamW; the optimizer makes them when the activations are gone.
    assert small.training_bytes > 4 * parameters
    assert small.test_bytes > parameters
    assert large.training_bytes > small.training_bytes
    assert more.training_bytes == pytest.approx(large.training_bytes, rel=0.2)
    assert more.test_bytes == small.test_bytes  # one image


def test_the_tool_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(CONFIGS / "segformer_mit_b0_mini.py"), "--size", "64", "96", "--images", "2"])
    *_, line = capsys.readouterr().out.splitlines()
    name, size, images, *numbers = line.strip("| ").split(" | ")
    assert (name, size, images) == ("segformer_mit_b0_mini", "64x96", "2")
    assert [float(number) > 0 for number in numbers] == [True] * 3


def test_frozen_parameters_are_not_listed_and_other_warnings_are(capsys: pytest.CaptureFixture[str]) -> None:
    logger = MMLogger.get_instance("dry_run_test")
    with _quiet():
        logger.warning("backbone.stem.proj.bias is skipped since its requires_grad=False")
        logger.warning("optim_wrapper.paramwise_cfg has no effect here")
    shown = "".join(capsys.readouterr())
    assert "has no effect here" in shown
    assert "is skipped" not in shown


@pytest.mark.parametrize("options", [["--size", "1", "2", "3"], ["--size", "0"], ["--images", "0"]], ids=str)
def test_bad_numbers_are_refused(options: list[str]) -> None:
    with pytest.raises(UserError, match=options[0]):
        main([str(CONFIGS / "segformer_mit_b0_mini.py"), *options])
