"""Parameters in autocast's type: cast at once, in compiled graphs their gradients, too."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.agreement import image
from helpers.graphs import needs_graphs_that_run, noting
from helpers.toys import TOYS
from mm_vitbackbones.layers import FeedForward
from mm_vitbackbones.layers.attention import SelfAttention
from mm_vitbackbones.layers.block import Block, ResidualBlock, compile_blocks
from mm_vitbackbones.ops import bias_sums, context, narrow

aten = torch.ops.aten
CASTS = (aten._foreach_copy.default, aten._foreach_copy_.default)
pytestmark = needs_graphs_that_run


@pytest.fixture(autouse=True)
def no_graphs() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


class Network(nn.Module):
    """Blocks that are called as a backbone calls its own."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(8, SelfAttention(8, 2), FeedForward(8, 20), 1e-6, 0.0) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        with narrow.copies(self, x):
            for block in self.blocks:
                x = block(x)
        return x


def gradients(network: nn.Module, call: Any, x: Tensor) -> list[Tensor | None]:
    with torch.autocast("cpu", torch.bfloat16):
        out = call(x)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    found = [out, *(p.grad for p in network.parameters())]
    network.zero_grad()
    return found


def graphs_of(network: nn.Module, x: Tensor) -> tuple[list[Tensor | None], list[list[Any]]]:
    """The result and the gradients of graphs for CUDA, and the nodes of each."""
    graphs: list[list[Any]] = []
    backend = noting(graphs)
    with context.pretend_device("cuda"):
        return gradients(network, torch.compile(network, backend=backend, fullgraph=True, dynamic=False), x), graphs


def casts(nodes: list[Any]) -> list[int]:
    """The tensors that are cast by each operator for several."""
    return [len(node.args[0]) for node in nodes if node.target in CASTS]


def casts_alone(nodes: list[Any], *shapes: tuple[int, ...]) -> int:
    """Operators that cast one tensor of these shapes."""
    return sum(node.target is aten._to_copy.default and tuple(node.meta["val"].shape) in shapes for node in nodes)


def agree(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.detach().abs().max()))


WEIGHTS = (24, 8), (8, 8), (20, 8), (8, 20)


def test_each_block_casts_its_parameters_once_and_their_gradients() -> None:
    network, x = Network(), torch.randn(2, 5, 8)
    expected = gradients(network, network, x)
    found, (forward, backward) = graphs_of(network, x)
    agree(found, expected)
    assert casts(forward) == [8, 8]
    assert casts(backward) == [4, 4]
    assert casts_alone(forward, *WEIGHTS, (24,), (20,)) == casts_alone(backward, *WEIGHTS) == 0


@pytest.mark.parametrize("name", ["qkv.weight", "fc2.bias"])
def test_what_is_frozen_gets_no_gradient_and_costs_none(name: str) -> None:
    network, x = Network(1), torch.randn(2, 5, 8)
    _, (_, whole) = graphs_of(network, x)
    next(p for n, p in network.named_parameters() if n.endswith(name)).requires_grad_(False)
    expected = gradients(network, network, x)
    found, (_, backward) = graphs_of(network, x)
    agree(found, expected)
    sums = aten.mm.default if name.endswith("weight") else aten.sum.dim_IntList
    assert sum(n.target is sums for n in backward) < sum(n.target is sums for n in whole)


def test_what_is_attached_to_a_map_is_called_and_acts() -> None:
    network, x, seen = Network(1), torch.randn(2, 5, 8), []
    network.blocks[0].ffn.fc2.register_forward_hook(lambda _, __, out: seen.append(out.shape) or out * 2)
    expected = gradients(network, network, x)
    seen.clear()
    found, (forward, _) = graphs_of(network, x)
    assert seen == [(2, 5, 8)]
    agree(found, expected)
    assert casts(forward) == [6]


class Other(torch.Tensor):
    """As libraries make them that share or quantise weights."""


def skip_where_graphs_take_no_other_weights(layer: nn.Module, x: Tensor) -> None:
    """PyTorch 2.11 cannot run a graph with them operator by operator, as ``noting`` does."""
    try:
        torch.compile(layer, backend=noting([]), fullgraph=True)(x)
    except TypeError:
        pytest.skip("this PyTorch runs no graphs with weights of other classes, operator by operator")


