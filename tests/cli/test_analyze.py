"""tools/analyze.py: predictions of any kind in, a page and tables out; and ``test --analyze``."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.runs import run_tool, write_config
from helpers.weights import random_checkpoint

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.analysis.scores import confusion
from mm_vitbackbones.cli import analyze
from mm_vitbackbones.cli.analysis import Data, detections, matchable_of
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.found import read_pickle
from mm_vitbackbones.errors import UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("predict")]


@pytest.fixture(scope="module")
def detector(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config("tiny_detector", data, tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def segmentor(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config("tiny_segmentor", data, tmp_path_factory.mktemp("segmentor"))


@pytest.fixture(scope="module")
def truth(data: Path) -> dict[str, Any]:
    return json.loads((data / "annotations/instances_smoke.json").read_text())


@pytest.fixture(scope="module")
def results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object but each fifth, every other one moved a little, the scores falling."""
    found = []
    for place, each in enumerate(truth["annotations"]):
        if place % 5 and not each["iscrowd"]:
            x, y, width, height = each["bbox"]
            box = [x + 0.1 * width * (place % 2), y, width, height]
            score = 0.95 - 0.6 * place / len(truth["annotations"])
            found.append(dict(image_id=each["image_id"], category_id=each["category_id"], bbox=box, score=score))
    return found


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content)) if path.suffix == ".json" else path.write_bytes(pickle.dumps(content))
    return path


