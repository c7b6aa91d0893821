"""Levels that attend by themselves and are then added to each other, each resized to the others' grids (CoaT, section
3.3).

On a CPU each level is a pair of class tokens and a grid. On CUDA the rows of all levels (``joint.Rows``) lie one after
the other in one tensor: what follows the exchange is a map of each token alone, the same for all levels, and functions
of several levels cost the host no more than those of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import context, joint, norm, residual
from mm_vitbackbones.ops.joint import Pair, Rows, Shape, Tokens
from mm_vitbackbones.ops.kernels import norm as kernels
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.kernels.depthwise import grid_of
from mm_vitbackbones.ops.once import direct, once_differentiable, typed
from mm_vitbackbones.ops.resize import resized_sum


class LevelRows(NamedTuple):
    """The rows of some levels, one after the other, (R, C)."""

    rows: Tensor
    shapes: dict[int, Shape]
    """B, H and W of each level."""

    @property
    def flat_shapes(self) -> list[int]:
        return [size for shape in self.shapes.values() for size in shape]

    @property
    def sizes(self) -> list[int]:
        """The rows of each level."""
        return [batch * (height * width + 1) for batch, height, width in self.shapes.values()]

    def parts(self) -> dict[int, Rows]:
        """Each level."""
        rows = torch.unsafe_split_with_sizes(self.rows, self.sizes)
        return {level: Rows(part, shape) for part, (level, shape) in zip(rows, self.shapes.items(), strict=True)}


Levels = Mapping[int, Tokens] | LevelRows


def join(levels: Mapping[int, Pair], blocks: nn.Module, shared: Mapping[int, joint.Shared]) -> Levels:
    """Levels in the form that is the fastest for some blocks; see ``joint.join``."""
    served = all(joint.makes_rows(*pair, shared[level]) for level, pair in levels.items())
    one_type = len({grid.dtype for _, grid in levels.values()}) == 1
    if not served or not one_type or not joint.take_rows(blocks, [*shared.values()]):
        return levels
    if not context.is_eager():  # functions of several levels are for eager mode
        return {level: joint.rows_of(*pair) for level, pair in levels.items()}
    flat = [x.flatten(0, 2) for cls, grid in levels.values() for x in (grid, cls)]
    shapes = {level: cast(Shape, tuple(grid.shape[:3])) for level, (_, grid) in levels.items()}
    return LevelRows(torch.cat(flat), shapes)


def in_graph(function: Callable[[Any], Any], tokens: Any, block: nn.Module, shared: Any) -> Any:
    """``function(tokens)`` of a block, of levels or of one stage. The graph of a single block gets pairs and gives
    them. Within it, tokens are in the form that ``join`` chooses."""
    if context.is_eager():
        return function(tokens)
    by_level = isinstance(tokens, Mapping)
    parts = tokens.values() if by_level else [tokens]
    if any(isinstance(part, (Rows, LevelRows)) for part in parts):
        return function(tokens)
    if by_level:
        return pairs(function(join(tokens, block, shared)))
    cls, grid = tokens
    return joint.pair(function(joint.join(cls, grid, block, shared)))


def pairs(levels: Levels) -> Mapping[int, Pair]:
    """Each level as a pair."""
    by_level = levels.parts() if isinstance(levels, LevelRows) else levels
    return {level: joint.pair(tokens) for level, tokens in by_level.items()}


def samples(tokens: Levels | Tokens) -> Tensor:
    """A tensor with one entry for each image."""
    if isinstance(tokens, Rows):
        return tokens.rows[: tokens.shape[0]]
    if isinstance(tokens, LevelRows):
        return tokens.rows[: next(iter(tokens.shapes.values()))[0]]
    return tokens[0] if isinstance(tokens, tuple) else samples(next(iter(tokens.values())))


def add_convs(levels: Levels, positions: Mapping[int, Any]) -> Levels:
    """``joint.add_conv`` of each level, by a module of its own."""
    if isinstance(levels, LevelRows):
        convs = [positions[level].conv for level in levels.shapes]
        return LevelRows(joint.add_convs(levels.rows, levels.flat_shapes, convs), levels.shapes)
    return {level: joint.add_conv(tokens, positions[level]) for level, tokens in levels.items()}


def add_branches(
    levels: Levels,
    attns: Mapping[int, Any],
    ffns: Mapping[int, Any],
    parts: Mapping[int, Sequence[nn.Module]],
    lightly: Callable[..., Any],
) -> Levels:
    """x + the attention of all levels, resized to the grid of x; then x + ffn(x).

    Args:
        attns: for each level a ``layers.Branch`` whose function takes and gives ``Tokens``.
        ffns: for each level of the result another one, of each token alone, all with the same function.
        parts: the modules that the functions of ``attns`` call.
        lightly: ``Recomputable.lightly``.
    """
    if isinstance(levels, LevelRows) and _are_together(levels, attns, ffns):
        return _add_to_rows(levels, attns, ffns, lightly)
    tokens_of = levels.parts() if isinstance(levels, LevelRows) else levels
    attended: dict[int, Pair] = {}
    for level, tokens in tokens_of.items():
        attn = attns[level]
        attended[level] = joint.pair(joint.branch_of(tokens, attn.norm, attn.function, [attn.norm, *parts[level]]))
    cls, grids = zip(*attended.values(), strict=True)
    results: dict[int, Tokens] = {}
    for level, ffn in ffns.items():
        height, width = attended[level][1].shape[1:3]
        branches = torch.stack(cls).sum(0), resized_sum(grids, height, width)
        x = joint.add_fresh(tokens_of[level], *branches, attns[level].drop_path)
        results[level] = joint.add_branch(x, ffn, lightly)
    return results


# ---- on CUDA


def _are_together(levels: LevelRows, attns: Mapping[int, Any], ffns: Mapping[int, Any]) -> bool:
    """Whether ``_add_to_rows`` is the form: with plain norms of one epsilon, and where all levels go on."""
    norms = [branch.norm for branches in (attns, ffns) for branch in branches.values()]
    if not all(map(norm.is_over_channels, norms)) or len({each.eps for each in norms}) > 1:
        return False
    # Where gradients are to repeat, PyTorch has another resize than the one here.
    if [*ffns] != [*levels.shapes] or context.is_to_repeat(levels.rows):
        return False
    # Where kernels run, they take no fp64.
    return norm.is_for(levels.rows) or not registration.usable(levels.rows)


def _add_to_rows(
    levels: LevelRows, attns: Mapping[int, Any], ffns: Mapping[int, Any], lightly: Callable[..., Any]
) -> LevelRows:
    rows, shapes, sizes = *levels, levels.sizes
    dtype = context.autocast_dtype(rows.device) or norm.parameters_of(attns[next(iter(shapes))].norm)[0].dtype
    weights, biases, eps = _parameters_of(attns)
    if torch.is_grad_enabled():
        rows, normed = _norm_by_level(rows, sizes, eps, dtype, *weights, *biases)
    else:
        normed, _ = kernels.layer_norm_by_level(rows, sizes, weights, biases, eps, dtype)
    branches = [attns[level].function(part).rows for level, part in LevelRows(normed, shapes).parts().items()]
    factor = _factor(levels, attns)
    weights, biases, eps = _parameters_of(ffns)
    function = next(iter(ffns.values())).function

    def mapped(rows: Tensor, *branches: Tensor) -> tuple[Tensor, Tensor]:
        arguments: Any = rows, factor, [*shapes.values()], sizes, eps, dtype, *branches, *weights, *biases
        total, normed = _exchanged(*arguments) if torch.is_grad_enabled() else _exchange_and_norm(*arguments)[:2]
        return total, function(normed)

    total, result = lightly(mapped, rows, *branches)
    return LevelRows(residual.add_scaled(total, result, _factor(levels, ffns)), shapes)


def _parameters_of(branches: Mapping[int, Any]) -> tuple[list[Tensor], list[Tensor], float]:
    """The weights, the biases and the one epsilon of their norms."""
    weights, biases, eps = zip(*[norm.parameters_of(branch.norm) for branch in branches.values()], strict=True)
    return [*weights], [*biases], eps[0]


def _factor(levels: LevelRows, branches: Mapping[int, Any]) -> Tensor | None:
    """What one draw for each level multiplies its rows by, (R,), or None for 1."""
    factors = [branch.drop_path.factor(levels.rows) for branch in branches.values()]  # all of the same rate
    if factors[0] is None:
        return None
    return torch.cat([rows.per_row(factor) for rows, factor in zip(levels.parts().values(), factors, strict=True)])


def _resized(grid: Tensor, shape: Shape) -> Tensor:
    """A grid, bilinear, in a grid of this shape: (B, *, *, C) -> (B, H, W, C)."""
    maps = torch._C._nn.upsample_bilinear2d(grid.permute(0, 3, 1, 2), shape[1:], False, None)
    return maps.permute(0, 2, 3, 1)


def _resized_backward(grad: Tensor, shape: Shape) -> Tensor:
    """The transpose of ``_resized`` from a grid of this shape."""
    batch, height, width = shape
    sizes = [batch, grad.shape[3], height, width]
    maps = _upsample_backward(grad.permute(0, 3, 1, 2), grad.shape[1:3], sizes, False)
    return maps.permute(0, 2, 3, 1)


_upsample_backward = torch.ops.aten.upsample_bilinear2d_backward.default


def _exchange(parts: Sequence[Tensor], shapes: Sequence[Shape], resize: Callable[[Tensor, Shape], Tensor]) -> Tensor:
    """For each level the sum of the rows of all levels, whose grids are resized: the rows of all levels (R, C)."""
    batch, grids = shapes[0][0], [*map(grid_of, parts, shapes)]
    out = parts[0].new_empty(sum(map(len, parts)), parts[0].shape[1])
    tokens, *others = [part[-batch:] for part in parts]
    for more in others:
        tokens = tokens + more
    last = 0
    for i, shape in enumerate(shapes):
        first, last = last, last + len(parts[i])
        result, total = grid_of(out, shape, first), grids[i]
        for grid in grids:
            if grid is not grids[i]:
                resized = grid if grid.shape == result.shape else resize(grid, shape)
                total = torch.add(total, resized, out=result)
        out[last - batch : last].copy_(tokens)
    return out


def _exchange_and_norm(
    rows: Tensor,
    factor: Tensor | None,
    shapes: Sequence[Shape],
    sizes: Sequence[int],
    eps: float,
    dtype: torch.dtype,
    *tensors: Tensor,
) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """The sum, its norm, what the norm's gradient needs, and the type of the branches."""
    count = len(shapes)
    branches, weights, biases = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
    with context.autocast_to(rows.device, None):
        branch = _exchange(branches, shapes, _resized)
    return *kernels.add_layer_norm_by_level(rows, branch, factor, sizes, weights, biases, eps, dtype), branch.dtype


