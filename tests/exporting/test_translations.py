"""Operations in ONNX: translated as they are, or decomposed first, and right either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.toys import TOYS
from mm_vitbackbones.exporting import checking, export, onnx_files, packages, programs

for name in packages.NEEDED:
    pytest.importorskip(name)


class Translated(nn.Module):
    """Every operation of PyTorch that has a translation here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(3, 4, (2, 3), stride=(2, 3), padding=(0, 1), output_padding=(0, 2), groups=1)
        self.norm = nn.BatchNorm2d(4)
        for tensor in (*self.norm.parameters(), self.norm.running_mean, self.norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, image: Tensor) -> Tensor:
        map = 2 - self.norm(self.conv(image))
        batch, _, height, width = map.shape
        tokens = map.flatten(2).mT
        one, other = tokens.chunk(2, dim=-1)
        grid = torch.cat((other, one), dim=-1).mT.unflatten(2, (height, width))
        columns = grid.permute(0, 2, 1, 3).flatten(0, 1)  # the last size is free
        turned = columns.unflatten(0, (batch, height)).permute(0, 2, 1, 3)
        large = (turned > 0) & (map > 1)
        part = large.to(torch.float32).mul(0.5).detach_()
        return turned + part + map.mean((2, 3), keepdim=True).expand_as(map).view_as(map)


class Decomposed(nn.Module):
    """Others: chunks of different sizes, and a norm without weights, by what the batch is like."""

    def forward(self, image: Tensor) -> Tensor:
        one, other = image.chunk(2, dim=1)
        return F.batch_norm(torch.cat((other, one), dim=1), None, None, training=True).narrow(1, 0, 2)


class Resized(nn.Module):
    """In an image of 13x17, one of the 17 places is a cell's centre: 8.5 * 7 / 17 = 3.5."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 7, 7))

    def forward(self, image: Tensor) -> Tensor:
        return image + F.interpolate(self.table, size=image.shape[2:], mode="bicubic", align_corners=False)


SIZES = ((2, 3, 33, 47), (3, 3, 40, 32))
"""The traced one, and another."""


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that were decomposed."""
    found: list[Any] = []
    decompose = torch.export.ExportedProgram.run_decompositions

    def noted(self: Any, *arguments: Any) -> Any:
        found.append(self)
        return decompose(self, *arguments)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", noted)
    return found


def written(
    module: nn.Module, path: Path, fixed: bool, size: Sequence[int] = SIZES[0]
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    program = programs.trace(module.eval(), torch.randn(size), fixed)
    onnx_files.write(program, path, ["map"], 20, {})
    return onnx_files.Session(path)


@pytest.mark.parametrize(("kind", "made_simpler", "sizes"), [(Translated, 0, SIZES), (Decomposed, 1, SIZES[:1])])
def test_operations_are_right_and_decomposed_where_it_is_needed(
    kind: type[nn.Module], made_simpler: int, sizes: Any, decomposed: list[Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = kind()
    run = written(module, tmp_path / "toy.onnx", fixed=len(sizes) == 1)
    assert len(decomposed) == made_simpler
    for size in sizes:
        image = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(run(image)[0], module(image), rtol=1e-5, atol=1e-5)


def test_resized_tables_are_those_of_pytorch(tmp_path: Path) -> None:
    module, image = Resized(), torch.zeros(1, 3, 13, 17)
    run = written(module, tmp_path / "toy.onnx", fixed=True, size=image.shape)
    with torch.no_grad():
        torch.testing.assert_close(run(image)[0], module(image), rtol=1e-5, atol=1e-5)


class Placed(nn.Module):
    """A table that grows with the image."""

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = (torch.arange(side, dtype=image.dtype) for side in image.shape[2:])
        return image + torch.stack(((rows[:, None] * columns).sqrt(), rows[:, None] - columns, rows[:, None] + columns))


def test_large_tables_of_a_fixed_size_are_not_in_the_file(tmp_path: Path) -> None:
    module, image = Placed(), torch.randn(1, 3, 96, 128)
    run = written(module, tmp_path / "toy.onnx", fixed=True, size=image.shape)
    assert (tmp_path / "toy.onnx").stat().st_size < 10_000  # of 150 kB
    torch.testing.assert_close(run(image)[0], module(image))


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True], ids=["free", "fixed"])
@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS.keys())
def test_no_family_needs_to_be_decomposed(
    toy: Callable[[], nn.Module],
    fixed: bool,
    decomposed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import onnx

    monkeypatch.setattr(checking, "UNSEEN", ((1, 32, 32), (3, 33, 47), (1, 201, 251)))
    torch.manual_seed(0)
    network = toy().eval()
    for parameter in network.parameters():
        if parameter.std() < 0.05:  # of a table, a token; a constant
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.05)
    done = export(network, tmp_path / "toy.onnx", size=(101, 133), fixed=fixed)
    assert done.error < 1e-4
    assert not decomposed
    nodes = onnx.load(tmp_path / "toy.onnx").graph.node
    assert {node.domain for node in nodes} == {""}
    norms = sum(isinstance(module, nn.LayerNorm) for module in network.modules())
    assert sum(node.op_type == "LayerNormalization" for node in nodes) >= norms
