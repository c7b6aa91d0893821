"""Convolutions and pooling whose positions are learnt.

Dai et al., Deformable Convolutional Networks, 2017; Zhu et al., Deformable ConvNets v2, 2019 (the modulated form).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops.compiled import torchvision_operators
from mm_vitbackbones.mmcv_ops.precision import widened
from mm_vitbackbones.mmcv_ops.sampling import bilinear


@dataclass(frozen=True)
class Shape:
    """How the kernel of a convolution goes over a map; pairs are of height and width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int


def deformable_convolution(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, shape: Shape
) -> Tensor:
    """A convolution that reads each tap where an offset has moved it to, and weighs what it reads by a mask.

    Args:
        input: (B, C, H, W). Outside of it are zeros.
        offset: (B, G * K * 2, H', W') for the K taps of the kernel: y and x, in pixels, of each of ``offset_groups``
            G groups of channels.
        mask: (B, G * K, H', W'), or None: ones.
        weight: (O, C / groups, kernel height, kernel width).
        bias: (O,), or None.

    Returns:
        (B, O, H', W'), with gradients of all tensors.
    """
    compiled = _torchvision()
    if compiled is not None and _compiled_takes(input):
        if offset.requires_grad:
            offset = _inner(input, offset, weight, shape)
        return compiled(input, offset, weight, bias, shape.stride, shape.padding, shape.dilation, mask)
    masks = [None] * len(input) if mask is None else mask.unbind()
    # One image at a time: what the taps have read is K times as large as the image.
    maps = [_of_one(*parts, weight, shape) for parts in zip(input.unbind(), offset.unbind(), masks, strict=True)]
    output = torch.stack(maps)
    return output if bias is None else output + bias[:, None, None]


