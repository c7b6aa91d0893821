"""The merging of neighbours in training on CUDA, in the form that a CPU can run, against the paper's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.memory import kept_bytes
from mm_vitbackbones.backbones.swin import PatchMerging
from mm_vitbackbones.ops import context, merging

DIM = 6


def make(dtype: torch.dtype = torch.float64) -> PatchMerging:
    torch.manual_seed(0)
    layer = PatchMerging(DIM, 2 * DIM).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def reference(layer: PatchMerging, grid: Tensor) -> Tensor:
    """Of four strided parts, as in the official code."""
    parts = [grid[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return layer.reduction(layer.norm(torch.cat(parts, -1)))


@pytest.mark.parametrize("frozen", ["", "norm", "reduction", "grid"])
def test_result_and_gradients_are_the_papers(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging.norms, "is_for", lambda x: True)  # of fp64, too
    layer, grid = make(), torch.randn(2, 6, 8, DIM, dtype=torch.float64, requires_grad=frozen != "grid")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    wanted = [x for x in (grid, *layer.parameters()) if x.requires_grad]
    with context.pretend_device("cuda"):
        ours = layer(grid)
        assert type(ours.grad_fn).__name__ == "_MergedBackward"
        found = torch.autograd.grad(ours.square().sum(), wanted)
    theirs = reference(layer, grid)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, torch.autograd.grad(theirs.square().sum(), wanted))


def test_under_autocast_gradients_are_of_the_types_of_their_tensors() -> None:
    layer, grid = make(torch.float32), torch.randn(2, 6, 8, DIM, requires_grad=True)
    with context.pretend_device("cuda"), torch.autocast("cpu", torch.bfloat16):
        out = layer(grid)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert {x.grad.dtype for x in (grid, *layer.parameters()) if x.grad is not None} == {torch.float32}
    theirs = torch.autograd.grad(reference(layer, grid).square().sum(), grid)[0]
    assert F.cosine_similarity(grid.grad.flatten(), theirs.flatten(), dim=0) > 0.999  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_only_the_grid_is_kept(size: tuple[int, int]) -> None:
    layer, grid = make(torch.float32), torch.randn(2, *size, DIM, requires_grad=True)
    padded = 2 * (size[0] + size[0] % 2) * (size[1] + size[1] % 2) * DIM * 4
    with context.pretend_device("cuda"):
        assert kept_bytes(layer, lambda: layer(grid)) == padded


@pytest.mark.parametrize("part", ["norm", "reduction"])
def test_a_module_with_a_hook_is_called(part: str) -> None:
    layer, calls = make(torch.float32), []
    getattr(layer, part).register_forward_hook(lambda *_: calls.append(1))
    grid = torch.randn(2, 6, 8, DIM)
    with context.pretend_device("cuda"):
        torch.testing.assert_close(layer(grid), reference(layer, grid))
    assert len(calls) == 2
