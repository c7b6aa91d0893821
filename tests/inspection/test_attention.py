"""Attention weights of chosen queries, and how far they reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.toys import TOYS
from mm_vitbackbones.backbones import ViT, XCiT
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.inspection.attention import Seen, evenly, look, on_grid, spread, sum_on_grid
from mm_vitbackbones.layers import RelativeAttention, SelfAttention
from mm_vitbackbones.ops.looking import Lattice, Shares, of_tokens

# ---- weights by hand: of one image, each query and head, as the papers write them

Hand = tuple[Tensor, list[list[int]]]
"""Weights (h, N, M), and the cell of each key of each query, -1 for none."""


def softmax_of(query: Tensor, key: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """Tokens (N, C) and (M, C) -> (h, N, M)."""
    dim = query.shape[1] // heads
    parts = (slice(i * dim, (i + 1) * dim) for i in range(heads))
    scores = torch.stack([query[:, part] @ key[:, part].T / math.sqrt(dim) for part in parts])
    return torch.softmax(scores + bias, -1)


def cells(queries: int, keys: int, others: int = 0) -> list[list[int]]:
    return [[k - others for k in range(keys)]] * queries


def reduced(layer: Any, grid: Tensor) -> Hand:
    key = layer.kv(layer.reduction(grid)).flatten(0, 2).chunk(2, -1)[0]
    weights = softmax_of(layer.q(grid).flatten(0, 2), key, layer.num_heads)
    return weights, cells(*weights.shape[1:])


def self_attention(layer: Any, tokens: Tensor) -> Hand:
    query, key, _ = layer.qkv(tokens[0]).chunk(3, -1)
    weights = softmax_of(query, key, layer.num_heads)
    return weights, cells(len(query), len(key))


def rotary(layer: Any, tokens: Tensor, rotation: Any) -> Hand:
    def turned(x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (layer.num_heads, 2, -1)).unbind(2)
        cos, sin = rotation.cos[:, 0], rotation.sin[:, :, 1]
        return torch.stack((first * cos - second * sin, second * cos + first * sin), 2).flatten(1)

    weights = softmax_of(turned(layer.q(tokens[0])), turned(layer.k(tokens[0])), layer.num_heads)
    return weights, cells(*weights.shape[1:])


def talking(layer: Any, grid: Tensor) -> Hand:
    query, key, _ = layer.qkv(grid.flatten(0, 2)).chunk(3, -1)
    dim = query.shape[1] // layer.num_heads
    scores = torch.einsum("nhd,mhd->hnm", *(x.unflatten(1, (-1, dim)) for x in (query, key))) / math.sqrt(dim)
    mixed = torch.einsum("gh,hnm->gnm", layer.proj_l.weight, scores) + layer.proj_l.bias[:, None, None]
    return mixed.softmax(-1), cells(len(query), len(key))


def of_class_token(layer: Any, tokens: Tensor) -> Hand:
    weights = softmax_of(layer.q(tokens[0, :1]), layer.k(tokens[0]), layer.num_heads)
    return weights, cells(*weights.shape[1:])


def factorised(layer: Any, tokens: Any, shared: Any) -> Hand:
    rows = torch.cat([part.flatten(0, 2) for part in tokens])
    query, key = layer.qk(rows).chunk(2, -1)
    dim = query.shape[1] // 8
    of_keys = (key.exp() / key.exp().sum(0)).unflatten(1, (8, dim))
    weights = torch.einsum("nhd,mhd->hnm", query.unflatten(1, (8, dim)), of_keys) / math.sqrt(dim)
    return weights, cells(len(rows), len(rows), others=1)


def windowed(layer: Any, grid: Tensor) -> Hand:
    """Swin, one query after the other."""
    side, shift, heads = layer.window_size, layer.shift, layer.num_heads
    _, height, width, dim = grid.shape
    rows, columns = -(-height // side) * side, -(-width // side) * side
    padded = grid.new_zeros(rows, columns, dim)
    padded[:height, :width] = grid[0]
    query, key, _ = layer.qkv(padded).chunk(3, -1)
    weights, places = [], []
    for y in range(height):
        for x in range(width):
            v, u = (y - shift) % rows, (x - shift) % columns  # where the shifted plane has this token
            # Of its window, in the shifted plane.
            inside = [(v // side * side + i, u // side * side + j) for i in range(side) for j in range(side)]
            found = [((a + shift) % rows, (b + shift) % columns) for a, b in inside]
            bias = []
            for a, b in inside:
                index = (v - a + side - 1) * (2 * side - 1) + u - b + side - 1
                ends, here = (a >= rows - shift, b >= columns - shift), (v >= rows - shift, u >= columns - shift)
                # What the shift has wrapped around is no neighbour.
                bias.append(layer.relative_position_bias_table[index] - 100.0 * (shift > 0 and ends != here))
            keys = torch.stack([key[c, d] for c, d in found])
            weights.append(softmax_of(query[None, y, x], keys, heads, torch.stack(bias, 1)[:, None])[:, 0])
            places.append([c * width + d if c < height and d < width else -1 for c, d in found])
    return torch.stack(weights, 1), places


def entry(table: Tensor, side: int, key_side: int, place: int, other: int) -> Tensor:
    """Of a table of distances, resized to the larger side, of a query and a key."""
    count = 2 * max(side, key_side) - 1
    if len(table) != count:
        table = nn.functional.interpolate(table.T[None], size=count, mode="linear")[0].T
    step, key_step = max(key_side / side, 1), max(side / key_side, 1)
    return table[int(place * step - other * key_step + (key_side - 1) * key_step)]


def pooled(layer: Any, grid: Tensor) -> Hand:
    """MViTv2, one query after the other."""
    heads = layer.num_heads
    query, key, _ = layer.qkv(grid).chunk(3, -1)

    def pool(x: Tensor, conv: Any, norm: Any) -> Tensor:
        maps = x[0].permute(2, 0, 1).unflatten(0, (heads, -1))
        out = nn.functional.conv2d(maps, conv.weight, None, conv.stride, 1, groups=maps.shape[1])
        return norm(out.permute(2, 3, 0, 1))  # (H', W', h, d)

    query, key = pool(query, layer.pool_q, layer.norm_q), pool(key, layer.pool_k, layer.norm_k)
    (height, width), (rows, columns) = query.shape[:2], key.shape[:2]
    sides, key_sides = ((height, width), (rows, columns)) if layer.windows is None else ([w] * 2 for w in layer.windows)
    weights, places = [], []
    for y in range(height):
        for x in range(width):
            top, left = (p // s * k for p, s, k in zip((y, x), sides, key_sides, strict=True))
            scores, cell = [], []
            for i in range(key_sides[0]):
                for j in range(key_sides[1]):
                    there = top + i < rows and left + j < columns
                    one = key[top + i, left + j] if there else torch.zeros_like(key[0, 0])
                    terms = entry(layer.rows, sides[0], key_sides[0], y % sides[0], i)
                    terms = terms + entry(layer.columns, sides[1], key_sides[1], x % sides[1], j)
                    scores.append((query[y, x] * (one / math.sqrt(one.shape[-1]) + terms)).sum(-1))
                    cell.append((top + i) * columns + left + j if there else -1)
            weights.append(torch.stack(scores, 1).softmax(-1))
            places.append(cell)
    return torch.stack(weights, 1), places


def relative(layer: Any, grid: Tensor) -> Hand:
    """ViTDet, one query after the other."""
    _, height, width, dim = grid.shape
    sides = [layer.window_size] * 2 if layer.window_size else [height, width]
    rows, columns = (-(-count // side) * side for count, side in zip((height, width), sides, strict=True))
    padded = grid.new_zeros(rows, columns, dim)
    padded[:height, :width] = grid[0]
    query, key, _ = (x.unflatten(-1, (layer.num_heads, -1)) for x in layer.qkv(padded).chunk(3, -1))
    weights, places = [], []
    for y in range(height):
        for x in range(width):
            top, left = y // sides[0] * sides[0], x // sides[1] * sides[1]
            scores, cell = [], []
            for i in range(top, top + sides[0]):
                for j in range(left, left + sides[1]):
                    vector = key[i, j] / math.sqrt(key.shape[-1])
                    if layer.rows is not None:
                        vector = vector + entry(layer.rows, sides[0], sides[0], y - top, i - top)
                        vector = vector + entry(layer.columns, sides[1], sides[1], x - left, j - left)
                    scores.append((query[y, x] * vector).sum(-1))
                    cell.append(i * width + j if i < height and j < width else -1)
            weights.append(torch.stack(scores, 1).softmax(-1))
            places.append(cell)
    return torch.stack(weights, 1), places


BY_HAND: dict[str, Callable[..., Hand]] = {
    "SpatialReductionAttention": reduced,
    "SelfAttention": self_attention,
    "RotaryAttention": rotary,
    "TalkingHeadsAttention": talking,
    "ClassAttention": of_class_token,
    "FactorizedAttention": factorised,
    "WindowAttention": windowed,
    "PoolingAttention": pooled,
    "RelativeAttention": relative,
}
"""By the class of an attention layer."""


def scattered(layer: nn.Module) -> nn.Module:
    """With parameters of a size at which weights differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


