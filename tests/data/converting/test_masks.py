"""Masks of semantic segmentation: colours, palettes and numbers, in the layouts of labelme, CVAT and Roboflow."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.broken_files import png_chunks, png_file, tiff_tag
from helpers.sources import HEIGHT, WIDTH, check_segmentation, convert, write_image, write_mask, write_text
from mm_vitbackbones.errors import UserError

pytest.importorskip("mmseg")
pytestmark = pytest.mark.mmseg

NAMES = ["background", "cat", "dog"]
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
VOID = (224, 224, 192)
LABELS = np.zeros((HEIGHT, WIDTH), np.uint8)
LABELS[:10], LABELS[10:20], LABELS[-1] = 1, 2, 255
"""Background, cat and dog, and a row that is ignored."""

PALETTE = [*(value for colour in COLOURS for value in colour), *[0] * 3 * 252, *VOID]
TABLE = "".join(f"{name} {' '.join(map(str, colour))}\n" for name, colour in zip(NAMES, COLOURS, strict=True))
LABELMAP = "# label:color_rgb:parts:actions\n" + "".join(
    f"{name}:{','.join(map(str, colour))}::\n" for name, colour in zip(NAMES, COLOURS, strict=True)
)


def coloured(labels: np.ndarray) -> np.ndarray:
    return np.array([*COLOURS, *[(1, 1, 1)] * 252, VOID], np.uint8)[labels]


def fill(root: Path, images: str, masks: str, values: Any, palette: list[int] | None = None, count: int = 3) -> Path:
    """Images and masks of this form; {} stands for the number."""
    for i in range(count):
        write_image(root / images.format(i))
        write_mask(root / masks.format(i), values, palette)
    return root


def written(out: Path, split: str = "train") -> list[np.ndarray]:
    masks = []
    for path in sorted((out / "masks" / split).iterdir()):
        with Image.open(path) as mask:
            assert mask.mode == "L"
            masks.append(np.asarray(mask))
    return masks


def colour_masks(root: Path) -> None:
    fill(root, "images/{}.jpg", "masks/{}.png", coloured(LABELS))
    write_text(root / "labelmap.txt", TABLE)


def cvat(root: Path) -> None:
    fill(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", coloured(LABELS))
    fill(root, "JPEGImages/{}.jpg", "SegmentationObject/{}.png", coloured(LABELS))
    write_text(root / "labelmap.txt", LABELMAP)


def cvat_in_another_order(root: Path) -> None:
    """The palette has the order of VOC's, the table another one: colours decide."""
    swapped = np.array([0, 2, 1, *range(3, 256)], np.uint8)[LABELS]
    palette = [0, 0, 0, 0, 128, 0, 128, 0, 0, *[0] * 3 * 252, *VOID]
    fill(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", swapped, palette)
    write_text(root / "labelmap.txt", LABELMAP)


def labelme(root: Path) -> None:
    fill(root, "JPEGImages/{}.jpg", "SegmentationClassPNG/{}.png", LABELS, PALETTE)
    write_text(root / "class_names.txt", "".join(f"{name}\n" for name in NAMES))


def labelmes_labels(root: Path) -> None:
    fill(root, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", LABELS, PALETTE)
    write_text(root / "labels.txt", "__ignore__\n" + "".join(f"{name}\n" for name in NAMES))


def roboflow(root: Path) -> None:
    fill(root, "{}.jpg", "{}_mask.png", LABELS)
    write_text(root / "_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n")


def camvid(root: Path) -> None:
    fill(root, "images/{}.png", "labels/{}_L.png", coloured(LABELS))
    lines = [f"{' '.join(map(str, colour))}\t\t{name}\n" for name, colour in zip(NAMES, COLOURS, strict=True)]
    write_text(root / "label_colors.txt", "".join(lines) + "224 224 192 Void\n")


def numbers_in_three_channels(root: Path) -> None:
    fill(root, "images/{}.jpg", "masks/{}.png", np.stack([LABELS] * 3, -1))
    write_text(root / "classes.txt", "".join(f"{name}\n" for name in NAMES))


def numbers(root: Path) -> None:
    fill(root, "images/{}.jpg", "masks/{}.png", LABELS)
    write_text(root / "classes.txt", "".join(f"{name}\n" for name in NAMES))


@pytest.mark.parametrize(
    "make",
    [
        colour_masks,
        cvat,
        cvat_in_another_order,
        labelme,
        labelmes_labels,
        roboflow,
        camvid,
        numbers,
        numbers_in_three_channels,
    ],
)
def test_masks_become_class_numbers(tmp_path: Path, make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "source")
    out = convert(tmp_path / "source")
    for split, count in (("train", 2), ("val", 1)):
        masks = written(out, split)
        assert len(masks) == count
        for mask in masks:
            np.testing.assert_array_equal(mask, LABELS)
        check_segmentation(out, split)
    assert (out / "classes.txt").read_text().split() == NAMES
    said = capsys.readouterr().out
    assert "--task segmentation" in said
    assert "ignored: 3.3% of the pixels" in said


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}/{}.jpg", "masks/{}/{}.png"),
        ("{}/images/{}.jpg", "{}/masks/{}.png"),
        ("{}/{}.jpg", "{}/{}_mask.png"),
    ],
)
def test_folders_of_splits_are_kept(tmp_path: Path, images: str, masks: str) -> None:
    root = tmp_path / "source"
    for split, count in (("train", 3), ("valid", 2)):
        fill(root, images.format(split, "{}"), masks.format(split, "{}"), LABELS, count=count)
    write_text(root / "classes.txt", "\n".join(NAMES))
    out = convert(root)
    assert [len(written(out, split)) for split in ("train", "val")] == [3, 2]


