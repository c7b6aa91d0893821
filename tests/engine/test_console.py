"""The console of a run is short, its log file holds everything."""

from __future__ import annotations

import builtins
import logging
import sys
import sysconfig
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub, MMLogger, print_log
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from mm_vitbackbones.engine import console as console_module
from mm_vitbackbones.engine.console import IN_FILE, LONG, Console, of_a_library
from mm_vitbackbones.errors import UserError

INSTALLED = f"{sysconfig.get_path('purelib')}/mmdet/models.py"


class Classifier(BaseModel):
    def __init__(self) -> None:
        super().__init__(init_cfg=dict(type="Normal", layer="Linear", std=0.01))
        self.backbone = torch.nn.Linear(2, 2)
        self.head = torch.nn.Linear(2, 2)

    def forward(self, inputs: Any, mode: str = "tensor", **_: Any) -> Any:
        outputs = self.head(self.backbone(torch.stack(inputs)))
        return {"loss": outputs.square().mean()} if mode == "loss" else [{"scores": each} for each in outputs]


class Points(BaseDataset):
    METAINFO: ClassVar = dict(classes=("cat", "dog"))

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"inputs": torch.tensor([float(i), 1.0])} for i in range(8)]


class Accuracy(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"accuracy": len(results) / 8}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A run of two epochs, of a toy, in a folder of its own."""
    # MMEngine keeps these for the whole process; a logger would write to the output of an earlier test.
    loggers: OrderedDict[str, MMLogger] = OrderedDict()
    monkeypatch.setattr(MMLogger, "_instance_dict", loggers)
    for kept in (MessageHub, Visualizer, DefaultScope):
        monkeypatch.setattr(kept, "_instance_dict", OrderedDict())
    for registry, kind in ((MODELS, Classifier), (DATASETS, Points), (METRICS, Accuracy)):
        monkeypatch.setitem(registry.module_dict, kind.__name__, kind)
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)  # it asks compilers for their versions
    monkeypatch.chdir(tmp_path)
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=dict(type="Points"),
        collate_fn=dict(type="pseudo_collate"),
    )
    yield Config(
        dict(
            model=dict(type="Classifier"),
            work_dir="work",
            default_scope="mmengine",
            train_dataloader=loader,
            val_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            val_cfg=dict(),
            val_evaluator=dict(type="Accuracy"),
            optim_wrapper=dict(
                optimizer=dict(type="AdamW", lr=0.001, weight_decay=0.05), paramwise_cfg=dict(bias_decay_mult=0.0)
            ),
            default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
        )
    )
    for logger in loggers.values():
        for handler in logger.handlers:
            handler.close()


def run(config: Config, console: Console, before: Callable[[], Any] = int) -> str:
    """Train; what the log file holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with console:
            runner = console.runner(config)
            before()
            runner.train()
    return log()


def log() -> str:
    (file,) = Path("work").glob("*/*.log")
    return file.read_text()


def speaks(module: str, function: str = "said") -> Callable[..., None]:
    """A function of that name in a module of that name, which calls the function it is given with the rest."""
    space: dict[str, Any] = {"__name__": module}
    exec(f"def {function}(log, *args, **kwargs): log(*args, **kwargs)", space)
    return space[function]


DETAILS = ("System environment:", "Config:\n", "Hooks will be executed", "paramwise_options -- head.bias")


def test_setting_up_is_left_to_the_file(config, capsys):
    logged = run(config, Console())
    shown = capsys.readouterr().out
    before, iterations, _ = shown.partition("Epoch(train)")
    assert iterations
    assert before.count("\n") <= 30
    for detail in DETAILS:
        assert detail in logged
        assert detail not in shown
    assert "head.weight - torch.Size([2, 2]): \nNormalInit" in logged
    assert shown.count("Epoch(train)") == 8
    assert shown.count("accuracy: 1.0000") == 2


def test_verbose_shows_everything(config, capsys):
    run(config, Console(verbose=True))
    shown = capsys.readouterr().out
    assert all(detail in shown for detail in DETAILS)
    assert shown.count("Epoch(val) [1][") == 5


