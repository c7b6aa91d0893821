from __future__ import annotations

from pathlib import Path

import pytest

from helpers.lite import use_mmcv_of


@pytest.fixture
def mmcv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an mmcv-lite, as far as anything here looks at it, which Python finds first."""
    folder = tmp_path / "mmcv"
    (folder / "ops").mkdir(parents=True)
    (folder / "__init__.py").touch()
    use_mmcv_of(tmp_path, monkeypatch)
    return folder
