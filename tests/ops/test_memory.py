"""What training computes again: the same results and gradients, for less memory, in whatever surrounds it."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from mm_vitbackbones.measuring import OperatorCount, held_bytes
from mm_vitbackbones.ops import context, feed_forward, linear, memory


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
        with memory.saving():
            return self.products(memory.cheap(self.wide, memory.cheap(self.norm, x)))


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
    # Kept besides them: the mean and the deviation that the norm divides by, the sigmoid and its product.
    assert held_bytes(lambda: chain(x)) < 3.2 * x.nbytes
    assert held_bytes(lambda: chain.plain(x)) > 5.9 * x.nbytes


def test_cheap_functions_run_twice_and_others_once():
    chain, x = make_chain()
    with OperatorCount() as count:
        gradients(chain, chain, x)
    found = {name: count.by_name[f"aten.{name}"] for name in ("native_layer_norm", "addmm", "sigmoid")}
    assert found == {"native_layer_norm": 2, "addmm": 3, "sigmoid": 1}


def test_what_two_operators_keep_is_computed_again_once():
    linears = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    norm, x = nn.LayerNorm(4), torch.randn(5, 4, requires_grad=True)
    with memory.saving():
        normed = memory.cheap(norm, x)
        out = sum(linear(normed) for linear in linears)
    with OperatorCount() as count:
        out.sum().backward()
    assert count.by_name["aten.native_layer_norm"] == 1


def test_a_graph_can_be_run_backward_through_twice():
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
    "outer", [partial(checkpoint, use_reentrant=False), memory.recomputed], ids=["checkpoint", "recomputed"]
)
def test_inside_a_checkpoint_of_something_larger(outer):
    chain, x = make_chain(64, 4096)

    def twice(x):
        return chain(chain(x))

    check_same(gradients(lambda x: outer(twice, x), chain, x), gradients(twice, chain, x))
    assert held_bytes(lambda: outer(twice, x)) < 1.2 * x.nbytes  # the result alone


@pytest.mark.parametrize("what", [memory.ALL, memory.ALL_BUT_ATTENTION])
def test_twice_inside_one_autocast(what):
    # Autocast casts a weight once, and the second computation is in an autocast of its own.
    chain, x = make_chain()
    sums = []
    for function in (chain.plain, lambda x: memory.recomputed(chain.plain, x, what=what)):
        with torch.autocast("cpu", torch.bfloat16):
            sums.append(function(x).float().square().sum() + function(2 * x).float().square().sum())
            assert torch.is_autocast_cache_enabled()
    expected, actual = (torch.autograd.grad(total, [x, *chain.parameters()]) for total in sums)
    check_same(actual, expected)


def test_a_checkpoint_inside():
    chain, x = make_chain()

    def function(x):
        with memory.saving():
            normed = memory.cheap(chain.norm, x)
            return memory.recomputed(lambda y: chain.products(memory.cheap(chain.wide, y)), normed)

    with torch.autocast("cpu", torch.bfloat16):
        expected = chain.plain(x)
        out = function(x)
    for a, b in zip(*(torch.autograd.grad(y.float().square().sum(), [x]) for y in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def recomputed(chain, x):
    return memory.recomputed(chain.plain, x)


def as_it_is(chain, x):
    return chain(x)


both_ways = pytest.mark.parametrize("way", [as_it_is, recomputed])


@both_ways
def test_a_functional_call_is_computed_again_with_the_weights_that_it_was_given(way):
    chain, x = make_chain()
    given = {name: (p * 2 + 1).detach().requires_grad_() for name, p in chain.named_parameters()}

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = chain

        def forward(self, x):
            return way(self.chain, x)

    names = {f"chain.{name}": p for name, p in given.items()}
    out = torch.func.functional_call(Call(), names, (x,)).square().sum()
    actual = torch.autograd.grad(out, [x, *given.values()])
    before = [*chain.parameters()]
    with torch.no_grad():
        for p, value in zip(chain.parameters(), given.values(), strict=True):
            p.copy_(value)
    check_same(actual, gradients(chain.plain, chain, x), rtol=0, atol=0)
    assert all(p is q for p, q in zip(chain.parameters(), before, strict=True))


class Normed(Chain):
    """With another norm, which is another function in training."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__(dim)
        self.norm = nn.BatchNorm1d(dim, momentum=None)


