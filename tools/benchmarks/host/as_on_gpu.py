"""A CPU in the place of a GPU's host: operators give memory and compute nothing, as if a GPU would do so later.

So results are without meaning, and the time is that of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.cpp_extension import load

from mm_vitbackbones.ops import context, linear
from mm_vitbackbones.ops.kernels import registration


def load_kernels() -> None:
    """PyTorch's expensive operators compute nothing any more in this process; see ``kernels.cpp``. It needs a compiler
    for C++, and takes a minute at the first time."""
    source = Path(__file__).with_name("kernels.cpp")
    load("mm_vitbackbones_host", [str(source)], extra_cflags=["-O1"], is_python_module=False)


class _Started(dict[Any, Any]):
    """In place of a launcher's compiled kernels: one for every key, which does nothing."""

    def get(self, key: Any, default: Any = None) -> Any:
        return _nothing, ()


def _nothing(*args: Any) -> None:
    return None


_ONES = linear.Ones(torch.ones(1, 2**16, dtype=torch.bfloat16))


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(a, b) if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)


def _column_sums(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    wide = matrix.dtype == dtype
    return matrix.sum(0) if wide else _product(_ONES.of(matrix.shape[0]), matrix, dtype).view(-1)


@contextmanager
def kernels_on_cpu(*replaced: tuple[Any, str, Any]) -> Iterator[None]:
    """Within it, our networks take their forms for CUDA on tensors of a CPU, and start their kernels.

    Args:
        replaced: objects, names of their attributes, and what takes their place: a way of starting kernels, at least.
    """
    always = (
        (registration, "usable", lambda tensor: True),
        (registration, "is_direct", lambda tensor: not context.dispatch_modes() and context.is_eager()),
    )
    with ExitStack() as stack:
        for place, name, value in (*always, *replaced):
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(context.pretend_device("cuda"))
        yield


@contextmanager
def ours_as_on_gpu() -> Iterator[None]:
    """``kernels_on_cpu``, whose kernels are started as on CUDA, except for the last call."""
    from mm_vitbackbones.ops.kernels.triton import launch

    def start(self: Any, function: Any) -> None:
        self.function, self.compiled, self.starts = function, {}, _Started()

    with kernels_on_cpu(
        (launch.Launcher, "__init__", start),
        (launch, "_stream", lambda index: 0),
        (linear, "product", _product),
        (linear, "column_sums", _column_sums),
    ):
        yield


@contextmanager
def operators_as_on_gpu() -> Iterator[None]:
    """CUDA's autocast gives layer_norm fp32, a CPU's does not. And CUDA has a kernel for attention with a bias that
    learns, where a CPU multiplies matrices: here the kernel without that gradient, and a sum in its place."""
    norm, attend = F.layer_norm, F.scaled_dot_product_attention

    def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        return norm(x if weight is None or x.dtype == weight.dtype else x.float(), shape, weight, bias, eps)

    def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attn_mask", args[0] if args else None)
        if mask is None or not mask.requires_grad:
            return attend(query, key, value, *args, **kwargs)
        kwargs["attn_mask"] = mask.detach().to(query.dtype)
        return attend(query, key, value, **kwargs) + mask.flatten()[0]

    with (
        mock.patch.object(F, "layer_norm", layer_norm),
        mock.patch.object(F, "scaled_dot_product_attention", scaled_dot_product_attention),
    ):
        yield
