"""ONNX files: writing one from an exported program, and running it in onnxruntime. Imports onnx when it is called."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mm_vitbackbones.exporting.choices import Choices
from mm_vitbackbones.exporting.parts import replaced

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

    translations = table(program.graph)
    _keep_operations(program, translations)
    with quiet(), _promotion_where_needed():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=[*outputs],
            custom_translation_table=dict(translations),
            verbose=False,
            optimize=False,
        )
        assert made is not None
        model = made.model
        _simplify(model)
    _clean(model)
    for key, value in metadata.items():
        model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    initializers = [value.const_value for value in model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in initializers if tensor is not None)
    external = weights > LARGEST
    made.save(str(path), external_data=external)
    files = [path, path.with_name(f"{path.name}.data")]
    return len([*model.graph]), [file for file in files if file.exists()]


RULES = (
    "add_0_rule",
    "sub_0_rule",
    "mul_by_1_rule",
    "div_by_1_rule",
    "cast_cast_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "materialize_reshape_shape_rule",
    "reshape_reshape_rule",
    "squeeze_reshape_1d_rule",
    "flatten_to_reshape_rule",
    "unsqueeze_unsqueeze_rule",
    "no_op_transpose_rule",
    "transpose_transpose_rule",
    "fuse_batchnorm_into_conv_rule",
    "fuse_batchnorm_into_conv_transpose_rule",
)
"""Of onnxscript's rules, those that find something in these networks. By default onnxscript tries all of them at each
node, and one, which looks for pairs of slices, takes a time that grows with the square of the number of nodes."""

ROUNDS = 2
"""How often the rules are applied: what one of them leaves may serve another."""

LARGEST_TABLE = 4096
"""Values of a table that is computed once, for the file. Larger ones, such as those of places in a fixed size of image,
would be most of what a file has beyond its weights; they are computed in each run, or when the file is loaded."""


def _keep_operations(program: Any, translated: Container[Any]) -> None:
    """Let PyTorch's exporter take a program as it is, if ONNX knows all of its operations.

    The exporter asks the program for one of simpler operations, by ``run_decompositions``. For that the program traces
    itself twice, which is most of the time, and which gives the same program where nothing has to be made simpler.
    """
    decompose = program.run_decompositions

    def run_decompositions(decompositions: Container[Any]) -> Any:
        targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
        if all(target in translated or _stays(target, decompositions) for target in targets):
            return program
        return decompose(decompositions)

    program.graph.eliminate_dead_code()
    program.run_decompositions = run_decompositions


@contextlib.contextmanager
def _promotion_where_needed() -> Iterator[None]:
    """Within it, PyTorch's exporter does not look for operations on tensors of different types, which takes a third of
    its time, in a graph whose tensors all have one floating type and none meets a number made of a size."""
    from torch.onnx._internal.exporter import _fx_passes

    promote = getattr(_fx_passes, "insert_type_promotion_nodes", None)
    if promote is None:
        yield
        return

    def insert(module: torch.fx.GraphModule) -> None:
        if not _has_one_floating_type(module):
            promote(module)

    with replaced(_fx_passes, "insert_type_promotion_nodes", insert):
        yield


def _has_one_floating_type(module: torch.fx.GraphModule) -> bool:
    parts = [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    nodes = [node for part in parts for node in part.graph.nodes]
    types = {x.dtype for node in nodes for x in tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)}
    return len(types) == 1 and types.pop().is_floating_point and not any(map(_computes_with_a_size, nodes))


def _computes_with_a_size(node: torch.fx.Node) -> bool:
    """Whether an operation on a tensor takes a number of the graph as a value, such as ``x / x.shape[-1]``. In a file,
    that number is a tensor of integers. Lengths, places and axes have another type in the schemas."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    taken = zip(node.target._schema.arguments, node.args, strict=False)
    values = [(argument, value.meta.get("val")) for argument, value in taken if isinstance(value, torch.fx.Node)]
    return any(isinstance(value, Tensor) for _, value in values) and any(
        isinstance(argument.type, (torch.TensorType, torch.NumberType)) and not isinstance(value, Tensor)
        for argument, value in values
    )


