"""Layers equal what their papers say, and the counts that make blocks fast and lean hold."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.official import relative_error
from mm_vitbackbones.backbones import PVT, CoaT, MiT, PiT, PVTv2, Swin
from mm_vitbackbones.backbones.coat import (
    ConvPosition,
    ConvRelativePosition,
    FactorizedAttention,
    SerialBlock,
    Shared,
)
from mm_vitbackbones.backbones.pit import SelfAttention
from mm_vitbackbones.layers import (
    BICUBIC,
    Block,
    Branch,
    ConvReduction,
    DropPath,
    FeedForward,
    LayerNorm,
    LayerScale,
    LearnedPosition,
    MixFeedForward,
    PatchEmbed,
    SpatialReductionAttention,
)
from mm_vitbackbones.measuring import OperatorCount, copies, held_bytes, peak_bytes
from mm_vitbackbones.ops import context, conv, memory, onednn, residual
from mm_vitbackbones.ops.resize import resized_sum


def gradients(function, module, grid):
    module.zero_grad()
    grid = grid.clone().requires_grad_()
    out = function(grid)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), grid.grad, *(p.grad.clone() for p in module.parameters())]


def naive_attention(query, key, value, heads):
    out = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        out.append(weights @ v)
    return torch.cat(out, -1)


def naive_reduced_attention(attention, grid):
    """As in the paper: keys and values of a coarser grid."""
    keys = grid
    if isinstance(attention.reduction, ConvReduction):
        maps = F.conv2d(
            grid.permute(0, 3, 1, 2), *attention.reduction.conv.parameters(), attention.reduction.conv.stride
        )
        keys = attention.reduction.norm(maps.permute(0, 2, 3, 1))
    key, value = attention.kv(keys.flatten(1, 2)).chunk(2, -1)
    out = naive_attention(attention.q(grid.flatten(1, 2)), key, value, attention.num_heads)
    return attention.proj(out).view_as(grid)


@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_spatial_reduction_attention_is_that_of_the_paper(ratio, heads):
    torch.manual_seed(1)
    attention = SpatialReductionAttention(16, heads, ConvReduction(16, ratio) if ratio > 1 else None)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    grid = torch.randn(2, 9, 13, 16)
    with torch.no_grad():
        assert relative_error(attention(grid), naive_reduced_attention(attention, grid)) <= 1e-5
    attention.double()  # sums that cancel: fp32 would blur them
    grid = grid.double()
    found = gradients(attention, attention, grid)
    expected = gradients(lambda x: naive_reduced_attention(attention, x), attention, grid)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) <= 1e-11


@pytest.mark.parametrize("form", ["eval", "eval_without_fused_operators", "train"])
def test_self_attention_is_attention(form, monkeypatch):
    torch.manual_seed(1)
    attention = SelfAttention(16, 2)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(2, 30, 16)

    def plain(x):
        query, key, value = attention.qkv(x).chunk(3, dim=-1)
        return attention.proj(naive_attention(query, key, value, 2))

    if form == "train":
        attention.double()
        actual = gradients(attention, attention, tokens.double())
        for a, b in zip(actual, gradients(plain, attention, tokens.double()), strict=True):
            assert relative_error(a, b) <= 1e-12
        return
    if form != "eval":
        monkeypatch.setattr(onednn, "_operators_work", lambda: False)
    with torch.no_grad():
        assert relative_error(attention(tokens), plain(tokens)) <= 1e-5


def naive_factorized(attention, cls, grid, crpe):
    """As in the paper: all tokens in one tensor, head by head, a window for each head."""
    _, height, width, dim = grid.shape
    tokens = torch.cat([cls.flatten(1, 2), grid.flatten(1, 2)], 1)
    query, key = attention.qk(tokens).chunk(2, -1)
    parts = [x.chunk(8, -1) for x in (query, key, attention.v(tokens))]
    windows = [(i, window) for window in crpe.convs for i in range(window.out_channels // (dim // 8))]
    out = []
    for q, k, v, (i, window) in zip(*parts, windows, strict=True):
        mine = slice(i * dim // 8, (i + 1) * dim // 8)
        maps = v[:, 1:].transpose(1, 2).unflatten(2, (height, width))
        side = window.kernel_size[0]
        seen = F.conv2d(maps, window.weight[mine], window.bias[mine], padding=side // 2, groups=dim // 8)
        position = torch.cat([torch.zeros_like(v[:, :1]), seen.flatten(2).transpose(1, 2)], 1)
        out.append(q @ (k.softmax(1).transpose(1, 2) @ v) * (dim // 8) ** -0.5 + q * position)
    result = attention.proj(torch.cat(out, -1))
    return result[:, :1].view_as(cls), result[:, 1:].view_as(grid)


def share(cpe, crpe):
    convs = [*crpe.convs]
    return Shared(cpe, crpe, convs, conv.windows(convs))


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("framed", [True, False])
def test_factorized_attention_is_that_of_the_paper(grad, framed):
    torch.manual_seed(12)
    modules = nn.ModuleList([FactorizedAttention(24), ConvPosition(24), ConvRelativePosition(24)])
    for parameter in modules.parameters():
        nn.init.normal_(parameter, std=0.5)
    attention, cpe, crpe = modules
    shared = share(cpe, crpe) if framed else Shared(cpe, crpe, [*crpe.convs], None)
    cls, grid = torch.randn(2, 1, 1, 24), torch.randn(2, 9, 6, 24)
    with torch.no_grad():
        expected = naive_factorized(attention, cls, grid, crpe)
    with torch.set_grad_enabled(grad):
        for a, b in zip(attention((cls, grid), shared), expected, strict=True):
            assert relative_error(a, b) <= 1e-5


def test_gradients_of_factorized_attention():
    torch.manual_seed(13)
    modules = nn.ModuleList([FactorizedAttention(16), ConvPosition(16), ConvRelativePosition(16)])
    attention, cpe, crpe = modules.double()
    tokens = torch.randn(2, 31, 16, dtype=torch.float64)

    def ours(x):
        parts = x[:, :1].unsqueeze(1), x[:, 1:].unflatten(1, (5, 6))
        return torch.cat([p.flatten(1, 2) for p in attention(parts, share(cpe, crpe))], 1)

    def naive(x):
        parts = x[:, :1].unsqueeze(1), x[:, 1:].unflatten(1, (5, 6))
        return torch.cat([p.flatten(1, 2) for p in naive_factorized(attention, *parts, crpe)], 1)

    used = nn.ModuleList([attention, crpe])
    for a, b in zip(gradients(ours, used, tokens), gradients(naive, used, tokens), strict=True):
        assert relative_error(a, b) <= 1e-12


def test_levels_are_resized_to_each_other():
    torch.manual_seed(14)
    grids = [torch.randn(2, height, width, 8) for height, width in ((9, 13), (5, 7), (3, 4))]
    before = [grid.clone() for grid in grids]
    for height, width in ((9, 13), (5, 7), (3, 4)):
        expected = sum(F.interpolate(g.permute(0, 3, 1, 2), (height, width), mode="bilinear") for g in grids)
        with torch.no_grad():
            torch.testing.assert_close(resized_sum(grids, height, width), expected.permute(0, 2, 3, 1))
    assert all(torch.equal(a, b) for a, b in zip(grids, before, strict=True))


FEED_FORWARD = {
    "plain": lambda: FeedForward(16, 64),
    "mix": lambda: MixFeedForward(16, 64),
    "mix_relu": lambda: MixFeedForward(16, 64, relu=True),
}


def naive_feed_forward(ffn, x):
    hidden = ffn.fc1(x)
    if isinstance(ffn, MixFeedForward):
        hidden = F.relu(hidden) if ffn.relu else hidden
        hidden = F.conv2d(hidden.permute(0, 3, 1, 2), *ffn.dwconv.parameters(), padding=1, groups=64).permute(
            0, 2, 3, 1
        )
    return ffn.fc2(F.gelu(hidden))


@pytest.mark.parametrize("make", FEED_FORWARD.values(), ids=FEED_FORWARD.keys())
def test_a_block_of_training_is_the_papers(make):
    torch.manual_seed(2)
    block = Block(16, SpatialReductionAttention(16, 2, ConvReduction(16, 2)), make(), 1e-6, drop_path=0.0).double()
    grid = torch.randn(2, 6, 7, 16, dtype=torch.float64)

    def paper(x):
        x = x + naive_reduced_attention(block.attn, block.norm1(x))
        return x + naive_feed_forward(block.ffn, block.norm2(x))

    for a, b in zip(gradients(block, block, grid), gradients(paper, block, grid), strict=True):
        assert relative_error(a, b) <= 1e-11


def test_a_branch_is_scaled_and_dropped():
    torch.manual_seed(2)
    norm, ffn, scale = LayerNorm(8), FeedForward(8, 16), LayerScale(8, 0.25)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        scale.gamma.copy_(torch.arange(8.0))
        expected = x + torch.arange(8.0) * naive_feed_forward(ffn, norm(x))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = Branch(norm, ffn, DropPath(0.0), scale).add_to(x)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    dropped = Branch(norm, ffn, lambda branch: branch * 0, scale).add_to(x)
    assert torch.equal(dropped, x)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_on_cuda_a_block_adds_scaled_branches_in_the_passes_of_their_norms(rate):
    torch.manual_seed(3)
    block = Block(16, SelfAttention(16, 2), FeedForward(16, 32), 1e-6, rate, layer_scale=0.5).train()
    for scale in (block.ls1, block.ls2):
        nn.init.normal_(scale.gamma)
    x = torch.randn(4, 5, 16, requires_grad=True)

    def run(cuda):
        torch.manual_seed(4)  # of the draws
        with context.pretend_device("cuda") if cuda else nullcontext(), OperatorCount() as count:
            y = block(x)
            found = torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
        return [y.detach(), *found], count.by_name

    (ours, counts), (expected, _) = run(cuda=True), run(cuda=False)
    for a, b in zip(ours, expected, strict=True):
        assert relative_error(a, b) <= 1e-5
    assert [counts[f"mm_vitbackbones.{name}"] for name in ("add_layer_norm", "scale_backward")] == [1, 2]
    assert counts["aten.addcmul"] == 1


def test_in_inference_a_branch_is_scaled_in_place_and_its_input_stays():
    block = Block(16, SelfAttention(16, 2), FeedForward(16, 32), 1e-6, 0.0, layer_scale=0.5).eval()
    x = torch.randn(1, 64, 16)
    before = x.clone()
    expected = block(x).detach()
    with torch.no_grad(), OperatorCount() as count:
        y = block(x)
    torch.testing.assert_close(y, expected)
    assert torch.equal(x, before)
    assert count.by_name["aten.mul_"] == 2
    assert "aten.mul" not in count.by_name


def test_on_cuda_a_layer_scale_with_a_hook_is_called():
    block = Block(16, SelfAttention(16, 2), FeedForward(16, 32), 1e-6, 0.0, layer_scale=0.5)
    calls = []
    block.ls2.register_forward_hook(lambda *_: calls.append(1))
    with context.pretend_device("cuda"):
        block(torch.randn(1, 5, 16))
    assert calls == [1]


def test_tiling_patches_pad_at_the_bottom_and_right():
    torch.manual_seed(6)
    embed = PatchEmbed(4, 8, kernel_size=2, stride=2)
    grid = torch.randn(1, 5, 6, 4)
    padded = F.pad(grid, (0, 0, 0, 0, 0, 1))
    assert torch.equal(embed(grid), embed(padded))
    assert embed(grid).shape == (1, 3, 3, 8)


def test_position_is_resized_by_its_own_grid():
    torch.manual_seed(7)
    position = LearnedPosition(4, 14, 14)
    grid = torch.zeros(1, 14, 14, 4)
    assert torch.equal(position(grid), position.table)
    # As many tokens as the table has, but another grid: the official code leaves this one as it is.
    wide = position(torch.zeros(1, 7, 28, 4))
    expected = F.interpolate(position.table.permute(0, 3, 1, 2), (7, 28), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(wide, expected)
    position.resize = BICUBIC
    expected = F.interpolate(position.table.permute(0, 3, 1, 2), (7, 28), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(position(torch.zeros(1, 7, 28, 4)), expected)


def test_drop_path_keeps_the_mean():
    torch.manual_seed(8)
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 2, 2, 1))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(out.amin((1, 2, 3)), out.amax((1, 2, 3)))
    assert float(out.mean()) == pytest.approx(1, abs=0.05)


FIRST_FEED_FORWARD = {
    "pvt": lambda: FeedForward(64, 512),
    "pvt_v2": lambda: MixFeedForward(64, 512),
    "mit": lambda: MixFeedForward(64, 256),
}


def make_block(family: str) -> Block:
    """A block of the first stage, which has the largest maps."""
    attention, ffn = SpatialReductionAttention(64, 1, ConvReduction(64, 8)), FIRST_FEED_FORWARD[family]()
    return Block(64, attention, ffn, 1e-6, drop_path=0.0)


@pytest.mark.parametrize("family", FIRST_FEED_FORWARD)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_no_map_is_copied_inside_a_block(family, training):
    block, grid = make_block(family).train(training), torch.randn(2, 64, 64, 64)

    def run():
        with torch.set_grad_enabled(training):
            out = block(grid)
            if training:
                out.backward(torch.ones_like(out))

    run()
    found = copies(run, at_least=grid.numel())
    if training:
        # F.linear writes its bias into the result by a copy, which is none of layout. The linears are q, proj, fc1 and
        # fc2; recomputation stops before it would run one again.
        assert found == {"aten::copy_": 4}
    else:
        assert not found


@pytest.mark.parametrize(
    ("make", "others"),
    [
        # The keys of the two blocks of the first stage: the patches of 8x8 cells, which are smaller than their weights.
        (lambda: PVT("tiny"), 2),
        (lambda: PVTv2("b1"), 2),
        (lambda: MiT("b1"), 2),
        (lambda: CoaT("lite_mini"), 0),
        (lambda: PiT("s"), 0),
        (lambda: Swin("tiny"), 3),  # patch merging brings neighbours together
    ],
    ids=["pvt", "pvt_v2", "mit", "coat_lite", "pit", "swin"],
)
def test_the_image_and_the_four_outputs_are_the_only_clones(make, others):
    backbone = make().eval()
    image = torch.randn(1, 3, 128, 192)

    def run():
        with torch.no_grad():
            backbone(image)

    run()
    smallest_map = backbone.channels[-1] * 4 * 6
    weights = {tuple(parameter.shape) for parameter in backbone.parameters()}
    assert copies(run, at_least=smallest_map, ignore=weights)["aten::clone"] == 1 + 4 + others


@pytest.mark.parametrize(("family", "limit"), [("pvt", 21), ("pvt_v2", 24), ("mit", 24)])
def test_operators_of_a_block(family, limit):
    block, grid = make_block(family).eval(), torch.randn(1, 8, 8, 64)
    with torch.no_grad():
        block(grid)
        with OperatorCount() as count:
            block(grid)
    assert count.total <= limit, count.by_name


@pytest.mark.parametrize("family", FIRST_FEED_FORWARD)
def test_no_query_by_key_matrix_and_no_hidden_map_in_eval(family):
    block, grid = make_block(family).eval(), torch.randn(1, 256, 256, 64)

    def run():
        with torch.no_grad():
            return block(grid)

    run()
    map_bytes = grid.numel() * 4
    # The hidden map alone would be 8 maps (MiT: 4, and as much after its convolution), the attention matrix 16.
    assert peak_bytes(run) < 6 * map_bytes


@pytest.mark.parametrize("family", FIRST_FEED_FORWARD)
def test_training_keeps_the_hidden_map_once(family):
    block, grid = make_block(family).train(), torch.randn(1, 64, 64, 64, requires_grad=True)
    map_bytes = grid.numel() * 4
    hidden_bytes = block.ffn.fc1.out_features // 64 * map_bytes
    kept = held_bytes(lambda: block(grid))
    assert hidden_bytes < kept < hidden_bytes + 6 * map_bytes
    block.recompute = memory.ALL_BUT_ATTENTION
    assert held_bytes(lambda: block(grid)) < 3 * map_bytes  # what attention gave, and the block's own result
    block.recompute = memory.ALL
    assert held_bytes(lambda: block(grid)) < 2 * map_bytes


@pytest.mark.parametrize(("recompute", "runs"), [(memory.NOTHING, 1), (memory.ALL_BUT_ATTENTION, 1), (memory.ALL, 2)])
def test_attention_is_computed_once_but_where_the_whole_block_is_recomputed(recompute, runs):
    # 81 keys of 64 channels
    block, grid = make_block("mit").train(), torch.randn(1, 72, 72, 64, requires_grad=True)
    block.recompute = recompute
    with OperatorCount() as count:
        block(grid).sum().backward()
    assert count.by_name["aten._scaled_dot_product_flash_attention_for_cpu"] == runs


@pytest.mark.parametrize(("tokens", "runs"), [(64, 2), (65, 1)])
def test_attention_over_fewer_tokens_than_channels_is_cheap_to_compute_again(tokens, runs):
    block, tokens = make_token_block().train(), torch.randn(2, tokens, 64, requires_grad=True)
    block.recompute = memory.ALL_BUT_ATTENTION
    with OperatorCount() as count:
        block(tokens).sum().backward()
    assert count.by_name["aten._scaled_dot_product_flash_attention_for_cpu"] == runs


def test_without_selective_checkpointing_all_is_recomputed(monkeypatch):
    block, grid = make_block("mit").train(), torch.randn(1, 16, 16, 64, requires_grad=True)
    block(grid).sum().backward()
    expected, grid.grad = grid.grad, None
    monkeypatch.setattr(memory, "_ATTENTION_KEPT", None)
    block.recompute = memory.ALL_BUT_ATTENTION
    block(grid).sum().backward()
    torch.testing.assert_close(grid.grad, expected)


# ---- PiT: class tokens and cells of the grid in one tensor (B, N, C)


def make_token_block() -> Block:
    return Block(64, SelfAttention(64, 2), FeedForward(64, 256), 1e-6, drop_path=0.0)


def test_a_block_of_tokens_copies_nothing_and_takes_nine_operators():
    block, tokens = make_token_block().eval(), torch.randn(2, 1025, 64)
    with torch.no_grad():
        block(tokens)
        assert not copies(lambda: block(tokens), at_least=tokens.numel())
        with OperatorCount() as count:
            block(tokens)
    # Two norms, four linear maps with their bias (one with its GELU, too), attention, two sums.
    assert count.total <= 9, count.by_name


def test_training_a_block_of_tokens_copies_biases_only():
    block, tokens = make_token_block().train(), torch.randn(2, 1025, 64)

    def run():
        out = block(tokens)
        out.backward(torch.ones_like(out))

    run()
    # F.linear writes its bias into the result by a copy: four of them.
    assert copies(run, at_least=tokens.numel()) == {"aten::copy_": 4}


def test_a_block_of_tokens_holds_no_scores_and_no_hidden_map(monkeypatch):
    monkeypatch.setattr(residual, "BAND_BYTES", 2**16)
    block, tokens = make_token_block().eval(), torch.randn(1, 4097, 64)

    def run():
        with torch.no_grad():
            return block(tokens)

    run()
    # The scores would be 128 maps, the hidden map 4, which with the norm and the sums are more than 6.
    assert peak_bytes(run) < 6 * tokens.numel() * 4
    block.train()
    lived = held_bytes(lambda: block(tokens))
    assert lived < 11 * tokens.numel() * 4
    block.recompute = memory.ALL_BUT_ATTENTION
    assert held_bytes(lambda: block(tokens)) < lived - 3.5 * tokens.numel() * 4
    block.recompute = memory.ALL
    assert held_bytes(lambda: block(tokens)) < 1.5 * tokens.numel() * 4


def test_pits_memory_grows_with_the_pixels_and_not_with_their_square():
    spec = dict(depths=(1, 1, 1), dims=(8, 16, 32), num_heads=(1, 2, 4), pretrain_grid=7)
    backbone = PiT(spec).eval()

    def peak(side):
        image = torch.randn(1, 3, side, side)
        with torch.no_grad():
            backbone(image)
            return peak_bytes(lambda: backbone(image))

    assert peak(768) < 4.5 * peak(384)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: PVTv2("b2"), lambda: MiT("b2"), lambda: PiT("s")], ids=["pvt_v2", "mit", "pit"]
)
def test_an_image_of_2048_pixels_a_side_fits_into_8_gigabytes(make):
    backbone, image = make().eval(), torch.randn(1, 3, 2048, 2048)
    weights = sum(parameter.nbytes for parameter in backbone.parameters())

    def run():
        with torch.no_grad():
            return backbone(image)

    assert weights + image.nbytes + peak_bytes(run) < 8e9


@pytest.mark.parametrize("batch", [1, 2])
def test_pit_copies_the_image_its_outputs_and_what_the_class_tokens_part(batch):
    backbone, image = PiT("ti", out_indices=(1, 2, 3)).eval(), torch.randn(batch, 3, 128, 192)

    def run():
        with torch.no_grad():
            backbone(image)

    run()
    # The cells of one image lie together after its class token. Those of several do not: the convolutions of both
    # poolings copy them.
    expected = 1 + 3 + (2 if batch > 1 else 0)
    weights = {tuple(parameter.shape) for parameter in backbone.parameters()}
    assert copies(run, at_least=batch * 256 * 4 * 6, ignore=weights)["aten::clone"] == expected


# ---- CoaT: class tokens next to grids


class CoatBlock(nn.Module):
    """A serial block of CoaT with what its stage owns: (B, H, W, 64) -> (B, H, W, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = SerialBlock(64, 512, drop_path=0.0)
        self.cpe, self.crpe = ConvPosition(64), ConvRelativePosition(64)

    def forward(self, grid):
        return self.block((grid[:, :1, :1], grid), share(self.cpe, self.crpe))[1]


def set_recompute(block, what):
    """As the backbone does it."""
    for module in block.modules():
        if hasattr(module, "recompute"):
            module.recompute = what


def test_copies_of_maps_in_a_block_of_coat():
    block, grid = CoatBlock().eval(), torch.randn(2, 64, 64, 64)

    def infer():
        with torch.no_grad():
            block(grid)

    def train():
        out = block(grid[:1])
        out.backward(torch.ones_like(out))

    infer()
    # The bands of the feed-forward network are added to the grid where the result is.
    assert not copies(infer, at_least=grid[0].numel())
    block.train()
    train()
    # The linears' biases are copied into their results: qk, v, proj, fc1, fc2. The heads' results are joined by one
    # copy, and two more come of taking them apart in the backward pass.
    assert copies(train, at_least=grid[:1].numel()) == {"aten::copy_": 5 + 3, "aten::clone": 3}


def test_operators_of_the_blocks_of_coat():
    backbone = CoaT(arch=dict(depths=(1, 1, 1, 1), dims=(64,) * 4, parallel_depth=1, mlp_ratios=(4,) * 4)).eval()
    calls = []
    for block in (backbone.stages[1].blocks[0], backbone.parallel_blocks[0]):
        block.register_forward_pre_hook(lambda block, inputs: calls.append((block, inputs)))
    with torch.no_grad():
        backbone(torch.randn(1, 3, 64, 64))
        counts = []
        for block, inputs in list(calls):
            with OperatorCount() as count:
                block.forward(*inputs)
            counts.append(count.total)
    assert counts[0] <= 52  # eight products of the heads, and what the class token takes
    assert counts[1] <= 174


def test_memory_of_a_block_of_coat():
    block, grid = CoatBlock().eval(), torch.randn(1, 256, 256, 64)

    def infer():
        with torch.no_grad():
            return block(grid)

    infer()
    # The hidden map alone would be 8 maps.
    assert peak_bytes(infer) < 6.5 * grid.numel() * 4
    grid = torch.randn(1, 64, 64, 64, requires_grad=True)
    hidden_bytes = 8 * grid.numel() * 4
    block.train()
    assert hidden_bytes < held_bytes(lambda: block(grid)) < 2.1 * hidden_bytes
    block.block.recompute = memory.ALL_BUT_ATTENTION
    assert held_bytes(lambda: block(grid)) < 1.1 * hidden_bytes
    block.block.recompute = memory.ALL
    assert held_bytes(lambda: block(grid)) < 0.25 * hidden_bytes