def test_modes_and_hooks_of_the_second_computation_are_those_of_the_first():
    torch.manual_seed(3)
    chain, x = Normed(), torch.randn(5, 6, requires_grad=True)
    double = chain.wide.register_forward_hook(lambda _, __, out: 2 * out)
    expected = torch.autograd.grad(chain.plain(x).square().sum(), [x])
    out = memory.recomputed(chain.plain, x).square().sum()
    double.remove()
    seen = []
    later = chain.last.register_forward_hook(lambda *_: seen.append(1))
    chain.eval()
    check_same(torch.autograd.grad(out, [x]), expected, rtol=0, atol=0)
    assert not chain.wide._forward_hooks
    assert not any(module.training for module in chain.modules())
    assert not seen
    later.remove()
    assert not chain.last._forward_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_recomputed_may_hold_modules_of_torchscript():
    chain, x = make_chain()
    expected = torch.autograd.grad(chain.plain(x).square().sum(), [x])
    chain.wide = torch.jit.trace(chain.wide, x.detach())
    found = torch.autograd.grad(memory.recomputed(chain.plain, x).square().sum(), [x])
    check_same(found, expected)


@both_ways
@pytest.mark.parametrize("name", ["norm.bias", "wide.bias"])
def test_a_parameter_that_was_written_into_since_is_an_error_and_not_a_wrong_gradient(way, name):
    # Autograd itself does not keep these two.
    chain, x = make_chain()
    out = way(chain, x).sum()
    with torch.no_grad():
        chain.get_parameter(name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_what_autograd_keeps_and_was_written_into_since_is_an_error_and_not_a_wrong_gradient():
    # PyTorch does not look at what hooks have taken.
    chain, x = make_chain()
    out = chain(x).sum()
    with torch.no_grad():
        chain.last.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_an_input_that_was_written_into_since_is_an_error_and_not_a_wrong_gradient():
    chain, x = make_chain()
    x = x.detach()
    with memory.saving():
        out = chain.last(memory.cheap(lambda y: y.flip(-1), x)).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("what", [memory.ALL, memory.ALL_BUT_ATTENTION])
def test_function_transforms_get_gradients_of_what_would_be_recomputed(what):
    chain, x = make_chain()
    expected = torch.autograd.grad(chain.plain(x).square().sum(), [x])
    found = torch.func.grad(lambda x: memory.recomputed(chain.plain, x, what=what).square().sum())(x)
    check_same([found], expected)


def test_inside_hooks_that_move_what_is_kept():
    chain, x = make_chain()
    with save_on_cpu():
        actual = gradients(chain, chain, x)
    check_same(actual, gradients(chain.plain, chain, x), rtol=0, atol=0)


def test_hooks_around_see_what_is_kept_instead():
    chain, x = make_chain(64, 4096)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.nbytes) or t, lambda t: t):
        chain(x)
    assert sum(size >= x.nbytes for size in packed) >= 2


def test_where_pytorch_does_not_tell_of_hooks(monkeypatch):
    chain, x = make_chain()
    expected = gradients(chain, chain, x)
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    check_same(gradients(chain, chain, x), expected, rtol=0, atol=0)


def test_a_module_with_a_hook_is_called_once_and_its_result_kept():
    chain, x = make_chain()
    calls = []
    chain.norm.register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(chain.plain, chain, x)
    calls.clear()
    check_same(gradients(chain, chain, x), expected, rtol=0, atol=0)
    assert calls == [1]


def test_nothing_is_recorded_without_autograd_and_outside_of_saving():
    chain, x = make_chain()
    with torch.no_grad(), memory.saving():
        assert memory.cheap(chain.norm, x).grad_fn is None
    assert memory.cheap(F.gelu, x).grad_fn.name().startswith("Gelu")
    with OperatorCount() as count:
        memory.cheap(F.gelu, x).sum().backward()
    assert count.by_name["aten.gelu"] == 1


@pytest.mark.parametrize(("what", "runs"), [(memory.NOTHING, 1), (memory.ALL_BUT_ATTENTION, 2), (memory.ALL, 2)])
def test_what_is_recomputed(what, runs):
    chain, x = make_chain()
    expected = gradients(chain.plain, chain, x)
    with OperatorCount() as count:
        check_same(gradients(lambda x: memory.recomputed(chain.plain, x, what=what), chain, x), expected)
    assert count.by_name["aten.native_layer_norm"] == runs


