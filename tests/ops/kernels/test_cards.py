"""Kernels run on the cards where they were measured, and elsewhere where the user asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration

HOPPER, ADA, AMPERE, TURING, BLACKWELL = (9, 0), (8, 9), (8, 0), (7, 5), (10, 0)
Run = Callable[[tuple[int, int]], bool]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Whether kernels run on a card of a compute capability, with Triton installed."""

    def clear() -> None:
        registration._is_wanted_on.cache_clear()
        registration._can_run_on.cache_clear()

    def on(capability: tuple[int, int]) -> bool:
        clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
        return registration._is_usable_on(0)

    monkeypatch.setattr(registration, "_has_triton", lambda: True)
    monkeypatch.delenv(registration.SWITCH, raising=False)
    yield on
    clear()


def test_they_run_where_they_were_measured(runs: Run) -> None:
    assert runs(HOPPER)
    assert not any(map(runs, (TURING, AMPERE, ADA, BLACKWELL)))


def test_the_environment_asks_for_them_elsewhere(runs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registration.SWITCH, "1")
    assert all(map(runs, (HOPPER, AMPERE, ADA, BLACKWELL)))
    assert not runs(TURING), "it has no bf16"
    monkeypatch.setenv(registration.SWITCH, "")
    assert not runs(AMPERE)


def test_the_environment_switches_them_off(runs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registration.SWITCH, "0")
    assert not any(map(runs, (HOPPER, AMPERE)))


def test_a_program_has_the_last_word(runs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with registration.forced(False):
        assert not runs(HOPPER)
    monkeypatch.setenv(registration.SWITCH, "0")
    with registration.forced(True):
        assert runs(AMPERE)
        assert not runs(TURING)
    assert not runs(AMPERE)


def test_nothing_runs_without_triton(runs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "_has_triton", lambda: False)
    assert not runs(HOPPER)


def test_nothing_runs_on_cards_of_amd(runs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "ROCM", True)
    assert not runs(HOPPER), "an MI200 has this number"
    monkeypatch.setenv(registration.SWITCH, "1")
    assert not any(map(runs, (HOPPER, BLACKWELL)))


def test_tensors_elsewhere_have_none(runs: Run) -> None:
    assert not registration.usable(Tensor())


@pytest.mark.parametrize("text", ["2", "yes", "on "])
def test_another_value_is_one_clear_error(runs: Run, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(registration.SWITCH, text)
    with pytest.raises(UserError, match=rf"MM_VITBACKBONES_KERNELS is '{text}': give 1 .*, 0 .*, or leave it out"):
        runs(HOPPER)