def compare(layer: Any, shares: Shares, *args: Any, **kwargs: Any) -> None:
    weights, places = BY_HAND[type(layer).__name__](layer, *args, **kwargs)
    every = torch.arange(shares.num_queries)
    torch.testing.assert_close(shares.rows(every)[0], weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shares.rows(every[-2:])[0], weights[:, -2:], rtol=1e-4, atol=1e-5)
    assert shares.places(every).expand(len(every), -1).tolist() == places


@pytest.mark.parametrize("name", TOYS)
@torch.no_grad()
def test_weights_are_those_computed_by_hand(name: str) -> None:
    backbone = scattered(TOYS[name]().eval())
    layers = backbone.attentions()
    every = [module for module in backbone.modules() if type(module).__name__.endswith("Attention")]
    assert [layer.module for layer in layers] == every
    inputs: dict[str, Any] = {}
    for layer in layers:
        layer.module.register_forward_pre_hook(
            lambda _, args, kwargs, key=layer.name: inputs.setdefault(key, (args, kwargs)), with_kwargs=True
        )
    backbone(torch.randn(1, 3, 34, 52))
    assert list(inputs) == [layer.name for layer in layers]  # in the order of computation
    done = set()
    for layer in layers:
        kind = (layer.stage, getattr(layer.module, "shift", 0), str(getattr(layer.module, "windows", None)))
        args, kwargs = inputs[layer.name]
        if isinstance(backbone, XCiT):  # between channels
            continue
        shares = layer.module.looks_at(*args, **kwargs)
        if kind not in done:
            compare(layer.module, shares, *args, **kwargs)
        done.add(kind)


