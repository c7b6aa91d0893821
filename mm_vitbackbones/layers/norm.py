from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context


@context.plain
class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm``, in fp32 under autocast: its input, computation and result.

    That is autocast's rule on CUDA. On a CPU there is none, and everything after a norm, that is, the whole residual
    stream, would be bf16: gradients of norms would be wrong by a tenth, and a network would learn visibly less.
    """

    def forward(self, input: Tensor) -> Tensor:
        if context.autocast_dtype(input.device) is None:
            return super().forward(input)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Sets the epsilon of every ``LayerNorm`` in a module.

    Raises:
        ValueError: if it is not positive.
    """
    if not eps > 0:
        raise ValueError(f"norm_eps={eps!r}: give a small positive number, such as 1e-6")
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = eps