def test_the_run_is_summarised_in_both(config, capsys):
    logged = run(config, Console())
    shown = capsys.readouterr().out
    for line in (
        "network: Classifier, backbone Linear, 12 parameters (6 of the backbone)",
        "weights: random",
        "train data: Points, 8 images, 2 classes (cat, dog)",
        "val data: Points, 8 images, 2 classes (cat, dog)",
        "schedule: 2 epochs of 4 iterations, batch 2, evaluated every epoch",
        "optimizer: AdamW, learning rate 0.001, weight decay 0 to 0.05, fp32",
        f"device: CPU, {torch.get_num_threads()} thread",
        f"log: {next(Path('work').glob('*/*.log'))}",
    ):
        assert line in shown
        assert line in logged
    assert shown.index("log: ") < shown.index("Epoch(train)")


def test_the_console_is_as_before_when_the_run_is_over(config):
    show_warning = warnings.showwarning
    run(config, Console())
    assert warnings.showwarning is show_warning
    for logger in MMLogger._instance_dict.values():
        assert {type(rule).__name__ for handler in logger.handlers for rule in handler.filters} == {
            "FilterDuplicateWarning"
        }


SAID = [
    ("mm_vitbackbones.cli.preflight", "of ours", logging.INFO, True),
    ("mm_vitbackbones.engine.amp", "is deprecated", logging.WARNING, True),
    ("my_hooks", "of the user", logging.INFO, True),
    ("mmengine.optim.optimizer.default_constructor", "paramwise_options -- x", logging.INFO, False),
    (
        "mmengine.optim.optimizer.default_constructor",
        "backbone.x is skipped since its requires_grad=False",
        logging.WARNING,
        False,
    ),
    ("mmengine.runner.runner", "Config:\nmodel = dict()", logging.INFO, False),
    ("mmengine.runner.runner", "Load checkpoint from a.pth", logging.INFO, True),
    ("mmengine.runner.runner", "resumed epoch: 3, iter: 9", logging.INFO, True),
    ("mmengine.runner.runner", "LR is set based on batch size of 16", logging.INFO, True),
    ("mmengine.runner.checkpoint", "The model and loaded state dict do not match exactly", logging.WARNING, True),
    ("mmengine.fileio.file_client", '"FileClient" will be deprecated in future.', logging.WARNING, False),
    ("mmengine.evaluator.metric", "The prefix is not set in metric class IoUMetric.", logging.WARNING, False),
    ("mmengine.hooks.logger_hook", "Exp name: a_run", logging.INFO, False),
    ("mmengine.hooks.checkpoint_hook", "Saving checkpoint at 1 epochs", logging.INFO, True),
    ("mmseg.evaluation.metrics.iou_metric", "per class results:", logging.INFO, True),
    ("mmdet.models.anything", "deprecated", logging.ERROR, True),
]
"""Module, message, level, and whether the console shows it."""


@pytest.mark.parametrize("way", ["print_log", "logger"])
def test_who_says_what_decides(config, capsys, way):
    shown = {}
    with Console() as console:
        console.runner(config)
        for module, message, level, _ in SAID:
            capsys.readouterr()
            if way == "logger":
                speaks(module)(MMLogger.get_current_instance().log, level, message)
            else:
                speaks(module)(print_log, message, "current", level)
            shown[module, message] = message in capsys.readouterr().out
    assert shown == {(module, message): is_shown for module, message, _, is_shown in SAID}
    assert all(message in log() for _, message, _, _ in SAID)


def test_details_of_ours_are_left_to_the_file(config, capsys):
    def say() -> None:
        MMLogger.get_current_instance().info("a detail", extra=IN_FILE)

    assert "a detail" in run(config, Console(), say)
    assert "a detail" not in capsys.readouterr().out


def test_long_tables_are_left_to_the_file(config, capsys):
    table = "\n".join(f"| class {number} |" for number in range(LONG + 1))
    logged = run(config, Console(), lambda: speaks("mmseg.evaluation.metrics")(print_log, table, "current"))
    shown = capsys.readouterr().out
    assert table in logged
    assert "class 7 " not in shown
    assert f"{LONG} lines of results are in {next(Path('work').glob('*/*.log'))}" in shown
    assert "lines of results are in" not in logged


def test_short_tables_are_shown(config, capsys):
    table = "\n".join(f"| class {number} |" for number in range(LONG))
    run(config, Console(), lambda: speaks("mmseg.evaluation.metrics")(print_log, table, "current"))
    assert table in capsys.readouterr().out


