"""ONNX files: standard nodes, free sizes, metadata; and what onnxruntime finds with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mm_vitbackbones
from helpers.exported import one_stage_of_mit
from helpers.paths import ROOT
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting import export, packages
from mm_vitbackbones.exporting.onnx_files import write

for name in packages.NEEDED:
    pytest.importorskip(name)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "toy.onnx"
    done = export(one_stage_of_mit(), path, size=(64, 96), classes=["a", "b"])
    assert len(done.checked) == 6
    assert done.error < 1e-5
    return path


def test_file_is_standard_and_free_in_size(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    (image,) = model.graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert sizes[1] == 3
    assert all(isinstance(sizes[i], str) and sizes[i] for i in (0, 2, 3))
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert "LayerNormalization" in {node.op_type for node in model.graph.node}
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]


def test_weights_are_in_it_once_and_little_else(path: Path) -> None:
    import onnx

    weights = sum(tensor.numel() for tensor in one_stage_of_mit().state_dict().values())
    held = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    assert 0.95 * weights <= sum(array.size for array in held) <= weights + 200  # tensors of equal values are one


def test_metadata_are_in_it(path: Path) -> None:
    import onnxruntime

    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta()
    assert json.loads(found.custom_metadata_map["classes"]) == ["a", "b"]
    assert json.loads(found.custom_metadata_map["image"])["size"] is None
    assert found.custom_metadata_map["producer"] == f"mm_vitbackbones {mm_vitbackbones.__version__}"


def test_nothing_of_this_machine_is_in_it(path: Path) -> None:
    assert str(ROOT).encode() not in path.read_bytes()


@pytest.mark.parametrize("opset", [17, 1000])
def test_opset_that_is_unknown_is_one_line(opset: int, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"opset={opset}: PyTorch's exporter writes 18 and newer, and the installed onnx"
    ):
        export(one_stage_of_mit(), tmp_path / "toy.onnx", opset=opset)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "dino", "segformer"])
def test_whole_models_are_right_at_all_sizes(name: str, path: Path, tmp_path: Path) -> None:
    from helpers import exported

    model = getattr(exported, name)()
    options: dict[str, Any] = {} if name == "segformer" else {"with_nms": True}
    done = export(model, tmp_path / "toy.onnx", size=(64, 96), preprocess=True, **options)
    assert done.error < 1e-4
    assert len(done.checked) == 6
    assert all(each.boxes is None if name == "segformer" else each.boxes > 5 for each in done.checked)
    predicted_in_onnxruntime(model, tmp_path / "toy.onnx")


@pytest.mark.slow
def test_half_precision_is_right_and_half_as_large(path: Path, tmp_path: Path) -> None:
    done = export(one_stage_of_mit(), tmp_path / "half.onnx", size=(64, 96), half=True)
    assert 1e-5 < done.error < 2e-2
    assert done.weights < 0.6 * sum(4 * tensor.numel() for tensor in one_stage_of_mit().state_dict().values())


def predicted_in_onnxruntime(model: Any, path: Path) -> None:
    """The boxes or labels of a file are those of the library's prediction, on three images."""
    import onnxruntime
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample

    from helpers.exported import photographs

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for image in photographs():
        size = tuple(image.shape[1:])
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0)
        kind = SegDataSample if hasattr(model, "decode_head") else DetDataSample
        with torch.no_grad():
            expected = model.test_step({"inputs": [image], "data_samples": [kind(metainfo=meta)]})[0]
        found = [torch.from_numpy(x) for x in session.run(None, {"image": image[None].flip(1).float().numpy()})]
        if kind is SegDataSample:
            assert float((found[0].argmax(1)[0] == expected.pred_sem_seg.data[0]).float().mean()) > 0.999
            continue
        count = len(expected.pred_instances)
        assert count == int((found[2] >= 0).sum()) > 5
        assert found[2][0, :count].tolist() == expected.pred_instances.labels.tolist()
        torch.testing.assert_close(found[0][0, :count], expected.pred_instances.bboxes, rtol=1e-4, atol=1e-2)


class Places(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp() * torch.arange(x.shape[-1], dtype=self.dtype)


@pytest.mark.parametrize(("dtype", "promoted"), [(torch.float32, 0), (torch.int64, 1), (torch.float64, 1)])
def test_types_are_promoted_where_a_graph_has_several(
    dtype: torch.dtype, promoted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime
    from torch.onnx._internal.exporter import _fx_passes

    passes, promote = [], _fx_passes.insert_type_promotion_nodes
    monkeypatch.setattr(_fx_passes, "insert_type_promotion_nodes", lambda graph: (passes.append(graph), promote(graph)))
    x, path = torch.randn(2, 5), tmp_path / "places.onnx"
    write(torch.export.export(Places(dtype), (x,)), path, ["out"], 20, {})
    assert len(passes) == promoted
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), Places(dtype)(x))


class Shares(torch.nn.Module):
    """A number that the size of an image gives is an integer in the file."""

    def __init__(self, operation: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operation(x.exp(), x.shape[-1])


def with_places(x: torch.Tensor, width: int) -> torch.Tensor:
    return x + torch.arange(width, dtype=torch.float32).expand(2, width)


@pytest.mark.parametrize(
    ("operation", "promoted"),
    [(torch.div, 1), (torch.mul, 1), (torch.add, 1), (with_places, 0)],
)
def test_a_size_that_is_computed_with_is_promoted(
    operation: Callable[[torch.Tensor, int], torch.Tensor],
    promoted: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime
    from torch.onnx._internal.exporter import _fx_passes

    passes, promote = [], _fx_passes.insert_type_promotion_nodes
    monkeypatch.setattr(_fx_passes, "insert_type_promotion_nodes", lambda graph: (passes.append(graph), promote(graph)))
    x, path, module = torch.randn(2, 5), tmp_path / "shares.onnx", Shares(operation)
    program = torch.export.export(module, (x,), dynamic_shapes=({1: torch.export.Dim("width", min=2, max=99)},))
    write(program, path, ["out"], 20, {})
    assert len(passes) == promoted
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for width in (5, 8):
        x = torch.randn(2, width)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), module(x))
