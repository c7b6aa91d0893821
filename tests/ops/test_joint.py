"""Class tokens with their grids in the form for CUDA, which the operators' references run on a CPU."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.official import relative_error
from helpers.toys import TOYS
from mm_vitbackbones.layers import BICUBIC, DropPath
from mm_vitbackbones.ops import context, coscale, factorized, joint
from mm_vitbackbones.ops.kernels import registration
from mm_vitbackbones.ops.resize import resize_grid, resized_sum, resized_table


def network(name, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    net = TOYS[name](**arguments).to(dtype).train()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net, torch.randn(2, 3, 45, 64, dtype=dtype)


def step(net, image):
    """Levels, and the gradients of a loss that uses all of them."""
    net.zero_grad()
    torch.manual_seed(1)
    levels = net(image)
    sum((level * torch.linspace(-1, 1, level.numel()).view_as(level)).sum() for level in levels).backward()
    return [*(level.detach() for level in levels), *(p.grad for p in net.parameters() if p.grad is not None)]


def equal(actual, expected):
    """Up to rounding; a gradient of a dropped branch is zero in both."""
    assert len(actual) == len(expected)
    return all((a - b).abs().max() <= 1e-11 * b.abs().max() for a, b in zip(actual, expected, strict=True))


CASES = [
    ("coat", {}),
    ("coat", {"with_cp": "ffn"}),
    ("coat", {"with_cp": True, "drop_path_rate": 0.5}),
    ("coat", {"out_indices": (0, 2)}),
    ("coat_lite", {"with_cp": "ffn"}),
    ("coat_lite", {"drop_path_rate": 0.5}),
    ("pit_distilled", {}),
]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_levels_and_gradients_are_those_of_the_form_for_a_cpu(name, arguments, kernels):
    net, image = network(name, **arguments)
    expected = step(net, image)
    with context.pretend_device("cuda"), registration.forced(kernels):
        actual = step(net, image)
    assert equal(actual, expected)


def test_an_observed_attention_is_called_with_class_tokens_and_grid():
    net, image = network("coat_lite")
    expected = step(net, image)
    seen = []
    hook = net.stages[0].blocks[0].attn.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with context.pretend_device("cuda"):
        actual = step(net, image)
    hook.remove()
    ((cls, grid), out) = seen[0]
    assert (cls.shape, grid.shape) == ((2, 1, 1, 16), (2, 12, 16, 16))
    assert [x.shape for x in out] == [cls.shape, grid.shape]
    assert equal(actual, expected)


def test_blocks_that_nobody_observes_get_rows(monkeypatch):
    net, image = network("coat")
    given = []
    monkeypatch.setattr(type(net.stages[0].blocks[0]), "residuals", lambda self, x, *_: given.append(x) or x)
    monkeypatch.setattr(type(net.parallel_blocks[0]), "residuals", lambda self, x, *_: given.append(x) or x)
    with context.pretend_device("cuda"):
        net(image)
        assert {type(x) for x in given} == {joint.Rows, coscale.LevelRows}
        given.clear()
        net.parallel_blocks[-1].attn["2"].register_forward_hook(lambda *_: None)
        net.stages[0].blocks[-1].norm1.register_forward_hook(lambda *_: None)
        net(image)
    of_first_stage = len(net.stages[0].blocks)
    assert all(type(x) is tuple for x in given[:of_first_stage])
    assert all(type(x) is dict for x in given[-len(net.parallel_blocks) :])


def test_an_observed_parallel_block_is_called_with_pairs():
    net, image = network("coat")
    expected = step(net, image)
    seen = []
    hook = net.parallel_blocks[0].register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with context.pretend_device("cuda"):
        actual = step(net, image)
    hook.remove()
    ((given, out),) = seen
    assert [cls.shape[:3] for cls, _ in given.values()] == [(2, 1, 1)] * 3
    assert [grid.shape for _, grid in given.values()] == [grid.shape for _, grid in out.values()]
    assert equal(actual, expected)


def test_levels_of_the_same_size_are_added_as_they_are():
    torch.manual_seed(0)
    shapes = [(2, 1, 3), (2, 1, 3), (2, 1, 1)]
    parts = [torch.randn(b * (h * w + 1), 4, dtype=torch.float64, requires_grad=True) for b, h, w in shapes]
    pairs = [joint.pair(joint.Rows(part, shape)) for part, shape in zip(parts, shapes, strict=True)]
    grids = [grid for _, grid in pairs]
    cls = sum(cls for cls, _ in pairs)
    expected = [joint.rows_of(cls, resized_sum(grids, *shape[1:])).rows for shape in shapes]
    actual = coscale._exchange([part.detach() for part in parts], shapes, coscale._resized)
    assert relative_error(actual, torch.cat(expected).detach()) <= 1e-12
    weight = torch.randn_like(actual)
    wanted = torch.autograd.grad((torch.cat(expected) * weight).sum(), parts)
    found = coscale._exchange(weight.split([len(part) for part in parts]), shapes, coscale._resized_backward)
    assert relative_error(found, torch.cat(wanted)) <= 1e-12


@pytest.mark.parametrize("name", ["coat_lite", "pit"])
def test_levels_may_be_overwritten(name):
    net, image = network(name)
    with context.pretend_device("cuda"):
        levels = net.eval()(image)
        sum(level.mul_(2).sum() for level in levels[-1:]).backward()
    assert net.get_parameter("stages.0.blocks.0.norm1.weight").grad.abs().sum() > 0


def test_class_tokens_are_dropped_with_their_grids():
    torch.manual_seed(0)
    rows = joint.Rows(torch.ones(8 * 6 + 8, 4), (8, 2, 3))
    cls, grid = joint.pair(joint.Rows(DropPath(0.5).of(rows)(rows.rows), rows.shape))
    assert set(cls.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(grid, cls.expand_as(grid))


VIEWS = {
    "view",
    "strided",
    "expand",
    "slice",
    "split",
    "transpose",
    "permute",
    "squeeze",
    "unsqueeze",
    "unbind",
    "t",
    "detach",
}
EMPTY = ("empty", "new_empty", "empty_like")


class Count(TorchDispatchMode):
    """Operators that start kernels."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator._schema.name.split("::")[1]
        if not VIEWS & set(name.split("_")) and name not in EMPTY:
            self.names[name] += 1
        return operator(*args, **kwargs or {})


