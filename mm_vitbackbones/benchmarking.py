"""Our backbones beside other implementations of the same networks: time and memory, in one process.

The contenders take turns, so that a busy machine slows all of them alike; a ratio is the median over the turns of
theirs to ours. Weights are random: all compute the same function up to norm epsilons.

Each case has a process of its own: what was allocated and freed before decides whether glibc takes the pages of large
tensors anew each time, and so an earlier case can make a later one a third faster.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.backbones import PVT, CoaT, MiT, PiT, PVTv2, Swin
from mm_vitbackbones.measuring import peak_bytes

DEPTHS_OF_B2 = (3, 4, 6, 3)


@dataclass(frozen=True)
class Contender:
    """One implementation of one network. ``build`` raises ImportError where its package is not installed."""

    name: str
    build: Callable[[], nn.Module]


def declare_torchvision_operators() -> None:
    """timm imports torchvision for the sake of two operators that a backbone never calls. Where torchvision has no
    compiled part, declaring them lets it import."""
    for name in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # declared already
            return


def mmdet_pvt() -> nn.Module:
    from mmdet.models.backbones import PyramidVisionTransformer

    return PyramidVisionTransformer(num_layers=list(DEPTHS_OF_B2))


def mmdet_pvt_v2() -> nn.Module:
    from mmdet.models.backbones import PyramidVisionTransformerV2

    return PyramidVisionTransformerV2(embed_dims=64, num_layers=list(DEPTHS_OF_B2))


def timm_levels(name: str, drop_path_rate: float, **kwargs: Any) -> nn.Module:
    declare_torchvision_operators()
    import timm

    return timm.create_model(name, features_only=True, drop_path_rate=drop_path_rate, **kwargs)


def mmseg_mit() -> nn.Module:
    declare_torchvision_operators()  # mmseg imports timm where it finds it
    from mmseg.models.backbones import MixVisionTransformer

    return MixVisionTransformer(embed_dims=64, num_layers=list(DEPTHS_OF_B2), num_heads=[1, 2, 5, 8])


def transformers_mit() -> nn.Module:
    declare_torchvision_operators()
    from transformers import SegformerConfig, SegformerModel

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = SegformerConfig(depths=list(DEPTHS_OF_B2), hidden_sizes=[64, 128, 320, 512])
            self.encoder = SegformerModel(config)

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return self.encoder(image, output_hidden_states=True).hidden_states

    return Levels()


CLASSES = 150
"""Of ADE20K."""
WIDTHS = {"b0": (32, 64, 160, 256), "b2": (64, 128, 320, 512)}
"""Channels of MiT's levels."""


def our_head(arch: str, channels: int) -> nn.Module:
    declare_torchvision_operators()  # mmseg imports timm where it finds it
    from mm_vitbackbones.heads.segformer import SegFormerHead

    return SegFormerHead(WIDTHS[arch], channels, num_classes=CLASSES)


def mmseg_head(arch: str, channels: int) -> nn.Module:
    declare_torchvision_operators()
    from mmseg.models.decode_heads import SegformerHead

    kwargs = dict(in_index=[0, 1, 2, 3], channels=channels, num_classes=CLASSES, norm_cfg=dict(type="BN"))
    return SegformerHead(in_channels=[*WIDTHS[arch]], **kwargs)


def transformers_segformer(arch: str, channels: int) -> Any:
    declare_torchvision_operators()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[*MiT.archs[arch].depths],
        hidden_sizes=[*WIDTHS[arch]],
        decoder_hidden_size=channels,
        num_labels=CLASSES,
    )
    return SegformerForSemanticSegmentation(config)


class Logits(nn.Module):
    """transformers' network as one from an image to its logits (in a tuple, as all here return)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.network(image).logits,)


class Whole(nn.Module):
    """An encoder and a decode head: an image to its logits."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.head(self.encoder(image)),)


