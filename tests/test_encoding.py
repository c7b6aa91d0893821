"""Commands in an environment without an encoding, with names that are not ASCII."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import coco
from helpers.paths import ROOT

NO_ENCODING = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}


def run(folder: Path, *arguments: Any) -> subprocess.CompletedProcess[bytes]:
    """``python -m mm_vitbackbones`` in such an environment."""
    command = [sys.executable, "-m", "mm_vitbackbones", *map(str, arguments)]
    environment = {**os.environ, **NO_ENCODING, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set for detection, all of whose names have a letter that is not ASCII."""
    pytest.importorskip("mmdet")
    root = tmp_path / "d\u00e4ta"
    root.mkdir()
    coco.write_images(root)
    text = json.dumps(coco.content(), ensure_ascii=False).replace('"cat"', '"k\u00e4tzchen"')
    for path in (root / "images").iterdir():
        path.rename(path.with_name(f"\u00e4{path.name}"))
    (root / "boxes.json").write_text(text.replace('"file_name": "', '"file_name": "\u00e4'), encoding="utf-8")
    return root


def test_names_and_text_are_read_and_written_in_utf8(tmp_path: Path) -> None:
    program = (
        "from mm_vitbackbones.encoding import use_utf8; use_utf8(); import pathlib, sys; "
        "print(sys.argv[1], open(sys.argv[1], 'w').encoding, pathlib.Path(chr(0xF6)).write_text(chr(0x20AC)))"
    )
    for streams, shown in (("ascii", rb"\xe4 utf-8 1"), ("utf-8", "\u00e4 utf-8 1".encode())):
        environment = {**os.environ, **NO_ENCODING, "PYTHONIOENCODING": streams}
        command = [sys.executable, "-W", "ignore", "-c", program, "\u00e4"]
        found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert (found.returncode, found.stdout.strip(), found.stderr) == (0, shown, b"")
        assert {name.encode() for name in os.listdir(tmp_path)} == {"\u00e4".encode(), "\u00f6".encode()}
        assert (tmp_path / "\u00f6").read_bytes() == "\u20ac".encode()


def test_commands_take_names_in_utf8(tmp_path: Path) -> None:
    found = run(tmp_path, "tr\u00e4in")
    assert found.returncode == 2
    assert found.stderr.startswith(rb"error: there is no command 'tr\xe4in'; did you mean 'train'")


@pytest.mark.slow
def test_data_are_converted_without_an_encoding(data: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "convert_dataset", data, tmp_path / "\u00f6ut", "--val", "0.4")
    assert (found.returncode, found.stderr) == (0, b"")
    assert rb"  k\xe4tzchen" in found.stdout  # a terminal that cannot show it
    names = [
        json.loads((tmp_path / "\u00f6ut/annotations" / f"{split}.json").read_text()) for split in ("train", "val")
    ]
    assert {category["name"] for name in names for category in name["categories"]} == {"k\u00e4tzchen", "dog"}
    assert all(
        (tmp_path / "\u00f6ut/images" / image["file_name"]).is_file() for name in names for image in name["images"]
    )
    assert list((tmp_path / "\u00f6ut").glob("*.py"))


@pytest.mark.mmdet
@pytest.mark.slow
def test_data_are_checked_and_trained_on_without_an_encoding(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "c\u00f6nfig.py"
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False))
    classes = ("k\u00e4tzchen", "dog")
    dataset = coco.dataset(data, metainfo=dict(classes=classes))
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(64, 48), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ]
    test = dict(dataset, pipeline=steps)
    metric = dict(type="CocoMetric", ann_file=str(data / "boxes.json"), metric="bbox")
    lines = [
        '_base_ = __import__("mm_vitbackbones").recipe("retinanet_pvt_v2_b0_coco")',
        "model = dict(backbone=dict(init_cfg=None), bbox_head=dict(num_classes=2))",
        f"train_dataloader = dict(_delete_=True, dataset={dataset!r}, **{loader!r})",
        f"val_dataloader = dict(_delete_=True, dataset={test!r}, **{loader!r})",
        "test_dataloader = val_dataloader",
        f"val_evaluator = dict(_delete_=True, **{metric!r})",
        "test_evaluator = val_evaluator",
        "train_cfg = dict(max_epochs=1)",
    ]
    config.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "wo\u00fcrk"
    commands = (
        ("check_data", config, "--check-all"),
        ("train", config, "--work-dir", out),
        (
            "test",
            config,
            out,
            "--show-dir",
            tmp_path / "sh\u00f6w",
            "--out",
            tmp_path / "\u00f6.json",
            "--work-dir",
            tmp_path / "t",
        ),
        ("predict", config, out, data / "images", "--out", tmp_path / "\u00fc"),
    )
    for arguments in commands:
        found = run(tmp_path, *arguments)
        assert found.returncode == 0, (arguments[0], found.stdout[-2000:], found.stderr[-3000:])
        assert b"Error" not in found.stderr
    assert len([*(tmp_path / "sh\u00f6w").iterdir()]) == 3
    assert "k\u00e4tzchen" in (out / config.name).read_text(encoding="utf-8")
