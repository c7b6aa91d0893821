"""Signals wait for the end of an iteration, once; a run that goes on within an epoch trains no batch twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mm_vitbackbones.engine.stopping import Stops, leave_signals_to_the_parent, position, resume_within_epoch


def forked(work: Callable[[], Any]) -> int:
    """A process that does some work, and ends with 0 if that is true."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = int(not work())
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_first_signal_waits_and_the_second_ends_the_process() -> None:
    def twice() -> bool:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stops = Stops()
        stops.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.agreed() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    assert ended(forked(twice)) == -signal.SIGTERM


def test_forked_process_does_not_answer_for_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    def parent() -> bool:
        stops = Stops()
        stops.listen()

        def child() -> bool:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            return stops.number == 0

        return ended(forked(child)) == 0

    assert ended(forked(parent)) == 0
    assert "saves a checkpoint" not in capfd.readouterr().err


def test_worker_ends_by_its_parents_signal_alone() -> None:
    ready, tell = os.pipe()

    def worker() -> bool:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        leave_signals_to_the_parent()
        os.write(tell, b".")
        time.sleep(60)
        return False

    pid = forked(worker)
    os.read(ready, 1)
    for number in (signal.SIGTERM, signal.SIGINT):  # from another process than its parent, as of a terminal or slurm
        assert ended(forked(lambda number=number: os.kill(pid, number) is None)) == 0  # type: ignore[misc]
    time.sleep(0.3)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 0


def epoch_of(batches: int) -> tuple[Any, list[int], list[str]]:
    """A runner in its third epoch of so many batches, the batches that it trains, and the warnings that it logs."""
    trained: list[int] = []
    warned: list[str] = []
    loop = SimpleNamespace(dataloader=[None] * batches, _iter=7, _epoch=2)
    loop.run_iter = lambda index, batch: trained.append(index)
    logger = SimpleNamespace(warning=warned.append, info=lambda _: None)
    return SimpleNamespace(train_loop=loop, logger=logger), trained, warned


def numbers() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def test_trained_batches_are_passed_over_and_the_random_numbers_are_those_of_then() -> None:
    where = position(2, 4)
    expected = numbers()
    runner, trained, warned = epoch_of(4)
    resume_within_epoch(runner, where)
    for index in range(4):
        runner.train_loop.run_iter(index, None)
        if index == 1:
            assert numbers() == expected
        else:
            numbers()
    assert trained == [2, 3]
    assert warned == []


def test_epoch_of_another_length_starts_from_its_first_batch() -> None:
    runner, trained, warned = epoch_of(5)
    resume_within_epoch(runner, position(2, 4))
    for index in range(5):
        runner.train_loop.run_iter(index, None)
    assert trained == [0, 1, 2, 3, 4]
    assert runner.train_loop._iter == 10
    assert len(warned) == 1
    assert "another length" in warned[0]
