"""What is wrong with a data set in COCO's format is found before a run, and reported in one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import coco
from mm_vitbackbones import libraries, limits
from mm_vitbackbones.cli import datasets, evaluators, preflight
from mm_vitbackbones.data.coco_summary import CocoSummary
from mm_vitbackbones.errors import UserError

pytest.importorskip("mmdet")

from mmengine.registry import DATASETS

pytestmark = pytest.mark.mmdet

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def scope() -> None:
    libraries.use("mmdet")


class Folder:
    """Three images of 40x30 pixels with two boxes each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "images").mkdir()
        for i in range(3):
            Image.fromarray(np.full((30, 40, 3), i, np.uint8)).save(root / "images" / f"{i}.png")
        self.content: dict[str, Any] = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)],
            "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
            "annotations": [
                {"id": 2 * i + k, "image_id": i, "category_id": c, "bbox": [20, 12, 12, 15], "area": 180, "iscrowd": 0}
                for i in range(3)
                for k, c in enumerate((7, 9))
            ],
        }

    def check(self, classes=CLASSES, every: bool = False, **dataset: Any) -> CocoSummary:
        (self.root / "boxes.json").write_text(json.dumps(self.content))
        whole = dict(data_root=str(self.root), ann_file="boxes.json", data_prefix=dict(img="images"), **dataset)
        found = datasets.check_annotations(whole, classes, "train_dataloader", every)
        assert found is not None
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("every", [False, True])
def test_good_set_passes(folder, every):
    summary = folder.check(every=every)
    assert (summary.images, summary.left, summary.annotations, dict(summary.dropped)) == (3, 3, 6, {})
    assert str(summary).endswith("boxes.json: 3 of 3 images, 6 of 6 annotations")


def test_images_that_were_seen_are_not_checked_again(folder):
    folder.check(every=True)
    (folder.root / "images/1.png").unlink()
    dataset = dict(data_root=str(folder.root), ann_file="boxes.json", data_prefix=dict(img="images"))
    assert datasets.check_annotations(dataset, CLASSES, "val_dataloader", every=True, seen=True).images == 3
    with pytest.raises(UserError, match=r"1 of 3 images"):
        datasets.check_annotations(dataset, CLASSES, "val_dataloader", every=True)


def test_left_out_annotations_are_counted_by_reason(folder):
    first = folder.content["annotations"]
    first.append(dict(first[0], id=100))
    first[0]["iscrowd"] = 1
    first[1]["ignore"] = 1
    first[2]["bbox"] = [5, 5, 0.5, 10]
    first[3]["bbox"] = [41, 5, 3, 3]
    first[4]["image_id"] = 99
    folder.content["categories"].append({"id": 11, "name": "fox"})
    first[5]["category_id"] = 11
    summary = folder.check(filter_cfg=dict(filter_empty_gt=True))
    assert summary.dropped == {
        "crowds": 1,
        "to be ignored": 1,
        "thinner than a pixel": 1,
        "outside of their image": 1,
        "of images that are not listed": 1,
        "of other classes": 1,
    }
    assert summary.left == 2  # the third has objects of other classes alone
    assert folder.check(test_mode=True).left == 3
    assert folder.check(filter_cfg=dict(min_size=31, filter_empty_gt=False), test_mode=True).left == 3


def test_mmdet_keeps_as_many_images_and_annotations(folder):
    folder.content["annotations"] = folder.content["annotations"][:3]  # none for the third image
    folder.content["annotations"][2]["bbox"] = [5, 5, 0.5, 10]
    rules = dict(filter_cfg=dict(filter_empty_gt=True, min_size=20))
    summary = folder.check(**rules)
    dataset = DATASETS.build(coco.dataset(folder.root, pipeline=[], serialize_data=False, **rules))
    assert len(dataset) == summary.left == 2
    assert sum(len(info["instances"]) for info in dataset) == summary.kept == 2