def test_an_evaluation_shows_a_line_every_10_s(config, capsys):
    now = 0.0
    after_val_iter = speaks("mmengine.hooks.logger_hook", "after_val_iter")
    with Console(clock=lambda: now) as console:
        logger = console.runner(config).logger
        for number in range(50):
            after_val_iter(logger.info, f"Epoch(val) [{number}/50]")
            now += 1.0
    shown = [line.rpartition("[")[2] for line in capsys.readouterr().out.splitlines() if "Epoch(val)" in line]
    assert shown == ["0/50]", "10/50]", "20/50]", "30/50]", "40/50]"]
    assert log().count("Epoch(val)") == 50


# ---- Python's warnings


def warn(text: str, filename: str) -> None:
    warnings.warn_explicit(text, UserWarning, filename, lineno=3)


@pytest.fixture
def shown_warnings() -> Iterator[list[str]]:
    """The warnings that are shown as Python shows them."""
    shown: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: shown.append(str(message))
        yield shown


def test_warnings_about_libraries_are_left_to_the_file(config, capsys, shown_warnings):
    with Console() as console:
        warn("of the checks", INSTALLED)  # before there is a file
        console.runner(config)
        warn("of the run", INSTALLED)
    assert "of the" not in capsys.readouterr().out
    assert shown_warnings == []
    assert f"{INSTALLED}:3: UserWarning: of the checks" in log()
    assert f"{INSTALLED}:3: UserWarning: of the run" in log()


def test_warnings_about_our_code_and_the_users_are_shown(config, shown_warnings, tmp_path):
    from mm_vitbackbones import build

    with Console() as console:
        console.runner(config)
        warn("ours", str(build.__file__))
        warn("the user's", str(tmp_path / "my_hooks.py"))
    assert shown_warnings == ["ours", "the user's"]


def test_our_code_is_no_library_where_it_is_installed(monkeypatch):
    folder = Path(sysconfig.get_path("purelib"), "mm_vitbackbones")
    monkeypatch.setattr(console_module, "__file__", str(folder / "engine/console.py"))
    assert not of_a_library(str(folder / "build.py"))
    assert of_a_library(str(folder.with_name("mmseg") / "build.py"))
    assert of_a_library(warnings.__file__)
    assert of_a_library("<frozen importlib._bootstrap>")


def test_verbose_shows_warnings_about_libraries(config, shown_warnings):
    with Console(verbose=True) as console:
        console.runner(config)
        warn("of a library", INSTALLED)
    assert "of a library" in shown_warnings


@pytest.mark.parametrize(("error", "shown"), [(RuntimeError, ["why"]), (UserError, [])])
def test_warnings_before_a_crash_are_shown_if_no_file_has_them(config, shown_warnings, error, shown):
    def crash() -> None:
        with Console():
            warn("why", INSTALLED)
            raise error

    with pytest.raises(error):
        crash()
    assert shown_warnings == shown


# ---- what pycocotools prints


def test_of_what_pycocotools_prints_the_table_is_shown(config, capsys, monkeypatch):
    cocoeval = types.ModuleType("pycocotools.cocoeval")
    exec("def say(*values, **options): print(*values, **options)", vars(cocoeval))
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", cocoeval)
    table = " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.123"
    with Console() as console:
        console.runner(config)
        cocoeval.say("Accumulating evaluation", "results...")
        cocoeval.say(table)
        cocoeval.say("elsewhere", file=sys.stderr)
    shown = capsys.readouterr()
    assert "Accumulating" not in shown.out
    assert table in shown.out
    assert shown.err == "elsewhere\n"
    assert "Accumulating evaluation results..." in log()
    assert table in log()
    cocoeval.say("as before")
    assert capsys.readouterr().out == "as before\n"
    assert not hasattr(cocoeval, "print")
    assert print is builtins.print


# ---- several processes


def test_the_first_process_alone_speaks(config, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Console():
        print_log("train_dataloader: 3 of 3 images", "current")
        print_log("broken", "current", logging.ERROR)
    shown = capsys.readouterr().out
    assert "images" not in shown
    assert "broken" in shown


def test_a_runner_of_the_console_is_mmengines(config):
    with Console() as console:
        assert isinstance(console.runner(config), Runner)


def test_opencvs_own_messages_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    content = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1][:60]  # half a file
    level = cv2.utils.logging.getLogLevel()
    with Console(verbose=False):
        assert cv2.imdecode(content, cv2.IMREAD_COLOR) is None
    assert capfd.readouterr().err == ""
    assert cv2.utils.logging.getLogLevel() == level
