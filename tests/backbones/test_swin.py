"""Windows: the fast forms equal the paper's, and the counts that make them fast hold."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from helpers.official import relative_error
from mm_vitbackbones.backbones import Swin
from mm_vitbackbones.backbones.swin import WindowAttention
from mm_vitbackbones.layers import Block, FeedForward
from mm_vitbackbones.measuring import OperatorCount, copies, held_bytes, peak_bytes
from mm_vitbackbones.ops import context, memory, windows
from mm_vitbackbones.ops.windows import Windows, shift_masks

SIZES = [(1, 1), (3, 9), (5, 4), (8, 8), (9, 13), (12, 3)]
CPU = torch.device("cpu")


def make_attention(window: int, shift: int) -> WindowAttention:
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, window, shift)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention


def run(form, attention: WindowAttention, grid: torch.Tensor) -> torch.Tensor:
    """One of the three forms."""
    side, shift = attention.window_size, attention.shift
    bias = windows.bias_of(attention.relative_position_bias_table, side, shift)
    given = grid, attention.qkv, attention.attend, attention.proj, bias
    if form is windows._reference:
        return form(*given, side, shift)
    return form(*given, windows.windows_of(*grid.shape[:3], side, shift, grid.device))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_gather_is_pad_roll_and_partition(size, shift):
    torch.manual_seed(0)
    grid, fill, side = torch.randn(2, *size, 3), torch.randn(3), 4
    places = Windows(2, *size, side, shift, CPU)
    padded = F.pad(grid - fill, (0, 0, 0, -size[1] % side, 0, -size[0] % side)) + fill
    plane = padded.roll((-shift, -shift), (1, 2))
    blocks = [
        [plane[b, y : y + side, x : x + side].flatten(0, 1) for x in range(0, plane.shape[2], side)]
        for b in range(2)
        for y in range(0, plane.shape[1], side)
    ]
    expected = [torch.stack([tokens for row in blocks for tokens in row])]
    if shift:
        rows = plane.shape[1] // side
        last = [(i + 1) % rows == 0 for i in range(2 * rows)]
        order = [(row, column) for row in (False, True) for column in (False, True)]
        picked = [
            [
                tokens
                for row, end in zip(blocks, last, strict=True)
                if end == r
                for tokens in (row[-1:] if c else row[:-1])
            ]
            for r, c in order
        ]
        assert places.sizes == [len(group) for group in picked]
        expected = [torch.stack(group) for group in picked if group]
    gathered = places.gather(grid.flatten(0, 2), fill)
    torch.testing.assert_close(gathered, torch.cat(expected).flatten(0, 1))
    assert torch.equal(places.scatter(gathered).view_as(grid), grid)


@pytest.mark.parametrize(("side", "shift"), [(7, 3), (12, 6), (4, 1)])
def test_masks_are_those_of_nine_regions(side, shift):
    # The official form: a plane of region numbers, split into windows.
    plane = torch.zeros(3 * side, 3 * side)
    bands = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            plane[rows, columns] = 3 * i + j
    for (y, x), mask in zip([(0, 0), (0, 2), (2, 0), (2, 2)], shift_masks(side, shift, CPU), strict=True):
        region = plane[y * side : (y + 1) * side, x * side : (x + 1) * side].flatten()
        assert torch.equal(mask[0], (region[:, None] != region) * -100.0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "hooked"])
def test_gathered_attention_is_the_papers(size, shift, plain):
    attention, results = make_attention(4, shift).double(), []
    if not plain:
        attention.qkv.register_forward_hook(lambda *_: None)
    for form in (windows._gathered, windows._reference):
        attention.zero_grad()
        grid = torch.linspace(-1, 1, 2 * math.prod(size) * 8, dtype=torch.float64).cos().view(2, *size, 8)
        out = run(form, attention, grid.requires_grad_())
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out.detach(), grid.grad, *(p.grad.clone() for p in attention.parameters())])
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) <= 1e-11


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("crowded", [0.0, math.inf], ids=["at_once", "in_bands"])
@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("overwrite", [False, True])
def test_bands_are_the_papers(size, shift, crowded, count, overwrite, monkeypatch):
    monkeypatch.setattr(windows, "CROWDED", crowded)
    monkeypatch.setattr(windows, "BAND_BYTES", count * 16 * 3 * 8 * 4)
    attention, grid = make_attention(4, shift).eval(), torch.randn(2, *size, 8)
    with torch.no_grad():
        expected = run(windows._reference, attention, grid)
        kept = grid.clone()
        with context.unobserved(torch.zeros(1) if overwrite else grid):
            out = run(windows._in_bands, attention, grid)
        assert relative_error(out, expected) <= 1e-5
    if not overwrite:
        assert torch.equal(grid, kept)


@pytest.mark.parametrize("attach", [False, True])
def test_bands_serve_inference_on_a_cpu_where_nothing_is_attached(attach, monkeypatch):
    calls = []
    monkeypatch.setattr(windows, "_in_bands", lambda grid, *_: calls.append(1) or grid)
    attention, grid = make_attention(4, 0).eval(), torch.randn(1, 8, 8, 8)
    if attach:
        attention.proj.register_forward_hook(lambda *_: None)
    attention(grid)
    with torch.no_grad():
        attention(grid)
        attention.double()(grid.double())
    assert calls == ([] if attach else [1])


def test_padding_takes_part_in_attention():
    attention, grid = make_attention(4, 0).eval(), torch.randn(1, 3, 3, 8)
    with torch.no_grad():
        padded = F.pad(grid, (0, 0, 0, 1, 0, 1)).flatten(1, 2)
        query, key, value = attention.qkv(padded).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        bias = windows.bias_of(attention.relative_position_bias_table, 4, 0)
        weights = (query @ key.transpose(-1, -2) / 2 + bias).softmax(-1)
        out = attention.proj((weights @ value).transpose(1, 2).flatten(2)).view(1, 4, 4, 8)[:, :3, :3]
        assert relative_error(attention(grid), out) <= 1e-5


def test_the_bias_is_kept_until_the_values_of_the_table_change():
    attention = make_attention(4, 2).eval()
    table = attention.relative_position_bias_table

    def bias():
        return windows.bias_of(attention.relative_position_bias_table, 4, 2)

    with torch.no_grad():
        kept = bias()
        assert bias() is kept
        table.add_(1.0)
        torch.testing.assert_close(bias(), kept + 1)
        table.data.add_(1.0)  # as averaging hooks write
        torch.testing.assert_close(bias(), kept + 2)
        table.numpy()[...] += 1.0  # through a shared buffer
        torch.testing.assert_close(bias(), kept + 3)
        with torch.inference_mode():
            table.data.add_(1.0)
            torch.testing.assert_close(bias(), kept + 4)
        torch.testing.assert_close(bias(), kept + 4)
        attention.load_state_dict(make_attention(4, 2).state_dict())
        assert torch.equal(bias(), kept)
        assert windows.bias_of(attention.double().relative_position_bias_table, 4, 2).dtype == torch.float64
    assert bias().requires_grad
    assert copy.deepcopy(attention).state_dict().keys() == attention.state_dict().keys()
    assert not [key for key in attention.state_dict() if "index" in key or "mask" in key or "kept" in key]


def test_on_cuda_no_bias_is_compared_or_kept_which_a_cuda_graph_could_not_hold(monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *_: pytest.fail("this waits for the card"))
    table = make_attention(4, 0).relative_position_bias_table
    with torch.no_grad(), context.pretend_device("cuda"):
        first, again = (windows.bias_of(table, 4, 2) for _ in range(2))
    assert first is not again
    assert table not in windows._kept_biases


def test_a_kept_bias_does_not_keep_its_table_alive():
    attention = make_attention(4, 0).eval()
    with torch.no_grad():
        attention(torch.randn(1, 4, 4, 8))
    table = weakref.ref(attention.relative_position_bias_table)
    assert table() in windows._kept_biases
    del attention
    gc.collect()
    assert table() is None


def test_blocks_share_the_windows_of_a_size_and_few_sizes_are_kept():
    backbone = Swin(arch=dict(depths=(4, 1, 1, 1), dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1))).eval()
    windows.windows_of.latest.clear()
    with torch.no_grad():
        backbone(torch.randn(1, 3, 64, 64))
        made = [*windows.windows_of.latest.values()]
        backbone(torch.randn(1, 3, 64, 64))
    assert len(made) == 2 + 3  # with and without a shift in the first stage
    assert [*windows.windows_of.latest.values()] == made
    assert windows.windows_of.count == 64


def test_windows_made_in_inference_mode_serve_training():
    backbone = Swin(arch=dict(depths=(2, 1, 1, 1), dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1)))
    windows.windows_of.latest.clear()
    windows.kept_constants.latest.clear()
    image = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        backbone.eval()(image)
    sum(level.sum() for level in backbone.train()(image)).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def make_block(shift: int) -> Block:
    return Block(64, WindowAttention(64, 2, 7, shift), FeedForward(64, 256), 1e-5, drop_path=0.0)


@pytest.mark.parametrize("shift", [0, 3])
def test_no_map_is_copied_inside_a_block(shift):
    block, grid = make_block(shift).eval(), torch.randn(2, 65, 64, 64)

    def run():
        with torch.no_grad():
            block(grid)

    run()
    assert not copies(run, at_least=grid.numel())


@pytest.mark.parametrize("shift", [0, 3])
def test_one_gather_in_and_one_out(shift):
    block, grid = make_block(shift).double().eval(), torch.randn(2, 65, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        block(grid)
        with OperatorCount() as count:
            block(grid)
    assert count.by_name["aten.index_select"] == 2
    assert not {"aten.roll", "aten.constant_pad_nd", "aten.clone", "aten.copy_"} & count.by_name.keys()
    assert count.by_name["aten.cat"] == (shift > 0)


@pytest.mark.parametrize("size", [(224, 224), (200, 330)])
@pytest.mark.parametrize("band_bytes", [2**30, 2**16], ids=["at_once", "in_bands"])
def test_a_whole_network_gathers_each_token_once_each_way_per_block(size, band_bytes, monkeypatch):
    monkeypatch.setattr(windows, "BAND_BYTES", band_bytes)
    batch, expected = 2, 0
    narrow = dict(depths=(2, 2, 6, 2), dims=(24, 48, 96, 192), num_heads=(1, 2, 4, 8))  # a quarter of Swin-T
    backbone, image = Swin(narrow).eval(), torch.randn(batch, 3, *size)
    for i, depth in enumerate(backbone.arch.depths):
        sides = [-(-side // (4 * 2**i)) for side in size]
        expected += depth * batch * (math.prod(sides) + math.prod(7 * -(-side // 7) for side in sides))

    with torch.no_grad():
        backbone(image)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as prof:
            backbone(image)
    gathered = [event.input_shapes[2] for event in prof.events() if event.name == "aten::index_select"]
    assert sum(rows for (rows,) in gathered) == expected
    assert "aten::roll" not in {event.name for event in prof.events()}


@pytest.mark.parametrize(("shift", "limit"), [(0, 17), (3, 23)])
def test_operators_of_a_block(shift, limit):
    block, grid = make_block(shift).eval(), torch.randn(1, 14, 14, 64)
    with torch.no_grad():
        block(grid)
        with OperatorCount() as count:
            block(grid)
    assert count.total <= limit, count.by_name


def test_no_hidden_map_and_no_mask_per_window_in_eval():
    block, grid = make_block(3).eval(), torch.randn(1, 254, 254, 64)

    def run():
        with torch.no_grad():
            return block(grid)

    run()
    # The hidden map alone would be 4 maps, queries, keys and values 3, and a mask for each window 1.5.
    assert peak_bytes(run) < 3.5 * grid.numel() * 4


def test_training_keeps_the_hidden_map_and_the_attention_once():
    block, grid = make_block(3).train(), torch.randn(1, 70, 70, 64, requires_grad=True)
    map_bytes = grid.numel() * 4
    kept = held_bytes(lambda: block(grid))
    # The hidden map 4, queries, keys and values 3, the attention's weights 1.5 and result, two sums.
    assert kept < 12 * map_bytes
    block.recompute = memory.ALL_BUT_ATTENTION
    assert held_bytes(lambda: block(grid)) < 1.5 * map_bytes
    block.recompute = memory.ALL
    assert held_bytes(lambda: block(grid)) < 1.5 * map_bytes
