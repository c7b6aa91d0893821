"""The last map of attention, a residual sum, the norm after it, a feed-forward network and the sum with its result: all
after the kernel of attention in a block, as one function in training on CUDA.

PyTorch's work around a function, forward and backward, takes as long as several launches. The functions that it is made
of are those of ``ops.norm``, ``ops.feed_forward`` and ``ops.head_maps``, with contexts of ours. And it can compute
itself again from its inputs, without PyTorch's checkpoints, which would build a second graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.ops import feed_forward, memory, norm
from mm_vitbackbones.ops.chained import Context, Pending, finished, save_for_backward, saved_parts
from mm_vitbackbones.ops.kernels import norm as kernels
from mm_vitbackbones.ops.kernels.scale import scale_backward
from mm_vitbackbones.ops.once import direct, once_differentiable, typed


def add_scaled(x: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """``x + factor * scale * branch`` with one factor (B,) for each sample and a scale (C,) for each channel, or
    without."""
    if factor is None and scale is None:
        return x + branch
    if torch.is_grad_enabled():
        return _scaled_sum_of(x, branch, factor, scale)
    return _scaled_sum(x, branch, factor, scale)


def _scaled_sum(x: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor | None) -> Tensor:
    if factor is None and scale is None:
        return x + branch
    # With `out`, because autocast on CUDA casts the inputs of the other form in passes of their own.
    same = x.dtype == branch.dtype and (scale is None or scale.dtype == x.dtype)
    out = torch.empty_like(x) if same else torch.empty_like(x, dtype=kernels.type_of_sum(x, branch, scale))
    return torch.addcmul(x, branch, _both(x, factor, scale), out=out)


def _both(x: Tensor, factor: Tensor | None, scale: Tensor | None) -> Tensor:
    """factor * scale, of which one is not None, as it is broadcast to ``x``."""
    if factor is None:
        return cast(Tensor, scale)
    factor = factor.view(-1, *(1,) * (x.dim() - 1))
    return factor if scale is None else factor * scale


def _gradients(
    grad: Tensor, branch: Tensor | None, factor: Tensor | None, scale: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The gradients of a branch of this type, which may be None without a scale, and of its scale."""
    if scale is not None:
        of_branch, of_scale = scale_backward(grad, branch, factor, scale)
        return of_branch, typed(of_scale, scale.dtype)
    if factor is None:
        return typed(grad, dtype), None
    return torch.mul(grad, _both(grad, factor, scale), out=torch.empty_like(grad, dtype=dtype)), None


