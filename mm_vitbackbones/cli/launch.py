"""The processes of a run, and errors in its config."""

from __future__ import annotations

import gc
import os
import re
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config

from mm_vitbackbones.checkpoints.addresses import loaders
from mm_vitbackbones.checkpoints.reading import load_from_anywhere
from mm_vitbackbones.cli import preflight
from mm_vitbackbones.cli.config import use_local_norms
from mm_vitbackbones.data.reading import too_large
from mm_vitbackbones.errors import CheckpointError, DataError, UserError

LOADERS = re.compile(
    r"(mmcv|mmdet/datasets|mmseg/datasets)/transforms/loading\.py|mm_vitbackbones/engine/multichannel\.py"
)
"""The source files of the loaders, in a traceback."""

BUILDING = "mmengine/registry/build_functions.py"
"""Where MMEngine builds what a config names."""

DATA_PARALLEL = "MMDistributedDataParallel"
"""What MMEngine wraps the model of a distributed run in by default."""

LIBRARIES = ("mmcv", "mmdet", "mmengine", "mmseg", "pycocotools")
"""Packages whose constructors a config calls."""


def set_launcher(cfg: Config, launcher: str) -> None:
    """Join the processes that torchrun, slurm or mpi started into one run. Without GPUs they use gloo."""
    if launcher == "none" and "LOCAL_RANK" in os.environ and "RANK" in os.environ:
        launcher = "pytorch"
    cfg.launcher = launcher
    use_local_norms(cfg, distributed=launcher != "none")
    if launcher == "none" or torch.cuda.is_available():
        os.environ.setdefault("LOCAL_RANK", "0")
        return
    if launcher != "pytorch":
        raise UserError(f"--launcher {launcher} needs GPUs; without any, start the processes with torchrun")
    # MMEngine would pick a GPU for each process, and hand its index to the wrapper of the model.
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    wrapper = cfg.get("model_wrapper_cfg") or {"find_unused_parameters": cfg.get("find_unused_parameters", False)}
    if wrapper.get("type", DATA_PARALLEL) == DATA_PARALLEL:
        cfg.model_wrapper_cfg = {"type": DATA_PARALLEL, "broadcast_buffers": False, **wrapper, "device_ids": None}


@contextmanager
def leaving_group() -> Iterator[None]:
    """Leave the group of the processes of a distributed run, when the run is over or has stopped by itself.

    PyTorch asks for this: threads of a group that is left to the end of the interpreter can abort the process. After an
    error a process just ends, as others may wait in the group.
    """
    try:
        yield
    except SystemExit:
        _leave_group()
        raise
    _leave_group()


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a model in a cycle of references would keep the group, and its threads, alive
        torch.distributed.destroy_process_group()


@contextmanager
def registry_errors(config: Path) -> Iterator[None]:
    """Report in one line what fails while a part of a config is built: the name of a type, an argument of a type, or
    what a library raises in the constructor of one. What a run or a user's own class raises passes through.

    Within it, checkpoints that ``init_cfg`` names are read as safely for networks of others as for ours."""
    try:
        with loading_errors(config), loaders(load_from_anywhere):
            yield
    except (UserError, CheckpointError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).match(BUILDING) for frame in frames):
            raise
        message = " ".join(str(error.args[0] if error.args else "").split())
        if unknown := re.match(r"(\S+) is not in the (\S+)::(.+?) registry", message):
            name, scope, kind = unknown.groups()
            raise UserError(f"{config}: {preflight.unknown_type(name, kind, scope)}") from None
        if re.search(r"__init__\(\) (got an unexpected keyword|missing \d+ required)", message):
            advice = "see the arguments of that class"
            if "'pretrained'" in message:
                advice = "use model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
            raise UserError(f"{config}: {message.replace('.__init__()', '')}; {advice}") from None
        file = Path(frames[-1].filename)
        if not {*LIBRARIES} & {*file.parts}:
            raise
        where = f"{file.name}:{frames[-1].lineno}"
        raise UserError(f"{config}: {type(error).__name__} in {where}: {message[:300]}") from None


@contextmanager
def loading_errors(config: Path) -> Iterator[None]:
    """Report in one line a file of a data set that a loader of the libraries cannot read, in this process or in one of
    a dataloader."""
    try:
        yield
    except Exception as error:
        if LOADERS.search("".join(traceback.format_exception(error))) is None:
            raise
        words = str(error).strip().splitlines()[-1]
        why = too_large(words) or textwrap.shorten(words, 300, placeholder=" ...")
        raise DataError(
            f"{config}: an image or its ground truth cannot be loaded: {why}; `check_data {config} --check-all` finds "
            "all such files"
        ) from None
