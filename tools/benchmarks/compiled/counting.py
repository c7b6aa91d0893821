"""Plans of PyTorch's compiler for a card that is not there; see ``card.cpp``."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mm_vitbackbones.ops.kernels import depthwise

aten = torch.ops.aten
CARD = types.SimpleNamespace(
    name="card",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
)
"""What the compiler asks of an H100."""


class Step(NamedTuple):
    """A kernel that the compiler generates, or a call of another one."""

    is_generated: bool
    bytes: int
    """Read and written, each buffer once."""
    name: str


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that CUDA has for it: PyTorch for CPUs would take none. With a mask it is another one."""
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    if query.dtype == torch.bfloat16 and attn_mask is None and width <= 256:
        heads = [F.pad(x, (0, -width % 8)) if width % 8 else x for x in (query, key, value)]
        return aten._scaled_dot_product_flash_attention.default(*heads, dropout_p, is_causal, False, scale=scale)[0][
            ..., :width
        ]
    if attn_mask is not None:
        count = attn_mask.shape[-1]
        if attn_mask.stride(-2) % 8:
            attn_mask = F.pad(attn_mask, (0, -count % 8))[..., :count]
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    arguments = query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal
    return aten._scaled_dot_product_efficient_attention.default(*arguments, scale=scale)[0]


@contextmanager
def card() -> Iterator[None]:
    """Within it, PyTorch's compiler finds a card."""
    from torch._dynamo.device_interface import CudaInterface

    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", attention, "AutogradCUDA")
    # What the compiler computes by itself, such as constants, is on the CPU.
    library.impl("empty.memory_format", lambda size, dtype=None, **_: torch.empty(size, dtype=dtype), "CUDA")
    library.impl(
        "empty_strided", lambda size, stride, dtype=None, **_: torch.empty_strided(size, stride, dtype=dtype), "CUDA"
    )
    answers = {
        "is_available": True,
        "get_device_properties": CARD,
        "get_compute_capability": 90,
        "current_device": 0,
        "is_bf16_supported": True,
    }
    with ExitStack() as stack:

        def patch(place: Any, name: str, answer: Any) -> None:
            stack.enter_context(mock.patch.object(place, name, return_value=answer))

        for name, answer in answers.items():
            patch(CudaInterface, name, answer)
        patch(CudaInterface.Worker, "get_device_properties", CARD)
        patch(torch.cuda.amp.common, "amp_definitely_not_available", False)
        patch(torch.cuda, "is_bf16_supported", True)
        patch(torch.cuda, "get_device_capability", (9, 0))
        patch(torch.cuda, "get_device_properties", CARD)
        patch(torch.cuda, "current_device", 0)
        stack.enter_context(mock.patch("torch.version.cuda", "13.0"))
        yield


def on_card(network: nn.Module, mode: FakeTensorMode) -> None:
    """Puts fake tensors of CUDA in the place of parameters and buffers, and numbers in the place of NumPy's."""
    with mode:
        for part in network.modules():
            for tensors, kind in ((part._parameters, nn.Parameter), (part._buffers, None)):
                for name, x in tensors.items():
                    if x is not None:
                        fake = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
                        cast(Any, tensors)[name] = fake if kind is None else kind(fake, requires_grad=x.requires_grad)
            for name, value in [*vars(part).items()]:
                if isinstance(value, (np.integer, np.ndarray, list, tuple)):
                    vars(part)[name] = _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.integer, np.ndarray)):
        value = value.tolist()
        return tuple(value) if isinstance(value, list) else value
    return type(value)(map(_plain, value)) if type(value) in (tuple, list) else value


def count(network: nn.Module, batch: int, side: int) -> list[Step]:
    """The steps of forward and backward under bf16 autocast, with fp32 weights."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    steps: list[Step] = []

    def plan(graph: Any) -> Any:
        graph.init_wrapper_code()
        graph._update_scheduler()
        steps.extend(_steps(graph))
        return types.SimpleNamespace(call=_results(graph), runner=None)

    network.train()
    mode = FakeTensorMode()
    on_card(network, mode)
    torch._dynamo.reset()
    # Padding of matrices for speed would be measured, on the card.
    options = {"force_disable_caches": True, "shape_padding": False}
    with card(), mode, config.patch(options), mock.patch.object(GraphLowering, "compile_to_module", plan):
        image = torch.empty(batch, 3, side, side, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            out = torch.compile(network, dynamic=False)(image)
        levels = [out] if isinstance(out, Tensor) else [level for level in out if isinstance(level, Tensor)]
        torch.stack([level.float().mean() for level in levels]).sum().backward()
    return steps


def _steps(graph: Any) -> Iterator[Step]:
    from torch._inductor import ir, scheduler

    for node in graph.scheduler.nodes:
        if isinstance(node, scheduler.NopKernelSchedulerNode) or isinstance(node.node, ir.MultiOutput):
            continue
        size = node.get_read_write_buffers_sizes()
        if not isinstance(node, scheduler.ExternKernelSchedulerNode):
            yield Step(True, size, node.get_name())
            continue
        name = str(getattr(node.node, "op_overload", None) or node.node.python_kernel_name)
        yield Step(False, size + (_inside(node.node.fx_node) if "depthwise_backward" in name else 0), name)


def _inside(node: Any) -> int:
    """What our operator's kernels write for each other: the gradient before the GELU, and partial sums."""
    _, grid, weights, _, gelu, _ = node.args
    grid, weights = grid.meta["val"], [weight.meta["val"] for weight in weights]
    shape = depthwise.CORRELATE_GELU if gelu else depthwise.CORRELATE
    rows, sizes = depthwise.partial_sums(shape, tuple(grid.shape[:3]), depthwise.windows_of(weights))
    return 8 * rows * sum(sizes) + (1 + gelu) * grid.numel() * grid.element_size()


def _results(graph: Any) -> Any:
    """In place of a compiled graph: a function that gives memory."""
    from torch._inductor import ir

    number = graph.sizevars.optimization_hint
    shapes = [
        ([*map(number, x.get_size())], [*map(number, x.get_stride())], x.get_dtype(), x.get_device())
        if hasattr(x, "has_tensor_output") and x.has_tensor_output()
        else (None if isinstance(x, ir.NoneAsConstantBuffer) else number(x.expr))
        for x in graph.graph_outputs
    ]

    def call(args: list[Any]) -> tuple[Any, ...]:
        args.clear()
        return tuple(
            torch.empty_strided(x[0], x[1], dtype=x[2], device=x[3]) if isinstance(x, tuple) else x for x in shapes
        )

    return call


def run(network: str, name: str, side: str, batch: str) -> None:
    """Prints a line of the table."""
    from ..contenders import ForSize
    from ..gpu.contenders import find, prepare_imports

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepare_imports()
    built = find(network, name).build()
    if isinstance(built, ForSize):
        built = built.build((int(side), int(side)))
    steps = count(built, int(batch), int(side))
    generated = sum(step.is_generated for step in steps)
    total = sum(step.bytes for step in steps) / 2**30
    print(f"{network} | {name} | {generated} | {len(steps) - generated} | {total:.1f}", flush=True)