def test_lists_of_image_sets_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cvat(tmp_path / "source")
    write_text(tmp_path / "source/ImageSets/Segmentation/train.txt", "0\n")
    write_text(tmp_path / "source/ImageSets/Segmentation/val.txt", "2\n")
    out = convert(tmp_path / "source")
    assert [path.name for path in (out / "masks/train").iterdir()] == ["0.png"]
    assert [path.name for path in (out / "masks/val").iterdir()] == ["2.png"]
    assert "left out: 1 image that no list of ImageSets names (1.jpg)" in capsys.readouterr().out


@pytest.mark.parametrize("white", [255, 128, 2])
def test_black_and_white_are_two_classes(tmp_path: Path, white: int, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", (LABELS == 1) * np.uint8(white))
    write_text(root / "classes.txt", "background\ncat\n")
    out = convert(root)
    np.testing.assert_array_equal(written(out)[0], LABELS == 1)
    check_segmentation(out)
    assert f"({white}) of the second class, now 1" in capsys.readouterr().out


def test_one_and_zero_of_one_bit_are_two_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", LABELS)
    for i in range(3):
        Image.fromarray(LABELS == 1).save(root / f"masks/{i}.png")
    write_text(root / "classes.txt", "background\ncat\n")
    np.testing.assert_array_equal(written(convert(root))[0], LABELS == 1)


def test_zero_can_stand_for_no_class(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", np.minimum(LABELS, 3))
    write_text(root / "classes.txt", "cat\ndog\nfish\n")
    with pytest.raises(UserError, match=r"value 3, and the 3 classes are 0 to 2 .* give --zero-is-ignored"):
        convert(root)
    out = convert(root, "--zero-is-ignored")
    np.testing.assert_array_equal(written(out)[0], np.array([255, 0, 1, 2])[np.minimum(LABELS, 3)])
    check_segmentation(out)


def test_sixteen_bits_keep_what_is_ignored(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", LABELS)
    wide = np.where(LABELS == 255, 65535, LABELS).astype(np.uint16)
    for i in range(3):
        Image.fromarray(wide).save(root / f"masks/{i}.png")
    write_text(root / "classes.txt", "\n".join(NAMES))
    np.testing.assert_array_equal(written(convert(root))[0], LABELS)


def test_class_named_ignore_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", coloured(LABELS))
    write_text(root / "table.txt", TABLE.replace("cat", "ignore"))
    out = convert(root, "--classes", str(root / "table.txt"))
    assert (out / "classes.txt").read_text().split() == ["background", "dog"]
    np.testing.assert_array_equal(written(out)[0], np.array([0, 255, 1, *[255] * 253])[LABELS])
    assert "1 class named 'ignore' are ignored" in capsys.readouterr().out


def test_images_of_several_suffixes_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "source", "images/{}.JPG", "masks/{}.png", LABELS)
    write_text(root / "classes.txt", "\n".join(NAMES))
    out = convert(root, "--val", "0")
    assert sorted(path.name for path in (out / "images/train").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
    (root / "images/1.JPG").rename(root / "images/1.bmp")
    Image.open(root / "images/1.bmp").save(root / "images/1.bmp", "BMP")
    out.rename(tmp_path / "first")
    out = convert(root, "--val", "0")
    assert sorted(path.name for path in (out / "images/train").iterdir()) == ["0.png", "1.png", "2.png"]
    check_segmentation(out)
    assert "3 images are written as PNG" in capsys.readouterr().out


def test_mask_of_the_stored_image_is_turned_with_it(tmp_path: Path) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", LABELS)
    write_text(root / "classes.txt", "\n".join(NAMES))
    for i in range(3):
        write_image(root / f"images/{i}.jpg", orientation=6)
    out = convert(root)
    np.testing.assert_array_equal(written(out)[0], np.rot90(LABELS, -1))
    check_segmentation(out)


def test_pair_of_two_sizes_and_files_without_the_other_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", LABELS, count=6)
    write_text(root / "classes.txt", "\n".join(NAMES))
    write_mask(root / "masks/1.png", LABELS[:20])
    (root / "masks/2.png").unlink()
    (root / "images/3.jpg").unlink()
    out = convert(root, "--val", "0")
    assert len(written(out)) == 3
    check_segmentation(out)
    said = capsys.readouterr().out
    assert (
        "left out: 1 image whose mask has another size, or is one pixel wide (1.jpg: 40x30, the mask is 40x20)" in said
    )
    assert "left out: 1 image without a mask (2.jpg)" in said
    assert "left out: 1 mask without an image (3.png)" in said


def test_a_pair_of_two_sizes_whose_exif_data_are_broken_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "source", "images/{}.png", "masks/{}.png", LABELS)
    write_text(root / "classes.txt", "\n".join(NAMES))
    write_mask(root / "masks/1.png", LABELS.T)
    image = root / "images/1.png"
    header, *others = png_chunks(image.read_bytes())
    for broken in (b"no", b"II*\0", b"MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\1A\0\0\0\0\0\0\0"):
        image.write_bytes(png_file([header, (b"eXIf", broken), *others]))
        out = convert(root, "--val", "0")
        assert len(written(out)) == 2
        assert "left out: 1 image whose mask has another size" in capsys.readouterr().out
        shutil.rmtree(out)


def jpeg(root: Path) -> None:
    for i in range(3):
        (root / f"masks/{i}.png").unlink()
        Image.fromarray(LABELS).save(root / f"masks/{i}.jpg")


def transparent(root: Path) -> None:
    write_mask(root / "masks/0.png", np.zeros((HEIGHT, WIDTH, 4)))


def width_as_text(root: Path) -> None:
    (root / "masks/0.png").unlink()
    Image.fromarray(LABELS).save(root / "masks/0.tif")
    content = bytearray((root / "masks/0.tif").read_bytes())
    struct.pack_into("<H", content, tiff_tag(content, 256) + 2, 2)
    (root / "masks/0.tif").write_bytes(content)


@pytest.mark.parametrize(
    ("values", "table", "spoil", "message"),
    [
        (LABELS, "", None, "the masks hold the values 0, 1, 2, 255: name the classes"),
        (np.where(LABELS == 1, 255, 0), "", None, "the masks are black and white: write the names of the two classes"),
        (coloured(LABELS), "", None, r"the masks hold the colours \(0, 0, 0\), .* `name r g b`"),
        (
            coloured(LABELS),
            "\n".join(NAMES),
            None,
            "the file of the classes has none: write each of its lines as name r g",
        ),
        (coloured(LABELS), TABLE.replace("0 128 0", "9 9 9"), None, r"1 colours that no class has, \(0, 128, 0\)"),
        (LABELS, "a\nb\n", None, "holds the value 2, and the 2 classes are 0 to 1 .255 is ignored.: name 3 classes"),
        (LABELS, TABLE + "fish\n", None, "3 of 4 lines have a colour"),
        (LABELS, TABLE + "fish 0 0 0\n", None, "the colour of 'fish' is above 255, or that of another class"),
        (LABELS, "cat\ncat\n", None, "names the class 'cat' more than once"),
        (np.full_like(LABELS, 255), "\n".join(NAMES), None, "all are ignored"),
        (np.zeros_like(LABELS), "background\ncat\n", None, "no pixel of all masks is of the class 'cat'"),
        (LABELS, "\n".join(NAMES), jpeg, "is a JPEG file, which blurs classes"),
        (LABELS, "\n".join(NAMES), transparent, "is transparent in places"),
        (LABELS, "\n".join(NAMES), width_as_text, "0.tif cannot be read: ValueError: Invalid dimensions"),
    ],
)
def test_masks_that_are_not_clear_are_refused(
    tmp_path: Path, values: np.ndarray, table: str, spoil: Any, message: str
) -> None:
    root = fill(tmp_path / "source", "images/{}.jpg", "masks/{}.png", values)
    if table:
        write_text(root / "classes.txt", table)
    if spoil:
        spoil(root)
    with pytest.raises(UserError, match=message):
        convert(root)
    assert not (tmp_path / "out").exists()
