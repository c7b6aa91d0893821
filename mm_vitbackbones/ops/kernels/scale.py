"""The gradients of ``factor * scale * branch``, with factors of samples and of channels, in one pass over memory.

The sum over all tokens, which is the gradient of ``scale``, would be passes of its own: a product and its reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_vitbackbones.ops.kernels.registration import kernel, operator


def _reference(grad: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(grad.dtype, torch.float32)
    both = scale if factor is None else factor.view(-1, *(1,) * (grad.dim() - 1)) * scale
    of_branch = torch.mul(grad, both, out=torch.empty_like(branch))
    of_samples = (grad.to(wide) * branch).unsqueeze(1).flatten(1, -2).sum(1)
    return of_branch, (of_samples if factor is None else of_samples * factor.unsqueeze(1)).sum(0)


scale_backward = operator(
    "scale_backward(Tensor grad, Tensor branch, Tensor? factor, Tensor scale) -> (Tensor, Tensor)",
    _reference,
    kernel("scale", "backward"),
)
"""``(grad_branch, grad_scale)`` of a branch (..., C) whose samples have one ``factor`` each, (B,), or none, and whose
channels have a ``scale`` each, (C,). ``grad_branch`` has the type of the branch, ``grad_scale`` fp32."""
