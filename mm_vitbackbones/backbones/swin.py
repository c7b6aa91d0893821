"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows.

Liu et al., ICCV 2021, arXiv:2103.14030. Official code and weights: github.com/microsoft/Swin-Transformer (MIT); what
dense prediction adds is in github.com/SwinTransformer/Swin-Transformer-Object-Detection (Apache-2.0).

    level  stride  what happens
      0       4    4x4 patches, LayerNorm, blocks with attention in windows and in shifted windows by turns
      1       8    2x2 neighbours merged, blocks as above
      2      16    2x2 neighbours merged, blocks as above
      3      32    2x2 neighbours merged, blocks as above

Each returned level has a LayerNorm of its own, which the classifier's files lack and the next stage does not see.
A grid that the windows do not fill is padded with zeros at the bottom and right, after the norm: the padding takes part
in attention, as official.

Shapes: B images, H x W grid, C channels, h heads, w side of a window, n = w*w places in it, K windows in the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mm_vitbackbones.backbones.base import Backbone, check_stages, recompute_mode
from mm_vitbackbones.layers import Block, FeedForward, LayerNorm, PatchEmbed, drop_path_rates, init_linears_and_norms
from mm_vitbackbones.layers.patch_embed import pad_to_multiple
from mm_vitbackbones.ops import onednn as fused
from mm_vitbackbones.ops.context import is_compiling
from mm_vitbackbones.ops.memory import recompute_between
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Arch:
    """Section 3.3 of the paper. Tuples have one entry per stage."""

    depths: tuple[int, ...]
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    """12 in the networks that were trained at 384 pixels."""

    def __post_init__(self) -> None:
        check_stages(self)
        if self.window_size < 2:
            raise ValueError(f"window_size={self.window_size}: give at least 2")


BASE = Arch(depths=(2, 2, 18, 2), dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32))
LARGE = Arch(depths=(2, 2, 18, 2), dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48))
ARCHS = {
    "tiny": Arch(depths=(2, 2, 6, 2)),
    "small": Arch(depths=(2, 2, 18, 2)),
    "base": BASE,
    "large": LARGE,
    "base_w12": replace(BASE, window_size=12),
    "large_w12": replace(LARGE, window_size=12),
}

BAND_BYTES = 4 * 2**20
"""The size of a band's queries, keys and values in inference on CPU, where a band is some of the windows."""
CROWDED = 0.15
"""The padding, as a share of the tokens, above which these are mapped before they are parted into windows."""


