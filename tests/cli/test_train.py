"""tools/train.py and tools/test.py: a whole small run, resuming, and what is refused before a run begins."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.registry import DefaultScope

from helpers.drawing import Images, Sample
from helpers.paths import ROOT
from helpers.runs import run_tool, write_config

pytest.importorskip("mmdet")

from mm_vitbackbones.checkpoints.unwrapping import unwrap_model
from mm_vitbackbones.cli import datasets, preflight, test, train
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.engine import amp, resume
from mm_vitbackbones.engine.drawing import CAPTION
from mm_vitbackbones.engine.hooks import CurvesHook, ImagesHook
from mm_vitbackbones.engine.metrics import DumpLabelMaps
from mm_vitbackbones.errors import UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.xdist_group("train")]

PRETRAINED = ("model.backbone.init_cfg._delete_=True", "model.backbone.init_cfg.type=Pretrained")
"""Options for a pretrained backbone in place of none."""


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/helpers/configs/tiny_detector.py with this run's paths."""
    return write_config("tiny_detector", data, tmp_path_factory.mktemp("configs"))


# ---- a whole run


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of two epochs without a stop."""
    work_dir = tmp_path_factory.mktemp("work") / "whole"
    result = run_tool("train", config, "--work-dir", work_dir, "--seed", 1)
    assert result.returncode == 0, result.stderr
    (work_dir / "console").write_text(result.stdout + result.stderr)
    return work_dir


def test_the_console_is_short_and_the_log_complete(trained: Path) -> None:
    shown = (trained / "console").read_text()
    before, _, after = shown.partition("Epoch(train)")
    for part in (
        "train_dataloader: ",
        "network: RetinaNet, backbone PVT, ",
        "weights: random",
        "train data: CocoDataset, 14 images, 5 classes (ball, beetle, crate, starfish, ring)",
        "schedule: 2 epochs of 4 iterations, batch 4, evaluated every epoch",
        "optimizer: AdamW, learning rate 0.001",
        "device: ",
        "log: ",
    ):
        assert part in before
    assert before.count("\n") <= 30
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in after
    log = next(trained.glob("*/*.log")).read_text()
    for detail in ("Config:\n", "Hooks will be executed", "bbox_head.retina_cls.bias - torch.Size", "index created!"):
        assert detail in log
        assert detail not in shown
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in log
    assert "Warning" not in shown


def test_training_shows_progress_and_leaves_curves(trained: Path) -> None:
    log = next(trained.glob("*/*.log")).read_text()
    assert "eta:" in log
    assert "coco/bbox_mAP" in log
    assert cv2.imread(str(trained / "curves.png")).shape[2] == 3
    record = json.loads((trained / "curves.json").read_text())
    assert [point["iter"] for point in record["losses"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [point["iter"] for point in record["metrics"]] == [4, 8]


def test_resumed_run_equals_the_whole_one(trained: Path, config: Path, tmp_path: Path) -> None:
    # Flips and dropped paths draw random numbers. The resumed run is not given the seed.
    first = run_tool("train", config, "--work-dir", tmp_path, "--seed", 1, "--cfg-options", "train_cfg.max_epochs=1")
    assert first.returncode == 0, first.stderr
    second = run_tool("train", config, "--work-dir", tmp_path, "--resume")
    assert second.returncode == 0, second.stderr
    whole, resumed = (unwrap_model(resume.read(folder / "epoch_2.pth")).state for folder in (trained, tmp_path))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    curves = [json.loads((folder / "curves.json").read_text()) for folder in (trained, tmp_path)]
    assert [point["loss"] for point in curves[0]["losses"]] == [point["loss"] for point in curves[1]["losses"]]
    assert [point["iter"] for point in curves[1]["metrics"]] == [4, 8]


def test_evaluation_writes_predictions_and_drawings(trained: Path, config: Path, tmp_path: Path) -> None:
    out, drawings = tmp_path / "boxes.json", tmp_path / "drawings"
    result = run_tool(
        "test",
        *(config, trained / "epoch_2.pth"),
        *("--out", out, "--show-dir", drawings, "--show-score", 0.05, "--work-dir", tmp_path / "test"),
        *("--cfg-options", "model.test_cfg.score_thr=0.0"),
    )
    assert result.returncode == 0, result.stderr
    assert "coco/bbox_mAP" in result.stdout
    boxes = json.loads(out.read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= boxes[0].keys()
    assert {box["image_id"] for box in boxes} == set(range(1, 17))
    assert len(list(drawings.glob("smoke_*_gt_pred.png"))) == 16
    assert not (tmp_path / "boxes.segm.json").exists()


def test_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run_tool("train", tmp_path / "retinanet_pvt_t_mni.py")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "retinanet_pvt_t_mini.py" in result.stderr
    assert result.stdout == ""


# ---- what is refused


@pytest.fixture
def refused(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Run a tool, in a folder of its own, to its refusal: the line that it prints."""
    # MMEngine keeps these for the whole process; a logger would write to the output of an earlier test.
    loggers: OrderedDict[str, MMLogger] = OrderedDict()
    monkeypatch.setattr(MMLogger, "_instance_dict", loggers)
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: Any, tool: Callable[[list[str]], None] = train.main) -> str:
        assert run(tool, [str(argument) for argument in arguments]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        return message

    yield refuse
    for logger in loggers.values():
        for handler in logger.handlers:
            handler.close()


def test_unknown_config_is_refused_with_the_nearest(refused: Callable[..., str]) -> None:
    assert "did you mean the recipe 'retinanet_pvt_s_coco'" in refused("configs/retinanet_pvt_s_cocoo.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model = dict(\n  a=1\nb = 2\n", "line"),
        ("_base_ = 'nowhere.py'\n", "nowhere.py"),
        ("model = dict(a=undefined)\n", "undefined"),
        ("a = 1\n", "model"),
    ],
)
def test_unreadable_config_is_refused(refused: Callable[..., str], tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    message = refused("broken.py")
    assert "broken.py" in message
    assert expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("max_epochs", "key=value"),
        ("model.backbone.out_indices=(1,2", "brackets"),
        ("train_pipeline.99.type=Resize", "99"),
    ],
)
def test_bad_option_is_refused(refused: Callable[..., str], config: Path, option: str, expected: str) -> None:
    message = refused(config, "--cfg-options", option)
    assert "--cfg-options" in message
    assert expected in message


