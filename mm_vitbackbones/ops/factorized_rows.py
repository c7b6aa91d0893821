"""Factorised attention of rows, with the linear maps around it, as one function in eager mode on CUDA: each function
costs the host of a GPU as much as several launches. See ``ops.factorized``.

B images, N tokens of a grid, C channels, h heads, d = C / h channels of a head. Rows (B * N + B, C) are those of
``joint.Rows``: all grids, then all class tokens.

What lies between the maps has two forms. With kernels, it is the operators of ``kernels/factorized.py``, which compute
in fp32. Without, it is products of PyTorch in the type of the maps, which want all tokens of an image together: rows
are put in order image by image, where there are several, when they are cast anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.ops import context, depthwise, linear, narrow
from mm_vitbackbones.ops.conv import Windows
from mm_vitbackbones.ops.head_maps import join_heads, split_heads
from mm_vitbackbones.ops.joint import Rows, Shape
from mm_vitbackbones.ops.kernels import depthwise as conv_kernels
from mm_vitbackbones.ops.kernels import factorized as kernels
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


def attend(
    tokens: Rows,
    maps: Sequence[nn.Module],
    convs: Sequence[nn.Module],
    windows: Windows | None,
    num_heads: int,
    again: bool,
) -> Rows | None:
    """``factorized.attend_all``, see there. None where the linear maps are to be called."""
    found = linear.on_cuda(tokens.rows, *maps)
    if found is None or any(bias is None for bias in found[1:6:2]):
        return None
    *parameters, dtype = found
    form = WITHOUT_KERNELS
    # Where kernels run there are no windows. fp16 has no range for sums over tokens and for small shares.
    if windows is None or dtype == torch.float16:
        form, windows = WITH_KERNELS, depthwise.parameters_of(convs)
    parameters += [*windows[0], *windows[1]]
    options = form, tokens.shape, num_heads, dtype, len(windows[0])
    if torch.is_grad_enabled():
        return Rows(_attended(tokens.rows, again, options, *parameters), tokens.shape)
    return Rows(_computed(tokens.rows, options, parameters)[-1], tokens.shape)


Inputs = tuple[Tensor, Tensor, Shape, int, Sequence[Tensor], Sequence[Tensor]]
"""Queries with keys, values, the shape of the rows, heads, and the weights and the biases of the convolutions."""
Gradients = tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]
"""Of the queries with keys, the values, and the weights and the biases of the convolutions."""


class Form(NamedTuple):
    """How what lies between the maps is computed."""

    ordered: Callable[[Tensor, Shape, torch.dtype], Tensor] | None
    """Rows in a type, and in the order that the form wants; None where it wants them as they are."""
    mixed: Callable[[Inputs], tuple[Tensor, ...]]
    """What the last map takes, and what the gradient needs besides the inputs."""
    gradients: Callable[..., Gradients]
    """From the inputs, what the gradient needs, and the gradient of the first result."""
    restored: Callable[[Tensor, Shape, torch.dtype], Tensor] | None
    """The inverse of ``ordered``."""


Options = tuple[Form, Shape, int, torch.dtype, int]
"""The form, the shape of the rows, the heads, the type of the linear maps, and how many convolutions there are."""


def _computed(rows: Tensor, options: Options, parameters: Sequence[Tensor]) -> list[Tensor]:
    """What ``_Attended`` keeps, and the result.

    Args:
        parameters: weights and biases of the three linear maps, then the weights of the convolutions, then their
            biases, if they have some.
    """
    form, shape, num_heads, dtype, count = options
    to_query_key, bias1, to_value, bias2, project, bias3 = [narrow.of(x, dtype) for x in parameters[:6]]
    rows = typed(rows, dtype) if form.ordered is None else form.ordered(rows, shape, dtype)
    query_key, value = F.linear(rows, to_query_key, bias1), F.linear(rows, to_value, bias2)
    mixed = form.mixed((query_key, value, shape, num_heads, parameters[6 : 6 + count], parameters[6 + count :]))
    out = F.linear(mixed[0], project, bias3)
    out = out if form.restored is None else form.restored(out, shape, dtype)
    return [rows, query_key, value, to_query_key, to_value, project, *mixed, out]


class _Attended(torch.autograd.Function):
    """See ``attend``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, again: bool, options: Options, *parameters: Tensor) -> Tensor:
        *kept, out = _computed(rows, options, parameters)
        ctx.dtypes = [x.dtype for x in (rows, *parameters[:6])]
        ctx.options, ctx.end = options, len(parameters) - 6
        ctx.save_for_backward(*parameters[6:], *(kept[:6] if again else kept))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (form, shape, num_heads, dtype, count), saved = ctx.options, ctx.saved_tensors
        rows, query_key, value, to_query_key, to_value, project, *mixed = saved[ctx.end :]
        inputs = query_key, value, shape, num_heads, saved[:count], saved[count : ctx.end]
        out, *others = mixed or form.mixed(inputs)
        grad = grad if form.ordered is None else form.ordered(grad, shape, dtype)
        of_query_key, of_value, *of_convs = form.gradients(inputs, *others, torch.mm(grad, project))
        needed, dtypes = ctx.needs_input_grad, ctx.dtypes
        of_maps: list[Tensor | None] = []
        for i, (x, of_x) in enumerate(((rows, of_query_key), (rows, of_value), (out, grad))):
            of_maps += (
                linear.product(of_x.t(), x, dtypes[2 * i + 1]) if needed[2 * i + 3] else None,
                linear.column_sums(of_x, dtypes[2 * i + 2]) if needed[2 * i + 4] else None,
            )
        of_rows = None
        if needed[0]:
            of_rows = torch.mm(of_query_key, to_query_key).addmm_(of_value, to_value)
            of_rows = typed(of_rows, dtypes[0]) if form.restored is None else form.restored(of_rows, shape, dtypes[0])
        return of_rows, None, None, *of_maps, *of_convs[0], *of_convs[1]


