"""Images of any number of bands are read as their files have them."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.bands import write_tiff
from mm_vitbackbones import limits
from mm_vitbackbones.data.bands import check_steps, read_bands, warn_of_pages
from mm_vitbackbones.data.statistics import Statistics
from mm_vitbackbones.engine.drawing import displayable
from mm_vitbackbones.errors import UserError

TYPES = [np.uint8, np.uint16, np.int16, np.float32]


def image(kind: Any = np.uint16, bands: int = 6) -> np.ndarray:
    return (np.random.default_rng(0).random((9, 7, bands)) * 200).astype(kind)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("form", ["npy", "pages"])
def test_values_and_order_are_those_of_the_file(form: str, kind: Any, tmp_path: Path) -> None:
    given = image(kind)
    path = tmp_path / ("a.npy" if form == "npy" else "a.TIF")
    if form == "npy":
        np.save(path, given)
    else:
        write_tiff(path, [given[..., band] for band in range(6)])
    read = read_bands(path)
    assert read.dtype == (np.uint8 if kind is np.uint8 else np.float32)
    assert np.array_equal(read, given)
    assert np.array_equal(read_bands(path, bands=[5, 1]), given[..., [4, 0]])


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bands", [2, 3, 4, 6])
def test_bands_in_one_page_are_read_by_tifffile(bands: int, planar: bool, tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    given = image(bands=bands)
    write_tiff(tmp_path / "a.tif", [given], planar)
    assert np.array_equal(read_bands(tmp_path / "a.tif"), given)


def test_bands_in_one_page_name_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "a.tif", [image()])
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match="pip install tifffile"):
        read_bands(tmp_path / "a.tif")


def test_smaller_copies_in_a_file_are_no_bands(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    given = image()
    write_tiff(tmp_path / "a.tif", [*np.moveaxis(given, 2, 0), given[::2, ::2, 0]], copies=1)
    assert np.array_equal(read_bands(tmp_path / "a.tif"), given)


def test_an_array_may_have_its_bands_first(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.moveaxis(image(), 2, 0))
    assert np.array_equal(read_bands(tmp_path / "a.npy", channels_first=True), image())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"", "LoadImageFromFile reads other"),
        ("a.npy", b"no array", "no .npy file"),
        ("a.tif", b"no image", "no TIFF file"),
        ("a.tif", b"", "no TIFF file"),
        ("a.npy", np.zeros((2, 3, 4, 5)), "shape"),
        ("a.npy", np.zeros((2, 3), complex), "of numbers"),
        ("a.npy", np.array([{}]), "no .npy file of numbers"),
        ("a.npy", np.zeros((2, 3, 4)), "takes band 6"),
    ],
)
def test_other_files_end_in_one_line(name: str, content: Any, words: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(UserError, match=words) as raised:
        read_bands(tmp_path / name, bands=[1, 6])
    assert "\n" not in str(raised.value)


def test_pages_of_several_sizes_are_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", [np.zeros((4, 5), np.uint8), np.zeros((4, 6), np.uint8)])
    with pytest.raises(UserError, match="5x4, 6x4"):
        read_bands(tmp_path / "a.tif")


def test_the_libraries_loader_of_a_file_of_six_bands_is_reported(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("mmdet")
    logged: list[str] = []
    monkeypatch.setattr("mm_vitbackbones.data.bands.print_log", lambda text, **_: logged.append(text))
    write_tiff(tmp_path / "a.tif", [*np.moveaxis(image(), 2, 0)])
    for loader in ("mm_vitbackbones.LoadMultichannelImage", "mmcv.LoadImageFromFile"):
        warn_of_pages([{"type": loader}], str(tmp_path / "a.tif"), "train_dataloader")
    assert len(logged) == 1
    assert "has 6 bands" in logged[0]


FLIP = dict(type="mmdet.RandomFlip", prob=0.5)


@pytest.mark.parametrize(
    ("step", "channels", "words"),
    [
        (dict(type="mmdet.PhotoMetricDistortion"), 6, "PhotoMetricDistortion takes images of 3"),
        (dict(type="mmseg.PhotoMetricDistortion"), 2, "PhotoMetricDistortion takes images of 3"),
        (dict(type="mmcv.RandomApply", transforms=[dict(type="mmdet.Equalize")]), 6, "Equalize"),  # drops three
        (dict(type="mmcv.RandomChoice", transforms=[[FLIP], [dict(type="mmdet.ShearX")]]), 6, "ShearX"),
        (dict(type="mmdet.Mosaic"), 6, "Mosaic"),
        (dict(type="mmdet.Pad", size=(64, 64)), 6, "pad_size_divisor"),
        (dict(type="mmdet.Pad", size=(64, 64)), 4, None),
        (dict(type="mmdet.Expand"), 6, "mean=.* of 6 values"),
        (dict(type="mmdet.Expand", mean=[0] * 6), 6, None),
        (dict(type="mmseg.RandomCutOut", prob=1.0, n_holes=2), 6, "fill_in"),
        (dict(type="mmseg.RandomCutOut", prob=1.0, n_holes=2, fill_in=(0,) * 6), 6, None),
        (dict(type="mmdet.PhotoMetricDistortion"), 3, None),
        (dict(type="mmdet.PhotoMetricDistortion"), 1, None),  # an error of its own
        (FLIP, 6, None),
        (dict(type="mmdet.Resize", scale=(64, 64)), 6, None),
        (dict(type="mmseg.RandomMosaic", prob=1.0), 6, None),
    ],
)
def test_steps_that_take_three_channels_are_refused(step: Any, channels: int, words: str | None) -> None:
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    pipeline = [dict(type="mm_vitbackbones.LoadMultichannelImage"), step]
    if words is None:
        check_steps(pipeline, channels)
    else:
        with pytest.raises(UserError, match=words):
            check_steps(pipeline, channels)


def test_steps_after_one_of_the_users_own_are_not_refused() -> None:
    pytest.importorskip("mmdet")
    own = lambda results: results  # may make three channels  # noqa: E731
    check_steps([dict(type="mm_vitbackbones.LoadMultichannelImage"), own, dict(type="mmdet.Equalize")], 6)


def test_statistics_are_those_of_all_pixels() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal((5, 1000), (1, 50), (8, width, 2)) for width in (4, 9, 30)]
    statistics = Statistics()
    for each in images:
        statistics.add(each)
    pixels = np.concatenate([each.reshape(-1, 2) for each in images])
    np.testing.assert_allclose(statistics.mean, pixels.mean(0))
    np.testing.assert_allclose(statistics.std, pixels.std(0))


@pytest.mark.filterwarnings("error")
def test_signalling_nan_and_values_that_float32_does_not_hold_are_read_without_a_warning(tmp_path: Path) -> None:
    signalling = np.array([0x7FA00001, 0x3F800000, 0x7F800000], np.uint32).view(np.float32)
    values = np.array([0x7FF4000000000001, 0, 0], np.uint64).view(np.float64)
    values[1:] = 1, 1e300
    for given in (signalling, values):
        np.save(tmp_path / "a.npy", given.reshape(1, 3, 1))
        read = read_bands(tmp_path / "a.npy")
        assert np.array_equal(read.ravel(), np.float32([np.nan, 1, np.inf])[[0, 1, 2]], equal_nan=True)
        statistics = Statistics()
        statistics.add(read)
        assert (statistics.left_out, statistics.mean[0]) == (2, 1)
        assert displayable(read).shape == (1, 3, 3)


def test_statistics_leave_out_what_is_not_finite() -> None:
    statistics = Statistics()
    statistics.add(np.array([[1.0, 3.0, np.nan]]))
    statistics.add(np.array([[np.inf, np.nan, 5.0]]))
    assert statistics.left_out == 3
    np.testing.assert_allclose([statistics.mean[0], statistics.std[0]], [3, np.std([1, 3, 5])])
    with pytest.raises(UserError, match="2 channels"):
        statistics.add(np.zeros((2, 2, 2)))


def test_an_array_that_its_file_does_not_hold_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy"
    for shape in ((2**14, 2**14, 1), (10**6, 10**6, 4), (10**12, 10**12, 10**12), (8, 8, 2)):
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(100))
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=r"it is no \.npy file of numbers"):
                read_bands(path)
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()
    np.save(path, np.zeros((8, 8, 2), np.uint8))
    assert read_bands(path).shape == (8, 8, 2)
    monkeypatch.setattr(limits, "IMAGE", limits.Limit(255, "bytes"))
    with pytest.raises(UserError, match="it has 256 bytes, and the limit is 255"):
        read_bands(path)
