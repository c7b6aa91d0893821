"""tools/train.py and tools/test.py on a segmentation config: a whole small run, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.runs import run_tool, write_config

pytest.importorskip("mmseg")

from mmengine.config import Config

from mm_vitbackbones.checkpoints.tables import mit, segformer_head
from mm_vitbackbones.checkpoints.tables.pvt_common import OVERLAP_OFFICIAL
from mm_vitbackbones.checkpoints.unwrapping import unwrap_model
from mm_vitbackbones.cli.test import use_tta
from mm_vitbackbones.data import mini
from mm_vitbackbones.engine import resume
from mm_vitbackbones.errors import UserError

pytestmark = [pytest.mark.mmseg, pytest.mark.xdist_group("train_segmentor")]


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config("tiny_segmentor", data, tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The work dir of four iterations, and what was said."""
    work_dir = tmp_path_factory.mktemp("work") / "whole"
    result = run_tool("train", config, "--work-dir", work_dir, "--seed", 1, "--check-all")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return work_dir, result.stdout


def table(said: str) -> dict[str, float]:
    """The IoU of each class, as printed."""
    rows = [line.split("|") for line in said.splitlines() if line.startswith("|")]
    return {row[1].strip(): float(row[2]) for row in rows if row[1].strip() != "Class"}


def test_training_prints_metrics_and_replaced_norms(trained: tuple[Path, str]) -> None:
    work_dir, said = trained
    for part in ("aAcc:", "mIoU:", "mAcc:", "looking at masks: 16/16", "SyncBN is replaced by BN in 1 places"):
        assert part in said
    assert set(table(said)) == set(mini.LABELS)
    assert (work_dir / "curves.png").is_file()
    assert (work_dir / "iter_4.pth").is_file()


def test_the_console_is_short_and_the_log_complete(trained: tuple[Path, str]) -> None:
    work_dir, shown = trained
    assert shown.partition("Iter(train)")[0].count("\n") <= 30
    log = next(work_dir.glob("*/*.log")).read_text()
    for detail in (
        "Config:\n",
        "Hooks will be executed",
        "decode_head.norm.weight - torch.Size",
        "paramwise_options -- decode_head.norm.weight:weight_decay",
        "UserWarning: ``build_loss``",
    ):
        assert detail in log
        assert detail not in shown