def test_objects_of_small_images_are_left_out(folder):
    folder.content["images"][0].update(width=20)
    Image.new("RGB", (20, 30)).save(folder.root / "images/0.png")
    folder.content["annotations"][0]["bbox"] = folder.content["annotations"][1]["bbox"] = [2, 3, 10, 10]
    summary = folder.check(filter_cfg=dict(min_size=25))
    assert summary.dropped == {"of images smaller than min_size=25": 2}
    assert summary.left == 2


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("cat", "dogg"), r"the classes 'dogg' are not among the categories of .*; did you mean 'dog'"),
        (("dog", "cat"), r"in another order .* set metainfo=dict\(classes=\('cat', 'dog'\)\)"),
    ],
)
def test_classes_unlike_those_of_the_file_are_refused(folder, classes, expected):
    with pytest.raises(UserError, match=expected):
        folder.check(classes)


def test_subset_of_classes_in_order_is_accepted(folder):
    assert folder.check(("dog",)).dropped == {"of other classes": 3}


def test_boxes_of_two_corners_are_refused(folder):
    for annotation in folder.content["annotations"]:
        annotation["bbox"] = [20, 12, 32, 27]
    with pytest.raises(UserError, match=r"6 of 6 boxes .* look like two corners \(x1, y1, x2, y2\), such as \[20"):
        folder.check()