@pytest.mark.parametrize(("window", "table"), [(3, 4), (3, None), (None, 4), (None, None)])
@torch.no_grad()
def test_weights_of_vitdets_windows_are_those_computed_by_hand(window: int | None, table: int | None) -> None:
    layer, grid = scattered(RelativeAttention(8, 2, window, table)), torch.randn(1, 4, 7, 8)
    compare(layer, layer.looks_at(grid), grid)


@torch.no_grad()
def test_weights_of_class_attention_are_those_computed_by_hand() -> None:
    backbone = scattered(TOYS["cait"](class_attention=True).eval())
    tokens = torch.randn(1, 7, 16)
    layer = backbone.attentions()[-1].module
    shares = layer.looks_at(tokens).on_grid((2, 3))
    assert (shares.num_queries, shares.others) == (1, 1)
    weights, _ = of_class_token(layer, tokens)
    torch.testing.assert_close(shares.rows(torch.tensor([0]))[0], weights)
    assert shares.places(torch.tensor([0])).tolist() == [[-1, 0, 1, 2, 3, 4, 5]]


# ---- maps


def toy(query: Tensor, sides: tuple[int, int], heads: int = 1) -> Shares:
    return of_tokens(query, query, heads).on_grid(sides)


def test_permuted_tokens_give_the_permuted_map() -> None:
    torch.manual_seed(0)
    tokens, order = torch.randn(1, 12, 4), torch.randperm(12)
    before, after = toy(tokens, (3, 4), 2), toy(tokens[:, order], (3, 4), 2)
    maps = on_grid(before, before.rows(order), order)
    again = on_grid(after, after.rows(torch.arange(12)), torch.arange(12))
    torch.testing.assert_close(again.flatten(-2), maps.flatten(-2)[..., order])
    assert not torch.equal(again, maps)