@pytest.mark.parametrize(("is_other", "count"), [(False, 8), (True, 6)])
def test_without_gradients_a_block_casts_its_ordinary_parameters_once(is_other: bool, count: int) -> None:
    network, x, graphs = Network(1), torch.randn(2, 5, 8), []
    if is_other:
        fc1 = network.blocks[0].ffn.fc1
        fc1.weight = nn.Parameter(fc1.weight.detach().as_subclass(Other))
    backend = noting(graphs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if is_other:
            skip_where_graphs_take_no_other_weights(fc1, x)
        expected = network(x)
        with context.pretend_device("cuda"):
            found = torch.compile(network, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert [casts(nodes) for nodes in graphs] == [[count]]


def test_without_autocast_nothing_is_cast() -> None:
    network, x = Network(1), torch.randn(2, 5, 8)
    graphs: list[list[Any]] = []
    with context.pretend_device("cuda"):
        torch.compile(network, backend=noting(graphs))(x).sum().backward()
    assert graphs
    assert not [count for nodes in graphs for count in casts(nodes)]


def test_a_compiled_block_casts_by_itself() -> None:
    network, x = Network(1), torch.randn(2, 5, 8)
    expected = gradients(network, network, x)
    graphs: list[list[Any]] = []
    with context.pretend_device("cuda"):
        compile_blocks({network.blocks[0]: 0}, backend=noting(graphs))
        agree(gradients(network, network, x), expected)
    assert [casts(nodes) for nodes in graphs] == [[8], [4]]
    assert narrow.graph.copies is None


class Map(nn.Module):
    """The smallest block: one linear map, whose two parameters are as few as `_Narrow` may get."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, has_autocast: bool = True) -> Tensor:
        with narrow.copies(self, x), narrow.copies_of_block(self), torch.autocast("cpu", enabled=has_autocast):
            return bias_sums.linear(x, self.linear)


def compiled(module: Any, graphs: list[Any]) -> Any:
    return torch.compile(module, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)


def test_a_second_call_takes_the_graph_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "graph", narrow._Graph())  # as in a new process
    graphs: list[Any] = []
    call, x = compiled(Map(), graphs), torch.randn(4, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), context.pretend_device("cuda"):
        assert torch.equal(call(x), call(x))
    assert len(graphs) == 1


def test_a_part_of_a_block_without_autocast_takes_the_parameters_themselves() -> None:
    block, x = Map(), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16), context.pretend_device("cuda"):
        found = compiled(block, [])(x, has_autocast=False)
    assert torch.equal(found, block.linear(x))


@pytest.mark.slow
def test_a_graph_of_a_function_transform_casts_the_parameters_one_by_one() -> None:
    block, x = Map().requires_grad_(False), torch.randn(4, 3)
    parameters = {name: p.detach() for name, p in block.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block, parameters, (x,)).float().square().sum()

    with torch.autocast("cpu", torch.bfloat16), context.pretend_device("cuda"):
        found = compiled(torch.func.grad(loss), [])(parameters)
        expected = torch.func.grad(loss)(parameters)
    assert [*found] == [*expected]
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-2, atol=2e-2)


def test_what_modules_of_other_classes_call_is_not_copied() -> None:
    block = Network(1).blocks[0]
    block.attn.qkv, block.attn.proj = nn.Sequential(block.attn.qkv), Attached(block.attn.proj)
    assert narrow._linear_maps(block) == [block.ffn.fc1, block.ffn.fc2]


class Attached(nn.Module):
    """As adapters are to a map."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.other = base, nn.Linear(base.in_features, base.out_features)


def test_threads_know_nothing_of_the_graphs_of_others() -> None:
    seen: list[Any] = []
    with narrow._in_blocks(True):
        thread = threading.Thread(target=lambda: seen.append((narrow.graph.in_blocks, narrow.graph.copies)))
        thread.start()
        thread.join()
    assert seen == [(False, None)]


# ---- in eager mode


def test_the_parameters_of_a_call_are_cast_and_not_kept() -> None:
    """Those of a function call are others than the network's own."""
    network, x = Network(1), torch.randn(2, 5, 8)
    others = {name: 2 * p.detach() for name, p in network.named_parameters()}
    held = [weakref.ref(p) for p in others.values()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), context.pretend_device("cuda"):
        torch.func.functional_call(network, others, (x,))
        del others
        assert not [p for p in held if p() is not None]
        with narrow.copies(network, x):
            fc1 = network.blocks[0].ffn.fc1
            assert narrow.of(fc1.weight, torch.bfloat16) is narrow.of(fc1.weight, torch.bfloat16)
            network.load_state_dict({k: v.clone() for k, v in network.state_dict().items()}, assign=True)
        with narrow.copies(network, x):
            assert narrow.of(fc1.weight, torch.bfloat16) is narrow.of(fc1.weight, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("with_cp", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("toy", TOYS)
def test_a_graph_of_every_family_casts_block_by_block(toy: str, with_cp: bool) -> None:
    """Its gradients are as near to those of fp32 as those of the network that is not compiled."""
    network, x = TOYS[toy](drop_path_rate=0.0, with_cp=with_cp).train(), image()
    graphs: list[list[Any]] = []

    def step(call: Any, autocast: bool = True) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            levels = [level for level in call(x) if level.requires_grad]
        weights = [torch.linspace(-1, 1, level.numel(), dtype=level.dtype).view_as(level) for level in levels]
        return [*levels, *torch.autograd.grad(levels, [*network.parameters()], weights)]

    exact, plain = step(network, autocast=False), step(network)
    backend = noting(graphs)
    with context.pretend_device("cuda"):
        compiled = step(torch.compile(network, backend=backend, fullgraph=True, dynamic=False))
    whole = torch.stack([x.norm() for x in exact]).norm()  # some gradients are zero but for rounding
    for found, other, wanted in zip(compiled, plain, exact, strict=True):
        bound = max(2e-2 * wanted.norm() + 1e-3 * whole, 1.5 * (other - wanted).norm())
        assert (found - wanted).norm() <= bound
    blocks = [part for part in network.modules() if isinstance(part, ResidualBlock)]
    forward, *backward = graphs
    assert 0 < len(casts(forward)) <= len(blocks)
    assert all(len(casts(nodes)) >= len(casts(forward)) for nodes in backward)
    # Each copy is used: its gradient is no tensor of zeros, and no weight of a block is cast alone.
    of_gradients = [
        gradient for nodes in backward for node in nodes if node.target in CASTS for gradient in node.args[1]
    ]
    assert not [gradient for gradient in of_gradients if gradient.target in (aten.zeros.default, aten.full.default)]
    inside = {part for block in blocks for part in block.modules() if isinstance(part, nn.Linear)}
    outside = {part for part in network.modules() if isinstance(part, nn.Linear)} - inside
    of_blocks = {part.weight.shape for part in inside} - {part.weight.shape for part in outside}
    alone = [node.args[0] for node in forward if node.target is aten._to_copy.default]
    assert not of_blocks & {source.meta["val"].shape for source in alone if source.op == "placeholder"}
