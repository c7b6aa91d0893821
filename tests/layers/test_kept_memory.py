"""What a block keeps on CUDA for the backward pass, in the form that a CPU can run: bytes of each channel of a token.

Under bf16 autocast the residual stream has 4 bytes, all else has 2.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers import as_on_cuda
from helpers.memory import Live
from mm_vitbackbones.backbones.swin import PatchMerging, WindowAttention
from mm_vitbackbones.layers import Block, ConvReduction, FeedForward, MixFeedForward, SelfAttention
from mm_vitbackbones.layers.attention import SpatialReductionAttention
from mm_vitbackbones.ops import context, memory, narrow, norm

DIM, SIDE = 64, 32


@pytest.fixture
def operators_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda.use(monkeypatch)


def of_tokens(scale: float | None = None) -> Block:
    return Block(DIM, SelfAttention(DIM, 2), FeedForward(DIM, 4 * DIM), 1e-6, 0.1, scale)


def of_windows(shift: int) -> Block:
    return Block(DIM, WindowAttention(DIM, 2, window_size=8, shift=shift), FeedForward(DIM, 4 * DIM), 1e-5, 0.1)


def of_reduced() -> Block:
    attention = SpatialReductionAttention(DIM, 2, ConvReduction(DIM, 2))
    return Block(DIM, attention, MixFeedForward(DIM, 4 * DIM), 1e-6, 0.1)


# The norm, queries, keys and values, the result of attention: 2 + 6 + 2, of windows its tokens in order, too: 2. The
# sum: 4, the hidden map: 8. Light: queries, keys and values, the result of attention and, except of windows, that of
# its linear map.
BLOCKS: dict[str, tuple[Callable[[], Block], tuple[int, ...], float, float]] = {
    "attention to all": (of_tokens, (2, SIDE * SIDE), 2 + 6 + 2 + 4 + 8, 6 + 2 + 2),
    "layer scale": (lambda: of_tokens(1.0), (2, SIDE * SIDE), 2 + 6 + 2 + 4 + 8 + 2 + 2, 6 + 2 + 2 + 2),
    "windows": (lambda: of_windows(0), (2, SIDE, SIDE), 2 + 6 + 2 + 2 + 4 + 8, 6 + 2),
    "shifted windows": (lambda: of_windows(4), (2, SIDE, SIDE), 2 + 6 + 2 + 2 + 4 + 8, 6 + 2),
    "attention to a reduced grid": (of_reduced, (2, SIDE, SIDE), 2 + 2 + 2 + 2 + 4 + 2 + 8 + 2, 2 + 2 + 2 + 2),
}
"""Each with the shape of its tokens, and what is kept besides the input: as by default, and with
``with_cp="all_but_attention"``."""
STATISTICS, BIASES = 0.8, 2.0
"""Of norms and of attention, in fp32; of windows that a shift has cut. Keys and values of a reduced grid are 2 in all,
with what they are made of."""


def kept(block: torch.nn.Module, x: Tensor) -> float:
    """Bytes for each element of the input, besides the parameters' copies and the result."""
    with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16), narrow.copies(block, x):
        with Live():
            block(x)  # what is made at the first call
        with Live() as live:
            y = block(x)
    return (live.now - y.numel() * y.element_size()) / x.numel()


@pytest.mark.parametrize("light", [False, True], ids=["default", "with_cp"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_keeps_little(name: str, light: bool, operators_as_on_cuda: None) -> None:
    make, shape, usual, least = BLOCKS[name]
    block = make().train()
    if light:
        block.recompute = memory.ALL_BUT_ATTENTION
    found = kept(block, torch.zeros(*shape, DIM, requires_grad=True))
    expected = least if light else usual
    assert expected <= found <= expected + STATISTICS + (BIASES if name == "shifted windows" else 0), found


def test_merging_keeps_the_grid_alone() -> None:
    assert kept(PatchMerging(DIM, 2 * DIM), torch.zeros(2, SIDE, SIDE, DIM, requires_grad=True)) < STATISTICS


@pytest.mark.parametrize("light", [False, True], ids=["default", "with_cp"])
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_those_of_the_form_for_a_cpu(name: str, light: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "is_for", context.is_eager_on_cuda)  # of fp64, too
    torch.manual_seed(0)
    make, shape, _, _ = BLOCKS[name]
    block, x = make().double().train(), torch.randn(*shape, DIM, dtype=torch.float64, requires_grad=True)
    weight, wanted = torch.randn_like(x), [x, *block.parameters()]

    def gradients() -> tuple[Tensor, ...]:
        torch.manual_seed(1)  # of the paths that are dropped
        return torch.autograd.grad((block(x) * weight).sum(), wanted)

    theirs = gradients()
    block.recompute = memory.ALL_BUT_ATTENTION if light else memory.NOTHING
    with context.pretend_device("cuda"):
        torch.testing.assert_close(gradients(), theirs)
