"""Attention over pooled queries, keys and values, against what is written out place by place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.official import relative_error
from mm_vitbackbones.layers import ChannelsLastConv2d
from mm_vitbackbones.measuring import copies
from mm_vitbackbones.ops import attention, pooling
from tools.benchmarks.host.as_on_gpu import kernels_on_cpu


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
def test_one_convolution_of_all_heads_is_that_of_each(stride, heads, size):
    torch.manual_seed(0)
    pool = ChannelsLastConv2d(4, 4, 3, stride, 1, groups=4, bias=False).double()
    grid = torch.randn(2, *size, 4 * heads, dtype=torch.float64, requires_grad=True)
    found, expected = (f(grid, pool, heads) for f in (pooling.pooled, pooling.pooled_reference))
    assert found.shape == (2, -(-size[0] // stride), -(-size[1] // stride), heads, 4)
    assert relative_error(found, expected.detach()) <= 1e-12
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * weight).sum(), (grid, pool.weight)) for x in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert relative_error(a, b) <= 1e-12


def pools_of(strides, dtype=torch.float64):
    return [ChannelsLastConv2d(4, 4, 3, stride, 1, groups=4, bias=False).to(dtype) for stride in strides]


@pytest.mark.parametrize(("strides", "convolutions"), [((1, 1, 1), 1), ((1, 2, 2), 2), ((2, 2, 1), 3)], ids=str)
@pytest.mark.parametrize("heads", [1, 3])
def test_parts_that_are_pooled_with_the_same_steps_take_one_convolution(strides, convolutions, heads):
    torch.manual_seed(0)
    pools = pools_of(strides)
    grid = torch.randn(2, 7, 10, 12 * heads, dtype=torch.float64, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = pooling.pooled_parts(grid, pools, heads)
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::convolution") == convolutions
    pairs = zip(grid.chunk(3, dim=-1), pools, strict=True)
    expected = [pooling.pooled_reference(part, pool, heads) for part, pool in pairs]
    weights = [torch.randn_like(x) for x in expected]
    inputs, gradients = (grid, *(pool.weight for pool in pools)), []
    for results in (found, expected):
        total = sum((x * weight).sum() for x, weight in zip(results, weights, strict=True))
        gradients.append(torch.autograd.grad(total, inputs))
    for a, b in zip((*found, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b.detach()) <= 1e-12


def test_each_part_is_pooled_by_its_module_if_one_is_observed():
    pools, seen = pools_of((1, 1, 1), torch.float32), []
    grid = torch.randn(2, 6, 8, 24)
    expected = pooling.pooled_parts(grid, pools, 2)
    pools[1].register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    torch.testing.assert_close(pooling.pooled_parts(grid, pools, 2), expected)
    assert seen == [(4, 6, 8, 4)]


@pytest.mark.parametrize(("side", "key_side", "count"), [(4, 2, 7), (3, 5, 9), (6, 6, 7), (5, 2, 11)], ids=str)
def test_a_product_gives_the_entries_of_a_table_and_their_gradient(side, key_side, count):
    torch.manual_seed(0)
    table = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    found, expected = (f(table, side, key_side) for f in (attention._by_shares, attention.by_distance))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * weight).sum(), table)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_the_entries_of_a_table_are_those_of_fp32_under_autocast():
    table = torch.randn(7, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention._by_shares(table, 5, 3)
    torch.testing.assert_close(found, attention.by_distance(table, 5, 3), rtol=1e-5, atol=1e-6)


def test_a_convolution_that_somebody_observes_is_called():
    pool, seen = ChannelsLastConv2d(4, 4, 3, 2, 1, groups=4, bias=False), []
    grid = torch.randn(2, 6, 8, 8)
    expected = pooling.pooled(grid, pool, 2)
    pool.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    torch.testing.assert_close(pooling.pooled(grid, pool, 2), expected)
    assert seen == [(4, 6, 8, 4)]


def test_heads_of_a_grid_are_pooled_without_copies():
    pool, grid = ChannelsLastConv2d(8, 8, 3, 2, 1, groups=8, bias=False), torch.randn(1, 40, 40, 32)
    with torch.no_grad():
        assert not copies(lambda: pooling.pooled(grid, pool, 4), grid.numel())
        assert copies(lambda: pooling.pooled_reference(grid, pool, 4), grid.numel())


def written_out(query, key, value, rows, columns):
    """Of one head: grids (H, W, d) and (H', W', d), and entries (H, H', d) and (W, W', d)."""
    dim = query.shape[-1]
    scores = torch.einsum("yxd,zwd->yxzw", query, key) * dim**-0.5
    scores = scores + torch.einsum("yxd,yzd->yxz", query, rows)[..., None]
    scores = scores + torch.einsum("yxd,xwd->yxw", query, columns)[:, :, None]
    shares = scores.flatten(2).softmax(-1).view_as(scores)
    return torch.einsum("yxzw,zwd->yxd", shares, value) + query


@pytest.mark.parametrize(("sides", "key_sides"), [((6, 4), (3, 2)), ((3, 5), (3, 5)), ((5, 3), (3, 2))], ids=str)
def test_all_queries_attend_to_all_keys_of_another_grid(sides, key_sides):
    torch.manual_seed(0)
    query = torch.randn(2, *sides, 2, 4, dtype=torch.float64)
    key, value = (torch.randn(2, *key_sides, 2, 4, dtype=torch.float64) for _ in range(2))
    tables = torch.randn(2, 11, 4, dtype=torch.float64)
    found = pooling.attend(query, key, value, *tables, None)
    pairs = zip(tables, sides, key_sides, strict=True)
    entries = [attention.by_distance(table, *both) for table, *both in pairs]
    for image in range(2):
        expected = [written_out(*(x[image, :, :, head] for x in (query, key, value)), *entries) for head in range(2)]
        torch.testing.assert_close(found[image], torch.cat(expected, dim=-1))


@contextmanager
def arguments_of_attention() -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """Queries, keys, values and mask of each call of PyTorch's attention."""
    calls, attend = [], F.scaled_dot_product_attention

    def noted(query, key, value, attn_mask=None, **others):
        calls.append((query, key, value, attn_mask))
        return attend(query, key, value, attn_mask, **others)

    with mock.patch.object(F, "scaled_dot_product_attention", noted):
        yield calls


