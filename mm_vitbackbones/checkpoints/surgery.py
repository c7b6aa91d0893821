"""Surgery that several families need: each step works on our names and can be undone bit for bit."""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.checkpoints.layout import Adapter, State, Surgery
from mm_vitbackbones.ops.resize import resize_grid


def rows(whole: str, parts: tuple[tuple[str, int], ...]) -> Surgery:
    """Their ``attn.<whole>.`` is our ``attn.<part>.`` stacked along the rows.

    ``parts`` names each part with its share of the rows. ``rows('qkv', (('q', 1), ('kv', 2)))`` splits the weight
    (3C, C) of a joint projection into (C, C) and (2C, C).
    """
    total = sum(share for _, share in parts)

    def split(state: State) -> State:
        result: State = {}
        for key, tensor in state.items():
            if f".attn.{whole}." in key and tensor.dim() and tensor.shape[0] % total == 0:
                unit = tensor.shape[0] // total
                pieces = tensor.split([share * unit for _, share in parts])
                result |= {
                    key.replace(f".attn.{whole}.", f".attn.{part}."): piece
                    for (part, _), piece in zip(parts, pieces, strict=True)
                }
            else:
                result[key] = tensor
        return result

    def join(state: State) -> State:
        result: State = {}
        for key, tensor in state.items():
            part = next((part for part, _ in parts if f".attn.{part}." in key), None)
            names = [key.replace(f".attn.{part}.", f".attn.{name}.") for name, _ in parts]
            if part is None or not all(name in state for name in names):
                result[key] = tensor
            elif part == parts[0][0]:
                result[key.replace(f".attn.{part}.", f".attn.{whole}.")] = torch.cat([state[name] for name in names])
        return result

    return Surgery(split, join)


def inverse(surgery: Surgery) -> Surgery:
    """The same step for a layout that has the parts where we have the whole."""
    return Surgery(surgery.to_theirs, surgery.to_ours)


def pointwise(key: str) -> Surgery:
    """Their 1x1 convolution (O, I, 1, 1) is our linear layer (O, I), for the names that the pattern fits."""
    pattern = re.compile(key)

    def squeeze(state: State) -> State:
        fits = {name for name in state if pattern.fullmatch(name) and state[name].shape[2:] == (1, 1)}
        return {name: tensor.flatten(1) if name in fits else tensor for name, tensor in state.items()}

    def unsqueeze(state: State) -> State:
        return {name: t[..., None, None] if pattern.fullmatch(name) else t for name, t in state.items()}

    return Surgery(squeeze, unsqueeze)


def square_side(rows: int) -> int | None:
    """The side of a square grid of so many rows, or None if it is not square."""
    side = math.isqrt(rows)
    return side if side * side == rows else None


def resize_table(table: Tensor, shape: torch.Size, mode: str = "bilinear") -> Tensor:
    """A position table (1, H, W, C) for another grid (half-pixel centres).

    Raises:
        ValueError: if more than the grid differs.
    """
    if table.dim() != 4 or (table.shape[0], table.shape[3]) != (shape[0], shape[3]):
        raise ValueError(f"a position table {tuple(table.shape)} cannot be resized to {tuple(shape)}")
    return resize_grid(table.float(), shape[1], shape[2], mode).contiguous().to(table.dtype)


def adapt_in_channels(weight: Tensor, shape: torch.Size) -> Tensor:
    """A pretrained RGB stem (O, 3, k, k) for images of n channels: (O, n, k, k).

    The filters of R, G and B are repeated in this order and scaled by 3/n; what the sum over the channels then lacks
    (where n is no multiple of 3) is spread evenly. So an image with equal channels gives the response that the same RGB
    image gives, for every n; for one channel this is the sum over R, G and B.

    Raises:
        ValueError: if the weight is not of three channels, or differs in more than its channels.
    """
    channels = shape[1]
    if weight.shape[1] != 3 or weight.shape[:1] + weight.shape[2:] != shape[:1] + shape[2:]:
        raise ValueError(f"a stem {tuple(weight.shape)} cannot be adapted to {tuple(shape)}")
    rgb = weight.double()
    repeated = rgb[:, [i % 3 for i in range(channels)]] * (3 / channels)
    lacking = rgb.sum(1, keepdim=True) - repeated.sum(1, keepdim=True)
    return (repeated + lacking / channels).to(weight.dtype)


def adapt_patches(weight: Tensor, shape: torch.Size) -> Tensor:
    """A patch embedding (O, I, p, p) for patches of another size and images of other channels: (O, n, q, q).

    A patch that is resized from p to q pixels (bilinear) has the same embedding as before, if q is larger; if it is
    smaller, the nearest in the sense of least squares (Beyer et al. 2023, FlexiViT, section 3.4).

    Raises:
        ValueError: if the weight is not of square patches, and as ``adapt_in_channels``.
    """
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3] or shape[2] != shape[3] or weight.shape[0] != shape[0]:
        raise ValueError(f"a patch embedding {tuple(weight.shape)} cannot be adapted to {tuple(shape)}")
    before, after = weight.shape[2], shape[2]
    if before != after:
        lines = torch.eye(before, dtype=torch.float64, device=weight.device)
        resize = F.interpolate(lines[None, :, :, None], size=(after, 1), mode="bilinear")[0, :, :, 0].t()
        inverse = torch.linalg.pinv(resize)  # (before, after); of rows and columns apart, as the resize is
        weight = (inverse.t() @ weight.double() @ inverse).to(weight.dtype)
    return weight if weight.shape[1] == shape[1] else adapt_in_channels(weight, shape)


STEM = Adapter(
    re.compile(r"stages\.0\.patch_embed\.proj\.weight"),
    adapt_in_channels,
    "adapted from {source[1]} to {target[1]} input channels",
)
