"""Files of networks: what stands in them, and that a file that computes something else is not kept."""

from __future__ import annotations

import json
import operator
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import mm_vitbackbones
from helpers.exported import one_stage_of_mit
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting import Export, ExportMismatch, export, onnx_files, packages, programs
from mm_vitbackbones.exporting.checking import Checked, difference
from mm_vitbackbones.exporting.half import Half


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "toy.pt2"
    done = mm_vitbackbones.export(
        one_stage_of_mit(), path, to="torch-export", size=(64, 96), fixed=True, preprocess=True
    )
    assert done.right
    return path


def test_program_runs_without_this_package(program: Path) -> None:
    image = torch.rand(1, 3, 64, 96) * 255
    torch.save(image, program.with_name("image.pth"))
    code = f"""
import sys, torch
assert not any(name.startswith("mm_vitbackbones") for name in sys.modules)
module = torch.export.load({str(program)!r}).module()
torch.save(module(torch.load({str(program.with_name("image.pth"))!r})), {str(program.with_name("maps.pth"))!r})
assert not any(name.startswith("mm_vitbackbones") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=program.parent)
    (found,) = torch.load(program.with_name("maps.pth"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    with torch.no_grad():
        (expected,) = one_stage_of_mit().eval()((image - mean) / std)
    torch.testing.assert_close(found, expected)


def test_program_says_what_it_is(program: Path) -> None:
    extra = {programs.METADATA: ""}
    torch.export.load(program, extra_files=extra)
    found = json.loads(extra[programs.METADATA])
    assert found["producer"] == f"mm_vitbackbones {mm_vitbackbones.__version__}"
    assert (found["inputs"], found["outputs"], found["kind"]) == (["image"], ["level0"], "backbone")
    assert found["strides"] == [4]
    assert found["image"] == {
        "channels": 3,
        "order": "RGB",
        "size": [64, 96],
        "smallest_side": 32,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "normalised_inside": True,
        "padded_inside_to_multiples_of": 1,
    }


def test_program_has_little_besides_its_weights_which_are_aligned(program: Path) -> None:
    held = program.read_bytes()
    weights = sum(4 * tensor.numel() for tensor in one_stage_of_mit().state_dict().values())
    assert len(held) - weights < 30_000  # of which most is the heads of a record for each tensor
    with zipfile.ZipFile(program) as file:
        found = [record for record in file.infolist() if "/weight_" in record.filename]
    assert len(found) > 10
    for record in found:
        name, extra = struct.unpack_from("<HH", held, record.header_offset + 26)
        assert record.compress_type == zipfile.ZIP_STORED
        assert (record.header_offset + 30 + name + extra) % 64 == 0


def test_file_that_is_wrong_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    call = programs.Loaded.__call__
    monkeypatch.setattr(programs.Loaded, "__call__", lambda self, image: tuple(1.001 * x for x in call(self, image)))
    with pytest.raises(ExportMismatch, match=r"differs from the network by 1\.0e-03.*64x64.*not kept") as raised:
        export(one_stage_of_mit(), tmp_path / "toy.pt2", to="torch-export", size=(64, 64), fixed=True)
    assert raised.value.done.error == pytest.approx(1e-3, rel=0.01)
    assert not any(tmp_path.iterdir())
    done = export(
        one_stage_of_mit(), tmp_path / "toy.pt2", to="torch-export", size=(64, 64), fixed=True, tolerance=2e-3
    )
    assert done.right
    assert done.path.is_file()


def test_wrong_choice_of_a_file_is_one_line(tmp_path: Path) -> None:
    size, what = (1, 64, 96), "of its candidates, a score of 0.8 is left out"
    done = Export(tmp_path, "onnx", 1.0, 1.0, 1, 1, 1, (Checked(size, 1e-5), Checked(size, float("inf"), what)), 1e-4)
    assert str(ExportMismatch(done)) == f"the file differs from the network at 64x96 ({what}): it is not kept"


def test_module_is_as_before(program: Path, tmp_path: Path) -> None:
    module = one_stage_of_mit().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export(module, tmp_path / "toy.pt2", to="torch-export", size=(32, 32), fixed=True, half=True)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in module.state_dict().items())


def test_half_precision_keeps_norms_and_softmax_in_single_precision() -> None:
    half = Half(one_stage_of_mit().eval())
    narrow, wide = torch.float16, torch.float32
    kinds = {name: p.dtype for name, p in half.network.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".norm" in name} == {wide}
    assert [kind for name, kind in kinds.items() if "fc1.weight" in name] == [narrow]
    traced = programs.trace(half.eval(), torch.randn(1, 3, 32, 32), fixed=True)
    with onnx_files.quiet():
        traced = traced.run_decompositions()
    inputs: dict[str, set[Any]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.all_input_nodes and node.target is not operator.getitem:
            inputs.setdefault(str(node.target), set()).add(node.all_input_nodes[0].meta["val"].dtype)
    assert inputs["aten.native_layer_norm.default"] == {wide}
    assert inputs["aten._softmax.default"] == {wide}
    assert inputs["aten.convolution.default"] == {narrow}
    assert not {str(kind) for name, found in inputs.items() if "mm" in name for kind in found} - {str(narrow)}


def test_missing_packages_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = packages.importlib.util.find_spec
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name)
    )
    with pytest.raises(
        UserError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'mm-vitbackbones\[export\]'"
    ):
        export(one_stage_of_mit(), tmp_path / "toy.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(to="onxx"), r"to='onxx': give one of 'onnx', 'torch-export'"),
        (dict(size=(31, 64)), r"size=\(31, 64\): give a height and a width of at least 32"),
        (dict(to="torch-export", opset=20), r"opset=20: only ONNX has opsets"),
        (dict(to="torch-export", tolerance=-1), r"tolerance=-1: give a number above 0, such as 0.0001"),
        (dict(to="torch-export", with_nms=True), r"with_nms: a backbone gives no boxes"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(one_stage_of_mit(), tmp_path / "toy", **arguments)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "toy.pt2"
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already, and is not overwritten"):
        export(one_stage_of_mit(), path, to="torch-export")
    assert path.read_text() == "mine"
    export(one_stage_of_mit(), path, to="torch-export", size=(32, 32), fixed=True, force=True)
    assert path.stat().st_size > 1000


def test_network_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = one_stage_of_mit()
    module.stages[0].norm = torch.nn.LayerNorm(8)
    with pytest.raises(UserError, match=r"the network fails on an image of 161x225: Given normalized_shape"):
        export(module, tmp_path / "toy.pt2", to="torch-export")
    assert not any(tmp_path.iterdir())


def test_errors_of_the_exporter_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no such\n  operation")

    monkeypatch.setattr(programs, "trace", fail)
    with pytest.raises(UserError, match=r"cannot be traced \(RuntimeError: no such operation\): try a fixed size, or"):
        export(one_stage_of_mit(), tmp_path / "toy.pt2", to="torch-export")


def test_folder_of_a_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "toy.pt2"
    export(one_stage_of_mit(), path, to="torch-export", size=(32, 32), fixed=True)
    assert path.is_file()


def test_errors_are_parts_of_the_largest_value() -> None:
    assert difference(torch.tensor([0.0, -10.0]), torch.tensor([0.5, -10.0])) == pytest.approx(0.05)
    assert difference(torch.ones(2), torch.tensor([1.0, torch.nan])) == float("inf")
    assert difference(torch.ones(2).long(), torch.tensor([1, 2])) == float("inf")