def lines(rows, columns, dtype, heads=2, dim=8):
    """Heads of a grid of 3 x 2, over those of a grid of keys, and their entries."""
    torch.manual_seed(0)
    query = torch.randn(2, heads, 6, dim, dtype=dtype)
    key, value = (torch.randn(2, heads, rows * columns, dim, dtype=dtype) for _ in range(2))
    entries = [torch.randn(*sides, dim, dtype=dtype) / 4 for sides in ((3, rows), (2, columns))]
    return [x.requires_grad_() for x in (query, key, value, *entries)]


def gradients_of(result, inputs):
    torch.manual_seed(1)
    return torch.autograd.grad((result * torch.randn_like(result)).sum(), inputs)


def test_a_mask_of_lines_gives_what_channels_give():
    inputs = query, key, value, *entries = lines(5, 4, torch.float64)
    grid = query.unflatten(2, (3, 2))
    mask = attention._sums_of_lines(*attention.of_lines(grid, *entries))
    assert mask.is_contiguous()
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    expected = attention.attend_heads_by_distance(*inputs)
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients_of(found, inputs), gradients_of(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("rows", "columns", "width"), [(5, 4, 24), (4, 4, 16), (200, 48, 256), (200, 49, None)])
def test_heads_have_as_many_channels_as_kernels_take_and_lines_beyond_make_a_mask(rows, columns, width):
    inputs = lines(rows, columns, torch.bfloat16)
    expected = attention.attend_heads_by_distance(*(x.detach().double() for x in inputs))
    with kernels_on_cpu(), arguments_of_attention() as calls:
        found = attention.attend_heads_by_distance(*inputs)
    ((query, key, value, mask),) = calls
    assert {x.shape[-1] for x in (query, key, value)} == {width or 8}
    assert (mask is None) == (width is not None)
    assert relative_error(found, expected) <= 1e-2
    for a, b in zip(
        gradients_of(found, inputs), gradients_of(attention.attend_heads_by_distance(*inputs), inputs), strict=True
    ):
        assert relative_error(a, b) <= 2e-2


