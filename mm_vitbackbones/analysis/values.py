"""Numbers of which some are missing."""

from __future__ import annotations

from typing import Any

import numpy as np


def mean(values: np.ndarray) -> float:
    """The mean of those that are numbers; nan if none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def plain(value: Any) -> Any:
    """The same as Python's own numbers, lists and dicts, as JSON has them: None for nan."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(each) for each in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value if value is None else str(value)
