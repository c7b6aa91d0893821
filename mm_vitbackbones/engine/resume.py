"""Checkpoints of training runs: finding them, and reading them without running any code of theirs."""

from __future__ import annotations

import os
import pickle
import re
import reprlib
from collections.abc import Mapping
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
    """The checkpoint that a bare ``--resume`` continues from.

    Raises:
        UserError: there is no checkpoint in the work dir.
    """
    note = work_dir / "last_checkpoint"
    if note.is_file():
        # The note holds an absolute path; its name alone still works after the folder was moved.
        path = work_dir / Path(note.read_text().strip()).name
        if path.is_file():
            return path
    periodic = [path for path in checkpoints_in(work_dir) if re.fullmatch(r"(epoch|iter)_\d+\.pth", path.name)]
    if not periodic:
        raise UserError(f"--resume: there is no checkpoint in {work_dir} to resume from; train without --resume first")
    return max(periodic, key=lambda path: int(path.stem.rpartition("_")[2]))
