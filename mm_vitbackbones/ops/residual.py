"""The sum of a grid and the result of a branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import context, depthwise, feed_forward, norm, onednn, sublayer
from mm_vitbackbones.ops.chained import Pending, finished
from mm_vitbackbones.ops.sublayer import add_scaled

BAND_BYTES = 8 * 2**20
"""The size of a band's widest tensor on a CPU: it fits into the caches, and the halo rows cost little."""


class Reach:
    """How far a function of a grid looks, and how wide its widest tensor is.

    Args:
        rows: on each side of a row, that its result depends on; 0: each token is mapped alone.
        width: channels of the widest tensor inside.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width


def add(
    x: Tensor, branch: Callable[[Tensor], Tensor], parts: Sequence[nn.Module], reach: Reach | None = None
) -> Tensor:
    """``x + branch(x)``.

    In inference on a CPU, if nothing observes what the parts of the branch compute, the sum is written into the
    branch's result; and in fp32 a branch with a ``reach`` is computed in bands that fit into the caches.

    Args:
        x: a grid (B, H, W, C), or tokens (B, N, C).
        branch: keeps the shape.
        parts: the modules that the branch calls.
        reach: how far the branch looks; None: as far as ``x`` goes.
    """
    if not may_write_into(x, parts):
        return x + branch(x)
    with context.unobserved(x):
        if reach is not None and (bands := _bands(x, reach)) > 1 and onednn.usable(x):
            return _add_in_bands(x, branch, reach, bands)
        return add_into(branch(x), x)


class BranchOf(Protocol):
    """What ``add_branches`` needs of ``layers.Branch``: x + drop_path(layer_scale(function(norm(x))))."""

    @property
    def norm(self) -> nn.Module: ...

    @property
    def drop_path(self) -> Any: ...

    @property
    def layer_scale(self) -> nn.Module | None: ...

    @property
    def scale(self) -> Tensor | None: ...

    @property
    def feed_forward(self) -> feed_forward.Parts | None: ...

    def begun(self, x: Tensor) -> tuple[Tensor, Tensor | Pending]: ...

    def begun_after(
        self, x: Tensor, result: Tensor, factor: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor | Pending]: ...

    def call(self, normed: Tensor) -> Tensor: ...

    def add_to(self, x: Tensor) -> Tensor: ...


def add_branches(x: Tensor, branches: Sequence[BranchOf], lightly: Callable[..., Any]) -> Tensor:
    """``x + branch(x)`` of each branch, one after the other.

    On CUDA a sum and the norm that follows it are one pass over memory, if nothing observes what lies between them.

    Args:
        branches: attention first.
        lightly: ``Recomputable.lightly``, by which on CUDA all branches but attention are computed.
    """
    first, *others = branches
    if not norm.is_for(x) or not all(map(_fuses, branches)):
        if not context.is_eager_on_cuda(x):
            for branch in branches:
                x = branch.add_to(x)
            return x
        x = _added(x, first)
        for branch in others:
            x = lightly(partial(_added, branch=branch), x)
        return x
    x, result = first.begun(x)
    factor, scale = first.drop_path.factor(x), first.scale
    for branch in others:
        following = branch.drop_path.factor(x), branch.scale
        if branch is others[-1] and (network := sublayer.of(x, branch, *following)) is not None:
            return lightly(network, x, result, factor, scale)
        x, result = lightly(branch.begun_after, x, finished(result), factor, scale)
        factor, scale = following
    return add_scaled(x, finished(result), factor, scale)


def _added(x: Tensor, branch: BranchOf) -> Tensor:
    """``branch.add_to(x)``, whose factors and sum are one pass where nothing is attached to them."""
    if not _fuses(branch):
        return branch.add_to(x)
    result = branch.call(norm.for_linear(x, branch.norm))
    return add_scaled(x, result, branch.drop_path.factor(x), branch.scale)


def _fuses(branch: BranchOf) -> bool:
    drop_path = branch.drop_path
    plain = hasattr(drop_path, "factor") and (not isinstance(drop_path, nn.Module) or context.is_plain(drop_path))
    scales = branch.layer_scale is None or context.is_plain(branch.layer_scale)
    return plain and scales and norm.is_over_channels(branch.norm)


def add_conv(grid: Tensor, conv: nn.Module) -> Tensor:
    """``grid + conv(grid)`` of a convolution over grids (B, H, W, C) that keeps the size."""
    return depthwise.run(grid, [conv], add=True) if depthwise.serves(grid, [conv]) else add(grid, conv, [conv])


Pair = tuple[Tensor, Tensor]


def add_both(pair: Pair, branch: Callable[[Pair], Pair], parts: Sequence[nn.Module]) -> Pair:
    """``add`` of two tensors, such as a class token and a grid, that one branch takes together."""
    if not may_write_into(pair[1], parts):
        results = branch(pair)
        return pair[0] + results[0], pair[1] + results[1]
    with context.unobserved(*pair):
        results = branch(pair)
    return add_into(results[0], pair[0]), add_into(results[1], pair[1])


def branch_of_both(pair: Pair, branch: Callable[[Pair], Pair], parts: Sequence[nn.Module]) -> Pair:
    """``branch(pair)``, in as little memory as ``add_both``."""
    if not may_write_into(pair[1], parts):
        return branch(pair)
    with context.unobserved(*pair):
        return branch(pair)


def add_fresh(x: Tensor, result: Tensor) -> Tensor:
    """``x + result``, of a tensor that was computed for this sum alone."""
    return add_into(result, x) if may_write_into(x, ()) else x + result


def may_write_into(x: Tensor, parts: Sequence[nn.Module]) -> bool:
    """Whether the result of these modules may be overwritten: in inference, on a CPU, where a new tensor costs page
    faults, if nothing observes it."""
    if torch.is_grad_enabled() or context.device_type(x) != "cpu" or not context.is_eager():
        return False
    return all(map(context.is_plain_tree, parts))


def add_into(result: Tensor, x: Tensor) -> Tensor:
    """``x + result``, written into ``result`` where it is a tensor of the same type with memory of its own."""
    shares = result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return x + result if shares or result.dtype != x.dtype else result.add_(x)


def _bands(x: Tensor, reach: Reach) -> int:
    """How many bands the widest tensor is cut into."""
    return math.ceil(x.numel() // x.shape[-1] * reach.width * x.element_size() / BAND_BYTES)


def _add_in_bands(x: Tensor, branch: Callable[[Tensor], Tensor], reach: Reach, bands: int) -> Tensor:
    """``x + branch(x)``, a band at a time, so that the widest tensor never leaves the caches."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if reach.rows == 0:
        tokens, results = x.flatten(0, -2), out.flatten(0, -2)
        size = math.ceil(len(tokens) / bands)
        for band, result in zip(tokens.split(size), results.split(size), strict=True):
            torch.add(band, branch(band), out=result)
        return out
    # A band has extra rows on each side, which are computed and dropped. At the border of the grid there are none:
    # there the branch pads with zeros, as it does in the whole grid.
    batch, height, _, _ = x.shape
    size = math.ceil(height / math.ceil(bands / batch))
    for image, result in zip(x.split(1), out.split(1), strict=True):
        for top in range(0, height, size):
            bottom = min(top + size, height)
            first, last = max(top - reach.rows, 0), min(bottom + reach.rows, height)
            band = branch(image[:, first:last])[:, top - first : bottom - first]
            torch.add(image[:, top:bottom], band, out=result[:, top:bottom])
    return out
