"""Progress is a bar on a terminal, and a line now and then in a file."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from collections.abc import Callable

import pytest

from helpers.paths import ROOT
from mm_vitbackbones.progress import Progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Do some pieces of work that take so many seconds each; what is shown."""

    def work(pieces: int, seconds: float, file: io.StringIO, columns: int = 120) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        clock = Clock()
        for piece in track(range(pieces), "drawing", file=file, clock=clock):
            assert piece in range(pieces)
            clock.now += seconds
        return file.getvalue()

    return work


def test_a_file_gets_a_line_every_10_s_and_a_last_one(work) -> None:
    assert work(50, 1.0, io.StringIO()).splitlines() == [
        "drawing: 10/50, 10 s, about 40 s left",
        "drawing: 20/50, 20 s, about 30 s left",
        "drawing: 30/50, 30 s, about 20 s left",
        "drawing: 40/50, 40 s, about 10 s left",
        "drawing: 50/50, 50 s",
    ]


def test_quick_work_is_one_line_in_a_file(work) -> None:
    assert work(516, 0.01, io.StringIO()) == "drawing: 516/516, 5 s\n"


def test_slow_pieces_get_a_line_each(work) -> None:
    assert work(3, 120.0, io.StringIO()).splitlines() == [
        "drawing: 1/3, 2 min, about 4 min left",
        "drawing: 2/3, 4 min, about 2 min left",
        "drawing: 3/3, 6 min",
    ]


def test_a_terminal_gets_one_line_that_is_drawn_again(work) -> None:
    shown = work(4, 1.0, Terminal())
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    first, *others = shown.split("\r")[1:]
    assert first == f"[{'':30}] drawing: 0/4, 0 s"
    assert [bar.count(">") for bar in others] == [7, 15, 22, 30]
    # Nothing is left of a longer line before.
    assert all(len(after.rstrip("\n")) >= len(before.rstrip()) for before, after in itertools.pairwise(others))


@pytest.mark.parametrize("columns", [80, 50, 40, 30, 12])
def test_a_line_is_never_wider_than_its_terminal(work, columns) -> None:
    shown = work(4, 1.0, Terminal(), columns)
    lines = shown.rstrip("\n").split("\r")[1:]
    assert len(lines) == 5
    assert max(map(len, lines)) < columns
    assert all("drawing: " in line for line in lines)


def test_a_terminal_is_drawn_ten_times_a_second(work) -> None:
    assert work(1000, 0.001, Terminal()).count("\r") < 15


def test_no_work_shows_nothing(work) -> None:
    assert work(0, 1.0, io.StringIO()) == work(0, 1.0, Terminal()) == ""


def test_an_error_begins_a_line_of_its_own() -> None:
    def look(number: int) -> int:
        return 1 // (2 - number)

    terminal = Terminal()
    with pytest.raises(ZeroDivisionError):
        [*track((look(number) for number in range(5)), "looking", total=5, file=terminal)]
    assert terminal.getvalue().endswith("\n")


def test_the_first_process_alone_speaks(work, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert work(3, 60.0, io.StringIO()) == work(3, 60.0, Terminal()) == ""


def test_counts_may_come_in_jumps() -> None:
    file, clock = io.StringIO(), Clock()
    progress = Progress("compiling", 77, every=60, file=file, clock=clock)
    for done in (5, 40, 77):
        clock.now += 45.0
        progress.update(done)
    assert file.getvalue().splitlines() == ["compiling: 40/77, 90 s, about 83 s left", "compiling: 77/77, 2 min"]


def test_it_needs_python_alone() -> None:
    program = "import sys; before = {*sys.modules}; import mm_vitbackbones.progress; print({*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "mmengine", "numpy"} & {*eval(done.stdout)}