class HeadAlone(nn.Module):
    """A decode head on random maps such as an encoder makes of an image of the given size."""

    def __init__(self, head: nn.Module, arch: str) -> None:
        super().__init__()
        self.head, self.arch = head, arch
        self.maps: dict[tuple[int, ...], list[Tensor]] = {}

    def forward(self, image: Tensor) -> tuple[Tensor]:
        size = tuple(image.shape[2:])
        if size not in self.maps:
            sides = [[-(-side // stride) for side in size] for stride in (4, 8, 16, 32)]
            pairs = zip(WIDTHS[self.arch], sides, strict=True)
            self.maps[size] = [torch.randn(1, width, *side, requires_grad=True) for width, side in pairs]
        return (self.head(self.maps[size]),)


def segformers(arch: str, channels: int) -> tuple[Contender, ...]:
    depths, heads = list(MiT.archs[arch].depths), list(MiT.archs[arch].num_heads)

    def mmseg() -> nn.Module:
        head = mmseg_head(arch, channels)  # which declares what mmseg's import of timm needs
        from mmseg.models.backbones import MixVisionTransformer

        encoder = MixVisionTransformer(embed_dims=WIDTHS[arch][0], num_layers=depths, num_heads=heads)
        return Whole(encoder, head)

    return (
        Contender("ours", lambda: Whole(MiT(arch=arch), our_head(arch, channels))),
        Contender("mmseg", mmseg),
        Contender("transformers", lambda: Logits(transformers_segformer(arch, channels))),
    )


def segformer_heads(arch: str, channels: int) -> tuple[Contender, ...]:
    return (
        Contender("ours", lambda: HeadAlone(our_head(arch, channels), arch)),
        Contender("mmseg", lambda: HeadAlone(mmseg_head(arch, channels), arch)),
        Contender("transformers", lambda: HeadAlone(transformers_segformer(arch, channels).decode_head, arch)),
    )


def mmdet_swin() -> nn.Module:
    from mmdet.models.backbones import SwinTransformer

    return SwinTransformer(drop_path_rate=0.2)


def mmseg_swin() -> nn.Module:
    declare_torchvision_operators()
    from mmseg.models.backbones import SwinTransformer

    return SwinTransformer(drop_path_rate=0.2)


def transformers_swin() -> nn.Module:
    declare_torchvision_operators()
    from transformers import SwinBackbone, SwinConfig

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            levels = [f"stage{i}" for i in (1, 2, 3, 4)]
            self.backbone = SwinBackbone(SwinConfig(drop_path_rate=0.2, out_features=levels))

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            return self.backbone(image).feature_maps

    return Levels()


def timm_coat(name: str) -> nn.Module:
    """timm's dense form, which is built for one size of image, freed from it; it takes sides divisible by 32."""
    declare_torchvision_operators()
    import timm

    model = timm.create_model(name, return_interm_layers=True, out_features=[f"x{i}_nocls" for i in (1, 2, 3, 4)])

    def set_size(model: Any, inputs: tuple[Tensor]) -> None:
        height, width = inputs[0].shape[2:]
        for i, stride in enumerate((4, 8, 16, 32), start=1):
            embed = getattr(model, f"patch_embed{i}")
            embed.img_size, embed.grid_size = None, (height // stride, width // stride)

    model.register_forward_pre_hook(set_size)
    model.register_forward_hook(lambda model, inputs, features: tuple(features.values()))
    return model


CONTENDERS: dict[str, tuple[Contender, ...]] = {
    "coat_lite_s": (
        Contender("ours", lambda: CoaT(arch="lite_small")),
        Contender("timm", lambda: timm_coat("coat_lite_small")),
    ),
    "coat_mini": (
        Contender("ours", lambda: CoaT(arch="mini")),
        Contender("timm", lambda: timm_coat("coat_mini")),
    ),
    "pvt_s": (
        Contender("ours", lambda: PVT(arch="small")),
        Contender("mmdet", mmdet_pvt),
    ),
    "pvt_v2_b2": (
        Contender("ours", lambda: PVTv2(arch="b2")),
        Contender("mmdet", mmdet_pvt_v2),
        Contender("timm", lambda: timm_levels("pvt_v2_b2", 0.1)),
    ),
    "mit_b2": (
        Contender("ours", lambda: MiT(arch="b2")),
        Contender("mmseg", mmseg_mit),
        Contender("transformers", transformers_mit),
    ),
    "segformer_b0": segformers("b0", 256),
    "segformer_b2": segformers("b2", 768),
    "segformer_head": segformer_heads("b2", 768),
    "pit_s": (
        Contender("ours", lambda: PiT(arch="s", stem="published", out_indices=(1, 2, 3))),
        Contender("timm", lambda: timm_levels("pit_s_224", 0.1)),
    ),
    "swin_t": (
        Contender("ours", lambda: Swin(arch="tiny")),
        Contender("mmdet", mmdet_swin),
        Contender("mmseg", mmseg_swin),
        Contender("transformers", transformers_swin),
        Contender("timm", lambda: timm_levels("swin_tiny_patch4_window7_224", 0.2, strict_img_size=False)),
    ),
}
"""Per network: ours first."""

CASES = (("forward", (512, 512)), ("forward", (800, 1344)), ("forward+backward", (512, 512)))
"""What is measured: mode and size of the image."""

CASES_OF = {
    "pit_s": (("forward", (224, 224)), ("forward+backward", (224, 224))),  # theirs takes images of one size only
    **dict.fromkeys(
        ("segformer_b0", "segformer_b2", "segformer_head"), (("forward", (512, 512)), ("forward+backward", (512, 512)))
    ),
}
"""The same for networks that are measured otherwise."""

MODES: dict[str, Callable[[nn.Module, Tensor], Any]] = {}
"""What to measure, by name: a function that runs a model on an image."""


def mode(function: Callable[[nn.Module, Tensor], Any]) -> Callable[[nn.Module, Tensor], Any]:
    MODES[function.__name__.replace("_", "+")] = function
    return function


@mode
def forward(model: nn.Module, image: Tensor) -> Any:
    model.eval()  # mmdet's Swin returns nothing from it
    with torch.no_grad():
        return model(image)


@mode
def forward_backward(model: nn.Module, image: Tensor) -> Any:
    # Zeroed in place, so that the parameters' gradients, which all have alike, do not count as activations.
    model.train()
    model.zero_grad(set_to_none=False)
    sum(level.mean() for level in model(image)).backward()


@dataclass(frozen=True)
class Row:
    """Measured of one contender. ``ratio`` is its time over ours: the median over the turns, with its quartiles."""

    network: str
    name: str
    mode: str
    size: tuple[int, int]
    milliseconds: float
    ratio: tuple[float, float, float]
    peak_mib: float
    peak_ratio: float

    def __str__(self) -> str:
        low, middle, high = self.ratio
        return (
            f"{self.network:<14} {self.size[0]:>4}x{self.size[1]:<4} {self.mode:<16} {self.name:<12} "
            f"{self.milliseconds:>8.0f} ms  x{middle:.2f} ({low:.2f}-{high:.2f})  "
            f"{self.peak_mib:>6.0f} MiB  x{self.peak_ratio:.2f}"
        )


def machine() -> str:
    """One line: what the figures depend on."""
    allocator = {name: os.environ.get(name, "unset") for name in ("THP_MEM_ALLOC_ENABLE", "MALLOC_MMAP_THRESHOLD_")}
    settings = ", ".join(f"{name}={value}" for name, value in allocator.items())
    return (
        f"torch {torch.__version__}, {cpu_name()}, {torch.get_num_threads()} thread(s) on {os.cpu_count()} cores, "
        f"fp32, eager, {torch.backends.cpu.get_cpu_capability()}, {settings}"
    )


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"


def measure_apart(
    network: str, mode: str, size: tuple[int, int], turns: int, clock: str = "wall", threads: int = 1
) -> list[Row]:
    """``measure`` in a fresh process, with so many threads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(_measured, network, mode, size, turns, clock).result()


def _measured(*case: Any) -> list[Row]:
    return list(measure(*case))


def measure(network: str, mode: str, size: tuple[int, int], turns: int, clock: str = "wall") -> Iterator[Row]:
    """Measure all contenders whose packages are installed; yields rows, ours first.

    ``clock``: ``wall``, or ``cpu``, the time of this thread on its CPU, which is steadier on a busy machine and right
    with one thread only.

    Raises:
        ValueError: for the ``cpu`` clock with several threads.
    """
    if clock == "cpu" and torch.get_num_threads() != 1:
        raise ValueError("the clock 'cpu' counts one thread: use it with --threads 1")
    now = time.thread_time if clock == "cpu" else time.perf_counter
    run = MODES[mode]
    image = torch.randn(1, 3, *size)
    models: dict[str, nn.Module] = {}
    for contender in CONTENDERS[network]:
        try:
            models[contender.name] = contender.build()
        except ImportError as error:
            print(f"{network}: {contender.name} is left out ({error})")
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(turns + 1):
        for name, model in models.items():
            start = now()
            run(model, image)
            if turn > 0:  # the first one warms up
                times[name].append(now() - start)
    peaks = {name: peak_bytes(partial(run, model, image)) for name, model in models.items()}
    ours = times["ours"]
    for name, values in times.items():
        ratios = sorted(theirs / own for theirs, own in zip(values, ours, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        yield Row(
            network,
            name,
            mode,
            size,
            statistics.median(values) * 1e3,
            (low, statistics.median(ratios), high),
            peaks[name] / 2**20,
            peaks[name] / peaks["ours"],
        )