def test_missing_images_are_refused(folder):
    (folder.root / "images" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images that were looked for are not in .*images, such as 1\.png"):
        folder.check()


def test_check_all_finds_a_broken_image(folder):
    path = folder.root / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    folder.check()
    with pytest.raises(UserError, match=r"1 of 3 images cannot be read, such as .*1\.png"):
        folder.check(every=True)


def test_set_without_usable_images_is_refused(folder):
    for annotation in folder.content["annotations"]:
        annotation["ignore"] = 1
    with pytest.raises(
        UserError, match=r"no image of .* can be trained on or measured; .*\(left out: 6 to be ignored\)"
    ):
        folder.check(filter_cfg=dict(filter_empty_gt=True))


def test_large_file_is_checked_on_demand(folder, monkeypatch):
    monkeypatch.setattr(datasets, "LARGE", 10)
    folder.content["categories"] = []
    (folder.root / "boxes.json").write_text(json.dumps(folder.content))
    dataset = dict(data_root=str(folder.root), ann_file="boxes.json", data_prefix=dict(img="images"))
    assert datasets.check_annotations(dataset, CLASSES, "train_dataloader") is None
    with pytest.raises(UserError, match="'cat', 'dog' are not among"):
        datasets.check_annotations(dataset, CLASSES, "train_dataloader", every=True)


# ---- fields


def test_faults_of_fields_are_counted_by_kind_in_one_line(folder):
    first, second, third, *_ = folder.content["annotations"]
    del first["area"], second["area"]
    third["area"] = None
    second["bbox"] = [1, 2, 3]
    folder.content["images"][1]["width"] = 0
    with pytest.raises(UserError) as caught:
        folder.check()
    assert str(caught.value).partition(" cannot be read: ")[2] == (
        "1 image whose width is 0 or less (id 1; mmdet's "
        "CocoDataset reads pixels); 2 annotations without area (the first is id 0; mmdet's CocoDataset reads square "
        "pixels, and width * height of its box will do); 1 annotation whose bbox is a list of 3 numbers (id 1; mmdet's "
        "CocoDataset reads [x, y, width, height] in pixels); 1 annotation whose area is null (id 2; mmdet's "
        "CocoDataset reads square pixels, and width * height of its box will do)"
    )
    for index, annotation in enumerate(folder.content["annotations"]):
        annotation["area"] = (None, "a", [], {}, True, float("nan"))[index]
    with pytest.raises(UserError, match=r"; and 4 more kinds of faults$"):
        folder.check()


@pytest.mark.parametrize(
    ("of", "name", "value", "expected"),
    [
        ("images", "id", None, "1 image whose id is null (number 0 of the list;"),
        ("images", "id", [1], "1 image whose id is a list (number 0"),
        ("images", "file_name", ..., "1 image without file_name (id 0;"),
        ("images", "file_name", 3, "1 image whose file_name is a number"),
        ("images", "file_name", "", "1 image whose file_name is an empty text"),
        ("images", "width", ..., "1 image without width"),
        ("images", "width", None, "1 image whose width is null"),
        ("images", "height", "30", "1 image whose height is text"),
        ("images", "height", -30, "1 image whose height is 0 or less"),
        ("categories", "id", ..., "1 category without id"),
        ("categories", "name", ..., "1 category without name"),
        ("categories", "name", 5, "1 category whose name is a number"),
        ("annotations", "id", ..., "1 annotation without id (number 0 of the list;"),
        ("annotations", "id", {}, "1 annotation whose id is an empty dict"),
        ("annotations", "image_id", ..., "1 annotation without image_id"),
        ("annotations", "category_id", None, "1 annotation whose category_id is null"),
        ("annotations", "category_id", [7], "1 annotation whose category_id is a list"),
        ("annotations", "bbox", ..., "1 annotation without bbox"),
        ("annotations", "bbox", None, "1 annotation whose bbox is null"),
        ("annotations", "bbox", "1,2,3,4", "1 annotation whose bbox is text"),
        ("annotations", "bbox", [], "1 annotation whose bbox is an empty list"),
        ("annotations", "bbox", [1, 2, 3, 4, 5], "1 annotation whose bbox is a list of 5 numbers"),
        ("annotations", "bbox", [1, 2, "3", 4], "1 annotation whose bbox is a list that holds text"),
        (
            "annotations",
            "bbox",
            [1, 2, float("nan"), 4],
            "1 annotation whose bbox is a list that holds NaN or infinite",
        ),
        (
            "annotations",
            "bbox",
            [1, 2, None, 1e39],
            "1 annotation whose bbox is a list that holds a number that is too large and null",
        ),
        (
            "annotations",
            "bbox",
            [1, 10**400, 3, 4],
            "1 annotation whose bbox is a list that holds a number that is too large",
        ),
        ("annotations", "bbox", [1, 2, -3, 4], "1 annotation whose bbox is of a width or height below 0"),
        ("annotations", "bbox", [1, 2, 3, 2e6], "1 annotation whose bbox is further away or larger than 1e+06 pixels"),
        ("images", "width", 10**9, "1 image whose width is above 1e+06"),
        ("annotations", "area", "180", "1 annotation whose area is text"),
        ("annotations", "area", float("inf"), "1 annotation whose area is NaN or infinite"),
        ("annotations", "iscrowd", "0", "1 annotation whose iscrowd is text (id 0; mmdet's CocoDataset reads 0 or 1)"),
        ("annotations", "iscrowd", 2, "1 annotation whose iscrowd is a number other than 0 and 1"),
        ("annotations", "ignore", "no", "1 annotation whose ignore is text"),
    ],
)
def test_field_of_another_kind_is_refused(folder, of, name, value, expected):
    if value is ...:
        del folder.content[of][0][name]
    else:
        folder.content[of][0][name] = value
    with pytest.raises(UserError) as caught:
        folder.check()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("of", "fields"),
    [
        ("annotations", dict(iscrowd=None)),  # as if it were not there
        ("annotations", dict(iscrowd=False, ignore=None)),
        ("annotations", dict(id="a")),  # any name will do in training
        ("annotations", dict(segmentation="nonsense")),  # no masks are trained on
        ("annotations", dict(ignore=1, bbox=None, area=None)),  # mmdet does not look at it
        ("annotations", dict(image_id=99, bbox=[])),
        ("annotations", dict(bbox=[20.5, 12, 12, 15])),
        ("images", dict(width=40.0)),
        ("categories", dict(supercategory=7)),
    ],
)
def test_what_mmdet_reads_is_taken(folder, of, fields):
    folder.content[of][0].update(fields)
    folder.check()
    built = DATASETS.build(coco.dataset(folder.root))
    assert [len(built[index]["data_samples"].gt_instances) for index in range(3)][1:] == [2, 2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], r"not in COCO's format: it holds an empty list, and not a dict"),
        (None, r"it holds null"),
        ({"images": []}, r"it has no categories"),
        ({"images": [], "annotations": None, "categories": []}, r"its annotations are null, and not a list"),
        ({"images": {"1": {}}, "annotations": [], "categories": []}, r"its images are a dict, and not a list"),
        ({"images": ["a"], "annotations": [], "categories": []}, r"number 0 of its images is text, and not a dict"),
        ({"images": [], "annotations": [], "categories": []}, r"lists no images"),
    ],
)
def test_other_files_are_refused(folder, content, expected):
    folder.content = content
    with pytest.raises(UserError, match=expected):
        folder.check()


