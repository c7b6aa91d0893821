"""tools/export.py: a network to a file, from a config or by a backbone's name."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from helpers.runs import write_config
from helpers.weights import random_checkpoint
from mm_vitbackbones.cli import export as command
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.exporting import packages, programs

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
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