class _ScaledSum(torch.autograd.Function):
    """One pass forward, one backward, whatever the types."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, factor: Tensor | None, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(factor, scale, None if scale is None else branch)
        ctx.dtypes = x.dtype, branch.dtype
        return _scaled_sum(x, branch, factor, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        factor, scale, branch = ctx.saved_tensors
        of_branch, of_scale = _gradients(grad, branch, factor, scale, ctx.dtypes[1])
        return typed(grad, ctx.dtypes[0]), of_branch, None, of_scale


_scaled_sum_of = direct(_ScaledSum)


class Sublayer(NamedTuple):
    """What comes after attention in a plain block, as one function on CUDA; see ``of``."""

    norm: nn.Module
    network: feed_forward.Network
    factor: Tensor | None
    scale: Tensor | None

    def __call__(
        self, x: Tensor, branch: Tensor | Pending, factor: Tensor | None, scale: Tensor | None, again: bool = False
    ) -> Tensor:
        """``y + factor * scale * network(norm(y))``, where y is the sum of x and a branch with factors of its own:
        those of samples, (B,), and of channels, (C,), or None. A call that gives the branch becomes a part of this.

        Args:
            again: whether training keeps the inputs alone, and computes the rest again in the backward pass.
        """
        weight, bias, eps = norm.parameters_of(self.norm)
        kind, parameters, dtype = network = self.network
        if not torch.is_grad_enabled():
            total, normed, _ = kernels.add_layer_norm(x, cast(Tensor, branch), factor, scale, weight, bias, eps, dtype)
            return _scaled_sum(total, network.inferred(normed), self.factor, self.scale)
        others = factor, scale, weight, bias, self.factor, self.scale, *parameters
        if isinstance(branch, Pending) and not again:
            options = again, kind, eps, dtype, branch.kind, len(parameters)
            return _sublayer(options, x, None, *others, *branch.inputs)
        return _sublayer((again, kind, eps, dtype, None, len(parameters)), x, finished(branch), *others)


def of(x: Tensor, branch: Any, factor: Tensor | None, scale: Tensor | None) -> Sublayer | None:
    """The function of a feed-forward branch with these factors. None where the branch has another function, or where
    something is attached to it.

    Args:
        x: a grid (B, H, W, C), or tokens (B, N, C), before the norm, for which ``norm.is_fast``.
        branch: a ``layers.Branch``.
    """
    parts = branch.feed_forward
    network = None if parts is None else feed_forward.network_on_cuda(x, parts)
    return None if network is None else Sublayer(branch.norm, network, factor, scale)


class _Sublayer(torch.autograd.Function):
    """See ``Sublayer``. It keeps what its parts keep, or with ``again`` the inputs, of which the backward pass computes
    all except the last map and the activation before it, which no gradient needs."""

    @staticmethod
    def forward(
        ctx: Any,
        options: tuple[bool, Any, float, torch.dtype, Any, int],
        x: Tensor,
        branch: Any,
        factor: Tensor | None,
        scale: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        last_factor: Tensor | None,
        last_scale: Tensor | None,
        *others: Any,
    ) -> Tensor:
        ctx.options = again, kind, eps, dtype, before, count = options
        of_sum, of_network, of_before = Context(), Context(), Context()
        parameters = others[:count]
        if before is not None:
            branch = before.forward(of_before, *others[count:])
        inputs = x, branch, factor, scale, weight, bias
        total, normed = norm.NormOfSum.forward(of_sum, *inputs, eps, dtype)
        if kind.keeps_sources and not again and memory.state.policy != memory.ALL_RESULTS:
            norm.made(normed, total, weight, bias, eps)
        out = kind.forward(of_network, normed, *parameters, dtype)
        ends = last_factor, last_scale, None if last_scale is None else out
        if again:
            ctx.make_branch, sources = memory.sources_of(branch)
            ctx.save_for_backward(*ends, x, *inputs[2:], *parameters, *(sources or (branch,)))
            ctx.sources = len(sources) or 1
        else:
            ctx.parts = of_sum, of_network, of_before
            save_for_backward(ctx, *ends)
        return _scaled_sum(total, out, last_factor, last_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        again, kind, eps, dtype, before, count = ctx.options
        if again:
            last_factor, last_scale, out, *kept = ctx.saved_tensors
            of_sum, of_network = Context(), Context()
            of_network.wants_result = False
            x, factor, scale, weight, bias, *parameters = kept[: -ctx.sources]
            sources = kept[-ctx.sources :]
            branch = sources[0] if ctx.make_branch is None else ctx.make_branch(*sources)
            _, normed = norm.NormOfSum.forward(of_sum, x, branch, factor, scale, weight, bias, eps, dtype)
            kind.forward(of_network, normed, *parameters, dtype)
            del kept, normed, branch, sources
        else:
            of_sum, of_network, of_before, (last_factor, last_scale, out) = saved_parts(ctx)
        needed = ctx.needs_input_grad[9:]
        of_network.needs_input_grad = (True, *needed[:count], False)
        of_out, of_last_scale = _gradients(grad, out, last_factor, last_scale, dtype)
        of_normed, *of_parameters, _ = kind.backward.unchecked(of_network, of_out)
        of_network.saved_tensors = ()
        backward = norm.NormOfSum.backward.unchecked
        of_x, of_branch, _, of_scale, of_weight, of_bias, _, _ = backward(of_sum, grad, of_normed)
        of_sum.saved_tensors = ()
        if before is not None:
            of_before.needs_input_grad = needed[count:]
            of_parameters += before.backward.unchecked(of_before, of_branch)
            of_before.saved_tensors, of_branch = (), None
        return None, of_x, of_branch, None, of_scale, of_weight, of_bias, None, of_last_scale, *of_parameters


_sublayer = direct(_Sublayer)