def test_unknown_argument_is_refused(refused: Callable[..., str], config: Path) -> None:
    assert "--seeed" in refused(config, "--seeed", "1")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("retinanet_pvt_t_coco", ["data/coco", "instances_{train,val}2017.json", "train2017/", "cocodataset.org"]),
        ("retinanet_pvt_v2_b0_trees", ["data/trees", "python -m mm_vitbackbones prepare_data trees"]),
        ("retinanet_pvt_t_mini", ["data/mini", "python -m mm_vitbackbones prepare_data mini"]),
    ],
)
def test_missing_data_set_is_refused_with_its_source(
    refused: Callable[..., str], name: str, expected: list[str]
) -> None:
    message = refused(ROOT / "configs" / f"{name}.py")
    assert all(words in message for words in expected)


def test_missing_segmentation_data_is_refused_with_its_source(tmp_path: Path) -> None:
    dataset = {"data_root": "data/ade/ADEChallengeData2016", "data_prefix": {"img_path": "images/training"}}
    with pytest.raises(UserError, match=r"no folder .*images/training.*sceneparsing"):
        datasets.check_data_exists(dataset, "train_dataloader")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["model.bbox_head.num_classes=80"], ["model.bbox_head.num_classes=80", "5 classes"]),
        (["model.backbone.arch=smal"], ["'smal'", "tiny, small, medium, large", "did you mean 'small'"]),
        (["model.backbone.out_indices=(3,1)"], ["out_indices"]),
        (["model.backbone.depth=4"], ["depth"]),
        (["model.neck.in_channels=[16,32,64]"], ["in_channels=[16, 32, 32]"]),
        ([*PRETRAINED, "model.backbone.init_cfg.checkpoint=gone.pth"], ["init_cfg.checkpoint: no file gone.pth"]),
        (
            [*PRETRAINED, "model.backbone.init_cfg.checkpoint=imagenet1k"],
            ["model.backbone.init_cfg.checkpoint", "of this PVT no published file is known"],
        ),
        (["load_from=gone.pth"], ["load_from", "gone.pth"]),
        (["train_dataloader.dataset.metainfo.classes=ball"], ["('ball',)"]),
        (["train_dataloader.dataset.metainfo.classes=(ball,bal)"], ["'bal'", "'starfish'"]),
        (["val_evaluator.ann_file=gone.json"], ["val_evaluator", "gone.json"]),
        (["default_scope=mmdetect"], ["mmdetect", "doctor"]),
    ],
)
def test_contradictions_in_a_config_are_refused(
    refused: Callable[..., str], config: Path, options: list[str], expected: list[str]
) -> None:
    message = refused(config, "--cfg-options", *options)
    assert all(words in message for words in expected), message