def _stays(target: Any, decompositions: Container[Any]) -> bool:
    """Whether the exporter would leave an operation as it is. It makes those simpler that it has a recipe for, that
    change their input, or that view it in terms of other views; and assertions are dropped."""
    if not isinstance(target, torch._ops.OpOverload):
        return not isinstance(target, torch._ops.OperatorBase)  # arithmetic of sizes
    if target is torch.ops.aten._assert_tensor_metadata.default:
        return True
    if target is torch.ops.aten.feature_dropout.default:  # ONNX has none; made simpler, it is gone in inference
        return False
    composite = target.is_view and target._can_decompose()
    return target not in decompositions and not target._schema.is_mutable and not composite


def _simplify(model: Any) -> None:
    """Compute what does not depend on the image, and leave out what does nothing or is there twice."""
    import onnxscript.optimizer
    import onnxscript.rewriter
    from onnx_ir.passes import Sequential, common
    from onnxscript.rewriter.rules import common as rules

    chosen = [getattr(rules, name) for name in RULES]
    common.InlinePass()(model)
    for _ in range(ROUNDS):
        onnxscript.optimizer.fold_constants(
            model, onnx_shape_inference=True, output_size_limit=LARGEST_TABLE, should_fold=_may_be_folded
        )
        onnxscript.rewriter.rewrite(model, chosen)
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _may_be_folded(node: Any) -> bool | None:
    """None: as onnxscript decides. It computes by ONNX's reference, whose bicubic Resize is wrong at a place that is
    the centre of a cell, except for rounding."""
    return False if node.op_type == "Resize" else None


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
    """An ONNX file in onnxruntime, on the CPU, with as many threads as PyTorch has.

    Args:
        path: the file.
        watched: whether ``followed`` will be called.
    """

    def __init__(self, path: Path, watched: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        file: Any = str(path)
        self._highest: list[tuple[str, str]] = []
        self._regions: list[str] = []
        if watched:
            file, self._highest, self._regions = _watched(path)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        more = {*itertools.chain(*self._highest), *self._regions}
        self._outputs = [each.name for each in self._session.get_outputs() if each.name not in more]

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self._run(image, self._outputs)
        return tuple(found[name] for name in self._outputs)

    def followed(self, image: Tensor) -> tuple[tuple[Tensor, ...], Choices]:
        """The same, and what a detector chooses."""
        found = self._run(image, [*self._outputs, *itertools.chain(*self._highest), *self._regions])
        highest = [(found[scores], found[at]) for scores, at in self._highest]
        return tuple(found[name] for name in self._outputs), Choices(highest, [found[name] for name in self._regions])

    def _run(self, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        found: list[np.ndarray] = self._session.run(names, {"image": image.numpy()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))


def _watched(path: Path) -> tuple[bytes, list[tuple[str, str]], list[str]]:
    """A file with more outputs: the scores and places of each TopK, and the boxes of RoIAlign. And their names."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    highest: list[tuple[str, str]] = []
    regions: list[str] = []

    def given(name: str) -> str:
        """A further output of this value."""
        copy = f"watched_{len(graph.node)}"
        graph.node.append(onnx.helper.make_node("Identity", [name], [copy]))
        graph.output.append(onnx.ValueInfoProto(name=copy))
        return copy

    last = None
    for node in [*graph.node]:
        if node.op_type == "TopK":
            for index, name in enumerate(node.output):  # what nothing reads may have no name
                node.output[index] = name or f"unread_{len(highest)}"
            highest.append((given(node.output[0]), given(node.output[1])))
        elif node.op_type == "RoiAlign":
            source = made[node.input[1]]
            while source.op_type != "Gather":  # of the boxes of one level; a cast may follow
                source = made[source.input[0]]
            if source.input[0] != last:  # one node for each level
                last = source.input[0]
                regions.append(given(last))
    return model.SerializeToString(), highest, regions