def test_mmseg_builds_a_segmentor_from_a_checkpoint(trained: tuple[Path, str], config: Path) -> None:
    from mmseg.apis import init_model

    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        model = init_model(str(trained[0] / config.name), str(trained[0] / "iter_4.pth"), device="cpu")
    finally:
        torch.serialization.add_safe_globals(before)
    assert list(model.dataset_meta["classes"]) == list(mini.LABELS)
    state = torch.load(trained[0] / "iter_4.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_run_can_be_resumed(trained: tuple[Path, str], config: Path, tmp_path: Path) -> None:
    short = ("--cfg-options", "train_cfg.max_iters=2")
    first = run_tool("train", config, "--work-dir", tmp_path, "--seed", 1, "--verbose", *short)
    assert first.returncode == 0, first.stderr
    assert "paramwise_options -- decode_head.norm.weight:weight_decay" in first.stdout
    assert "UserWarning: ``build_loss``" in first.stderr
    result = run_tool("train", config, "--work-dir", tmp_path, "--resume")
    assert result.returncode == 0, result.stderr
    assert "Iter(train) [4/4]" in result.stdout
    assert "Iter(train) [2/4]" not in result.stdout


def test_tta_sliding_windows_and_output_files_combine(trained: tuple[Path, str], config: Path, tmp_path: Path) -> None:
    out, drawings = tmp_path / "labels.pkl", tmp_path / "drawings"
    window = ["model.test_cfg.mode=slide", "model.test_cfg.crop_size=(64,64)", "model.test_cfg.stride=(48,48)"]
    window.append("test_dataloader.dataset.indices=4")
    files = ("--out", out, "--show-dir", drawings, "--work-dir", tmp_path / "test")
    result = run_tool("test", config, trained[0] / "iter_4.pth", "--tta", *files, "--cfg-options", *window)
    assert result.returncode == 0, result.stderr
    assert set(table(result.stdout)) == set(mini.LABELS)
    maps = pickle.loads(out.read_bytes())
    assert len(maps) == 4
    for each in maps:
        assert each["labels"].shape == cv2.imread(each["img_path"]).shape[:2]
    assert len(list(drawings.glob("smoke_*_gt_pred.png"))) == 4


def published(trained: Path, layout: str) -> dict[str, torch.Tensor]:
    """The trained network's weights as the authors or Hugging Face name them."""
    ours = unwrap_model(resume.read(trained / "iter_4.pth")).state
    parts = {part: {} for part in ("backbone", "decode_head")}
    for key, tensor in ours.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    encoder, head = {
        "official": (OVERLAP_OFFICIAL, segformer_head.OFFICIAL),
        "huggingface": (mit.HUGGINGFACE, segformer_head.HUGGINGFACE),
    }[layout]
    prefix = {"official": "backbone.", "huggingface": "segformer."}[layout]
    state = {prefix + key: tensor for key, tensor in encoder.to_theirs(parts["backbone"])[0].items()}
    state |= {f"decode_head.{key}": tensor for key, tensor in head.to_theirs(parts["decode_head"])[0].items()}
    return {key: tensor.contiguous() for key, tensor in state.items()}


def test_published_files_of_a_whole_network_give_its_metrics(
    trained: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    official = published(trained[0], "official") | {"decode_head.conv_seg.weight": torch.zeros(9, 128, 1, 1)}
    torch.save({"state_dict": official}, tmp_path / "official.pth")
    save_file(published(trained[0], "huggingface"), tmp_path / "huggingface.safetensors")
    said = {}
    for checkpoint in (trained[0] / "iter_4.pth", tmp_path / "official.pth", tmp_path / "huggingface.safetensors"):
        result = run_tool("test", config, checkpoint, "--work-dir", tmp_path / checkpoint.stem)
        assert result.returncode == 0, result.stderr
        said[checkpoint.stem] = result.stdout
    assert table(said["iter_4"]) == table(said["official"]) == table(said["huggingface"])
    assert "left out, as unused: conv_seg.weight" in said["official"]
    for name in ("official", "huggingface"):
        assert "all tensors of the head come from the file" in said[name]
        assert "all tensors of the backbone come from the file" in said[name]
    del official["decode_head.linear_pred.bias"]
    torch.save({"state_dict": official}, tmp_path / "half.pth")
    result = run_tool("test", config, tmp_path / "half.pth", "--work-dir", tmp_path / "half")
    assert result.returncode == 2
    assert "linear_pred.bias" in result.stderr


def refusal(*arguments: Any) -> str:
    result = run_tool(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return said


def test_a_wrong_mask_is_refused_before_training(tmp_path: Path) -> None:
    mini.prepare(tmp_path / "mini", ["smoke"])
    path = next((tmp_path / "mini/annotations/smoke").glob("*_0003.png"))
    Image.fromarray(np.full_like(np.asarray(Image.open(path)), 40)).save(path)
    said = refusal(
        "train", write_config("tiny_segmentor", tmp_path / "mini", tmp_path), "--work-dir", tmp_path / "work"
    )
    assert f"{path} has the labels 40" in said


def test_classes_that_do_not_match_are_refused(config: Path, tmp_path: Path) -> None:
    said = refusal("train", config, "--work-dir", tmp_path / "work", "--cfg-options", "num_classes=4")
    assert (
        "model.decode_head.num_classes=4, but the data set of train_dataloader and val_dataloader has 9 classes" in said
    )


def test_tta_needs_a_tta_pipeline() -> None:
    with pytest.raises(UserError, match="--tta needs tta_pipeline"):
        use_tta(Config(dict(tta_model=dict(type="SegTTAModel"), model=dict())))
