"""x + branch(x): where the sum goes, and bands that equal the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm_vitbackbones.layers import Block, Branch, DropPath, FeedForward, LayerNorm, MixFeedForward, SelfAttention
from mm_vitbackbones.ops import context, residual
from mm_vitbackbones.ops.kernels import registration

FEED_FORWARD = {
    "feed_forward": lambda: FeedForward(16, 64),
    "mix": lambda: MixFeedForward(16, 64),
    "mix_relu": lambda: MixFeedForward(16, 64, relu=True),
}
feed_forward = pytest.mark.parametrize("make", FEED_FORWARD.values(), ids=FEED_FORWARD.keys())


def make_branch(ffn: nn.Module) -> Branch:
    return Branch(LayerNorm(16), ffn.eval(), DropPath(0.0))


def reference(branch: Branch, x: torch.Tensor) -> torch.Tensor:
    """x + fc2(gelu(...)), with PyTorch's own functions."""
    ffn = branch.function
    hidden = ffn.fc1(branch.norm(x))
    if isinstance(ffn, MixFeedForward):
        hidden = F.relu(hidden) if ffn.relu else hidden
        maps = hidden.permute(0, 3, 1, 2)
        hidden = F.conv2d(maps, ffn.dwconv.weight, ffn.dwconv.bias, padding=1, groups=64).permute(0, 2, 3, 1)
    return x + ffn.fc2(F.gelu(hidden))


@feed_forward
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (7, 5), (8, 8), (33, 3)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 100])
def test_bands_equal_the_whole(make, size, rows, monkeypatch):
    torch.manual_seed(3)
    monkeypatch.setattr(residual, "BAND_BYTES", rows * size[1] * 64 * 4)
    branch, grid = make_branch(make()), torch.randn(2, *size, 16)
    with torch.no_grad():
        torch.testing.assert_close(branch.add_to(grid), reference(branch, grid), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 29, 100])
def test_bands_of_tokens_equal_the_whole(rows, monkeypatch):
    torch.manual_seed(3)
    monkeypatch.setattr(residual, "BAND_BYTES", rows * 64 * 4)
    branch, tokens = make_branch(FeedForward(16, 64)), torch.randn(2, 29, 16)
    with torch.no_grad():
        torch.testing.assert_close(branch.add_to(tokens), reference(branch, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("why", ["", "gradients", "autocast", "fp64", "a hook", "another device"])
def test_bands_run_in_plain_fp32_inference_on_a_cpu_only(why, monkeypatch):
    monkeypatch.setattr(residual, "BAND_BYTES", 256)
    calls = []
    monkeypatch.setattr(residual, "_add_in_bands", lambda x, *_: calls.append(1) or x)
    branch, grid = make_branch(FeedForward(16, 64)), torch.randn(1, 4, 4, 16)
    if why == "a hook":
        branch.function.fc1.register_forward_hook(lambda *_: None)
    if why == "fp64":
        branch.norm.double(), branch.function.double()
        grid = grid.double()
    with (
        torch.set_grad_enabled(why == "gradients"),
        torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"),
        context.pretend_device("cuda" if why == "another device" else "cpu"),
    ):
        branch.add_to(grid)
    assert calls == [1] * (why == "")


def test_the_sum_is_written_into_the_branch_without_autograd():
    x, branch = torch.randn(3, 4), torch.randn(3, 4)
    expected, kept = x + branch, x.clone()
    with torch.no_grad():
        out = residual.add(x, lambda _: branch, [])
    assert out is branch
    assert torch.equal(out, expected)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("why", ["gradients", "a hook", "another type", "the same memory", "another device"])
def test_the_sum_is_a_new_tensor_elsewhere(why):
    x = torch.randn(3, 4)
    branch = x.view(3, 4) if why == "the same memory" else torch.randn(3, 4)
    branch = branch.bfloat16() if why == "another type" else branch
    part = nn.Identity()
    if why == "a hook":
        part.register_forward_hook(lambda *_: None)
    kept, expected = branch.clone(), x + branch
    device = context.pretend_device("cuda" if why == "another device" else "cpu")
    with torch.set_grad_enabled(why == "gradients"), device:
        assert torch.equal(residual.add(x, lambda _: branch, [part]), expected)
    assert torch.equal(branch, kept)


def test_a_pair_is_the_sum_of_each():
    pair, branch = (torch.randn(2, 1, 3), torch.randn(2, 5, 3)), (torch.randn(2, 1, 3), torch.randn(2, 5, 3))
    expected = [a + b for a, b in zip(pair, branch, strict=True)]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = residual.add_both(pair, lambda _: tuple(x.clone() for x in branch), [])
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
def test_factors_and_sums_without_kernels_are_those_of_a_cpu(scaled):
    def step(**device):
        torch.manual_seed(0)
        block = Block(16, SelfAttention(16, 2), FeedForward(16, 64), 1e-6, 0.5, 0.1 if scaled else None).double()
        x = torch.randn(6, 5, 16, dtype=torch.float64, requires_grad=True)
        with context.pretend_device(**device), registration.forced(False):
            out = block(x)
            out.square().sum().backward()
        return [out.detach(), x.grad, *(p.grad for p in block.parameters())]

    for found, expected in zip(step(kind="cuda"), step(kind="cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_drop_path_that_is_observed_is_called_without_kernels():
    block = Block(16, SelfAttention(16, 2), FeedForward(16, 64), 1e-6, 0.5, 0.1)
    seen = []
    block.drop_path.register_forward_hook(lambda _, args, out: seen.append(out))
    block.ls1.register_forward_hook(lambda _, args, out: seen.append(out))
    with context.pretend_device("cuda"), registration.forced(False):
        block(torch.randn(6, 5, 16))
    assert len(seen) == 3
