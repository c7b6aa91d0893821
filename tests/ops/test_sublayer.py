"""A sum, its norm, a feed-forward network and the next sum as one function on CUDA, in the form that a CPU can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mm_vitbackbones.backbones.swin import WindowAttention
from mm_vitbackbones.layers import Block, FeedForward, MixFeedForward
from mm_vitbackbones.layers.attention import ConvReduction, SelfAttention, SpatialReductionAttention
from mm_vitbackbones.ops import chained, context, memory, sublayer
from mm_vitbackbones.ops.kernels import depthwise, norm

DIM = 12
NETWORKS = {"feed-forward": FeedForward, "mix": MixFeedForward}


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    with context.pretend_device("cuda"):
        yield


class Shift(nn.Module):
    """In place of attention: without parameters that matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 1) * self.by


def make(kind: str, drop_path: float, layer_scale: float | None, recompute: str = memory.NOTHING) -> Block:
    torch.manual_seed(1)
    block = Block(DIM, Shift(), NETWORKS[kind](DIM, 20), 1e-6, drop_path, layer_scale)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    block.recompute = recompute
    return block


def a_grid() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(3, 4, 5, DIM).requires_grad_()


def step(block: Block, x: Tensor, device: str = "cuda") -> list[Any]:
    """The result, and the gradients of x and of the parameters that train."""
    torch.manual_seed(3)
    with context.pretend_device(device):
        y = block(x)
        wanted = [p for p in (x, *block.parameters()) if p.requires_grad]
        return [y, *torch.autograd.grad(y.float().square().mean(), wanted)]