class _Exchanged(torch.autograd.Function):
    """Rows and the results of all levels -> the sum, and its norm."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        factor: Tensor | None,
        shapes: Sequence[Shape],
        sizes: Sequence[int],
        eps: float,
        dtype: torch.dtype,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        total, normed, statistics, of_branch = _exchange_and_norm(rows, factor, shapes, sizes, eps, dtype, *tensors)
        ctx.options = shapes, sizes, rows.dtype, of_branch
        ctx.save_for_backward(total, statistics, factor, *tensors[len(shapes) : 2 * len(shapes)])
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad: Tensor | None) -> Any:
        shapes, sizes, dtype, of_branch = ctx.options
        total, statistics, factor, *weights = ctx.saved_tensors
        if grad is None:  # nothing has used the norm
            grad = torch.zeros_like(total)
        of_rows, of_sum, of_weights, of_biases = kernels.add_layer_norm_by_level_backward(
            grad, grad_total, total, statistics, factor, sizes, weights, of_branch
        )
        with context.autocast_to(total.device, None):
            of_parts = _exchange(of_sum.split_with_sizes(sizes), shapes, _resized_backward)
        of_norms = [typed(x, weights[0].dtype) for x in (*of_weights, *of_biases)]
        return typed(of_rows, dtype), *(None,) * 5, *of_parts.split_with_sizes(sizes), *of_norms


class _NormByLevel(torch.autograd.Function):
    """Rows -> rows, and their norms."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sizes: Sequence[int], eps: float, dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights, biases = parameters[: len(sizes)], parameters[len(sizes) :]
        normed, statistics = kernels.layer_norm_by_level(rows, sizes, weights, biases, eps, dtype)
        ctx.save_for_backward(rows, statistics, *weights)
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        return rows, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor | None, grad: Tensor | None) -> Any:
        rows, statistics, *weights = ctx.saved_tensors
        if grad is None:
            return grad_rows, *(None,) * (3 + 2 * len(weights))
        of_rows, of_weights, of_biases = kernels.layer_norm_by_level_backward(
            grad, grad_rows, rows, statistics, ctx.sizes, weights
        )
        return of_rows, None, None, None, *[typed(x, weights[0].dtype) for x in (*of_weights, *of_biases)]


_exchanged, _norm_by_level = direct(_Exchanged), direct(_NormByLevel)
