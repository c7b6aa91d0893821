"""``--compile``: the backbones of a model, before its training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.toys import TOYS
from mm_vitbackbones.cli.compiling import CompilingHook, compile_backbones
from mm_vitbackbones.cli.predict import predict_arguments
from mm_vitbackbones.cli.test import test_arguments as arguments_of_test
from mm_vitbackbones.cli.train import train_arguments
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.ops import context

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def test_the_backbones_of_a_model_are_compiled_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._dynamo.config.optimize_ddp", True)
    model = nn.ModuleDict({"backbone": TOYS["pvt"](), "teacher": nn.ModuleDict({"backbone": TOYS["mit"]()})})
    compile_backbones(model, backend="eager")
    blocks = [block for name, block in model.named_modules() if name.rpartition(".")[0].endswith("blocks")]
    assert len(blocks) == 10
    assert all(block.compiled is not None for block in blocks)
    assert torch._dynamo.config.optimize_ddp is False


def test_the_log_says_what_is_compiled_and_after_an_iteration_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("torch._dynamo.config.optimize_ddp", True)
    monkeypatch.setattr("mm_vitbackbones.cli.compiling.print_log", lambda text, **_: lines.append(text))
    torch._dynamo.reset()
    network = TOYS["swin"](out_indices=(0,))
    hook = CompilingHook(compile_backbones(network, backend="eager"))
    parts = [*network.stages[0].blocks]
    blocks, kinds = len(parts), len({part.compiled for part in parts})
    assert lines == [
        f"--compile: the first images compile the {blocks} blocks of Swin, which are of {kinds} kinds; images of "
        "another size compile each kind once more"
    ]
    for _ in range(2):  # the second time nothing is
        network(torch.randn(1, 3, 64, 64))
        hook.after_train_iter(None, 0)
    assert len(lines) == 2
    assert re.fullmatch(rf"--compile: {kinds} graphs compiled in \d+ s", lines[1])
    torch._dynamo.reset()


def test_without_a_compiler_the_log_does_not_say_that_blocks_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("torch._dynamo.config.optimize_ddp", True)
    monkeypatch.setattr("mm_vitbackbones.ops.compiling.problem", lambda *_, **__: "OSError: no compiler")
    for module in ("cli.compiling", "backbones.base"):
        monkeypatch.setattr(f"mm_vitbackbones.{module}.print_log", lambda text, **_: lines.append(text))
    compile_backbones(TOYS["pvt"](out_indices=(0,)))
    assert lines == ["nothing can be compiled here, and the network computes as without: OSError: no compiler"]


@pytest.mark.parametrize("whole", [True, False])
def test_the_log_says_where_pytorch_splits_the_graphs_of_blocks(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(context, "KEEPS_GRAPHS_WHOLE", whole)
    monkeypatch.setattr("mm_vitbackbones.backbones.base.print_log", lambda text, **_: lines.append(text))
    assert TOYS["pvt"](out_indices=(0,)).compile_blocks(backend="eager")
    assert ["splits the graph of a block" in line for line in lines] == ([] if whole else [True])


def test_a_model_without_our_backbones_is_refused() -> None:
    with pytest.raises(UserError, match="the model has none: leave it out"):
        compile_backbones(nn.Linear(2, 2))


def test_train_test_and_predict_take_the_option() -> None:
    config = str(Path("some", "config.py"))
    assert train_arguments([config, "--compile"]).compile
    assert not train_arguments([config]).compile
    assert arguments_of_test([config, "weights.pth", "--compile"]).compile
    assert predict_arguments([config, "weights.pth", "photos", "--compile"]).compile
    assert not predict_arguments([config, "weights.pth", "photos"]).compile