def test_a_map_leaves_out_class_tokens() -> None:
    tokens = torch.randn(1, 14, 4)
    shares = toy(tokens, (3, 4))
    rows = shares.rows(torch.tensor([5]))
    torch.testing.assert_close(on_grid(shares, rows, torch.tensor([5]))[0, 0, 0].flatten(), rows[0, 0, 0, 2:])


@pytest.mark.parametrize("name", ["swin", "mvit_v2"])
def test_joined_windows_are_the_sum_of_the_maps_of_their_queries(name: str) -> None:
    backbone, found = scattered(TOYS[name]().eval()), []

    def see(seen: Seen) -> None:
        if seen.shares.alike is None:
            return
        query = seen.query_at(40.0, 30.0)
        alike = seen.shares.alike(query)
        assert query in alike
        joined, maps = seen.joined(query), seen.maps(alike)
        torch.testing.assert_close(joined, maps.sum(2))
        assert ((maps > 0).sum(2) <= 1).all()  # no two of them look at one place
        found.append(len(alike))

    look(backbone, torch.randn(1, 3, 70, 101), see)
    assert max(found) > 4


def test_bands_do_not_change_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = toy(torch.randn(1, 12, 4), (3, 4), 2)
    whole = sum_on_grid(shares, torch.arange(12))
    monkeypatch.setattr("mm_vitbackbones.inspection.attention.BAND", 50)
    torch.testing.assert_close(sum_on_grid(shares, torch.arange(12)), whole)


def test_a_pixel_belongs_to_the_cell_that_covers_it() -> None:
    found = look(TOYS["vit"]().eval(), torch.randn(1, 3, 64, 96), lambda seen: [seen.query_at(x, y) for x, y in POINTS])
    assert found[0] == [1, 1, 2, 7, 24]  # after one class token, in rows of six patches of 16 pixels


POINTS = [(0.0, 0.0), (15.9, 15.9), (16.1, 8.0), (8.0, 16.1), (1e4, 1e4)]


# ---- distance and entropy


