"""The kernels of depthwise convolutions equal their references; without a card, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm_vitbackbones.ops.kernels import depthwise

pytest.importorskip("triton", reason="the kernels are written in Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# (B, H, W), windows and their channels, GELU, add, bias, the type of the grid, and of the weights
CASES = {
    "3x3 with GELU": ((1, 3, 9), {3: 40}, True, False, True, torch.float32, torch.float32),
    "mixed types": ((1, 3, 5), {3: 38}, True, False, True, torch.bfloat16, torch.float32),
    "narrow weights, no bias": ((1, 2, 3), {3: 33}, True, False, False, torch.bfloat16, torch.bfloat16),
    "added": ((1, 2, 3), {3: 152}, False, True, True, torch.float32, torch.float32),
    "one cell, all of it": ((1, 1, 1), {3: 4}, True, True, True, torch.float16, torch.float32),
    "several windows": ((2, 1, 4), {3: 8, 5: 16, 7: 9}, False, False, True, torch.float32, torch.float32),
}


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[actual.dtype]
    assert (actual.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_equals_its_reference(case):
    shape, windows, gelu, add, bias, dtype, of_weights = CASES[case]
    torch.manual_seed(0)
    channels = sum(windows.values())
    wide = torch.randn(*shape, channels + 5, device=DEVICE).to(dtype)
    grid, grad = wide[..., 3:-2], torch.randn(*shape, channels, device=DEVICE).to(dtype)
    weights = [torch.randn(c, 1, k, k, device=DEVICE).to(of_weights) for k, c in windows.items()]
    biases = [torch.randn(c, device=DEVICE).to(of_weights) for c in windows.values()] if bias else []
    exact = grid.double(), [w.double() for w in weights], [b.double() for b in biases], gelu, add
    out = depthwise.launch(grid, weights, biases, gelu, add)
    assert out.dtype == dtype
    assert out.is_contiguous()
    close(out, depthwise.reference(*exact))
    of_grid, *others = depthwise.launch_backward(grad, grid, weights, biases, gelu, add)
    expected, *exact_others = depthwise.backward_reference(grad.double(), *exact)
    close(of_grid, expected)
    for mine, theirs, parameters in zip(others, exact_others, (weights, biases), strict=True):
        assert [g.dtype for g in mine] == [p.dtype for p in parameters]
        for a, b in zip(mine, theirs, strict=True):
            close(a, b)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case[2] and case[4]])
def test_the_gradient_in_two_halves_gives_the_activation_besides(case):
    shape, windows, _, _, _, dtype, of_weights = CASES[case]
    torch.manual_seed(0)
    ((side, channels),) = windows.items()
    grid, grad = torch.randn(2, *shape, channels, device=DEVICE).to(dtype)
    weight = torch.randn(channels, 1, side, side, device=DEVICE).to(of_weights)
    bias = torch.randn(channels, device=DEVICE).to(of_weights)
    exact = grid.double(), [weight.double()], [bias.double()], True, False
    of_conv, activation, of_weight, of_bias = depthwise.launch_slopes(grad, grid, weight, bias)
    close(activation, depthwise.reference(*exact))
    of_grid, (exact_weight,), (exact_bias,) = depthwise.backward_reference(grad.double(), *exact)
    close(of_weight, exact_weight)
    close(of_bias, exact_bias)
    close(depthwise.launch_transposed(of_conv, weight), of_grid)
    for mine, theirs in zip(
        (of_conv, activation, of_weight, of_bias),
        depthwise.slopes_reference(grad.double(), grid.double(), weight.double(), bias.double()),
        strict=True,
    ):
        close(mine, theirs)
    close(depthwise.launch_transposed(grad, weight), depthwise.transposed_reference(grad.double(), weight.double()))


def test_bands_of_rows_and_gradients_of_any_strides(monkeypatch):
    for name in ("CONVOLVE", "CORRELATE", "CORRELATE_GELU"):
        monkeypatch.setattr(depthwise, name, getattr(depthwise, name)._replace(columns=4, rows=2))
    torch.manual_seed(0)
    grid = torch.randn(1, 16, 5, 4, device=DEVICE).permute(0, 3, 2, 1)  # channels are not side by side
    weights, biases = [torch.randn(16, 1, 3, 3, device=DEVICE)], [torch.randn(16, device=DEVICE)]
    assert depthwise.bands_of(grid.shape[:3], depthwise.windows_of(weights), depthwise.CONVOLVE) == (2, 2)
    grad = torch.randn(16, device=DEVICE).expand(1, 4, 5, 16)
    for gelu in (True, False):
        exact = grid.double(), [weights[0].double()], [biases[0].double()], gelu, False
        close(depthwise.launch(grid, weights, biases, gelu, False), depthwise.reference(*exact))
        actual = depthwise.launch_backward(grad, grid, weights, biases, gelu, False)
        expected = depthwise.backward_reference(grad.double(), *exact)
        for a, b in zip((actual[0], *actual[1], *actual[2]), (expected[0], *expected[1], *expected[2]), strict=True):
            close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_the_kernels_do_not_know_runs_the_reference(dtype):
    batch = 1 if dtype == torch.float64 else 0
    grid = torch.randn(batch, 3, 3, 8, dtype=dtype, device=DEVICE)
    weights = [torch.randn(8, 1, 3, 3, dtype=dtype, device=DEVICE)]
    expected = depthwise.reference(grid, weights, [], True, False)
    assert torch.equal(depthwise.launch(grid, weights, [], True, False), expected)
    backward = depthwise.launch_backward(grid, grid, weights, [], True, False)
    assert torch.equal(backward[0], depthwise.backward_reference(grid, grid, weights, [], True, False)[0])


@pytest.mark.parametrize("case", ["one level", "levels without biases", "of a type that the kernels do not know"])
def test_grids_in_rows_are_convolved_and_class_tokens_stay(case):
    shapes = [(2, 2, 3)] if case == "one level" else [(2, 2, 3), (2, 1, 2), (2, 1, 1)]
    dtype = torch.float64 if case.startswith("of a type") else torch.float32
    torch.manual_seed(0)
    sizes = [batch * (height * width + 1) for batch, height, width in shapes]
    rows, grad = torch.randn(2, sum(sizes), 12, device=DEVICE, dtype=dtype)
    weights = [*torch.randn(len(shapes), 12, 1, 3, 3, device=DEVICE, dtype=dtype)]
    biases = [] if case.endswith("biases") else [*torch.randn(len(shapes), 12, device=DEVICE, dtype=dtype)]
    flat = [size for shape in shapes for size in shape]
    out = depthwise.launch_of_rows(rows, flat, weights, biases)
    of_rows, *others = depthwise.launch_of_rows_backward(grad, rows, flat, weights, biases)

    exact = [x.double().requires_grad_() for x in (rows, *weights, *biases)]
    parts = []
    for i, (part, shape) in enumerate(zip(exact[0].split(sizes), shapes, strict=True)):
        grid, cls = part[: -shape[0]].view(*shape, 12).permute(0, 3, 1, 2), part[-shape[0] :]
        bias = exact[1 + len(shapes) + i] if biases else None
        convolved = grid + torch.nn.functional.conv2d(grid, exact[1 + i], bias, padding=1, groups=12)
        parts += convolved.permute(0, 2, 3, 1).flatten(0, 2), cls
    expected = torch.cat(parts)
    gradients = torch.autograd.grad(expected, exact, grad.double())
    for actual, wanted in zip((out, of_rows, *others[0], *others[1]), (expected, *gradients), strict=True):
        assert actual.dtype == dtype
        assert (actual.double() - wanted).norm() <= 1e-5 * wanted.norm()
