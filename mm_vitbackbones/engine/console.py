"""The console output of a run: what a user wants to read. The log file has everything."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import cv2
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mm_vitbackbones import recipes
from mm_vitbackbones.engine.ground_truth import AnnotationIdsHook
from mm_vitbackbones.engine.summary import SummaryHook, log_file
from mm_vitbackbones.errors import CheckpointError, UserError
from mm_vitbackbones.files import write_whole
from mm_vitbackbones.printing import Lines

LIBRARIES = ("mmcv", "mmdet", "mmengine", "mmseg")
"""Packages that log much that nobody reads. Every message of other packages is shown."""

REPORTERS = ("mmengine.hooks", "mmengine.evaluator", "mmengine.runner.loops", "mmdet.evaluation", "mmseg.evaluation")
"""The parts of the libraries that log how a run goes, and its results."""

REPORTS = re.compile(
    r"Load checkpoint from|resumed epoch|Auto resumed|LR is set based on|load model from|Model has been|Enabling the "
)
"""Beginnings of messages of the other parts that are shown."""

NOISE = re.compile(r"Exp name: |Checkpoints will be saved to")
"""Beginnings of messages of the reporters that are not shown."""

HARMLESS = re.compile(
    r"deprecated|^The prefix is not set in metric class|^`save_param_scheduler` is True but"
    r"|is skipped since its requires_grad=False$"  # one line for each frozen parameter
)
"""Warnings of the libraries that a user can do nothing about."""

PRINTING = (
    "mmdet.datasets.api_wrappers.coco_api",
    "mmdet.datasets.api_wrappers.cocoeval_mp",
    "pycocotools.coco",
    "pycocotools.cocoeval",
)
"""Modules that print instead of logging."""

IN_FILE = {"console": False}
"""``logger.info(message, extra=IN_FILE)``: the message is a detail, for the log file alone."""

LONG = 40
"""A message of the libraries with so many lines goes to the log file alone: a table of 80 classes, but not of 30."""

EVERY = 10.0
"""Seconds between two lines of an evaluation's progress."""


