"""ONNX files: writing one from an exported program, and running it in onnxruntime. Imports onnx when it is called."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OPSET = 20
"""The default. It has Gelu and LayerNormalization as one node each."""

LARGEST = 2**31 - 2**24
"""Bytes of a file with its weights inside: protobuf takes less than 2 GiB."""


def write(
    program: Any,
    path: Path,
    outputs: Sequence[str],
    opset: int,
    metadata: Mapping[str, Any],
) -> tuple[int, list[Path]]:
    """Write an exported program as an ONNX file. Weights of 2 GiB and more get a file of their own next to it.

    Returns:
        The number of nodes, and the files.
    """
    from mm_vitbackbones.exporting.translations import table

    with quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=[*outputs],
            custom_translation_table=dict(table()),
            verbose=False,
            optimize=True,
        )
    assert made is not None
    model = made.model
    _clean(model)
    for key, value in metadata.items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    initializers = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in initializers if tensor is not None)
    external = weights > LARGEST
    made.save(str(path), external_data=external)
    files = [path, path.with_name(f"{path.name}.data")]
    return len([*model.graph]), [file for file in files if file.exists()]


def _clean(model: Any) -> None:
    """Leave out what an exporter notes of each node, such as the lines of Python that made it: more bytes than the
    weights of a small network, and the paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    for function in model.functions.values():
        function.metadata_props.clear()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, PyTorch's exporter prints nothing of what only its authors can use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Session:
    """An ONNX file in onnxruntime, on the CPU, with as many threads as PyTorch has."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        found: list[np.ndarray] = self._session.run(None, {"image": image.numpy()})
        return tuple(map(torch.from_numpy, found))