def assert_close(ours: list[Any], theirs: list[Any], tolerance: float = 2e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


def recipes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The option ``again`` of each call of the function."""
    calls, function = [], sublayer._sublayer
    monkeypatch.setattr(sublayer, "_sublayer", lambda options, *x: calls.append(options[0]) or function(options, *x))
    return calls


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize("layer_scale", [None, 1.0])
@pytest.mark.parametrize("recompute", [memory.NOTHING, memory.ALL_BUT_ATTENTION])
def test_a_block_has_the_values_and_gradients_of_its_modules(
    kind: str, drop_path: float, layer_scale: float | None, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recipes(monkeypatch)
    block, x = make(kind, drop_path, layer_scale, recompute), a_grid()
    ours = step(block, x)
    assert calls == [recompute != memory.NOTHING]
    assert_close(ours, step(block, x, "cpu"))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("layer_scale", [None, 1.0])
@pytest.mark.parametrize("again", [False, True])
def test_gradients_in_fp64_are_those_of_finite_differences(kind: str, layer_scale: float | None, again: bool) -> None:
    block = make(kind, 0.0, layer_scale).double()
    x, branch = (torch.randn(2, 2, 3, DIM, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factor, scale = torch.tensor([2.0, 0.0]).double(), torch.randn(DIM, dtype=torch.float64, requires_grad=True)
    ffn: Any = block.ffn
    last = None if layer_scale is None else block.ls2.gamma
    network = sublayer.feed_forward.network_on_cuda(x, ffn.parts)
    assert network is not None
    parameters = [p for p in (block.norm2.weight, last, *network.parameters) if p is not None]

    def run(x: Tensor, branch: Tensor, scale: Tensor, *_: Tensor) -> Tensor:
        return sublayer.Sublayer(block.norm2, network, factor.flip(0), last)(x, branch, factor, scale, again)

    torch.autograd.gradcheck(run, (x, branch, scale, *parameters), fast_mode=True)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("again", [False, True])
def test_under_autocast_gradients_have_the_types_of_their_tensors(kind: str, again: bool) -> None:
    block, x = make(kind, 0.5, None, memory.ALL_BUT_ATTENTION if again else memory.NOTHING), a_grid()
    exact = step(block, x, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        ours = step(block, x)
    assert_close(ours, exact, 3e-2)


@pytest.mark.parametrize("frozen", ["norm2", "ffn.fc1", "ffn.fc2.bias", "ffn", "ffn.dwconv.weight"])
@pytest.mark.parametrize("again", [False, True])
def test_a_frozen_parameter_gets_no_gradient_and_the_others_theirs(frozen: str, again: bool) -> None:
    block, x = make("mix", 0.0, None, memory.ALL_BUT_ATTENTION if again else memory.NOTHING), a_grid()
    block.get_parameter(frozen).requires_grad_(False) if frozen.endswith(("weight", "bias")) else (
        block.get_submodule(frozen).requires_grad_(False)
    )
    assert_close(step(block, x), step(block, x, "cpu"))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("layer_scale", [None, 1.0])
def test_in_inference_a_block_has_the_values_of_its_modules(kind: str, layer_scale: float | None) -> None:
    block, x = make(kind, 0.5, layer_scale).eval(), a_grid()
    with torch.no_grad():
        ours = block(x)
        with context.pretend_device("cpu"):
            torch.testing.assert_close(ours, block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["ffn", "ffn.fc1", "ffn.fc2", "ffn.dwconv", "norm2", "drop_path", "ls2"])
@pytest.mark.parametrize("recompute", [memory.NOTHING, memory.ALL_BUT_ATTENTION])
def test_parts_with_a_hook_are_called(part: str, recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, seen = recipes(monkeypatch), []
    block, x = make("mix", 0.5, 1.0, recompute), a_grid()
    step(block, x)
    assert calls == [recompute != memory.NOTHING]
    block.get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    ours = step(block, x)
    assert len(calls) == 1
    assert seen
    assert_close(ours, step(block, x, "cpu"))


ATTENTIONS: dict[str, Any] = {
    "of all": lambda: SelfAttention(DIM, 2),
    "reduced": lambda: SpatialReductionAttention(DIM, 2, ConvReduction(DIM, 2)),
    "as it is": lambda: SpatialReductionAttention(DIM, 2, None),
    "in windows": lambda: WindowAttention(DIM, 2, 3, 1),
}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layer_scale", [None, 1.0])
@pytest.mark.parametrize("frozen", [None, "attn.proj.weight", "attn.proj.bias", "attn", "norm1"])
def test_the_norm_and_the_maps_of_attention_are_parts_of_the_functions_around_its_kernel(
    attention: str, layer_scale: float | None, frozen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, function, chains, chain = [], sublayer._sublayer, [], chained._chained
    monkeypatch.setattr(sublayer, "_sublayer", lambda options, *x: taken.append(options[4]) or function(options, *x))
    monkeypatch.setattr(chained, "_chained", lambda kinds, *x: chains.append(kinds) or chain(kinds, *x))
    block, x = make("mix", 0.5, layer_scale), a_grid()
    torch.manual_seed(4)
    block.attn = ATTENTIONS[attention]()
    if attention == "of all":
        block.ffn, x = FeedForward(DIM, 20), x.detach().flatten(1, 2).requires_grad_()
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(frozen is None or not name.startswith(frozen))
    x.requires_grad_(frozen != "norm1")
    ours = step(block, x)
    assert taken[0] is not None
    assert len(chains) == 1
    assert_close(ours, step(block, x, "cpu"))
    block.attn.register_forward_hook(lambda *_: None)
    assert_close(step(block, x), ours)
    assert taken[1:] == [None]
    assert len(chains) == 1


def test_a_part_that_takes_the_place_of_another_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recipes(monkeypatch)
    block, x = make("feed-forward", 0.0, None), a_grid()
    step(block, x)
    block.ffn._modules["fc1"] = nn.Sequential(block.ffn.fc1, nn.Tanh())  # as quantisation does it
    assert_close(step(block, x), step(block, x, "cpu"))
    assert len(calls) == 1


@pytest.mark.parametrize("kind", NETWORKS)
def test_with_cp_nothing_wider_than_the_grid_is_kept_and_only_what_gradients_need_is_computed_again(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x, kept, runs = make(kind, 0.5, None, memory.ALL_BUT_ATTENTION), a_grid(), [], []
    for module, name in ((norm, "add_layer_norm"), (depthwise, "depthwise")):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, run=run, name=name: runs.append(name) or run(*args))
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = block(x)
    assert max(t.shape[-1] for t in kept if t.numel() >= x.numel()) == DIM
    assert sum(t.numel() >= x.numel() for t in kept) <= 5  # of attention: x, its mean and its norm; x and its branch
    forward = ["add_layer_norm", *["depthwise"] * (kind == "mix")]
    assert runs == forward
    y.sum().backward()
    assert runs == [*forward, "add_layer_norm"]  # neither the activation nor the map after it


def test_nothing_is_kept_after_the_backward_pass() -> None:
    block, x, alive = make("mix", 0.5, 1.0), a_grid(), []

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        y = block(x)
    assert alive
    y.sum().backward()
    assert not alive


def test_gradients_of_gradients_are_refused() -> None:
    block, x = make("mix", 0.0, None), a_grid()
    (grad,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
