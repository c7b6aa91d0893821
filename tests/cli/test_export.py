"""tools/export.py: a network to a file, from a config or by a backbone's name."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.exported import run_file
from helpers.runs import write_config
from helpers.weights import random_checkpoint
from mm_vitbackbones.cli import export as command
from mm_vitbackbones.cli import predict
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.exporting import packages, programs
from mm_vitbackbones.exporting.files import KINDS

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import mmcv

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


@pytest.fixture(scope="module")
def segmentor(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = write_config("tiny_segmentor", data, tmp_path_factory.mktemp("segmentor"))
    return path, random_checkpoint(path)


def words(*arguments: object) -> list[str]:
    return [*map(str, arguments), "--to", "torch-export", "--fixed", "--size", "64"]


def test_segmentor_with_its_weights_and_classes(
    segmentor: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy.pt2"
    assert run(command.main, words(*segmentor, "--labels", "--preprocess", "in", "--out", out)) == 0
    assert "64x64" in capsys.readouterr().out
    extra = {programs.METADATA: ""}
    module = torch.export.load(out, extra_files=extra).module()
    found = json.loads(extra[programs.METADATA])
    assert (found["kind"], found["outputs"]) == ("segmentor", ["labels"])
    assert len(found["classes"]) == 9
    assert found["image"]["normalised_inside"]
    labels = module(torch.rand(1, 3, 64, 64) * 255)
    assert labels.shape == (1, 64, 64)
    weights = torch.load(segmentor[1])["state_dict"]
    state = {key.rpartition("head.")[2]: tensor for key, tensor in module.state_dict().items()}
    assert torch.equal(state["conv_seg.weight"], weights["decode_head.conv_seg.weight"])


def test_wrong_file_ends_with_code_1(
    segmentor: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = programs.Loaded.__call__
    monkeypatch.setattr(programs.Loaded, "__call__", lambda self, image: tuple(x + 1 for x in call(self, image)))
    # A log of PyTorch's may hold a stream that an earlier test has closed: that is not this command's affair.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with pytest.raises(SystemExit) as stop:
        run(command.main, words(*segmentor, "--out", tmp_path / "toy.pt2"))
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "64x64" in said.out
    assert said.err.count("\n") == 1
    assert "error: the file differs from the network" in said.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pvt_v2_b9"], "there is no backbone and no recipe 'pvt_v2_b9'; did you mean 'pvt_v2_b"),
        (["no/such.py"], "there is no config no/such.py"),
        (["pvt_v2_b0", "--size", "1", "2", "3"], "--size takes a height and a width"),
        (["pvt_v2_b0", "--cfg-options", "a=1"], "--cfg-options goes with a config"),
        (["pvt_v2_b0", "--with-nms"], "with_nms: a backbone gives no boxes"),
        (["pvt_v2_b0", "--backbone"], "--backbone takes the backbone out of a config"),
        (["pvt_v2_b0", "--opset", "18"], "opset=18: only ONNX has opsets: leave it out"),
        (["pvt_v2_b0", "--tolerance", "0"], "tolerance=0: give a number above 0, such as 0.0001"),
        (["pvt_v2_b0", "--tolerance", "nan"], "tolerance=nan: give a number above 0"),
        (["pvt_v2_b0", "--size", "1000000"], "an image of 1000000x1000000 needs more memory than there is"),
        (["pvt_v2_b0", "--out", "x.onnx"], "x.onnx has the ending of onnx, and this is torch-export: name it x.pt2"),
        (["pvt_v2_b0", "--out", "."], ". is a folder: give the name of a file"),
        (["pvt_v2_b0", "--out", "x" * 300], f"'{'x' * 80}' cannot be the name of a file: File name too long"),
        (["pvt_v2_b0", "--out", "x\0"], "'x\\x00' cannot be the name of a file"),
        (["pvt_v2_b0", "--to", "onxx"], "argument --to: invalid choice: 'onxx'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--to" not in arguments:
        arguments = [*arguments, "--to", "torch-export"]
    assert run(command.main, arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {message}")
    assert not any(tmp_path.iterdir())


def test_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.pt2"
    out.write_text("mine")
    assert run(command.main, words("pvt_v2_b0", "--out", out)) == 2
    assert "is there already, and is not overwritten: give another name, or --force" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packages, "NEEDED", ("onnx_of_nobody",))
    assert run(command.main, ["pvt_v2_b0"]) == 2
    assert "an export to ONNX needs onnx_of_nobody: pip install 'mm-vitbackbones[export]'" in capsys.readouterr().err


SCENES = 3


@pytest.fixture(scope="module")
def detector(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Its weights find objects of several classes in every image."""
    path = write_config("tiny_detector", data, tmp_path_factory.mktemp("detector"))
    checkpoint = random_checkpoint(path)
    weights = torch.load(checkpoint)
    state = weights["state_dict"]
    generator = torch.Generator().manual_seed(0)
    for name in ("retina_cls", "retina_reg"):
        old = state[f"bbox_head.{name}.weight"]
        state[f"bbox_head.{name}.weight"] = 0.01 * torch.randn(old.shape, generator=generator)
    torch.save(weights, checkpoint)
    return path, checkpoint


