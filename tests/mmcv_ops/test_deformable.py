"""Convolutions with learnt positions: recorded, against differences, against plain convolutions and compiled mmcv."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.operators import over_plain, recorded, with_gradients
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops import deformable

pytestmark = pytest.mark.mmdet
FORMS = [
    dict(stride=1, padding=1, dilation=1, groups=1, deform_groups=1),
    dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2, deform_groups=1),
    dict(stride=1, padding=2, dilation=2, groups=1, deform_groups=2),
    dict(stride=(1, 2), padding=1, dilation=1, groups=2, deform_groups=4),
]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchvision's compiled form, wherever it is installed."""
    monkeypatch.setattr(deformable, "_torchvision", lambda: None)


def case(form: dict, kernel: tuple[int, int] = (3, 2), dtype=torch.float64, seed: int = 0, size=(5, 6)) -> list[Tensor]:
    """Input, offsets, mask, weight and bias of 4 channels."""
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 4 // form["groups"], *kernel, generator=generator, dtype=torch.float64)
    convolution = {name: form[name] for name in ("stride", "padding", "dilation", "groups")}
    rows, columns = F.conv2d(input, weight, **convolution).shape[2:]
    taps = kernel[0] * kernel[1] * form["deform_groups"]
    offset = torch.randn(2, 2 * taps, rows, columns, generator=generator, dtype=torch.float64) * 1.5
    mask = torch.rand(2, taps, rows, columns, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)
    return [tensor.to(dtype) for tensor in (input, offset, mask, weight, bias)]


def modulated(module, form: dict) -> Callable[..., Tensor]:
    return lambda *inputs: module.modulated_deform_conv2d(*inputs, *form.values())


def unmodulated(module, form: dict) -> Callable[..., Tensor]:
    return lambda *inputs: module.deform_conv2d(*inputs, *form.values())


