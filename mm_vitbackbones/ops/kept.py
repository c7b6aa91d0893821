"""Constants of sizes, which are made once and shared by all blocks with equal grids."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

from mm_vitbackbones.ops import context

T = TypeVar("T")

is_capturing = torch.cuda.is_current_stream_capturing
stream_of: Callable[[int | None], int] = getattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0)
"""The stream of this thread on a card, as a number."""


class Kept(Generic[T]):
    """The results of a function for its latest arguments, the last of which is their device.

    Each CUDA stream has its own: another one would read what is not yet there, or memory that is in use again. A CUDA
    graph reads its constants where they were when it was captured, and does not hold them. So what one has taken is
    kept for good. What is made during a capture has no values before the graph runs, and fake tensors never have any:
    these are not kept.

    Args:
        make: the function.
        count: results that are kept.
    """

    def __init__(self, make: Callable[..., T], count: int = 64) -> None:
        self.make, self.count = make, count
        self.latest: dict[tuple[Any, ...], T] = {}
        """By the stream and the arguments, from the one that was made first to the one that was made last."""
        self.of_graphs: dict[tuple[Any, ...], T] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> T:
        if context.dispatch_modes() and context.is_fake():
            return self._made(arguments)
        device, stream = arguments[-1], 0
        if device.type == "cuda":
            if is_capturing():
                return self._of_graph(arguments)
            stream = stream_of(device.index)
        key = stream, *arguments
        if (found := self.latest.get(key)) is not None:
            return found
        with self._lock:
            if (found := self.of_graphs.get(arguments)) is None:
                found = self._made(arguments)
            if len(self.latest) >= self.count:
                del self.latest[next(iter(self.latest))]
            self.latest[key] = found
            return found

    def _of_graph(self, arguments: tuple[Any, ...]) -> T:
        """For a capture, which takes those of all streams: PyTorch waits for them before it."""
        with self._lock:
            for (_, *others), found in self.latest.items():
                if (*others,) == arguments:
                    self.of_graphs.setdefault(arguments, found)
            if (kept := self.of_graphs.get(arguments)) is not None:
                return kept
            return self._made(arguments)

    def _made(self, arguments: tuple[Any, ...]) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return self.make(*arguments)
