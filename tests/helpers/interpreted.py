"""Kernels in Triton's interpreter, on a CPU. ``TRITON_INTERPRET=1`` has to be set before Triton is imported."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter

plain_patch = interpreter._patch_lang_tensor


def patch(tensor: Any, *scope: Any) -> None:
    """Triton makes an index of an array of one element, which NumPy 2.4 refuses. From 3.6 on there is a scope."""
    plain_patch(tensor, *scope)
    give = scope[0].set_attr if scope else setattr
    give(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = patch
