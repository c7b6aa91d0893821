"""What PVT and its successors have in common: a sequence of stages, whose grids are the levels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

from torch import Tensor, nn

from mm_vitbackbones.backbones.base import Backbone, Level, Part, parts_of_stage
from mm_vitbackbones.backbones.checks import Count, Epsilon, Rate
from mm_vitbackbones.layers import drop_path_rates, set_norm_eps


class StagedBackbone(Backbone):
    """Each stage maps the grid of the level before to its own grid. A family defines its stages and the initialisation
    of their parameters; its spec has ``depths`` and ``dims``.

    Args, besides those of ``Backbone``:
        arch: see ``Backbone``; ``default_arch`` if it is left out.
        drop_path_rate: the rate of stochastic depth at the last block (it grows linearly from 0).
        norm_eps: the epsilon of every norm. Without it, the official ones: 1e-5 in the embeddings and where attention
            reduces its keys, 1e-6 elsewhere. MMDetection's PVT and PVTv2 and MMSegmentation's MiT have 1e-6 everywhere:
            with it their checkpoints give the same results here.
    """

    default_arch: ClassVar[str]

    @final
    def __init__(
        self,
        arch: Any = None,
        in_channels: Count = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | str = False,
        drop_path_rate: Rate = 0.1,
        norm_eps: Epsilon | None = None,
        init_cfg: Any = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.arch = self.resolve_arch(self.default_arch if arch is None else arch)
        super().__init__(
            self.arch.dims, in_channels, out_indices, frozen_stages, norm_eval, with_cp, init_cfg, adapters=adapters
        )
        rates = drop_path_rates(drop_path_rate, self.arch.depths)
        widths = (in_channels, *self.arch.dims)
        self.stages = nn.ModuleList(self.make_stage(widths[i], i, rates[i]) for i in range(out_indices[-1] + 1))
        self.norm_eps = norm_eps
        if norm_eps is not None:
            set_norm_eps(self, norm_eps)
        self.init_parameters()
        self.finish()

    @abstractmethod
    def make_stage(self, in_channels: int, index: int, drop_paths: list[float]) -> nn.Module:
        """Stage ``index`` of ``self.arch``: (B, H, W, in_channels) -> (B, ceil(H/stride), ceil(W/stride), C).

        Its children are in the order of computation, and the child ``blocks`` holds its blocks.

        Args:
            drop_paths: the rate of each of its blocks.
        """

    @abstractmethod
    def init_parameters(self) -> None:
        """The official initialisation, once all stages are built."""

    @final
    def levels(self, image: Tensor) -> Iterator[Level]:
        grid = image.permute(0, 2, 3, 1)
        for stage in self.stages:
            grid = stage(grid)
            yield Level(grid)

    @final
    def parts(self) -> list[Part]:
        return [part for index, stage in enumerate(self.stages) for part in parts_of_stage(stage, index)]
