"""Logs of trainings, and the figure of their curves."""

from __future__ import annotations

import json

import pytest

from mm_vitbackbones.analysis.page import Page
from mm_vitbackbones.analysis.report import Report, add_trainings
from mm_vitbackbones.analysis.training import once, read_training
from mm_vitbackbones.errors import UserError


def write_log(folder, part, lines, cut=""):
    path = folder / part / "vis_data/scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(map(json.dumps, lines)) + cut)


def step(iteration, loss, **more):
    return {"loss": loss, "lr": 0.1, "time": 0.5, "data_time": 0.1, "iter": iteration, "step": iteration, **more}


def test_a_run_that_was_resumed_is_one_and_its_later_part_counts(tmp_path):
    run = tmp_path / "run"
    write_log(
        run, "20260101_1", [step(10, 3.0), {"mAP": 0.1, "time": 1, "step": 1}, step(20, 2.0)], cut='\n{"loss": 1.'
    )
    write_log(run, "20260102_1", [step(20, 1.5, memory=900), {"mAP": 0.3, "step": 2}, step(30, 1.0, memory=950)])
    found = read_training(run)
    assert found.name == "run"
    assert found.curves["loss"] == [(10, 3.0), (20, 1.5), (30, 1.0)]
    assert found.curves["memory"] == [(20, 900), (30, 950)]
    assert found.metrics == {"mAP": [(10, 0.1), (20, 0.3)]}


def test_the_iteration_of_an_evaluation_is_that_of_a_loop_by_iteration(tmp_path):
    write_log(tmp_path / "run", "1", [step(50, 3.0), {"mIoU": 20.0, "step": 80}])
    assert read_training(tmp_path / "run").metrics == {"mIoU": [(80, 20.0)]}


@pytest.mark.parametrize("content", [None, "", "not JSON\n[1]\n", '{"epoch": 1}\n'])
def test_a_folder_without_numbers_is_refused(tmp_path, content):
    if content is not None:
        write_log(tmp_path, "1", [], content)
    with pytest.raises(UserError, match=r"no log of a training|no numbers of a training"):
        read_training(tmp_path)


def test_curves_of_several_runs_are_one_figure_and_a_table(tmp_path):
    pytest.importorskip("matplotlib")
    for name, time in (("one", 0.5), ("two", 0.25)):
        write_log(tmp_path / name, "1", [step(i, 3.0 / i, time=time) for i in (1, 2, 3)] + [{"mIoU": 30.0, "step": 3}])
    report = Report(Page("x"))
    add_trainings(report, [read_training(tmp_path / name) for name in ("one", "two")])
    assert "".join(report.page.parts).count("data:image/svg+xml") == 1
    rows = report.tables["training"].rows
    assert rows == [["one", 3, 1.0, 0.5, None, 30.0], ["two", 3, 1.0, 0.25, None, 30.0]]
    assert ["two", "loss", 2, 1.5] in report.tables["training_curves"].rows


def test_runs_of_the_same_name_are_told_apart():
    assert once(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