def _of_one(image: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, shape: Shape) -> Tensor:
    """The output (O, H', W') of one image (C, H, W)."""
    channels, height, width = image.shape
    outputs, taps, split = len(weight), weight[0, 0].numel(), shape.offset_groups
    rows, columns = offset.shape[1:]
    y, x = _positions(offset[None], weight, shape)  # (1, H', W', K, G)
    table = widened(image).permute(1, 2, 0).reshape(height, width, split, channels // split)
    read = bilinear(table, y[0].flatten(0, 1), x[0].flatten(0, 1))  # (H' * W', K, G, C / G)
    if mask is not None:
        read = read * widened(mask).reshape(split, taps, rows * columns).permute(2, 1, 0)[..., None]
    # The convolution's groups: (groups, H' * W', K * C / groups) times (groups, K * C / groups, O / groups)
    per_group = read.to(image.dtype).view(rows * columns, taps, shape.groups, -1).permute(2, 0, 1, 3).flatten(2)
    kernel = weight.reshape(shape.groups, outputs // shape.groups, -1, taps).permute(0, 3, 2, 1).flatten(1, 2)
    return (per_group @ kernel).transpose(1, 2).reshape(outputs, rows, columns)


def _positions(offset: Tensor, weight: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Where all taps are, y and x in pixels: (B, H', W', K, G)."""
    kernel_height, kernel_width = weight.shape[2:]
    rows, columns = offset.shape[2:]
    taps = kernel_height * kernel_width
    moved = widened(offset).reshape(-1, shape.offset_groups, taps, 2, rows, columns).permute(0, 4, 5, 2, 1, 3)
    y = _regular(rows, kernel_height, shape, 0, offset.device).repeat_interleave(kernel_width, 1)
    x = _regular(columns, kernel_width, shape, 1, offset.device).repeat(1, kernel_height)
    return y[:, None, :, None] + moved[..., 0], x[:, :, None] + moved[..., 1]


def _regular(length: int, size: int, shape: Shape, axis: int, device: torch.device) -> Tensor:
    """Where the taps are along one axis without an offset: (length, size)."""
    start = torch.arange(length, device=device) * shape.stride[axis] - shape.padding[axis]
    return start[:, None] + torch.arange(size, device=device) * shape.dilation[axis]


def _inner(input: Tensor, offset: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The offsets, without a gradient where they lead out of the map.

    torchvision gives one to a tap that is exactly one pixel outside, as many are while all offsets are zero.
    """
    y, x = _positions(offset.detach(), weight, shape)
    inside = (y > -1) & (y < input.shape[2]) & (x > -1) & (x < input.shape[3])
    inside = inside.permute(0, 4, 3, 1, 2).flatten(1, 2).repeat_interleave(2, 1)
    return torch.where(inside, offset, offset.detach())


def _torchvision() -> Callable[..., Tensor] | None:
    """torchvision's compiled form of the same convolution, where torchvision is there and works."""
    return None if torchvision_operators() is None else importlib.import_module("torchvision.ops").deform_conv2d


def _compiled_takes(input: Tensor) -> bool:
    if input.device.type not in ("cpu", "cuda"):
        return False
    return input.dtype in (torch.float32, torch.float64) or (input.dtype == torch.float16 and input.is_cuda)


def _gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a function's inputs; the function is computed again."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    with torch.enable_grad():
        return torch.autograd.grad(function(*leaves), leaves, grad_output)


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **numbers: Any
) -> None:
    """``output`` receives ``deformable_convolution`` without mask and bias; ``columns`` and ``ones`` are not used."""
    output.copy_(deformable_convolution(input, offset, None, weight, None, _short(**numbers)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **numbers: Any,
) -> None:
    """Adds to the gradients of the input and the offsets."""
    shape = _short(**numbers)
    grads = _gradients(
        lambda x, moved: deformable_convolution(x, moved, None, weight, None, shape), (input, offset), gradOutput
    )
    gradInput += grads[0]
    gradOffset += grads[1]


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **numbers: Any,
) -> None:
    """Adds to the gradient of the weight, times ``scale``."""
    shape = _short(**numbers)
    # The gradient of a linear function is the same at any weight; the caller gives none.
    weights = (torch.zeros_like(gradWeight),)
    grads = _gradients(lambda of: deformable_convolution(input, offset, None, of, None, shape), weights, gradOutput)
    gradWeight += scale * grads[0]


def _short(
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> Shape:
    return Shape((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **numbers: Any,
) -> None:
    """``output`` receives ``deformable_convolution``; ``columns`` and ``ones`` are not used."""
    shape = _long(**numbers)
    offset, mask = _as_read(offset, output), _as_read(mask, output)
    output.copy_(deformable_convolution(input, offset, mask, weight, bias if with_bias else None, shape))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **numbers: Any,
) -> None:
    """Adds to the gradients of all inputs."""
    shape = _long(**numbers)

    def convolve(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        offset, mask = _as_read(offset, grad_output), _as_read(mask, grad_output)
        return deformable_convolution(input, offset, mask, weight, None, shape)

    grads = _gradients(convolve, (input, offset, mask, weight), grad_output)
    for total, grad in zip((grad_input, grad_offset, grad_mask, grad_weight), grads, strict=True):
        total += grad
    if with_bias:
        grad_bias += grad_output.sum((0, 2, 3))


def _as_read(tensor: Tensor, output: Tensor) -> Tensor:
    """Offsets or a mask (B, C, H', W') as mmcv reads them: their memory, as if they were as large as the output.

    MMDetection's DyHead gives those of a larger map, and its published weights are trained so.

    Raises:
        UserError: they are smaller than the output.
    """
    size = output.shape[2:]
    if tensor.shape[2:] == size:
        return tensor
    memory, count = tensor.flatten(1), tensor.shape[1] * size.numel()
    if memory.shape[1] < count:
        raise UserError(
            f"modulated_deform_conv2d has an output of {size[0]} x {size[1]} pixels, but offsets or a mask of "
            f"{tensor.shape[2]} x {tensor.shape[3]}: give each pixel of the output its own"
        )
    return memory[:, :count].unflatten(1, (-1, *size))


def _long(
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
) -> Shape:
    return Shape((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
