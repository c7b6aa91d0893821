"""What the file of an image says of itself before it is loaded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_vitbackbones.data import image_files
from mm_vitbackbones.data.image_files import why_unreadable
from mm_vitbackbones.data.statistics import Statistics


def png(side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_chunk_that_says_to_be_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(png())
    place = content.index(b"IDAT") - 4
    content[place : place + 4] = (2_164_260_999).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    why = why_unreadable(path)
    assert why == f"it is broken: a chunk says 2,164,260,999 bytes, and the file has {len(content):,}"


def test_chunks_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST_CHUNKS", 100)
    content = png()
    end = content.index(b"IEND") - 4
    path = tmp_path / "a.png"
    path.write_bytes(content[:end] + b"\0\0\0\0tEXt\0\0\0\0" * 100 + content[end:])
    assert why_unreadable(path) == "it is broken: it has more than 100 chunks"


def test_whole_and_cut_off_files_are_left_to_their_reader(tmp_path: Path) -> None:
    content = png(64)
    for name, part in (("whole.png", content), ("cut.png", content[: len(content) // 2]), ("more.png", content + b"x")):
        (tmp_path / name).write_bytes(part)
        assert why_unreadable(tmp_path / name) == ""


def test_bytes_are_counted_as_any_other_numbers_are_added() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    counted, added = Statistics(), Statistics()
    for part in (image[:20], image[20:]):
        counted.add(part)
        added.add(part.astype(np.float32))
    for one in ("mean", "std", "count"):
        np.testing.assert_allclose(getattr(counted, one), getattr(added, one), rtol=1e-12)
    np.testing.assert_allclose(counted.std, image.reshape(-1, 3).std(0), rtol=1e-12)
    assert counted.left_out == 0