def scenes(data: Path) -> list[Path]:
    """Three images of different sizes."""
    sizes = {cv2.imread(str(path)).shape[:2]: path for path in sorted((data / "images/smoke").iterdir())}
    return [*sizes.values()][:SCENES]


def resized(path: Path, scale: tuple[int, int]) -> Tensor:
    """An image as a config's test pipeline has it before the data preprocessor; (1, 3, H, W), red, green, blue."""
    image = mmcv.imrescale(mmcv.imread(path), scale)
    return torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())[None].float()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_file_of_a_detector_gives_the_boxes_of_predict(
    kind: str, detector: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    images, out = scenes(data), tmp_path / f"toy{KINDS[kind]}"
    assert (
        run(predict.main, [*map(str, (*detector, *images)), "--out", str(tmp_path / "found"), "--score-thr", "0"]) == 0
    )
    options = ["--with-nms", "--preprocess", "in", "--to", kind, "--out", str(out)]
    assert run(command.main, [*map(str, detector), *options]) == 0
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    file = run_file(out)
    for record in found["images"]:
        expected = [each for each in found["annotations"] if each["image_id"] == record["id"]]
        path = next(path for path in images if path.name == Path(record["file_name"]).name)
        image = resized(path, (96, 96))
        boxes, scores, labels = (result[0] for result in file(image))
        count = len(expected)
        assert count == int((labels >= 0).sum()) > 20
        assert len({each["category_id"] for each in expected}) > 1
        assert [each["category_id"] - 1 for each in expected] == labels[:count].tolist()
        back = torch.tensor([record["width"] / image.shape[3], record["height"] / image.shape[2]] * 2)
        boxes[:, 2:] -= boxes[:, :2]
        wanted = torch.tensor([each["bbox"] for each in expected])
        torch.testing.assert_close(boxes[:count] * back, wanted, rtol=0, atol=0.02)
        wanted = torch.tensor([each["score"] for each in expected])
        torch.testing.assert_close(scores[:count], wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_file_of_a_segmentor_gives_the_labels_of_predict(
    kind: str, segmentor: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    images, out = scenes(data), tmp_path / f"toy{KINDS[kind]}"
    assert run(predict.main, [*map(str, (*segmentor, *images)), "--out", str(tmp_path / "found")]) == 0
    assert run(command.main, [*map(str, segmentor), "--preprocess", "in", "--to", kind, "--out", str(out)]) == 0
    file = run_file(out)
    for path in images:
        (scores,) = file(resized(path, (224, 224)))
        expected = cv2.imread(str(tmp_path / f"found/{path.stem}_labels.png"), cv2.IMREAD_UNCHANGED)
        scores = torch.nn.functional.interpolate(scores, expected.shape, mode="bilinear")
        assert len(np.unique(expected)) > 1
        assert (scores.argmax(1)[0].numpy() == expected).mean() > 0.999
