"""What a file from somewhere else may ask for: time, memory, depth. One switch raises all of it.

A few bytes can stand for more memory than a machine has. Each limit is at least ten times what files of real trainings
need. The switch is an environment variable, so that it holds in every process of a run. Imports no torch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from mm_vitbackbones.errors import UserError

SWITCH = "MM_VITBACKBONES_LIMITS"
"""The environment variable that multiplies all limits, such as ``MM_VITBACKBONES_LIMITS=10``."""

HIGHEST = 1e9
"""The largest factor."""

KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclass(frozen=True)
class Limit:
    """The largest number of something.

    Attributes:
        most: the number, without the switch.
        unit: what is counted, in words that follow a number.
    """

    most: int
    unit: str

    @property
    def value(self) -> int:
        """The limit that holds now.

        Raises:
            UserError: the switch is no factor of at least 1.
        """
        return int(self.most * factor())

    def exceeded(self, count: float, besides: int = 0) -> str:
        """What is too much and how to raise the limit, as "5 pixels, and the limit is 4; ..."; empty if nothing is.

        Args:
            count: what was found. It may be of any size.
            besides: what is allowed next to the limit, such as a multiple of a file's own size.
        """
        most = self.value + besides
        if count <= most:
            return ""
        found = f"{int(count):,}" if count < 1e20 else "more than 10^20"
        power = 1
        while power < 9 and self.most * 10**power < count - besides:
            power += 1
        return f"{found} {self.unit}, and the limit is {most:,}; {how_to_raise(power)}"


def factor() -> float:
    """What the limits are multiplied by.

    Raises:
        UserError: the switch is no number of at least 1.
    """
    text = os.environ.get(SWITCH, "1")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number <= HIGHEST:
        raise UserError(f"the environment variable {SWITCH} is {text!r}: give a factor of at least 1, such as 10")
    return number


def how_to_raise(power: int = 1) -> str:
    """How the user raises all limits by a power of ten."""
    return f"if you trust the file, the environment variable {SWITCH}={10**power} multiplies all limits"


# ---- images, masks and annotations

PIXELS = Limit(2**27, "pixels")
"""Width times height of an image or a mask. An image of this size takes 400 MB when it is loaded."""

IMAGE = Limit(2 * GIB, "bytes")
"""The file of an image or a mask, and what an image of bands holds when it is loaded."""

ANNOTATIONS = Limit(4 * GIB, "bytes")
"""An annotation file. COCO's has 450 MB."""

CLASS_LIST = Limit(4 * MIB, "bytes with all that its names refer to")
"""A ``data.yaml`` with names of classes. One in which a list holds another ten times, and so on, has a few bytes."""

OPENCV = "OPENCV_IO_MAX_IMAGE_PIXELS"
"""OpenCV's own switch, which it reads when it is imported."""


def share_with_opencv() -> None:
    """Have OpenCV obey the limit of pixels wherever a library calls it, in this process and in those that it starts.
    To be called before OpenCV is imported. A number that the user gave it stays.

    Raises:
        UserError: the switch is no factor of at least 1.
    """
    os.environ.setdefault(OPENCV, str(PIXELS.value))


OUTLINES = Limit(10_000_000, "pixels of outlines")
"""The outlines of one object. pycocotools takes 80 bytes for each pixel."""

# ---- checkpoints

OPCODES = Limit(5_000_000, "opcodes")
"""Steps of a checkpoint's pickle. A tensor takes about 25; the optimizer's state of 10,000 parameters, 1.5 million."""

CALLS = Limit(500_000, "calls")
"""Objects that a pickle makes by a call: tensors, parameters, ordered dicts."""

CLASSES = Limit(500, "different classes")
"""Different classes and functions that a pickle names and that are not PyTorch's."""

LOOKUPS = Limit(5_000_000, "look-ups of classes")
"""The number of those classes, times how often the pickle uses one: PyTorch searches all of them each time."""

DEPTH = Limit(200, "containers within each other")
"""Configs and optimizers have less than 20. The switch raises this by 4 at most: Python's own stack ends later."""

WALK = Limit(10_000_000, "objects, each as often as it is referred to")
"""Objects in a checkpoint. A list that holds one twice, forty times over, has a few bytes and no end."""

ODD_KEYS = Limit(1_000, "keys that are neither text nor numbers of 32 bits")
"""Keys of dicts, and items of sets: the hashes of others can be made equal."""

COPIES = Limit(256 * MIB, "bytes of copies")
"""What a pickle's calls may copy, next to 16 times its own size."""

VALUES = Limit(256 * MIB, "bytes of tensors, views included")
"""All tensors together, shared weights included, next to 8 times what is stored."""

INFLATED = Limit(256 * MIB, "bytes when its parts are inflated")
"""A compressed archive's parts, next to 4 times its own size. ``torch.save`` does not compress."""

ENTRIES = Limit(1_000_000, "parts")
"""Parts of an archive. Each tensor is one."""

HEADER = Limit(32 * MIB, "bytes of header")
"""The header of a safetensors file. A tensor takes about 100."""

DOWNLOAD = Limit(100 * GIB, "bytes")
"""A download. The largest published backbones have about 30 GB."""
