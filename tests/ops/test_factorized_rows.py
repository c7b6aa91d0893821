"""Factorised attention of rows by PyTorch's operators, against the references of the kernels."""

from __future__ import annotations

import pytest
import torch

from helpers.official import relative_error
from mm_vitbackbones.layers import ChannelsLastConv2d
from mm_vitbackbones.ops import context, conv, depthwise, factorized_rows, joint
from mm_vitbackbones.ops.kernels import registration

HEADS, DIM, WINDOWS = 8, 3, {3: 6, 5: 9, 7: 9}
CHANNELS = HEADS * DIM


def inputs(batch, height, width, dtype=torch.float64):
    """Rows, a shape, three linear maps and the convolutions of relative positions."""
    torch.manual_seed(batch)
    rows = torch.randn(batch * (height * width + 1), CHANNELS, dtype=dtype)
    widths = (CHANNELS, 2 * CHANNELS), (CHANNELS, CHANNELS), (CHANNELS, CHANNELS)
    maps = [torch.nn.Linear(*width).to(dtype) for width in widths]
    convs = [ChannelsLastConv2d(c, c, k, padding=k // 2, groups=c).to(dtype) for k, c in WINDOWS.items()]
    return rows, (batch, height, width), maps, convs


def parameters_of(maps, convs):
    parameters = [x for layer in maps for x in (layer.weight, layer.bias)]
    return [*parameters, *(x for group in depthwise.parameters_of(convs) for x in group)]


def step(form, again, rows, shape, maps, convs):
    """The result, and the gradients of rows and parameters."""
    rows = rows.clone().requires_grad_()
    leaves = [rows, *(x for layer in (*maps, *convs) for x in layer.parameters())]
    options = form, shape, HEADS, rows.dtype, len(convs)
    out = factorized_rows._attended(rows, again, options, *parameters_of(maps, convs))
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 2, 4), (2, 1, 1)])
def test_results_and_gradients_are_those_of_the_reference(shape, again):
    arguments = inputs(*shape)
    expected = step(factorized_rows.WITH_KERNELS, False, *arguments)
    found = step(factorized_rows.WITHOUT_KERNELS, again, *arguments)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) <= 1e-12


def test_rows_of_images_are_put_back():
    rows = torch.arange(2 * 7.0).view(14, 1).expand(14, 4)
    by_image = factorized_rows._by_image(rows, (2, 2, 3), torch.bfloat16)
    assert by_image[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 12, 6, 7, 8, 9, 10, 11, 13]
    assert torch.equal(factorized_rows._by_kind(by_image, (2, 2, 3), torch.float32), rows)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@torch.no_grad()
def test_sums_over_many_tokens_lose_no_more_than_their_terms(dtype, bound):
    rows, shape, maps, convs = inputs(1, 100, 100, dtype)
    query_key, value = (layer(rows) for layer in maps[:2])
    windows = depthwise.parameters_of(convs)
    narrow = factorized_rows._mixed((query_key, value, shape, HEADS, *windows))
    windows = [[x.double() for x in group] for group in windows]
    wide = factorized_rows._mixed((query_key.double(), value.double(), shape, HEADS, *windows))
    for a, b in zip(narrow, wide, strict=True):
        assert relative_error(a.double(), b) <= bound
    # Equal keys: each token weighs as much, and the matrices are the mean of the values.
    same = torch.zeros_like(query_key), torch.ones_like(value)
    matrices = factorized_rows._mixed((*same, shape, HEADS, *depthwise.parameters_of(convs)))[2]
    torch.testing.assert_close(matrices, torch.full_like(matrices, DIM**-0.5), rtol=max(bound, 1e-3), atol=0)


def test_only_rows_of_plain_maps_with_biases_are_taken():
    rows, shape, maps, convs = inputs(2, 2, 3)
    arguments = joint.Rows(rows, shape), maps, convs, conv.windows(convs), HEADS, False
    with context.pretend_device("cuda"):
        assert factorized_rows.attend(*arguments) is not None
        maps[1].bias = None
        assert factorized_rows.attend(*arguments) is None


@torch.no_grad()
def test_shares_below_the_range_of_fp16_are_not_rounded_to_it():
    """Each of equal keys has a share of 1 / N: in fp16 it would be 0.2 % off."""
    rows, shape, maps, convs = inputs(1, 250, 250, torch.float32)
    for parameter in (x for layer in (*maps, *convs) for x in layer.parameters()):
        parameter.zero_()
    maps[0].bias.fill_(1.0)
    maps[1].bias.fill_(1.0)
    maps[2].weight.copy_(torch.eye(CHANNELS))
    with context.pretend_device("cuda"), registration.forced(False), torch.autocast("cpu", torch.float16):
        out = factorized_rows.attend(joint.Rows(rows, shape), maps, convs, conv.windows(convs), HEADS, False)
    torch.testing.assert_close(out.rows.float(), torch.full_like(rows, DIM**0.5), rtol=1e-3, atol=0)
