"""The pyramids of ``layers.pyramid`` as necks: levels out of the maps of any backbone whose blocks have one grid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.layers.pyramid import Pyramid, ResizePyramid, SimplePyramid, TapsPyramid, halvings
from mm_vitbackbones.registry import MODELS

STRIDES = (4, 8, 16, 32)


def every_second(map: Tensor) -> Tensor:
    """The level above the coarsest in ViTDet's detectors: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""
    return F.max_pool2d(map, kernel_size=1, stride=2)


@MODELS.register_module()
class MaxPoolLevel(nn.Module):
    """A neck that adds ``every_second`` of the last map, for a backbone that has a pyramid itself."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (*maps, every_second(maps[-1]))


class FeaturePyramid(BaseModule):
    """Levels at several strides out of maps (B, C, H, W) of one stride, without a top-down path.

    Level i of a map of H x W patches of p pixels has ceil(H * p / strides[i]) rows.

    Args:
        in_channels: C, as one number, or as one for each map, all equal.
        patch_size: the stride of the maps, in pixels.
        strides: of the levels.
        num_outs: levels to return; by default one for each stride. Further ones are every second cell of the last, as
            in ViTDet's detectors.
        init_cfg: MMEngine's.

    Raises:
        ArgumentError: (a ValueError) for channels that are not equal, for less levels than strides; for other maps than
            these.
    """

    takes_several = True
    """Whether there may be one map for each level."""

    def __init__(
        self,
        in_channels: int | Sequence[int],
        patch_size: int = 16,
        strides: Sequence[int] = STRIDES,
        num_outs: int | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        dims = {in_channels} if isinstance(in_channels, int) else {*in_channels}
        if len(dims) != 1:
            raise ArgumentError(f"in_channels={in_channels!r}: the maps of one network have equal channels, give these")
        self.num_outs = len(strides) if num_outs is None else num_outs
        if self.num_outs < len(strides):
            raise ArgumentError(
                f"num_outs={num_outs!r}: give {len(strides)} or more, or fewer strides than {strides!r}"
            )
        self.in_channels, self.patch_size, self.strides = dims.pop(), patch_size, tuple(strides)
        self.pyramid = self.make(dict(enumerate(strides)))
        self.out_channels = self.pyramid.dim
        self._exact = all(patch_size == stride * 2 ** halvings(patch_size, stride) for stride in strides)

    @abstractmethod
    def make(self, strides: Mapping[int, int]) -> Pyramid:
        """The layer, for strides by the numbers of the levels."""

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map (B, C, H, W), or one for each level -> maps (B, out_channels, *, *), the finest first."""
        counts = [1, len(self.strides)] if self.takes_several else [1]
        if len(inputs) not in counts:
            raise ArgumentError(
                f"{type(self).__name__} makes {len(self.strides)} levels out of {' or '.join(map(str, counts))} maps, "
                f"and got {len(inputs)}: give the backbone taps for so many"
            )
        if wrong := [map.shape[1] for map in inputs if map.shape[1] != self.in_channels]:
            raise ArgumentError(
                f"{type(self).__name__} has in_channels={self.in_channels}, and got a map of {wrong[0]} channels"
            )
        maps = [*inputs] if len(inputs) > 1 else [*inputs] * len(self.strides)
        levels = [self._level(map, index) for index, map in enumerate(maps)]
        while len(levels) < self.num_outs:
            levels.append(every_second(levels[-1]))
        return tuple(levels)

    def _level(self, map: Tensor, index: int) -> Tensor:
        height, width = (
            (side * self.patch_size + self.strides[index] - 1) // self.strides[index] for side in map.shape[2:]
        )
        size = height, width
        return self.pyramid.level(map.permute(0, 2, 3, 1), index, size).permute(0, 3, 1, 2).contiguous()


@final
@MODELS.register_module()
class SimpleFeaturePyramid(FeaturePyramid):
    """ViTDet's: all levels of one map (Li et al. 2022, section 3); the arguments are those of ``FeaturePyramid``, and

    out_channels: of all levels.
    ceil: whether pooling keeps a last odd row and column, as the sizes above say; the official code drops them.
    """

    takes_several = False

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int = 256,
        patch_size: int = 16,
        strides: Sequence[int] = STRIDES,
        num_outs: int | None = None,
        ceil: bool = True,
        init_cfg: Any = None,
    ) -> None:
        self.width, self.ceil = out_channels, ceil
        super().__init__(in_channels, patch_size, strides, num_outs, init_cfg)

    def make(self, strides: Mapping[int, int]) -> Pyramid:
        return SimplePyramid(self.in_channels, self.patch_size, strides, self.width, self.ceil)

    def _level(self, map: Tensor, index: int) -> Tensor:
        if self.ceil or not self._exact:
            return super()._level(map, index)
        assert isinstance(self.pyramid, SimplePyramid)
        return self.pyramid.level(map.permute(0, 2, 3, 1), index).permute(0, 3, 1, 2).contiguous()


@final
@MODELS.register_module()
class TapsFeaturePyramid(FeaturePyramid):
    """XCiT's and BEiT's: each level of a map of its own, or all of one, by transposed convolutions and max pooling."""

    def make(self, strides: Mapping[int, int]) -> Pyramid:
        return TapsPyramid(self.in_channels, self.patch_size, strides)


@final
@MODELS.register_module()
class ResizeFeaturePyramid(FeaturePyramid):
    """Each level is a map, resized: no parameters."""

    def make(self, strides: Mapping[int, int]) -> Pyramid:
        return ResizePyramid(self.in_channels, self.patch_size, strides)
