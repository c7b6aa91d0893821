"""The backbones of a model, compiled block by block."""

from __future__ import annotations

import argparse

from torch import nn

from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.errors import UserError


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile each block of the backbone by torch.compile; where no compiler works, one line says so",
    )


def compile_backbones(model: nn.Module) -> None:
    """Compiles the blocks of our backbones in a model; see ``Backbone.compile_blocks``.

    Raises:
        UserError: if the model has none.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if not backbones:
        raise UserError("--compile compiles the backbones of this package, and the model has none: leave it out")
    for backbone in backbones:
        backbone.compile_blocks()
