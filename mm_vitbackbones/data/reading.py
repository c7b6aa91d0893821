"""Images as the pipeline of a data set reads them.

A pipeline may have a loading transform of the user's own: for several bands, for another file format, for another
orientation. So everything that looks at an image asks the pipeline, and not a reader of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS

from mm_vitbackbones.errors import UserError


class UnreadableImage(UserError):
    """An image that its pipeline cannot load. The message says why, without the image's name."""


class ImageReader:
    """The first steps of a pipeline, up to the one that loads the image.

    Args:
        pipeline: transforms, or their configs. These are built in the default scope, when they are first needed: the
            later steps never are.
    """

    def __init__(self, pipeline: Sequence[Any]) -> None:
        self._steps = [*pipeline]

    def __call__(self, info: Mapping[str, Any]) -> np.ndarray:
        """The image of a data set's entry, (height, width) or (height, width, channels), of the loader's own type.

        Args:
            info: what the data set says about an image, ``img_path`` above all.

        Raises:
            UnreadableImage: a step cannot do its work, or none of them loads an image.
        """
        results: Any = dict(info)
        for index in range(len(self._steps)):
            step = self._step(index)
            try:
                results = step(results)
            except Exception as error:  # a transform can raise anything
                raise UnreadableImage(_reason(error)) from None
            if results is None:
                raise UnreadableImage("its pipeline gives nothing for it")
            if isinstance(image := results.get("img"), np.ndarray):
                return image
        raise UnreadableImage("no step of its pipeline loads an image")

    def _step(self, index: int) -> Callable[[Any], Any]:
        step = self._steps[index]
        if isinstance(step, Mapping):
            step = self._steps[index] = TRANSFORMS.build(step)
        return step


def _reason(error: Exception) -> str:
    """An exception in a few words of one line."""
    words = " ".join(str(error).split())
    return words if isinstance(error, (OSError, AssertionError)) and words else f"{type(error).__name__}: {words}"