class Console:
    """Within it, the console shows how a run goes, its results, warnings of this package and errors.

    The rest goes to the log file of the runner that ``runner`` builds, and to it alone: the set-up of the libraries
    (the config, hooks, each parameter's rate), Python's warnings about the code of libraries, warnings that a user can
    do nothing about, long tables, and the progress of an evaluation except for one line in 10 s. The log file keeps
    everything, and what pycocotools prints is added to it.

    Args:
        verbose: change nothing, and show all.
        clock: returns seconds since any fixed time.
    """

    def __init__(self, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.verbose, self.clock = verbose, clock
        self._filters: list[tuple[logging.Handler, logging.Filter]] = []
        self._log: MMLogger | None = None
        self._early: list[tuple[Any, ...]] = []
        self._printing: list[Any] = []

    def __enter__(self) -> Console:
        if not self.verbose:
            self._filter(MMLogger.get_current_instance())
            self._show_warning = warnings.showwarning
            warnings.showwarning = self._warn
            self._opencv_level = cv2.utils.logging.getLogLevel()
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it prints, and past Python's stderr
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.verbose:
            return
        warnings.showwarning = self._show_warning
        cv2.utils.logging.setLogLevel(self._opencv_level)
        for handler, rule in self._filters:
            handler.removeFilter(rule)
        for module in self._printing:
            del module.print
        if kind is not None and not issubclass(kind, (UserError, CheckpointError)):
            for warning in self._early:  # they may explain the failure, and no log file has them
                self._show_warning(*warning)

    def runner(self, cfg: Config, kind: type[Runner] = Runner) -> Runner:
        """``kind.from_cfg``, with a summary of the run before its first iteration, and annotation ids that pycocotools
        can use."""
        console = self

        class Quiet(kind):
            def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
                logger = super().build_logger(*args, **kwargs)
                for handler in logger.handlers:
                    if isinstance(handler, logging.FileHandler) and isinstance(handler.stream, io.TextIOWrapper):
                        handler.stream.reconfigure(encoding="utf-8", errors="backslashreplace")
                if not console.verbose:
                    console._take(logger)
                return logger

            @master_only
            def dump_config(self) -> None:
                name = Path(self.cfg.filename or f"{self.timestamp}.py").name
                write_whole(Path(self.work_dir, name), recipes.without_templates(self.cfg.dump()).encode())

        runner = Quiet.from_cfg(cfg)
        runner.register_hook(SummaryHook())
        runner.register_hook(AnnotationIdsHook())
        return runner

    def _take(self, logger: MMLogger) -> None:
        """Use this logger for the run. It is built after the libraries are imported, and before they log anything."""
        self._filter(logger)
        self._log = logger
        for message, category, filename, lineno, _, line in self._early:
            self._to_file(message, category, filename, lineno, line)
        self._early.clear()
        for name in PRINTING:
            if (module := sys.modules.get(name)) is not None and not hasattr(module, "print"):
                module.print = self._print  # type: ignore[attr-defined]  # replaces the built-in one
                self._printing.append(module)

    def _filter(self, logger: MMLogger) -> None:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                rule = ConsoleFilter(handler, log_file(logger), self.clock)
                handler.addFilter(rule)
                self._filters.append((handler, rule))

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Replaces ``warnings.showwarning``."""
        if file is not None or not of_a_library(filename):
            self._show_warning(message, category, filename, lineno, file, line)
        elif self._log is None:
            self._early.append((message, category, filename, lineno, None, line))
        else:
            self._to_file(message, category, filename, lineno, line)

    def _to_file(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None
    ) -> None:
        assert self._log is not None
        text = warnings.formatwarning(message, category, filename, lineno, line).strip()
        self._log.log(logging.WARNING, Lines(text), extra=IN_FILE)

    def _print(self, *values: Any, **options: Any) -> None:
        """Replaces ``print`` in pycocotools: of its output, only the table of AP is shown."""
        if options or self._log is None:
            print(*values, **options)
            return
        text = " ".join(map(str, values))
        self._log.info(Lines(text), extra={"console": text.lstrip().startswith("Average ")})


class ConsoleFilter(logging.Filter):
    """Selects the messages of a logger that its console shows."""

    def __init__(self, handler: logging.Handler, file: Path | None, clock: Callable[[], float]) -> None:
        super().__init__()
        self.handler, self.file, self.clock = handler, file, clock
        self._progress = -EVERY

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        if os.environ.get("RANK", "0") != "0":  # before a runner is built, MMEngine does not know the rank
            return False
        if (shown := getattr(record, "console", None)) is not None:
            return shown
        speaker, message = _speaker(), record.getMessage()
        if speaker.partition(".")[0] not in LIBRARIES:
            return True
        if record.levelno >= logging.WARNING:
            return HARMLESS.search(message) is None
        if not speaker.startswith(REPORTERS):
            return REPORTS.match(message) is not None
        if record.funcName in ("after_val_iter", "after_test_iter") and speaker == "mmengine.hooks.logger_hook":
            return self._is_due()
        if self.file is not None and message.count("\n") >= LONG:
            brief = f"{message.count(chr(10))} lines of results are in {self.file}"
            self.handler.emit(logging.makeLogRecord({**vars(record), "msg": brief, "args": None}))
            return False
        return NOISE.match(message) is None

    def _is_due(self) -> bool:
        now = self.clock()
        due = now - self._progress >= EVERY
        if due:
            self._progress = now
        return due


def _speaker() -> str:
    """The module whose message is being logged."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.startswith(("logging", "mmengine.logging")):
            return name
        frame = frame.f_back
    return frame.f_globals.get("__name__", "")


def of_a_library(filename: str) -> bool:
    """Whether a source file is neither this package's nor the user's own."""
    path = Path(filename)
    if path.is_relative_to(Path(__file__).parents[1]):
        return False
    roots = [sysconfig.get_path("stdlib")]  # and packages that are used from a checkout
    roots += [str(Path(sys.modules[name].__file__ or ".").parent) for name in LIBRARIES if name in sys.modules]
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return bool(installed) or filename.startswith("<") or any(path.is_relative_to(root) for root in roots)
