"""Checkpoints hold plain data, which any process can load, and resuming finds in them what it needs."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections import Counter, OrderedDict, deque
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer

from helpers.toy_runs import logged, toy_config, toy_runner
from mm_vitbackbones.engine.amp import BFloat16OptimWrapper
from mm_vitbackbones.engine.hooks import PlainCheckpointHook
from mm_vitbackbones.engine.plain_data import equal, make_plain, restore

EVERYTHING: dict[str, Any] = dict(
    optim_wrapper=dict(
        type=BFloat16OptimWrapper,
        clip_grad=dict(max_norm=1.0),
        paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=2.0))),
    ),
    param_scheduler=[
        dict(type="OneCycleLR", by_epoch=False, eta_max=0.1, total_steps=16),
        dict(type="MultiStepLR", by_epoch=True, milestones=[1, 3]),
        dict(type="CosineAnnealingMomentum", by_epoch=True),
        dict(type="ReduceOnPlateauLR", by_epoch=True, monitor="loss"),
    ],
    custom_hooks=[dict(type="EMAHook", momentum=0.1)],
    train_cfg__max_epochs=2,
)
"""Changes to a toy config, after which a checkpoint has all that MMEngine keeps."""

OTHERS = {
    "array": np.arange(3, dtype=np.float32),
    "palette": np.zeros((2, 3), np.uint8),
    "names": np.array(["one", "two"], dtype=object),
    "scalar": np.float64(1.5),
    "flag": np.bool_(True),
    "node": ConfigDict(a=dict(b=(1, 2))),
    "set": {1, 2},
    "count": Counter([1, 1, 2]),
    "queue": deque([1, 2]),
    "path": PurePosixPath("a/b"),
}
"""What hooks and data sets of users put next to it."""


class Saves(Hook):
    """A hook of a user's that keeps an array in the checkpoint."""

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = np.ones(2)


def test_a_process_without_this_package_loads_a_checkpoint_as_weights(tmp_path: Path) -> None:
    runner = toy_runner(toy_config(**EVERYTHING), tmp_path)
    runner.register_hook(Saves())
    for name, value in OTHERS.items():
        runner.message_hub.update_info(name, value)
        runner._train_dataloader["dataset"].metainfo[name] = value
    with logged(runner) as lines:
        runner.train()
    assert not any("plain data" in line for line in lines)
    program = (
        "import sys, torch\n"
        "content = torch.load(sys.argv[1], weights_only=True)\n"
        "assert not any(name in sys.modules for name in ('mm_vitbackbones', 'mmengine'))\n"
        "print(*content)\n"
        "print(content['meta']['dataset_meta']['palette'], content['message_hub']['runtime_info']['path'])\n"
    )
    command = [sys.executable, "-I", "-c", program, str(tmp_path / "epoch_2.pth")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    held, values = result.stdout.splitlines()
    assert held.split() == [
        "meta",
        "state_dict",
        "message_hub",
        "optimizer",
        "param_schedulers",
        "ema_state_dict",
        "mine",
    ]
    assert values == "[[0, 0, 0], [0, 0, 0]] a/b"


@pytest.mark.parametrize("plain", [True, False])
def test_run_with_all_kinds_of_state_is_resumed_to_equal_weights(plain: bool, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Any:
        runner = toy_runner(toy_config(**EVERYTHING), tmp_path / name, **options)
        runner._train_dataloader["dataset"].metainfo["palette"] = np.ones((2, 3), np.uint8)
        if not plain:  # a file of an earlier version
            runner.hooks[:] = [hook for hook in runner.hooks if not isinstance(hook, PlainCheckpointHook)]
        with logged(runner) as lines:
            runner.train()
        assert not any("dataset metainfo" in line or "config differs" in line for line in lines)
        return runner

    before = torch.serialization.get_safe_globals()
    try:
        whole = run("whole")
        resumed = run("resumed", load_from=str(tmp_path / "whole/epoch_1.pth"), resume=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    for one, other in ((whole.model, resumed.model), (ema(whole), ema(resumed))):
        states = one.state_dict(), other.state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert equal(whole.optim_wrapper.state_dict(), resumed.optim_wrapper.state_dict())
    histories = [runner.message_hub.log_scalars["train/loss"].data[0].tolist() for runner in (whole, resumed)]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 8


def ema(runner: Any) -> Any:
    return next(hook.ema_model for hook in runner.hooks if hasattr(hook, "ema_model"))


def test_replaced_values_come_back_as_they_were() -> None:
    history = HistoryBuffer([1.0, 2.0], [1, 3], max_length=7)
    checkpoint = {"message_hub": {"log_scalars": OrderedDict(loss=history), "runtime_info": dict(OTHERS)}}
    assert make_plain(checkpoint) == []
    assert isinstance(checkpoint["message_hub"]["log_scalars"], OrderedDict)
    restore(checkpoint)
    back = checkpoint["message_hub"]["log_scalars"]["loss"]
    assert isinstance(back, HistoryBuffer)
    assert back.mean() == history.mean() == 0.75
    assert (back.max_length, back.data[0].dtype, back.data[1].dtype) == (
        7,
        history.data[0].dtype,
        history.data[1].dtype,
    )
    info = checkpoint["message_hub"]["runtime_info"]
    assert info["palette"].dtype == np.uint8
    assert info["names"] == ["one", "two"]
    assert (info["set"], info["count"], info["node"]) == ({1, 2}, Counter([1, 1, 2]), {"a": {"b": (1, 2)}})
    assert type(info["count"]) is Counter


def test_the_run_itself_keeps_its_values() -> None:
    scheduler = {"milestones": Counter([1]), "anneal_func": max, "last_step": np.int64(3)}
    live = {"param_schedulers": [scheduler], "state_dict": OrderedDict(weight=torch.ones(1))}
    live["state_dict"]._metadata = {"": {"version": 2}}
    checkpoint = dict(live)
    make_plain(checkpoint)
    assert scheduler == {"milestones": Counter([1]), "anneal_func": max, "last_step": np.int64(3)}
    # As MMEngine alone can load it.
    assert checkpoint["param_schedulers"] == [{"milestones": {1: 1}, "last_step": 3}]
    assert type(checkpoint["param_schedulers"][0]["milestones"]) is dict
    assert checkpoint["state_dict"] is live["state_dict"]


class Colour(enum.IntEnum):
    RED = 1


class Odd:
    pass


def test_what_cannot_be_plain_is_named_and_kept(tmp_path: Path) -> None:
    odd = Odd()
    checkpoint = {"extra": {"list": [1, odd], "colour": Colour.RED}}
    assert make_plain(checkpoint) == [f"extra.list[1] ({__name__}.Odd)"]
    assert checkpoint["extra"]["list"][1] is odd
    assert type(checkpoint["extra"]["colour"]) is int
    runner = toy_runner(toy_config(train_cfg__max_epochs=1), tmp_path)
    runner.message_hub.update_info("odd", odd)
    with logged(runner) as lines:
        runner.train()
    assert sum("message_hub.runtime_info.odd" in line and "weights_only=False" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, [2.0]), [1, (2.0,)], True),
        ({"a": np.zeros(2)}, {"a": [0.0, 0.0]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (torch.zeros(2), torch.zeros(2), True),
        (torch.zeros(2), torch.ones(2), False),
        ([1], [1, 2], False),
        (Counter([1]), Counter([2]), False),
    ],
)
def test_plain_values_are_compared(one: Any, other: Any, expected: bool) -> None:
    assert equal(one, other) is expected
