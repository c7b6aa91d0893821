"""What a file from somewhere else may ask for: time, memory, depth. One switch raises all of it.

Each limit is at least ten times what files of real trainings need. Imports no torch.
"""

from __future__ import annotations

import math
import os

from mm_vitbackbones.errors import UserError

SWITCH = "MM_VITBACKBONES_LIMITS"
"""The environment variable that multiplies all limits, such as ``MM_VITBACKBONES_LIMITS=10``."""

KIB, MIB, GIB = 2**10, 2**20, 2**30

OPCODES = 5_000_000
"""Steps of a checkpoint's pickle. A tensor takes about 25; the optimizer's state of 10,000 parameters, 1.5 million."""

CALLS = 500_000
"""Objects that a pickle makes by a call: tensors, parameters, ordered dicts."""

CLASSES = 500
"""Different classes and functions that a pickle names and that are not PyTorch's."""

LOOKUPS = 5_000_000
"""The number of those classes, times how often the pickle uses one: PyTorch searches all of them each time."""

DEPTH = 200
"""Containers within containers. Configs and optimizers have less than 20."""

WALK = 10_000_000
"""Objects in a checkpoint, each counted as often as it is referred to. A list that holds one twice, forty times over,
has a few bytes and no end."""

ODD_KEYS = 1_000
"""Keys of dicts, and items of sets, that are neither text nor numbers of 32 bits: their hashes can be made equal."""

COPIES = 256 * MIB
"""Bytes that a pickle's calls may copy, next to 16 times its own size."""

VALUES = 256 * MIB
"""Bytes of all tensors together, views and shared weights included, next to 8 times what is stored."""

INFLATED = 256 * MIB
"""Bytes of a compressed archive's parts, next to 4 times its own size. ``torch.save`` does not compress."""

ENTRIES = 1_000_000
"""Parts of an archive. Each tensor is one."""

HEADER = 32 * MIB
"""Bytes of the header of a safetensors file. A tensor takes about 100."""

DOWNLOAD = 100 * GIB
"""Bytes of a download. The largest published backbones have about 30 GB."""


def raised(limit: int) -> int:
    """A limit, times the factor that the user gave.

    Raises:
        UserError: the variable is no number of at least 1.
    """
    text = os.environ.get(SWITCH, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 1 <= factor <= 1e9:
        raise UserError(f"the environment variable {SWITCH} is {text!r}: give a factor of at least 1, such as 10")
    return int(limit * factor)


def how_to_raise() -> str:
    """How the user raises the limits, as the end of a message."""
    return f"if you trust the file, the environment variable {SWITCH}=10 raises all limits tenfold"
