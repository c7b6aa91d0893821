"""Files of annotations, masks and images that are broken at any byte, or ask for memory: each is read or refused in one
line, within a bound of time and memory, and nothing is written outside of the output folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import coco

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones import libraries
from mm_vitbackbones.cli import convert_dataset, datasets, evaluators
from mm_vitbackbones.cli.predict import find_images
from mm_vitbackbones.data import masks
from mm_vitbackbones.data.reading import ImageReader, reason
from mm_vitbackbones.data.sizes import SizeReader
from mm_vitbackbones.engine.drawing import displayable, draw_prediction
from mm_vitbackbones.errors import UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]

SECONDS, MEMORY = 10, 2 * 2**30

EXTREMES = (
    "NaN",
    "-Infinity",
    "1e400",
    "1" + "0" * 400,
    "-1",
    "1e9",
    "4294967296",
    "null",
    '""',
    "[]",
    "{}",
    '"\\ud800"',
)
"""What a number in a text of JSON is replaced by."""

CASES = [pytest.param(0, 24, id="short"), pytest.param(1000, 4000, id="campaign", marks=pytest.mark.slow)]
"""The first case and how many there are."""


@contextlib.contextmanager
def bounded(case: str) -> Iterator[None]:
    """Fail after so many seconds, and where so much more memory is asked for at once. A ``UserError`` is an answer."""

    overdue = []

    def late(*_: Any) -> None:
        overdue.append(case)  # a reader may take the error for one of a file
        raise AssertionError(f"{case}: no answer within {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    except UserError as error:
        message = str(error)
        assert "MemoryError" not in message, case
        assert "Insufficient memory" not in message, case
        assert len(message) < 5000, case
    except Exception as error:
        error.add_note(case)
        raise
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
    assert not overdue, f"{case}: no answer within {SECONDS} s"


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut, doubled or taken out."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data))) if data else 0
        way = rng.integers(5)
        if way == 0:
            data[place : place + 1] = bytes([rng.integers(256)])
        elif way == 1:
            del data[place:]
        elif way == 2:
            data[place:place] = data[place : place + int(rng.integers(1, 40))]
        elif way == 3:
            del data[place : place + int(rng.integers(1, 40))]
        else:
            data[place : place + 4] = struct.pack(">I", int(rng.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1])))
    return bytes(data)


def broken_json(text: str, rng: np.random.Generator) -> bytes:
    """Numbers of a text replaced by extremes, or bytes broken."""
    if rng.random() < 0.3:
        return broken(text.encode(), rng)
    parts = text.split(" ")
    for _ in range(rng.integers(1, 4)):
        numbers = [index for index, part in enumerate(parts) if part.strip(",]}").lstrip("[{").isdigit()]
        index = numbers[rng.integers(len(numbers))]
        digits = parts[index].strip(",]}").lstrip("[{")
        parts[index] = parts[index].replace(digits, str(rng.choice(EXTREMES)))
    return " ".join(parts).encode()


def png(width: int, height: int) -> bytes:
    """The file of a PNG image of any size, whose pixels are almost none."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def image_file(rng: np.random.Generator) -> tuple[str, bytes]:
    """A suffix, and a file that is broken or large."""
    if rng.random() < 0.2:
        sides = rng.choice([1, 2, 16000, 40000, 10**6, 2**31 - 1], 2)
        return ".png", png(int(sides[0]), int(sides[1]))
    kind, suffix = (("PNG", ".png"), ("JPEG", ".jpg"), ("BMP", ".bmp"), ("TIFF", ".tif"), ("WEBP", ".webp"))[
        rng.integers(5)
    ]
    file = io.BytesIO()
    height, width = rng.choice([1, 2, 20, 2600], 2) if rng.random() < 0.3 else (16, 20)
    Image.fromarray(rng.integers(0, 256, (int(height), int(width), 3), dtype=np.uint8)).save(file, kind)
    return suffix, broken(file.getvalue(), rng) if rng.random() < 0.8 else file.getvalue()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("first", "count"), CASES)