def test_the_way_past_the_checks_is_named_once_and_leads_to_the_run(
    refused: Callable[..., str], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ("--cfg-options", "model.bbox_head.num_classes=7")
    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, weights)
    for tool, arguments in ((train.main, ()), (test.main, (weights,))):
        said = refused(config, *arguments, *wrong, tool=tool)
        assert said.count("(--skip-checks begins without these checks)") == 1

        def begin(*_: Any) -> Any:
            raise UserError("the runner is built")

        with monkeypatch.context() as patch:
            patch.setattr("mm_vitbackbones.engine.console.Console.runner", begin)
            said = refused(config, *arguments, "--skip-checks", *wrong, tool=tool)
        assert "the runner is built" in said
        assert "--skip-checks begins" not in said
    assert "are contrary" in refused(config, "--skip-checks", "--check-all")
    with pytest.raises(UserError) as caught:
        preflight.check(load_config(config, {"model.bbox_head.num_classes": 7}), ["train"])
    assert "--skip-checks" not in str(caught.value)  # check_data has no such option


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.neck.type=FPM", "'FPN'"),
        ("model.backbone.type=mm_vitbackbones.PVTv3", "'mm_vitbackbones.PVTv2'"),
        ("train_dataloader.dataset.type=CocoDatset", "'CocoDataset'"),
        ("optim_wrapper.optimizer.type=AdmW", "'AdamW'"),
        ("model.bbox_head.stacked_conv=1", "stacked_conv"),
    ],
)
def test_unknown_type_or_argument_is_refused(
    refused: Callable[..., str], config: Path, option: str, expected: str
) -> None:
    assert expected in refused(config, "--cfg-options", option)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"images": [], "annotations": [], "categories": [{"name": "ball"}]}, "no images"),
        ({"images": [{"id": 1}], "annotations": [], "categories": [{"name": "ball"}]}, "no annotations"),
        ({"images": []}, "COCO's format"),
        ([], "COCO's format"),
    ],
)
def test_empty_annotations_are_refused(tmp_path: Path, content: Any, expected: str) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    dataset = {"data_root": str(tmp_path), "ann_file": "boxes.json"}
    with pytest.raises(UserError, match=expected):
        datasets.check_annotations(dataset, ["ball"], "train_dataloader")


def test_classes_are_counted_in_every_head_that_has_the_data_sets() -> None:
    model = {
        "rpn_head": {"num_classes": 1},
        "roi_head": {"bbox_head": [{"num_classes": 5}, {"num_classes": 80}], "semantic_head": {"num_classes": 183}},
    }
    with pytest.raises(UserError, match=r"model\.roi_head\.bbox_head\[1\]\.num_classes=80"):
        preflight.check_num_classes(model, 5, "train_dataloader")
    model["roi_head"]["bbox_head"][1]["num_classes"] = 5
    preflight.check_num_classes(model, 5, "train_dataloader")


def test_wrapped_datasets_are_found() -> None:
    inner = [{"type": "A"}, {"type": "B"}]
    loader = {"dataset": {"type": "RepeatDataset", "dataset": {"type": "ConcatDataset", "datasets": inner}}}
    assert [*datasets.datasets_of(loader)] == inner


def test_unknown_checkpoint_is_refused_with_the_nearest(
    refused: Callable[..., str], config: Path, tmp_path: Path
) -> None:
    (tmp_path / "epoch_12.pth").touch()
    message = refused(config, "epoch_11.pth", tool=test.main)
    assert "epoch_11.pth" in message
    assert "epoch_12.pth" in message


def test_checkpoint_of_another_model_is_refused(refused: Callable[..., str], config: Path) -> None:
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, "resnet.pth")
    message = refused(config, "resnet.pth", tool=test.main)
    assert "missing" in message
    assert "1 unexpected (backbone.conv1.weight)" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [("boxes.txt", ".json"), ("there.json", "not overwritten"), ("there.segm.json", "not overwritten")],
)
def test_predictions_are_not_overwritten(
    refused: Callable[..., str], config: Path, tmp_path: Path, name: str, expected: str
) -> None:
    torch.save({"state_dict": {}}, "empty.pth")
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "there.segm.json").write_text("mine")
    assert expected in refused(config, "empty.pth", "--out", name, tool=test.main)
    assert (tmp_path / "there.json").read_text() == "mine"


