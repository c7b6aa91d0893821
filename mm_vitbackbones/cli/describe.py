"""What a backbone costs and returns, without running it: parameters, multiply-adds, and the maps of its levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import nn

from mm_vitbackbones import recipes
from mm_vitbackbones.adapters import described, split
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.build import families
from mm_vitbackbones.cli.arguments import Parser, config_file
from mm_vitbackbones.cli.config import read_config
from mm_vitbackbones.errors import UserError, did_you_mean, printable
from mm_vitbackbones.measuring import multiply_adds
from mm_vitbackbones.nodes import module_of, type_name
from mm_vitbackbones.printing import LAYOUT, print
from mm_vitbackbones.registry import BACKBONES


@dataclass(frozen=True)
class Level:
    """One map that a backbone returns; stride, height and width are of the level, the stride in pixels."""

    index: int
    channels: int
    stride: int
    height: int
    width: int


@dataclass(frozen=True)
class Description:
    """A backbone on an image of one size (height, width). As text, a few lines."""

    name: str
    size: tuple[int, int]
    parameters: int
    multiply_adds: int
    """Of convolutions, linear maps and the two products of attention, for one image; what papers call FLOPs."""
    levels: tuple[Level, ...]
    adapters: str = ""
    """The low-rank adapters, if there are any."""

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.name}, image {self.size[0]}x{self.size[1]}",
                f"  parameters     {self.parameters / 1e6:.2f} M ({self.parameters:,})",
                *([f"  adapters       {self.adapters}"] if self.adapters else []),
                f"  multiply-adds  {self.multiply_adds / 1e9:.2f} G",
                "  level  channels  stride  map",
                *(f"  {x.index:>5}  {x.channels:>8}  {x.stride:>6}  {x.height}x{x.width}" for x in self.levels),
            ]
        )


def describe(config: Mapping[str, Any], size: tuple[int, int] = (512, 512), name: str = "") -> Description:
    """Describes the backbone that MMEngine builds from a config such as ``dict(type="PVT", arch="tiny")``.

    No weights are allocated and nothing is computed.

    Raises:
        ValueError: for what the backbone refuses: an argument, an image of this size.
    """
    with torch.device("meta"):
        # On this device fused attention decomposes into matrix products, which the counter knows.
        kind = config["type"]
        kind = BACKBONES.get(kind) if isinstance(kind, str) else kind  # ours, whatever the default scope is
        arguments = {key: value for key, value in config.items() if key != "type"}
        backbone = kind(**{**arguments, "init_cfg": None}).eval().requires_grad_(False)
        image = torch.empty(1, backbone.in_channels, *size)
        with torch.no_grad():
            maps: list[torch.Tensor] = []
            count = multiply_adds(lambda: maps.extend(_map(output) for output in backbone(image)))
    levels = zip(backbone.out_indices, backbone.channels, backbone.strides, maps, strict=True)
    return Description(
        name or type_name(config),
        size,
        sum(parameter.numel() for parameter in backbone.parameters()),
        count,
        tuple(Level(i, channels, stride, *map.shape[2:]) for i, channels, stride, map in levels),
        _adapters_of(backbone),
    )


def _map(output: Any) -> torch.Tensor:
    """Of what a backbone returns of a level: a map, or a pair of a map and a class token."""
    return output if isinstance(output, torch.Tensor) else output[0]


def _adapters_of(backbone: nn.Module) -> str:
    """Such as ``of rank 8 and alpha 16 in 48 linear maps: 0.29 M parameters (294,912)``."""
    _, own = split(backbone.state_dict())
    if not own:
        return ""
    count = sum(tensor.numel() for tensor in own.values() if tensor.dim())
    return f"{described(own).removeprefix('adapters ')}: {count / 1e6:.2f} M parameters ({count:,})"


def main(argv: list[str]) -> None:
    """The command line of tools/describe.py.

    Raises:
        UserError: there is no such config, backbone or arch, or the size is invalid.
    """
    parser = Parser(prog="describe.py", description="Parameters, multiply-adds and levels of a backbone.")
    parser.add_argument(
        "target", metavar="CONFIG|BACKBONE", help="a recipe's name, a config file, or a backbone's name, such as PVTv2"
    )
    parser.add_argument("--arch", help="one arch of a backbone; without it, all of them")
    parser.add_argument("--size", type=int, nargs="+", default=[512], metavar="SIDE", help="height and width (512)")
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        raise UserError("--size takes a height and a width, or one number for both")
    for name, config in _configs(args.target, args.arch):
        try:
            print(describe(config, (args.size[0], args.size[-1]), printable(name)), keep=LAYOUT)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {error}") from None


def _configs(target: str, arch: str | None) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The backbones that a target names: for each, a name to print and a config."""
    known = families()
    family = target.removeprefix("mm_vitbackbones.")
    if family not in known:
        if Path(target).name == target and not Path(target).suffix and target not in recipes.names():
            near = did_you_mean(family, [*known, *recipes.names()])
            raise UserError(f"there is no backbone and no recipe {target!r}{near} (a path ends in .py)")
        if arch is not None:
            raise UserError("--arch goes with a backbone's name; a config says its arch by itself")
        return [_from_file(config_file(target), known)]
    archs = known[family].archs if arch is None else [arch]
    return [(f"{family} {arch}", {"type": family, "arch": arch}) for arch in archs]


def _from_file(path: Path, known: Mapping[str, type[Backbone]]) -> tuple[str, Mapping[str, Any]]:
    cfg = read_config(path)
    config = (cfg.get("model") or {}).get("backbone") or ConfigDict()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: model.backbone is of type {type(config).__name__}: write backbone=dict(...)")
    # A name without a scope belongs to the default scope, where another class may have the name of one of ours.
    scope, family = module_of(config) or cfg.get("default_scope"), type_name(config)
    if str(scope).partition(".")[0] != BACKBONES.scope or family not in known:
        raise UserError(f"{path}: model.backbone is {config.get('type')!r}, and none of {', '.join(known)}")
    return f"{path.name}: {family} {config.get('arch', '')}".strip(), {**config.to_dict(), "type": family}
