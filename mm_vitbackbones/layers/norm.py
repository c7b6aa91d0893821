from __future__ import annotations

from torch import Tensor, nn

from mm_vitbackbones.ops import context, memory, norm


@context.plain
class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm``, in fp32 under autocast: its input, computation and result."""

    def forward(self, input: Tensor) -> Tensor:
        return norm.layer_norm(input, self.weight, self.bias, self.eps)


def batch_norm(grid: Tensor, norm: nn.Module) -> Tensor:
    """A batch norm of maps, such as ``nn.BatchNorm2d`` or what a conversion to synchronised norms puts in its place, of
    a grid (B, H, W, C). What is computed again counts its batch once."""
    maps, counts = grid.permute(0, 3, 1, 2), getattr(norm, "track_running_stats", False)
    if not (counts and memory.is_again()):
        return norm(maps).permute(0, 2, 3, 1)
    norm.track_running_stats = not norm.training
    try:
        return norm(maps).permute(0, 2, 3, 1)
    finally:
        norm.track_running_stats = counts


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