# ---- resuming


def test_resume_without_a_checkpoint_is_refused(refused: Callable[..., str], config: Path) -> None:
    assert "no checkpoint in work_dirs/tiny_detector" in refused(config, "--resume")


def test_new_run_does_not_overwrite_an_earlier_one(refused: Callable[..., str], config: Path, tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier/epoch_3.pth").write_text("mine")
    message = refused(config, "--work-dir", "earlier")
    assert "epoch_3.pth" in message
    assert "--resume" in message


def test_resume_of_a_weights_file_is_refused(refused: Callable[..., str], config: Path) -> None:
    torch.save({"state_dict": {}}, "weights.pth")
    assert "load_from" in refused(config, "--resume", "weights.pth")


def test_resume_of_a_finished_run_is_refused(refused: Callable[..., str], config: Path, trained: Path) -> None:
    assert "epoch 2 of 2" in refused(config, "--work-dir", trained, "--resume")


def test_resume_with_another_seed_is_refused(refused: Callable[..., str], config: Path, trained: Path) -> None:
    options = ("--seed", 2, "--cfg-options", "train_cfg.max_epochs=3")
    assert "the seed 1" in refused(config, "--work-dir", trained, "--resume", trained / "epoch_2.pth", *options)


def test_resume_by_iterations_of_a_run_by_epochs_is_refused(
    refused: Callable[..., str], config: Path, trained: Path
) -> None:
    options = ("train_cfg._delete_=True", "train_cfg.by_epoch=False", "train_cfg.max_iters=20")
    message = refused(config, "--resume", trained / "epoch_2.pth", "--cfg-options", *options)
    assert "is of a training by epochs (epoch 2, iteration 8), and the config trains by iterations" in message
    assert "load_from" in message


@pytest.mark.parametrize(
    ("cfg", "by_epoch", "train_cfg", "refusal"),
    [
        ("train_cfg = dict(max_iters=8, val_interval=2)", None, {"max_epochs": 9}, "by iterations"),
        ("", False, {"max_epochs": 9}, "by iterations"),
        ("", True, {"max_iters": 90}, "by epochs"),
        ("", True, {"max_epochs": 9}, None),
        ("", False, {"max_iters": 90}, None),
        ("", True, {"type": "MyLoop"}, None),
    ],
)
def test_loops_of_a_checkpoint_and_a_config_are_compared(
    cfg: str, by_epoch: bool | None, train_cfg: dict[str, Any], refusal: str | None
) -> None:
    meta = {"cfg": cfg, "epoch": 0, "iter": 5} | ({} if by_epoch is None else {"run": {"by_epoch": by_epoch}})
    checkpoint = {"state_dict": {}, "optimizer": {}, "message_hub": {}, "meta": meta}
    if refusal is None:
        train.check_resumable(checkpoint, Path("a.pth"), train_cfg)
    else:
        with pytest.raises(UserError, match=f"a.pth is of a training {refusal}"):
            train.check_resumable(checkpoint, Path("a.pth"), train_cfg)


def test_latest_checkpoint_of_a_moved_folder_is_found(tmp_path: Path) -> None:
    for epoch in (2, 9, 10):
        (tmp_path / f"epoch_{epoch}.pth").touch()
    assert resume.latest_checkpoint(tmp_path).name == "epoch_10.pth"
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_9.pth")
    assert resume.latest_checkpoint(tmp_path) == tmp_path / "epoch_9.pth"


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "content",
    [_Call(getattr, HistoryBuffer, "update"), _Call(getattr, HistoryBuffer.mean, "__globals__"), _Call(os.getcwd)],
)
def test_only_what_mmengine_saves_is_allowed(tmp_path: Path, content: Any) -> None:
    before = torch.serialization.get_safe_globals()
    try:
        resume.allow_mmengine_checkpoints()
        history = HistoryBuffer([1.0, 2.0], [1, 1])
        torch.save({"history": history, "scalar": np.float64(3), "flag": np.bool_(True)}, tmp_path / "good.pth")
        loaded = torch.load(tmp_path / "good.pth", weights_only=True)
        assert loaded["history"].mean() == 1.5
        assert (loaded["scalar"], loaded["flag"]) == (3, True)
        torch.save({"state_dict": {}, "extra": content}, tmp_path / "bad.pth")
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "bad.pth", weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@pytest.fixture
def nothing_allowed() -> Iterator[None]:
    """A process in which torch.load has been given no types."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


@pytest.mark.usefixtures("nothing_allowed")
def test_mmdet_builds_a_detector_from_a_checkpoint(trained: Path, config: Path) -> None:
    from mmdet.apis import inference_detector, init_detector

    detector = init_detector(str(config), str(trained / "epoch_2.pth"), device="cpu")
    assert detector.dataset_meta["classes"] == ("ball", "beetle", "crate", "starfish", "ring")
    state = torch.load(trained / "epoch_2.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[key]) for key, tensor in detector.state_dict().items())
    assert "bboxes" in inference_detector(detector, np.zeros((64, 64, 3), np.uint8)).pred_instances


# ---- parts


def test_other_errors_keep_their_traceback() -> None:
    def broken(argv: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(broken, [])


@pytest.mark.parametrize(
    ("computes_bf16", "choice", "wrapper"),
    [
        (True, "auto", "BFloat16OptimWrapper"),
        (True, "bf16", "BFloat16OptimWrapper"),
        (False, "bf16", "BFloat16OptimWrapper"),
        (False, "auto", "no bf16 instructions"),
        (True, "fp16", "CUDA"),
    ],
)
def test_amp_on_a_cpu_is_bf16_or_refused(
    monkeypatch: pytest.MonkeyPatch, computes_bf16: bool, choice: str, wrapper: str
) -> None:
    from mmengine.config import Config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(amp, "cpu_computes_bf16", lambda: computes_bf16)
    cfg = Config({"optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 1e-4}}})
    if wrapper.endswith("Wrapper"):
        amp.use_amp(cfg, choice)
        assert cfg.optim_wrapper.type == wrapper
    else:
        with pytest.raises(UserError, match=wrapper):
            amp.use_amp(cfg, choice)


def test_bf16_wrapper_computes_in_bf16() -> None:
    model = torch.nn.Linear(4, 4)
    wrapper = amp.BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.clone()
    with wrapper.optim_context(model):
        output = model(torch.ones(1, 4))
    assert output.dtype == torch.bfloat16
    wrapper.update_params(output.float().sum())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)


def test_bf16_leaves_proposals_in_fp32() -> None:
    class TwoStage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neck, self.rpn_head, self.roi_head = (torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> list[torch.dtype]:
            maps = self.neck(x)
            return [maps.dtype, self.rpn_head(maps).dtype, self.roi_head(maps).dtype]

    model = TwoStage()
    wrapper = amp.BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        assert model(torch.ones(1, 4)) == [torch.float32, torch.float32, torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):  # nothing of it is left
        assert model(torch.ones(1, 4)) == [torch.bfloat16] * 3


def _runner(work_dir: Path, iteration: int, warnings: list[str]) -> Any:
    history = HistoryBuffer([4.0, 2.0], [1, 1])
    return SimpleNamespace(
        work_dir=str(work_dir),
        iter=iteration,
        max_iters=4,
        message_hub=SimpleNamespace(log_scalars={"train/loss": history, "train/lr": history}),
        logger=SimpleNamespace(warning=warnings.append),
    )


def test_curves_continue_after_a_crash(tmp_path: Path) -> None:
    def point(iteration: int) -> dict[str, float]:
        return {"iter": iteration, "loss": 1.0}

    # The run was killed after iteration 3; its last checkpoint is of iteration 2.
    past = {"losses": [point(1), point(2), point(3)], "metrics": [{"iter": 2, "coco/bbox_mAP": 0.1}]}
    (tmp_path / "curves.json").write_text(json.dumps(past))
    hook = CurvesHook()
    runner = _runner(tmp_path, 2, [])
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    hook.after_train_epoch(runner)
    record = json.loads((tmp_path / "curves.json").read_text())
    assert record["losses"] == [point(1), point(2), {"iter": 3, "loss": 2.0}]
    assert record["metrics"] == past["metrics"]


@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_curves_have_metrics_of_any_kind_of_number(tmp_path: Path, kind: type) -> None:
    hook, runner = CurvesHook(), _runner(tmp_path, 2, [])
    hook.before_train(runner)
    hook.after_val_epoch(runner, {"mIoU": kind(0.5), "classes": "a table"})
    assert json.loads((tmp_path / "curves.json").read_text())["metrics"] == [{"iter": 2, "mIoU": 0.5}]


def test_curves_are_recorded_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    warnings: list[str] = []
    runner = _runner(tmp_path, 0, warnings)
    hook = CurvesHook()
    hook.before_train(runner)
    for _ in range(2):
        hook.after_train_iter(runner, 0)
        hook.after_train_epoch(runner)
    assert len(warnings) == 1
    assert "matplotlib" in warnings[0]
    assert (tmp_path / "curves.json").is_file()
    assert not (tmp_path / "curves.png").exists()


def test_label_maps_are_dumped_without_scores(tmp_path: Path) -> None:
    dump = DumpLabelMaps(str(tmp_path / "labels.pkl"))
    labels = torch.tensor([[[0, 149]]])
    dump.process({}, [{"img_path": "a.png", "pred_sem_seg": {"data": labels}, "seg_logits": {"data": labels}}])
    (result,) = dump.results
    assert result.keys() == {"img_path", "labels"}
    assert result["labels"].tolist() == [[0, 149]]


def test_drawings_show_boxes_labels_and_maps(tmp_path: Path) -> None:
    from mmcv.transforms import LoadImageFromFile
    from mmengine.structures import InstanceData, PixelData

    rng = random.Random(0)
    noise = np.array([rng.randrange(256) for _ in range(64 * 80 * 3)], np.uint8).reshape(64, 80, 3)
    for folder in ("a", "b"):  # two images of one name
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "scene.png"), noise)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    found = Sample(
        img_path=str(tmp_path / "a/scene.png"),
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0])),
        pred_instances=InstanceData(bboxes=boxes, labels=torch.tensor([0]), scores=torch.tensor([0.1])),
    )
    labels = torch.zeros(1, 64, 80, dtype=torch.uint8)
    segmented = Sample(
        img_path=str(tmp_path / "b/scene.png"),
        gt_sem_seg=PixelData(data=torch.full_like(labels, 255)),
        pred_sem_seg=PixelData(data=labels),
    )
    metainfo = {"classes": ("tree",), "palette": [(220, 20, 60)]}
    dataset = Images([found.img_path, segmented.img_path], LoadImageFromFile(), metainfo)
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))
    ImagesHook(str(tmp_path / "out"), score_thr=0.3).after_test_iter(runner, 0, outputs=[found, segmented])

    drawings = {
        str(path.relative_to(tmp_path / "out")): cv2.imread(str(path)) for path in (tmp_path / "out").rglob("*.png")
    }
    assert sorted(drawings) == ["a/scene_gt_pred.png", "b/scene_gt_pred.png"]
    original = cv2.resize(noise, None, fx=9, fy=9)  # 64 pixels are enlarged to about 600
    for name, drawn, left_alone in (("a/scene_gt_pred.png", 0, 1), ("b/scene_gt_pred.png", 1, 0)):
        rows = drawings[name][CAPTION : CAPTION + original.shape[0]]
        halves = (rows[:, : original.shape[1]], rows[:, -original.shape[1] :])
        assert np.array_equal(halves[left_alone], original)
        assert not np.array_equal(halves[drawn], original)
    # The legend of the labels: a patch of the class's colour (RGB in the data set, BGR in the file).
    legend = drawings["b/scene_gt_pred.png"][CAPTION + original.shape[0] :]
    assert legend.shape[0] == CAPTION
    assert (legend == (60, 20, 220)).all(axis=2).any()
    assert drawings["a/scene_gt_pred.png"].shape[0] == CAPTION + original.shape[0]


# ---- weights to start from


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=False)["state_dict"]


def test_load_from_takes_a_wrapped_file(trained: Path, config: Path, tmp_path: Path) -> None:
    before = tensors(trained / "epoch_2.pth")
    wrapped = {f"_orig_mod.module.{key}": tensor for key, tensor in before.items()}
    torch.save({"model_ema": {"state_dict": wrapped}, "args": SimpleNamespace(lr=1)}, tmp_path / "file.pth")
    options = [f"load_from={tmp_path / 'file.pth'}", "optim_wrapper.optimizer.lr=0.0", "train_cfg.max_epochs=1"]
    result = run_tool("train", config, "--work-dir", tmp_path / "work", "--cfg-options", *options)
    assert result.returncode == 0, result.stderr
    after = tensors(tmp_path / "work" / "epoch_1.pth")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_load_from_without_a_weight_of_the_model(refused: Callable[..., str], config: Path, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "file.pth")
    message = refused(config, "--cfg-options", f"load_from={tmp_path / 'file.pth'}")
    assert "load_from: no weight of" in message
    assert "conv1.weight" in message
