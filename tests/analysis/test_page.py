"""The page is HTML that loads nothing, runs nothing, and shows the numbers."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from helpers.detections import found_of, random_set, truth_of

pytest.importorskip("pycocotools")
pytest.importorskip("matplotlib")

from mm_vitbackbones.analysis import comparing, report
from mm_vitbackbones.analysis.detection import Detection
from mm_vitbackbones.analysis.matchable import tabulate
from mm_vitbackbones.analysis.page import Page, Table, number
from mm_vitbackbones.analysis.report import Picture, Report
from mm_vitbackbones.analysis.segmentation import Collector
from mm_vitbackbones.files import to_csv

HOSTILE = "<script>alert(1)</script>\"'&\u202e$x_\x1b[2J"
EMPTY = {"meta", "img", "rect", "image", "use", "br"}


class Read(HTMLParser):
    """The tags of a page, which are all closed, and its tables."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open, self.tags, self.tables, self.texts = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, *first):
        """The table whose head begins with these names, its rows by their first cells."""
        (found,) = [table for table in self.tables if table[0][: len(first)] == [*first]]
        return {row[0]: dict(zip(found[0], row, strict=True)) for row in found[1:]}

    def check_is_inert(self):
        tags = {tag for tag, _ in self.tags}
        assert not tags & {"script", "iframe", "object", "link", "base", "form", "input", "style:"}
        for _, attributes in self.tags:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "xlink:href"):
                assert attributes.get(name, "#").startswith(("#", "data:image/"))
        policy = next(each for _, each in self.tags if each.get("http-equiv") == "Content-Security-Policy")
        assert policy["content"].startswith("default-src 'none'")


class Images:
    """A gray image of any name."""

    def name(self, key):
        return f"{key}{HOSTILE}"

    def picture(self, key):
        jpeg = cv2.imencode(".jpg", np.full((200, 200, 3), 128, np.uint8))[1].tobytes()
        return Picture(self.name(key), jpeg if key != 2 else None, (200, 200))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The page and the files of a detector whose classes have hostile names."""
    truth, found = random_set(0)
    for each in truth["categories"]:
        each["name"] += HOSTILE
    made = Report(Page(f"title {HOSTILE}"))
    run = Detection(truth, found)
    fits = tabulate(np.array([[0, 0, 9, 9.0], [0, 0, 90, 30]]), np.array([False, True]))
    report.add_detection(made, run, Images(), None, (fits, "how"))
    half = Detection(truth, found[::2])
    result = comparing.bootstrap(comparing.ap_of(half), comparing.ap_of(run), 12, 10)
    report.add_comparison(made, "AP", (f"first {HOSTILE}", "second"), run.classes, result, 10)
    folder = tmp_path_factory.mktemp("page")
    path = made.write(folder)
    return run, Read(path.read_text("utf-8")), folder


def test_nothing_is_loaded_or_run_and_names_are_text(detector):
    _, page, _ = detector
    page.check_is_inert()
    names = [text for text in page.texts if "alert(1)" in text]
    assert names
    assert not [text for text in page.texts if "\x1b" in text or "\u202e" in text]


def test_the_table_of_classes_has_pycocotools_numbers(detector):
    run, page, folder = detector
    rows = page.table("class", "objects", "AP")
    ap = run.precision
    for label, row in enumerate([*rows.values()][:-1]):
        assert row["objects"] == str(run.counts[label, 0])
        assert row["AP"] == number(float(ap[:, label, 0].mean()))
        assert row["AP50"] == number(float(ap[0, label, 0]))
    assert rows["mean"]["AP"] == number(float(np.nanmean(ap[..., 0])))
    numbers = json.loads((folder / "analysis.json").read_text())["bbox"]
    assert numbers["AP"] == pytest.approx(np.nanmean(ap[..., 0]), abs=1e-9)
    lines = (folder / "bbox_classes.csv").read_text().splitlines()
    assert float(lines[-1].split(",")[2]) == pytest.approx(numbers["AP"], abs=1e-12)


def test_every_part_is_there(detector):
    _, page, folder = detector
    assert {path.name for path in folder.iterdir()} == {
        "analysis.html",
        "analysis.json",
        *(f"bbox_{name}.csv" for name in ("classes", "thresholds", "errors", "errors_by_class", "confusion", "images")),
        "matchable.csv",
        "against_ap.csv",
    }
    assert sum(attributes.get("src", "").startswith("data:image/svg+xml") for _, attributes in page.tags) == 8
    assert len(page.table("error")) == 6
    assert page.table("class", "first AP")["mean"]["second AP"] == page.table("class", "objects", "AP")["mean"]["AP"]


def test_boxes_of_the_worst_image_are_drawn_by_what_they_are():
    truth = truth_of([(1, 0, [10, 10, 40, 40]), (1, 0, [100, 10, 40, 40])], 1, "a")
    found = found_of([(1, 0, 0.9, [10, 10, 40, 40]), (1, 0, 0.8, [150, 150, 40, 40])])
    made = Report(Page("x"))
    report.add_detection(made, Detection(truth, found), Images(), 0.5, None)
    page = Read(made.page.render())
    drawn = {(each["class"], float(each["x"]), float(each["y"])) for tag, each in page.tags if tag == "rect"}
    assert drawn == {("found", 10, 10), ("missed", 100, 10), ("right", 10, 10), ("false", 150, 150)}
    assert [tag for tag, _ in page.tags].count("image") == 1  # the other side uses it again
    assert "0 right, 0 false" not in "".join(page.texts)
    assert "1 right, 1 false; F1 0.50" in page.texts


def test_an_image_that_cannot_be_read_is_said_so():
    truth = truth_of([(2, 0, [10, 10, 40, 40])], 2, "a")
    made = Report(Page("x"))
    report.add_detection(made, Detection(truth, []), Images(), None, None)
    assert "the image cannot be read" in Read(made.page.render()).texts


def test_a_page_of_segmentation_has_the_numbers_of_its_classes():
    collector = Collector([HOSTILE, "b", "nowhere"])
    for place in range(3):
        truth = np.zeros((20, 30), np.uint8)
        truth[:, 15:] = 1
        found = np.roll(truth, place, axis=1)
        collector.add(str(place), found, truth)
    run, made = collector.result(), Report(Page("x"))
    report.add_segmentation(made, run, lambda key: (Images().picture(int(key)), b"png"))
    page = Read(made.page.render())
    page.check_is_inert()
    rows = page.table("class", "share of pixels")
    assert rows["b"]["IoU"] == number(float(run.iou[1]))
    assert rows["nowhere"]["IoU"] == "-"
    assert rows["mean"]["IoU"] == number(float(np.nanmean(run.iou)))
    assert [row[0] for row in made.tables["segmentation_images"].rows] == ["2", "1", "0"]


def test_long_tables_are_cut_on_the_page_and_whole_in_the_file():
    made = Report(Page("x"))
    made.table("long", Table(["a"], [[place] for place in range(150)]))
    assert len(Read(made.page.render()).tables[0]) == 101
    assert to_csv(["value"], made.tables["long"].rows).count(b"\n") == 151


def test_numbers_are_shown_short_and_written_whole():
    values = [1 / 3, float("nan"), None, 12345, np.float32(0.5), True]
    assert [number(value) for value in values] == ["0.333", "-", "-", "12,345", "0.500", "yes"]
    assert to_csv(["a"], [[value] for value in values[:3]]) == f'a\n{1 / 3}\n""\n""\n'.encode()
