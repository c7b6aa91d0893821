"""Checkpoints that a killed run, a full disk or a signal cannot take."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.optim import Optimizer

from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.engine.schedules import accumulation, named_wrappers
from mm_vitbackbones.engine.stopping import Stops, position, resume_within_epoch
from mm_vitbackbones.errors import OutputError, UserError, counted
from mm_vitbackbones.files import check_room, settle, write_whole
from mm_vitbackbones.registry import HOOKS

PARTIAL = ".partial"
"""What the name of a file ends with that is being written."""

WITHIN = "within_epoch"
"""Where a checkpoint's ``meta`` says how far an epoch is trained."""

EVALUATION = "last_evaluation"
"""The file in a work dir that has the iteration of the last whole evaluation, and the entry of a checkpoint's ``meta``
that says that one follows."""

REPLACED = "replaced_best_ckpts"
"""Where the message hub has the "best" files that are to be removed."""

STOPPED = "epoch_{epoch}_iter_{iter}.pth"
"""The name of a checkpoint within an epoch."""


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with all its options, which never leaves a run without a whole checkpoint.

    - A file is written under another name in the same folder, flushed and renamed. ``last_checkpoint`` follows, and
      only then is removed what ``max_keep_ckpts`` or a better "best" file makes superfluous. A disk needs room for one
      file more than ``max_keep_ckpts``.
    - A disk that is full or read-only costs this one save. A line says what is missing, and the training goes on.
    - ``SIGTERM`` and ``SIGINT`` are answered at the end of the iteration, or during an evaluation: a checkpoint is
      saved, and the process ends with 128 + the signal's number. Within an epoch its name is ``epoch_2_iter_11.pth``
      (2 whole epochs), and a resumed run goes on there, with the same random numbers; the next checkpoint replaces it.

    Files at other places than a local disk are written as MMEngine does. Our ``train`` puts this hook in the place of
    MMEngine's own. A subclass of a user's stays.

    Args:
        on_failed_save: ``"continue"``, or ``"stop"`` to end the training when a checkpoint cannot be saved.
    """

    keep_ckpt_ids: Any
    best_ckpt_path: Any

    last_ckpt: Any

    def __init__(self, *args: Any, on_failed_save: str = "continue", **options: Any) -> None:
        if on_failed_save not in ("continue", "stop"):
            raise UserError(f"on_failed_save is 'continue' or 'stop', and not {on_failed_save!r}")
        super().__init__(*args, **options)
        self.on_failed_save = on_failed_save
        self.stops = Stops()
        self._training = False
        self._batches = 0  # of the present epoch, that are trained
        self._saved_at: int | None = None  # the iteration of the newest checkpoint
        self._saved = True  # whether the last save of a training's state succeeded
        self._due = False  # whether a resumed run evaluates first
        self._evaluated = False  # whether the present weights are
        self._within: dict[str, Any] | None = None
        self._size = 0

    # ---- the stages of a run

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            self._within = checkpoint["meta"].get(WITHIN)
            self._due = runner.val_loop is not None and bool(checkpoint["meta"].get(EVALUATION))

    def before_train(self, runner: Runner) -> None:
        resumed = Path(runner._load_from) if runner._resume and runner._load_from else None
        super().before_train(runner)
        if self._is_local():
            if resumed is not None and resumed.absolute().parent == Path(self.out_dir).absolute():
                self.last_ckpt = self.file_backend.join_path(self.out_dir, resumed.name)
            if is_main_process():
                with contextlib.suppress(OSError):
                    self._tidy(runner)
            self._check_room(runner, files=1 if self.last_ckpt else 2)
        self._training = True
        self.stops.listen()
        if resumed is not None and self._due and evaluation_is_due(Path(runner.work_dir), runner.iter):
            runner.logger.info(f"the evaluation at iteration {runner.iter} is not over: it comes first")
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        self._batches = 0
        where, self._within = self._within, None
        if where is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            resume_within_epoch(runner, where)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._batches, self._evaluated = batch_idx + 1 if by_epoch else 0, False
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if by_epoch and self.by_epoch and batch_idx + 1 == len(runner.train_loop.dataloader):
            return  # the end of the epoch follows
        wrapper = runner.optim_wrapper
        if (runner.iter + 1) % accumulation(wrapper) == 0:  # gradients that wait for their step are not saved
            self._stop_if_asked(runner, runner.iter + 1, lambda: self._save_now(runner))

    def after_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            super().after_train_epoch(runner)
            return
        self._batches = 0
        super().after_train_epoch(runner)
        if self.by_epoch:
            self._stop_if_asked(runner, runner.iter, lambda: self._save_checkpoint(runner))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._training and self.stops.number and get_world_size() == 1:
            for hook in runner.hooks:  # the model has the averages during an evaluation
                if isinstance(hook, EMAHook):
                    hook._swap_ema_parameters()
            self._stop_if_asked(runner, runner.iter, lambda: self._save_after_loop(runner))

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        self._evaluated = self._training
        super().after_val_epoch(runner, metrics or {})
        if self._training:
            if is_main_process():
                with contextlib.suppress(OutputError):  # a resumed run would evaluate once more
                    write_whole(Path(runner.work_dir, EVALUATION), f"{runner.iter}".encode())
            self._stop_if_asked(runner, runner.iter, lambda: self._save_after_loop(runner))

    def after_train(self, runner: Runner) -> None:
        self.release()
        if not self._saved:
            raise UserError(
                f"the training is over, and its last checkpoint is not saved; the one before is {self.last_ckpt}: make "
                "room, and run the rest again with --resume"
            )
        super().after_train(runner)

    def release(self) -> None:
        """The training is over, in whatever way."""
        self._training = False
        self.stops.release()

    # ---- saving

    def _check_room(self, runner: Runner, files: int) -> None:
        """Check that the disk has room for checkpoints: a new one is written before the old one goes.

        Raises:
            OutputError: it has not, or the folder cannot be written to.
        """
        why = ""
        if is_main_process():
            size = files * size_of_checkpoint(runner, self.save_optimizer)
            try:
                check_room(Path(self.out_dir), f"the checkpoints' folder {self.out_dir}", size)
            except OutputError as error:
                why = f"{error} ({counted(files, 'checkpoint')} of this training)"
        if _any(bool(why)):
            raise OutputError(why or "there is no room for checkpoints: see the first process")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._size = _size_of(checkpoint)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        hub = runner.message_hub
        kept = [*self.keep_ckpt_ids] if self.max_keep_ckpts > 0 else []
        if self.max_keep_ckpts > 0 and step not in kept[-1:]:
            kept.append(step)
        path = self.file_backend.join_path(self.out_dir, name)
        # The file names what is removed after it, so that a run that ends in between removes it when it is resumed.
        with _restored(hub, ("keep_ckpt_ids", "last_ckpt")) as keep:
            if self.max_keep_ckpts > 0:
                hub.update_info("keep_ckpt_ids", kept)
            hub.update_info("last_ckpt", path)
            done = self._save_state(runner, name, meta)
            if done:
                keep()
        if not done:
            return
        self.last_ckpt, self._saved_at = path, meta["iter"]
        noted = self._note(runner, path)
        if self.max_keep_ckpts > 0:
            old, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            self.keep_ckpt_ids = type(self.keep_ckpt_ids)(kept, self.max_keep_ckpts)
            hub.update_info("keep_ckpt_ids", kept)
            if noted:
                for each in old:
                    self._remove(runner, self.filename_tmpl.format(each))
                self._remove_stopped(runner, meta["iter"])

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping[str, Any]) -> None:
        if not self.save_best:
            return
        if "auto" in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        step = runner.epoch if self.by_epoch else runner.iter
        hub = runner.message_hub
        old = [
            path
            for key, rule in zip(self.key_indicators, self.rules, strict=True)
            if (path := self._save_if_best(runner, key, rule, metrics[key], step)) is not None
        ]
        if not old:
            return
        hub.update_info(REPLACED, [path for path in old if path])
        if self.last_ckpt is not None:  # so that a resumed run knows of the new one
            self._save_checkpoint_with_step(runner, step, {"epoch": runner.epoch, "iter": runner.iter})
        for path in filter(None, old):
            self._remove(runner, path)
        hub.update_info(REPLACED, [])

    def _save_if_best(self, runner: Runner, key: str, rule: str, score: Any, step: int) -> str | None:
        """Save a "best" file if the score is better than before. Returns the path of the one that it replaces, empty if
        there is none; None if nothing is saved."""
        alone, hub = len(self.key_indicators) == 1, runner.message_hub
        score_key, path_key = ("best_score", "best_ckpt") if alone else (f"best_score_{key}", f"best_ckpt_{key}")
        best = hub.runtime_info.get(score_key, self.init_value_map[rule])
        if score is None or not self.is_better_than[key](score, best):
            return None
        name = f"best_{key}_{self.filename_tmpl.format(step)}".replace("/", "_")
        path = self.file_backend.join_path(self.out_dir, name)
        before = self.best_ckpt_path if alone else self.best_ckpt_path_dict[key]
        with _restored(hub, (score_key, path_key)) as keep:
            hub.update_info(score_key, score)
            hub.update_info(path_key, path)
            meta = {"epoch": runner.epoch, "iter": runner.iter}
            if not self._save(runner, name, meta, save_optimizer=False, save_param_scheduler=False, by_epoch=False):
                return None
            keep()
        if alone:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path
        unit = "epoch" if self.by_epoch else "iter"
        runner.logger.info(f"The best checkpoint with {score:0.4f} {key} at {step} {unit} is saved to {name}.")
        return before if before and before != path else ""

    def _save(
        self,
        runner: Runner,
        name: str,
        meta: dict[str, Any],
        save_optimizer: bool,
        save_param_scheduler: bool,
        **others: Any,
    ) -> bool:
        """Write one checkpoint. Returns whether it is there; in the first process of a run, that is."""
        options: dict[str, Any] = {
            "file_client_args": self.file_client_args,
            "save_optimizer": save_optimizer,
            "save_param_scheduler": save_param_scheduler,
            "by_epoch": self.by_epoch,
            "backend_args": self.backend_args,
            **others,
        }
        meta = dict(meta)
        if self._batches:
            meta[WITHIN] = position(self._batches, len(runner.train_loop.dataloader))
        elif not self._evaluated and _evaluation_follows(runner, meta):
            meta[EVALUATION] = True
        if not self._is_local() or not isinstance(runner, Runner):
            runner.save_checkpoint(self.out_dir, name, meta=meta, **options)
            return True
        partial, why = Path(self.out_dir, f"{name}{PARTIAL}"), ""
        try:
            if is_main_process():
                with contextlib.suppress(OSError):  # writing fails then, and not before all processes have met
                    partial.unlink(missing_ok=True)
            runner.save_checkpoint(self.out_dir, partial.name, meta=meta, **options)
            if is_main_process():
                settle(partial, partial.with_name(name))
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            why = self._why(name, error)
            last = (
                f"the last whole one is {self.last_ckpt}" if self.last_ckpt else "there is no earlier one of this run"
            )
            runner.logger.warning(f"{why}; {last}; the training goes on" * (self.on_failed_save == "continue") or why)
        if self.on_failed_save == "stop" and _any(bool(why)):
            raise UserError(why or f"{name} is not saved: see the first process")
        return not why

    def _save_state(self, runner: Runner, name: str, meta: dict[str, Any]) -> bool:
        """``_save`` for a file that a run is resumed from."""
        self._saved = self._save(runner, name, meta, self.save_optimizer, self.save_param_scheduler, **self.args)
        return self._saved

    def _why(self, name: str, error: OSError) -> str:
        why = f"{name} is not saved in {self.out_dir}: {error.strerror or error}"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return why
        free = shutil.disk_usage(self.out_dir).free
        need = f"it needs {_text(self._size)}"
        if free >= self._size:
            return f"{why}; {need}, and a quota leaves less"
        return f"{why}; {need}, {_text(free)} are free, {_text(self._size - free)} are missing"

    def _note(self, runner: Runner, path: str) -> bool:
        """Have ``last_checkpoint`` name a file."""
        if is_main_process():
            try:
                write_whole(Path(runner.work_dir, "last_checkpoint"), os.fsencode(path))
            except OutputError as error:
                runner.logger.warning(f"last_checkpoint is not written: {error}")
                return False
        return True

    # ---- removing

    def _remove(self, runner: Runner, name: str) -> None:
        if not is_main_process():
            return
        path = self.file_backend.join_path(self.out_dir, name)
        try:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # DeepSpeed's are folders
                self.file_backend.rmtree(path)
        except OSError as error:
            runner.logger.warning(f"{path} cannot be removed: {error.strerror}")

    def _remove_stopped(self, runner: Runner, iteration: int) -> None:
        """Remove the checkpoints within epochs that a newer one replaces."""
        if self._is_local():
            for path in Path(self.out_dir).glob(STOPPED.format(epoch="*", iter="*")):
                if (found := re.fullmatch(r"epoch_\d+_iter_(\d+)", path.stem)) and int(found[1]) < iteration:
                    self._remove(runner, path.name)

    def _tidy(self, runner: Runner) -> None:
        """Do what a killed run was about to do."""
        folder = Path(self.out_dir)
        for path in folder.glob(f"*.pth{PARTIAL}"):
            path.unlink()
        if self.last_ckpt is None:
            return
        self._note(runner, self.last_ckpt)
        for path in runner.message_hub.runtime_info.get(REPLACED) or []:
            self._remove(runner, Path(path).name)
        if self.max_keep_ckpts > 0:
            self._remove_stopped(runner, runner.iter)
        if self.save_best:
            self._adopt_best(runner)

    def _adopt_best(self, runner: Runner) -> None:
        """Take over a "best" file that was written after the checkpoint that is resumed, and the score that it has."""
        step, hub = runner.epoch if self.by_epoch else runner.iter, runner.message_hub
        for path in Path(self.out_dir).glob(f"best_*_{self.filename_tmpl.format(step)}"):
            known = [value for key, value in hub.runtime_info.items() if key.startswith("best_ckpt")]
            if path.name in [Path(str(each)).name for each in known]:
                continue
            try:
                found = read(path)["message_hub"]["runtime_info"]
            except (UserError, KeyError, TypeError):
                continue
            for key, value in found.items():
                score_key = key.replace("best_ckpt", "best_score", 1)
                if key.startswith("best_ckpt") and Path(str(value)).name == path.name and score_key in found:
                    before = hub.runtime_info.get(key)
                    hub.update_info(key, str(path))
                    hub.update_info(score_key, found[score_key])
                    if len(self.key_indicators) == 1:
                        self.best_ckpt_path = str(path)
                    else:
                        self.best_ckpt_path_dict[key.removeprefix("best_ckpt_")] = str(path)
                    if before:
                        self._remove(runner, Path(str(before)).name)

    # ---- stopping

    def _stop_if_asked(self, runner: Runner, iteration: int, save: Callable[[], Any]) -> None:
        if not (number := self.stops.agreed()):
            return
        if self._saved_at != iteration:
            save()
        name = signal.Signals(number).name
        if self._saved_at != iteration and is_main_process():
            runner.logger.warning(f"ended by {name} after iteration {iteration}, which is not saved")
        elif iteration >= runner.max_iters:
            runner.logger.info(f"ended by {name} after the last iteration: {self.last_ckpt} is the result")
        else:
            runner.logger.info(
                f"ended by {name} after iteration {iteration} of {runner.max_iters}, and saved: the same command with "
                "--resume goes on from there"
            )
        barrier()  # the end of one process ends all others, and the first one has to write
        self.release()
        raise SystemExit(128 + number)

    def _save_now(self, runner: Runner) -> None:
        """Save within an epoch, or within a training by iterations."""
        if not self.by_epoch:
            self._save_checkpoint(runner)
            return
        meta = {"epoch": runner.epoch, "iter": runner.iter + 1}
        name = STOPPED.format(**meta) if self._batches else f"iter_{meta['iter']}.pth"
        if self._save_state(runner, name, meta):
            self.last_ckpt, self._saved_at = self.file_backend.join_path(self.out_dir, name), meta["iter"]
            self._note(runner, self.last_ckpt)

    def _save_after_loop(self, runner: Runner) -> None:
        """Save where the loop has counted the last iteration and epoch already."""
        step = runner.epoch if self.by_epoch else runner.iter
        self._save_checkpoint_with_step(runner, step, {"epoch": runner.epoch, "iter": runner.iter})

    def _is_local(self) -> bool:
        return isinstance(self.file_backend, LocalBackend)


@contextlib.contextmanager
def _restored(hub: Any, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Give these entries of a message hub their values back, unless the function that this gives is called."""
    before, kept = {name: hub.runtime_info.get(name) for name in names}, []
    try:
        yield lambda: kept.append(True)
    finally:
        for name, value in before.items() if not kept else ():
            if value is None:
                hub.runtime_info.pop(name, None)
            else:
                hub.update_info(name, value)


