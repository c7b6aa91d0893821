"""How the extension was compiled: it was not."""

from __future__ import annotations


def get_compiler_version() -> str:
    """The compiler, in words. Source: ``mmcv/ops/info.py``."""
    return "none: plain PyTorch, by mm_vitbackbones"


def get_compiling_cuda_version() -> str:
    """The version of CUDA that mmcv was compiled for, in the word of an mmcv without it. The plain operators run on the
    device of their inputs all the same. Source: ``mmcv/ops/info.py``."""
    return "not available"
