"""What several commands take on their command lines."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mmdet")

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.look import look_arguments
from mm_vitbackbones.cli.predict import predict_arguments
from mm_vitbackbones.cli.test import test_arguments as evaluation_arguments
from mm_vitbackbones.cli.train import train_arguments
from mm_vitbackbones.errors import UserError

pytestmark = pytest.mark.mmdet


def given(checkpoint: Path) -> set[Path]:
    """What ``test`` and ``predict`` take."""
    tested = evaluation_arguments(["retinanet_pvt_s_coco", str(checkpoint)])
    predicted = predict_arguments(["retinanet_pvt_s_coco", str(checkpoint), "image.png"])
    return {tested.checkpoint, predicted.checkpoint}


def test_work_dir_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    for name in ("epoch_1.pth", "epoch_2.pth", "best_coco_bbox_mAP_epoch_1.pth"):
        (tmp_path / name).touch()
    assert given(tmp_path) == {tmp_path / "epoch_2.pth"}
    (tmp_path / "last_checkpoint").write_text("/moved/from/epoch_1.pth")
    assert given(tmp_path) == {tmp_path / "epoch_1.pth"}


def test_file_and_other_folder_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file.pth").touch()
    assert given(tmp_path) == {tmp_path}
    assert given(tmp_path / "file.pth") == {tmp_path / "file.pth"}


@pytest.mark.parametrize("arguments", [predict_arguments, look_arguments])
def test_a_device_that_torch_cannot_compute_on_is_one_line(arguments: Callable[[list[str]], Namespace]) -> None:
    words = ["retinanet_pvt_s_coco", "a.pth", "image.png", *(["--show", "cam"] if arguments is look_arguments else [])]
    assert arguments([*words, "--device", "cpu"]).device == "cpu"
    for name in ("gpu", "meta", "cuda:99", ""):
        with pytest.raises(UserError, match=f"--device {name}: (torch cannot compute on it|there is no GPU)"):
            arguments([*words, "--device", name])


def test_ctrl_c_is_a_line_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert run(main, []) == 130
    assert capsys.readouterr().err == "\nended by Ctrl-C\n"


@pytest.mark.parametrize("value", ['{"depths":[1,1],"dims":[8,16]}', "{(1,2),(3,4)}"])
def test_an_option_that_mmengine_does_not_understand_is_one_line(value: str) -> None:
    with pytest.raises(UserError, match="values are numbers, words, lists and tuples of these"):
        train_arguments(["config.py", "--cfg-options", f"model.backbone.arch={value}"])


def test_lists_of_options_are_taken() -> None:
    options = train_arguments(["config.py", "--cfg-options", "a.b=[1,(2,3)]", "c=x"]).cfg_options
    assert options == {"a.b": [1, (2, 3)], "c": "x"}