def test_lines_beyond_the_channels_stay_channels_where_no_kernel_gains():
    with kernels_on_cpu(), arguments_of_attention() as calls:
        attention.attend_heads_by_distance(*lines(200, 49, torch.float32))
        with mock.patch.object(attention, "LARGEST_MASK", 1000):
            attention.attend_heads_by_distance(*lines(200, 49, torch.bfloat16))
        with torch.autocast("cpu", torch.bfloat16):
            attention.attend_heads_by_distance(*lines(200, 49, torch.float32))
    with arguments_of_attention() as on_cpu:
        attention.attend_heads_by_distance(*lines(200, 49, torch.bfloat16))
    assert [mask is None for *_, mask in (*calls, *on_cpu)] == [True, True, False, True]


def test_windows_of_queries_and_keys_are_padded_apart_and_zero_keys_take_part():
    torch.manual_seed(0)
    query, tables = torch.randn(1, 6, 5, 1, 4, dtype=torch.float64), torch.randn(2, 7, 4, dtype=torch.float64)
    key, value = (torch.randn(1, 3, 3, 1, 4, dtype=torch.float64) for _ in range(2))
    found = pooling.attend(query, key, value, *tables, (4, 2))
    padded = F.pad(query[0, :, :, 0], (0, 0, 0, 3, 0, 2))
    keys, values = (F.pad(x[0, :, :, 0], (0, 0, 0, 1, 0, 1)) for x in (key, value))
    entries = [attention.by_distance(table, 4, 2) for table in tables]
    expected = torch.zeros_like(padded)
    for y in (0, 1):
        for x in (0, 1):
            of_queries = slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4)
            of_keys = slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2)
            expected[of_queries] = written_out(padded[of_queries], keys[of_keys], values[of_keys], *entries)
    torch.testing.assert_close(found[0], expected[:6, :5])


@pytest.mark.parametrize("size", [(8, 4), (5, 9)], ids=str)
def test_windows_are_joined_where_they_were_cut(size):
    heads = torch.randn(2, *size, 3, 4)
    windows = pooling.cut(heads, 4, (-(-size[0] // 4), -(-size[1] // 4)))
    assert windows.shape == (2 * -(-size[0] // 4) * -(-size[1] // 4), 3, 16, 4)
    assert torch.equal(pooling.joined(windows, 4, 2, *size), heads)


@pytest.mark.parametrize(
    ("side", "key_side", "expected"),
    [
        (4, 2, [[2, 0], [3, 1], [4, 2], [5, 3]]),  # i - 2 j + 2
        (2, 4, [[3, 2, 1, 0], [5, 4, 3, 2]]),  # 2 i - j + 3
        (3, 3, [[2, 1, 0], [3, 2, 1], [4, 3, 2]]),
        (3, 2, [[1, 0], [2, 1], [3, 2]]),  # i - 1.5 j + 1.5, cut off
    ],
)
def test_distances_of_lines_of_other_steps(side, key_side, expected):
    table = torch.arange(2.0 * max(side, key_side) - 1)[:, None]
    assert attention.by_distance(table, side, key_side).squeeze(-1).tolist() == expected


def test_pooling_takes_modules_that_are_no_convolution():
    grid = torch.randn(1, 4, 4, 8)
    torch.testing.assert_close(pooling.pooled(grid, nn.Identity(), 2), grid.unflatten(-1, (2, 4)))
