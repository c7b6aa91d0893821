"""``--compile``: the backbones of a model, before its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.toys import TOYS
from mm_vitbackbones.cli.compiling import compile_backbones
from mm_vitbackbones.cli.predict import predict_arguments
from mm_vitbackbones.cli.test import test_arguments as arguments_of_test
from mm_vitbackbones.cli.train import train_arguments
from mm_vitbackbones.errors import UserError


def test_the_backbones_of_a_model_are_compiled_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._dynamo.config.optimize_ddp", True)
    model = nn.ModuleDict({"backbone": TOYS["pvt"](), "teacher": nn.ModuleDict({"backbone": TOYS["mit"]()})})
    compile_backbones(model, backend="eager")
    blocks = [block for name, block in model.named_modules() if name.rpartition(".")[0].endswith("blocks")]
    assert len(blocks) == 10
    assert all(block.compiled is not None for block in blocks)
    assert torch._dynamo.config.optimize_ddp is False


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
