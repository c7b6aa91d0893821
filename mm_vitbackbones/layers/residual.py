from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        return self.alike(branch)[0]

    def alike(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The parts of one branch, which hold the same samples in as many dimensions: dropped together or not."""
        if not self.training or self.rate == 0.0:
            return parts
        keep = 1.0 - self.rate
        mask = parts[0].new_empty((parts[0].shape[0],) + (1,) * (parts[0].dim() - 1)).bernoulli_(keep).div_(keep)
        return tuple(part * mask for part in parts)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def check_drop_path_rate(rate: float) -> None:
    """ValueError if it is no rate to drop at."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path_rate={rate!r}: give a probability of at least 0 and below 1")


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """The linear schedule 0..``rate`` over all blocks, as one list per stage (PVT, PVTv2, Swin, MiT)."""
    check_drop_path_rate(rate)
    total = sum(depths)
    flat = iter(rate * i / max(total - 1, 1) for i in range(total))
    return [[next(flat) for _ in range(depth)] for depth in depths]


def add_residual(grid: Tensor, branch: Tensor) -> Tensor:
    """``grid + branch``. Without autograd the sum is written into ``branch``, which must be a fresh tensor."""
    # A fresh map costs page faults on CPU. Promotion (an fp32 grid, a bf16 branch) needs the new tensor.
    if torch.is_grad_enabled() or branch.dtype != grid.dtype:
        return grid + branch
    return branch.add_(grid)
