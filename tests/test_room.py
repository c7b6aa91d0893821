"""A disk without room, or a folder that cannot be written to, is one line of every command before its long work."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import coco
from helpers.runs import write_config
from helpers.toy_runs import StopHook, Stopped, toy_config, toy_runner
from helpers.toys import TOYS
from mm_vitbackbones import files
from mm_vitbackbones.cli import convert_checkpoint, convert_dataset, prepare_data, test, train
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.data import mini, trees
from mm_vitbackbones.engine.saving import size_of_checkpoint
from mm_vitbackbones.errors import OutputError, UserError

Usage = namedtuple("Usage", ["total", "used", "free"])


def free(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**40, 0, count))


# ---- checkpoints of a training


@pytest.mark.parametrize(
    ("optimizer", "ema"),
    [
        (dict(type="AdamW", lr=0.01), False),
        (dict(type="AdamW", lr=0.01, amsgrad=True), True),
        (dict(type="SGD", lr=0.01, momentum=0.9), True),
        (dict(type="SGD", lr=0.01), False),
    ],
    ids=str,
)
def test_the_size_of_a_checkpoint_is_known_before_the_training(
    optimizer: dict[str, Any], ema: bool, tmp_path: Path
) -> None:
    """The tensors of the file that the training then writes are as large, up to a counter for each parameter."""
    changes = {"optim_wrapper__optimizer": dict(optimizer, _delete_=True), "train_cfg__max_epochs": 1}
    cfg = toy_config(**changes, custom_hooks=[dict(type="EMAHook")] if ema else [])
    sizes = []
    runner = toy_runner(cfg, tmp_path)
    for hook in runner.hooks:
        hook.before_train = lambda runner, before=hook.before_train: (
            before(runner),
            sizes.append(size_of_checkpoint(runner)),
        )
    runner.train()
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    size, queue = 0, [saved["state_dict"], saved.get("ema_state_dict", {}), saved["optimizer"]["state"]]
    while queue:
        node = queue.pop()
        if isinstance(node, torch.Tensor):
            size += node.nbytes
        elif isinstance(node, dict):
            queue += node.values()
    assert sizes[-1] <= size <= sizes[-1] + 4 * len(saved["optimizer"]["state"])
    assert size_of_checkpoint(runner, with_optimizer=False) < size or optimizer == dict(type="SGD", lr=0.01)


def started(folder: Path, **options: Any) -> Any:
    runner = toy_runner(
        toy_config(default_hooks__checkpoint__type="mm_vitbackbones.AtomicCheckpointHook"), folder, **options
    )
    runner.register_hook(StopHook(1))
    return runner


def test_a_training_needs_room_for_two_checkpoints_and_a_resumed_one_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = started(tmp_path / "other")
    with pytest.raises(Stopped):
        runner.train()
    size = size_of_checkpoint(runner) - 4 * len(runner.optim_wrapper.optimizer.state)  # its counters of steps
    free(2 * size - 1, monkeypatch)
    why = rf"{tmp_path}/run: {2 * size - 1} bytes are free in .*, and at least {2 * size} bytes are"
    with pytest.raises(OutputError, match=rf"{why} needed: make room, .* \(2 checkpoints of this training\)"):
        started(tmp_path / "run").train()
    assert not list((tmp_path / "run").rglob("*.pth"))
    free(2 * size, monkeypatch)
    with pytest.raises(Stopped):
        started(tmp_path / "run").train()
    newest = str(tmp_path / "run/epoch_1.pth")
    size = Path(newest).stat().st_size  # the counters of the optimizer's steps come next to what was estimated
    free(size, monkeypatch)
    runner = started(tmp_path / "run", load_from=newest, resume=True)
    runner.train()
    assert runner.epoch == 4
    free(8, monkeypatch)
    with pytest.raises(OutputError, match=r"8 bytes are free in .*\(1 checkpoint of this training\)"):
        started(tmp_path / "run", load_from=newest, resume=True).train()


# ---- before anything else


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that nobody may write to. (Whoever runs the tests may be allowed everything.)"""
    folder = tmp_path / "closed"
    folder.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **_: Path(path) != folder and access(path, mode))
    return folder


