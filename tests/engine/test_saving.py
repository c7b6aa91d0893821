"""The checkpoint hook has MMEngine's options, and takes the place of its own; saves that fail cost nothing else."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from helpers.toy_runs import StopHook, Stopped, logged, toy_config, toy_evaluation, toy_runner
from mm_vitbackbones.cli.train import checkpoint_folder, use_atomic_checkpoints
from mm_vitbackbones.engine import saving
from mm_vitbackbones.engine.hooks import CurvesHook
from mm_vitbackbones.engine.logs import append_whole, keep_going
from mm_vitbackbones.engine.saving import AtomicCheckpointHook
from mm_vitbackbones.engine.stopping import Stops
from mm_vitbackbones.errors import OutputError

OURS = "mm_vitbackbones.AtomicCheckpointHook"


@HOOKS.register_module()
class UsersCheckpointHook(CheckpointHook):
    """A subclass of a user's."""


def saved(work_dir: Path) -> set[str]:
    return {path.name for path in work_dir.rglob("*.pth*")}


@pytest.mark.parametrize(
    "options",
    [
        dict(interval=1),
        dict(interval=2, max_keep_ckpts=1),
        dict(interval=3, max_keep_ckpts=2, save_last=False),
        dict(interval=1, save_begin=2, max_keep_ckpts=2),
        dict(interval=1, filename_tmpl="mine-{}.pth", save_optimizer=False),
        dict(interval=3, by_epoch=False, max_keep_ckpts=2),
        dict(interval=2, save_best="count", rule="less", max_keep_ckpts=1),
        dict(interval=1, save_best="auto", rule="greater", published_keys=["state_dict", "meta"]),
        dict(interval=-1, save_last=False),
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()),
)
def test_options_mean_what_they_mean_in_mmengine(options: dict[str, Any], tmp_path: Path) -> None:
    kept, notes = [], []
    for kind in ("CheckpointHook", OURS):
        folder = tmp_path / kind
        cfg = toy_config(default_hooks__checkpoint=dict(type=kind, **options))
        runner = toy_runner(cfg, folder, **(toy_evaluation("val") if "save_best" in options else {}))
        runner.train()
        kept.append({name.partition("-")[0] if "publish" in str(options) else name for name in saved(folder)})
        file = folder / "last_checkpoint"
        notes.append(Path(file.read_text()).name if file.is_file() else None)
    assert kept[0] == kept[1]
    assert notes[0] == notes[1]


def test_checkpoints_in_another_folder_are_found(tmp_path: Path) -> None:
    hook = dict(type=OURS, interval=1, max_keep_ckpts=1, out_dir=str(tmp_path / "out"))
    toy_runner(toy_config(default_hooks__checkpoint=hook), tmp_path / "work").train()
    cfg = Config(dict(default_hooks=dict(checkpoint=hook)))
    folder = checkpoint_folder(cfg, tmp_path / "work")
    assert folder == tmp_path / "out" / "work"
    assert saved(folder) == {"epoch_4.pth"}


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (None, None),
        (dict(type="CheckpointHook", interval=7), OURS),
        (dict(type="mmengine.CheckpointHook", interval=7), OURS),
        (dict(type=CheckpointHook, interval=7), OURS),
        (dict(type="UsersCheckpointHook", interval=7), "UsersCheckpointHook"),
        (dict(type=UsersCheckpointHook, interval=7), UsersCheckpointHook),
    ],
)
def test_hook_of_mmengine_is_replaced_and_a_users_stays(hook: dict[str, Any] | None, expected: Any) -> None:
    cfg = Config(dict(default_hooks=dict(checkpoint=hook), custom_hooks=[hook] if hook else []))
    use_atomic_checkpoints(cfg)
    for found in (cfg.default_hooks.checkpoint, *cfg.custom_hooks):
        assert (found and found.type) == expected
        assert found is None or found.interval == 7
    cfg = Config(dict())
    use_atomic_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint == dict(type=OURS, interval=1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_save_that_fails_keeps_the_last_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = LocalBackend.put

    def fail(self: Any, content: bytes, path: Any) -> None:
        if "epoch_2" in str(path):
            Path(path).write_bytes(content[:100])
            raise OSError(number, os.strerror(number))
        put(self, content, path)

    monkeypatch.setattr(LocalBackend, "put", fail)
    runner = toy_runner(toy_config(default_hooks__checkpoint=dict(type=OURS, max_keep_ckpts=1)), tmp_path)
    runner.register_hook(StopHook(2))
    with logged(runner) as lines, pytest.raises(Stopped):
        runner.train()
    (line,) = (line for line in lines if "is not saved" in line)
    assert os.strerror(number) in line
    assert "the training goes on" in line
    assert ("a quota leaves less" in line) == (number in (errno.ENOSPC, errno.EDQUOT))  # this disk has room
    assert saved(tmp_path) == {"epoch_1.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "epoch_1.pth")
    assert runner.message_hub.get_info("keep_ckpt_ids") == [1]


def test_nothing_is_removed_before_what_replaces_it_is_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, ...]] = []

    def recording(what: str, function: Any, name_of: Any) -> Any:
        def call(*arguments: Any) -> Any:
            there = (what, Path(str(name_of(*arguments))).name)
            if what != "remove" or (tmp_path / there[1]).is_file():
                done.append(there)
            return function(*arguments)

        return call

    partial: set[str] = set()
    settle = recording("write", saving.settle, lambda source, path: partial.add(source.name) or path)
    monkeypatch.setattr(saving, "settle", settle)
    for what, name in (("name", "_note"), ("remove", "_remove")):
        function = recording(what, getattr(AtomicCheckpointHook, name), lambda hook, runner, path: path)
        monkeypatch.setattr(AtomicCheckpointHook, name, function)
    hook = dict(type=OURS, interval=1, max_keep_ckpts=1, save_best="count", rule="less")
    runner = toy_runner(toy_config(default_hooks__checkpoint=hook), tmp_path, **toy_evaluation("val"))
    scores = iter(range(100, 0, -1))
    monkeypatch.setattr(type(runner.val_evaluator), "evaluate", lambda self, size: {"count": next(scores)})
    runner.train()
    removed = [name for what, name in done if what == "remove"]
    assert {name.partition("_")[0] for name in removed} == {"epoch", "best"}
    for name in removed:
        kind = "best" if name.startswith("best") else "epoch"
        at = done.index(("remove", name))
        written = [index for index, (what, other) in enumerate(done[:at]) if what == "write" and other.startswith(kind)]
        newest = done[written[-1]][1]
        assert newest != name
        between = done[written[-1] : at]
        if kind == "epoch":
            assert ("name", newest) in between
        else:  # a run that is resumed has to know of the new one
            assert [what for what, other in between if other.startswith("epoch")][:2] == ["write", "name"]
    assert partial == {f"{name}{saving.PARTIAL}" for what, name in done if what == "write"}
    named = [index for index, (what, _) in enumerate(done) if what == "name"]
    assert all(("write", done[index][1]) in done[:index] for index in named)


