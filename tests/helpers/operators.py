"""mmcv's operators: the recorded cases, and mmcv's Python side over the plain functions."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from helpers.paths import DATA
from mm_vitbackbones.mmcv_ops import extension


@functools.cache
def recorded(file: str) -> dict[str, dict[str, Any]]:
    """By ``operator/case``: the arrays of a file in tests/data, as tensors, and the arguments, ``arg``."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(DATA / file) as arrays:
        for name in arrays.files:
            operator, case, key = name.split("/")
            array = arrays[name]
            value = json.loads(str(array)) if key == "arg" else torch.from_numpy(array)
            cases.setdefault(f"{operator}/{case}", {})[key] = value
    return cases


def over_plain(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module ``mmcv.ops.NAME``, which calls the plain functions in place of the extension that is there."""
    pytest.importorskip("mmcv")
    extension.install()
    module = importlib.import_module(f"mmcv.ops.{name}")
    monkeypatch.setattr(module, "ext_module", extension.module())
    return module


def random_boxes(count: int, generator: torch.Generator, span: float = 100.0, side: float = 60.0) -> torch.Tensor:
    """(count, 4), x1, y1, x2, y2."""
    corners = torch.rand(count, 2, generator=generator) * span
    return torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * side), 1)


def with_gradients(function: Callable[..., torch.Tensor], *inputs: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """The output, and the gradients of the inputs with floating point numbers under random gradients of the output."""
    leaves = [tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
