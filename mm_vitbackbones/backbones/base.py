"""The dense-prediction contract: what every family promises, and nothing else.

Layouts: a *map* is (B, C, H, W), the image that enters and the features that leave; a *grid* is (B, H, W, C),
everywhere inside; *tokens* are (B, N, C), inside attention only.
"""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from mm_vitbackbones.adapters import name_in_file
from mm_vitbackbones.backbones.adapting import adapters_of, fresh_adapters, hold, inject, take_from_file
from mm_vitbackbones.backbones.checks import Count, check_init_cfg, checked, make_spec
from mm_vitbackbones.errors import ArgumentError, did_you_mean
from mm_vitbackbones.layers import Recomputable, compile_blocks
from mm_vitbackbones.nodes import is_pretrained
from mm_vitbackbones.ops import compiling, context, conv, memory, narrow
from mm_vitbackbones.registry import BACKBONES, init_weights

MIN_SIDE = 32
STRIDES = (4, 8, 16, 32)

WITH_CP = {
    "nothing": memory.NOTHING,
    "all_but_attention": memory.ALL_BUT_ATTENTION,
    "all": memory.ALL,
    # Other names for the same, which stay valid.
    False: memory.NOTHING,
    "ffn": memory.ALL_BUT_ATTENTION,
    "block": memory.ALL,
    True: memory.ALL,
}
"""What ``with_cp`` may be, and what it means."""


class Level(NamedTuple):
    """The result of a network at one stride, or after one block."""

    grid: Tensor
    """(B, H, W, C)."""
    class_tokens: Tensor | None = None
    """(B, T, C): the class tokens of the same blocks; None in a family without class tokens."""


class Part(NamedTuple):
    """A piece of a network in the order of computation."""

    modules: tuple[nn.Module | nn.Parameter, ...]
    stage: int
    """Counted from 0. Freezing a stage freezes its parts."""
    kind: str
    """``"open"`` makes the grid of a stage, ``"shared"`` serves all its blocks, then each ``"block"``, and ``"close"``
    comes after them, such as the norm of a level. What opens the first stage is the stem. ``"pyramid"`` makes levels of
    what the blocks give, like a detector's neck."""
    fresh: bool = False
    """Whether files of pretrained networks lack it by design: it trains in any case, also where adapters keep the rest
    of the network as it is."""


class AttentionLayer(NamedTuple):
    """An attention layer of a network: a module with a method ``looks_at``."""

    name: str
    module: nn.Module
    stage: int