@pytest.mark.usefixtures("plain")
def test_recorded_values_and_gradients(monkeypatch):
    of = recorded("mmcv_ops_learnt_positions.npz")["modulated_deform_conv2d/plain"]
    names = ("input", "offset", "mask", "weight", "bias")
    leaves = [of[f"in_{name}"].clone().requires_grad_() for name in names]
    output = modulated(over_plain("modulated_deform_conv", monkeypatch), FORMS[0])(*leaves)
    torch.testing.assert_close(output, of["out0"], rtol=0, atol=1e-5)
    (output * of["in_w"]).sum().backward()
    for leaf, name in zip(leaves, names, strict=True):
        torch.testing.assert_close(leaf.grad, of[f"grad_{name}"], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("form", FORMS)
def test_without_offsets_it_is_the_plain_convolution(form, monkeypatch):
    input, offset, mask, weight, bias = case(form)
    convolution = {name: form[name] for name in ("stride", "padding", "dilation", "groups")}
    expected = with_gradients(lambda x, w, b: F.conv2d(x, w, b, **convolution), input, weight, bias)
    function = modulated(over_plain("modulated_deform_conv", monkeypatch), form)
    found = with_gradients(function, input, torch.zeros_like(offset), torch.ones_like(mask), weight, bias)
    torch.testing.assert_close([found[0], found[1], found[4], found[5]], expected)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_differences(form, monkeypatch):
    inputs = [tensor.requires_grad_() for tensor in case(form, (2, 1), size=(3, 4))]
    assert torch.autograd.gradcheck(
        modulated(over_plain("modulated_deform_conv", monkeypatch), form), inputs, fast_mode=True
    )
    input, offset, _, weight, _ = inputs
    assert torch.autograd.gradcheck(
        unmodulated(over_plain("deform_conv", monkeypatch), form), (input, offset, weight), fast_mode=True
    )


@pytest.mark.usefixtures("plain")
def test_channels_last_inputs_give_the_same(monkeypatch):
    function = modulated(over_plain("modulated_deform_conv", monkeypatch), FORMS[2])
    inputs = case(FORMS[2])
    last = [tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for tensor in inputs]
    torch.testing.assert_close(with_gradients(function, *last), with_gradients(function, *inputs))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_single_precision(dtype, monkeypatch):
    function = modulated(over_plain("modulated_deform_conv", monkeypatch), FORMS[3])
    inputs = case(FORMS[3], dtype=dtype)
    found = with_gradients(function, *inputs)
    expected = with_gradients(function, *(tensor.float() for tensor in inputs))
    assert all(tensor.dtype == dtype for tensor in found)
    epsilon = torch.finfo(dtype).eps
    for half, single in zip(found, expected, strict=True):
        assert (half.float() - single).abs().max() <= 4 * epsilon * single.abs().max()


def test_torchvision_gives_the_same(monkeypatch):
    if deformable._torchvision() is None:
        pytest.skip("torchvision is not installed, or not compiled for this PyTorch")
    for form in FORMS:
        function, inputs = modulated(over_plain("modulated_deform_conv", monkeypatch), form), case(form)
        still = [inputs[0], torch.zeros_like(inputs[1]), *inputs[2:]]  # many taps are exactly one pixel outside
        compiled = [with_gradients(function, *inputs), with_gradients(function, *still)]
        with monkeypatch.context() as context:
            context.setattr(deformable, "_torchvision", lambda: None)
            torch.testing.assert_close([with_gradients(function, *inputs), with_gradients(function, *still)], compiled)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.usefixtures("plain")
def test_random_cases_are_those_of_compiled_mmcv(monkeypatch):
    extension = importlib.import_module("mmcv._ext")
    if not str(getattr(extension, "__file__", "")).endswith((".so", ".pyd")):
        pytest.skip("mmcv is not compiled")
    modules = [importlib.import_module(f"mmcv.ops.{name}") for name in ("modulated_deform_conv", "deform_conv")]
    choose = random.Random(0)
    for seed in range(200):
        groups = choose.choice([1, 2])
        form = dict(
            stride=choose.choice([1, 2, (1, 2)]),
            padding=choose.choice([0, 1, 2, (2, 0)]),
            dilation=choose.choice([1, 2]),
            groups=groups,
            deform_groups=choose.choice([1, 2, 4]),
        )
        kernel = choose.choice([(1, 1), (3, 3), (2, 3)])
        size = (choose.randint(6, 14), choose.randint(6, 14))
        inputs = case(form, kernel, torch.float32, seed, size)
        if seed % 5 == 0:
            inputs[1].zero_()  # as initialised: all positions are on pixels, or exactly one outside of the map
        forms = [(modulated, inputs), (unmodulated, [inputs[0], inputs[1], inputs[3]])]
        for module, (make, of) in zip(modules, forms, strict=True):
            expected = with_gradients(make(module, form), *of)
            with monkeypatch.context() as context:
                found = with_gradients(make(over_plain(module.__name__.rpartition(".")[2], context), form), *of)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("plain")
def test_an_offset_has_no_gradient_exactly_one_pixel_outside(monkeypatch):
    convolve = unmodulated(over_plain("deform_conv", monkeypatch), FORMS[0])
    _, _, of_offset, _ = with_gradients(
        convolve, torch.ones(1, 1, 2, 2), torch.zeros(1, 18, 2, 2), torch.ones(1, 1, 3, 3)
    )
    assert (of_offset[0, :2, 0, 0] == 0).all()  # the first tap of the first pixel is at (-1, -1)
    assert (of_offset[0, 16:, 1, 1] == 0).all()  # the last tap of the last pixel is at (2, 2)


@pytest.mark.usefixtures("plain")
def test_offsets_of_a_larger_map_are_read_as_if_they_were_of_the_output(monkeypatch):
    input, offset, mask, weight, bias = case(FORMS[0])
    convolve = modulated(over_plain("modulated_deform_conv", monkeypatch), FORMS[0])
    expected = with_gradients(convolve, input, offset, mask, weight, bias)
    larger = [F.pad(tensor.flatten(1), (0, tensor[0].numel())).view(2, -1, 10, 7) for tensor in (offset, mask)]
    found = with_gradients(convolve, input, *larger, weight, bias)
    for index, like in ((2, offset), (3, mask)):
        gradient = found[index].flatten(1)
        assert (gradient[:, like[0].numel() :] == 0).all()
        found[index] = gradient[:, : like[0].numel()].view(like.shape)
    torch.testing.assert_close(found, expected)


def test_offsets_of_a_smaller_map_are_refused(monkeypatch):
    input, offset, mask, weight, bias = case(FORMS[0])
    convolve = modulated(over_plain("modulated_deform_conv", monkeypatch), FORMS[0])
    with pytest.raises(UserError, match="output of 5 x 7 pixels, but offsets or a mask of 3 x 7"):
        convolve(input, offset[:, :, :3], mask, weight, bias)