@pytest.mark.parametrize("text", ["", "{", '{"images": [', "[" * 100000, "\ufeff{}", "\x00"])
def test_no_json_is_refused(folder, text):
    (folder.root / "boxes.json").write_text(text)
    with pytest.raises(UserError, match=r"boxes\.json cannot be read \(") as caught:
        datasets.check_annotations(coco.dataset(folder.root), CLASSES, "train_dataloader")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("of", ["images", "annotations", "categories"])
def test_an_id_of_several_is_refused(folder, of):
    first = folder.content[of][0]["id"]
    folder.content[of][1]["id"] = float(first)  # equal numbers are one id
    with pytest.raises(UserError, match=rf"has several {of} of the same id, id {first}(\.0)?: give each"):
        folder.check()
    folder.content["images"] *= 2
    folder.content[of][1]["id"] = 1 if of == "images" else 100
    with pytest.raises(UserError, match=r"several images of the same id, ids 0, 1, 2: give each image"):
        folder.check()


# ---- categories


def test_a_root_category_named_as_its_class_is_removed(folder):
    folder.content["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
    with pytest.raises(
        UserError, match=r"several categories named 'cat', the ids 0 and 7: mmdet makes a label of each"
    ) as found:
        folder.check()
    assert str(found.value).endswith("remove the category 0 from the file, as no annotation has it")
    (folder.root / "boxes.json").write_text(json.dumps(folder.content))
    built = DATASETS.build(coco.dataset(folder.root))
    assert built[0]["data_samples"].gt_instances.labels.tolist() == [1, 2]  # and not 0 and 1
    del folder.content["categories"][0]
    folder.check()
    built = DATASETS.build(coco.dataset(folder.root))
    assert built[0]["data_samples"].gt_instances.labels.tolist() == [0, 1]


def test_categories_of_one_name_with_annotations_are_joined(folder):
    folder.content["categories"].append({"id": 11, "name": "cat"})
    folder.content["annotations"][0]["category_id"] = 11
    with pytest.raises(UserError, match=r"give the annotations of 11 the category_id 7 and remove the category 11"):
        folder.check()


def test_categories_besides_the_classes_do_not_matter(folder):
    folder.content["categories"] = [
        {"id": 1, "name": "fox"},
        *folder.content["categories"],
        {"id": 2, "name": "fox"},
        {"id": "x", "name": "cow"},
    ]
    assert folder.check().kept == 6
    built = DATASETS.build(coco.dataset(folder.root))
    assert built[0]["data_samples"].gt_instances.labels.tolist() == [0, 1]


def test_a_class_that_is_named_twice_is_refused(folder):
    with pytest.raises(UserError, match=r"names the classes 'cat' more than once"):
        folder.check(("cat", "cat"))
    for classes in (5, (5,), (["cat"],)):
        with pytest.raises(UserError, match=r"is no tuple of names"):
            datasets.classes_of(dict(metainfo=dict(classes=classes)))


# ---- images


@pytest.mark.parametrize("every", [False, True])
def test_images_of_another_size_are_refused(folder, every):
    folder.content["images"][1].update(width=30, height=40)
    folder.content["images"][2].update(width=400, height=300)
    with pytest.raises(UserError) as caught:
        folder.check(every=every)
    assert "2 of 3 images have not the width and height that the annotation file says" in str(caught.value)
    assert "1.png is 40x30, not 30x40; 2.png is 40x30, not 400x300: correct them" in str(caught.value)


def turn(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 30)).save(path, "JPEG", exif=exif)


@pytest.mark.parametrize("every", [False, True])
def test_exif_orientation_counts_as_the_loader_takes_it(folder, every):
    for image in folder.content["images"]:
        image["file_name"] = image["file_name"].replace("png", "jpg")
        turn(folder.root / "images" / image["file_name"])
    loads = {name: [dict(type="LoadImageFromFile", color_type=name)] for name in ("color", "color_ignore_orientation")}
    folder.check(every=every, pipeline=loads["color_ignore_orientation"])
    with pytest.raises(UserError, match=r'0\.jpg is 30x40, not 40x30; .*, or load images with color_type="color_ign'):
        folder.check(every=every, pipeline=loads["color"])
    for image in folder.content["images"]:
        image.update(width=30, height=40)
    folder.check(every=every, pipeline=loads["color"])


