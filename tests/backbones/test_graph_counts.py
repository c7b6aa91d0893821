"""Operators in the graphs of one compiled block, against those that the block runs without compilation.

Compilers join operators, but each one is traced, differentiated and turned into code: seconds follow their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.toys import TOYS
from mm_vitbackbones.layers import ResidualBlock
from mm_vitbackbones.ops import context

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
MOST = 1.25
"""Of the operators without compilation, forward and backward. Turns by a position are one operator there, and several
in a graph."""
MOST_ON_CUDA = 1.5
"""The same in the forms for CUDA, under autocast, where eager blocks have operators of ours in place of several."""
NO_WORK = ("_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def works(operator: Any) -> bool:
    """Whether it computes values: no view, no allocation, no arithmetic of sizes."""
    if not isinstance(operator, torch._ops.OpOverload) or operator.is_view:
        return False
    return operator.overloadpacket.__name__ not in NO_WORK and "sym_" not in operator.name()


class Dispatched(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += works(operator)
        return operator(*args, **(kwargs or {}))


class Graphs:
    """A compiler that runs graphs of PyTorch's operators as they are, and counts these."""

    count = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        from functorch.compile import make_boxed_func

        self.count += sum(node.op == "call_function" and works(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)


def copied(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.detach().clone().requires_grad_(inputs.requires_grad)
    return type(inputs)(map(copied, inputs)) if type(inputs) in (list, tuple) else inputs


def gradients(block: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    out = block(*inputs)
    levels = [out] if isinstance(out, Tensor) else [level for level in out if isinstance(level, Tensor)]
    return torch.autograd.grad(levels, [*block.parameters()], [torch.ones_like(level) for level in levels])


def count(toy: str) -> tuple[int, int]:
    """Of a step of a block: in the graphs, and without compilation."""
    torch.manual_seed(0)
    network = TOYS[toy](drop_path_rate=0.0, out_indices=(0,)).train()
    block = [module for module in network.modules() if isinstance(module, ResidualBlock)][-1]
    given: list[Any] = []
    with block.register_forward_pre_hook(lambda _, inputs: given.append(inputs)):
        network(torch.randn(1, 3, 96, 128))
    eager, graphs = Dispatched(), Graphs()
    with eager:
        expected = gradients(block, copied(given[0]))
    assert network.compile_blocks(backend=aot_autograd(fw_compiler=graphs, bw_compiler=graphs), fullgraph=True)
    graphs.count = 0  # without the trial
    found = gradients(block, copied(given[0]))
    if not torch.is_autocast_enabled("cpu"):  # by which both round, in other places
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return graphs.count, eager.count


def check(toy: str) -> None:
    of_graphs, of_eager = count(toy)
    assert 0 < of_graphs <= MOST * of_eager, (of_graphs, of_eager)


@pytest.mark.parametrize("toy", ["swin", "pvt_v2_linear"])
def test_a_graph_has_few_operators(toy: str) -> None:
    check(toy)


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
def test_a_graph_has_few_operators_in_every_family(toy: str) -> None:
    check(toy)


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
def test_a_graph_for_cuda_has_few_operators_in_every_family(toy: str) -> None:
    with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16):
        of_graphs, of_eager = count(toy)
    assert 0 < of_graphs <= MOST_ON_CUDA * of_eager, (of_graphs, of_eager)
