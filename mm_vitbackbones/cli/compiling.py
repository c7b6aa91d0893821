"""The backbones of a model, compiled block by block."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.errors import UserError


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile each block of the backbone by torch.compile; where no compiler works, one line says so",
    )


def compile_backbones(model: nn.Module, **options: Any) -> None:
    """Compiles the blocks of our backbones in a model; see ``Backbone.compile_blocks``.

    Args:
        options: of ``torch.compile``.

    Raises:
        UserError: if the model has none.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if not backbones:
        raise UserError("--compile compiles the backbones of this package, and the model has none: leave it out")
    from torch._dynamo import config  # which takes a second

    # In a distributed run PyTorch splits large graphs, so that gradients are sent early. A block is small enough, and a
    # graph that computes a part again (`with_cp`) cannot be split.
    config.optimize_ddp = False
    for backbone in backbones:
        backbone.compile_blocks(**options)