def test_a_sample_of_plain_images_is_read_by_header(folder, monkeypatch):
    monkeypatch.setattr("mmcv.imfrombytes", lambda *_, **__: 1 / 0)
    folder.check(pipeline=[dict(type="LoadImageFromFile")])
    with pytest.raises(UserError, match=r"3 of 3 images cannot be read, such as .*0\.png \(ZeroDivisionError"):
        folder.check(every=True, pipeline=[dict(type="LoadImageFromFile")])
    with pytest.raises(UserError, match="ZeroDivisionError"):  # another reader may see another image
        folder.check(pipeline=[dict(type="LoadImageFromFile", imdecode_backend="pillow")])


def test_a_format_that_opencv_does_not_read_is_found_in_a_sample(folder):
    Image.new("RGB", (40, 30)).save(folder.root / "images/1.tga")
    folder.content["images"][1]["file_name"] = "1.tga"
    with pytest.raises(UserError, match=r"1 of 3 images cannot be read, such as .*1\.tga \(failed to load image\)"):
        folder.check()


@pytest.mark.parametrize("every", [False, True])
def test_the_loader_of_the_user_is_asked(folder, every):
    def load(results):
        results["img"] = np.load(results["img_path"])
        return results

    for image in folder.content["images"]:
        image["file_name"] = f"{image['id']}.npy"
        np.save(folder.root / "images" / image["file_name"], np.zeros((30, 40, 5), np.uint16))
    folder.check(every=every, pipeline=[load])
    np.save(folder.root / "images/1.npy", np.zeros((30, 41, 5)))
    with pytest.raises(UserError, match=r"1\.npy is 41x30, not 40x30"):
        folder.check(every=every, pipeline=[load])
    (folder.root / "images/1.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1 of 3 images cannot be read, such as .*1\.npy \(.*pickle"):
        folder.check(every=every, pipeline=[load])


def test_a_loader_that_cannot_be_built_is_reported(folder):
    with pytest.raises(UserError, match=r"cannot be built: .*NoSuchLoader is not in the"):
        folder.check(pipeline=[dict(type="NoSuchLoader")])


# ---- masks

MASKS = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]


@pytest.fixture
def instances(folder) -> Folder:
    """The same with masks."""
    folder.content = coco.content()
    return folder


def test_unusable_masks_are_counted(instances):
    first, second, third, *_ = instances.content["annotations"]
    first["segmentation"] = [[20, 12, 32, 27]]
    second["segmentation"].append([1, 2, 3])
    third["segmentation"] = {"size": [30, 40]}
    summary = instances.check(pipeline=MASKS)
    assert summary.dropped == {"with an unusable mask": 2, "crowds": 1}
    assert "2 with an unusable mask (the first is id 1, whose polygons have fewer than three points" in str(summary)
    assert "1 polygons of too few or an odd number of coordinates, out of masks that stay" in str(summary)
    built = DATASETS.build(coco.dataset(instances.root, masks=True))
    assert [len(built[index]["data_samples"].gt_instances) for index in range(3)] == [1, 3, 2]
    assert instances.check().dropped == {"crowds": 1}  # without masks


def test_a_set_of_unusable_masks_is_refused(instances):
    for annotation in instances.content["annotations"]:
        annotation["segmentation"] = [[[1, 2], [3, 4], [5, 6]]]
    with pytest.raises(
        UserError, match=r"8 with an unusable mask \(the first is id 1, whose polygons are lists of points"
    ):
        instances.check(pipeline=MASKS)


def test_masks_that_mmdet_would_fail_on_or_scramble_are_refused(instances):
    first, second, third, *_ = instances.content["annotations"]
    first["segmentation"] = coco.rectangle(20, 12, 12, 15)
    third["segmentation"]["size"] = [40, 30]
    with pytest.raises(
        UserError, match=r"\(with_mask=True\), and .*json has 1 annotation whose segmentation is one flat"
    ) as found:
        instances.check(pipeline=MASKS)
    assert "; 1 annotation whose RLE is of another size than the image (id 3): correct them" in str(found.value)
    second.pop("segmentation")
    instances.content["annotations"][4]["segmentation"] = []
    with pytest.raises(UserError, match=r"2 annotations without segmentation \(the first is id 2\)"):
        instances.check(pipeline=MASKS)
    instances.check()


