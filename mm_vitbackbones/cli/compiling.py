"""The backbones of a model, compiled block by block."""

from __future__ import annotations

import argparse
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.layers import ResidualBlock
from mm_vitbackbones.ops import compiling


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile each block of the backbone by torch.compile; where no compiler works, one line says so",
    )


class CompilingHook(Hook):
    """Says after an iteration how many graphs were compiled in it, and how long that took.

    Args:
        clock: counts them.
    """

    priority = "LOW"

    def __init__(self, clock: compiling.Clock) -> None:
        self.clock = clock

    def _after_iter(self, runner: Runner | None = None, *args: Any, **kwargs: Any) -> None:
        report(self.clock)

    after_train_iter = after_val_iter = after_test_iter = _after_iter


def report(clock: compiling.Clock) -> None:
    """A line in the log about what was compiled since the last one; none if nothing was."""
    graphs, seconds = clock.take()
    if graphs:
        noun = "graph" if graphs == 1 else "graphs"
        print_log(f"--compile: {graphs} {noun} compiled in {seconds:.0f} s", logger="current")


def compile_backbones(model: nn.Module, **options: Any) -> compiling.Clock:
    """Compiles the blocks of our backbones in a model; see ``Backbone.compile_blocks``. A line in the log says how many
    blocks there are.

    Args:
        options: of ``torch.compile``.

    Returns:
        what counts the seconds of compilation, which happens when images come.

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
    clock = compiling.Clock()
    for backbone in backbones:
        if backbone.compile_blocks(**options):
            blocks = [module for module in backbone.modules() if isinstance(module, ResidualBlock)]
            kinds = len({block.compiled for block in blocks})
            print_log(
                f"--compile: the first images compile the {len(blocks)} blocks of {type(backbone).__name__}, which are "
                f"of {kinds} kinds; images of another size compile each kind once more",
                logger="current",
            )
    clock.start()
    return clock
