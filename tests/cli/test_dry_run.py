"""Every config: a training step and a test step on small images of noise, and a dump that gives the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from helpers.paths import CONFIGS

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli.dry_run import image_size, main, try_config
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import nodes

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
TWINS = [
    "cascade_mask_rcnn_coat_lite_s_coco",
    "cascade_mask_rcnn_coat_s_coco",
    "cascade_mask_rcnn_swin_t_coco",
    "mask_rcnn_coat_lite_mini_coco",
    "mask_rcnn_coat_lite_s_coco",
    "mask_rcnn_coat_mini_coco",
    "mask_rcnn_coat_s_coco",
    "mask_rcnn_pvt_m_coco",
    "mask_rcnn_pvt_s_coco",
    "mask_rcnn_pvt_t_coco",
    "mask_rcnn_swin_s_coco",
    "mask_rcnn_swin_t_coco",
    "retinanet_pvt_l_coco",
    "retinanet_pvt_m_coco",
    "retinanet_pvt_s_coco",
    "retinanet_pvt_t_coco",
]
"""Configs that build the same network and optimizer as their 3x schedule, except for drop path and weights."""


def with_few_boxes(cfg: Config) -> Config:
    """The second stage of a detector takes by far the longest, and as long for small images as for large ones."""
    for _, node in nodes(cfg.model, "model"):
        if isinstance(node, dict) and node.get("type") == "RandomSampler":
            node["num"] = 16
        if isinstance(node, dict) and "nms_pre" in node:
            node["max_per_img"] = 20
    return cfg


@pytest.mark.parametrize("name", TWINS)
def test_twins_build_what_their_3x_schedule_builds(name: str) -> None:
    built = []
    for stem in (name, name.replace("_coco", "_3x_coco")):
        cfg = Config.fromfile(CONFIGS / f"{stem}.py")
        for entry in ("init_cfg", "drop_path_rate"):
            cfg.model.backbone.pop(entry, None)
        built.append((cfg.model.to_dict(), cfg.optim_wrapper.to_dict()))
    assert built[0] == built[1]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TWINS])
def test_training_and_test_step_run(name: str) -> None:
    cfg = with_few_boxes(Config.fromfile(CONFIGS / f"{name}.py"))
    trial = try_config(cfg, size=(64, 96), images=2)
    assert trial.losses.keys() > {"loss"}
    assert all(torch.tensor(value).isfinite() for value in trial.losses.values()), trial.losses
    assert not trial.unreached
    if cfg.default_scope == "mmseg":
        assert trial.result.pred_sem_seg.data.shape == (1, 64, 96)
    else:
        assert trial.result.pred_instances.bboxes.isfinite().all()
        assert ("masks" in trial.result.pred_instances) == ("mask_rcnn" in name)


@pytest.mark.parametrize("name", NAMES)
def test_dumped_config_is_equal(name: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
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
    assert image_size(Config.fromfile(CONFIGS / f"{name}.py")) == size


def test_memory_counts_what_a_step_holds() -> None:
    cfg = Config.fromfile(CONFIGS / "segformer_mit_b0_mini.py")
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


@pytest.mark.parametrize("options", [["--size", "1", "2", "3"], ["--size", "0"], ["--images", "0"]], ids=str)
def test_bad_numbers_are_refused(options: list[str]) -> None:
    with pytest.raises(UserError, match=options[0]):
        main([str(CONFIGS / "segformer_mit_b0_mini.py"), *options])