def test_masks_of_objects_that_are_left_out_do_not_matter(instances):
    instances.content["annotations"][0].update(segmentation=None, ignore=1)
    instances.content["annotations"][1].update(segmentation="abc", category_id=3)
    assert instances.check(pipeline=MASKS).kept == 6
    instances.content["annotations"][8].update(segmentation=None)  # a crowd's is loaded
    with pytest.raises(UserError, match=r"1 annotation without segmentation \(id 9\)"):
        instances.check(pipeline=MASKS)


def test_rle_where_polygons_are_asked_for_is_left_out(instances):
    polygons = [MASKS[0], dict(MASKS[1], poly2mask=False)]
    assert instances.check(pipeline=polygons).dropped == {"with an unusable mask": 2, "crowds": 1}


def test_masks_in_other_units_are_refused(instances):
    for annotation in instances.content["annotations"]:
        if isinstance(masks := annotation["segmentation"], list):
            annotation["segmentation"] = [[x / 40 for x in polygon] for polygon in masks]
    with pytest.raises(UserError, match=r"6 of 9 masks .* lie outside of their boxes, such as that of id 1"):
        instances.check(pipeline=MASKS)


# ---- evaluation


def check_metric(folder: Folder, **evaluator: Any) -> None:
    coco.write(folder.root, folder.content)
    cfg = coco.config(folder.root, evaluator=evaluator)
    evaluators.check_evaluators(cfg, ["train", "val"])


def test_what_pycocotools_reads_is_checked(instances):
    check_metric(instances, metric=["bbox", "segm"])
    first, second, *_ = instances.content["annotations"]
    del first["iscrowd"]
    with pytest.raises(
        UserError, match=r"val_evaluator: .* 1 annotation without iscrowd \(id 1; CocoMetric reads 0 or 1, and 0"
    ):
        check_metric(instances)
    first.update(iscrowd=0, segmentation=[[20, 12, 32, 27]])
    second.update(segmentation=None)
    check_metric(instances)
    with pytest.raises(
        UserError, match=r"metric='segm' cannot be measured .* 1 annotation whose polygons .*; 1 annotation without"
    ):
        check_metric(instances, metric=["bbox", "segm"])
    check_metric(instances, metric="segm", format_only=True)
    second["id"] = first["id"]
    with pytest.raises(UserError, match=r"val_evaluator: .* several annotations of the same id, id 1"):
        check_metric(instances)


@pytest.mark.parametrize("of", ["images", "categories"])
def test_ids_that_numpy_cannot_sort_are_refused(instances, of):
    for value in ("1", 2**63 + 1):
        instances.content[of][1]["id"] = value
        with pytest.raises(UserError, match=rf"pycocotools cannot sort the ids of the {of} .*: use whole numbers"):
            check_metric(instances)
    for index, entry in enumerate(instances.content[of]):
        entry["id"] = "abc"[index]
    instances.content["annotations"][0].update(image_id="a", category_id="a") if of == "images" else None
    check_metric(instances)


def test_the_metrics_file_has_the_images_and_classes_of_the_data_set(instances):
    cfg = coco.config(instances.root)
    coco.write(instances.root, instances.content)
    other = instances.root / "other.json"
    cfg.val_evaluator.ann_file = str(other)
    other.write_text(json.dumps({**instances.content, "images": instances.content["images"][:2]}))
    with pytest.raises(UserError, match=r"other\.json does not list 1 image of .*boxes\.json, such as id 2"):
        evaluators.check_evaluators(cfg, ["val"])
    other.write_text(json.dumps({**instances.content, "categories": instances.content["categories"][::-1]}))
    with pytest.raises(
        UserError, match=r"val_evaluator: the classes are in another order than the categories of .*other"
    ):
        evaluators.check_evaluators(cfg, ["val"])
    cfg.val_evaluator.update(format_only=True, outfile_prefix="results")  # results hold the categories' ids
    with pytest.raises(UserError, match=r"val_evaluator: the classes are in another order"):
        evaluators.check_evaluators(cfg, ["val"])
    cfg.val_evaluator.sort_categories = True
    evaluators.check_evaluators(cfg, ["val"])


