"""``tools/dist_test.sh`` with two processes: they share no output, and the summary counts what is on the disk."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.paths import TOOLS
from helpers.runs import write_config

pytest.importorskip("mmseg")

from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.data import mini

pytestmark = [pytest.mark.mmseg, pytest.mark.slow]


def test_two_processes_write_an_output_for_each_image_and_count_them(tmp_path: Path) -> None:
    """Five images: the second process gets one of them again, to have as many as the first."""
    data = tmp_path / "mini"
    mini.prepare(data, ["smoke"])
    config = write_config("tiny_segmentor", data, tmp_path)
    torch.save({"state_dict": build_model(load_config(config, {})).state_dict()}, tmp_path / "a.pth")
    shown, out = tmp_path / "shown", tmp_path / "out.pkl"
    options = ["--show-dir", shown, "--out", out, "--work-dir", tmp_path / "w"]
    options += ["--cfg-options", "test_dataloader.dataset.indices=5"]
    command = [TOOLS / "dist_test.sh", config, tmp_path / "a.pth", "2", *options]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    drawings = sorted(path.name for path in shown.iterdir())
    assert drawings == [f"smoke_{i:04}_gt_pred.png" for i in range(5)]
    (count,) = re.findall(rf"drawings: {re.escape(str(shown))} \((\d+) files\)", result.stdout)
    assert int(count) == len(drawings)
    paths = [Path(each["img_path"]).name for each in pickle.loads(out.read_bytes())]
    assert sorted(paths) == [f"smoke_{i:04}.png" for i in range(5)]