_attended = direct(_Attended)


# ---- with kernels


def _mixed_by_kernels(inputs: Inputs) -> tuple[Tensor, ...]:
    """The result, the relative positions, the matrices and the log-sums."""
    query_key, value, shape, num_heads, weights, biases = inputs
    position = conv_kernels.depthwise(conv_kernels.grid_of(value, shape), weights, biases, False, False)
    position = position.view(-1, value.shape[1])
    out, *sums = kernels.attend(query_key, value, position, shape[0], num_heads)
    return out, position, *sums


def _gradients_by_kernels(
    inputs: Inputs, position: Tensor, matrices: Tensor, log_sum: Tensor, grad: Tensor
) -> Gradients:
    query_key, value, shape, _, weights, biases = inputs
    of_query_key, of_value, of_position = kernels.attend_backward(query_key, value, position, matrices, log_sum, grad)
    grid = conv_kernels.grid_of(value, shape)
    of_grid, of_weights, of_biases = conv_kernels.depthwise_backward(
        of_position.view(grid.shape), grid, weights, biases, False, False
    )
    conv_kernels.grid_of(of_value, shape).add_(of_grid)
    return of_query_key, of_value, of_weights, of_biases


WITH_KERNELS = Form(None, _mixed_by_kernels, _gradients_by_kernels, None)


# ---- without: the rows of each image, of which the last is its class token


