"""What is wrong with a data set in COCO's format is found before a run, and reported in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_vitbackbones.cli import preflight
from mm_vitbackbones.data import coco as annotations
from mm_vitbackbones.errors import UserError

CLASSES = ("cat", "dog")


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

    def check(self, classes=CLASSES, every: bool = False, **dataset: Any) -> annotations.CocoSummary:
        (self.root / "boxes.json").write_text(json.dumps(self.content))
        whole = dict(data_root=str(self.root), ann_file="boxes.json", data_prefix=dict(img="images"), **dataset)
        found = preflight.check_annotations(whole, classes, "train_dataloader", every)
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
    assert preflight.check_annotations(dataset, CLASSES, "val_dataloader", every=True, seen=True).images == 3
    with pytest.raises(UserError, match=r"1 of 3 images"):
        preflight.check_annotations(dataset, CLASSES, "val_dataloader", every=True)


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


def test_mmdet_keeps_as_many_images(folder):
    pytest.importorskip("mmdet")
    from mmengine.registry import DATASETS, DefaultScope

    folder.content["annotations"] = folder.content["annotations"][:3]  # none for the third image
    folder.content["annotations"][2]["bbox"] = [5, 5, 0.5, 10]
    rules = dict(filter_cfg=dict(filter_empty_gt=True, min_size=20))
    summary = folder.check(**rules)
    import mmdet.datasets  # noqa: F401

    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(
            dict(
                type="CocoDataset",
                data_root=str(folder.root),
                ann_file="boxes.json",
                data_prefix=dict(img="images"),
                metainfo=dict(classes=CLASSES),
                pipeline=[],
                **rules,
            )
        )
    assert len(dataset) == summary.left == 2


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
    with pytest.raises(UserError, match=r"no image of .* can be trained on; .*\(left out: 6 to be ignored\)"):
        folder.check(filter_cfg=dict(filter_empty_gt=True))


def test_train_and_val_have_the_same_categories(folder):
    one, other = folder.check(), folder.check()
    preflight.check_same_categories({})
    preflight.check_same_categories({"train_dataloader": one, "val_dataloader": other})
    other.categories = ["dog", "cat"]
    with pytest.raises(UserError, match=r"\(val_dataloader\) are 'dog', 'cat', and those of .* 'cat', 'dog'"):
        preflight.check_same_categories({"train_dataloader": one, "val_dataloader": other})


def test_large_file_is_checked_on_demand(folder, monkeypatch):
    monkeypatch.setattr(preflight, "LARGE", 10)
    folder.content["categories"] = []
    (folder.root / "boxes.json").write_text(json.dumps(folder.content))
    dataset = dict(data_root=str(folder.root), ann_file="boxes.json", data_prefix=dict(img="images"))
    assert preflight.check_annotations(dataset, CLASSES, "train_dataloader") is None
    with pytest.raises(UserError, match="'cat', 'dog' are not among"):
        preflight.check_annotations(dataset, CLASSES, "train_dataloader", every=True)