def test_annotations_that_are_broken_or_extreme(
    first: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.use("mmdet")
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    coco.write_images(source)
    text = json.dumps(coco.content())
    monkeypatch.chdir(tmp_path)
    answers = 0
    for case in range(first, first + count):
        rng = np.random.default_rng(case)
        (source / "boxes.json").write_bytes(broken_json(text, rng))
        before = tree(tmp_path)
        for with_masks in (False, True):
            with bounded(f"case {case}, masks={with_masks}"):
                datasets.check_annotations(
                    coco.dataset(source, with_masks), coco.CLASSES, "train_dataloader", every=True
                )
                answers += 1
        with bounded(f"case {case}, metric"):
            evaluators.check_measured(source / "boxes.json", coco.CLASSES, ["bbox", "segm"], "val_evaluator")
        with bounded(f"case {case}, conversion"):
            convert_dataset.main([str(source), str(out), "--val", "0", "--copy"])
        shutil.rmtree(out, ignore_errors=True)
        assert tree(tmp_path) == before, f"case {case}"
    assert 0 < answers < 2 * count


@pytest.mark.parametrize(("first", "count"), CASES)
def test_images_and_masks_that_are_broken_or_large(first: int, count: int, tmp_path: Path) -> None:
    libraries.use("mmseg")
    steps: list[Any] = [dict(type="LoadImageFromFile")]
    read, size_of = ImageReader(steps), SizeReader(steps)
    of_masks = masks.Masks([*steps, dict(type="LoadAnnotations")], Listed(), "train_dataloader", every=False)
    loaded = 0
    for case in range(first, first + count):
        suffix, content = image_file(np.random.default_rng(case))
        path = tmp_path / f"image{suffix}"
        path.write_bytes(content)
        before = tree(tmp_path)
        with bounded(f"case {case}, predict"):
            ((found, _),), none = find_images([tmp_path])
            assert (found, none) == (path, [])
            image = read({"img_path": str(path)})
            draw_prediction(displayable(image), {}, None, None, 0.3)
            loaded += 1
        with bounded(f"case {case}, size"):
            size_of({"img_path": str(path)}, whole=False)
        with bounded(f"case {case}, mask"):
            of_masks.labels({"img_path": str(path), "seg_map_path": str(path)})
        assert tree(tmp_path) == before, f"case {case}"
        path.unlink()
    assert count / 10 < loaded < count


class Listed:
    """What is asked of a data set of segmentation."""

    def __init__(self) -> None:
        self.metainfo = {"classes": tuple(map(str, range(255)))}


@pytest.mark.parametrize(
    ("width", "height"), [(16000, 16000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)], ids=["large", "largest", "wide"]
)
def test_a_small_file_of_a_large_image_is_refused_before_it_is_loaded(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.use("mmseg")
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height))
    steps = [dict(type="LoadImageFromFile")]
    listed = masks.Masks([*steps, dict(type="LoadAnnotations")], Listed(), "train_dataloader", every=False)
    info = {"img_path": str(path), "seg_map_path": str(path)}
    expected = rf"it has {width * height:,} pixels, and the limit is 134,217,728; .*MM_VITBACKBONES_LIMITS=10"
    for refuse in (
        lambda: ImageReader(steps)(info),
        lambda: SizeReader(steps)(info, whole=False),
        lambda: listed.labels(info),
        lambda: convert_dataset.masks.loaded_size(path),
    ):
        with bounded("large"), pytest.raises(UserError, match=expected):
            refuse()


@pytest.mark.parametrize("name", ["a.png", "a.json", "a.txt", "a.xml", "classes.txt"])
def test_a_named_pipe_among_the_files_is_not_waited_for(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    coco.write_images(source)
    os.mkfifo(source / "images" / name)
    for kind in ("coco", "yolo", "voc", "labelme", "masks"):
        with bounded(kind), contextlib.suppress(UserError):
            convert_dataset.main([str(source), str(tmp_path / "out"), "--format", kind])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with bounded("read"), pytest.raises(UserError, match="it is a named pipe, and no file"):
        ImageReader([dict(type="LoadImageFromFile")])({"img_path": str(source / "images" / name)})


def test_bounds_are_seen() -> None:
    with pytest.raises(MemoryError), bounded("memory"):
        bytearray(2 * MEMORY)
    with pytest.raises(AssertionError, match="memory"), bounded("memory"):
        raise UserError(reason(MemoryError()))
