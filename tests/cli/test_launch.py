"""Files that cannot be loaded in the middle of a run end in one line; the processes of a run and their wrapper."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mm_vitbackbones.cli import test, train
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.launch import leaving_group, registry_errors, set_launcher
from mm_vitbackbones.errors import DataError, UserError

pytest.importorskip("mmseg")


class Pairs(Dataset):
    """An image and its mask, as MMSegmentation's loaders read them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmcv.transforms import LoadImageFromFile
        from mmseg.datasets.transforms import LoadAnnotations

        paths = {"img_path": str(self.root / "image.png"), "seg_map_path": str(self.root / "mask.png")}
        return LoadAnnotations()(LoadImageFromFile()({**paths, "seg_fields": [], "reduce_zero_label": False}))


def write(root: Path) -> None:
    for name in ("image", "mask"):
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(root / f"{name}.png")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("image.png", b"<html>", "failed to load image: .*image.png"),
        ("mask.png", b"<html>", "cannot identify image file"),
        ("mask.png", None, "No such file or directory: .*mask.png"),
    ],
)
def test_file_that_a_loader_cannot_read_is_named(
    name: str, content: bytes | None, why: str, workers: int, tmp_path: Path
) -> None:
    write(tmp_path)
    with registry_errors(Path("a.py")):
        assert len([*DataLoader(Pairs(tmp_path), num_workers=workers, collate_fn=list)]) == 1
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    expected = (
        rf"^a\.py: an image or its ground truth cannot be loaded: .*{why}.*; `check_data a\.py --check-all` finds"
    )
    with pytest.raises(DataError, match=expected), registry_errors(Path("a.py")):
        list(DataLoader(Pairs(tmp_path), num_workers=workers, collate_fn=list))


def test_any_process_reports_its_own_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")

    def main(argv: list[str]) -> None:
        raise DataError("a.png cannot be loaded")

    assert run(main, []) == 2
    assert capsys.readouterr().err == "error: a.png cannot be loaded\n"


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), registry_errors(Path("a.py")):
        _ = 1 / 0


@pytest.mark.parametrize(
    ("end", "leaves"), [(None, True), (SystemExit(143), True), (UserError("wrong"), False), (RuntimeError(), False)]
)
def test_group_of_processes_is_left_at_the_end_of_a_run(
    end: BaseException | None, leaves: bool, tmp_path: Path
) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with contextlib.suppress(SystemExit, UserError, RuntimeError), leaving_group():
            if end is not None:
                raise end
        assert torch.distributed.is_initialized() != leaves
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("command", "inside"), [(train, "_train"), (test, "evaluate")])
def test_commands_leave_the_group(command: Any, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def join(*_: Any) -> None:
        where = f"file://{tmp_path}/meeting"
        torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)

    monkeypatch.setattr(command, inside, join)
    command.main(["config.py", "checkpoint.pth"][: 1 + (command is test)])
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of threads")
def test_no_thread_of_the_group_is_left_even_if_the_model_is_in_a_cycle(tmp_path: Path) -> None:
    """A thread that is left to the end of the interpreter can abort the process of a training that is over."""

    def threads() -> int:
        tasks = Path("/proc/self/task").iterdir()
        return sum("gloo" in (task / "comm").read_text() for task in tasks)

    gc.collect()  # groups of tests before this one
    before = threads()
    with leaving_group():
        where = f"file://{tmp_path}/meeting"
        torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        model.itself = [model]
        assert threads() > before
        del model
    assert threads() <= before


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, dict(type="MMDistributedDataParallel", broadcast_buffers=False, find_unused_parameters=False)),
        (dict(find_unused_parameters=True), dict(broadcast_buffers=False, find_unused_parameters=True)),
        (
            dict(model_wrapper_cfg=dict(broadcast_buffers=True, static_graph=True)),
            dict(broadcast_buffers=True, static_graph=True),
        ),
        (dict(model_wrapper_cfg=dict(type="mm_vitbackbones.ShardedModel")), dict(type="mm_vitbackbones.ShardedModel")),
    ],
)
def test_processes_without_gpus_keep_what_a_config_says_of_the_wrapper(
    given: dict[str, Any], kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    cfg = Config(dict(model=dict(), **given))
    set_launcher(cfg, "pytorch")
    wrapper = dict(cfg.model_wrapper_cfg)
    assert kept.items() <= wrapper.items()
    assert ("device_ids" in wrapper) == (wrapper["type"] == "MMDistributedDataParallel")
