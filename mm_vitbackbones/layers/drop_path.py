from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mm_vitbackbones.ops import context
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

    def draws(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """What draws for several branches of the samples of ``x`` multiply them by, each (B,), in one pass. Empty where
        nothing is dropped, and where somebody observes the calls of this module: the branches then call it.
        """
        if not self.training or self.rate == 0.0 or not context.is_plain(self):
            return ()
        keep = 1.0 - self.rate
        return x.new_empty((count, x.shape[0])).bernoulli_(keep).div_(keep).unbind()

    def of(self, tokens: Tokens) -> DropPath:
        """What drops the samples of these tokens."""
        return DropPathOfRows(self, tokens) if isinstance(tokens, Rows) and self.training and self.rate else self

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Drawn:
    """One draw of a ``DropPath``: what it multiplies the branch of each sample by, (B,)."""

    def __init__(self, factor: Tensor) -> None:
        self.drawn = factor

    def __call__(self, branch: Tensor) -> Tensor:
        return branch * self.drawn.to(branch.dtype).view(-1, *(1,) * (branch.dim() - 1))

    def factor(self, x: Tensor) -> Tensor:
        """See ``DropPath.factor``."""
        return self.drawn

    def draw(self, x: Tensor) -> Drawn:
        """See ``DropPath.draw``."""
        return self

    def of(self, tokens: Tokens) -> Drawn:
        """See ``DropPath.of``."""
        return Drawn(tokens.per_row(self.drawn)) if isinstance(tokens, Rows) else self


@context.plain
class DropPathOfRows(DropPath):
    """``DropPath`` of the tokens and the class token of each image, in ``Rows``."""

    def __init__(self, drop_path: DropPath, tokens: Rows) -> None:
        super().__init__(drop_path.rate)
        self.tokens = tokens

    def factor(self, x: Tensor) -> Tensor | None:
        factor = super().factor(x[: self.tokens.shape[0]])
        return None if factor is None else self.tokens.per_row(factor)


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
