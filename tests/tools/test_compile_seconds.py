"""The program that measures seconds of compilation: what it measures, and what it prints."""

from __future__ import annotations

import os
import re

import pytest
import torch

from helpers.paths import ROOT
from helpers.toys import TOYS
from mm_vitbackbones.build import backbone_names, families
from tools.benchmarks import compile_seconds

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def test_every_family_is_measured() -> None:
    known = backbone_names()
    assert {known[name][0] for name in compile_seconds.NETWORKS} == {*families().values()}


def test_the_page_has_seconds_of_every_family() -> None:
    section = (ROOT / "docs" / "benchmarks_notes.md").read_text("utf-8").partition("## Compilation\n")[2]
    table = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    for family in families():
        rows = [re.split(r" *\| *", line)[1:-1] for line in table if re.search(rf"\b{family}-", line)]
        assert any(re.fullmatch(r"\d+", row[2]) for row in rows), family


def test_a_network_has_a_line_of_graphs_and_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")  # set by the program, for its own process
    monkeypatch.setattr(compile_seconds, "build_backbone", lambda name: TOYS[name](out_indices=(0,)))
    compile_seconds.main(["--backend", "eager", "vit"])
    *_, header, _, line = capsys.readouterr().out.splitlines()
    assert header.count("|") == line.count("|")
    assert re.fullmatch(r"\| vit \| 2 \| \d+ \| \d+ \| \d+ \| \d+ \|", line)
    torch._dynamo.reset()


def test_a_network_takes_no_code_that_was_generated_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[str] = []
    monkeypatch.setattr(compile_seconds, "_row", lambda *_: folders.append(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    for _ in range(2):
        compile_seconds.row("vit", torch.device("cpu"), "eager")
    assert len({*folders}) == 2
    assert not any(map(os.path.exists, folders))
