"""In which precision operators compute."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """The tensor in single precision if it is in half precision; itself otherwise."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
