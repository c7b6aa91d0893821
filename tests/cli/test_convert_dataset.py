"""``convert_dataset``: the command around the readers of each format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.sources import annotations, convert, objects, write_image, write_json, write_mask, write_text
from mm_vitbackbones import __main__ as door
from mm_vitbackbones import libraries
from mm_vitbackbones.cli import new_config
from mm_vitbackbones.cli.datasets import check_annotations, check_data_exists
from mm_vitbackbones.cli.evaluators import check_evaluators
from mm_vitbackbones.errors import OutputError, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of YOLO's without a split; the first class is in one of them."""
    root = tmp_path / "my data"
    for i in range(10):
        write_image(root / "images" / f"{i}.png")
        write_text(root / "labels" / f"{i}.txt", f"{int(i > 0)} 0.5 0.5 0.5 0.4\n")
    write_text(root / "data.yaml", "names: [cat, dog]\n")
    return root


def state(root: Path) -> dict[str, tuple[float, bytes]]:
    return {str(path): (path.stat().st_mtime, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_links_or_copies_and_the_source_stays(folder: Path, copy: bool) -> None:
    before = state(folder)
    out = convert(folder, *(["--copy"] if copy else []))
    images = [out / "images" / name for split in ("train", "val") for name in objects(out, split)]
    assert {path.is_symlink() for path in images} == {not copy}
    assert {path.read_bytes() for path in images} == {(folder / "images/0.png").read_bytes()}
    assert state(folder) == before


@pytest.mark.parametrize(("arguments", "count"), [((), 2), (("--val", "0.4"), 4), (("--val", "0.01"), 1)])
def test_split_is_by_the_seed(folder: Path, tmp_path: Path, arguments: tuple[str, ...], count: int) -> None:
    def chosen(name: str, seed: str) -> set[str]:
        out = tmp_path / name
        assert door.main(["convert_dataset", str(folder), str(out), *arguments, "--seed", seed]) == 0
        train, val = ({Path(image).name for image in objects(out, split)} for split in ("train", "val"))
        assert len(val) == count
        assert not train & val
        return val

    assert chosen("a", "0") == chosen("b", "0")
    assert len({frozenset(chosen(f"seed {seed}", str(seed))) for seed in range(5)}) > 1


def test_share_without_validation_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(folder, "--val", "0")
    assert not (out / "annotations/val.json").exists()
    assert "there is no image for validation" in capsys.readouterr().out


def test_share_takes_the_place_of_the_sources_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, numbers in (("train", range(9)), ("val", [9])):
        write_text(folder / f"{split}.txt", "".join(f"images/{i}.png\n" for i in numbers))
    write_text(folder / "data.yaml", "names: [cat, dog]\ntrain: train.txt\nval: val.txt\n")
    assert len(objects(convert(folder, "--val", "0.5"), "val")) == 5
    assert "and not that of the source" in capsys.readouterr().out


def test_report_counts_each_class_and_names_the_next_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(folder)
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    found = [[label for [(label, _)] in objects(out, split).values()] for split in ("train", "val")]
    for name in ("cat", "dog"):
        assert [name, *(str(labels.count(name)) for labels in found)] in lines
    assert "yolo (found by its files" in said
    lacking = next(split for split, labels in zip(("train", "val"), found, strict=True) if "cat" not in labels)
    assert f"note: {lacking} has nothing of cat" in said
    command = f"python -m mm_vitbackbones new_config --data {out} --task detection --backbone pvt_v2_b2"
    assert said.endswith(f"for another head, backbone or weights: {command}\n")


def test_a_config_that_fits_the_data_is_written_next_to_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = convert(folder)
    config = out / "retinanet_pvt_v2_b2.py"
    assert f"next: python -m mm_vitbackbones train {config}\n" in capsys.readouterr().out
    text = config.read_text()
    assert len(text.splitlines()) <= 25
    new_config.check(text, config.name)  # as `train` does before it begins


def test_data_without_images_to_measure_on_get_no_config_and_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = convert(folder, "--val", "0")
    said = capsys.readouterr().out
    assert not [*out.glob("*.py")]
    assert "note: no config was written: " in said
    assert said.endswith("--task detection --backbone pvt_v2_b2\n")


def test_images_of_one_name_in_two_folders_stay_two(folder: Path) -> None:
    for i in (0, 1):
        write_image(folder / "images/more" / f"{i}.png")
        write_text(folder / "labels/more" / f"{i}.txt", "1 0.5 0.5 0.5 0.4\n")
    found = objects(convert(folder, "--val", "0"))
    assert len(found) == 12
    assert {"train/images_0.png", "train/images_more_0.png", "train/5.png"} <= {*found}


def test_image_that_cannot_be_read_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images/3.png").write_bytes(b"no image")
    assert len(objects(convert(folder, "--val", "0"))) == 9
    assert "left out: 1 image that cannot be read (3.png)" in capsys.readouterr().out


def error(source: Path, out: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert door.main(["convert_dataset", str(source), str(out), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("where", ["filled", "file", "my data/out"])
def test_out_that_would_touch_the_users_files_is_refused(
    folder: Path, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "filled/mine.txt", "mine")
    write_text(tmp_path / "file", "mine")
    before = state(tmp_path)
    message = {"filled": "is not empty", "file": "is no folder", "my data/out": "the source is not changed"}[where]
    assert message in error(folder, tmp_path / where, capsys=capsys)
    assert state(tmp_path) == before


def test_conversion_that_fails_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise OSError("no space")

    monkeypatch.setattr("mm_vitbackbones.data.converting.writing.to_json", fail)
    with pytest.raises(OutputError, match="cannot be written: no space, and nothing is left of it"):
        convert(folder)
    assert os.listdir(tmp_path) == ["my data"]


def empty(root: Path) -> None:
    root.mkdir()


def archive(root: Path) -> None:
    write_text(root / "a.zip", "")


def studio(root: Path) -> None:
    write_json(root / "project.json", [{"id": 1, "annotations": [], "data": {"image": "a.png"}}])


def cvat(root: Path) -> None:
    write_text(root / "annotations.xml", "<annotations><version>1.1</version></annotations>")


def unnamed(root: Path) -> None:
    write_image(root / "images/a.png")
    write_text(root / "labels/a.txt", "0 0.5 0.5 0.5 0.4\n")


def several(root: Path) -> None:
    unnamed(root)
    write_text(root / "classes.txt", "cat\n")
    write_text(root / "a.xml", "<annotation/>")


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (empty, "", "no format was recognised: looked for COCO JSON"),
        (empty, "gone", "is not there"),
        (archive, "a.zip", "is an archive: unpack it first"),
        (studio, "", "Label Studio's own JSON: export it as COCO"),
        (cvat, "", "CVAT's own XML: export the task as 'COCO 1.0'"),
        (unnamed, "", "YOLO without the names of the classes: write them into data.yaml or classes.txt"),
        (several, "", "choose one with --format voc or --format yolo"),
    ],
)
def test_source_that_cannot_be_read_is_one_line(
    tmp_path: Path, make: Any, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "source")
    assert message in error(tmp_path / "source" / name, tmp_path / "out", capsys=capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--val", "1"), "--val 1: give the part of the images for validation"),
        (("--val", "x"), "--val x: give the part"),
        (("--format", "coco"), "no JSON with a list of images"),
        (("--format", "voc"), "no XML file of Pascal VOC"),
        (("--format", "labelme"), "no JSON file with shapes"),
        (("--format", "masks"), "no image with its mask"),
        (("--format", "yollo"), "invalid choice: 'yollo'"),
        (("--keep-crowds",), "--keep-crowds does nothing for yolo"),
        (("--zero-is-ignored",), "--zero-is-ignored does nothing for yolo"),
    ],
)
def test_wrong_argument_is_one_line(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error(folder, tmp_path / "out", *arguments, capsys=capsys)


# ---- the checks before a run


LABELME = dict(
    version="5.4.1",
    shapes=[dict(label="cat", points=[[5, 5], [20, 25]], shape_type="rectangle")],
    imagePath="a.png",
    imageHeight=30,
    imageWidth=40,
)
OTHER_FORMATS = {
    "train.txt": "images/a.png\n",
    "a.xml": "<annotation/>",
    "data.yaml": "names: [cat, dog]\n",
    "_annotations.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,30,cat,5,5,20,25\n",
    "labels/a.txt": "0 0.5 0.5 0.5 0.4\n",
    "a.json": json.dumps(LABELME),
    "labelme/a.json": json.dumps(LABELME),
}


@pytest.mark.mmdet
@pytest.mark.parametrize("name", [*OTHER_FORMATS, "labels", "labelme"])
@pytest.mark.parametrize("where", ["dataset", "metric"])
def test_annotation_file_of_another_format_names_the_converter(tmp_path: Path, name: str, where: str) -> None:
    pytest.importorskip("mmdet")
    from mmengine.config import Config

    libraries.use("mmdet")
    for file, text in OTHER_FORMATS.items():
        write_text(tmp_path / file, text)
    dataset = dict(type="CocoDataset", data_root=str(tmp_path), ann_file=name, data_prefix=dict(img="labels"))
    dataset["metainfo"] = dict(classes=("cat", "dog"))
    metric = dict(type="CocoMetric", ann_file=str(tmp_path / name), metric="bbox")
    cfg = Config(dict(val_dataloader=dict(dataset=dataset), val_evaluator=metric))
    message = "no COCO JSON: `python -m mm_vitbackbones convert_dataset SOURCE OUT`"

    def check() -> None:
        if where == "metric":
            return check_evaluators(cfg, ["val"])
        check_data_exists(dataset, "train_dataloader")
        check_annotations(dataset, ("cat", "dog"), "train_dataloader")

    with pytest.raises(UserError, match=message) as found:
        check()
    assert "\n" not in str(found.value)


@pytest.mark.mmdet
def test_coco_json_of_another_suffix_and_text_of_another_data_set_pass(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    libraries.use("mmdet")
    write_text(tmp_path / "a.coco", '{"images": []}')
    write_text(tmp_path / "train.txt", "000001\n")
    write_mask(tmp_path / "images/a.png", [[0]])
    prefix = dict(img="images")
    for kind, file in (("CocoDataset", "a.coco"), ("VOCDataset", "train.txt")):
        check_data_exists(dict(type=kind, data_root=str(tmp_path), ann_file=file, data_prefix=prefix), "train")


def test_ids_count_from_one_in_each_file(folder: Path) -> None:
    out = convert(folder)
    for split, count in (("train", 8), ("val", 2)):
        assert [each["id"] for each in annotations(out, split)["annotations"]] == [*range(1, count + 1)]
