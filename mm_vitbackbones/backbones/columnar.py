"""What ViT and its successors have in common: one grid of patches, and blocks of one width.

The results of some blocks, the *taps*, are what a dense head reads. A *pyramid* makes the levels at strides 4, 8, 16
and 32 of them (``layers.pyramid``); without one, the levels are the grids of the taps at the stride of a patch.

    image -> patches + positions -> block 0 -> ... -> block n-1
                                        taps: |   |   |   |
                                     pyramid: 4   8   16  32
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones.base import STRIDES, Backbone, Level, Part
from mm_vitbackbones.backbones.checks import Count, Rate, fits
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers import (
    PYRAMIDS,
    ChannelsLastConv2d,
    LayerNorm,
    ResidualBlock,
    init_linears_and_norms,
    pad_to_multiple,
)
from mm_vitbackbones.layers.drop_path import check_drop_path_rate, drop_path_rates
from mm_vitbackbones.ops import context, joint, memory
from mm_vitbackbones.ops.anysize import ceil_div

STEMS = ("aligned", "published")
MAPS_ALONE = (
    "this neck or head reads maps, and the backbone has with_class_token=True, which gives pairs of a map and a class "
    "token: leave it out, or take a head that reads both, such as mm_vitbackbones.DPTHead"
)


def ends_of_quarters(depth: int) -> list[int]:
    """The last block of each quarter of the blocks."""
    return [depth * quarter // 4 - 1 for quarter in range(1, 5) if depth * quarter >= 4]


def _same(x: Tensor) -> Tensor:
    return x


class PatchStem(nn.Module):
    """Patches side by side: (B, H, W, Cin) -> (B, ceil(H/p), ceil(W/p), C), with zeros at the bottom and right. In the
    published form a remainder of rows or columns is left out."""

    def __init__(self, in_channels: int, dim: int, patch_size: int, published: bool) -> None:
        super().__init__()
        self.multiple = 1 if published else patch_size
        self.proj = ChannelsLastConv2d(in_channels, dim, patch_size, patch_size)

    def patches(self, image: Tensor) -> Tensor:
        with memory.saving(image):
            return self.proj(pad_to_multiple(image, self.multiple))

    @staticmethod
    def after(tokens: Sequence[Tensor | None], grid: Tensor) -> Tensor:
        """The patches of a grid (B, H, W, C) after tokens (1, T, C) that all images share: (B, T + N, C)."""
        first = [token[0].to(grid.dtype).expand(grid.shape[0], -1, -1) for token in tokens if token is not None]
        return torch.cat((*first, grid.flatten(1, 2)), dim=1)


class NoTensorError(ArgumentError, AttributeError):
    """An attribute of a tensor, such as its shape, was asked for where there is a pair."""


class Tap(NamedTuple):
    """What ``forward`` returns of a block for heads that read class tokens."""

    map: Tensor
    """(B, C, H, W)."""
    class_token: Tensor
    """(B, C)."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """PyTorch calls this where a ``Tap`` is taken for a tensor."""
        raise ArgumentError(MAPS_ALONE)

    def __getattr__(self, name: str) -> Any:
        raise NoTensorError(MAPS_ALONE) if hasattr(Tensor, name) else AttributeError(name)


class ColumnarBackbone(Backbone):
    """The arguments are those of ``Backbone``, and

    drop_path_rate: of stochastic depth.
    taps: ascending blocks whose results the levels are made of, counted from 0, -1 for the last: one for all levels,
        or one for each. Default: the last block for ``pyramid="simple"``, otherwise the ends of the four quarters.
    pyramid: ``"resize"``: bilinear, without parameters. ``"taps"``: transposed convolutions and max pooling, as in XCiT
        and BEiT. ``"simple"``: that of ViTDet, with 256 channels, from one tap. None: the grids of the taps, as they
        are, at the stride of a patch.
    final_norm: whether the final norm is applied to each tap.
    patch_size: of the patches in pixels, if it is not that of the arch: the published patch embedding and the positions
        are resized to it. (DINOv2 with 16 has cells of exactly 16 pixels; with its own 14, levels are resized.)
    with_class_token: without a pyramid, ``forward`` returns pairs of a map and its class token (B, C) (``Tap``), for
        heads that read both, such as ``DPTHead``.
    stem: ``"aligned"``: an image that patches do not fill is padded, so that each level has ceil(H/stride) rows.
        ``"published"``: a remainder of rows and columns is left out, as in the official code; only without a pyramid.
    out_indices: default: all levels.
    frozen_stages: each block is a stage: n freezes the stem and the first n blocks. ``"all"``: all but the pyramid.

    Where nothing before the pyramid trains, it keeps nothing for the backward pass.

    Raises:
        ArgumentError: besides what ``Backbone`` raises, for taps that do not exist or do not suit the pyramid.
    """

    default_arch: ClassVar[str]
    drop_paths_grow: bool = True
    """Whether the rate grows linearly from 0 to that of the last block, or is the same in all blocks."""
    norms_taps: ClassVar[bool]
    """The default of ``final_norm``."""
    norm_eps: ClassVar[float] = 1e-6

    stem: nn.Module

    def __init__(
        self,
        arch: Any = None,
        in_channels: Count = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int | str = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.0,
        taps: Sequence[int] | None = None,
        pyramid: str | None = "resize",
        final_norm: bool | None = None,
        patch_size: Count | None = None,
        with_class_token: bool = False,
        stem: str = "aligned",
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.arch = self.resolve_arch(self.default_arch if arch is None else arch)
        depth, dim = self.arch.depth, self.arch.dim
        self.patch_size = patch_size or self.arch.patch_size
        if pyramid is not None and not (isinstance(pyramid, str) and pyramid in PYRAMIDS):
            raise ArgumentError(f"pyramid={pyramid!r}: give {', '.join(map(repr, PYRAMIDS))} or None")
        if not isinstance(stem, str) or stem not in STEMS:
            raise ArgumentError(f"stem={stem!r}: give {' or '.join(map(repr, STEMS))}")
        if stem == "published" and pyramid is not None:
            raise ArgumentError(
                "stem='published' leaves pixels out, and a pyramid needs them: give pyramid=None as well"
            )
        if with_class_token and pyramid is not None:
            raise ArgumentError("with_class_token=True goes with the grids as they are: give pyramid=None as well")
        if with_class_token and not self.num_tokens:
            raise ArgumentError("with_class_token=True: with windows or relative positions there is no class token")
        self.with_class_token = with_class_token
        self.taps = self._taps(taps, pyramid)
        strides = STRIDES if pyramid else (self.patch_size,) * len(self.taps)
        out_indices = tuple(range(len(strides)) if out_indices is None else out_indices)
        asked = {i: stride for i, stride in enumerate(strides) if i in out_indices}
        built = PYRAMIDS[pyramid](dim, self.patch_size, asked) if pyramid else None
        channels = (built.dim if built else dim,) * len(strides)
        if isinstance(frozen_stages, str) and frozen_stages == "all":
            frozen_stages = depth
        if not fits(frozen_stages, int):
            raise ArgumentError(f"frozen_stages={frozen_stages!r}: give -1 (none), 'all', or 0 to {depth}")
        super().__init__(
            channels,
            in_channels,
            out_indices,
            cast(int, frozen_stages),
            norm_eval,
            with_cp,
            init_cfg,
            strides,
            stages=depth,
            adapters=adapters,
        )
        used = [self._tap_of(level) for level in self.out_indices]
        check_drop_path_rate(drop_path_rate)
        rates = drop_path_rates(drop_path_rate, (depth,))[0] if self.drop_paths_grow else [drop_path_rate] * depth
        self.stem = self.make_stem(in_channels, stem == "published")
        self.blocks = nn.ModuleList(self.make_block(i, rates[i]) for i in range(max(used) + 1))
        normed = self.norms_taps if final_norm is None else final_norm
        self.norm = LayerNorm(dim, eps=self.norm_eps) if normed else nn.Identity()
        self.class_attention = self.make_class_attention()
        self.pyramid = built
        init_linears_and_norms(self)  # official in all families; the stem initialises its own tokens and tables
        self.finish()

    def _taps(self, taps: Sequence[int] | None, pyramid: str | None) -> tuple[int, ...]:
        depth = self.arch.depth
        if taps is None:
            one = pyramid == "simple" or depth < len(STRIDES)
            taps = [depth - 1] if one else self.arch.taps or ends_of_quarters(depth)
        blocks = [tap + depth if tap < 0 else tap for tap in taps]
        if not blocks or any(i not in range(depth) for i in blocks) or sorted(set(blocks)) != blocks:
            raise ArgumentError(
                f"taps={taps!r}: give ascending blocks out of {depth}, counted from 0, or -1 for the last"
            )
        counts = {None: range(1, depth + 1), "simple": [1]}.get(pyramid, [1, len(STRIDES)])
        if len(blocks) not in counts:
            raise ArgumentError(f"taps={taps!r} and pyramid={pyramid!r}: give {' or '.join(map(str, counts))} of them")
        return tuple(blocks)

    def _tap_of(self, level: int) -> int:
        """The block whose result a level is made of."""
        return self.taps[0] if len(self.taps) == 1 else self.taps[level]

    @abstractmethod
    def make_stem(self, in_channels: int, published: bool) -> nn.Module:
        """What makes the input of the first block of an image."""

    @abstractmethod
    def make_block(self, index: int, drop_path: float) -> ResidualBlock:
        """Block ``index`` of ``self.arch``."""

    def make_class_attention(self) -> nn.Module | None:
        """What makes class tokens (B, T, C) of the grid that the last block gives; None where there are none, or where
        they pass through the blocks."""
        return None

    def embed(self, image: Tensor) -> tuple[Tensor, Any]:
        """The input of the first block, of an image (B, H, W, Cin), and what all blocks share, if anything."""
        return self.stem(image), None

    @property
    def num_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        return 0

    def output(self, level: Level) -> Any:
        map = super().output(level)
        return Tap(map, cast(Tensor, level.class_tokens)[:, 0]) if self.with_class_token else map

    def trunk(self, image: Tensor) -> dict[int, Level]:
        """The result of each tap, by its block."""
        x, shared = self.embed(image)
        sides = self.token_sides(0, *image.shape[1:3])
        taps: dict[int, Level] = {}
        for i, block in enumerate(self.blocks):
            x = block(x, shared)
            if i in self.taps:
                taps[i] = self._level(x, i, sides, self.norm)
        return taps

    def token_stride(self, stage: int) -> int:
        return self.patch_size

    def token_sides(self, stage: int, height: int, width: int) -> tuple[int, int]:
        covers = cast(PatchStem, self.stem).multiple != 1
        rows, columns = (
            ceil_div(side, self.patch_size) if covers else side // self.patch_size for side in (height, width)
        )
        return rows, columns

    def _level(self, x: Tensor, block: int, sides: Sequence[int], norm: Callable[[Tensor], Tensor] = _same) -> Level:
        """Of the result of a block: tokens (B, T + N, C), or a grid."""
        if x.dim() == 4:
            if self.class_attention is None or block != self.arch.depth - 1:
                return Level(norm(x))
            return Level(norm(x), norm(self.class_attention(x)))
        normed = norm(x)  # without a norm the next block takes x, too
        tokens, grid = joint.split(normed, self.num_tokens, in_use=normed is x)
        return Level(grid.unflatten(1, tuple(sides)), tokens)

    def levels(self, image: Tensor) -> Iterator[Level]:
        with context.gradients(context.trains(self._given(image))):
            taps = self.trunk(image.permute(0, 2, 3, 1))
        last = max(self.out_indices) + 1
        for index in range(last):
            grid, tokens = taps[self._tap_of(index)]
            if self.pyramid is not None and index in self.out_indices:  # others are the grid as it is
                height, width = (ceil_div(side, STRIDES[index]) for side in image.shape[2:])
                grid = self.pyramid.level(grid, index, (height, width))
            yield Level(grid, tokens)

    def _given(self, image: Tensor) -> Iterator[Tensor]:
        """All that the trunk's results are made of."""
        yield image
        for part in (self.stem, self.blocks, self.norm, self.class_attention):
            if part is not None:
                yield from part.parameters()

    def parts(self) -> list[Part]:
        parts = [Part((self.stem,), 0, "open")]
        parts += [Part((block,), i, "block") for i, block in enumerate(self.blocks)]
        closing = (self.norm,) if self.class_attention is None else (self.norm, self.class_attention)
        parts.append(Part(closing, len(self.blocks) - 1, "close"))
        if self.pyramid is not None:
            parts.append(Part((self.pyramid,), self.arch.depth, "pyramid", fresh=True))
        return parts

    def levels_of_block(self, output: Tensor, stage: int, levels: Sequence[Level], image: Tensor) -> list[Level]:
        return [self._level(output, stage, self.token_sides(stage, *image.shape[2:]))]
