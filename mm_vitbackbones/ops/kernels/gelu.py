"""GELU's gradient, the activation again, and the gradient of the bias before it, in one pass.

Rows are tokens, columns channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.ops.kernels.registration import kernel, operator


def _reference(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    grad.copy_(torch.ops.aten.gelu_backward(grad, hidden))
    return F.gelu(hidden), grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))


gelu_backward_ = operator(
    "gelu_backward_(Tensor(a!) grad, Tensor hidden) -> (Tensor, Tensor)", _reference, kernel("gelu", "backward_")
)
"""Writes ``grad * gelu'(hidden)`` into ``grad``, a contiguous matrix (rows, C), and gives ``(gelu(hidden), column sums
of the gradient)``; the sums are in fp32. The activation is computed again here, and so need not be kept."""