def test_one_block_more_starts_few_kernels():
    counts = []
    for depth in (1, 2):
        net, image = network("coat_lite", torch.float32, arch=dict(TOYS["coat_lite"].arch, depths=(depth, 1, 1, 1)))
        with context.pretend_device("cuda"), Count() as count:
            step(net, image)
        counts.append(count.names)
    more = counts[1] - counts[0]
    assert more["factorized_attend"] == more["factorized_attend_backward"] == 1
    assert more["addmm"] == 5, "one for each linear map"
    assert more["mm"] == 9
    assert more["addmm_"] == 1, "the gradients of queries with keys and of values are added by a product"
    assert more["cat"] == 0
    assert more["layer_norm"] == 2, "one of them again, in place of keeping its result"
    # Of the adds, eight are of gradients of the convolutions' parameters, which all blocks share.
    assert sum(more.values()) <= 42, more


# ---- the forms of compiled graphs, and of tables


def test_tokens_in_blocks_and_together_contract_to_the_same_matrices():
    torch.manual_seed(0)
    results = []
    inputs = [torch.randn(2, n, 16, dtype=torch.float64) for n in (600, 600, 1, 1)]
    for contract in (factorized._contract, factorized._contract_in_blocks, factorized._contract_together):
        leaves = [x.clone().requires_grad_() for x in inputs]
        matrices = contract(*leaves, 4)
        (matrices * torch.linspace(-1, 1, matrices.numel()).view_as(matrices)).sum().backward()
        results.append([matrices.detach(), *(x.grad for x in leaves)])
    reference, *others = results
    for other in others:
        for a, b in zip(other, reference, strict=True):
            assert relative_error(a, b) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_of_tokens_keep_sums_in_full_precision(dtype):
    torch.manual_seed(0)
    inputs = [torch.randn(1, n, 16).to(dtype) for n in (20000, 20000, 1, 1)]
    expected = factorized._contract(*(x.double() for x in inputs), 4)
    for contract in (factorized._contract_in_blocks, factorized._contract_together):
        assert relative_error(contract(*inputs, 4).double(), expected) <= 5e-3


def test_a_bicubic_table_is_resized_by_products():
    table = torch.randn(1, 7, 9, 5, dtype=torch.float64, requires_grad=True)
    expected = resize_grid(table, 11, 4, "bicubic")
    with context.pretend_device("cuda"):
        resized = resized_table(table, 11, 4, BICUBIC)
        assert resized_table(table, 7, 9, BICUBIC) is table
    assert relative_error(resized, expected.detach()) <= 1e-12
    weight = torch.randn_like(expected)
    gradients = (torch.autograd.grad((x * weight).sum(), table)[0] for x in (resized, expected))
    assert relative_error(*gradients) <= 1e-12
    assert resized.is_contiguous()