def as_samples(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same detections as mmdet dumps them."""
    labels = {each["id"]: label for label, each in enumerate(truth["categories"])}
    samples = []
    for image in truth["images"]:
        own = [each for each in results if each["image_id"] == image["id"]]
        boxes = torch.tensor([each["bbox"] for each in own], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = dict(
            bboxes=boxes.float(),
            labels=torch.tensor([labels[each["category_id"]] for each in own], dtype=torch.long),
            scores=torch.tensor([each["score"] for each in own], dtype=torch.float64).float(),
        )
        samples.append(dict(img_id=image["id"], ori_shape=(1, 1), scale_factor=np.float64(2), pred_instances=found))
    return samples


def numbers(out: Path) -> Any:
    return json.loads((out / "analysis.json").read_text())


def test_all_kinds_of_files_of_the_same_detections_give_the_same_numbers(
    detector: Path, truth: dict[str, Any], results: list[dict[str, Any]], tmp_path: Path
) -> None:
    names = {each["id"]: each["name"] for each in truth["categories"]}
    numbers_of_own = {key: number for number, key in enumerate(names, start=7)}
    of_predict = dict(
        images=[dict(id=1000 + each["id"], file_name=f"elsewhere/{each['file_name']}") for each in truth["images"]],
        categories=[dict(id=numbers_of_own[key], name=name) for key, name in names.items()],
        annotations=[
            {**each, "image_id": 1000 + each["image_id"], "category_id": numbers_of_own[each["category_id"]]}
            for each in results
        ],
    )
    files = [
        written(tmp_path / "a.json", results),
        written(tmp_path / "b.pkl", as_samples(truth, results)),
        written(tmp_path / "c.json", of_predict),
    ]
    data = Data(prepared(detector))
    found = [detections(data, file)["bbox"] for file in files]
    for other in found[1:]:
        assert np.allclose(other.precision, found[0].precision, atol=1e-9, equal_nan=True)
        assert confusion(other.images, 5, 0.5).tolist() == confusion(found[0].images, 5, 0.5).tolist()
    assert run(analyze.main, [str(detector), str(files[0]), "--out", str(tmp_path / "a")]) == 0
    assert numbers(tmp_path / "a")["bbox"]["AP"] == pytest.approx(np.nanmean(found[0].precision[..., 0]), abs=1e-9)
    assert 0.5 < numbers(tmp_path / "a")["bbox"]["AP"] < 0.9
    page = (tmp_path / "a/analysis.html").read_text("utf-8")
    assert page.count('href="data:image/jpeg') >= 6
    assert "the image cannot be read" not in page


def test_two_runs_are_compared(
    detector: Path, results: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    better, worse = written(tmp_path / "a.json", results), written(tmp_path / "b.json", results[::2])
    arguments = [detector, better, "--against", worse, "--resamples", 20, "--out", tmp_path / "out"]
    assert run(analyze.main, [*map(str, arguments)]) == 0
    *_, mean = numbers(tmp_path / "out")["against"]["AP"]
    assert mean["class"] == "mean"
    assert mean["second AP"] == pytest.approx(numbers(tmp_path / "out")["bbox"]["AP"])
    assert 0 < mean["from"] <= mean["difference"] <= mean["to"]
    assert run(analyze.main, [*map(str, arguments)]) == 2  # nothing is overwritten
    assert "out is there already, and nothing is overwritten" in capfd.readouterr().err


def test_label_maps_are_measured_by_the_data_sets_own_ground_truth(segmentor: Path, tmp_path: Path) -> None:
    data = Data(prepared(segmentor))
    maps = []
    for _, info in data.infos():
        labels = data.truth_map(info["img_path"])
        maps.append(dict(img_path=info["img_path"], labels=np.where(labels == 255, 3, labels).astype(np.uint16)))
    files = [written(tmp_path / "right.pkl", maps)]
    maps[0]["labels"] = np.zeros_like(maps[0]["labels"])
    files.append(written(tmp_path / "wrong.pkl", maps))
    arguments = [segmentor, files[1], "--against", files[0], "--resamples", 20, "--out", tmp_path / "out"]
    assert run(analyze.main, [*map(str, arguments)]) == 0
    found = numbers(tmp_path / "out")
    means = {each["class"]: each for each in found["against"]["IoU"]}["mean"]
    assert means["first IoU"] == 1
    assert means["second IoU"] == pytest.approx(found["segmentation"]["mIoU"]) != 1
    lines = (tmp_path / "out/segmentation_images.csv").read_text().splitlines()
    assert lines[1].startswith(maps[0]["img_path"])
    assert [float(line.rpartition(",")[2]) for line in lines[2:]] == [1] * (len(maps) - 1)
    assert "data:image/png" in (tmp_path / "out/analysis.html").read_text("utf-8")


def prepared(config: Path) -> Any:
    from mm_vitbackbones import libraries

    cfg = load_config(config, {})
    libraries.use(libraries.scope_of(cfg))
    return cfg


def test_objects_are_held_against_the_anchors_of_the_config(detector: Path, truth: dict[str, Any]) -> None:
    cfg = prepared(detector)
    table, how = matchable_of(Data(cfg)) or (None, "")
    assert table is not None
    assert table.counts.sum() == sum(not each["iscrowd"] for each in truth["annotations"])
    assert "an anchor of model.bbox_head has an IoU of at least 0.5" in how
    del cfg.model.bbox_head["anchor_generator"]
    table, how = matchable_of(Data(cfg)) or (None, "")
    assert table is not None
    assert "at the test scale (96, 96), both sides have at least 8 pixels" in how
    factor = {each["id"]: 96 / max(each["width"], each["height"]) for each in truth["images"]}
    sides = [min(each["bbox"][2:]) * factor[each["image_id"]] for each in truth["annotations"] if not each["iscrowd"]]
    assert table.matched.sum() == sum(side >= 8 for side in sides)


def test_the_logs_of_trainings_alone_are_a_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        path = tmp_path / name / "1/vis_data/scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(json.dumps({"loss": 3.0 / i, "lr": 0.1, "step": i, "iter": i}) for i in (1, 2)))
    arguments = ["--logs", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]
    assert run(analyze.main, arguments) == 0
    assert [each["run"] for each in numbers(tmp_path / "out")["training"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"default_scope": "mmengine"}, "a model of mmengine cannot be analysed"),
        ({"test_evaluator": dict(type="CocoPanopticMetric")}, "panoptic segmentation cannot be analysed"),
        ({"test_dataloader": None}, "it needs test_dataloader"),
    ],
)
def test_what_cannot_be_analysed_is_refused(detector: Path, change: dict[str, Any], message: str) -> None:
    cfg = prepared(detector)
    for key, value in change.items():
        cfg[key] = value
    with pytest.raises(UserError, match=message):
        Data(cfg)


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def test_no_code_in_a_file_of_predictions_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a.pkl asks for (posix|nt).system, and predictions are arrays"):
        read_pickle(written(tmp_path / "a.pkl", [{"labels": Code()}]))
    assert not (tmp_path / "pwned").exists()


def test_arrays_and_tensors_of_every_pickle_are_read(tmp_path: Path) -> None:
    content = [
        {"a": torch.arange(3.0), "b": np.arange(4, dtype=np.uint16), "c": np.float32(2), "d": b"RLE", "e": (1, "x")}
    ]
    for protocol in range(2, 6):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        (found,) = read_pickle(path)
        assert torch.equal(found["a"], content[0]["a"])
        assert np.array_equal(found["b"], content[0]["b"])
        assert (found["c"], found["d"], found["e"]) == (2, b"RLE", (1, "x"))


WRONG = {
    "no file": (None, "there is no file"),
    "of another data set": (
        [dict(image_id=10**6, category_id=1, bbox=[0, 0, 1, 1], score=1)],
        "image_id=1000000 is not",
    ),
    "no score": ([dict(image_id=1, category_id=1, bbox=[0, 0, 1, 1], score="x")], "has no score"),
    "no box": ([dict(image_id=1, category_id=1, bbox=[0, 0, 1], score=1)], "no box of four numbers"),
    "no list": ("text", "no list of results"),
    "other images": (dict(images=[dict(id=1, file_name="z.png")], annotations=[], categories=[]), "has no image z.png"),
    "other classes": (dict(images=[], annotations=[], categories=[dict(id=1, name="zebra")]), "has no class zebra"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_do_not_fit_are_refused_in_one_line(
    kind: str, detector: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, words = WRONG[kind]
    path = tmp_path / "a.json"
    if content is not None:
        written(path, content)
    assert run(analyze.main, [str(detector), str(path), "--skip-checks", "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give CONFIG and CHECKPOINT or PREDICTIONS, or --logs WORK_DIR"),
        (["retinanet_pvt_s_coco"], "CHECKPOINT or PREDICTIONS is missing"),
        (["--logs", "x", "--against", "y"], "--against compares predictions"),
        (["retinanet_pvt_s_coco", "a.pkl", "--resamples", "0"], "at least 1 draw is needed"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(analyze.main, words) == 2
    assert message in capfd.readouterr().err


@pytest.fixture(scope="module")
def tested(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The work dir of ``test --analyze`` with weights that find something, and what was said."""
    prepared(detector)
    checkpoint = random_checkpoint(detector)
    work_dir = tmp_path_factory.mktemp("tested") / "work"
    low = ["--cfg-options", "model.test_cfg.score_thr=0.0"]
    return work_dir, run_tool("test", detector, checkpoint, "--work-dir", work_dir, "--analyze", *low)


def test_a_test_makes_the_page_at_its_end(tested: tuple[Path, Any]) -> None:
    work_dir, result = tested
    assert result.returncode == 0, result.stderr
    (page,) = work_dir.glob("*/analysis/analysis.html")
    assert f"analysis: {page}" in result.stdout
    logged = next(
        line for line in result.stdout.splitlines() if "area=   all | maxDets=100 ]" in line and "(AP)" in line
    )
    assert numbers(page.parent)["bbox"]["AP"] == pytest.approx(float(logged.rpartition("=")[2]), abs=5e-4)
    assert {path.name for path in work_dir.iterdir()} == {"tiny_detector.py", page.parent.parent.name}
