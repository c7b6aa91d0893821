"""Vision transformer backbones for dense prediction with MMEngine, MMDetection and MMSegmentation.

Importing the package imports nothing else: the backbones are in :mod:`mm_vitbackbones.backbones`, and MMEngine finds
them by itself under names such as ``mm_vitbackbones.PVT``. :func:`build_backbone` makes one without a config,
:func:`export` writes one to a file, and :func:`recipe` is the path of a config that comes with the package.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "build_backbone", "export", "recipe"]

LAZY = {
    "build_backbone": "mm_vitbackbones.build",
    "export": "mm_vitbackbones.exporting",
    "recipe": "mm_vitbackbones.recipes",
}
"""Where the public functions are."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LAZY[name]), name)