def test_one_metric_measures_several_sets_by_ids_of_their_own(instances):
    cfg = coco.config(instances.root)
    one = cfg.val_dataloader.dataset
    for name in ("boxes.json", "other.json"):
        (instances.root / name).write_text(json.dumps(instances.content))
    cfg.val_dataloader.dataset = dict(type="ConcatDataset", datasets=[one, {**one, "ann_file": "other.json"}])
    with pytest.raises(
        UserError, match=r"one CocoMetric measures .*boxes\.json and .*other\.json, and both have .* id 0"
    ):
        evaluators.check_evaluators(cfg, ["val"])
    second = {**cfg.val_evaluator, "ann_file": str(instances.root / "other.json")}
    cfg.val_evaluator = dict(
        type="MultiDatasetsEvaluator", metrics=[cfg.val_evaluator, second], dataset_prefixes=["a", "b"]
    )
    evaluators.check_evaluators(cfg, ["val"])
    cfg.val_evaluator.metrics[1].ann_file = "nowhere.json"
    with pytest.raises(UserError, match=r"no file nowhere\.json"):
        evaluators.check_evaluators(cfg, ["val"])


def test_a_metric_without_a_file_needs_the_annotations_of_the_images(instances):
    cfg = coco.config(instances.root, evaluator=dict(ann_file=None))
    coco.write(instances.root, instances.content)
    with pytest.raises(UserError, match=r"val_evaluator: CocoMetric has no ann_file"):
        evaluators.check_evaluators(cfg, ["val"])
    cfg.val_dataloader.dataset.pipeline[-1].meta_keys = ("img_id", "ori_shape", "instances")
    evaluators.check_evaluators(cfg, ["val"])


@pytest.mark.parametrize("how", ["none", "empty"])
def test_a_set_without_annotations_is_for_results_alone(folder, how):
    if how == "none":
        del folder.content["annotations"]
    else:
        folder.content["annotations"] = []
    folder.content["images"][0].update(width=30)  # nothing depends on it
    coco.write(folder.root, folder.content)
    cfg = coco.config(folder.root, evaluator=dict(format_only=True, outfile_prefix="results"))
    preflight.check(cfg, ["val"])
    cfg.val_evaluator.format_only = False
    with pytest.raises(UserError, match=r"annotations.* to predict alone, set format_only=True of the CocoMetric"):
        preflight.check(cfg, ["val"])
    cfg.val_evaluator = [dict(type="DumpDetResults", out_file_path="a.pkl")]
    preflight.check(cfg, ["val"])
    with pytest.raises(UserError, match=r"train_dataloader: .*annotations"):
        preflight.check(cfg, ["train"])


def test_results_need_a_place(folder):
    cfg = coco.config(folder.root, evaluator=dict(format_only=True))
    with pytest.raises(UserError, match=r"val_evaluator: format_only=True writes .* outfile_prefix$"):
        evaluators.check_results_prefix(cfg, "val")
    cfg.val_evaluator.outfile_prefix = "results"
    evaluators.check_results_prefix(cfg, "val")


# ---- several data sets


def test_a_class_has_one_label_in_all_data_sets(caplog):
    datasets.check_same_labels({})
    datasets.check_same_labels({"train": ("cat", "dog"), "val": ["cat", "dog"]})
    with pytest.raises(UserError, match=r"the class 'dog' has label 0 in val, and 1 in train"):
        datasets.check_same_labels({"train": ("cat", "dog"), "val": ("dog", "cat")})
    datasets.check_same_labels({"train": ("cat", "dog"), "val": ("katze", "hund")})


def test_training_and_validation_may_list_other_categories(folder):
    folder.content["annotations"] = coco.content()["annotations"]
    coco.write(folder.root, folder.content)
    more = [{"id": 1, "name": "fox"}, *folder.content["categories"], {"id": 30, "name": "cow"}]
    (folder.root / "more.json").write_text(json.dumps({**folder.content, "categories": more}))
    cfg = coco.config(folder.root)
    cfg.train_dataloader.dataset.ann_file = "more.json"
    preflight.check(cfg, ["train", "val"])


