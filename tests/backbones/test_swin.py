"""Windows: the fast forms equal the paper's, and the counts that make them fast hold."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from helpers.official import relative_error
from mm_vitbackbones.backbones import Swin, swin
from mm_vitbackbones.backbones.swin import WindowAttention, Windows, shift_masks
from mm_vitbackbones.layers import Block, FeedForward
from mm_vitbackbones.measuring import OperatorCount, copies, held_bytes, peak_bytes

SIZES = [(1, 1), (3, 9), (5, 4), (8, 8), (9, 13), (12, 3)]
CPU = torch.device("cpu")


def make_attention(window: int, shift: int) -> nn.ModuleList:
    torch.manual_seed(0)
    both = nn.ModuleList([WindowAttention(8, 2, window, shift), nn.LayerNorm(8)])
    for parameter in both.parameters():
        nn.init.normal_(parameter, std=0.5)
    return both


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_gather_is_pad_roll_and_partition(size, shift):
    torch.manual_seed(0)
    grid, fill, side = torch.randn(2, *size, 3), torch.randn(3), 4
    windows = Windows(2, *size, side, shift, CPU)
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
        assert windows.sizes == [len(group) for group in picked]
        expected = [torch.stack(group) for group in picked if group]
    gathered = windows.gather(grid.flatten(0, 2), fill)
    torch.testing.assert_close(gathered, torch.cat(expected).flatten(0, 1))
    assert torch.equal(windows.scatter(gathered).view_as(grid), grid)


@pytest.mark.parametrize(("side", "shift"), [(7, 3), (12, 6), (4, 1)])
def test_masks_are_those_of_nine_regions(side, shift):
    # The official form: a plane of region numbers, parted into windows.
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
def test_gathered_attention_equals_plain(size, shift):
    both = make_attention(4, shift).double()
    attention, norm = both
    results = []
    for form in (attention.gathered, attention.plain):
        both.zero_grad()
        grid = torch.linspace(-1, 1, 2 * math.prod(size) * 8, dtype=torch.float64).cos().view(2, *size, 8)
        out = form(grid.requires_grad_(), norm)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out.detach(), grid.grad, *(p.grad.clone() for p in both.parameters())])
    for a, b in zip(*results, strict=True):
        assert relative_error(a, b) <= 1e-11


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("crowded", [0.0, math.inf], ids=["at_once", "in_bands"])
@pytest.mark.parametrize("windows", [1, 3, 100])
def test_bands_equal_plain(size, shift, crowded, windows, monkeypatch):
    monkeypatch.setattr(swin, "CROWDED", crowded)
    monkeypatch.setattr(swin, "BAND_BYTES", windows * 16 * 3 * 8 * 4)
    attention, norm = make_attention(4, shift).eval()
    grid = torch.randn(2, *size, 8)
    with torch.no_grad():
        assert relative_error(attention.in_bands(grid, norm), attention.plain(grid, norm)) <= 1e-5


def test_padding_takes_part_in_attention():
    attention, norm = make_attention(4, 0).eval()
    grid = torch.randn(1, 3, 3, 8)
    with torch.no_grad():
        padded = F.pad(norm(grid), (0, 0, 0, 1, 0, 1)).flatten(1, 2)
        query, key, value = attention.qkv(padded).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / 2 + attention.bias()).softmax(-1)
        out = attention.proj((weights @ value).transpose(1, 2).flatten(2)).view(1, 4, 4, 8)[:, :3, :3]
        assert relative_error(attention(grid, norm), out) <= 1e-5


def test_the_bias_is_kept_until_the_table_changes():
    attention, _ = make_attention(4, 2).eval()
    with torch.no_grad():
        kept = attention.bias()
        assert attention.bias() is kept
        attention.relative_position_bias_table.add_(1.0)
        torch.testing.assert_close(attention.bias(), kept + 1)
        attention.relative_position_bias_table.data.add_(1.0)  # as averaging hooks write, between two modes
        attention.eval()
        torch.testing.assert_close(attention.bias(), kept + 2)
        attention.load_state_dict(make_attention(4, 2)[0].state_dict())
        assert torch.equal(attention.bias(), kept)
        assert attention.double().bias().dtype == torch.float64
    assert attention.bias().requires_grad
    assert copy.deepcopy(attention).state_dict().keys() == attention.state_dict().keys()
    assert not [key for key in attention.state_dict() if "index" in key or "mask" in key or "kept" in key]


def test_blocks_share_the_windows_of_a_size_and_few_sizes_are_kept():
    backbone = Swin(arch=dict(depths=(4, 1, 1, 1), dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1))).eval()
    swin.windows_of.cache_clear()
    with torch.no_grad():
        backbone(torch.randn(1, 3, 64, 64))
        made = swin.windows_of.cache_info().misses
        backbone(torch.randn(1, 3, 64, 64))
    assert made == 2 + 3  # with and without a shift in the first stage
    assert swin.windows_of.cache_info().misses == made
    assert swin.windows_of.cache_info().maxsize == 64


def test_windows_made_in_inference_mode_serve_training():
    backbone = Swin(arch=dict(depths=(2, 1, 1, 1), dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1)))
    swin.windows_of.cache_clear()
    swin.constants_of.cache_clear()
    image = torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        backbone.eval()(image)
    sum(level.sum() for level in backbone.train()(image)).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def make_block(shift: int) -> Block:
    return Block(64, WindowAttention(64, 2, 7, shift), FeedForward(64, 256), 1e-5, drop_path=0.0, recomputed=None)


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
@pytest.mark.parametrize("band_bytes", [2**30, 2**18], ids=["at_once", "in_bands"])
def test_a_whole_network_gathers_each_token_once_each_way_per_block(size, band_bytes, monkeypatch):
    monkeypatch.setattr(swin, "BAND_BYTES", band_bytes)
    batch, expected = 2, 0
    backbone, image = Swin("tiny").eval(), torch.randn(batch, 3, *size)
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
    block.recomputed = "ffn"
    assert held_bytes(lambda: block(grid)) < 1.5 * map_bytes
    block.recomputed = "block"
    assert held_bytes(lambda: block(grid)) < 1.5 * map_bytes
