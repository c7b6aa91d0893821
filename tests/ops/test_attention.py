"""Attention and its algebra against products that are written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.agreement import deterministic
from helpers.official import relative_error
from mm_vitbackbones.ops import attention, context, factorized


def naive_attention(query, key, value, heads):
    out = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        out.append(weights @ v)
    return torch.cat(out, -1)


@pytest.mark.parametrize("heads", [1, 3])
def test_attend_is_attention(heads):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 30, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    expected = naive_attention(query, key, value, heads)
    torch.testing.assert_close(attention.attend(query, key, value, heads), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("hooked", [False, True])
def test_projected_attention_is_that_of_projections(heads, hooked):
    torch.manual_seed(1)
    to_query, project = nn.Linear(16, 16), nn.Linear(16, 16)
    for parameter in (*to_query.parameters(), *project.parameters()):
        nn.init.normal_(parameter, std=0.5)  # biases too: one of them becomes the mask
    seen = []
    if hooked:
        to_query.register_forward_hook(lambda *_: seen.append(1))
    tokens, key, value = torch.randn(2, 30, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    with torch.no_grad():
        expected = project(naive_attention(F.linear(tokens, to_query.weight, to_query.bias), key, value, heads))
        found = attention.project_and_attend(tokens, to_query, key, value, project, heads)
    assert relative_error(found, expected) <= 1e-5
    assert seen == [1] * hooked


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("sizes", [[2, 0, 3], [0, 1, 4], [3, 1, 1], [5, 0, 0]], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_groups_of_windows_have_a_bias_each(grad, sizes, device):
    torch.manual_seed(2)
    qkv, bias = torch.randn(5, 4, 24), torch.randn(3, 2, 4, 4)
    each = torch.cat([bias[i : i + 1].expand(size, -1, -1, -1) for i, size in enumerate(sizes)])
    query, key, value = qkv.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / 2 + each).softmax(-1)
    expected = (weights @ value).transpose(1, 2).flatten(2)
    with context.pretend_device(device):
        found = attention.attend_with_bias(qkv, bias.requires_grad_(grad), 2, sizes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention.attend_with_bias(qkv, each, 2), expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_biased_attention():
    torch.manual_seed(3)
    qkv = torch.randn(5, 4, 24, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda qkv, bias: attention.attend_with_bias(qkv, bias, 2, [2, 3]), (qkv, bias))


def test_gradients_of_groups_that_attend_in_one_call_on_cuda():
    torch.manual_seed(3)
    qkv, bias, of_out = torch.randn(7, 4, 24), torch.randn(4, 2, 4, 4), torch.randn(7, 4, 8)
    found = []
    for device in ("cpu", "cuda"):
        inputs = qkv.clone().requires_grad_(), bias.clone().requires_grad_()
        with context.pretend_device(device):
            out = attention.attend_with_bias(*inputs, 2, [3, 1, 2, 1])
        found.append(torch.autograd.grad((out * of_out).sum(), inputs))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_over_tokens_is_in_full_precision_under_autocast(dtype):
    # 65536 equal keys: each weighs 2**-16. Their sum in a narrow type stops growing at 256 (bf16) or 2048 (fp16).
    key, value = torch.zeros(1, 2**16, 8, dtype=dtype), torch.ones(1, 2**16, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        matrices = factorized._contract(key, value, key[:, :1], value[:, :1], 8)
    assert matrices.dtype == torch.float32
    torch.testing.assert_close(matrices, torch.ones(1, 8, 1, 1))


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_contraction_and_its_use_change_no_input(grad):
    torch.manual_seed(4)
    query, key, value, position = (torch.randn(2, 20, 16) for _ in range(4))
    cls_key, cls_value = torch.randn(2, 1, 16), torch.randn(2, 1, 16)
    inputs = [query, key, value, position, cls_key, cls_value]
    before = [x.clone() for x in inputs]
    with torch.set_grad_enabled(grad):
        matrices = factorized.contract(key, value, cls_key, cls_value, 4)
        out = factorized.attend(query, matrices, position)
    keys, values = torch.cat([cls_key, key], 1), torch.cat([cls_value, value], 1)
    expected = torch.cat(
        [
            q @ (k.softmax(1).mT @ v) / 2
            for q, k, v in zip(*(x.chunk(4, -1) for x in (query, keys, values)), strict=True)
        ],
        -1,
    )
    torch.testing.assert_close(out, expected + query * position, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize(("side", "key_side", "count"), [(6, 4, 7), (5, 5, 7), (4, 4, 7)])
def test_gradients_of_distances_that_are_to_repeat(
    side: int, key_side: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grad = torch.randn(side, key_side, 3, dtype=torch.float64)
    expected = attention.distances_backward(grad, count)
    refused = "upsample_linear1d_backward"
    monkeypatch.setattr(torch.ops.aten, refused, lambda *_: pytest.fail("CUDA refuses this operator then"))
    with context.pretend_device("cuda"), deterministic():
        found = attention.distances_backward(grad, count)
    torch.testing.assert_close(found, expected)
