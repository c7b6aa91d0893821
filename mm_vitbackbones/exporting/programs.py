"""PyTorch's exported programs: tracing a network, and such programs as files."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mm_vitbackbones.exporting.choices import Choices
from mm_vitbackbones.exporting.onnx_files import quiet
from mm_vitbackbones.exporting.parts import open_sizes
from mm_vitbackbones.ops import context

SMALLEST = 32
"""Pixels of an image's side, at least."""

METADATA = "metadata.json"
"""The extra file of an exported program that holds its metadata."""


class _ForEverySize(nn.Module):
    """A network, in a trace that asks for no size of its image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Any:
        with context.for_every_size(), open_sizes():
            return self.network(image)


def trace(network: nn.Module, image: Tensor, fixed: bool, smallest: int = SMALLEST) -> Any:
    """A network as an exported program, with free batch, height and width, or with those of the image alone."""
    Dim = torch.export.Dim
    with quiet(), torch.no_grad():
        if fixed:
            return torch.export.export(network, (image,), strict=False)
    # PyTorch remembers the sizes of each operation's result. To write down and to read formulas takes longer than to
    # find them again.
    remember = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    with quiet(), torch.no_grad(), remember:
        network = _ForEverySize(network)
        free: dict[int, Any] = {0: Dim("batch"), 2: Dim("height", min=smallest), 3: Dim("width", min=smallest)}
        try:
            return torch.export.export(network, (image,), dynamic_shapes=(free,), strict=False)
        except torch._dynamo.exc.UserError:
            # A head or neck of a library asks for sizes. The graph may serve all others still: the check of the file
            # says so.
            free = dict.fromkeys(free, Dim.DYNAMIC)
            return torch.export.export(network, (image,), dynamic_shapes=(free,), strict=False)


def write(program: Any, path: Path, metadata: Mapping[str, Any]) -> int:
    """Write an exported program, without the traced image and the lines of Python that made it, which are bytes and
    name the folders of this machine. Its texts are compressed. Returns the number of its nodes."""
    program._example_inputs = None
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    with quiet():
        torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})
    _compress_texts(path)
    return sum(node.op == "call_function" for node in program.graph.nodes)


ALIGNED = 64
"""Bytes: PyTorch has each tensor of a file at a multiple of it."""

HEAD = 30
"""Bytes of a record's head in a zip file, before its name."""

MANY = 4096
"""Bytes of a text that is worth compressing."""


def _compress_texts(path: Path) -> None:
    """Compress the texts of a program's file: the graph writes the size of each of its tensors as a formula, which in
    a small network is more than 5 % of the weights. PyTorch reads compressed records, and writes none of them."""
    made = path.with_name(f"{path.name}.compressed")
    with zipfile.ZipFile(path) as old, made.open("xb") as file, zipfile.ZipFile(file, "w") as new:
        for record in old.infolist():
            info = zipfile.ZipInfo(record.filename)
            if record.filename.endswith(".json") and record.file_size > MANY:
                info.compress_type = zipfile.ZIP_DEFLATED
            else:
                info.extra = _padding(file.tell() + HEAD + len(info.filename.encode()))
            info.file_size = record.file_size
            with old.open(record) as source, new.open(info, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
    os.replace(made, path)


def _padding(end: int) -> bytes:
    """A field for the head of a record that ends at ``end`` without it, so that its data start aligned."""
    return struct.pack("<2sH", b"FB", count := -(end + 4) % ALIGNED) + b"Z" * count


class Watch(TorchDispatchMode):
    """Notes what is chosen within it."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = Choices()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.topk.default:
            self.choices.highest.append(found)
        elif function is torch.ops.mm_vitbackbones.roi_align.default:
            noted, regions = self.choices.regions, args[1]
            if not noted or noted[-1].data_ptr() != regions.data_ptr():  # the heads of a cascade read the same
                noted.append(regions)
        return found


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

    def followed(self, image: Tensor) -> tuple[tuple[Tensor, ...], Choices]:
        """The same, and what a detector chooses."""
        with Watch() as watch:
            return self(image), watch.choices