class Backbone(BaseModule):
    """A network from an image to feature maps at strides 4, 8, 16 and 32.

    Level i of an image (B, in_channels, H, W), H and W at least 32 and of any parity, is a contiguous map
    (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])). Families are final: they derive from this class
    (PVT and its successors from ``StagedBackbone``) and from nothing else. They call ``finish`` once they are built.

    Args:
        arch: a name out of ``archs``, a spec (``spec_type``), or a dict of the spec's fields.
        dims: channels of all levels, from the spec.
        in_channels: channels of the image. A pretrained stem is adapted to it.
        out_indices: ascending levels to return. What only later levels need is not built.
        frozen_stages: -1 for none, 0 for the stem, n for the stem and the first n stages: no gradients, always
            in eval mode.
        norm_eval: keep batch norms in eval mode while training.
        with_cp: what to compute again in the backward pass to save memory: ``"nothing"`` or False (norms and
            activations are computed again in any case: that is nearly free); ``"all_but_attention"`` (the
            feed-forward networks and the other linear maps, but not attention over many tokens), also called ``"ffn"``;
            ``"all"`` (whole blocks), also called ``"block"`` or True.
        init_cfg: MMEngine's. ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` takes any known layout of the
            family's published files (see ``mm_vitbackbones.checkpoints``). ``init_weights()`` loads it, once; a runner
            calls that, and plain PyTorch code has to.
        adapters: low-rank adapters (LoRA) in linear maps, by the peft library: ``dict(rank=8, alpha=16, dropout=0.0,
            targets="attention")``, see ``backbones.adapting``. They train, and what files of pretrained networks lack
            (a pyramid); all other parameters of the network stay as they are. Frozen stages get none.
        strides: of all levels, in a family that offers others.
        stages: how many ``frozen_stages`` counts; as many as levels, if a family does not say otherwise.

    Raises:
        ArgumentError: (a ValueError) for an argument that does not exist, of another type or out of its range; for an
            image of the wrong shape or smaller than 32 pixels.
        TypeError: for an image that is not of a floating-point type.
    """

    archs: ClassVar[Mapping[str, Any]]
    spec_type: ClassVar[type]

    _awaits_file = False
    """Whether ``init_cfg`` names a file that nothing has loaded yet."""

    channels: tuple[int, ...]
    """Channels of the returned levels."""
    strides: tuple[int, ...]
    """Strides of the returned levels, in pixels."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A class of the user's own, which derives from a family, takes what its author says.
        if "__init__" in vars(cls) and cls.__module__.startswith(f"{BACKBONES.scope}."):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        dims: Sequence[int],
        in_channels: Count,
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool | str,
        init_cfg: Any,
        strides: Sequence[int] = STRIDES,
        stages: int | None = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        check_init_cfg(init_cfg)
        asked = adapters_of(adapters)
        super().__init__(init_cfg)
        levels = range(len(dims))
        if not out_indices or any(i not in levels for i in out_indices) or sorted(set(out_indices)) != [*out_indices]:
            raise ArgumentError(f"out_indices={out_indices!r}: give ascending levels out of {[*levels]}")
        stages = len(dims) if stages is None else stages
        if frozen_stages not in range(-1, stages + 1):
            raise ArgumentError(f"frozen_stages={frozen_stages!r}: give -1 (none), 0 (the stem) or 1 to {stages}")
        if not isinstance(with_cp, (bool, str)) or with_cp not in WITH_CP:
            raise ArgumentError(
                f"with_cp={with_cp!r}: give 'nothing' (or False), 'all_but_attention' (or 'ffn') or 'all' (or 'block', "
                "or True): what to compute again in the backward pass"
            )
        # MMEngine loads the file of init_cfg in init_weights(), which a runner calls.
        self._awaits_file = any(
            is_pretrained(each) for each in (init_cfg if isinstance(init_cfg, list) else [init_cfg])
        )
        self.adapters = asked
        self.in_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.recompute = WITH_CP[with_cp]
        self.channels = tuple(dims[i] for i in out_indices)
        self.strides = tuple(strides[i] for i in out_indices)

    @abstractmethod
    def levels(self, image: Tensor) -> Iterator[Level]:
        """Levels 0, 1, ... up to the last one that is built."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """All that the network is made of, in the order of computation, except its buffers and containers.

        Freezing, depths for layer-wise decay, and which weights of a file belong to stages that are not built follow
        from it.
        """

    def attentions(self) -> list[AttentionLayer]:
        """The attention layers, in the order of computation."""
        names = {module: name for name, module in self.named_modules()}
        modules = ((module, part.stage) for part in self.parts() for module in _modules_of([part]))
        inside = ((layer, stage) for module, stage in modules for layer in module.modules())
        return [AttentionLayer(names[layer], layer, stage) for layer, stage in inside if hasattr(layer, "looks_at")]

    def token_stride(self, stage: int) -> int:
        """Pixels between the tokens of a stage."""
        return STRIDES[stage]

    def token_sides(self, stage: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a stage, of an image of this size."""
        stride = self.token_stride(stage)
        return -(-height // stride), -(-width // stride)

    def finish(self) -> None:
        """Called once all parts are built: gives them adapters, sets what training computes again, and freezes."""
        if self.adapters is not None:
            fresh = [part for part in self.parts() if part.fresh]
            inject(self, self.adapters, _modules_of(self._frozen()), _modules_of(fresh))
        for module in self.modules():
            if isinstance(module, Recomputable):
                module.recompute = self.recompute
        self.freeze()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> one map (B, C, ceil(H/stride), ceil(W/stride)) per level of ``out_indices``."""
        self._check_image(image)
        with narrow.copies(self, image), context.for_every_size():
            levels = enumerate(self.levels(image))
            return tuple(self.output(level) for i, level in levels if i in self.out_indices)

    def output(self, level: Level) -> Any:
        """What ``forward`` returns of a level: its map (B, C, H, W)."""
        return conv.maps_of(level.grid).contiguous()

    def features(self, image: Tensor, blocks: Sequence[int] | None = None) -> list[Level]:
        """The levels that ``forward`` returns, as grids, with the class tokens if the family has them.

        Args:
            image: as for ``forward``.
            blocks: return the results of these blocks instead of levels. Blocks are counted from 0 through all stages;
                -1 is the last one. A block of several levels (CoaT's parallel ones) gives its levels in order.

        Returns:
            one ``Level`` per level of ``out_indices``, or per block.

        Raises:
            ValueError: for a block that does not exist, and as ``forward``.
        """
        self._check_image(image)
        if blocks is None:
            return [level for i, level in enumerate(self.levels(image)) if i in self.out_indices]
        every = [part for part in self.parts() if part.kind == "block"]
        if wrong := [i for i in blocks if i not in range(-len(every), len(every))]:
            raise ValueError(f"blocks={[*blocks]!r}: there is no block {wrong[0]}; there are {len(every)}, from 0")
        found: dict[int, Any] = {}
        asked = {i % len(every) for i in blocks}

        def keep(index: int, output: Any) -> None:
            found[index] = output

        blocks_asked = ((i, cast(nn.Module, every[i].modules[0])) for i in asked)
        hooks = [block.register_forward_hook(lambda _, __, out, i=i: keep(i, out)) for i, block in blocks_asked]
        try:
            levels = [*self.levels(image)]
        finally:
            for hook in hooks:
                hook.remove()
        numbers = [i % len(every) for i in blocks]
        return [level for i in numbers for level in self.levels_of_block(found[i], every[i].stage, levels, image)]

    def levels_of_block(self, output: Any, stage: int, levels: Sequence[Level], image: Tensor) -> list[Level]:
        """The levels that ``features`` returns for a block.

        Args:
            output: what the block returns.
            stage: the stage of the block.
            levels: all levels of the same image.
            image: (B, in_channels, H, W).
        """
        return [Level(output)]

    def compile_blocks(self, **options: Any) -> bool:
        """Compiles each block in place, by ``torch.compile``: in seconds, where the whole network takes minutes.

        Blocks that differ in their weights and in their rates of drop path alone share graphs. The names of weights
        stay. Copies of the network, and a network that is unpickled, are not compiled. Inside ``torch.compile`` of a
        whole model, in exports and in traces the blocks are as before.

        Args:
            options: those of ``torch.compile``.

        Returns:
            whether the blocks are compiled. Where no compiler works, the log says why in one line, and they stay as
            they are.
        """
        options = compiling.for_any_size(options)
        if (reason := compiling.problem(next(self.parameters()).device, **options)) is not None:
            print_log(
                f"nothing can be compiled here, and the network computes as without: {reason}",
                logger="current",
                level=logging.WARNING,
            )
            return False
        if not context.KEEPS_GRAPHS_WHOLE:
            print_log(
                f"PyTorch {torch.__version__} splits the graph of a block into many, which gains little: 2.9 and newer "
                "versions compile it as one",
                logger="current",
                level=logging.WARNING,
            )
        parts = self.parts()
        grids = itertools.accumulate(part.kind == "open" for part in parts)
        blocks = {part.modules[0]: grid for part, grid in zip(parts, grids, strict=True) if part.kind == "block"}
        compile_blocks(cast(dict[nn.Module, int], blocks), **options)
        narrow.forget(self)
        return True

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        self.freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def freeze(self) -> None:
        """Freezes the stem and the first ``frozen_stages`` stages, and all but adapters and fresh parts, if there are
        adapters."""
        for part in self._frozen():
            for module in part.modules:
                if isinstance(module, nn.Module):
                    module.eval()
                module.requires_grad_(False)
        if self.adapters is not None:
            for part in self.parts():
                for module in () if part.fresh else part.modules:
                    hold(module)

    def _frozen(self) -> list[Part]:
        """The stem and what else opens the first stage, and the first ``frozen_stages`` stages."""
        if self.frozen_stages < 0:
            return []
        parts = self.parts()
        first_block = next((i for i, part in enumerate(parts) if part.kind == "block"), len(parts))
        return [
            part
            for i, part in enumerate(parts)
            if part.stage < self.frozen_stages or (i < first_block and part.kind == "open")
        ]

    def parameter_stages(self) -> dict[str, int]:
        """The stage of each parameter and buffer, by its name in the state dict."""
        stages, stage = {}, 0
        for part, name, _ in self._names_of_parts():
            # What makes levels may be frozen with a later stage: PiT's upsampling, a pyramid, which no file holds.
            stage = stage if part.kind in ("close", "pyramid") else part.stage
            stages[name_in_file(name)] = stage
        return stages

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """The depth of a parameter, for a learning rate that falls with the depth.

        0 is the stem, n the n-th block, counted through all stages (in CoaT the parallel blocks follow the serial
        ones). What opens a later stage, or serves its blocks, has the depth of its first block; what closes a stage has
        the depth of its last block.

        Args:
            param_name: a name out of ``named_parameters`` of the backbone or, with its ``prefix``, of the whole model.
            prefix: what precedes the backbone's own names, such as ``"backbone."``.

        Returns:
            the depth, and the number of depths. The last depth is for everything after the backbone.

        Raises:
            ValueError: if the backbone has no parameter of this name.
        """
        depths, count = self.layer_depths()
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or name not in depths:
            raise ValueError(f"{param_name!r} is no parameter of {type(self).__name__} after the prefix {prefix!r}")
        return depths[name], count

    def layer_depths(self) -> tuple[dict[str, int], int]:
        """``get_layer_depth`` of all names at once: the depth of each, and how many depths there are."""
        depths = {name: depth for _, name, depth in self._names_of_parts()}
        return depths, sum(part.kind == "block" for part in self.parts()) + 2

    def _names_of_parts(self) -> Iterator[tuple[Part, str, int]]:
        """Each part with the names of its parameters and buffers, and with its depth (see ``get_layer_depth``)."""
        names = {id(tensor): name for name, tensor in self.named_parameters()}
        names |= {id(tensor): name for name, tensor in self.named_buffers()}
        blocks = 0
        for part in self.parts():
            blocks += part.kind == "block"
            depth = blocks + 1 if part.kind in ("open", "shared", "pyramid") and blocks else blocks
            for module in part.modules:
                tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else [module]
                for tensor in tensors:
                    yield part, names[id(tensor)], depth

    def init_weights(self) -> None:
        """MMEngine's hook. The constructor has initialised all parameters; only ``init_cfg`` remains."""
        init_weights(self, self._init_without_files)
        self._awaits_file = False

    def _init_without_files(self) -> None:
        without_effect = fresh_adapters(self)
        super().init_weights()
        for p in without_effect:  # a rule for linear maps is not meant for them
            nn.init.zeros_(p)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.adapters is not None:
            state, prefix, _, _, missing, _, errors = args
            take_from_file(self, state, prefix, missing, errors)
        super()._load_from_state_dict(*args, **kwargs)
        self._awaits_file = False

    @classmethod
    def resolve_arch(cls, arch: Any) -> Any:
        """The spec that a name, a spec or a dict of its fields stands for; ValueError if it stands for none."""
        if isinstance(arch, cls.spec_type):
            return arch
        if isinstance(arch, Mapping):
            return make_spec(cls.spec_type, arch, cls.__name__)
        if isinstance(arch, str) and arch in cls.archs:
            return cls.archs[arch]
        near = did_you_mean(str(arch), cls.archs, count=1)
        raise ArgumentError(f"{cls.__name__} has no arch {arch!r}; known are {', '.join(cls.archs)}{near}")

    def _check_image(self, image: Tensor) -> None:
        if self._awaits_file:
            self._awaits_file = False
            print_log(
                f"{type(self).__name__} computes with random weights, as nothing has loaded the file of its init_cfg: "
                "call init_weights() first, or build it with mm_vitbackbones.build_backbone(..., pretrained=True)",
                logger="current",
                level=logging.WARNING,
            )
        if image.dim() != 4 or image.shape[1] != self.in_channels:
            raise ArgumentError(f"expected an image (B, {self.in_channels}, H, W), got {tuple(image.shape)}")
        if image.shape[2] < MIN_SIDE or image.shape[3] < MIN_SIDE:
            raise ArgumentError(
                f"expected sides of at least {MIN_SIDE} pixels, got {tuple(image.shape[2:])}: resize or pad"
            )
        if not torch.is_floating_point(image):
            raise TypeError(f"expected a floating-point image, got {image.dtype}: normalise it first")


def _modules_of(parts: Sequence[Part]) -> list[nn.Module]:
    return [module for part in parts for module in part.modules if isinstance(module, nn.Module)]


def parts_of_stage(stage: nn.Module, index: int) -> Iterator[Part]:
    """The parts of a stage whose children are in the order of computation, its blocks under ``blocks``."""
    kind = "open"
    for name, child in stage.named_children():
        if name == "blocks":
            kind = "close"
            yield from (Part((block,), index, "block") for block in child.children())
        else:
            yield Part((child,), index, kind)
