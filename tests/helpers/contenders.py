"""Our networks and other implementations of them, as the benchmarks on a GPU build them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tools.benchmarks.gpu.contenders import BEFORE, CONTENDERS


def in_training(network: str, without: tuple[str, ...] = ()) -> Iterator[tuple[str, nn.Module]]:
    """Names and networks, each built when it is asked for. Left out are ours of an earlier version, those ``without``,
    and those whose package is not installed."""
    for contender in CONTENDERS[network]:
        if contender.name in (BEFORE, *without):
            continue
        try:
            built = contender.build()
        except ImportError:
            continue
        built.train()  # mmdet's returns nothing
        yield contender.name, built
