"""Operators that eager computation on CUDA calls: what they write, and the shapes that fake tensors get of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.ops import talking_heads  # noqa: F401  (registers its operators)
from mm_vitbackbones.ops.kernels import depthwise, factorized, gelu, norm, scale  # noqa: F401

OURS = torch.ops.mm_vitbackbones
FP32, BF16 = torch.float32, torch.bfloat16


def r(*shape: int) -> Tensor:
    return torch.randn(shape)


X, CHANNELS, ROWS, LEVELS = r(2, 5, 8), [r(8), r(8)], r(10, 8), [4, 6]
QUERIES = r(12, 16), r(12, 8), r(10, 8)
GRID, WINDOWS = r(1, 3, 4, 8), [r(8, 1, 3, 3), r(8, 1, 3, 3)]
GRIDS = [2, 2, 3, 2, 1, 2], WINDOWS, CHANNELS
OF_ROWS, OF_X = (
    OURS.layer_norm_by_level(ROWS, LEVELS, CHANNELS, CHANNELS, 1e-6, FP32)[1],
    OURS.layer_norm(X, *CHANNELS, 1e-6, FP32)[1],
)
"""Statistics of norms."""
HEADS = r(2, 5, 24), r(2, 2), r(2, 2), r(2)
CASES: dict[str, tuple[Any, ...]] = {
    "layer_norm": (X, *CHANNELS, 1e-6, BF16),
    "add_layer_norm": (X, X.bfloat16(), r(2), r(8), *CHANNELS, 1e-6, BF16),
    "layer_norm_backward": (X.bfloat16(), None, X, OF_X, r(8)),
    "add_layer_norm_backward": (X.bfloat16(), X, X, OF_X, r(8), r(2), BF16),
    "layer_norm_by_level": (ROWS, LEVELS, CHANNELS, CHANNELS, 1e-6, FP32),
    "add_layer_norm_by_level": (ROWS, ROWS.bfloat16(), r(10), LEVELS, CHANNELS, CHANNELS, 1e-6, BF16),
    "layer_norm_by_level_backward": (ROWS, ROWS, ROWS, OF_ROWS, LEVELS, CHANNELS),
    "add_layer_norm_by_level_backward": (ROWS, ROWS, ROWS, OF_ROWS, r(10), LEVELS, CHANNELS, BF16),
    "factorized_attend": (*QUERIES, 2, 2),
    "factorized_attend_backward": (*QUERIES, *OURS.factorized_attend(*QUERIES, 2, 2)[1:], r(12, 8)),
    "scale_backward": (X, X.bfloat16(), r(2), r(8)),
    "gelu_backward_": (r(5, 8), r(5, 8)),
    "depthwise_backward": (GRID, GRID, WINDOWS[:1], CHANNELS[:1], True, False),
    "depthwise_gelu_slopes": (GRID, GRID, WINDOWS[0], r(8)),
    "depthwise_transposed": (GRID, WINDOWS[0]),
    "depthwise_of_rows": (r(20, 8), *GRIDS),
    "depthwise_of_rows_backward": (r(20, 8), r(20, 8), *GRIDS),
    "mixed_heads": (*HEADS, 2),
    "mixed_heads_backward": (r(2, 5, 8), *HEADS, 2),
}


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="this PyTorch checks no operators")
@pytest.mark.parametrize("name", CASES)
def test_an_operator_writes_what_it_says_and_has_the_shapes_that_fake_tensors_get(name: str) -> None:
    torch.library.opcheck(getattr(OURS, name).default, CASES[name], test_utils=("test_schema", "test_faketensor"))
