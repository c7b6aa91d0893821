"""The dense-prediction contract: what every family promises, and nothing else.

Layouts: a *map* is (B, C, H, W), the image that enters and the features that leave; a *grid* is (B, H, W, C),
everywhere inside; *tokens* are (B, N, C), inside attention only.
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mm_vitbackbones.registry import WEIGHT_INITIALIZERS

MIN_SIDE = 32
STRIDES = (4, 8, 16, 32)


class Backbone(BaseModule):
    """A network from an image to feature maps at strides 4, 8, 16 and 32.

    Level i of an image (B, in_channels, H, W), H and W at least 32 and of any parity, is a contiguous map
    (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). Families are final: they derive from this class
    (PVT and its successors from ``StagedBackbone``) and from nothing else.

    Args:
        arch: a name out of ``archs``, a spec (``spec_type``), or a dict of the spec's fields.
        dims: channels of all levels, from the spec.
        in_channels: channels of the image. A pretrained stem is adapted to it.
        out_indices: ascending levels to return. What only later levels need is not built.
        frozen_stages: -1 for none, 0 for the stem, n for the stem and the first n stages: no gradients, always
            in eval mode.
        norm_eval: keep batch norms in eval mode while training.
        with_cp: what to compute again in the backward pass to save memory: False; 'ffn' (the feed-forward networks
            and the other linear maps, but not attention over many tokens); 'block' or True (whole blocks).
        init_cfg: MMEngine's. ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` takes any known layout of the
            family's published files (see ``mm_vitbackbones.checkpoints``).
        strides: of all levels, in a family that offers others.

    Raises:
        ValueError: for an argument out of its range; for an image of the wrong shape or smaller than 32 pixels.
        TypeError: for an image that is not of a floating-point type.
    """

    archs: ClassVar[Mapping[str, Any]]
    spec_type: ClassVar[type]

    channels: tuple[int, ...]
    """Channels of the returned levels."""
    strides: tuple[int, ...]
    """Strides of the returned levels, in pixels."""

    def __init__(
        self,
        dims: Sequence[int],
        in_channels: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool | str,
        init_cfg: Any,
        strides: Sequence[int] = STRIDES,
    ) -> None:
        super().__init__(init_cfg)
        levels = range(len(dims))
        if not out_indices or any(i not in levels for i in out_indices) or sorted(set(out_indices)) != [*out_indices]:
            raise ValueError(f"out_indices={out_indices!r}: give ascending levels out of {[*levels]}")
        if frozen_stages not in range(-1, len(dims) + 1):
            raise ValueError(f"frozen_stages={frozen_stages!r}: give -1 (none), 0 (the stem) or 1 to {len(dims)}")
        if with_cp not in (False, True, "ffn", "block"):
            raise ValueError(f"with_cp={with_cp!r}: give False, 'ffn', 'block' or True (the same as 'block')")
        if in_channels < 1:
            raise ValueError(f"in_channels={in_channels!r}: give the number of channels of the image")
        self.in_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.channels = tuple(dims[i] for i in out_indices)
        self.strides = tuple(strides[i] for i in out_indices)

    @abstractmethod
    def levels(self, image: Tensor) -> Iterator[Tensor]:
        """The grids of levels 0, 1, ... up to the last one asked for: (B, H, W, C) each."""

    @abstractmethod
    def freezable(self) -> list[list[nn.Module]]:
        """The modules that ``frozen_stages`` counts: first the stem's, then each stage's."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> one map (B, C, ceil(H/stride), ceil(W/stride)) per level of ``out_indices``."""
        self._check_image(image)
        grids = enumerate(self.levels(image))
        return tuple(grid.permute(0, 3, 1, 2).contiguous() for i, grid in grids if i in self.out_indices)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def freeze(self) -> None:
        """Puts the stem and the first ``frozen_stages`` stages out of training. Families call it once built."""
        for modules in self.freezable()[: self.frozen_stages + 1]:
            for module in modules:
                module.eval().requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """How deep a parameter stands, for a learning rate that falls with the depth.

        0 is the stem, n the n-th block, counted through all stages (in CoaT the parallel blocks follow the serial
        ones). What stands between two stages, and what the blocks of a stage share, goes with the first block behind
        it; what follows a stage with its last one.

        Args:
            param_name: as ``named_parameters`` of the backbone or, with its ``prefix``, of the whole model has it.
            prefix: what stands before the backbone's own names, such as ``"backbone."``.

        Returns:
            the depth, and how many there are: the last one is that of what follows the backbone.

        Raises:
            ValueError: for a name that is none of the backbone's.
        """
        stages: Any = self.stages
        before = [0]
        for stage in stages:
            before.append(before[-1] + len(stage.blocks))
        total = before[-1] + len(getattr(self, "parallel_blocks", ())) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or name not in dict(self.named_parameters()):
            raise ValueError(f"{param_name!r} is no parameter of {type(self).__name__} behind the prefix {prefix!r}")
        first, *rest = name.split(".")
        if first == "stages":
            stage, part = int(rest[0]), rest[1]
            if part == "blocks":
                return before[stage] + int(rest[2]) + 1, total
            if part == "norm":
                return before[stage + 1], total
            return (before[stage] + 1 if stage else 0), total
        if first == "parallel_blocks":
            return before[-1] + int(rest[0]) + 1, total
        return (before[1] if first == "upsample" else 0), total

    def init_weights(self) -> None:
        """MMEngine's hook. The constructor has initialised all parameters; only ``init_cfg`` remains."""
        if isinstance(self.init_cfg, dict) and self.init_cfg.get("type") == "Pretrained":
            WEIGHT_INITIALIZERS.build(dict(self.init_cfg))(self)
            self._is_init = True
        else:
            super().init_weights()

    @classmethod
    def resolve_arch(cls, arch: Any) -> Any:
        """The spec that a name, a spec or a dict of its fields stands for; ValueError if it stands for none."""
        if isinstance(arch, cls.spec_type):
            return arch
        if isinstance(arch, Mapping):
            fields = {field.name for field in dataclasses.fields(cls.spec_type)}
            if unknown := sorted(set(arch) - fields):
                raise ValueError(f"arch of {cls.__name__}: no field {unknown}; the fields are {sorted(fields)}")
            # Configs turn tuples into lists; a spec holds tuples, so that it can be compared and hashed.
            return cls.spec_type(**{k: tuple(v) if isinstance(v, Sequence) else v for k, v in arch.items()})
        if arch in cls.archs:
            return cls.archs[arch]
        near = difflib.get_close_matches(str(arch), cls.archs, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{cls.__name__} has no arch {arch!r}; known are {', '.join(cls.archs)}{hint}")

    def _check_image(self, image: Tensor) -> None:
        if image.dim() != 4 or image.shape[1] != self.in_channels:
            raise ValueError(f"expected an image (B, {self.in_channels}, H, W), got {tuple(image.shape)}")
        if image.shape[2] < MIN_SIDE or image.shape[3] < MIN_SIDE:
            raise ValueError(
                f"expected sides of at least {MIN_SIDE} pixels, got {tuple(image.shape[2:])}: resize or pad"
            )
        if not torch.is_floating_point(image):
            raise TypeError(f"expected a floating-point image, got {image.dtype}: normalise it first")


def check_stages(spec: Any, stages: int = len(STRIDES)) -> None:
    """Of a spec: tuples with one entry per stage, whole heads. ValueError names the field that does not fit."""
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, tuple) and (len(value) != stages or min(value) < 1):
            raise ValueError(f"{field.name}={value}: give positive numbers for the {stages} stages")
    for dim, heads in zip(spec.dims, spec.num_heads, strict=True):
        if dim % heads:
            raise ValueError(f"dims={spec.dims} and num_heads={spec.num_heads}: {dim} is not divisible by {heads}")


def recompute_mode(with_cp: bool | str) -> str | None:
    """``with_cp`` in the words of ``layers.Block``."""
    return "block" if with_cp is True else with_cp or None
