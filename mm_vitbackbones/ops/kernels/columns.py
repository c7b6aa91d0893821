"""Sums of columns, alone and together with GELU's gradient: what the gradients of biases are.

PyTorch's reduction over the rows of a matrix of many rows and few columns takes several times what reading it takes.
Rows are tokens, columns channels; sums are in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops.kernels.registration import operator


def _reference(matrix: Tensor) -> Tensor:
    return matrix.sum(0, dtype=torch.promote_types(matrix.dtype, torch.float32))


def _reference_gelu_backward(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad = torch.ops.aten.gelu_backward(grad, hidden)
    return grad, F.gelu(hidden), _reference(grad)


def _launch(matrix: Tensor) -> Tensor:
    from mm_vitbackbones.ops.kernels.triton import columns

    return columns.sums(matrix)


def _launch_gelu_backward(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from mm_vitbackbones.ops.kernels.triton import columns

    return columns.gelu_backward(grad, hidden)


column_sums = operator("column_sums(Tensor matrix) -> Tensor", _reference, _launch)
"""(rows, C) -> (C,)."""

gelu_backward = operator(
    "gelu_backward(Tensor grad, Tensor hidden) -> (Tensor, Tensor, Tensor)",
    _reference_gelu_backward,
    _launch_gelu_backward,
)
"""``(grad * gelu'(hidden), gelu(hidden), column sums of the first)``, of matrices (rows, C). The activation is computed
again here, in the same pass, and so need not be kept."""
