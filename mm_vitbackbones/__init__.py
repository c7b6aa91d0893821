"""Vision transformer backbones for dense prediction with MMEngine, MMDetection and MMSegmentation.

Importing the package imports nothing else: the backbones are in :mod:`mm_vitbackbones.backbones`, and MMEngine finds
them by itself under names such as ``mm_vitbackbones.PVT``. :func:`build_backbone` makes one without a config.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "build_backbone"]


def __getattr__(name: str) -> Any:
    if name != "build_backbone":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mm_vitbackbones.build import build_backbone

    return build_backbone