def _any(failed: bool) -> bool:
    """Whether this is so in any process of a run."""
    flag = torch.tensor(int(failed))
    all_reduce(flag, "max")
    return bool(flag)


def evaluation_is_due(work_dir: Path, iteration: int) -> bool:
    """Whether the evaluation after this iteration, which a checkpoint says follows, has not come to its end."""
    try:
        return int((work_dir / EVALUATION).read_text()) != iteration
    except (OSError, ValueError):
        return True


def _evaluation_follows(runner: Runner, meta: Mapping[str, Any]) -> bool:
    loop = runner.train_loop
    if runner.val_loop is None or not {"val_begin", "val_interval"} <= vars(loop).keys():
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    done, last = (meta["epoch"], loop.max_epochs) if by_epoch else (meta["iter"], loop.max_iters)
    return bool(done >= loop.val_begin and (done % loop.val_interval == 0 or done == last))


STATES = {"Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "Adamax": 2, "Lion": 1, "SGD": 1}
"""How many values these optimizers keep of each parameter. Those of SGD are the momentum's."""


def averages(runner: Runner) -> list[BaseAveragedModel]:
    """The averages of the weights that a run makes, each with its model as ``module``."""
    return [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook) and hasattr(hook, "ema_model")]


def optimizers(runner: Runner) -> list[Optimizer]:
    """Those of a run, as far as its wrappers have any."""
    wrappers = named_wrappers(runner.optim_wrapper).values()
    return [optimizer for each in wrappers if (optimizer := getattr(each, "optimizer", None)) is not None]


