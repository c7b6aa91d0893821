"""The decoder of DPT: Vision Transformers for Dense Prediction.

Ranftl et al., ICCV 2021, arXiv:2103.13413, section 3 and appendix A; its form for segmentation. Official code:
github.com/isl-org/DPT (MIT).

Four blocks of a ViT give maps of one grid, one cell for each patch, each with its class token:

    reassemble  readout: the class token joins each cell; a 1x1 convolution; the grid is resized by 4, 2, 1, 1/2
    lateral     each level to E channels by a 3x3 convolution
    fuse        from the coarsest level to the finest: x = unit2(x + unit1(level)), upsampled to the next level's grid
    classify    a 3x3 convolution, norm, ReLU, dropout, a linear map to the classes

A patch of p pixels gives levels whose cells have p/4, p/2, p and 2p pixels, and logits of cells of p/8. A 1x1
convolution and an interpolation commute: the one that closes a fusion comes before its upsampling here, at a quarter of
the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.ops import anysize, context
from mm_vitbackbones.registry import MODELS, init_weights

READOUTS = ("ignore", "add", "project")
LEVELS = 4


@final
@MODELS.register_module()
class DPTHead(BaseDecodeHead):
    """Logits of cells of half the finest level's side, out of four maps of one grid.

    The maps are those of a backbone with ``pyramid=None`` and four taps. With ``with_class_token=True`` such a backbone
    gives pairs of a map (B, C, H, W) and a class token (B, C), which the readouts ``"add"`` and ``"project"`` need.
    (MMSegmentation's ViT gives such pairs with ``output_cls_token=True``.)

    Args:
        in_channels: of the four maps; one number stands for four.
        channels: E.
        readout: what the class token does: ``"ignore"``, ``"add"``: it is added to each cell, ``"project"``: both go
            through a linear map of their 2C channels, and a GELU.
        widths: channels of the four levels after their 1x1 convolutions. Default: C/8, C/4, C/2, C, as published for
            ViT-B; for ViT-L 256, 512, 1024, 1024 are.
        in_index: the maps to take.
        norm_cfg: of the norms in the fusion and before the classifier.
        align_corners: how logits are resized to the image. True as published; MMSegmentation's recipe has False.
        kwargs: of MMSegmentation's decode heads: num_classes, loss_decode, dropout_ratio (0.1), ignore_index (255),
            sampler, ... ``init_cfg=dict(type='Pretrained', checkpoint=PATH_OR_URL)`` takes the head out of a file of a
            whole DPT for segmentation, of any known layout.

    Raises:
        ArgumentError: (a ValueError) for four of anything that are not four, for another readout; when maps come
            without the class tokens that the readout needs, are not of one grid, or have other channels.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        channels: int = 256,
        *,
        readout: str = "project",
        widths: Sequence[int] | None = None,
        in_index: Sequence[int] = (0, 1, 2, 3),
        norm_cfg: Any = None,
        align_corners: bool = True,
        **kwargs: Any,
    ) -> None:
        dims = [in_channels] * LEVELS if isinstance(in_channels, int) else [*in_channels]
        widths = [dim * 2**i // 8 for i, dim in enumerate(dims)] if widths is None else [*widths]
        for name, given in (("in_channels", dims), ("widths", widths), ("in_index", in_index)):
            if len(given) != LEVELS:
                raise ArgumentError(f"{name}={given!r}: give {LEVELS}, one for each map")
        if readout not in READOUTS:
            raise ArgumentError(f"readout={readout!r}: give {', '.join(map(repr, READOUTS[:-1]))} or {READOUTS[-1]!r}")
        norm_cfg = dict(type="BN") if norm_cfg is None else norm_cfg
        kwargs = dict(kwargs, input_transform="multiple_select", norm_cfg=norm_cfg, align_corners=align_corners)
        super().__init__(dims, channels, in_index=[*in_index], **kwargs)
        self.readout = readout

        def make_norm() -> nn.Module:
            return build_norm_layer(norm_cfg, channels)[1]

        self.reassemble = nn.ModuleList(
            Reassemble(dim, width, level, readout) for level, (dim, width) in enumerate(zip(dims, widths, strict=True))
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.fusions = nn.ModuleList(Fusion(channels, make_norm, level == LEVELS - 1) for level in range(LEVELS))
        self.project = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = make_norm()

    def init_weights(self) -> None:
        """MMEngine's hook: weights out of a file, or the classifier's own initialisation."""
        init_weights(self, super().init_weights)

    def forward(self, inputs: Sequence[Any]) -> Tensor:
        """Four maps (B, C, H, W), or pairs of a map and a class token (B, C) -> logits (B, classes, 8H, 8W)."""
        fused = self.paths(self.levels(inputs))[0]
        fused = self.norm(self.project(fused))
        return self.cls_seg(F.relu(fused, inplace=not context.has_hooks(self.norm)))

    def levels(self, inputs: Sequence[Any]) -> list[Tensor]:
        """The reassembled maps: (B, width, 4H, 4W), then of 2H, H and ceil(H/2)."""
        taps = [self._tap(inputs[index], dim) for index, dim in zip(self.in_index, self.in_channels, strict=True)]
        grids = [(*map.shape[2:],) for map, _ in taps]
        if not all(anysize.same_size(grid, grids[0]) for grid in grids):
            raise ArgumentError(
                f"DPTHead makes the levels itself, out of maps of one grid, and got {grids}: give the "
                "backbone pyramid=None, and the head no neck"
            )
        return [reassemble(*tap) for reassemble, tap in zip(self.reassemble, taps, strict=True)]

    def paths(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What each fusion gives, the finest first: (B, E, 8H, 8W), then of 4H, 2H and H."""
        paths: list[Tensor] = []
        for i in reversed(range(LEVELS)):
            height, width = levels[i - 1].shape[2:] if i else (2 * side for side in levels[0].shape[2:])
            coarser = paths[0] if paths else None
            paths.insert(0, cast(Fusion, self.fusions[i])(self.laterals[i](levels[i]), coarser, (height, width)))
        return paths

    def _tap(self, given: Any, dim: int) -> tuple[Tensor, Tensor | None]:
        """A map and its class token, of what the backbone gives."""
        map, token = (given, None) if isinstance(given, Tensor) else given
        if token is None and self.readout != "ignore":
            raise ArgumentError(
                f"DPTHead with readout={self.readout!r} needs the class tokens, and the backbone gives maps alone: "
                "give the backbone pyramid=None and with_class_token=True, or the head readout='ignore'"
            )
        if map.shape[1] != dim:
            raise ArgumentError(f"DPTHead has in_channels={self.in_channels}, and got a map of {map.shape[1]} channels")
        return map, token


class Reassemble(nn.Module):
    """A level of a map (B, C, H, W) and its class token (B, C): (B, width, 4H, 4W), (.., 2H, 2W), (.., H, W) or
    (.., ceil(H/2), ceil(W/2)) for levels 0 to 3."""

    def __init__(self, dim: int, width: int, level: int, readout: str) -> None:
        super().__init__()
        self.mode = readout
        self.readout = nn.Linear(2 * dim, dim) if readout == "project" else None
        self.project = nn.Conv2d(dim, width, 1)
        self.resize: nn.Module = nn.Identity()
        if level < 2:
            self.resize = nn.ConvTranspose2d(width, width, kernel_size=4 >> level, stride=4 >> level)
        elif level == 3:
            self.resize = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, map: Tensor, token: Tensor | None) -> Tensor:
        if self.mode == "add":
            map = map + cast(Tensor, token)[:, :, None, None]
        elif self.readout is not None:
            grid = map.permute(0, 2, 3, 1)
            both = torch.cat((grid, cast(Tensor, token)[:, None, None].expand_as(grid)), dim=-1)
            map = anysize.in_order(F.gelu(self.readout(both)).permute(0, 3, 1, 2))
        return self.resize(self.project(map))


class ResidualUnit(nn.Module):
    """x + norm(conv(relu(norm(conv(relu(x)))))): (B, E, H, W) -> (B, E, H, W)."""

    def __init__(self, channels: int, make_norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = make_norm(), make_norm()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(self.conv1(F.relu(x)))
        inner = F.relu(inner, inplace=not context.has_hooks(self.norm1))
        return x + self.norm2(self.conv2(inner))


class Fusion(nn.Module):
    """A level (B, E, H, W) and the coarser path (B, E, H, W) -> the path at the grid of the next level.

    Args:
        coarsest: whether it has no coarser path, and one unit less.
    """

    def __init__(self, channels: int, make_norm: Callable[[], nn.Module], coarsest: bool) -> None:
        super().__init__()
        self.unit1 = None if coarsest else ResidualUnit(channels, make_norm)
        self.unit2 = ResidualUnit(channels, make_norm)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: tuple[int, int]) -> Tensor:
        x = level if self.unit1 is None or coarser is None else coarser + self.unit1(level)
        return F.interpolate(self.project(self.unit2(x)), size=size, mode="bilinear", align_corners=True)
