"""GELU's gradient, the activation again, and the gradient of the bias before it, in one pass.

Rows are tokens, columns channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops.kernels.registration import in_graphs, kernel, operator


def _reference(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    torch.ops.aten.gelu_backward.grad_input(grad, hidden, grad_input=grad)
    return F.gelu(hidden), grad.sum(0, dtype=_wide(grad))


def _reference_of_graphs(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    of_hidden = torch.ops.aten.gelu_backward(grad, hidden).contiguous()
    return of_hidden, of_hidden.sum(0, dtype=_wide(grad))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


gelu_backward_ = operator(
    "gelu_backward_(Tensor(a!) grad, Tensor hidden) -> (Tensor, Tensor)", _reference, kernel("gelu", "backward_")
)
"""Writes ``grad * gelu'(hidden)`` into ``grad``, a contiguous matrix (rows, C), and gives ``(gelu(hidden), column sums
of the gradient)``; the sums are in fp32. The activation is computed again here, and so need not be kept."""

gelu_backward = operator(
    "gelu_backward(Tensor grad, Tensor hidden) -> (Tensor, Tensor)", _reference_of_graphs, kernel("gelu", "backward")
)
"""``(grad * gelu'(hidden), its column sums)``, of matrices (rows, C); the sums are in fp32. For compiled graphs, which
keep the activation: PyTorch's compiler makes the sums in a pass of their own."""

in_graphs(
    "gelu_backward",
    lambda grad, hidden: (hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape[1], dtype=_wide(hidden))),
)
