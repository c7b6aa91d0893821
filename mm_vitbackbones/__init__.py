"""Vision transformer backbones for dense prediction with MMEngine, MMDetection and MMSegmentation.

Importing the package imports nothing else: the backbones are in :mod:`mm_vitbackbones.backbones`, and MMEngine finds
them by itself under names such as ``mm_vitbackbones.PVT``.
"""

__version__ = "0.1.0"