class Windows:
    """Where the tokens of a batch of grids (B, H, W) stand in their windows, and the way back.

    Padding, shift and partition are one gather together, and their inverse is another. The windows of all images are
    ordered in groups: those inside, those of the last column, those of the last row, and the last of all. In a
    shifted grid each group has one mask, of any grid size. What is not shifted is one group.
    """

    def __init__(self, batch: int, height: int, width: int, side: int, shift: int, device: torch.device) -> None:
        rows, columns = -(-height // side), -(-width // side)
        # Row y of the shifted plane shows row y + shift of the padded one, which is a circle; so for columns.
        y = (torch.arange(rows * side, device=device) + shift) % (rows * side)
        x = (torch.arange(columns * side, device=device) + shift) % (columns * side)
        image = torch.arange(batch, device=device)[:, None, None]
        # Places in the padding name a token of their own image, which `pad_` writes over.
        token = (image * height + y.clamp(max=height - 1)[:, None]) * width + x.clamp(max=width - 1)
        padding = ((y >= height)[:, None] | (x >= width)).expand_as(token)
        body, last, every = slice(None, -1), slice(-1, None), slice(None)
        groups = [(body, body), (body, last), (last, body), (last, last)] if shift else [(every, every)]

        def ordered(plane: Tensor) -> list[Tensor]:
            windows = plane.unflatten(1, (rows, side)).unflatten(3, (columns, side)).transpose(2, 3)
            return [windows[:, i, j].flatten(3).flatten(0, 2) for i, j in groups]

        self.sizes = [len(group) for group in ordered(token)]
        """The number of windows in each group."""
        self.tokens = torch.cat(ordered(token)).flatten()
        """The token of each place (K * n)."""
        is_padding = torch.cat(ordered(padding)).flatten()
        self.padding = is_padding.nonzero().flatten()
        """The places that have no token."""
        self.places = torch.empty(batch * height * width, dtype=torch.long, device=device)
        """The place of each token (B * H * W)."""
        self.places[self.tokens[~is_padding]] = (~is_padding).nonzero().flatten()

    def gather(self, tokens: Tensor, fill: Tensor) -> Tensor:
        """Tokens (B * H * W, C) -> their windows (K * n, C), with ``fill`` (C,) in the padding."""
        return self.pad_(tokens.index_select(0, self.tokens), fill)

    def scatter(self, windows: Tensor) -> Tensor:
        """Windows (K * n, C) -> their tokens (B * H * W, C)."""
        return windows.index_select(0, self.places)

    def pad_(self, windows: Tensor, fill: Tensor, first: int = 0) -> Tensor:
        """Writes ``fill`` into the padding of windows, or of a part of them that begins at the place ``first``."""
        padding = self.padding
        if len(padding) and len(windows) < len(self.tokens):
            padding = padding[(padding >= first) & (padding < first + len(windows))] - first
        if len(padding):
            windows[padding] = fill.to(windows.dtype)
        return windows


class Gather(torch.autograd.Function):
    """``Windows.gather``, whose gradient is a gather too; PyTorch's own would add up row by row."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, fill: Tensor, windows: Windows) -> Tensor:
        ctx.windows, ctx.dtype = windows, fill.dtype
        return windows.gather(tokens, fill)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        fill = grad[ctx.windows.padding].sum(0).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return Scatter.apply(grad, ctx.windows), fill, None


class Scatter(torch.autograd.Function):
    """``Windows.scatter``; its gradient has zeros in the padding."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, windows: Windows) -> Tensor:
        ctx.windows = windows
        return windows.scatter(tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Gather.apply(grad, grad.new_zeros(grad.shape[1]), ctx.windows), None


class BiasedAttention(torch.autograd.Function):
    """``WindowAttention._attend`` of all groups of windows, with a gradient of their biases, on CPU.

    PyTorch's fused kernel for CPUs gives none, and what stands in for it is slower than the six products here.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, sizes: list[int], num_heads: int) -> Tensor:
        """Windows (K, n, 3C) and biases (groups, h, n, n), of ``sizes`` windows each -> (K, n, C)."""
        with torch.autocast(qkv.device.type, enabled=False):
            heads = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
            query, key, value = heads
            query *= query.shape[-1] ** -0.5
            scores = (query @ key.mT).to(bias.dtype).unflatten(0, (-1, num_heads))
            for group, mask in zip(scores.split(sizes), bias, strict=True):
                group += mask
            weights = scores.softmax(-1).flatten(0, 1).to(value.dtype)
            ctx.save_for_backward(heads, weights)
            ctx.sizes, ctx.num_heads, ctx.bias_dtype = sizes, num_heads, bias.dtype
            return (weights @ value).unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        heads, weights = ctx.saved_tensors
        query, key, value = heads
        grad = grad.unflatten(-1, (ctx.num_heads, -1)).transpose(1, 2).flatten(0, 1)
        of_heads = torch.empty_like(heads)
        torch.bmm(weights.mT, grad, out=of_heads[2])
        of_scores = torch._softmax_backward_data(grad @ value.mT, weights, -1, weights.dtype)
        groups = of_scores.unflatten(0, (-1, ctx.num_heads)).split(ctx.sizes)
        of_bias = torch.stack([group.sum(0, dtype=ctx.bias_dtype) for group in groups])
        torch.bmm(of_scores, key, out=of_heads[0]).mul_(query.shape[-1] ** -0.5)
        torch.bmm(of_scores.mT, query, out=of_heads[1])
        of_qkv = of_heads.unflatten(1, (-1, ctx.num_heads)).permute(1, 3, 0, 2, 4).flatten(2)
        return of_qkv, of_bias, None, None


def relative_positions(side: int, device: torch.device) -> Tensor:
    """The row of the bias table for each pair of places in a window: (n * n,)."""
    place = torch.arange(side, device=device)
    offset = place[:, None] - place + side - 1
    return (offset[:, None, :, None] * (2 * side - 1) + offset[None, :, None, :]).flatten()


def shift_masks(side: int, shift: int, device: torch.device) -> Tensor:
    """-100 between places that only the shift brought together, by group of windows: (4, 1, n, n)."""
    wrapped = torch.arange(side, device=device) >= side - shift
    never = torch.zeros_like(wrapped)
    regions = [(y[:, None] * 2 + x.int()).flatten() for y in (never, wrapped) for x in (never, wrapped)]
    return torch.stack([(region[:, None] != region) * -100.0 for region in regions])[:, None]


@functools.lru_cache(maxsize=64)
def windows_of(*key: Any) -> Windows:
    """``Windows``, kept for the sizes used last; all blocks of equal grids share them."""
    with torch.inference_mode(False):
        return Windows(*key)


@functools.lru_cache(maxsize=16)
def constants_of(side: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """``relative_positions`` and, with a shift, ``shift_masks``."""
    with torch.inference_mode(False):
        return relative_positions(side, device), shift_masks(side, shift, device) if shift else None


class WindowAttention(nn.Module):
    """Self-attention of norm(x) in windows of w x w tokens, with a bias by relative position (section 3.2).

    With a shift, the windows begin ``shift`` rows and columns later, and those at the end take the first rows and
    columns in, behind a mask. Three forms that equal each other: ``plain``; ``gathered``; and ``in_bands``, for
    inference on CPU.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # The official name, by which optimizer rules spare it from weight decay.
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._kept_bias: tuple[Any, Tensor] | None = None

    def forward(self, grid: Tensor, norm: nn.Module) -> Tensor:
        # The compiler fuses the plain form by itself. Of tensors without data, no indices can be made and kept.
        if is_compiling() or grid.is_meta or type(grid) is not Tensor:
            return self.plain(grid, norm)
        return self.in_bands(grid, norm) if fused.usable(grid) else self.gathered(grid, norm)

    def plain(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """As in the paper: pad, shift, part into windows, attend, and all the way back."""
        batch, height, width, _ = grid.shape
        side, shift, device = self.window_size, self.shift, grid.device
        plane = pad_to_multiple(norm(grid), side).roll((-shift, -shift), (1, 2))
        rows, columns = -(-height // side), -(-width // side)
        windows = plane.unflatten(1, (rows, side)).unflatten(3, (columns, side)).transpose(2, 3).flatten(3, 4)
        bias = self._bias(relative_positions(side, device), shift_masks(side, shift, device) if shift else None)
        if shift:
            last_row = torch.arange(rows, device=device)[:, None] == rows - 1
            last_column = torch.arange(columns, device=device) == columns - 1
            bias = bias[(last_row * 2 + last_column.int()).flatten()].repeat(batch, 1, 1, 1)
        out = self.proj(self._attend(self.qkv(windows.flatten(0, 2)), bias))
        out = out.view(batch, rows, columns, side, side, -1).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        # One row and column too many, which the compiler leaves out: whether there is something to cut off would
        # otherwise be a question that a compiled graph asks.
        out = F.pad(out.roll((shift, shift), (1, 2)), (0, 0, 0, 1, 0, 1))
        return out[:, :height, :width].contiguous()

    def gathered(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """Equal to ``plain``, with one gather on the way in and one on the way out."""
        windows, bias = self._windows(grid), self.bias()

        def project(normed: Tensor) -> Tensor:
            # What is zero before the linear map is its bias behind it. To map the tokens alone is less work.
            return Gather.apply(self.qkv(normed).flatten(0, 2), self.qkv.bias, windows)

        qkv = recompute_between(grid, norm, project).unflatten(0, (-1, self.window_size**2))
        if bias.requires_grad and qkv.device.type == "cpu":
            out = BiasedAttention.apply(qkv, bias, windows.sizes, self.num_heads)
        else:
            groups = zip(qkv.split(windows.sizes), bias.split(1), strict=True)
            parts = [self._attend(group, mask) for group, mask in groups if len(group)]
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.proj(Scatter.apply(out.flatten(0, 1), windows)).view_as(grid)

    def in_bands(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """Equal to ``plain``, some windows at a time, so that queries, keys and values never leave the cache."""
        windows, bias, places = self._windows(grid), self.bias(), self.window_size**2
        tokens, dim = grid.flatten(0, 2), grid.shape[-1]
        out = grid.new_empty(len(windows.tokens) // places, places, dim)
        size = max(1, BAND_BYTES // (places * 3 * dim * grid.element_size()))
        # In small grids the groups are too small for matrix products, and the padding is too much work.
        at_once = len(out) <= size or len(windows.padding) > CROWDED * len(tokens)
        if at_once:
            qkv = windows.gather(fused.linear(norm(tokens), self.qkv), self.qkv.bias)

        first = 0
        for group, mask in zip(out.split(windows.sizes), bias.split(1), strict=True):
            for band in group.split(size) if len(group) else ():
                end = first + len(band) * places
                if at_once:
                    part = qkv[first:end]
                else:
                    normed = norm(tokens.index_select(0, windows.tokens[first:end]))
                    part = fused.linear(windows.pad_(normed, normed.new_zeros(dim), first), self.qkv)
                band.copy_(self._attend(part.unflatten(0, (-1, places)), mask))
                first = end

        result = torch.empty_like(grid)
        size *= places
        for band, here in zip(result.flatten(0, 2).split(size), windows.places.split(size), strict=True):
            band.copy_(fused.linear(out.flatten(0, 1).index_select(0, here), self.proj))
        return result

    def bias(self) -> Tensor:
        """The bias of relative positions, and of the mask, by group of windows: (1 or 4, h, n, n).

        Without gradients it is kept until the table changes, or the mode.
        """
        table = self.relative_position_bias_table
        constants = constants_of(self.window_size, self.shift, table.device)
        if torch.is_grad_enabled() or table.is_inference():  # the latter do not tell whether they have changed
            return self._bias(*constants)
        key = (table._version, table.data_ptr(), table.dtype, table.device)
        if self._kept_bias is None or self._kept_bias[0] != key:
            self._kept_bias = key, self._bias(*constants)
        return self._kept_bias[1]

    def train(self, mode: bool = True) -> WindowAttention:
        self._kept_bias = None  # what was written through `.data` leaves no trace
        return super().train(mode)

    def _bias(self, positions: Tensor, masks: Tensor | None) -> Tensor:
        places = self.window_size**2
        bias = self.relative_position_bias_table[positions].view(1, places, places, -1).permute(0, 3, 1, 2)
        if masks is not None:
            bias = bias + masks.to(bias.dtype)
        # CUDA's kernels want rows of a multiple of 8 elements, and would pad them at each call.
        return F.pad(bias.contiguous(), (0, -places % 8))[..., :places]

    def _windows(self, grid: Tensor) -> Windows:
        batch, height, width, _ = grid.shape
        return windows_of(batch, height, width, self.window_size, self.shift, grid.device)

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Queries, keys and values (K, n, 3C) and the bias (1 or K, h, n, n) -> (K, n, C)."""
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)


class PatchMerging(nn.Module):
    """2x2 neighbours as one token of fewer channels: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), dim)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * in_channels, eps=1e-5)
        self.reduction = nn.Linear(4 * in_channels, dim, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        grid = pad_to_multiple(grid, 2)
        # The official order of neighbours goes down before it goes right.
        neighbours = grid.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(neighbours.flatten(3)))


class Stage(nn.Module):
    """Patch embedding or merging, then blocks: (B, H, W, Cin) -> (B, ceil(H/stride), ceil(W/stride), C).

    ``norm`` is for the level that the stage gives, not for the next stage; a level that is not returned has none.
    """

    def __init__(
        self,
        in_channels: int,
        arch: Arch,
        index: int,
        drop_paths: list[float],
        recomputed: str | None,
        returned: bool,
    ) -> None:
        super().__init__()
        dim, heads, side = arch.dims[index], arch.num_heads[index], arch.window_size
        self.patch_embed = PatchEmbed(in_channels, dim, 4, 4) if index == 0 else PatchMerging(in_channels, dim)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    attn=WindowAttention(dim, heads, side, shift=side // 2 if i % 2 else 0),
                    ffn=FeedForward(dim, 4 * dim),
                    norm_eps=1e-5,
                    drop_path=drop_path,
                    recomputed=recomputed,
                )
                for i, drop_path in enumerate(drop_paths)
            )
        )
        self.norm = LayerNorm(dim, eps=1e-5) if returned else nn.Identity()

    def forward(self, grid: Tensor) -> Tensor:
        return self.blocks(self.patch_embed(grid))


@final
@BACKBONES.register_module()
class Swin(Backbone):
    """Swin as an encoder of four levels; the arguments are those of ``Backbone``, and ``drop_path_rate``, the rate of
    stochastic depth at the last block (it grows linearly from 0; the dense recipes take 0.2 for tiny, 0.3 for larger
    ones)."""

    archs = ARCHS
    spec_type = Arch

    def __init__(
        self,
        arch: str | Arch | dict[str, Any] = "tiny",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: float = 0.2,
        init_cfg: Any = None,
    ) -> None:
        self.arch: Arch = self.resolve_arch(arch)
        super().__init__(self.arch.dims, in_channels, out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        rates = drop_path_rates(drop_path_rate, self.arch.depths)
        widths = (in_channels, *self.arch.dims)
        self.stages = nn.ModuleList(
            Stage(widths[i], self.arch, i, rates[i], recompute_mode(with_cp), returned=i in out_indices)
            for i in range(out_indices[-1] + 1)
        )
        init_linears_and_norms(self)
        self.freeze()

    def levels(self, image: Tensor) -> Iterator[Tensor]:
        grid = image.permute(0, 2, 3, 1)
        for stage in self.stages:
            grid = stage(grid)
            yield cast(Stage, stage).norm(grid)

    def freezable(self) -> list[list[nn.Module]]:
        return [[cast(Stage, self.stages[0]).patch_embed], *([stage] for stage in self.stages)]
