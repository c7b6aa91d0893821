"""Networks that ``torch.export`` traces once serve images of every size, here and in ONNX Runtime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from helpers.toys import TOYS
from mm_vitbackbones.backbones import DINOv2, ViT
from mm_vitbackbones.backbones.base import MIN_SIDE

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="this PyTorch says nothing of exports"
)

toys = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS.keys())
SIZES = ((1, 32, 32), (3, 33, 47), (1, 64, 96), (3, 95, 161), (1, 224, 33), (1, 201, 251))
"""Batch, height and width: the smallest image, odd ones, one of whole windows and patches, long ones, a large one."""
FREE = {0: Dim("batch"), 2: Dim("height", min=MIN_SIDE), 3: Dim("width", min=MIN_SIDE)}


def image_of(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def built(make: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """A network in inference, whose branches and positions all count in its result."""
    torch.manual_seed(0)
    network = make(**arguments).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.std() < 0.05:  # of a table, a token, a linear map; a constant
            nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.05)
    return network


def exported(network: nn.Module, size: Sequence[int] = (2, 101, 133)) -> torch.export.ExportedProgram:
    return torch.export.export(network, (image_of(*size),), dynamic_shapes=(FREE,), strict=False)


def assert_right(run: Callable[[Tensor], Sequence[Tensor]], network: nn.Module, sizes: Any = SIZES) -> None:
    for size in sizes:
        image = image_of(*size)
        for found, expected in zip(run(image), network(image), strict=True):
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), size


@pytest.mark.parametrize("toy", ["mit", "swin"])  # the others take their seconds below
def test_the_first_level_serves_every_size(toy):
    network = built(TOYS[toy], out_indices=(0,))
    assert_right(exported(network).module(), network, SIZES[:4])


def test_a_program_of_frozen_weights_is_saved(tmp_path: Path):
    network = built(TOYS["dinov2"])
    assert torch.is_grad_enabled()
    torch.export.save(torch.export.export(network, (image_of(1, 32, 32),), strict=False), tmp_path / "program.pt2")
    assert_right(torch.export.load(tmp_path / "program.pt2").module(), network, SIZES[:1])


@pytest.mark.slow
@toys
def test_an_exported_program_serves_every_size(toy, tmp_path: Path):
    network = built(toy)
    torch.export.save(exported(network), tmp_path / "program.pt2")
    assert_right(torch.export.load(tmp_path / "program.pt2").module(), network)


@pytest.mark.slow
@toys
def test_an_export_of_one_size_gives_the_same(toy):
    network, image = built(toy), image_of(2, 65, 90)
    assert_right(torch.export.export(network, (image,), strict=False).module(), network, [(2, 65, 90)])


OTHER_FORMS = {
    "dinov2 without registers": (DINOv2, dict(arch=dict(dim=16, num_heads=2, depth=1, pretrain_grid=4))),
    "dino's positions": (
        ViT,
        dict(arch=dict(dim=16, num_heads=2, depth=1, pretrain_grid=4), positions="by_scale", pyramid=None),
    ),
    "official patches": (
        ViT,
        dict(arch=dict(dim=16, num_heads=2, depth=1, pretrain_grid=4), stem="published", pyramid=None),
    ),
}
"""Positions and patches that no toy has."""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "arguments"), OTHER_FORMS.values(), ids=OTHER_FORMS.keys())
def test_other_forms_serve_every_size(family, arguments):
    network = built(family, **arguments)
    side = 4 * network.patch_size  # at which the table of positions stays as it is
    assert_right(exported(network).module(), network, [*SIZES, (1, side, side), (1, side, 2 * side)])


# ---- ONNX

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(missing), reason=f"{', '.join(missing)} not installed: pip install onnx onnxscript onnxruntime"
)


def written(network: nn.Module, path: Path) -> Any:
    """The ONNX model of a network, written to a file."""
    program = torch.onnx.export(exported(network), (), dynamo=True, input_names=["image"], verbose=False)
    program.save(path)
    return program.model


def in_runtime(path: Path) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options)
    return lambda image: [torch.from_numpy(found) for found in session.run(None, {"image": image.numpy()})]


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_a_file_serves_every_size(tmp_path: Path):
    network = built(TOYS["vit"], out_indices=(0,))
    written(network, tmp_path / "network.onnx")
    assert_right(in_runtime(tmp_path / "network.onnx"), network)


@pytest.mark.slow
@needs_onnx
@pytest.mark.filterwarnings("ignore")
@toys
def test_files_of_all_families_serve_every_size_by_standard_operators(toy, tmp_path: Path):
    network = built(toy)
    model = written(network, tmp_path / "network.onnx")
    assert_right(in_runtime(tmp_path / "network.onnx"), network)
    assert {node.domain for node in model.graph} == {""}
    norms = sum(isinstance(module, nn.LayerNorm) for module in network.modules())
    assert sum(node.op_type == "LayerNormalization" for node in model.graph) >= norms
