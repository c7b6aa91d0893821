"""Kernels are started directly only where Triton's own launch has the known form."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels are written in Triton")

from mm_vitbackbones.ops.kernels.triton.launch import launch_and_learn

CONSTANT = ("handle", None, "hooks")


class Run:
    """As Triton's launcher of one kernel."""

    global_scratch_size = profile_scratch_size = 0

    def __init__(self, calls: list[Any]) -> None:
        self.launch = lambda *given: calls.append(given)


class Compiled:
    """As Triton's compiled kernel."""

    def __init__(self, run: Any, calls: list[Any], order: Any) -> None:
        self.run, self.calls, self.order, self.by_triton = run, calls, order, 0

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def runner(*arguments: Any, stream: int) -> None:
            self.by_triton += 1
            getattr(self.run, "launch", lambda *given: self.calls.append(given))(*self.order(grid, stream, arguments))

        return runner


def usual(grid: Any, stream: int, arguments: Any) -> tuple[Any, ...]:
    return (*grid, stream, *CONSTANT, *arguments)


def launched(compiled: Compiled) -> int:
    """Starts a kernel twice, on another stream and with another grid, and returns how often Triton did it."""
    launch, between = launch_and_learn(compiled, (2, 1, 1), 7, (100, 3, True))
    launch(4, 1, 1, 8, *between, 200, 5, True)
    return compiled.by_triton


def test_a_known_form_is_called_directly() -> None:
    calls: list[Any] = []
    compiled = Compiled(Run(calls), calls, usual)
    before = compiled.run.launch
    assert launched(compiled) == 1
    assert calls == [(2, 1, 1, 7, *CONSTANT, 100, 3, True), (4, 1, 1, 8, *CONSTANT, 200, 5, True)]
    assert compiled.run.launch is before


class WithScratch(Run):
    profile_scratch_size = 64


@pytest.mark.parametrize(
    ("run", "order"),
    [
        (lambda calls: object(), usual),
        (WithScratch, usual),
        (Run, lambda grid, stream, arguments: (stream, *grid, *CONSTANT, *arguments)),
        (Run, lambda grid, stream, arguments: (*grid, stream, *CONSTANT, arguments)),
    ],
    ids=["no function", "scratch memory", "another order", "other arguments"],
)
def test_any_other_form_goes_through_triton(run: Any, order: Any) -> None:
    calls: list[Any] = []
    assert launched(Compiled(run(calls), calls, order)) == 2
    assert calls == [order((2, 1, 1), 7, (100, 3, True)), order((4, 1, 1), 8, (200, 5, True))]