def _by_image(rows: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Rows in the order of images, in a type."""
    batch = shape[0]
    if batch == 1:  # both orders are the same
        return typed(rows, dtype)
    out = torch.empty_like(rows, dtype=dtype)
    images = out.view(batch, -1, out.shape[1])
    images[:, :-1].copy_(rows[:-batch].view(batch, -1, out.shape[1]))
    images[:, -1].copy_(rows[-batch:])
    return out


def _by_kind(rows: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The inverse of ``_by_image``."""
    batch = shape[0]
    if batch == 1:
        return typed(rows, dtype)
    out = torch.empty_like(rows, dtype=dtype)
    images = rows.view(batch, -1, out.shape[1])
    out[:-batch].view(batch, -1, out.shape[1]).copy_(images[:, :-1])
    out[-batch:].copy_(images[:, -1])
    return out


def _grid_of(rows: Tensor, shape: Shape) -> Tensor:
    """The grids (B, H, W, C), a view."""
    return rows.view(shape[0], -1, rows.shape[1])[:, :-1].unflatten(1, shape[1:])


def _of_grids(heads: Tensor) -> Tensor:
    """The tokens of grids, without class tokens: (B, h, N + 1, d) -> (B, N, h, d), a view."""
    return heads[:, :, :-1].transpose(1, 2)


def _mixed(inputs: Inputs) -> tuple[Tensor, ...]:
    """softmax(k)' v / sqrt(d) = M, q M + q * position: the result, the relative positions (B, N, h, d), and M.

    The softmax and the products add up in fp32 whatever their types are.
    """
    query_key, value, shape, num_heads, weights, biases = inputs
    with context.autocast_to(value.device, None):
        position = conv_kernels.convolved(_grid_of(value, shape), weights, biases)
        position = position.reshape(shape[0], -1, num_heads, value.shape[1] // num_heads)
        query, key = split_heads(query_key, shape[0], 2, num_heads)
        (values,) = split_heads(value, shape[0], 1, num_heads)
        matrices = _scaled_product(key.softmax(2).mT, values)
        found, out = query @ matrices, torch.empty_like(value)
        (heads,) = split_heads(out, shape[0], 1, num_heads)
        torch.addcmul(_of_grids(found), _of_grids(query), position, out=_of_grids(heads))
        heads[:, :, -1].copy_(found[:, :, -1])
        return out, position, matrices


def _gradients(inputs: Inputs, position: Tensor, matrices: Tensor, grad: Tensor) -> Gradients:
    query_key, value, shape, num_heads, weights, biases = inputs
    query, key = split_heads(query_key, shape[0], 2, num_heads)
    (values,), (grads,) = (split_heads(x, shape[0], 1, num_heads) for x in (value, grad))
    # Of several images each of two products would make this copy; of one image it is a view.
    factors = grads.flatten(0, 1).unflatten(0, grads.shape[:2])
    share, of_matrices = key.softmax(2), _scaled_product(query.mT, factors)
    of_query = factors @ matrices.mT
    _of_grids(of_query).addcmul_(_of_grids(grads), position)
    of_key = torch._softmax_backward_data(values @ of_matrices.mT, share, 2, share.dtype)
    of_values, of_value = share @ of_matrices, torch.empty_like(value)
    of_position = (_of_grids(grads) * _of_grids(query)).reshape(*shape, -1)
    grid = _grid_of(value, shape)
    of_grid, of_weights, of_biases = conv_kernels.backward_reference(of_position, grid, weights, biases, False, False)
    (heads,) = split_heads(of_value, shape[0], 1, num_heads)
    torch.add(_of_grids(of_values), of_grid.reshape(position.shape), out=_of_grids(heads))
    heads[:, :, -1].copy_(of_values[:, :, -1])
    return join_heads((of_query, of_key), value.shape[1]), of_value, of_weights, of_biases


def _scaled_product(a: Tensor, b: Tensor) -> Tensor:
    """a b / sqrt(d) of two (B, h, *, *), of which b has d channels."""
    product = torch.baddbmm(a.new_empty(()), a.flatten(0, 1), b.flatten(0, 1), beta=0, alpha=b.shape[-1] ** -0.5)
    return product.unflatten(0, a.shape[:2])


WITHOUT_KERNELS = Form(_by_image, _mixed, _gradients, _by_kind)
