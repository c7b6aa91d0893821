"""Checkpoints of training runs: finding them, and reading them without running any code of theirs."""

from __future__ import annotations

import os
import pickle
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version

from mm_vitbackbones.checkpoints.reading import read_checkpoint
from mm_vitbackbones.errors import CheckpointError, UserError

_METHODS: dict[Any, tuple[str, ...]] = {
    HistoryBuffer: ("min", "max", "current", "mean"),
    OneCycleParamScheduler: ("_annealing_cos", "_annealing_linear"),
}


def _method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which pickled histories and schedulers name these methods, and does only that."""
    if isinstance(owner, type) and name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"the checkpoint asks for the attribute {name!r} of {owner!r}")


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what MMEngine keeps besides weights.

    These are histories of scalars, with NumPy arrays in them, and functions of schedulers; none of it can run other
    code. Files that ``PlainCheckpointHook`` wrote need nothing of it.

    Raises:
        UserError: this torch is older than 2.6, where the default is to run what the file says.
    """
    if digit_version(torch.__version__) < digit_version("2.6"):
        raise UserError(
            f"torch {torch.__version__} reads MMEngine's checkpoints only by running code from them; "
            "to resume, or to start from such an address, install torch 2.6 or newer"
        )
    functions: list[Any] = [np.ndarray(()).__reduce__()[0], np.float64(0).__reduce__()[0]]  # _reconstruct, scalar
    names: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, OneCycleParamScheduler]
    names.append((_method, "builtins.getattr"))
    names += [type(np.dtype(code)) for code in "?bBiIlLqQefd"]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 2 renamed it; files have either name
        names += [(function, f"{module}.{function.__name__}") for function in functions]
    torch.serialization.add_safe_globals(names)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint, of a path or a URL, as plain data: anything else in it is replaced by an inert value.

    Raises:
        UserError: the file is not there, is damaged, or is no checkpoint that holds data alone.
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is no checkpoint of a model: it holds a {type(checkpoint).__name__}")
    return checkpoint


_FORMS: dict[str, Any] = {
    "state_dict": Mapping,
    "ema_state_dict": Mapping,
    "meta": Mapping,
    "message_hub": Mapping,
    "optimizer": Mapping,
    "param_schedulers": (Mapping, list, tuple),
}


def check_state(checkpoint: Mapping[str, Any], path: str | os.PathLike[str] | None) -> None:
    """Check the forms of what a resumed run reads.

    Raises:
        UserError: an entry is of another type than MMEngine writes.
    """

    def refuse(what: str, value: Any) -> None:
        raise UserError(
            f"{path} cannot be resumed: its {what} is {reprlib.repr(value):.40}, of type {type(value).__name__}, which "
            "is not what a training writes: start from its weights with load_from"
        )

    for name, form in _FORMS.items():
        if name in checkpoint and not isinstance(checkpoint[name], form):
            refuse(name, checkpoint[name])
    for name, value in checkpoint.get("state_dict", {}).items():
        if not isinstance(name, str):
            refuse("weights' name", name)
        if not isinstance(value, torch.Tensor) and not name.endswith("_extra_state"):
            refuse(f"weight {name}", value)
    meta = checkpoint.get("meta", {})
    for unit in ("epoch", "iter"):
        if unit in meta and (type(meta[unit]) is not int or meta[unit] < 0):
            refuse(unit, meta[unit])
    if not isinstance(meta.get("seed"), (int, type(None))):
        refuse("seed", meta["seed"])


def take_trained_weights(checkpoint: dict[str, Any]) -> bool:
    """Put the weights that the optimizer trains under ``state_dict``, in place of their averages: MMEngine's
    ``EMAHook`` exchanges the two when it saves. Returns whether the checkpoint has averages."""
    trained = checkpoint.pop("ema_state_dict", None)
    if trained is None:
        return False
    prefix = "module."
    checkpoint["state_dict"].update({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
    return True


def checkpoints_in(work_dir: Path) -> list[Path]:
    """The checkpoints of a training run, oldest first."""
    found = [
        path for path in work_dir.glob("*.pth") if re.fullmatch(r"((.+_)?(epoch|iter)_\d+|latest)\.pth", path.name)
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def latest_checkpoint(work_dir: Path) -> Path:
    """The newest checkpoint of a work dir.

    Raises:
        UserError: there is no checkpoint in the work dir.
    """
    return newest_first(work_dir)[0]


def newest_first(work_dir: Path, out_dir: Path | None = None) -> list[Path]:
    """The checkpoints that a run can go on from: the one that ``last_checkpoint`` names, and the others by their
    numbers. Before it come those that a run was writing when it was killed.

    Args:
        out_dir: where the run's hook puts its checkpoints, if not in the work dir.

    Raises:
        UserError: there is none.
    """
    folders = [work_dir] if out_dir is None else [out_dir, work_dir]
    periodic = [path for folder in folders for path in checkpoints_in(folder) if _progress(path) is not None]
    periodic.sort(key=lambda path: _progress(path) or (), reverse=True)
    note = work_dir / "last_checkpoint"
    if note.is_file() and (written := note.read_text(errors="replace").strip()):
        # The note holds an absolute path; its name alone still works after the folder was moved.
        known = [folder / Path(written).name for folder in folders]
        last = next((path for path in known if path.is_file()), None)
        if last is not None:
            when, progress = note.stat().st_mtime_ns, _progress(last)
            later = [path for path in periodic if progress and _later(path, progress, when)]
            periodic = [*later, last, *(path for path in periodic if path not in (last, *later))]
    if not periodic:
        raise UserError(f"--resume: there is no checkpoint in {work_dir} to resume from; train without --resume first")
    return periodic


def _progress(path: Path) -> tuple[int, ...] | None:
    """The whole epochs and the iterations, or one of them, that a checkpoint's name says."""
    if (found := re.fullmatch(r"(epoch|iter)_(\d+)(?:_iter_(\d+))?", path.stem)) is None or path.suffix != ".pth":
        return None
    return int(found[2]), int(found[3] or 0)


def _later(path: Path, progress: tuple[int, ...], when: int) -> bool:
    return (_progress(path) or ()) > progress and path.stat().st_mtime_ns > when


def newest_whole(paths: Iterable[Path]) -> tuple[Path, dict[str, Any], list[str]]:
    """The first of these checkpoints that reads whole and holds the state of a training.

    Returns:
        its path, its content, and what was wrong with each of those before it.

    Raises:
        UserError: there is none.
    """
    passed = []
    for path in paths:
        try:
            checkpoint = read(path)
        except UserError as error:
            passed.append(str(error))
            continue
        if holds_training(checkpoint):
            return path, checkpoint, passed
        passed.append(f"{path} does not hold the state of a training")
    raise UserError(f"--resume: no checkpoint is whole: {'; '.join(passed)}")


def holds_training(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint holds what a training goes on from, and not weights alone."""
    return {"state_dict", "optimizer", "message_hub", "meta"} <= checkpoint.keys() and isinstance(
        checkpoint["meta"], dict
    )
