"""PyTorch's exported programs: tracing a network, and such programs as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm_vitbackbones.exporting.onnx_files import quiet

METADATA = "metadata.json"
"""The extra file of an exported program that holds its metadata."""


def trace(network: nn.Module, image: Tensor, fixed: bool) -> Any:
    """A network as an exported program, with free batch, height and width, or with those of the image alone."""
    free = torch.export.Dim.DYNAMIC
    dynamic = None if fixed else ({0: free, 2: free, 3: free},)
    with quiet(), torch.no_grad():
        return torch.export.export(network, (image,), dynamic_shapes=dynamic, strict=False)


def write(program: Any, path: Path, metadata: Mapping[str, Any]) -> int:
    """Write an exported program, without the traced image and the lines of Python that made it, which are bytes and
    name the folders of this machine. Returns the number of its nodes."""
    program._example_inputs = None
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(key, None)
    with quiet():
        torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
    return sum(node.op == "call_function" for node in program.graph.nodes)


class Loaded:
    """The program of a file."""

    def __init__(self, path: Path) -> None:
        import mm_vitbackbones.exporting.operators  # noqa: F401, which a detector's program calls

        with quiet():
            self._module = torch.export.load(path).module()

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = self._module(image)
        return (found,) if isinstance(found, Tensor) else tuple(found)