def refused(main: Any, arguments: list[Any], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line, line


@pytest.mark.parametrize("kind", ["closed", "a file"])
@pytest.mark.parametrize("command", ["train", "train out_dir", "test", "test --out", "test --show-dir"])
def test_a_folder_that_cannot_be_written_to_ends_a_run_before_its_data_are_looked_at(
    command: str, kind: str, closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if kind == "a file":
        closed.rmdir()
        closed.touch()
    config = write_config("tiny_segmentor", tmp_path, tmp_path)
    for name in ("check_or_skip", "check"):
        monkeypatch.setattr(f"mm_vitbackbones.cli.preflight.{name}", lambda *_, **__: pytest.fail("checked first"))
    monkeypatch.setattr(test, "read", lambda path: pytest.fail("read first"))
    name, _, option = command.partition(" ")
    place = closed / "deeper"
    given = {
        "": ["--work-dir", place],
        "out_dir": ["--work-dir", tmp_path / "w", "--cfg-options", f"default_hooks.checkpoint.out_dir={place}"],
        "--out": ["--work-dir", tmp_path / "w", "--out", place / "a.pkl"],
        "--show-dir": ["--work-dir", tmp_path / "w", "--show-dir", place],
    }[option]
    main = {"train": train.main, "test": test.main}[name]
    why = "nothing can be written to" if kind == "closed" else "is no folder"
    refused(main, [config, *([] if name == "train" else ["a.pth"]), *given], why, capsys)
    assert not (tmp_path / "w").exists()


def test_a_conversion_of_a_checkpoint_needs_room(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source, out = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save(TOYS["pvt"]().state_dict(), source)
    refused(convert_checkpoint.main, [tmp_path / "none.pth", closed / "b.pth"], "nothing can be written to", capsys)
    size = sum(tensor.nbytes for tensor in torch.load(source, weights_only=True).values())
    free(size - 1, monkeypatch)
    arguments = [source, out, "--arch", str(dict(TOYS["pvt"].arch))]
    refused(convert_checkpoint.main, arguments, f"and at least {files.size_words(size)} are needed", capsys)
    assert not out.exists()
    free(size, monkeypatch)
    assert run(convert_checkpoint.main, [*map(str, arguments)]) == 0


def test_a_conversion_of_data_needs_a_folder_before_its_source_is_read(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for module in ("recognise",):
        monkeypatch.setattr(convert_dataset, module, lambda *_: pytest.fail("read first"))
    refused(convert_dataset.main, [source, closed / "out"], "nothing can be written to", capsys)


def test_copies_of_images_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    coco.write_images(source)
    coco.write(source, coco.content())
    size = sum(path.stat().st_size for path in source.rglob("*.png"))
    free(size - 1, monkeypatch)
    refused(convert_dataset.main, [source, tmp_path / "out", "--copy"], "are needed: make room", capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("name", ["trees", "mini"])
def test_a_data_set_needs_a_folder_and_room_before_it_is_made(
    name: str, closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(trees, "fetch", lambda scratch: pytest.fail("fetched first"))
    monkeypatch.setattr(mini, "draw_scene", lambda *_: pytest.fail("drawn first"))
    refused(prepare_data.main, [name, "--out", closed / "out"], "nothing can be written to", capsys)
    free(5000, monkeypatch)
    refused(prepare_data.main, [name, "--out", tmp_path / "out"], "4.9 kiB are free in", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["closed"]


def test_the_photographs_are_fetched_to_the_disk_of_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TMPDIR may have no room."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    places = []

    def fetch(command: list[str], env: dict[str, str], **_: Any) -> Any:
        (place,) = (Path(option.partition("=")[2]) for option in command if option.startswith("--dest="))
        places.append((place, Path(env["TMPDIR"])))
        return namedtuple("Result", ["returncode", "stderr"])(1, "no connection")

    monkeypatch.setattr("subprocess.run", fetch)
    monkeypatch.setattr(trees, "DOWNLOADS", tmp_path / "none")
    with pytest.raises(UserError, match="no connection"):
        trees.prepare(tmp_path / "data/trees")
    assert {place.parent for place in places[0]} == {tmp_path / "data"}
    assert not any((tmp_path / "data").iterdir())
