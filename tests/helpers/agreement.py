"""How far networks are from each other: their maps, and the gradients of their images and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from helpers.toys import TOYS
from mm_vitbackbones.backbones import Backbone


def build(toy: str, **arguments: object) -> Backbone:
    torch.manual_seed(0)
    return TOYS[toy](**{"drop_path_rate": 0.0} | arguments)


def image(height: int = 75, width: int = 101) -> Tensor:
    """Two. Their sides are odd: no grid fills its patches or windows."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def autocast(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(x.device.type, dtype)


@contextmanager
def deterministic() -> Iterator[None]:
    """Within it, PyTorch's operators are to give the same in each run."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def infer(network: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    with torch.no_grad(), autocast(x, dtype):
        return [*network.eval()(x)]


def gradients(network: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Of ``loss_of`` the maps: of the image, then of the parameters. Each call drops the same paths."""
    torch.manual_seed(2)
    x = x.clone().requires_grad_()
    network.train().zero_grad(set_to_none=True)
    with autocast(x, dtype):
        maps = network(x)
    loss_of(maps).backward()
    return [x.grad, *(p.grad for p in network.parameters())]


def loss_of(maps: Sequence[Tensor]) -> Tensor:
    """It treats no two numbers alike."""
    return sum((m.float().flatten() * torch.linspace(-1, 1, m.numel(), device=m.device)).sum() for m in maps)


def error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative distance of two maps."""
    pairs = [(a.float().cpu(), e.float().cpu()) for a, e in zip(actual, expected, strict=True)]
    return max(float((a - e).norm() / e.norm()) for a, e in pairs)


def gradient_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The same of gradients. One that is nearly zero, as of the bias of keys, may differ by a part of all of them."""
    pairs = [(a.double().cpu(), e.double().cpu()) for a, e in zip(actual, expected, strict=True)]
    whole = float(torch.stack([e.norm() for _, e in pairs[1:]]).norm())
    floors = [0.0, *(0.01 * whole for _ in pairs[1:])]  # the image's gradient, then those of parameters
    return max(float((a - e).norm()) / (float(e.norm()) + floor) for (a, e), floor in zip(pairs, floors, strict=True))