def test_masks_of_a_second_loader_of_the_same_files_are_checked(instances):
    del instances.content["annotations"][0]["segmentation"]
    coco.write(instances.root, instances.content)
    cfg = coco.config(instances.root)
    cfg.test_dataloader = dict(dataset=coco.dataset(instances.root, test_mode=True))
    preflight.check(cfg, ["val", "test"])
    cfg.test_dataloader.dataset.pipeline = MASKS
    with pytest.raises(UserError, match="test_dataloader: the pipeline loads masks"):
        preflight.check(cfg, ["val", "test"])


def test_data_sets_of_other_formats_are_not_judged_by_cocos(folder):
    class Own(DATASETS.get("mmdet.CocoDataset")):
        def parse_data_info(self, raw):
            return raw

    folder.content["annotations"] = None
    coco.write(folder.root, folder.content)
    for kind in (Own, "LVISV1Dataset", "CocoPanopticDataset"):
        assert datasets.check_annotations(coco.dataset(folder.root, type=kind), CLASSES, "train_dataloader") is None
    for kind in ("CocoDataset", "mmdet.CocoDataset", DATASETS.get("mmdet.CocoDataset"), "CityscapesDataset"):
        with pytest.raises(UserError, match="annotations are null"):
            datasets.check_annotations(coco.dataset(folder.root, type=kind), CLASSES, "train_dataloader")


def test_the_folder_of_images_has_its_name(folder):
    coco.write(folder.root, folder.content)
    with pytest.raises(UserError, match=r"needs data_prefix=dict\(img="):
        datasets.check_annotations(coco.dataset(folder.root, data_prefix={}), CLASSES, "train_dataloader")


@pytest.mark.parametrize(
    ("old", "new"), [('"area": 1', '"bbox": [1, 2, 3, 4], "area": 1'), ('{"images"', '{"categories": [], "images"')]
)
def test_a_key_that_is_there_twice_is_refused(folder, old, new):
    text = json.dumps(folder.content)
    assert old in text
    coco.write(folder.root, text.replace(old, new, 1))
    for check in (
        lambda: datasets.check_annotations(coco.dataset(folder.root), CLASSES, "train_dataloader"),
        lambda: evaluators.check_measured(folder.root / "boxes.json", CLASSES, ["bbox"], "val_evaluator"),
    ):
        with pytest.raises(UserError, match=r"boxes.json has an entry with the key '\w+' twice.*remove one of them"):
            check()


def test_an_image_is_not_said_to_be_larger_than_what_is_read(folder, monkeypatch):
    monkeypatch.setattr(limits, "PIXELS", limits.Limit(1199, "pixels"))
    with pytest.raises(UserError, match=r"the image of id \d+ is 40x30: it has 1,200 pixels, and the limit is 1,199;"):
        folder.check()
    monkeypatch.setenv("MM_VITBACKBONES_LIMITS", "1.01")
    folder.check()


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        ({"size": [30, 40], "counts": [5, 7]}, "whose RLE cannot be decoded into an image's pixels"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "whose RLE is of another size than the image"),
        ([[1, 1, float("nan"), 2, 3, 4]], "whose polygons hold something other than numbers below 1e+06"),
        (
            [[0, 0, 1e6, 1e6, 0, 1] * 8],
            "whose polygons are longer than the limit of 10,000,000 pixels (MM_VITBACKBONES_LIMITS=10 multiplies it)",
        ),
    ],
)
def test_a_mask_that_cannot_be_right_is_mentioned_where_boxes_alone_are_loaded(folder, monkeypatch, mask, why):
    said: list[str] = []
    monkeypatch.setattr("mm_vitbackbones.data.coco_masks.print_log", lambda message, **_: said.append(message))
    folder.content["annotations"][0]["segmentation"] = mask
    folder.check()
    (line,) = said
    assert f"has 1 annotation {why} (id 0); boxes alone are loaded" in line
    coco.write(folder.root, folder.content)
    with pytest.raises(UserError, match=re.escape(why)):
        datasets.check_annotations(coco.dataset(folder.root, masks=True), CLASSES, "train_dataloader")


def test_a_named_pipe_is_no_annotation_file(tmp_path):
    os.mkfifo(tmp_path / "boxes.json")
    with pytest.raises(UserError, match=r"ann_file .*boxes.json is a named pipe, and no COCO JSON"):
        datasets.check_data_exists(coco.dataset(tmp_path), "train_dataloader")
