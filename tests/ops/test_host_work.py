"""Python's work in a step on a GPU, by the calls of functions: the processor that starts kernels is often what a step
waits for. Counted on a CPU that takes the forms for CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mm_vitbackbones
from mm_vitbackbones.backbones.cait import TalkingHeadsAttention
from mm_vitbackbones.backbones.mvit_v2 import PoolingAttention, PoolingBlock
from mm_vitbackbones.backbones.swin import WindowAttention
from mm_vitbackbones.backbones.xcit import Arch, XCiTBlock
from mm_vitbackbones.layers import (
    Block,
    ConvReduction,
    FeedForward,
    MixFeedForward,
    ResidualBlock,
    RotaryAttention,
    SelfAttention,
)
from mm_vitbackbones.layers.attention import SpatialReductionAttention
from mm_vitbackbones.ops import context, narrow
from mm_vitbackbones.ops.rotary import rotation

OURS = str(Path(mm_vitbackbones.__file__).parent)
REFERENCES = str(Path(OURS, "ops", "kernels"))
"""Of the kernels, which a CPU runs in their place: not counted."""
DIM = 16


def calls(run: Callable[[], Any]) -> int:
    """Python functions that are called: ours, and those of PyTorch's modules and autograd functions."""
    count = 0

    def seen(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        if event == "call":
            file = frame.f_code.co_filename
            ours = file.startswith(OURS) and not file.startswith(REFERENCES)
            count += ours or file in (nn.modules.module.__file__, torch.autograd.function.__file__)

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


class Turning(RotaryAttention):
    """Rotary attention of 3 x 4 patches, with the rotation that a network gives to all its blocks."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, bias=True)
        self.rotation = rotation(torch.ones(2), 3, 4)

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens, self.rotation)


def tokens() -> tuple[Block, Tensor]:
    return Block(DIM, SelfAttention(DIM, 2), FeedForward(DIM, 32), 1e-6, 0.1), torch.randn(2, 12, DIM)


def reduced() -> tuple[Block, Tensor]:
    attention = SpatialReductionAttention(DIM, 2, ConvReduction(DIM, 2))
    return Block(DIM, attention, MixFeedForward(DIM, 32), 1e-6, 0.1), torch.randn(2, 4, 6, DIM)


def windows(shift: int) -> tuple[Block, Tensor]:
    attention = WindowAttention(DIM, 2, window_size=4, shift=shift)
    return Block(DIM, attention, FeedForward(DIM, 32), 1e-6, 0.1), torch.randn(2, 7, 9, DIM)


def rotary() -> tuple[Block, Tensor]:
    return Block(DIM, Turning(DIM, 2), FeedForward(DIM, 32), 1e-6, 0.1), torch.randn(2, 12, DIM)


def talking_heads() -> tuple[Block, Tensor]:
    return Block(DIM, TalkingHeadsAttention(DIM, 2), FeedForward(DIM, 32), 1e-6, 0.1, 1.0), torch.randn(2, 3, 4, DIM)


def channels() -> tuple[XCiTBlock, Tensor]:
    return XCiTBlock(Arch(DIM, 2, 1), 1e-6, 0.1), torch.randn(2, 4, 6, DIM)


def pooled() -> tuple[PoolingBlock, Tensor]:
    attention = PoolingAttention(DIM, DIM, 2, stride=1, key_stride=2, window_size=None, side=4)
    return PoolingBlock(attention, DIM, DIM, 0.1), torch.randn(2, 4, 6, DIM)


BLOCKS: dict[str, tuple[Callable[[], tuple[ResidualBlock, Tensor]], int, int]] = {
    "attention to all": (tokens, 138, 66),
    "attention to a reduced grid": (reduced, 175, 89),
    "windows": (lambda: windows(0), 164, 79),
    "shifted windows": (lambda: windows(2), 170, 82),
    "rotary attention": (rotary, 158, 79),
    "talking heads": (talking_heads, 186, 94),
    "pooled attention": (pooled, 242, 154),
    "attention of channels": (channels, 248, 139),
}
"""Each with the most calls of a training step and of inference."""


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_calls_few_functions(name: str) -> None:
    make, of_training, of_inference = BLOCKS[name]
    block, x = make()
    x.requires_grad_()

    def train() -> None:
        with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16), narrow.copies(block, x):
            y = block(x)
        y.backward(y.detach())

    def infer() -> None:
        with context.pretend_device("cuda"), torch.no_grad():
            block(x.detach())

    train()  # what is made at the first call
    assert calls(train) <= of_training
    block.eval()
    infer()
    assert calls(infer) <= of_inference
