"""How large a file may be before it is refused: a few bytes can stand for more memory than a machine has.

A limit is raised by an environment variable, so that it holds in every process of a run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from mm_vitbackbones.errors import UserError


@dataclass(frozen=True)
class Limit:
    """The largest number of something.

    Attributes:
        variable: the environment variable that raises it.
        default: where the variable is not set.
        unit: what is counted.
    """

    variable: str
    default: int
    unit: str

    @property
    def value(self) -> int:
        """The limit that holds now.

        Raises:
            UserError: the variable is no whole number above 0.
        """
        text = os.environ.get(self.variable, "").replace("_", "")
        if not text:
            return self.default
        if not text.isdecimal() or not text.isascii() or int(text) < 1:
            raise UserError(f"{self.variable}={os.environ[self.variable]} has to be a whole number of {self.unit}")
        return int(text)

    def exceeded(self, count: int | float) -> str:
        """What is too large and how to raise the limit, as "it has 5 pixels, ..."; empty if nothing is.

        Args:
            count: what was found. It may be of any size.
        """
        if count <= self.value:
            return ""
        found = (
            f"{count:,}" if isinstance(count, int) and count < 10**20 else "more than 10^20" if count > 1e20 else "?"
        )
        return (
            f"it has {found} {self.unit}, and at most {self.value:,} are read: set the environment variable "
            f"{self.variable} to raise this"
        )


IMAGE_PIXELS = Limit("MM_VITBACKBONES_MAX_PIXELS", 2**27, "pixels")
"""Width times height of an image or a mask. An image of the default's size takes 400 MB when it is loaded."""

IMAGE_BYTES = Limit("MM_VITBACKBONES_MAX_IMAGE_BYTES", 2**31, "bytes")
"""Size of the file of an image or a mask, and of what an image of bands holds when it is loaded."""

JSON_BYTES = Limit("MM_VITBACKBONES_MAX_JSON_BYTES", 2**32, "bytes")
"""Size of an annotation file. COCO's has 450 MB."""
