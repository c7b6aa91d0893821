"""tools/predict.py: images and folders in, drawings and results in open formats out."""

from __future__ import annotations

import json
import os
import signal
import unicodedata
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.drawing import Sample
from helpers.runs import log_to_stdout, run_tool

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.structures import InstanceData, PixelData

from mm_vitbackbones import files, limits
from mm_vitbackbones.cli import predict
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.journal import NAME, Journal
from mm_vitbackbones.cli.predict import Results, find_images
from mm_vitbackbones.data import mini
from mm_vitbackbones.data.reading import ImageReader
from mm_vitbackbones.errors import OutputError, UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("predict")]


def images(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"image_{i}.png" for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        cv2.imwrite(str(path), rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    return paths


def test_detector_draws_and_writes_coco_results(detector, tmp_path):
    config, checkpoint = detector
    images(tmp_path / "in", (60, 80), (90, 50))
    (tmp_path / "in/deeper").mkdir()
    (alone,) = images(tmp_path / "alone", (64, 64))
    (tmp_path / "in/notes.txt").write_text("no image")
    out = tmp_path / "out"
    arguments = (config, checkpoint, tmp_path / "in", alone, "--out", out, "--score-thr", 0.0)
    result = run_tool("predict", *arguments, "--cfg-options", "model.test_cfg.score_thr=0.0")
    assert result.returncode == 0, result.stderr
    drawn = sorted(path.name for path in out.glob("*.png"))
    assert drawn == ["image_0.png", "image_0_2.png", "image_1.png"]  # two images of one name
    assert "predicting: 3/3" in result.stdout
    assert str(alone) not in result.stdout
    found = json.loads((out / "predictions.json").read_text())
    assert [image["width"] for image in found["images"]] == [80, 50, 64]
    assert [category["name"] for category in found["categories"]] == [*mini.THINGS]
    assert {annotation["image_id"] for annotation in found["annotations"]} == {1, 2, 3}
    for annotation in found["annotations"]:
        x, y, width, height = annotation["bbox"]
        image = found["images"][annotation["image_id"] - 1]
        assert 0 <= x <= x + width <= image["width"] + 0.02
        assert 0 <= y <= y + height <= image["height"] + 0.02
        assert 0 <= annotation["score"] <= 1
        assert 1 <= annotation["category_id"] <= 5
    numbers = [annotation["category_id"] for annotation in found["annotations"]]
    name, count = Counter(found["categories"][number - 1]["name"] for number in numbers).most_common(1)[0]
    assert f"3 of 3 images done: {out}; found: {count} {name}" in result.stdout
    again = run_tool("predict", *arguments)
    assert again.returncode == 2
    assert "is there already, and nothing is overwritten" in again.stderr


def test_segmentor_writes_label_maps_and_skips_broken_images(segmentor, tmp_path):
    config, checkpoint = segmentor
    good = images(tmp_path, (60, 80), (64, 64))
    (tmp_path / "broken.jpg").write_text("<html>")
    out = tmp_path / "out"
    arguments = (config, checkpoint, good[0], tmp_path / "broken.jpg", good[1], "--out", out, "--verbose")
    result = run_tool("predict", *arguments)
    assert result.returncode == 1
    assert f"3/3 {good[1]}: " in result.stdout
    assert "predicting: " not in result.stdout
    assert f"skipped {tmp_path / 'broken.jpg'}: failed to load image\n" in result.stderr
    assert result.stderr.strip().endswith("1 of 3 images could not be read")
    for path, size in zip(good, ((60, 80), (64, 64)), strict=True):
        labels = cv2.imread(str(out / f"{path.stem}_labels.png"), cv2.IMREAD_UNCHANGED)
        assert labels.shape == size
        assert labels.max() < 9
        assert (out / path.name).is_file()
    assert not (out / "predictions.json").exists()


def test_turned_images_have_the_size_that_the_network_sees(detector, segmentor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (160, 64), (90, 120, 30)).save(path, exif=exif)
    options = ["--device", "cpu", "--score-thr", "0", "--cfg-options", "model.test_cfg.score_thr=0.0"]
    assert run(predict.main, [*map(str, detector), str(path), "--out", str(tmp_path / "boxes"), *options]) == 0
    found = json.loads((tmp_path / "boxes/predictions.json").read_text())
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (64, 160)
    corners = [(x + width, y + height) for x, y, width, height in (each["bbox"] for each in found["annotations"])]
    assert 64 < max(y for _, y in corners) <= 160.02
    assert max(x for x, _ in corners) <= 64.02
    height, width = cv2.imread(str(tmp_path / "boxes/turned.png")).shape[:2]
    assert height > 2 * width
    assert run(predict.main, [*map(str, segmentor), str(path), "--out", str(tmp_path / "labels"), *options[:2]]) == 0
    assert cv2.imread(str(tmp_path / "labels/turned_labels.png")).shape[:2] == (160, 64)


def test_image_above_opencvs_limit_is_skipped(segmentor, tmp_path, monkeypatch, capsys):
    given = images(tmp_path / "in", (60, 80), (64, 64))
    decode, large = cv2.imdecode, len(given[0].read_bytes())

    def limited(content: np.ndarray, flags: int) -> np.ndarray:
        if len(content) == large:
            raise cv2.error("OpenCV(5): (-215:Assertion failed) pixels <= CV_IO_MAX_IMAGE_PIXELS in function 'read'")
        return decode(content, flags)

    monkeypatch.setattr(cv2, "imdecode", limited)
    log_to_stdout()
    with pytest.raises(SystemExit) as ended:
        run(
            predict.main,
            [*map(str, segmentor), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"],
        )
    assert ended.value.code == 1
    skipped, summary = capsys.readouterr().err.splitlines()
    assert skipped.startswith(
        f"skipped {given[0]}: it has more pixels than the limit of 134,217,728; if you trust the file, "
    )
    assert summary == "1 of 2 images could not be read"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image_1.png", "image_1_labels.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no_such.jpg",), "there is no image or folder no_such.jpg"),
        (("{empty}",), "there is no image in"),
        (("{empty}/../a.png", "--device", "cuda:7"), "there is no GPU"),
    ],
)
def test_bad_arguments_are_refused(segmentor, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    if "GPU" in message and torch.cuda.is_available():
        pytest.skip("there is one")
    filled = [argument.replace("{empty}", str(tmp_path / "empty")) for argument in arguments]
    assert run(predict.main, [*map(str, segmentor), *filled, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_results_are_unique(tmp_path):
    for folder in ("a", "b"):
        images(tmp_path / folder / "x", (8, 8))
    names = [name for _, name in find_images([tmp_path / "a", tmp_path / "b"])[0]]
    assert names == ["x/image_0", "x/image_0_2"]
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="no image in"):
        find_images([tmp_path / "c"])


def test_files_of_any_kind_are_found_for_a_loader_of_the_users_own(tmp_path):
    for name in ("in/a.npy", "in/b/c.npy", "in/.hidden", "mixed/a.tif", "mixed/a.tif.aux.xml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="no image in"):
        find_images([tmp_path / "in"])
    assert [name for _, name in find_images([tmp_path / "in"], any_file=True)[0]] == ["a", "b/c"]
    assert [path.name for path, _ in find_images([tmp_path / "mixed"], any_file=True)[0]] == ["a.tif"]
    assert [name for _, name in find_images([tmp_path / "in/a.npy"])[0]] == ["a"]  # a file by its name


def test_masks_are_run_lengths_and_their_area_is_counted():
    from pycocotools import mask as coco_mask

    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    found = InstanceData(
        bboxes=torch.tensor([[2.0, 1.0, 7.0, 4.0], [0.0, 0.0, 1.0, 1.0]]),
        labels=torch.tensor([1, 0]),
        scores=torch.tensor([0.9, 0.1]),
        masks=masks,
    )
    results = Results(("cat", "dog"))
    results.take(results.entry(0, Path("a.png"), (6, 8), Sample(pred_instances=found), score_thr=0.3))
    (annotation,) = results.coco()["annotations"]
    assert (annotation["bbox"], annotation["category_id"], annotation["area"]) == ([2.0, 1.0, 5.0, 3.0], 2, 15)
    assert np.array_equal(coco_mask.decode(annotation["segmentation"]), masks[0].numpy())
    assert results.said(Sample(pred_instances=found), 0.0) == "1 dog, 1 cat"
    assert results.said(Sample(pred_instances=found), 0.95) == "nothing"
    labels = PixelData(data=torch.tensor([[[0, 1, 7]]]))
    assert results.said(Sample(pred_sem_seg=labels), 0.3) == "cat, dog, class 7"


def test_what_all_images_hold_is_counted():
    detections = Results(("cat", "dog"))
    assert detections.total() == "nothing"
    for labels in ([1, 0, 1], [1]):
        count = len(labels)
        found = InstanceData(bboxes=torch.zeros(count, 4), labels=torch.tensor(labels), scores=torch.ones(count))
        detections.take(detections.entry(0, Path("a.png"), (6, 8), Sample(pred_instances=found), score_thr=0.3))
    assert detections.total() == "3 dog, 1 cat"
    segments = Results(("cat", "dog"))
    for labels in ([[[0, 1, 1]]], [[[1, 1, 1]]]):
        found = PixelData(data=torch.tensor(labels))
        segments.take(segments.entry(0, Path("a.png"), (1, 3), Sample(pred_sem_seg=found), score_thr=0.3))
    assert segments.total() == "dog in 2, cat in 1"


# ---- what comes in and goes out badly


class Toy:
    """A predictor without a model: of each image a box and a mask, by its first pixel."""

    classes, palette = ("cat", "dog\u00e9"), None

    def __init__(self, *_: Any) -> None:
        self._read = ImageReader([{"type": "mmcv.LoadImageFromFile"}])

    def load(self, path: Path, index: int) -> tuple[np.ndarray, Any]:
        image = self._read({"img_path": str(path)})
        return image, image

    def __call__(self, image: np.ndarray) -> Any:
        label = int(image[0, 0, 0]) % 2
        masks = torch.zeros(1, *image.shape[:2], dtype=torch.bool)
        masks[0, :2, :2] = True
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        found = InstanceData(bboxes=boxes, labels=torch.tensor([label]), scores=torch.ones(1), masks=masks)
        return Sample(pred_instances=found)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, detector: tuple[Path, Path]) -> list[str]:
    """The first arguments of a command that predicts by ``Toy``."""
    monkeypatch.setattr(predict, "Predictor", Toy)
    monkeypatch.setattr(predict, "print_log", lambda message, **_: print(message))
    return [*map(str, detector), "--device", "cpu"]


def outcome(arguments: list[Any]) -> int:
    """The exit code of the command."""
    try:
        return run(predict.main, [*map(str, arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_at(monkeypatch: pytest.MonkeyPatch, path: Path, error: BaseException) -> None:
    """Have the loading of an image end in an error."""
    load = Toy.load

    def stopping(self: Toy, at: Path, index: int) -> Any:
        if at == path:
            raise error
        return load(self, at, index)

    monkeypatch.setattr(Toy, "load", stopping)


def test_what_is_no_image_is_skipped_and_all_others_are_done(toy, tmp_path, capsys):
    given = images(tmp_path / "in", (60, 80), (64, 64), (1, 600), (600, 1))
    os.mkfifo(tmp_path / "in/a_pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "in/folder.png").mkdir()
    (tmp_path / "in/link.png").symlink_to("nowhere")
    (tmp_path / "in/image_00.png").touch()
    (tmp_path / "in/image_01.jpg").write_bytes(given[0].read_bytes()[:100])
    out = tmp_path / "out"
    code = outcome([*toy, tmp_path / "in", tmp_path / "pipe", "/dev/zero", tmp_path / "missing.png", "--out", out])
    captured = capsys.readouterr()
    assert code == 1
    assert f"4 of 12 images done: {out}" in captured.out
    *skipped, last = captured.err.splitlines()
    assert last == "8 of 12 images could not be read"
    assert {Path(line.partition(": ")[0]).name: line.partition(": ")[2] for line in skipped} == {
        "a_pipe.png": "it is a named pipe, and no file",
        "pipe": "it is a named pipe, and no file",
        "zero": "it is a device, and no file",
        "folder.png": "it is a folder without images, or a link to one",
        "link.png": "it is a link to nothing",
        "missing.png": "there is no such file or folder",
        "image_00.png": "it is empty",
        "image_01.jpg": "failed to load image",
    }
    assert sorted(contents(out)) == [*(f"image_{i}.png" for i in range(4)), "predictions.json"]
    assert len(json.loads((out / "predictions.json").read_text())["images"]) == 4


def test_image_that_the_model_cannot_take_is_skipped(toy, tmp_path, monkeypatch, capsys):
    given = images(tmp_path / "in", (60, 80), (64, 64), (30, 30))
    stop_at(monkeypatch, given[1], RuntimeError("the kernel is larger than the input"))
    assert outcome([*toy, tmp_path / "in", "--out", tmp_path / "out"]) == 1
    assert f"skipped {given[1]}: RuntimeError: the kernel is larger than the input" in capsys.readouterr().err
    assert sorted(contents(tmp_path / "out")) == ["image_0.png", "image_2.png", "predictions.json"]


def test_too_large_an_image_is_skipped_before_it_is_loaded(toy, tmp_path, monkeypatch, capsys):
    given = images(tmp_path / "in", (60, 80), (16, 16))
    monkeypatch.setattr(limits, "PIXELS", limits.Limit(4000, "pixels"))
    monkeypatch.setattr(cv2, "imdecode", lambda content, flags: np.zeros((16, 16, 3), np.uint8))
    assert outcome([*toy, tmp_path / "in", "--out", tmp_path / "out"]) == 1
    message = "it has 4,800 pixels, and the limit is 4,000; if you trust the file, the environment variable"
    assert f"skipped {given[0]}: {message} MM_VITBACKBONES_LIMITS=10" in capsys.readouterr().err
    monkeypatch.setenv("MM_VITBACKBONES_LIMITS", "1.2")
    assert outcome([*toy, tmp_path / "in", "--out", tmp_path / "out2"]) == 0


@pytest.mark.parametrize("reason", [None, "OSError: no C++ compiler"], ids=["compiled", "no compiler"])
def test_compiled_backbone_predicts_the_same_and_without_a_compiler_one_line_says_so(
    segmentor, tmp_path, monkeypatch, reason
):
    calls, lines, said = [], [], []

    def compiled(function: Any, **_: Any) -> Any:
        return lambda *inputs: calls.append(function) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("mm_vitbackbones.ops.compiling.problem", lambda *_, **__: reason)
    monkeypatch.setattr("mm_vitbackbones.backbones.base.print_log", lambda text, **_: lines.append(text))
    monkeypatch.setattr("mm_vitbackbones.cli.compiling.print_log", lambda text, **_: said.append(text))
    images(tmp_path / "in", (64, 64))
    command = [*segmentor, tmp_path / "in", "--device", "cpu", "--out"]
    assert outcome([*command, tmp_path / "plain"]) == 0
    assert not calls
    assert outcome([*command, tmp_path / "compiled", "--compile"]) == 0
    assert len(calls) == (4 if reason is None else 0)
    assert [reason in line for line in lines] == ([] if reason is None else [True])
    assert ["which are of 4 kinds" in line for line in said] == ([True] if reason is None else [])
    assert contents(tmp_path / "compiled") == contents(tmp_path / "plain")


def test_compiling_a_model_without_our_backbones_leaves_no_folder(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Toy, "model", torch.nn.Identity(), raising=False)
    images(tmp_path / "in", (16, 16))
    assert outcome([*toy, tmp_path / "in", "--out", tmp_path / "out", "--compile"]) != 0
    assert "the model has none: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("by", ["interrupt", "kill"])
def test_interrupted_run_goes_on_and_gives_the_same(toy, tmp_path, monkeypatch, capsys, by):
    given = images(tmp_path / "in", *[(20 + i, 30) for i in range(5)])
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert outcome([*toy, tmp_path / "in", "--out", whole]) == 0
    command = [*toy, tmp_path / "in", "--out", out]
    with monkeypatch.context() as patched:
        stop_at(patched, given[3], KeyboardInterrupt() if by == "interrupt" else Killed())
        if by == "interrupt":
            assert outcome(command) == 130
            said = f"stopped after 3 of 5 images, which are in {out}: the same command with --resume goes on"
            assert said in capsys.readouterr().err
            assert len(json.loads((out / "predictions.json").read_text())["images"]) == 3
        else:
            with pytest.raises(Killed):
                outcome(command)
            with (out / NAME).open("ab") as file:
                file.write(b'{"image": {"id": 4, "fi')  # a line that was being written
            (out / f"{files.PARTIAL}0.partial").write_bytes(b"half")
    assert outcome(command) == 2
    assert "holds a run that did not end: --resume goes on" in capsys.readouterr().err
    assert outcome([*command, "--resume", "--score-thr", "0.5"]) == 2
    assert "was begun with another --score-thr" in capsys.readouterr().err
    (out / "image_1.png").unlink()  # lost since
    read: list[Path] = []
    with monkeypatch.context() as patched:
        load = Toy.load
        patched.setattr(Toy, "load", lambda self, path, index: read.append(path) or load(self, path, index))
        assert outcome([*command, "--resume"]) == 0
    assert read == [given[1], *given[3:]]
    assert f"5 of 5 images done: {out}" in capsys.readouterr().out
    found, expected = contents(out), contents(whole)
    results = [json.loads(each.pop("predictions.json")) for each in (found, expected)]
    assert found == expected
    for each in results:
        for kind in ("images", "annotations"):
            each[kind] = sorted(
                ({**entry, "id": 0} if kind == "annotations" else entry for entry in each[kind]), key=str
            )
    assert results[0] == results[1]
    assert outcome([*command, "--resume"]) == 2
    assert "holds no run that can go on" in capsys.readouterr().err


class Killed(BaseException):
    """In place of SIGKILL."""


def test_sigterm_is_an_interrupt(toy, tmp_path, monkeypatch, capsys):
    images(tmp_path / "in", (20, 30), (20, 30))
    load = Toy.load

    def terminated(self: Toy, path: Path, index: int) -> Any:
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(self, path, index)

    monkeypatch.setattr(Toy, "load", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert outcome([*toy, tmp_path / "in", "--out", tmp_path / "out"]) == 130
    assert "stopped after 1 of 2 images" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_disk_is_one_line_and_what_is_done_stays(toy, tmp_path, monkeypatch, capsys):
    images(tmp_path / "in", (20, 30), (20, 30), (20, 30))
    out, written = tmp_path / "out", []
    whole = predict.write_whole

    def until_full(path: Path, content: bytes) -> None:
        if path.name == "image_1.png" and not written:
            written.append(path)
            raise OutputError(f"{path} cannot be written: No space left on device (0 bytes are free)")
        whole(path, content)

    monkeypatch.setattr(predict, "write_whole", until_full)
    assert outcome([*toy, tmp_path / "in", "--out", out]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "No space left on device (0 bytes are free); stopped after 1 of 3 images" in line
    assert len(json.loads((out / "predictions.json").read_text())["images"]) == 1
    assert outcome([*toy, tmp_path / "in", "--out", out, "--resume"]) == 0
    assert len(json.loads((out / "predictions.json").read_text())["images"]) == 3


def test_disk_without_room_is_one_line_before_the_model_is_built(toy, tmp_path, monkeypatch, capsys):
    images(tmp_path / "in", (20, 30))
    monkeypatch.setattr(predict, "Predictor", None)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert outcome([*toy, tmp_path / "in", "--out", tmp_path / "out"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path / 'out'}: 100 bytes are free in {tmp_path}")
    assert not (tmp_path / "out").exists()


def test_second_run_into_a_folder_is_refused(toy, tmp_path, capsys):
    images(tmp_path / "in", (20, 30))
    out = tmp_path / "out"
    out.mkdir()
    first = Journal(out, {})
    assert outcome([*toy, tmp_path / "in", "--out", out, "--resume"]) == 2
    assert "is being written by another run" in capsys.readouterr().err
    first.close(finished=True)


def test_every_image_has_files_of_its_own_and_the_summary_counts_them(segmentor, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "print_log", lambda message, **_: print(message))
    (one,) = images(tmp_path, (32, 40))
    long = "x" * 245
    names = ["in/a.jpg", "in/a.png", "in/A.png", "in/a_labels.png", "in/b/a.png", "other/b/a.png", f"in/{long}.png"]
    names += ["in/a.png.d/c.png", "in/predictions.json/c.png", "in/\u00e9.png", "in/e\u0301.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(one.read_bytes())
    out = tmp_path / "out"
    arguments = [*segmentor, tmp_path / "in", tmp_path / "other", tmp_path / "in", "--out", out, "--device", "cpu"]
    assert outcome(arguments) == 0
    assert f"{len(names)} of {len(names)} images done" in capsys.readouterr().out
    written = contents(out)
    assert len(written) == 2 * len(names)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in written}) == len(written)
    assert {"A.png", "a_2.png", "a_3.png", "b/a.png", "b/a_2.png", "b/a_labels.png"} <= {*written}
