"""Hooks of training and testing. In a config: ``custom_hooks = [dict(type='mm_vitbackbones.CurvesHook')]``."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mm_vitbackbones import adapters
from mm_vitbackbones.data.reading import ImageReader
from mm_vitbackbones.engine.drawing import displayable, draw_curves, draw_pair
from mm_vitbackbones.engine.plain_data import make_plain, restore
from mm_vitbackbones.engine.resume import take_trained_weights
from mm_vitbackbones.engine.schedules import RECORD, run_record
from mm_vitbackbones.engine.stopping import leave_signals_to_the_parent
from mm_vitbackbones.errors import OutputError, UserError, counted, shorten
from mm_vitbackbones.files import make_folder, own_names, to_png, write_whole
from mm_vitbackbones.nodes import heads
from mm_vitbackbones.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Makes the random numbers of an epoch a function of (seed, rank, epoch) alone.

    A run that was stopped between epochs and resumed with its seed then equals a run that was never stopped: the same
    order of images (MMEngine's samplers see to that), the same augmentations, the same dropped paths. Loops by
    iteration are seeded before each iteration instead; there, augmentations repeat only if workers make them.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if loader.num_workers and loader.persistent_workers and self._by_epoch(runner):
            runner.logger.warning(
                "train_dataloader.persistent_workers=True: the workers' random state cannot be saved, and a resumed "
                "run will draw other augmentations; set it to False for resuming exactly"
            )

    def before_train_epoch(self, runner: Runner) -> None:
        seeds = (runner.seed, runner.rank, runner.epoch)
        seed_all(*seeds)
        if self._by_epoch(runner):
            runner.train_dataloader.worker_init_fn = partial(_seed_worker, seeds=seeds)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self._by_epoch(runner):
            seed_all(runner.seed, runner.rank, runner.iter)

    @staticmethod
    def _by_epoch(runner: Runner) -> bool:
        return isinstance(runner.train_loop, EpochBasedTrainLoop)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Makes checkpoints plain data: ``torch.load(weights_only=True)``, and so ``init_detector`` and ``init_model`` on
    torch 2.6 and newer, read them in any process.

    They hold all that resuming needs, and a record of the run (``meta["run"]``); ``meta["adapters"]`` says
    the rank and the alpha of a backbone's adapters, and how many linear maps have one. Files without this hook can be
    resumed, too. ``train`` adds it to a config that has it not.
    """

    priority = "LOWEST"  # after the hooks that put something into the checkpoint

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"][RECORD] = run_record(runner)
        if found := adapters.summary(checkpoint["state_dict"]):
            checkpoint["meta"]["adapters"] = found
        if unknown := make_plain(checkpoint):
            runner.logger.warning(
                f"the checkpoint is not plain data, as it holds {shorten(unknown, 3)}: to load it, torch needs "
                "weights_only=False"
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        restore(checkpoint)
        averaged = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if runner._resume and not averaged and take_trained_weights(checkpoint):
            runner.logger.warning(
                "the checkpoint has averaged weights, and the config no EMAHook: the training goes on with the weights "
                "themselves, and the averages are dropped"
            )


@HOOKS.register_module()
class SameClassesHook(Hook):
    """Ends a run whose config has a ``num_classes`` at its top unlike that of a head. Only the heads' counts."""

    def before_run(self, runner: Runner) -> None:
        top = runner.cfg.get("num_classes")
        for where, head in heads(runner.cfg.get("model")) if isinstance(top, int) else ():
            if head["num_classes"] != top:
                raise UserError(
                    f"num_classes={top} at the top of the config, but {where}.num_classes={head['num_classes']}: "
                    "only the heads count, so give them the number"
                )


@HOOKS.register_module()
class CurvesHook(Hook):
    """Keeps ``curves.png`` in the work dir: losses, and the metrics of each validation, against iterations.

    Its numbers are in ``curves.json`` in the same folder. A resumed run continues them.

    Args:
        points: about how many points a loss curve has in the end.
    """

    priority = "LOW"

    def __init__(self, points: int = 200) -> None:
        self.points = points
        self.record: dict[str, list[dict[str, float]]] = {"losses": [], "metrics": []}
        self._can_draw = True

    def before_train(self, runner: Runner) -> None:
        self._path = Path(runner.work_dir, "curves.json")
        self._every = max(1, runner.max_iters // self.points)
        if runner.iter > 0 and self._path.is_file():
            try:
                past = json.loads(self._path.read_text(encoding="utf-8"))
                self.record = {
                    kind: [point for point in past.get(kind, []) if point["iter"] <= runner.iter]
                    for kind in self.record
                }
            except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                runner.logger.warning(f"{self._path} cannot be read ({error!r}): the curves begin here")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done = runner.iter + 1
        if done % self._every == 0 or done == runner.max_iters:
            losses = {
                key.removeprefix("train/"): float(history.mean(self._every))
                for key, history in runner.message_hub.log_scalars.items()
                if key.startswith("train/") and "loss" in key
            }
            self.record["losses"].append({"iter": done, **losses})

    def after_train_epoch(self, runner: Runner) -> None:
        self._update(runner)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        if not hasattr(self, "_path"):
            return  # validation alone, outside of training
        # mmseg's metrics are numbers of NumPy, 32 bits wide, which are no ``float``.
        numbers = {key: float(value) for key, value in (metrics or {}).items() if isinstance(value, Real)}
        self.record["metrics"].append({"iter": runner.iter, **numbers})
        self._update(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if hasattr(self, "_path"):  # a run that is resumed from the checkpoint has the points before it
            self._write(runner, self._path, json.dumps(self.record).encode())

    @staticmethod
    def _write(runner: Runner, path: Path, content: bytes) -> None:
        try:
            write_whole(path, content)
        except OutputError as error:
            runner.logger.error(f"{error}; the training goes on, and the curves are written again later")

    @master_only
    def _update(self, runner: Runner) -> None:
        self._write(runner, self._path, json.dumps(self.record).encode())
        if not self._can_draw:
            return
        try:
            drawing = draw_curves(self.record["losses"], self.record["metrics"], title=Path(runner.work_dir).name)
        except ImportError as error:
            self._can_draw = False
            runner.logger.warning(f"no curves.png without matplotlib ({error}); the numbers are in {self._path}")
        else:
            self._write(runner, self._path.with_suffix(".png"), drawing)


@HOOKS.register_module()
class ImagesHook(Hook):
    """Draws ground truth (left) next to predictions (right) of every test image, as ``<image>_gt_pred.png``.

    Images are loaded by the first steps of the data set's own pipeline, as for the network. Those in folders inside of
    the images' common folder are drawn into such folders. On a full disk the test goes on without further drawings.

    Args:
        out_dir: the folder. Drawings of earlier tests in it are replaced, other files are kept.
        score_thr: boxes of lower scores are left out.
        bands: of an image, those drawn as red, green and blue, numbered from 1.
    """

    priority = "LOW"

    def __init__(self, out_dir: str, score_thr: float = 0.3, bands: Sequence[int] | None = None) -> None:
        self.out_dir = Path(out_dir)
        self.score_thr = score_thr
        self.bands = bands
        self._names: dict[str, str] = {}
        self._drawn: set[str] = set()
        self._can_write = True
        self._entries: dict[str, tuple[ImageReader, Any, int]] = {}

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        dataset = runner.test_dataloader.dataset
        meta = dataset.metainfo
        classes, palette = meta.get("classes"), meta.get("palette")
        if classes is None or palette is None or len(palette) != len(classes):
            palette = None  # a COCO-format set of other classes inherits the colours of COCO's
        if not self._entries:
            self._entries = entries_by_path(dataset)
            self._names = drawing_names([*self._entries])  # the same in every process of a run
        for sample in (outputs or ()) if self._can_write else ():
            read, origin, index = self._entries[str(sample.img_path)]
            try:
                image = displayable(read(origin.get_data_info(index)), self.bands)
            except UserError as error:
                raise UserError(f"{sample.img_path}: {error}") from None
            drawing = draw_pair(image, sample, classes, palette, self.score_thr)
            target = self.out_dir / f"{self._names[str(sample.img_path)]}{ENDING}"
            try:
                make_folder(target.parent)
                write_whole(target, to_png(drawing))
            except OutputError as error:
                self._can_write = False
                runner.logger.error(f"{error}; no more is drawn, and the test goes on")
                return
            self._drawn.add(str(target))

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        drawn = {name for names in all_gather_object(self._drawn) for name in names}
        runner.logger.info(f"drawings: {self.out_dir} ({counted(len(drawn), 'file')})")


ENDING = "_gt_pred.png"
"""Of the name of a drawing."""


def drawing_names(paths: Sequence[str]) -> dict[str, str]:
    """The name of the drawing of each image, without its ending: the path within the folder that all have in common,
    with a number after it where another one has the same."""
    full = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in full]) if full else ""
    names = [Path(os.path.relpath(path, common)).with_suffix("").as_posix() for path in full]
    return dict(zip(paths, own_names(names, [ENDING]), strict=True))


def entries_by_path(dataset: Any) -> dict[str, tuple[ImageReader, Any, int]]:
    """Where each image of a data set comes from: the reader of its pipeline, the innermost data set, the index there.

    The keys are ``img_path`` as text; a wrapper such as ``ConcatDataset`` is looked into.
    """
    inner = getattr(dataset, "datasets", None) or [each for each in [getattr(dataset, "dataset", None)] if each]
    found: dict[str, tuple[ImageReader, Any, int]] = {}
    for each in inner:
        found |= entries_by_path(each)
    if inner:
        return found
    read = ImageReader(dataset.pipeline.transforms)
    return {str(dataset.get_data_info(index)["img_path"]): (read, dataset, index) for index in range(len(dataset))}


def seed_all(*seeds: int) -> None:
    """Seed Python, NumPy and torch by all of these numbers together."""
    words = np.random.SeedSequence(seeds).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


def _seed_worker(worker_id: int, seeds: tuple[int, ...]) -> None:
    leave_signals_to_the_parent()
    seed_all(*seeds, 1 + worker_id)
