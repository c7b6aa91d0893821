"""On a GPU: attention whose form follows from sizes that no toy has, and networks that are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from helpers.agreement import build, error, gradient_error, gradients, image
from mm_vitbackbones.ops import attention, talking_heads

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
    pytest.mark.filterwarnings("default"),  # cards and drivers have warnings of their own
]


def in_both(function: object, inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients on the GPU in a type, and in fp64 on a CPU."""
    found = []
    for device, kind in ((DEVICE, dtype), ("cpu", torch.float64)):
        own = [x.to(device, kind).requires_grad_() for x in inputs]
        result = function(*own)
        weight = torch.linspace(-1, 1, result.numel(), device=device).view_as(result).to(kind)
        found.append([result.detach(), *torch.autograd.grad(result, own, weight)])
    return found[0], found[1]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("lines", [(5, 6), (60, 61), (90, 101)], ids=str)
def test_keys_on_a_grid_of_any_size(lines: tuple[int, int], dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    query, side = torch.randn(2, 2, 7 * 8, 96), lines[0] * lines[1]
    key, value = (torch.randn(2, 2, side, 96) for _ in range(2))
    entries = [torch.randn(*sides, 96) / 40 for sides in ((7, lines[0]), (8, lines[1]))]
    found, expected = in_both(attention.attend_heads_by_distance, (query, key, value, *entries), dtype)
    assert error(found, expected) < bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("budget", [2**26, 2 * 4 * 40 * 40 * 4, 4 * 40 * 4 * 8])
def test_heads_are_mixed_in_bands_of_images_and_of_queries(budget: int, dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    before, after = nn.Linear(4, 4), nn.Linear(4, 4)
    inputs = torch.randn(5, 40, 96), *(p.detach() for x in (before, after) for p in (x.weight, x.bias))

    def mixed(qkv: Tensor, *parameters: Tensor) -> Tensor:
        layers = []
        for weight, bias in (parameters[:2], parameters[2:]):
            layer = nn.Linear(4, 4, device=weight.device, dtype=weight.dtype)
            layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
            del layer._parameters["weight"], layer._parameters["bias"]
            layer._parameters.update(weight=weight, bias=bias)
            layers.append(layer)
        return talking_heads.attend(qkv, *layers, 4)

    with mock.patch.object(talking_heads, "CUDA_BAND_BYTES", budget):
        found, expected = in_both(mixed, inputs, dtype)
    # The softmax does not see the first bias.
    assert error([*found[:3], *found[4:]], [*expected[:3], *expected[4:]]) < bound
    assert not found[3].any()


@pytest.mark.parametrize("toy", ["vit", "mit", "swin", "coat_lite"])
@pytest.mark.parametrize("in_blocks", [False, True], ids=["whole", "blocks"])
def test_a_compiled_network_trains_as_the_plain_network(toy: str, in_blocks: bool) -> None:
    plain, network, x = build(toy).to(DEVICE), build(toy).to(DEVICE), image().to(DEVICE)
    exact = gradients(plain, x)
    lost = gradient_error(gradients(plain, x, torch.bfloat16), exact)
    assert not in_blocks or network.compile_blocks()
    compiled = network if in_blocks else torch.compile(network, dynamic=False, fullgraph=True)
    assert gradient_error(gradients(compiled, x, torch.bfloat16), exact) < max(3e-2, 1.5 * lost)