def test_random_numbers_repeat_in_the_second_computation():
    x = torch.ones(1000, requires_grad=True)
    out = memory.recomputed(lambda x: F.dropout(x, 0.5).exp(), x, random=True)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out > 1.5, 2 * out, 0.0).detach())


# ---- what functions for CUDA compute again


@pytest.fixture
def on_cuda():
    with context.pretend_device("cuda"):
        yield


def halved(x: Tensor) -> Tensor:
    return x * 0.5


def of_marked(function, source: Tensor, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What autograd keeps of a function of a marked tensor, and the gradients."""
    kept: list[Tensor] = []
    x = memory.made(halved(source), halved, source)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = function(x)
    return kept, list(torch.autograd.grad(y.square().sum(), [source, *parameters]))


@pytest.mark.parametrize("what", [memory.NOTHING, memory.ALL_BUT_ATTENTION])
@pytest.mark.parametrize("kind", ["feed-forward", "linear"])
def test_on_cuda_maps_keep_what_a_marked_input_is_made_of(kind, what, on_cuda):
    torch.manual_seed(0)
    fc1, fc2 = nn.Linear(8, 24).double(), nn.Linear(24, 8).double()
    source = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    parts = [fc1, fc2] if kind == "feed-forward" else [fc1]
    mapped = feed_forward.feed_forward if len(parts) == 2 else linear.linear

    def function(x):
        return mapped(x, *parts)

    parameters = [p for part in parts for p in part.parameters()]
    with memory.saving(source, what):
        kept, found = of_marked(function, source, parameters)
    spares = kind == "feed-forward" or what == memory.ALL_BUT_ATTENTION
    assert any(t.data_ptr() == source.data_ptr() for t in kept) == spares
    y = halved(source)
    y = fc2(F.gelu(fc1(y))) if len(parts) == 2 else fc1(y)
    torch.testing.assert_close(found, list(torch.autograd.grad(y.square().sum(), [source, *parameters])))


def test_a_marked_result_that_somebody_has_written_into_is_kept(on_cuda):
    source = torch.randn(2, 3)
    result = memory.made(halved(source), halved, source)
    assert memory.sources_of(result)[1][0] is source
    result.add_(1.0)
    assert memory.sources_of(result) == (None, ())


@pytest.mark.parametrize("what", [memory.NOTHING, memory.ALL_BUT_ATTENTION])
def test_what_is_computed_again_as_a_whole_keeps_its_results(what, on_cuda):
    policies = []

    def function(x: Tensor) -> Tensor:
        policies.append(memory.state.policy)
        return x.exp()

    x = torch.randn(3, requires_grad=True)
    with memory.saving(x, what):
        outside = memory.state.policy
        memory.recomputed(function, x, what=memory.ALL).sum().backward()
    assert policies == [memory.ALL_RESULTS] * 2
    assert outside == (memory.LEAST if what == memory.ALL_BUT_ATTENTION else memory.USUAL)
    assert memory.state.policy == memory.USUAL


def test_what_is_computed_again_keeps_what_its_inputs_are_made_of(on_cuda):
    source, other = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    runs, made_again = [], []

    def make(x: Tensor) -> Tensor:
        made_again.append(1)
        return x * 0.5

    def function(x: Tensor, y: Tensor) -> Tensor:
        runs.append((x.requires_grad, y.requires_grad))
        return (x * y).exp() * y

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return make(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * 0.5

    with memory.saving(source, memory.ALL_BUT_ATTENTION):
        result = memory.made(Halved.apply(source), make, source)
        held = weakref.ref(result.untyped_storage())
        y = memory.recomputed(function, other, result, what=memory.ALL)
    del result
    gc.collect()
    assert held() is None
    found = torch.autograd.grad(y.sum(), [source, other])
    assert runs == [(True, True)] * 2
    assert len(made_again) == 2
    theirs = torch.autograd.grad(((other * source * 0.5).exp() * source * 0.5).sum(), [source, other])
    torch.testing.assert_close(found, theirs)
