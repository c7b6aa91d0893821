"""The configs of docs/own_data.md for two classes and for six bands, as they are written there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.paths import ROOT

pytest.importorskip("mmseg")

from mm_vitbackbones.cli import check_data
from mm_vitbackbones.cli.arguments import run

pytestmark = pytest.mark.mmseg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs, under the names that their first lines give, and data where they look for it."""
    root = tmp_path_factory.mktemp("mine")
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_data.md").read_text(), flags=re.DOTALL):
        if name := re.match(r"# (segformer_\w+\.py), ", block):
            (root / name[1]).write_text(block)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images, masks = (root / f"data/mine/{kind}/{split}" for kind in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(images / "0.jpg")
        np.save(images / "0.npy", rng.normal(1000, 300, (48, 64, 6)))
        Image.fromarray(np.array([0, 1, 255], np.uint8)[rng.integers(0, 3, (48, 64))]).save(masks / "0.png")
    return root


@pytest.mark.parametrize("name", ["segformer_two.py", "segformer_bands.py"])
def test_the_configs_of_the_docs_pass_the_checks(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run(check_data.main, [f"./{name}", "--check-all"]) == 0, capsys.readouterr().err


def test_statistics_of_the_docs_config_are_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run(check_data.main, ["./segformer_bands.py", "--statistics"]) == 0, capsys.readouterr().err
    assert re.search(r"mean=\[(9\d\d|10\d\d)\.?", capsys.readouterr().out)