def test_full_disk_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = AtomicCheckpointHook()
    hook.out_dir = str(tmp_path)
    hook.before_save_checkpoint(None, {"state_dict": {"a": torch.zeros(10**6), "b": torch.zeros(5 * 10**5)}})  # type: ignore[arg-type]
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2_500_000}))
    line = hook._why("epoch_2.pth", OSError(errno.ENOSPC, "No space left on device"))
    assert line.endswith("No space left on device; it needs 6.00 MB, 2.50 MB are free, 3.50 MB are missing")


def test_curves_and_scalars_of_a_full_disk_cost_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_for_curves(path: Path, _: bytes) -> None:
        raise OutputError(f"{path} cannot be written: {os.strerror(errno.ENOSPC)}")

    runner = toy_runner(toy_config(train_cfg__max_epochs=2), tmp_path)
    runner.register_hook(CurvesHook())
    keep_going(runner)
    monkeypatch.setattr("mm_vitbackbones.engine.hooks.write_whole", full_for_curves)
    monkeypatch.setattr("mm_vitbackbones.engine.logs.append_whole", full)
    with logged(runner) as lines:
        runner.train()
        runner.visualizer.add_scalars({"loss": 1.0}, step=1)
        runner.visualizer.add_scalars({"loss": 1.0}, step=2)
    assert saved(tmp_path) == {"epoch_1.pth", "epoch_2.pth"}
    assert any("curves.json cannot be written: No space left on device" in line for line in lines)
    assert sum("scalars.json is not written: No space left on device" in line for line in lines) <= 1


def test_line_that_does_not_fit_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scalars.json"
    append_whole(str(path), b'{"a": 1}\n')
    write = os.write
    room = [5]

    def little(file: int, content: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content[: room.pop()])

    monkeypatch.setattr(os, "write", little)
    with pytest.raises(OSError, match="No space left"):
        append_whole(str(path), b'{"a": 2}\n')
    assert path.read_bytes() == b'{"a": 1}\n'


def test_curves_of_a_damaged_file_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "curves.json").write_text('{"losses": [{"it')
    toy_runner(toy_config(train_cfg__max_epochs=1), tmp_path).train()
    runner = toy_runner(
        toy_config(train_cfg__max_epochs=2), tmp_path, load_from=str(tmp_path / "epoch_1.pth"), resume=True
    )
    runner.register_hook(CurvesHook())
    with logged(runner) as lines:
        runner.train()
    assert any("curves.json cannot be read" in line for line in lines)


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    during = []

    class Look(StopHook):
        def after_train_iter(self, *args: Any, **options: Any) -> None:
            during.append(signal.getsignal(signal.SIGTERM))
            super().after_train_iter(*args, **options)

    runner = toy_runner(toy_config(default_hooks__checkpoint=dict(type=OURS)), tmp_path)
    runner.register_hook(Look(1))
    with pytest.raises(Stopped):
        runner.train()
    assert during[0] not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_signals_that_a_process_ignores_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before, stops = signal.signal(signal.SIGINT, signal.SIG_IGN), Stops()
    try:
        stops.listen()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        stops.release()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_gradients_that_wait_for_their_step_are_not_lost_by_a_signal(tmp_path: Path) -> None:
    class Ask(StopHook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if runner.iter == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        after_train_epoch = after_train_iter = lambda *_, **__: None

    cfg = toy_config(default_hooks__checkpoint=dict(type=OURS), optim_wrapper__accumulative_counts=2)
    runner = toy_runner(cfg, tmp_path)
    runner.register_hook(Ask(9))
    with pytest.raises(SystemExit) as end:
        runner.train()
    assert end.value.code == 128 + signal.SIGTERM
    assert saved(tmp_path) == {"epoch_1.pth", "epoch_1_iter_6.pth"}
