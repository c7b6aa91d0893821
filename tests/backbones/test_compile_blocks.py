"""``compile_blocks``: each block compiled in place, with graphs that equal blocks share."""

from __future__ import annotations

import copy
import pickle
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.toys import TOYS
from mm_vitbackbones.backbones import Backbone, Swin
from mm_vitbackbones.backbones.base import Backbone as Base
from mm_vitbackbones.layers import ResidualBlock
from mm_vitbackbones.ops import context

# PyTorch asks each input of a graph for its gradient, and hides what is known of the results of other operators.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
SIZES = [(64, 96), (96, 64), (72, 80)]
PHOTOS = [(480, 640), (427, 640), (640, 480), (640, 427), (375, 500), (640, 640), (360, 640), (500, 281), (512, 640)]
PHOTOS += [(640, 512), (500, 333), (333, 500), (428, 640), (640, 359), (383, 640)]
"""Height and width of images of COCO."""
LARGEST = 4
"""Graphs of a kind of block."""


def photo_sizes(scale: int) -> list[tuple[int, int]]:
    """Twenty different sizes: those that MMDetection's resize to (1333, 800) gives for photographs, over ``scale``, as
    they are, and padded to what 32 divides."""
    factors = [(h, w, min(1333 / max(h, w), 800 / min(h, w))) for h, w in PHOTOS]
    odd = [(int(h * factor + 0.5), int(w * factor + 0.5)) for h, w, factor in factors]
    padded = [(-(-h // 32) * 32, -(-w // 32) * 32) for h, w in odd]
    return [*dict.fromkeys((h // scale, w // scale) for h, w in odd + padded)][:20]  # some are equal over a scale


class Graphs:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return graph.forward


def can_generate_code() -> bool:
    return shutil.which("g++") is not None and Path(sysconfig.get_paths()["include"], "Python.h").is_file()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()  # the limit of recompilations counts those of other tests too
    yield
    torch._dynamo.reset()


def blocks(network: Base) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, ResidualBlock)]


def step(network: Base, image: Tensor, autocast: bool = False) -> list[Tensor]:
    """Levels and gradients, with the same random numbers each time."""
    torch.manual_seed(3)
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        levels = network(image)
    sum((level * torch.linspace(-1, 1, level.numel()).view_as(level)).mean() for level in levels).backward()
    return [*levels, *(p.grad for p in network.parameters() if p.grad is not None)]


def pair(toy: str, **arguments: Any) -> tuple[Backbone, Backbone]:
    """A network and an equal one."""
    torch.manual_seed(7)
    network = TOYS[toy](**{"drop_path_rate": 0.3} | arguments).train()
    return network, copy.deepcopy(network)


def check(
    network: Base,
    plain: Base,
    sizes: list[tuple[int, int]],
    tolerance: float = 1e-5,
    batch: int = 2,
    dynamic: bool | None = None,
    autocast: bool = False,
) -> None:
    """Compiles the network and compares it with the plain one, at each size. Under autocast, where the plain
    one rounds by more than that, they may differ by a half more than it does from fp32: by chance, two differ by √2."""
    graphs = Graphs()
    assert network.compile_blocks(backend=graphs, fullgraph=True, dynamic=dynamic)
    graphs.count = 0
    for size in sizes:
        image = torch.randn(batch, 3, *size, dtype=next(plain.parameters()).dtype)
        results, expected_results = step(network, image, autocast), step(plain, image, autocast)
        exact_results = step(plain, image) if autocast else expected_results
        for found, expected, exact in zip(results, expected_results, exact_results, strict=True):
            bound = max(tolerance * expected.norm() + 1e-2 * tolerance, 1.5 * (expected - exact).norm())
            assert (found - expected).norm() <= bound, size
    kinds = {block.compiled for block in blocks(network)}
    assert graphs.count > 0
    assert graphs.count <= (1 if dynamic else LARGEST) * len(kinds)


@pytest.mark.parametrize("toy", ["pvt", "coat_lite"])
def test_compiled_blocks_give_the_same_results_and_gradients_at_any_size(toy: str) -> None:
    network, plain = pair(toy, out_indices=(0,))
    check(network, plain, SIZES if toy == "pvt" else SIZES[:1])
    assert [*network.state_dict()] == [*plain.state_dict()]


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"with_cp": "all"}, {"with_cp": "all_but_attention"}, {"frozen_stages": 2}, {"drop_path_rate": 0.0}],
    ids=str,
)
def test_compiled_blocks_of_every_family_and_argument(toy: str, arguments: dict[str, Any]) -> None:
    check(*pair(toy, **arguments), SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
def test_one_graph_of_a_kind_serves_all_sizes_if_it_is_asked_for(toy: str) -> None:
    if toy == "mvit_v2" and context.PYTORCH < (2, 13):
        pytest.skip("this PyTorch makes one graph of max pooling for odd sizes, another for even ones")
    check(*pair(toy), SIZES, dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
def test_compiled_blocks_in_the_forms_for_cuda(toy: str) -> None:
    with context.pretend_device("cuda"):
        check(*pair(toy), [*SIZES, (75, 91), (101, 70)], tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
def test_compiled_blocks_under_autocast(toy: str) -> None:
    check(*pair(toy), SIZES[:2], tolerance=2e-2, autocast=True)


@pytest.mark.parametrize("toy", ["pit", "dinov2"])
def test_twenty_image_sizes_need_few_graphs(toy: str) -> None:
    sizes = photo_sizes(16)
    assert len({*sizes}) == 20
    check(*pair(toy, out_indices=(0,)), sizes, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("toy", TOYS)
def test_twenty_image_sizes_need_few_graphs_in_every_family(toy: str) -> None:
    sizes = photo_sizes(4)
    assert len({*sizes}) == 20
    # In twenty sizes some values lie next to the kink of a ReLU, where fp32 takes the one side or the other.
    network, plain = (each.double() for each in pair(toy))
    check(network, plain, sizes, tolerance=1e-10, batch=1)


@pytest.mark.slow
@pytest.mark.skipif(not can_generate_code(), reason="no C++ compiler, or no headers of Python")
@pytest.mark.parametrize("toy", TOYS)
def test_generated_code_gives_the_same_results_and_gradients(toy: str) -> None:
    from torch._dynamo.utils import counters

    network, plain = pair(toy)
    assert network.compile_blocks(fullgraph=True)
    counters.clear()
    for size in photo_sizes(8):
        image = torch.randn(1, 3, *size)
        for found, expected in zip(step(network, image), step(plain, image), strict=True):
            assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-6, size
    assert 0 < counters["stats"]["unique_graphs"] <= LARGEST * len({block.compiled for block in blocks(network)})


def test_blocks_share_graphs_if_they_differ_in_weights_and_rates_alone() -> None:
    with torch.device("meta"):
        network = Swin(dict(depths=(4, 2, 2, 2), dims=(8, 16, 32, 64), num_heads=(1, 2, 2, 4)))
    network.compile_blocks(backend="eager")
    first, shifted, third, _, *others = (block.compiled for block in blocks(network))
    assert first is third
    assert len({first, shifted, *others}) == 8
    assert [block.shares for block in blocks(network)][:3] == [True, False, False]


def test_blocks_of_one_kind_with_grids_of_several_sizes_have_one_graph() -> None:
    network, plain = pair("coat", drop_path_rate=0.0)
    graphs = Graphs()
    network.compile_blocks(backend=graphs, fullgraph=True)
    graphs.count = 0
    functions = [block.compiled for block in blocks(network)]
    assert functions[1] is functions[2] is functions[3]
    for size, count in (((64, 96), 3), ((96, 80), 5)):  # the first block and the parallel ones have two each
        image = torch.randn(1, 3, *size)
        for found, expected in zip(step(network, image), step(plain, image), strict=True):
            assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-7
        assert graphs.count == count


@pytest.mark.parametrize("toy", ["dinov3", "cait"])
def test_frozen_blocks_share_graphs_among_themselves_alone(toy: str) -> None:
    # Graphs with and without gradients, at one size and at any, would otherwise come near PyTorch's limit.
    network = TOYS[toy](frozen_stages=2).train()
    network.compile_blocks(backend="eager")
    frozen, trained = (
        {block.compiled for block in blocks(network) if next(block.parameters()).requires_grad is asked}
        for asked in (False, True)
    )
    assert len(frozen) == 1
    assert trained
    assert not frozen & trained


def test_copies_and_pickles_are_not_compiled_and_names_stay() -> None:
    network = TOYS["swin"]()
    names, modules = [*network.state_dict()], [name for name, _ in network.named_modules()]
    network.compile_blocks(backend="eager")
    assert all(block.compiled for block in blocks(network))
    assert [*network.state_dict()] == names
    assert [name for name, _ in network.named_modules()] == modules
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert not any(block.compiled or block.shares for block in blocks(copied))


def test_hooks_on_compiled_blocks_run_outside_of_their_graphs() -> None:
    network, seen = TOYS["pvt"](out_indices=(0,)).eval(), []
    network.compile_blocks(backend=Graphs(), fullgraph=True)
    for block in blocks(network):
        # A graph could not hold either: the list, or the conversion.
        block.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].sum())))
        block.register_forward_hook(lambda _, __, out: seen.append(float(out.sum())))
    with torch.no_grad():
        level, kept = network(torch.randn(1, 3, 64, 64)), network.features(torch.randn(1, 3, 64, 64), blocks=[0, -1])
    assert len(level) == 1
    assert len(kept) == 2
    assert len(seen) == 8


def test_drop_path_draws_new_numbers_in_each_step_of_a_compiled_block() -> None:
    torch.manual_seed(0)  # of some seeds, a step drops none of the 32 branches
    network = TOYS["pvt"](out_indices=(0,), drop_path_rate=0.5).train()
    network.compile_blocks(backend="eager")
    image = torch.randn(1, 3, 64, 64).expand(16, -1, -1, -1)
    first, second = (network(image)[0].flatten(1).sum(1) for _ in range(2))
    assert len({round(x, 3) for x in first.tolist()}) > 1
    assert not torch.allclose(first, second)


def test_without_a_compiler_one_line_says_why_and_blocks_stay() -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler is here\nand more lines")

    network = TOYS["pvt"](out_indices=(0,)).eval()
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mm_vitbackbones.backbones.base.print_log", lambda text, **_: lines.append(text))
        assert network.compile_blocks(backend=no_compiler) is False
    assert len(lines) == 1
    assert lines[0].endswith("OSError: no C++ compiler is here")
    assert not any(block.compiled for block in blocks(network))
    with torch.no_grad():
        assert len(network(torch.randn(1, 3, 64, 64))) == 1


def test_the_network_of_compiled_blocks_compiles_as_one_graph() -> None:
    network, plain = pair("pvt", out_indices=(0,), drop_path_rate=0.0)
    network.compile_blocks(backend="eager")
    graphs, image = Graphs(), torch.randn(1, 3, 64, 64)
    whole = torch.compile(network, backend=graphs, fullgraph=True)
    torch.testing.assert_close(whole(image)[0], plain(image)[0], rtol=1e-5, atol=1e-5)
    assert graphs.count == 1
