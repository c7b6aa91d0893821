"""What PyTorch is doing around a call: autocast and compilation, asked the same way of every version from 2.1 on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` traces this call."""
    if hasattr(torch.compiler, "is_compiling"):
        return torch.compiler.is_compiling()
    from torch._dynamo import is_compiling as dynamo_is_compiling

    return dynamo_is_compiling()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The narrower type of the autocast that is on for a device; None where it is off, or not known at all."""
    if hasattr(torch, "get_autocast_dtype"):
        on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if on else None
    if device.type == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if device.type == "cuda" and torch.is_autocast_enabled() else None


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which autocast is as ``autocast_dtype`` told: to that type, or off."""
    if autocast_dtype(device) == dtype:
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
