"""The look of configs. yapf takes half a second for one, and MMEngine asks it again for each checkpoint."""

from __future__ import annotations

import functools
import json
from typing import Any

from mmengine.config import config


def format_once() -> None:
    """Have MMEngine format equal texts once in this process, and in each one that it forks."""
    config.FormatCode = _formatted


_format_code = config.FormatCode


def _formatted(text: str, **options: Any) -> tuple[str, bool]:
    return _known(text, json.dumps(options))


@functools.lru_cache(maxsize=64)
def _known(text: str, options: str) -> tuple[str, bool]:
    return _format_code(text, **json.loads(options))
