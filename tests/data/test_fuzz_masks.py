"""A good folder of images and masks, changed in many ways: nothing is lost in silence, and nothing ends in a traceback.

Each case either passes the check, and then every sample loads with the labels of its file and has a finite loss; or it
is refused in one message.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.runs import log_to_stdout

pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmseg.datasets import BaseSegDataset

from mm_vitbackbones.cli import check_data
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.data import masks
from mm_vitbackbones.data.reading import IMAGES

pytestmark = pytest.mark.mmseg

CASES, BATCH = 250, 25
SIZE = 16
ALL = ("cat", "dog", "fox", "owl")

CONFIG = """
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[100.0] * 3, std=[50.0] * 3),
    backbone=dict(type="UNet"),
    decode_head=dict(type="FCNHead", in_channels=8, channels=8, num_classes={count}),
)
train_dataloader = dict(
    dataset=dict(
        type="FourAnimals",
        data_root="{root}",
        data_prefix=dict(img_path="images", seg_map_path="masks"),
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo=dict(classes={classes}),
        reduce_zero_label={reduce},
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
    ),
)
"""


@DATASETS.register_module(force=True)
class FourAnimals(BaseSegDataset):
    METAINFO: ClassVar = dict(classes=ALL, palette=[(0, 0, 90), (0, 90, 0), (90, 0, 0), (90, 90, 0)])


@dataclass
class Folder:
    """Four images of 16x16 pixels and their masks, which have all values that are allowed."""

    root: Path
    classes: tuple[str, ...]
    reduce: bool

    def __post_init__(self) -> None:
        self.config = self.root.with_suffix(".py")
        text = CONFIG.replace("{root}", str(self.root)).replace("{classes}", repr(self.classes))
        self.config.write_text(text.replace("{reduce}", str(self.reduce)).replace("{count}", str(len(self.classes))))
        self.allowed = [*range(len(ALL) + self.reduce), 255]
        self.dataset = Config.fromfile(self.config).train_dataloader.dataset
        head = dict(type="mmseg.FCNHead", in_channels=2, channels=2, num_convs=0, concat_input=False)
        self.head = MODELS.build(head | dict(num_classes=len(self.classes)))

    def label(self, value: int) -> int:
        """Of a value of a mask; 255 if it has no class."""
        value = value - self.reduce
        known = 0 <= value < len(ALL) and ALL[value] in self.classes
        return self.classes.index(ALL[value]) if known else 255

    def write_good(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        rng = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (self.root / kind).mkdir(parents=True)
        for index in range(4):
            image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            mask = np.resize(np.array(self.allowed, np.uint8), (SIZE, SIZE)).T
            self.path("images", index).write_bytes(encoded(Image.fromarray(image)))
            self.path("masks", index).write_bytes(encoded(Image.fromarray(mask)))

    def path(self, kind: str, index: int) -> Path:
        return self.root / kind / f"{index}.png"


@dataclass
class Case:
    """A folder to be changed, one of its pairs, and random numbers to change it by."""

    folder: Folder
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.index = int(self.rng.integers(4))
        self.image, self.mask = (self.folder.path(kind, self.index) for kind in ("images", "masks"))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def either(self) -> Path:
        return self.one_of(self.image, self.mask)

    def values(self) -> np.ndarray:
        return np.array(Image.open(self.mask))

    def save(self, path: Path, values: np.ndarray, kind: str = "PNG") -> None:
        path.write_bytes(encoded(Image.fromarray(values), kind))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


CHANGES: list[tuple[Callable[[Case], Any], bool | None]] = []
"""Each with whether the check has to pass: True, False, or None where both can be right."""


def change(passes: bool | None) -> Callable[[Callable[[Case], Any]], Callable[[Case], Any]]:
    def add(function: Callable[[Case], Any]) -> Callable[[Case], Any]:
        CHANGES.append((function, passes))
        return function

    return add


# ---- right things


@change(passes=True)
def drop_a_pair(case: Case) -> None:
    case.image.unlink()
    case.mask.unlink()


@change(passes=True)
def drop_an_image(case: Case) -> None:
    case.image.unlink()


@change(passes=True)
def edit_one_pixel(case: Case) -> None:
    values = case.values()
    values[tuple(case.rng.integers(SIZE, size=2))] = case.one_of(*case.folder.allowed)
    case.save(case.mask, values)


@change(passes=True)
def use_a_palette(case: Case) -> None:
    mask = Image.fromarray(case.values()).convert("P")
    mask.putpalette(case.rng.integers(0, 256, 768).tolist())
    case.mask.write_bytes(encoded(mask, case.one_of("PNG", "TIFF", "BMP")))


@change(passes=True)
def widen_a_mask(case: Case) -> None:
    wide, kind = case.one_of((np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF"))
    case.save(case.mask, case.values().astype(wide), kind)


@change(passes=True)
def ignore_by_all_ones(case: Case) -> None:
    kind, value = case.one_of((np.uint16, 65535), (np.int32, -1))
    values = case.values().astype(kind)
    values[0, :3] = value
    case.save(case.mask, values, "TIFF")


@change(passes=True)
def float_mask(case: Case) -> None:
    case.save(case.mask, case.values().astype(np.float32), "TIFF")


@change(passes=True)
def retype_an_image(case: Case) -> None:
    image = Image.open(case.image).convert(case.one_of("L", "RGBA", "P", "1", "LA"))
    case.image.write_bytes(encoded(image))


@change(passes=True)
def encode_an_image_otherwise(case: Case) -> None:
    image = Image.open(case.image)
    case.image.write_bytes(encoded(image, case.one_of("JPEG", "BMP", "TIFF", "WEBP")))


@change(passes=True)
def turn_a_square_image(case: Case) -> None:
    exif = Image.Exif()
    exif[0x0112] = int(case.rng.integers(1, 9))
    case.image.write_bytes(encoded(Image.open(case.image), case.one_of("JPEG", "PNG"), exif=exif))


@change(passes=True)
def swap_two_masks(case: Case) -> None:
    other = case.folder.path("masks", (case.index + 1) % 4)
    first, second = case.mask.read_bytes(), other.read_bytes()
    case.mask.write_bytes(second)
    other.write_bytes(first)


@change(passes=True)
def add_files(case: Case) -> None:
    names = ("masks/9.png", "images/9.jpg", "images/9.PNG", "masks/9.PNG", "images/a.txt", ".x", "masks/Thumbs.db")
    name = case.one_of(*names)
    (case.folder.root / name).write_bytes(case.either().read_bytes())


@change(passes=True)
def add_a_folder_of_pairs(case: Case) -> None:
    for kind in ("images", "masks"):
        shutil.copytree(case.folder.root / kind, case.folder.root / kind / "more")


@change(passes=True)
def rename_a_pair(case: Case) -> None:
    suffix = case.one_of(".PNG", ".jpeg")
    case.image.rename(case.image.with_suffix(suffix))
    case.mask.rename(case.mask.with_suffix(suffix))


@change(passes=True)
def one_mask_without_a_class(case: Case) -> None:
    case.save(case.mask, np.full_like(case.values(), 255))


# ---- wrong things


@change(passes=False)
def drop_a_mask(case: Case) -> None:
    case.mask.unlink()


@change(passes=False)
def rename_a_mask(case: Case) -> None:
    case.mask.rename(case.mask.with_suffix(case.one_of(".PNG", ".bmp", "")))


@change(passes=False)
def drop_all(case: Case) -> None:
    shutil.rmtree(case.folder.root / case.one_of("images", "masks", "."))


@change(passes=False)
def colour_mask(case: Case) -> None:
    case.mask.write_bytes(encoded(Image.fromarray(case.values()).convert(case.one_of("RGB", "RGBA", "LA"))))


@change(passes=False)
def jpeg_mask(case: Case) -> None:
    case.save(case.mask, case.values(), "JPEG")


@change(passes=False)
def truncate(case: Case) -> None:
    path = case.either()
    path.write_bytes(path.read_bytes()[: int(case.rng.integers(60))])


@change(passes=False)
def no_image(case: Case) -> None:
    case.either().write_bytes(case.one_of(b"<html>", b"\x00" * 90, b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00"))


@change(passes=False)
def folder_in_place_of_a_mask(case: Case) -> None:
    case.mask.unlink()
    case.mask.mkdir()


@change(passes=False)
def other_size(case: Case) -> None:
    path = case.either()
    path.write_bytes(encoded(Image.open(path).resize(case.one_of((8, 16), (16, 17), (1, 16), (1, 1)), Image.NEAREST)))


@change(passes=False)
def value_without_a_class(case: Case) -> None:
    kind, low, high = case.one_of((np.uint8, 6, 255), (np.uint16, 256, 65535), (np.int32, -(2**31), -1))
    values = case.values().astype(kind)
    values[tuple(case.rng.integers(SIZE, size=2))] = case.rng.integers(low, high)
    case.save(case.mask, values, "PNG" if kind == np.uint8 else "TIFF")


@change(passes=False)
def fraction_in_a_mask(case: Case) -> None:
    values = case.values().astype(np.float32)
    values[tuple(case.rng.integers(SIZE, size=2))] = case.one_of(0.5, np.nan, np.inf, -np.inf, 1e20, -3)
    case.save(case.mask, values, "TIFF")


@change(passes=False)
def no_mask_has_a_class(case: Case) -> None:
    for index in range(4):
        case.save(case.folder.path("masks", index), np.full_like(case.values(), 255))


# ---- what can be either


@change(passes=None)
def break_a_byte(case: Case) -> None:
    path = case.either()
    content = bytearray(path.read_bytes())
    content[case.rng.integers(len(content))] ^= 1 << int(case.rng.integers(8))
    path.write_bytes(content)


@change(passes=None)
def cut_the_end(case: Case) -> None:
    path = case.either()
    path.write_bytes(path.read_bytes()[: -int(case.rng.integers(1, 40))])


@change(passes=None)
def image_of_other_depth(case: Case) -> None:
    values = case.rng.normal(100, 50, (SIZE, SIZE)).clip(0).astype(case.one_of(np.uint16, np.int32, np.float32))
    case.save(case.image, values, "TIFF")


@change(passes=None)
def folder_in_place_of_an_image(case: Case) -> None:
    case.image.unlink()
    case.image.mkdir()


# ---- the test


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Folder]:
    root = tmp_path_factory.mktemp("fuzz")
    kinds = [(ALL, False), (ALL, True), (("owl", "dog"), True), (("fox", "cat", "owl"), False)]
    with DefaultScope.overwrite_default_scope("mmseg"):
        return [Folder(root / f"set_{index}", *kind) for index, kind in enumerate(kinds)]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(masks, "print_log", lambda line, **kwargs: lines.append(line))
    log_to_stdout()
    return lines


@pytest.mark.parametrize("first", range(0, CASES, BATCH))
def test_a_changed_folder_loads_as_it_is_or_is_refused(
    first: int, folders: list[Folder], logged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(first, first + BATCH):
        folder = folders[number % len(folders)]
        folder.write_good()
        case = Case(folder, np.random.default_rng(number))
        function, passes = CHANGES[number % len(CHANGES)]
        function(case)
        logged.clear()
        said = f"case {number}, {function.__name__}"
        code = run(check_data.main, [str(folder.config), "--check-all"])
        err = capsys.readouterr().err
        assert code in ((0, 2) if passes is None else (0,) if passes else (2,)), f"{said}: {err}"
        if code == 2:
            assert err.startswith("error: "), f"{said}: {err}"
            assert err.count("\n") == 1, f"{said}: {err}"
        else:
            assert err == "", said
            check_samples(folder, logged, said)


def check_samples(folder: Folder, logged: list[str], said: str) -> None:
    """Every sample loads with the labels of its file, and files that are none are mentioned."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build({**folder.dataset, "serialize_data": False})
        for sample in dataset:
            truth = sample["data_samples"].gt_sem_seg.data
            values = np.array(Image.open(sample["data_samples"].seg_map_path))
            known, where = np.unique(values, return_inverse=True)
            labels = np.array([folder.label(int(value)) for value in known])[where].reshape(values.shape)
            assert np.array_equal(truth[0].numpy(), labels), said
            assert sample["inputs"].shape == (3, *labels.shape), said
            loss = folder.head.loss([torch.ones(1, 2, 4, 4)], [sample["data_samples"]], None)["loss_ce"]
            assert torch.isfinite(loss), said
    files = [path for path in folder.root.rglob("*") if path.suffix.lower() in IMAGES and path.is_file()]
    assert any("not read" in line for line in logged) == (len(files) > 2 * len(dataset)), said