def test_uniform_attention_has_the_entropy_and_distance_of_a_double_loop() -> None:
    height, width = 3, 5
    found = spread(toy(torch.zeros(1, 15, 4), (height, width), 2))
    assert found is not None
    places = [((y + 0.5) / height, (x + 0.5) / width) for y in range(height) for x in range(width)]
    total = sum(abs(y - v) + abs(x - u) for y, x in places for v, u in places) / 15**2
    torch.testing.assert_close(found.distance, torch.full((2,), total, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.entropy, torch.full((2,), math.log(15), dtype=torch.float64), rtol=1e-6, atol=0)
    assert (found.keys, found.queries) == (15, 15)


def test_distance_and_entropy_are_those_of_a_double_loop() -> None:
    torch.manual_seed(0)
    shares = toy(torch.randn(1, 8, 6) * 3, (2, 3))  # after two class tokens
    weights = shares.rows(torch.arange(2, 8))[0, 0, :, 2:].double()
    weights = weights / weights.sum(-1, keepdim=True)
    distance = entropy = 0.0
    for i in range(6):
        for j in range(6):
            a = float(weights[i, j])
            distance += a * (abs(i // 3 - j // 3) / 2 + abs(i % 3 - j % 3) / 3) / 6
            entropy -= a * math.log(a) / 6
    found = spread(shares)
    assert found is not None
    assert float(found.distance) == pytest.approx(distance, rel=1e-5)
    assert float(found.entropy) == pytest.approx(entropy, rel=1e-5)


def test_attention_to_itself_alone_has_neither() -> None:
    found = spread(toy(torch.eye(12)[None] * 100, (3, 4)))
    assert found is not None
    assert float(found.distance) == pytest.approx(0, abs=1e-6)
    assert float(found.entropy) == pytest.approx(0, abs=1e-6)


def test_keys_of_a_reduced_grid_have_the_centres_of_what_they_stand_for() -> None:
    assert Lattice((2, 3), (8.0, 8.0), (4.0, 4.0)).centres(1).tolist() == [4.0, 12.0, 20.0]
    one = Shares(
        lambda queries: torch.ones(1, 1, len(queries), 1),
        lambda queries: torch.zeros(1, 1, dtype=torch.long),
        num_queries=4,
        queries=Lattice((2, 2)),
        keys=Lattice((1, 1), (2.0, 2.0), (1.0, 1.0)),
        extent=(2, 2),
    )
    found = spread(one)
    assert found is not None
    assert float(found.distance) == 0.5  # a quarter of the rows and of the columns


def test_some_queries_stand_for_all_of_a_large_map() -> None:
    shares = toy(torch.zeros(1, 24 * 32, 4), (24, 32))
    assert len(evenly(shares, None)) == 24 * 32
    some = evenly(shares, 24 * 32 * 50)
    assert 30 <= len(some) <= 60
    few, every = spread(shares, 24 * 32 * 50), spread(shares)
    assert few is not None
    assert every is not None
    assert few.queries == len(some)
    assert float(few.distance) == pytest.approx(float(every.distance), rel=0.02)


def test_a_layer_of_class_tokens_alone_has_no_distance() -> None:
    assert spread(of_tokens(torch.zeros(1, 1, 4), torch.zeros(1, 7, 4), 1).on_grid((2, 3))) is None


@pytest.mark.parametrize("name", TOYS)
def test_every_family_has_a_distance_by_layer(name: str) -> None:
    backbone = TOYS[name]().eval()
    if isinstance(backbone, XCiT) or not backbone.attentions():
        with pytest.raises(UserError, match=r"over channels|no attention layers"):
            look(backbone, torch.randn(1, 3, 70, 101), lambda seen: seen)
        return
    found = look(backbone, torch.randn(1, 3, 70, 101), lambda seen: (spread(seen.shares), seen.shares))
    assert len(found) == len(backbone.attentions())
    for one, shares in found:
        rows = shares.rows(torch.arange(shares.num_queries))
        if not shares.signed:
            torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
        assert (one.distance > 0).all()
        assert (one.entropy <= math.log(one.keys) + 1e-6).all()
        assert (one.entropy > 0).all()


def test_hooks_are_gone_after_an_error() -> None:
    backbone = TOYS["vit"]().eval()

    def see(_: Seen) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look(backbone, torch.randn(1, 3, 32, 32), see)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_an_adapter_takes_part_in_the_weights() -> None:
    """What a user attaches to the linear maps changes what they look at."""
    layer, tokens = scattered(SelfAttention(8, 2)), torch.randn(1, 6, 8)
    before = layer.looks_at(tokens).rows(torch.arange(6))
    layer.qkv.register_forward_hook(lambda _, __, out: out * 2)
    assert not torch.allclose(layer.looks_at(tokens).rows(torch.arange(6)), before)


def test_a_family_without_attention_layers_is_told_so() -> None:
    backbone = ViT({"dim": 16, "num_heads": 2, "depth": 1, "pretrain_grid": 3})
    backbone.attentions = lambda: []  # type: ignore[method-assign]
    with pytest.raises(UserError, match="no attention layers"):
        look(backbone, torch.randn(1, 3, 32, 32), lambda seen: None)


@pytest.mark.parametrize("name", ["swin", "mvit_v2", "coat", "cait", "pit", "pvt"])
@torch.no_grad()
def test_images_of_a_batch_do_not_depend_on_each_other(name: str) -> None:
    backbone, images = scattered(TOYS[name]().eval()), torch.randn(2, 3, 66, 98)

    def rows(image: Tensor) -> list[Tensor]:
        return look(backbone, image, lambda seen: seen.shares.rows(torch.arange(1, seen.shares.num_queries, 3)))

    alone = [torch.cat(pair) for pair in zip(rows(images[:1]), rows(images[1:]), strict=True)]
    for both, expected in zip(rows(images), alone, strict=True):
        torch.testing.assert_close(both, expected, rtol=1e-3, atol=1e-4)
