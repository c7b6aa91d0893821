"""Every config: a training step and a test step on small images of noise, and a dump that gives the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from helpers.paths import CONFIGS

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli.config import nodes
from mm_vitbackbones.cli.dry_run import image_size, main, try_config
from mm_vitbackbones.errors import UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


def unlike() -> dict[str, str]:
    """One config of all that have the same model but for drop path and pretrained weights, by its model."""
    models: dict[str, str] = {}
    for path in sorted(CONFIGS.glob("*.py")):
        cfg = Config.fromfile(path)
        model = cfg.model.to_dict()
        for entry in ("init_cfg", "drop_path_rate"):
            model["backbone"].pop(entry, None)
        models.setdefault(json.dumps([model, cfg.optim_wrapper.to_dict()], sort_keys=True), path.stem)
    return models


def with_few_boxes(cfg: Config) -> Config:
    """The second stage of a detector takes by far the longest, and as long for small images as for large ones."""
    for _, node in nodes(cfg.model, "model"):
        if isinstance(node, dict) and node.get("type") == "RandomSampler":
            node["num"] = 16
        if isinstance(node, dict) and "nms_pre" in node:
            node["max_per_img"] = 20
    return cfg


@pytest.mark.parametrize("name", unlike().values())
def test_both_steps(name: str) -> None:
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


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_a_dumped_config_is_the_same(name: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == cfg.to_dict()


def test_the_table_of_memory_has_every_config() -> None:
    lines = (CONFIGS.parent / "docs" / "memory.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("|")[1].strip() for line in lines if line.startswith("| ")} - {"config", "---"}
    assert rows == {path.stem for path in CONFIGS.glob("*.py")}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("retinanet_pvt_t_coco", (800, 1333)),
        ("mask_rcnn_swin_t_mini", (224, 224)),
        ("segformer_mit_b5_640_ade20k", (640, 640)),
    ],
)
def test_the_size_is_the_configs_own(name: str, size: tuple[int, int]) -> None:
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
