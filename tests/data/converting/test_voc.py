"""Pascal VOC's XML, of its own years and of labelImg, CVAT and Roboflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.sources import annotations, check, convert, objects, write_image, write_text

pytest.importorskip("mmdet")
pytestmark = pytest.mark.mmdet


def xml(name: str, *objects: str, size: tuple[int, int] = (40, 30), head: str = "") -> str:
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{head}<filename>{name}</filename>{said}{''.join(objects)}</annotation>"


def thing(label: str, *corners: float, extra: str = "") -> str:
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{label}</name>{extra}<bndbox>{box}</bndbox></object>"


DOG = thing("dog", 5, 6, 25, 26)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for i in range(5):
        write_image(root / "JPEGImages" / f"{i}.jpg")
        write_text(root / "Annotations" / f"{i}.xml", xml(f"{i}.jpg", DOG, thing("cat", 0, 0, 9.5, 8)))
    return root


def test_boxes_are_read_by_their_corners(folder: Path) -> None:
    out = convert(folder)
    assert check(out).kept == 8
    assert check(out, "val").kept == 2
    assert annotations(out)["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    found = {**objects(out), **objects(out, "val")}
    assert [*found.values()] == [[("dog", [5, 6, 20, 20]), ("cat", [0, 0, 9.5, 8])]] * 5
    assert sorted(each["id"] for each in annotations(out)["annotations"]) == [*range(1, 9)]


def test_pixels_of_the_official_sets_count_from_one(folder: Path) -> None:
    head = "<folder>VOC2007</folder><source><database>The VOC2007 Database</database></source>"
    for i in range(5):
        write_text(folder / "Annotations" / f"{i}.xml", xml(f"{i}.jpg", thing("dog", 1, 1, 40, 30), head=head))
    assert objects(convert(folder))["train/0.jpg"] == [("dog", [0, 0, 40, 30])]


def test_lists_of_image_sets_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, names in (("train", "0\n1\n"), ("val", "2\n"), ("test", "3\n"), ("trainval", "0\n1\n2\n")):
        write_text(folder / "ImageSets/Main" / f"{split}.txt", names)
    out = convert(folder)
    assert [*objects(out)] == ["train/0.jpg", "train/1.jpg"]
    assert [*objects(out, "val")] == ["val/2.jpg"]
    assert [*objects(out, "test")] == ["test/3.jpg"]
    assert "left out: 1 image that no list of ImageSets names (4.jpg)" in capsys.readouterr().out


def test_difficult_objects_are_crowds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hard = thing("dog", 5, 6, 25, 26, extra="<difficult>1</difficult>")
    write_text(folder / "Annotations/0.xml", xml("0.jpg", hard))
    out = convert(folder, "--val", "0")
    assert [each["iscrowd"] for each in annotations(out)["annotations"]] == [1] + [0] * 8
    assert "1 difficult object are marked as crowds" in capsys.readouterr().out


def test_polygons_that_programs_add_become_masks(folder: Path) -> None:
    outline = "<polygon><x1>5</x1><y1>6</y1><x2>25</x2><y2>6</y2><x3>25</x3><y3>26</y3></polygon>"
    for i in range(5):
        write_text(folder / "Annotations" / f"{i}.xml", xml(f"{i}.jpg", thing("dog", 5, 6, 25, 26, extra=outline)))
    out = convert(folder)
    assert check(out, masks=True).kept == 4
    assert annotations(out)["annotations"][0]["segmentation"] == [[5, 6, 25, 6, 25, 26]]


@pytest.mark.parametrize(("orientation", "box"), [
    (5, [6, 5, 4, 20]), (6, [20, 5, 4, 20]), (7, [20, 15, 4, 20]), (8, [6, 15, 4, 20]),
])  # fmt: skip
def test_boxes_of_the_stored_image_are_turned_with_it(tmp_path: Path, orientation: int, box: list[float]) -> None:
    root = tmp_path / "voc"
    for i in range(2):
        write_image(root / f"{i}.jpg", orientation)
        write_text(root / f"{i}.xml", xml(f"{i}.jpg", thing("dog", 5, 6, 25, 10)))
    out = convert(root)
    assert [*objects(out).values()] == [[("dog", box)]]
    assert check(out).kept == 1


def test_boxes_of_the_turned_image_stay(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for i in range(2):
        write_image(root / f"{i}.jpg", 6)
        write_text(root / f"{i}.xml", xml(f"{i}.jpg", thing("dog", 5, 6, 25, 36), size=(30, 40)))
    assert [*objects(convert(root)).values()] == [[("dog", [5, 6, 20, 30])]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (xml("0.jpg", DOG, size=(80, 60)), "image whose objects were drawn in an image of another size (0.jpg: 80x60"),
        ("<annotation><object>", "XML file that cannot be read (0.xml"),
        (xml("0.jpg", thing("dog", 50, 6, 60, 26)), "object outside of their image (0.jpg)"),
        (xml("0.jpg", thing("dog", 9, 6, 9, 26)), "object thinner than a pixel (0.jpg)"),
        (xml("0.jpg", "<object><name>dog</name></object>"), "object without a bndbox of four numbers (0.xml)"),
        (xml("0.jpg", thing("", 5, 6, 25, 26)), "object without a name (0.xml)"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_reported(
    folder: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(folder / "Annotations/0.xml", text)
    out = convert(folder, "--val", "0")
    assert len(annotations(out)["annotations"]) == 8
    assert f"left out: 1 {why}" in capsys.readouterr().out


def test_box_is_cut_at_the_edge_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(folder / "Annotations/0.xml", xml("0.jpg", thing("dog", -5, 6, 60, 26)))
    assert objects(convert(folder, "--val", "0"))["train/0.jpg"] == [("dog", [0, 6, 40, 20])]
    said = capsys.readouterr().out
    assert "note: 1 box cut at the edge of their image (0.jpg)" in said


def test_image_of_another_name_than_the_xml_says_is_found(folder: Path) -> None:
    write_text(folder / "Annotations/0.xml", xml("C:\\photos\\IMG_1.JPG", DOG))
    assert "train/0.jpg" in objects(convert(folder, "--val", "0"))


def test_masks_of_the_same_names_are_no_images(folder: Path) -> None:
    for i in range(5):
        write_image(folder / "SegmentationClass" / f"{i}.png", size=(9, 9))
        write_text(folder / "Annotations" / f"{i}.xml", xml("photo.jpg", DOG, DOG))
    out = convert(folder, "--val", "0", "--format", "voc")
    assert [*objects(out)] == [f"train/{i}.jpg" for i in range(5)]
    assert check(out).kept == 10


def test_image_and_xml_without_the_other_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "JPEGImages/0.jpg").unlink()
    (folder / "Annotations/1.xml").unlink()
    convert(folder)
    said = capsys.readouterr().out
    assert "left out: 1 XML file without an image (0.xml names 0.jpg)" in said
    assert "left out: 1 image without an XML file (1.jpg)" in said