def size_of_checkpoint(runner: Runner, with_optimizer: bool = True) -> int:
    """Bytes of the tensors that a training's checkpoint has at least: weights, averages, the state of an optimizer.

    The state of an optimizer that has made no step is estimated; that of one that is not known counts as nothing.
    """
    size = sum(_size_of(dict(model.state_dict())) for model in (runner.model, *averages(runner)))
    for optimizer in optimizers(runner) if with_optimizer else ():
        if optimizer.state:
            size += _size_of([*optimizer.state.values()])
            continue
        for group in optimizer.param_groups:
            states = STATES.get(type(optimizer).__name__, 0) if group.get("momentum", 1) else 0
            states += bool(group.get("amsgrad"))
            size += states * sum(p.numel() * p.element_size() for p in group["params"] if p.requires_grad)
    return size


def _size_of(content: Any) -> int:
    """Bytes of all tensors of a checkpoint."""
    sizes: dict[int, int] = {}
    queue = [content]
    while queue:
        node = queue.pop()
        if hasattr(node, "full_tensor"):  # a process's share of a tensor, which is saved whole
            sizes[id(node)] = node.nbytes
        elif isinstance(node, torch.Tensor):
            sizes[node.untyped_storage().data_ptr()] = node.untyped_storage().nbytes()
        elif isinstance(node, Mapping):
            queue += node.values()
        elif isinstance(node, (list, tuple)):
            queue += node
    return sum(sizes.values())


def _text(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{max(size, 1e4) / 1e6:.2f} MB"
