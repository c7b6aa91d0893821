"""A schedule that keeps the learning rate low for a whole run is reported before it begins."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from helpers.toy_runs import StopHook, Stopped, logged, toy_config, toy_runner
from mm_vitbackbones.cli.batches import FeasibleHook


def warm_up(**arguments: Any) -> list[dict[str, Any]]:
    return [dict(type="LinearLR", start_factor=0.001, **{"by_epoch": False, "begin": 0, **arguments})]


COSINE = [dict(type="CosineAnnealingLR", by_epoch=True)]
HEAD_TEN_TIMES = dict(optim_wrapper__paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))))
ITERATIONS = dict(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=16))


def begun(tmp_path: Path, hook: bool, **changes: Any) -> tuple[Any, list[str]]:
    """A runner of 16 iterations, in 4 epochs or not, at a rate of 0.01, stopped as it begins; and what it logged."""
    runner = toy_runner(toy_config(**changes), tmp_path)
    if hook:
        runner.register_hook(FeasibleHook())
    runner.register_hook(StopHook(0))
    with logged(runner) as lines, contextlib.suppress(Stopped):
        runner.train()
    return runner, [line for line in lines if "learning rate reaches" in line]


def warnings_of(tmp_path: Path, **changes: Any) -> list[str]:
    return begun(tmp_path, True, **changes)[1]


@pytest.mark.parametrize(
    ("schedule", "changes", "reason"),
    [
        (warm_up(end=500), {}, "LinearLR (param_scheduler.0) ends at iteration 500; set param_scheduler.0.end=1, or"),
        (warm_up(end=500) + COSINE, {}, "LinearLR (param_scheduler.0) ends at iteration 500; set"),
        (warm_up(end=500), ITERATIONS, "LinearLR (param_scheduler.0) ends at iteration 500; set"),
        (warm_up(end=50, by_epoch=True), {}, "ends at epoch 50; set param_scheduler.0.end, or train longer"),
        (warm_up(end=2, by_epoch=True), ITERATIONS, "counts epochs and the run counts iterations"),
        ([dict(type="ConstantLR", factor=0.05, by_epoch=False, end=500)], {}, "ConstantLR (param_scheduler.0) ends"),
        (warm_up(end=8, end_factor=0.05), {}, "lr=0.01: see param_scheduler"),
        (warm_up(end=500), HEAD_TEN_TIMES, "ends at iteration 500"),
    ],
)
def test_a_rate_that_never_reaches_a_tenth_gets_one_line(
    schedule: list, changes: dict, reason: str, tmp_path: Path
) -> None:
    (line,) = warnings_of(tmp_path, param_scheduler=schedule, **changes)
    assert "in the 16 iterations of this run, less than a tenth of optim_wrapper.optimizer.lr=0.01: " in line
    assert reason in line


@pytest.mark.parametrize(
    "changes",
    [
        dict(param_scheduler=COSINE),
        dict(param_scheduler=warm_up(end=8)),
        dict(param_scheduler=warm_up(end=100)),  # to 15 % of the rate
        dict(param_scheduler=warm_up(end=4, by_epoch=True) + COSINE),
        dict(param_scheduler=warm_up(end=1, by_epoch=True, convert_to_iter_based=True)),
        dict(param_scheduler=warm_up(end=4), **ITERATIONS),
        dict(param_scheduler=[dict(type="ReduceOnPlateauLR", monitor="loss")]),
        dict(param_scheduler=[dict(type="CosineAnnealingMomentum", by_epoch=True)]),
        dict(param_scheduler=[dict(type="OneCycleLR", eta_max=0.1, total_steps=16, by_epoch=False)]),
    ],
)
def test_other_schedules_get_none(changes: dict, tmp_path: Path) -> None:
    assert warnings_of(tmp_path, **changes) == []


def test_no_schedule_gets_none(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, param_scheduler=[]) == []


def test_looking_at_the_schedule_leaves_it_as_it_is(tmp_path: Path) -> None:
    looked, untouched = (begun(tmp_path, hook, param_scheduler=warm_up(end=500) + COSINE)[0] for hook in (True, False))
    for one, other in zip(looked.param_schedulers, untouched.param_schedulers, strict=True):
        assert one.state_dict() == other.state_dict()
    rates = [[group["lr"] for group in runner.optim_wrapper.param_groups] for runner in (looked, untouched)]
    assert rates[0] == rates[1] == [pytest.approx(1e-5)]
