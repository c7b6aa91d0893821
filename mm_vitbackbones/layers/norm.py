from __future__ import annotations

from torch import Tensor, nn

from mm_vitbackbones.ops import context, norm


@context.plain
class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm``, in fp32 under autocast: its input, computation and result."""

    def forward(self, input: Tensor) -> Tensor:
        return norm.layer_norm(input, self.weight, self.bias, self.eps)


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
