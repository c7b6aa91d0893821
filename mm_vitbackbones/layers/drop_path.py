from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mm_vitbackbones.ops import context, joint
from mm_vitbackbones.ops.joint import Rows, Tokens


@context.plain
class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per sample with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        check_drop_path_rate(rate)
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        return self.draw(branch)(branch)

    def factor(self, x: Tensor) -> Tensor | None:
        """What one draw multiplies the branch of each sample by: (B,), or None for 1."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        return x.new_empty(len(x)).bernoulli_(keep).div_(keep)

    def draw(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """One draw for all tensors with the samples and the number of dimensions of ``x``; returns what drops them."""
        factor = self.factor(x)
        return _keep if factor is None else factor.view(-1, *(1,) * (x.dim() - 1)).mul

    def draw_for(self, tokens: Tokens) -> Callable[[Tensor], Tensor]:
        """One draw for class tokens and a grid, which hold the same samples."""
        if not isinstance(tokens, Rows):
            return self.draw(tokens[1])
        if not self.training or self.rate == 0.0:
            return _keep
        return tokens.per_row(self(tokens.rows.new_ones(tokens.shape[0]))).mul

    def both(self, tokens: Tokens) -> Tokens:
        """Drops branches of class tokens and of a grid, by one draw."""
        return joint.every(self.draw_for(tokens), tokens)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def _keep(branch: Tensor) -> Tensor:
    return branch


def check_drop_path_rate(rate: float) -> None:
    """ValueError if it is no valid rate."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path_rate={rate!r}: give a probability of at least 0 and below 1")


def drop_path_rates(rate: float, depths: tuple[int, ...], last: bool = True) -> list[list[float]]:
    """A rate that grows linearly from 0 over all n blocks, as one list per stage.

    Args:
        rate: of the last block, which gets ``rate * i / (n - 1)`` for i = n - 1 (PVT, PVTv2, Swin, MiT). Without
            ``last``, block i gets ``rate * i / n``, and no block has the full rate (PiT).
    """
    check_drop_path_rate(rate)
    total = sum(depths)
    flat = iter(rate * i / max(total - 1 if last else total, 1) for i in range(total))
    return [[next(flat) for _ in range(depth)] for depth in depths]
