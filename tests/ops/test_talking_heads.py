"""Talking heads in bands of queries against the reference, which keeps all scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as checkpointing

from helpers.graphs import needs_graphs_that_run
from helpers.official import relative_error
from mm_vitbackbones.measuring import OperatorCount, held_bytes, peak_bytes
from mm_vitbackbones.ops import context, memory, talking_heads


@pytest.fixture(autouse=True)
def bands_of_any_size(monkeypatch):
    monkeypatch.setattr(talking_heads, "FEWEST_QUERIES", 1)


NO_KERNELS = ("empty", "new_empty", "empty_like", "_unsafe_view", "promote_types")


def mixing(heads: int, dtype: torch.dtype) -> list[nn.Linear]:
    torch.manual_seed(5)
    return [nn.Linear(heads, heads, dtype=dtype) for _ in range(2)]


def with_gradients(attend, qkv, linears, of_out):
    inputs = [qkv, *(p for linear in linears for p in linear.parameters())]
    out = attend(qkv, *linears, len(linears[0].bias))
    return [out.detach(), *torch.autograd.grad((out * of_out).sum(), inputs)]


@pytest.mark.parametrize("band", [1, 7, 10**6])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_mixed_heads_in_bands_are_the_reference_with_its_gradients(band, device, monkeypatch):
    for name in ("BAND_BYTES", "CUDA_BAND_BYTES"):
        monkeypatch.setattr(talking_heads, name, 4 * 30 * 8 * band)
    linears = mixing(4, torch.float64)
    qkv = torch.randn(2, 30, 3 * 24, dtype=torch.float64, requires_grad=True)
    of_out = torch.randn(2, 30, 24, dtype=torch.float64)
    with context.pretend_device(device):
        found = with_gradients(talking_heads.attend, qkv, linears, of_out)
        with torch.no_grad():
            assert relative_error(talking_heads.attend(qkv, *linears, 4), found[0]) == 0
    expected = with_gradients(talking_heads.reference, qkv, linears, of_out)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if i == 3:  # of the bias that the softmax does not see
            assert a.abs().max() == 0 < 1e-12 > b.abs().max()
        else:
            assert relative_error(a, b) <= 1e-12


@torch.no_grad()
def test_the_operators_take_a_batch_of_no_images():
    """Which graphs may hold; in eager mode the reference takes it."""
    (before, after), qkv = mixing(4, torch.float32), torch.randn(0, 5, 24)
    weights = before.weight, after.weight, after.bias
    out = talking_heads.mixed_heads(qkv, *weights, 4)
    assert out.shape == (0, 5, 8)
    of_qkv, *others = talking_heads.mixed_heads_backward(out, qkv, *weights, 4)
    assert of_qkv.shape == qkv.shape
    assert not any(gradient.any() for gradient in others)


@pytest.mark.parametrize("shape", [(1, 1, 12), (1, 5, 12), (3, 5, 24)])
def test_mixed_heads_change_no_input(shape):
    """Queries, keys and values of one image, or of one token, have the order of memory that the products want."""
    linears, qkv = mixing(2, torch.float32), torch.randn(shape, requires_grad=True)
    before = qkv.detach().clone()
    with_gradients(talking_heads.attend, qkv, linears, 1.0)
    assert torch.equal(qkv, before)


def test_mixed_heads_of_one_band_are_few_operators(monkeypatch):
    """A GPU starts each of them: no zeros that something is added to, and no copies into buffers."""
    before, after = mixing(4, torch.float32)
    grad, found = torch.ones(2, 9, 16), {}
    inputs = torch.randn(2, 9, 3 * 16), before.weight.detach(), after.weight.detach(), after.bias.detach(), 4
    for budget in (talking_heads.CUDA_BAND_BYTES, 0):
        monkeypatch.setattr(talking_heads, "CUDA_BAND_BYTES", budget)
        for what, run in (
            ("forward", lambda: talking_heads._mixed_heads(*inputs)),
            ("backward", lambda: talking_heads._mixed_gradients(grad, *inputs)),
        ):
            with context.pretend_device("cuda"), OperatorCount() as count:
                run()
            found[what, budget > 0] = count.total - sum(count.by_name[f"aten.{name}"] for name in NO_KERNELS)
    assert found["forward", True] <= 10 < found["forward", False]
    assert found["backward", True] <= 26 < found["backward", False]


def test_mixed_heads_under_autocast_are_as_near_as_the_reference(monkeypatch):
    monkeypatch.setattr(talking_heads, "BAND_BYTES", 4 * 50 * 2 * 7)
    linears = mixing(4, torch.float32)
    qkv, of_out = torch.randn(2, 50, 3 * 32, requires_grad=True), torch.randn(2, 50, 32)
    exact = with_gradients(talking_heads.reference, qkv, linears, of_out)

    def errors(attend):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = with_gradients(lambda x, *args: attend(x.bfloat16(), *args), qkv, linears, of_out)
        assert found[0].dtype == torch.bfloat16
        assert all(a.dtype == torch.float32 for a in found[1:])
        pairs = zip(found, exact, strict=True)
        return [float((a - b).norm() / b.norm()) for i, (a, b) in enumerate(pairs) if i != 3]

    pairs = zip(errors(talking_heads.attend), errors(talking_heads.reference), strict=True)
    for bands, reference in pairs:
        assert bands < max(2 * reference, 0.005)


@pytest.mark.parametrize("index", [0, 1])
def test_mixing_that_somebody_observes_is_called(index):
    linears, seen = mixing(2, torch.float32), []
    qkv = torch.randn(1, 6, 24)
    expected = talking_heads.attend(qkv, *linears, 2)
    linears[index].register_forward_hook(lambda _, __, out: seen.append(out.shape))
    torch.testing.assert_close(talking_heads.attend(qkv, *linears, 2), expected)
    assert seen == [(1, 6, 6, 2)]


def test_memory_of_mixed_heads_grows_with_the_band_and_not_with_the_square_of_tokens(monkeypatch):
    heads, dim, linears = 4, 8, mixing(4, torch.float32)

    def training(tokens, rows):
        monkeypatch.setattr(talking_heads, "BAND_BYTES", heads * tokens * 4 * rows)
        qkv = torch.randn(1, tokens, 3 * dim, requires_grad=True)
        band, maps = heads * tokens * 4 * rows, qkv.nbytes
        kept = held_bytes(lambda: talking_heads.attend(qkv, *linears, heads))
        peak = peak_bytes(lambda: talking_heads.attend(qkv, *linears, heads).sum().backward())
        # Nothing but the result is kept. A band holds four tensors; sums and gradients are three times as large
        # as queries, keys and values.
        assert kept <= maps / 3 + 1000
        assert peak <= 4 * band + 4 * maps + 10_000
        return peak

    whole = 256 * 256 * heads * 4
    assert training(256, 8) < whole
    assert training(256, 32) > 2 * training(256, 8) - 5 * 256 * 3 * dim * 4
    assert training(512, 8) < 2.2 * training(256, 8)


@pytest.mark.parametrize("fewest", [1, 20])
def test_all_bands_of_mixed_heads_write_into_the_same_memory(fewest, monkeypatch):
    monkeypatch.setattr(talking_heads, "BAND_BYTES", 2 * 60 * 4 * 10)
    monkeypatch.setattr(talking_heads, "FEWEST_QUERIES", fewest)
    queries, found = max(10, fewest), []
    bands = talking_heads._Bands(torch.empty(3, 60, 24), 2, 2)
    assert [*bands.groups()] == [slice(i, i + 1) for i in range(3)]
    for band, (first, second) in bands.of(torch.empty(2, 60, 4)):
        found.append((band.start, band.stop, first.data_ptr(), second.data_ptr() - first.data_ptr()))
        assert first.shape == (2, band.stop - band.start, 60)
    start, apart = found[0][2], 2 * queries * 60 * 4
    assert found == [(i, min(i + queries, 60), start, apart) for i in range(0, 60, queries)]


def test_mixed_heads_of_small_images_are_computed_together(monkeypatch):
    linears, qkv = mixing(4, torch.float64), torch.randn(7, 6, 3 * 16, dtype=torch.float64, requires_grad=True)
    of_out = torch.randn(7, 6, 16, dtype=torch.float64)
    found, counts = [], []
    for images in (3, 1):
        monkeypatch.setattr(talking_heads, "BAND_BYTES", images * 4 * 6 * 6 * 8)
        found.append(with_gradients(talking_heads.attend, qkv, linears, of_out))
        with torch.no_grad(), OperatorCount() as count:
            talking_heads._mixed_heads(qkv, *(x for x in (linears[0].weight, *linears[1].parameters())), 4)
        counts.append(count.by_name["aten._softmax"] + count.by_name["aten.softmax"])
    assert counts == [3, 7]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("tokens", "runs"), [(40, 1), (8, 2)])
def test_mixed_heads_over_many_tokens_are_not_computed_again_with_what_is_cheap(tokens, runs):
    if not hasattr(checkpointing, "create_selective_checkpoint_contexts"):
        pytest.skip("this PyTorch cannot keep the result of an operator alone")
    linears, qkv = mixing(2, torch.float32), torch.randn(1, tokens, 3 * 16, requires_grad=True)
    with OperatorCount() as count:
        out = memory.recomputed(
            lambda x: talking_heads.attend(x.sin(), *linears, 2).sin(), qkv, what=memory.ALL_BUT_ATTENTION
        )
        out.sum().backward()
    assert count.by_name["mm_vitbackbones.mixed_heads"] == runs
    assert count.by_name["aten.sin"] == 3  # the second computation ends before the last one


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@needs_graphs_that_run
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_mixed_heads_keep_no_matrix_of_tokens_by_tokens():
    linears, heads = mixing(4, torch.float64), 4
    compiled = torch.compile(talking_heads.attend, backend="aot_eager", fullgraph=True)
    for tokens in (24, 256, 100):  # the second graph is for any number
        qkv = torch.randn(2, tokens, 3 * 8, dtype=torch.float64, requires_grad=True)
        of_out = torch.randn(2, tokens, 8, dtype=torch.float64)
        found, expected = (with_gradients(attend, qkv, linears, of_out) for attend in (compiled, talking_heads.attend))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    qkv = torch.randn(2, 256, 3 * 8, dtype=torch.float64, requires_grad=True)
    assert held_bytes(lambda: compiled(qkv, *linears, heads)) <= 2 * qkv.nbytes < 2 * heads * 256 * 256


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.usefixtures("fresh_compiler")
def test_an_exported_graph_holds_pytorchs_own_operators(strict):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = mixing(2, torch.float32)

        def forward(self, qkv):
            return talking_heads.attend(qkv, self.before, self.after, 2)

    module, qkv = Mixed().eval(), torch.randn(1, 6, 24)
    exported = torch.export.export(module, (qkv,), strict=strict)
    assert not [node for node in exported.graph.nodes if "mm_vitbackbones" in str(node.target)]
    torch.testing.assert_close(exported.module()(qkv), module(qkv))
