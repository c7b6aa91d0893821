"""Recipes by name: where they are, what the list says of them, and files of the user's own that inherit from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

import mm_vitbackbones
from helpers.paths import CONFIGS, ROOT, recipe_files
from mm_vitbackbones import __main__ as door
from mm_vitbackbones import recipes
from mm_vitbackbones.errors import UserError

OWN = '_base_ = __import__("mm_vitbackbones").recipe("{name}")\n'
# With a pipeline of its base, with a base that computes, and two of the small sets.
NAMES = ["retinanet_pvt_s_3x_coco", "segformer_mit_b5_640_ade20k", "mask_rcnn_swin_t_mini", "retinanet_pvt_v2_b0_trees"]


def test_every_config_is_a_recipe() -> None:
    assert recipes.names() == sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", ["retinanet_pvt_s_coco", "retinanet_pvt_s_coco.py"])
def test_recipe_is_the_path_of_a_config(name: str) -> None:
    assert Path(mm_vitbackbones.recipe(name)) == CONFIGS / "retinanet_pvt_s_coco.py"


def test_parts_of_recipes_are_found() -> None:
    part = "_base_/schedules/epochs_12.py"
    assert Path(mm_vitbackbones.recipe(part)) == CONFIGS / part


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retinanet_pvt_xs_coco", "did you mean 'retinanet_pvt_s_coco'"),
        ("retinanet_pvt_xs_coco.py", "did you mean 'retinanet_pvt_s_coco'"),
        ("../setup", "there is no recipe '../setup'"),
        (str(ROOT / "setup.py"), "there is no recipe"),
        ("x", "`python -m mm_vitbackbones configs` lists them"),
    ],
)
def test_unknown_recipe_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        recipes.recipe(name)
    assert message in str(refusal.value)


def test_mmengine_alone_reads_a_config_that_inherits_from_a_recipe(tmp_path: Path) -> None:
    """As the training scripts of mmdet and mmseg do: nothing of this package is imported before."""
    own = tmp_path / "own.py"
    own.write_text(OWN.format(name="retinanet_pvt_s_coco") + "train_cfg = dict(max_epochs=3)\n")
    program = (
        "import sys; from mmengine.config import Config\n"
        "assert 'mm_vitbackbones' not in sys.modules\n"
        f"cfg = Config.fromfile({str(own)!r})\n"
        "assert (cfg.model.backbone.arch, cfg.train_cfg.max_epochs) == ('small', 3)\n"
        "assert 'mm_vitbackbones.backbones' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("name", NAMES)
def test_written_config_equals_the_recipe_and_finds_its_bases(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert door.main(["config", name, "--out", "own.py"]) == 0
    assert Config.fromfile("own.py").to_dict() == Config.fromfile(CONFIGS / f"{name}.py").to_dict()


def test_written_config_has_commands_that_need_no_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my runs").mkdir()
    assert door.main(["config", "mask_rcnn_swin_t_3x_coco", "--out", "my runs/own.py"]) == 0
    assert door.main(["config", "retinanet_pvt_v2_b0_trees", "--out", "trees.py"]) == 0
    command = "torchrun --nproc_per_node 8 -m mm_vitbackbones train 'my runs/own.py' --amp fp16\n"
    assert command in (tmp_path / "my runs/own.py").read_text()
    command = "#   python -m mm_vitbackbones prepare_data trees && python -m mm_vitbackbones train trees.py\n"
    assert command in (tmp_path / "trees.py").read_text()


def test_config_is_never_written_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.py"
    own.write_text("mine")
    assert door.main(["config", "retinanet_pvt_s_coco", "--out", str(own)]) == 2
    assert own.read_text() == "mine"
    assert f"error: {own} is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retinanet_pvt_xs_coco"], "did you mean 'retinanet_pvt_s_coco'"),
        (["retinanet_pvt_s_coco", "--out", "own.txt"], "a config ends in .py"),
        (
            ["retinanet_pvt_s_coco", "--out", "no/own.py"],
            "no/own.py cannot be written: No such file or directory",
        ),
        (["_base_/models/retinanet.py", "--out", "own.py"], "is a part of recipes"),
    ],
)
def test_config_that_cannot_be_written_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert door.main(["config", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_config_without_out_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["config", "_base_/schedules/epochs_12.py"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "_base_/schedules/epochs_12.py").read_text()


# ---- the list


def test_list_has_a_line_for_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "retinanet_pvt_s_coco",
            "RetinaNet with PVT-Small on COCO 2017, 1x schedule; published: box AP 40.4 (PVT paper)",
        ),
        (
            "fpn_pvt_t_ade20k",
            "Semantic FPN with PVT-Tiny on ADE20K; published: mIoU 36.6 (the authors' repository)",
        ),
        ("upernet_coat_s_ade20k", "UPerNet with CoaT-Small on ADE20K; no published result"),
    ],
)
def test_line_says_what_a_recipe_is_and_the_published_result(name: str, line: str) -> None:
    (summary,) = (each for each in recipes.summaries() if each.name == name)
    assert str(summary) == f"{name:<42}  {line}"


def test_published_results_are_those_of_the_headers() -> None:
    own = {path.stem for path in recipe_files()}
    for summary in (each for each in recipes.summaries() if each.name in own):
        header = (CONFIGS / f"{summary.name}.py").read_text().splitlines()[2]
        assert summary.result.startswith("published: ") == header.startswith("# Published ("), summary


@pytest.mark.parametrize("text", ["", "x = 1\n", "# One line.\nx = 1\n"])
def test_a_users_config_among_the_recipes_is_listed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path)
    (summary,) = recipes.summaries()
    assert (summary.name, summary.result) == ("mine", "no published result")
    assert summary.what == ("One line" if text.startswith("#") else "a config without a first comment")


def test_filter_keeps_the_lines_with_all_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["configs", "SWIN-tiny", "ade20k", "upernet"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["upernet_swin_t_ade20k"]
    assert door.main(["configs", "swin", "no_such_word"]) == 2
    assert "no recipe has 'swin' and 'no_such_word'" in capsys.readouterr().err
