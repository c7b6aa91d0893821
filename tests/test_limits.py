"""Limits of what files ask for: one switch, one form of message, and pages that say the same numbers."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.bands import write_tiff
from helpers.paths import ROOT
from mm_vitbackbones import limits
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.data.bands import read_bands
from mm_vitbackbones.data.reading import reason
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.limits import Limit

ALL = {name: value for name, value in vars(limits).items() if isinstance(value, Limit)}
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", ALL)
def test_one_switch_raises_every_limit_and_every_message_names_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = ALL[name]
    monkeypatch.delenv(limits.SWITCH, raising=False)
    assert limit.exceeded(limit.most) == limit.exceeded(limit.most + 5, besides=5) == ""
    how = "if you trust the file, the environment variable MM_VITBACKBONES_LIMITS=10 multiplies all limits"
    assert limit.exceeded(limit.most + 1) == f"{limit.most + 1:,} {limit.unit}, and the limit is {limit.most:,}; {how}"
    assert limit.exceeded(limit.most + 9, 8).startswith(f"{limit.most + 9:,} {limit.unit}, and the limit is ")
    assert "MM_VITBACKBONES_LIMITS=1000 " in limit.exceeded(999 * limit.most)
    assert limit.exceeded(float("inf")).startswith("more than 10^20 ")
    monkeypatch.setenv(limits.SWITCH, "10")
    assert limit.exceeded(10 * limit.most) == ""
    assert f"the limit is {10 * limit.most:,};" in limit.exceeded(10 * limit.most + 1)


def test_the_page_on_security_lists_every_limit_with_its_number() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    listed = re.findall(r"^\| [^|]+ \| ([\d,]+ [^|]+?) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(f"{limit.most:,} {limit.unit}" for limit in ALL.values())


def test_pages_name_only_environment_variables_that_are_read() -> None:
    source = "".join(path.read_text() for path in (ROOT / "mm_vitbackbones").rglob("*.py"))
    read = set(re.findall(r'"(MM_VITBACKBONES_\w+)"', source))
    named = {name for page in PAGES for name in re.findall(r"MM_VITBACKBONES_[A-Z_]+", page.read_text())}
    assert limits.SWITCH in named
    assert named <= read


@pytest.mark.parametrize("text", ["many", "0", "0.5", "nan", "-1", "1e99", ""])
def test_a_switch_that_is_no_factor_is_one_line_of_every_command(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(limits.SWITCH, text)
    assert run(lambda argv: None, []) == 2
    said = capsys.readouterr().err
    assert (
        said == f"error: the environment variable MM_VITBACKBONES_LIMITS is {text!r}: give a factor of at least 1, "
        "such as 10\n"
    )


LOADS = """
from mm_vitbackbones import limits
limits.PIXELS = limits.Limit(1000, "pixels")
import mm_vitbackbones.cli, cv2, numpy
try:
    print(cv2.imdecode(numpy.fromfile("a.png", numpy.uint8), 0).shape)
except cv2.error as error:
    print(error)
"""


@pytest.mark.parametrize(("factor", "said"), [("1", "pixels <= CV_IO_MAX_IMAGE_PIXELS"), ("1.6", "(40, 40)")])
def test_opencv_obeys_the_limit_and_its_switch_in_every_command(factor: str, said: str, tmp_path: Path) -> None:
    """A training loads images by it, and not all of them are looked at before."""
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    environment = {"PYTHONPATH": str(ROOT), limits.SWITCH: factor}
    command = [sys.executable, "-c", LOADS]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert said in result.stdout, result


@pytest.mark.parametrize(("factor", "reads"), [("1", False), ("1.6", True)])
def test_pillow_obeys_the_limit_and_its_switch_in_every_command(
    factor: str, reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are loaded by it."""
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(limits, "PIXELS", Limit(1000, "pixels"))
    monkeypatch.setenv(limits.SWITCH, factor)
    monkeypatch.delenv(limits.OPENCV, raising=False)
    own, said = Image.MAX_IMAGE_PIXELS, []

    def load(argv: list[str]) -> None:
        try:
            Image.open(tmp_path / "a.png").load()
        except Image.DecompressionBombError as error:
            said.append(reason(error))

    assert run(load, []) == 0
    assert own == Image.MAX_IMAGE_PIXELS
    why = "it has more pixels than the limit of 1,000; if you trust the file, the environment variable MM_VITBACKBONES"
    assert said == [] if reads else said[0].startswith(why)


def test_a_limit_of_opencvs_own_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "5")
    error = cv2.error("(-215:Assertion failed) pixels <= CV_IO_MAX_IMAGE_PIXELS in function 'read'")
    assert ", or OPENCV_IO_MAX_IMAGE_PIXELS=5 forbids it; " in reason(error)


def resized(path: Path, width: int, height: int, page: int) -> None:
    """Have a page of a TIFF file say that it is of this size."""
    data = bytearray(path.read_bytes())
    for tag, value in ((256, width), (257, height)):
        places = [found.start() for found in re.finditer(re.escape(struct.pack("<HHI", tag, 4, 1)), bytes(data))]
        struct.pack_into("<I", data, places[page] + 8, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("pages", "which", "size", "said"),
    [
        (2, 0, (16000, 16000), "it has 256,000,000 pixels, and the limit is 134,217,728;"),
        (2, 1, (16000, 16000), "it has 256,000,000 pixels, and the limit is 134,217,728;"),
        (2, 1, (2**32 - 1, 2**32 - 1), "it has 18,446,744,065,119,617,025 pixels, and the limit is 134,217,728;"),
        (3, 2, (16000, 16000), "it has 256,000,000 pixels, and the limit is 134,217,728;"),  # a smaller copy
    ],
    ids=["first", "second", "largest", "copy"],
)
def test_a_page_of_a_tiff_file_is_refused_before_any_is_decoded(
    pages: int, which: int, size: tuple[int, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, [np.zeros((4, 4), np.uint8)] * pages, copies=pages - 2)
    resized(path, *size, page=which)
    monkeypatch.setattr("cv2.imreadmulti", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=re.escape(said)):
        read_bands(path)


@pytest.mark.parametrize("planar", [False, True])
def test_bands_of_a_tiff_file_count_together(planar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uint16 is loaded as float32: 4 bytes each."""
    path = tmp_path / "a.tif"
    for pages in ([np.zeros((32, 32, 6), np.uint16)], [np.zeros((32, 32), np.uint16)] * 6):
        write_tiff(path, pages, planar)
        monkeypatch.setattr(limits, "IMAGE", Limit(path.stat().st_size, "bytes"))
        assert 32 * 32 * 6 * 2 < path.stat().st_size < 32 * 32 * 6 * 4
        with pytest.raises(UserError, match=r"it has \d\d,\d\d\d bytes, and the limit is"):
            read_bands(path)


def test_an_array_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 9), np.uint8))
    monkeypatch.setattr(limits, "PIXELS", Limit(71, "pixels"))
    assert read_bands(tmp_path / "a.npy").shape == (2, 8, 9)
    with pytest.raises(UserError, match="it has 72 pixels, and the limit is 71;"):
        read_bands(tmp_path / "a.npy", channels_first=True)
