"""What training computes again: the same results and gradients, for less memory, in whatever surrounds it."""

import gc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mm_vitbackbones.measuring import OperatorCount, held_bytes
from mm_vitbackbones.ops import context as mode
from mm_vitbackbones.ops.memory import recompute, recompute_between


class Chain(nn.Module):
    """A norm, a linear map, products of its parts (as attention has them) and another linear map."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.norm, self.wide, self.last = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def products(self, wide):
        left, right = wide.chunk(2, dim=-1)
        return self.last(left * right.sigmoid())

    def plain(self, x):
        return self.products(self.wide(self.norm(x)))

    def forward(self, x):
        return recompute_between(x, self.norm, self.wide, self.products)


def make_chain(dim=6, tokens=5):
    torch.manual_seed(3)
    return Chain(dim), torch.randn(tokens, dim, requires_grad=True)


def gradients(function, chain, x, **kwargs):
    return torch.autograd.grad(function(x).square().sum(), [x, *chain.parameters()], **kwargs)


def check_same(actual, expected, **kwargs):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, **kwargs)


def test_results_and_gradients_are_those_of_the_plain_chain():
    chain, x = make_chain()
    assert torch.equal(chain(x), chain.plain(x))
    check_same(gradients(chain, chain, x), gradients(chain.plain, chain, x), rtol=0, atol=0)


def test_gradients_of_gradients():
    chain, x = make_chain()
    chain.double()
    assert torch.autograd.gradgradcheck(chain, x.detach().double().requires_grad_())


def test_only_the_input_and_the_result_are_kept():
    chain, x = make_chain(64, 4096)
    # Kept beside them: the mean and the deviation that the norm divides by, and the products before the last map
    # (the sigmoid and its product are inside the last function).
    assert held_bytes(lambda: chain(x)) < 3.2 * x.nbytes
    assert held_bytes(lambda: chain.plain(x)) > 5.9 * x.nbytes


def test_each_function_runs_twice_and_the_last_once():
    chain, x = make_chain()
    with OperatorCount() as count:
        gradients(chain, chain, x)
    found = {name: count.by_name[f"aten.{name}"] for name in ("native_layer_norm", "addmm", "sigmoid")}
    assert found == {"native_layer_norm": 2, "addmm": 3, "sigmoid": 1}


def test_a_graph_can_be_gone_back_twice():
    chain, x = make_chain()
    loss = chain(x).square().sum()
    inputs = [x, *chain.parameters()]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    check_same(torch.autograd.grad(loss, inputs), first, rtol=0, atol=0)


def test_the_gradient_of_some_inputs_alone():
    chain, x = make_chain()
    expected = torch.autograd.grad(chain.plain(x).sum(), [chain.wide.bias])
    check_same(torch.autograd.grad(chain(x).sum(), [chain.wide.bias]), expected)


class Attention(Chain):
    """Its kernel keeps what it gives for the backward pass."""

    def products(self, wide):
        left, right = wide[None, None].chunk(2, dim=-1)
        return self.last(F.scaled_dot_product_attention(left, right, left)[0, 0])


@pytest.mark.parametrize("kind", [Chain, Attention])
@pytest.mark.parametrize("backward", [False, True])
def test_nothing_outlives_its_graph(kind, backward):
    chain, x = kind(8), torch.randn(5, 8, requires_grad=True) * 2
    alive = weakref.ref(x)
    gc.disable()  # which would also find what holds itself in a circle
    try:
        out = chain(x)
        if backward:
            out.sum().backward()
        del x, out
        assert alive() is None
    finally:
        gc.enable()


def test_under_autocast_no_narrow_copy_is_kept():
    chain, x = make_chain(64, 4096)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(chain.plain, chain, x)
        out = chain(x)
        # The mean and the deviation of the norm, and the products and the result in two bytes.
        assert held_bytes(lambda: chain(x)) < 2 * x.nbytes
    # The backward pass is outside, as everywhere.
    check_same(torch.autograd.grad(out.square().sum(), [x, *chain.parameters()]), expected)


@pytest.mark.parametrize(
    "outer", [partial(checkpoint, use_reentrant=False), recompute], ids=["checkpoint", "recompute"]
)
def test_inside_a_checkpoint_of_something_larger(outer):
    chain, x = make_chain(64, 4096)

    def twice(x):
        return chain(chain(x))

    check_same(gradients(lambda x: outer(twice, x), chain, x), gradients(twice, chain, x))
    assert held_bytes(lambda: outer(twice, x)) < 1.2 * x.nbytes  # the result alone


def test_where_pytorch_does_not_tell_of_hooks(monkeypatch):
    chain, x = make_chain()
    expected = gradients(chain, chain, x)
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    check_same(gradients(chain, chain, x), expected, rtol=0, atol=0)


class Torch21:
    """PyTorch without what came after 2.1."""

    compiler = SimpleNamespace()

    def __getattr__(self, name):
        if name == "get_autocast_dtype":
            raise AttributeError(name)
        return getattr(torch, name)


@pytest.fixture(params=["as it is", "PyTorch 2.1"])
def version(request, monkeypatch):
    if request.param == "PyTorch 2.1":
        monkeypatch.setattr(mode, "torch", Torch21())


@pytest.mark.usefixtures("version")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autocast_is_seen_and_turned():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert mode.autocast_dtype(cpu) is None
    assert mode.autocast_dtype(torch.device("meta")) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert mode.autocast_dtype(cpu) == torch.bfloat16
        assert mode.autocast_dtype(cuda) is None
        with mode.autocast_to(cpu, None):
            assert mode.autocast_dtype(cpu) is None
        with mode.autocast_to(cpu, torch.float16):
            assert mode.autocast_dtype(cpu) == torch.float16
    with mode.autocast_to(cpu, torch.bfloat16):
        assert F.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.mark.usefixtures("version")
def test_compilation_is_seen():
    def function(x):
        return x + mode.is_compiling()

    assert function(torch.zeros(1)) == 0
    assert torch.compile(function, backend="eager", fullgraph=True)(torch.zeros(1)) == 1
