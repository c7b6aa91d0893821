"""Large images in parts, so that numbers of more bytes than a pixel's do not take gigabytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MOST = 2**22
"""Values of a part, if a row has no more."""


def rows(image: np.ndarray) -> Iterator[slice]:
    """The rows (H) of an image (H, W) or (H, W, C), in order, some at a time."""
    count = max(1, MOST // max(1, image[:1].size))
    for top in range(0, len(image), count):
        yield slice(top, top + count)


def parts(image: np.ndarray) -> Iterator[np.ndarray]:
    """Views of an image (H, W) or (H, W, C), which have some rows each."""
    for chosen in rows(image):
        yield image[chosen]
