"""Factorised attention with class tokens: the operators, their gradients, and the kernels in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from helpers.official import relative_error
from mm_vitbackbones.ops.kernels import factorized as kernels

BATCH, HEADS = 2, 8


def inputs(tokens, dim, dtype=torch.float64):
    """Queries with keys, values and positions, as rows."""
    torch.manual_seed(tokens)
    rows, channels = BATCH * (tokens + 1), HEADS * dim
    shapes = (rows, 2 * channels), (rows, channels), (BATCH * tokens, channels)
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def naive(query_key, value, position):
    """Image by image and head by head, as in the paper."""
    tokens, dim = len(position) // BATCH, value.shape[1] // HEADS
    grids, cls = [], []
    for image in range(BATCH):
        mine = [*range(image * tokens, (image + 1) * tokens), BATCH * tokens + image]
        query, key = query_key[mine].chunk(2, -1)
        out = []
        for q, k, v in zip(*(x.split(dim, -1) for x in (query, key, value[mine])), strict=True):
            out.append(q @ (k.softmax(0).T @ v) / dim**0.5)
        out = torch.cat(out, -1)
        grids.append(out[:-1] + query[:-1] * position[image * tokens : (image + 1) * tokens])
        cls.append(out[-1:])
    return torch.cat(grids + cls)


def test_the_operator_is_the_papers_equation():
    arguments = inputs(11, 3)
    assert relative_error(kernels.attend(*arguments, BATCH, HEADS)[0], naive(*arguments)) <= 1e-12


def test_gradients_are_those_of_the_paper():
    ours, theirs = inputs(11, 3), [x.requires_grad_() for x in inputs(11, 3)]
    weight = torch.linspace(-1, 1, len(ours[1]), dtype=torch.float64).unsqueeze(1)
    _, *sums = kernels.attend(*ours, BATCH, HEADS)
    (naive(*theirs) * weight).sum().backward()
    grad = weight.expand_as(ours[1])
    for a, b in zip(kernels.attend_backward(*ours, *sums, grad), theirs, strict=True):
        assert relative_error(a, b.grad) <= 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_sums_over_tokens_are_in_full_precision(dtype, bound):
    narrow = inputs(3000, 2, dtype)
    expected = kernels.attend(*(x.double() for x in narrow), BATCH, HEADS)
    for a, b in zip(kernels.attend(*narrow, BATCH, HEADS), expected, strict=True):
        assert relative_error(a.double(), b) <= bound
    # Equal keys: each token weighs as much, and the matrices are the mean of the values.
    same = [torch.zeros_like(narrow[0]), torch.ones_like(narrow[1]), narrow[2]]
    matrices = kernels.attend(*same, BATCH, HEADS)[1]
    torch.testing.assert_close(matrices, torch.full_like(matrices, 2**-0.5), rtol=1e-4, atol=0)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOAT, HALF = torch.float32, torch.float16  # the interpreter has no products of bf16

# Windows of all heads, windows that begin between heads, several tiles of a program.
SHAPES = {"narrow heads": (9, 8, 528, HALF), "unaligned": (5, 19, 528, FLOAT), "tiles": (150, 8, 2, FLOAT)}


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_their_references(shape, monkeypatch):
    pytest.importorskip("triton", reason="the kernels are written in Triton")
    if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without a card, TRITON_INTERPRET=1 has to be set")
    pytest.importorskip("helpers.interpreted")
    from mm_vitbackbones.ops.kernels.triton import factorized as launches

    tokens, dim, programs, dtype = SHAPES[shape]
    monkeypatch.setattr(launches, "PROGRAMS", programs)
    arguments = [x.to(DEVICE) for x in inputs(tokens, dim, dtype)]
    bound = 1e-5 if dtype == FLOAT else 1e-3
    results = launches.attend(*arguments, BATCH, HEADS)
    wide = [x.double() for x in arguments]
    expected = kernels.reference(*wide, BATCH, HEADS)
    for a, b in zip(results, expected, strict=True):
        assert relative_error(a.double(), b) <= bound
    grad = torch.randn_like(results[0])
    gradients = launches.attend_backward(*arguments, *results[1:], grad)
    expected_gradients = kernels.reference_backward(*wide, *expected[1:], grad.double())
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert relative_error(a.double(), b) <= bound


def test_what_the_kernels_do_not_serve_is_left_to_the_reference():
    assert kernels.served(torch.empty(9, 8 * 64), 8)
    assert kernels.served(torch.empty(9, 8 * 57), 8)
    assert not kernels.served(torch.empty(9, 8 * 59), 8)
    assert not kernels.served(torch.empty(9, 8 * 72), 8)
    assert not kernels.served(torch.empty(9, 64, dtype=torch.float64), 8)
    assert not kernels.served(torch.empty(9, 12), 2)
