"""What the benchmark measures, and the page that it makes; not how long anything takes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.paths import ROOT
from mm_vitbackbones.errors import UserError
from tools.benchmarks import report, running
from tools.benchmarks.contenders import CONTENDERS, Contender, ForSize
from tools.benchmarks.gpu.contenders import CONTENDERS as ON_GPU
from tools.benchmarks.host.networks import NETWORKS as ON_HOST
from tools.benchmarks.running import Case, Row, Setup


class Network(nn.Module):
    """Holds so many maps at once."""

    def __init__(self, maps: int, error: str = "") -> None:
        super().__init__()
        self.maps, self.error = maps, error
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> tuple[Tensor]:
        if self.error:
            raise RuntimeError(self.error)
        return (torch.stack([image * self.scale for _ in range(self.maps)]).sum(0),)


def test_a_network_of_one_size_is_built_for_each() -> None:
    sizes = []

    def build(size: tuple[int, int]) -> nn.Module:
        sizes.append(size)
        return Network(1)

    network = ForSize(build).eval()
    for side in (8, 16, 8):
        network(torch.zeros(1, 3, side, 2 * side, dtype=torch.float64))
    assert sizes == [(8, 16), (16, 32)]
    assert not any(part.training for part in network.modules())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}


def builders() -> dict[str, Callable[[], nn.Module]]:
    """Of all three benchmarks, by the end of a name that has that of the implementation."""
    known = {f"{name}, {each.name}": each.build for name, several in CONTENDERS.items() for each in several}
    known |= {f"gpu, {name}, {each.name}": each.build for name, several in ON_GPU.items() for each in several}
    return known | {
        f"host, {name}, {each}": build for name, several in ON_HOST.items() for each, build in several.items()
    }


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_package_that_is_not_installed_is_reported_when_a_network_is_built(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(torch.library, "define", lambda *_: None)
    found = {name: build for name, build in builders().items() if package in name}
    assert len(found) > 20
    for build in found.values():
        with pytest.raises(ImportError, match=package):
            build()


def absent() -> nn.Module:
    raise ImportError("no such package")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Case:
    contenders = (
        Contender("ours", lambda: Network(1)),
        Contender("wasteful", lambda: Network(8)),
        Contender("absent", absent),
        Contender("full", lambda: Network(1, "DefaultCPUAllocator: can't allocate memory")),
        Contender("fixed", lambda: Network(1, "size mismatch\nmore")),
    )
    monkeypatch.setitem(CONTENDERS, "toy", contenders)
    return Case("toy", "forward", (64, 96))


@pytest.mark.parametrize("mode", running.MODES)
def test_contenders_are_measured_or_their_failure_is_reported(toy: Case, mode: str) -> None:
    rows = {row.name: row for row in running.measure(Case("toy", mode, toy.size), Setup(turns=2))}
    assert [*rows] == ["ours", "wasteful", "absent", "full", "fixed"]
    assert rows["ours"].ratio == (1, 1, 1)
    assert rows["ours"].milliseconds > 0
    assert rows["wasteful"].peak_ratio > 3
    assert rows["wasteful"].peak_mib == pytest.approx(rows["wasteful"].peak_ratio * rows["ours"].peak_mib)
    assert [rows[name].failure for name in ("absent", "full", "fixed")] == [
        "not installed (no such package)",
        "fails: out of memory",
        "fails: size mismatch",
    ]


def test_a_failure_of_ours_is_an_error(toy: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, "toy", (Contender("ours", lambda: Network(1, "broken")),))
    with pytest.raises(RuntimeError, match="broken"):
        running.measure(toy, Setup(turns=1))


def test_networks_are_measured_in_other_types_and_batches(toy: Case) -> None:
    small, large = (running.measure(Case("toy", "forward", toy.size, n), Setup(1, dtype="bf16")) for n in (1, 3))
    assert large[0].peak_mib == pytest.approx(3 * small[0].peak_mib, rel=0.1)
    full = running.measure(toy, Setup(1))
    assert full[0].peak_mib == pytest.approx(2 * small[0].peak_mib, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
def test_networks_are_measured_on_a_gpu(toy: Case) -> None:
    rows = {row.name: row for row in running.measure(toy, Setup(2, device="cuda", dtype="fp16", compiled=True))}
    assert rows["wasteful"].peak_mib > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clock", "cpu", "--threads", "2"], "--threads 1"),
        (["--clock", "cpu", "--threads", "1", "--device", "cuda"], "--threads 1"),
        (["--report", "--dtype", "bf16"], "one setup"),
        (["--device", "cuda"], "no GPU"),
        (["--networks", "pvt"], "pvt_s"),
        (["--device", "cuda", "--report"], "no GPU"),
        (["--device", "cuda", "--report", "--dtype", "fp16"], "measures all of them"),
        (["--device", "cuda", "--report", "--only", "page", "train"], "goes alone"),
        (["--seconds", "3"], "--device cuda --report"),
        (["--report", "--smoke"], "give --out"),
        (["--report", "--smoke", "--out", "nowhere", "--networks", "segformer_head"], "segformer_b2"),
        (["--report", "--smoke", "--out", "nowhere", "--baseline", "nowhere"], "no mm_vitbackbones/"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        report.main(options)


def test_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "1")
    monkeypatch.delenv("ABSENT", raising=False)
    with running.environment({"GIVEN": "2", "ABSENT": "3"}):
        assert (os.environ["GIVEN"], os.environ["ABSENT"]) == ("2", "3")
    assert os.environ["GIVEN"] == "1"
    assert "ABSENT" not in os.environ


def rows(case: Case) -> list[Row]:
    if case.size == (2048, 2048):
        return [Row("ours", 9e3, (1, 1, 1), 900.0, 1), Row("mmdet", 0, (0, 0, 0), 0, 0, "fails: out of memory")]
    return [Row("ours", 100.0, (1, 1, 1), 50.0, 1), Row("mmdet", 180.0, (1.7, 1.8, 1.9), 300.0, 6.0)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Case, Any]]:
    """What was measured, which takes no time here."""
    calls: list[tuple[Case, Any]] = []

    def measure_apart(case: Case, setup: Setup, settings: Any) -> list[Row]:
        calls.append((case, settings))
        return rows(case)

    monkeypatch.setattr(report, "measure_apart", measure_apart)
    return calls


WANTED = running.cases(["pvt_s"], running.MODES)


def test_every_size_and_mode_is_measured_with_each_setting_once(measured: list, tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    data = report.fill(path, WANTED[:2], Setup(3))
    assert json.loads(path.read_text()) == json.loads(json.dumps(data))
    assert len(measured) == 2 * 2 + len(report.SIDES)
    assert {case.size for case in WANTED} == {(224, 224), (512, 512), (800, 1344)}
    del measured[:]
    report.fill(path, WANTED, Setup(3))  # goes on where it was
    assert [case for case, _ in measured] == WANTED[2:] * 2
    assert [settings for _, settings in measured] == [{}] * 4 + [{"THP_MEM_ALLOC_ENABLE": "1"}] * 4


def test_a_case_that_fails_is_a_line_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(case: Case, setup: Setup) -> list[str]:
        if case.size == (224, 224):
            raise BrokenProcessPool("A process was terminated.\nmore")
        if case.size == (512, 512):
            raise MemoryError
        return ["ours 1.00 ms"]

    monkeypatch.setattr(report, "measure_apart", measure)
    with pytest.raises(UserError, match="2 of 3 cases failed: pvt_s forward 224x224, pvt_s forward 512x512"):
        report.main(["--networks", "pvt_s", "--modes", "forward"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line[44:] for line in lines] == [
        " fails: A process was terminated.",
        " fails: MemoryError",
        " ours 1.00 ms",
    ]


def test_figures_of_two_machines_are_not_mixed(measured: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.fill(tmp_path / "benchmarks.json", WANTED[:1], Setup(3))
    with pytest.raises(UserError, match="turns 3"):
        report.fill(tmp_path / "benchmarks.json", WANTED[:1], Setup(5))
    monkeypatch.setattr(report, "machine", lambda setup: "another")
    with pytest.raises(UserError, match="machine"):
        report.fill(tmp_path / "benchmarks.json", WANTED[:1], Setup(3))


def test_the_page_says_what_was_reached(measured: list, tmp_path: Path) -> None:
    data = report.fill(tmp_path / "benchmarks.json", WANTED, Setup(3))
    page = report.page(data, "## Notes\n")
    assert data["machine"] in page
    assert "| PVT-Small | 512x512 | mmdet | x1.7 | x1.80 | x1.80 |" in page
    assert "| PVT-Small | 800x1344 | mmdet | x2.2 | x1.80: not reached | x1.80: not reached |" in page
    assert "| MiT-B2 | 512x512 | mmseg | x1.5 | untested | untested |" in page
    assert "| 512x512 | forward | mmdet | 180 | 1.80 (1.70 to 1.90) | 180 | 1.80 (1.70 to 1.90) | 300 | 6.00 |" in page
    assert "benchmarks/pvt_s.png" in page
    assert page.endswith("## Notes\n")


def test_plots_leave_out_what_failed(measured: list, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = report.fill(tmp_path / "benchmarks.json", WANTED[:1], Setup(3))
    report.plot(data["rows"], "pvt_s", tmp_path / "plots")
    assert (tmp_path / "plots" / "pvt_s.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_the_report_are_those_of_the_contenders() -> None:
    assert {*report.TITLES} == {*CONTENDERS}
    assert {*report.PLOTTED} <= {*CONTENDERS}
    for (network, size), aims in report.TARGETS.items():
        assert size in running.SIZES_OF.get(network, running.SIZES)
        assert {*aims} <= {contender.name for contender in CONTENDERS[network]}


def test_page_in_docs_shows_the_figures_in_docs() -> None:
    docs = ROOT / "docs"
    data = json.loads((docs / "benchmarks.json").read_text())
    has_gpu_page = (docs / "benchmarks_gpu.json").is_file()
    page = report.page(data, (docs / "benchmarks_notes.md").read_text(), has_gpu_page)
    assert (docs / "benchmarks.md").read_text() == page
    networks = [network for network in CONTENDERS if network not in report.IN_NOTES]
    wanted = {report.key(*job) for job in report.jobs(running.cases(networks, running.MODES))}
    assert wanted == data["rows"].keys()
    assert {path.stem for path in (docs / "benchmarks").glob("*.png")} == {*report.PLOTTED}
