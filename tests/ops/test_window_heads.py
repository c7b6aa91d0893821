"""Window attention on CUDA, in the form that a CPU can run, against the paper's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.backbones.swin import WindowAttention
from mm_vitbackbones.ops import context, window_heads, windows

SIZES = [(8, 12), (7, 9), (3, 4), (4, 9)]
"""Of grids, for windows of 4: filled; padded; one window; one row of windows."""


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    with context.pretend_device("cuda"):
        yield


def make(shift: int) -> WindowAttention:
    torch.manual_seed(shift)
    attention = WindowAttention(6, num_heads=2, window_size=4, shift=shift).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    return attention


def reference(attention: WindowAttention, grid: Tensor) -> Tensor:
    bias = windows._bias(attention.relative_position_bias_table, 4, attention.shift)
    return windows._reference(grid, attention.qkv, attention.attend, attention.proj, bias, 4, attention.shift)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", SIZES)
def test_results_and_gradients_are_the_papers(size: tuple[int, int], shift: int) -> None:
    attention, grid = make(shift), torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    ours, theirs = attention(grid), reference(attention, grid)
    torch.testing.assert_close(ours, theirs)
    wanted = [grid, *attention.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), wanted) for y in (ours, theirs)))
    with torch.no_grad():
        torch.testing.assert_close(attention(grid), theirs)


@pytest.mark.parametrize("frozen", ["qkv.weight", "qkv.bias", "proj", "relative_position_bias_table", "qkv"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen: str) -> None:
    attention, grid = make(2), torch.randn(1, 7, 9, 6, dtype=torch.float64)
    for name, parameter in attention.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    wanted = [p for p in attention.parameters() if p.requires_grad]
    pair = (attention(grid), reference(attention, grid))
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), wanted) for y in pair))


@pytest.mark.parametrize("part", ["qkv", "proj"])
def test_a_map_with_a_hook_is_called(part: str) -> None:
    attention, calls = make(2), []
    getattr(attention, part).register_forward_hook(lambda *_: calls.append(1))
    grid = torch.randn(1, 7, 9, 6, dtype=torch.float64)
    torch.testing.assert_close(attention(grid), reference(attention, grid))
    assert len(calls) == 2


def test_each_group_of_windows_is_one_call_and_its_bias_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, attend = [], window_heads.F.scaled_dot_product_attention

    def seen(*args: Tensor, attn_mask: Tensor) -> Tensor:
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask)

    monkeypatch.setattr(window_heads.F, "scaled_dot_product_attention", seen)
    make(2)(torch.randn(2, 8, 12, 6, dtype=torch.float64))
    assert [mask.shape for mask in masks] == [(1, 2, 16, 16), (8, 2, 16, 16)]  # 2 x 2 windows inside, 2 x 4 at the ends
    assert masks[0].grad_fn is masks[1].grad_fn
