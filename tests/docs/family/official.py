"""The official code of the toy family, as its authors might have written it, and what is recorded of it.

python official.py FOLDER writes pool.npz, pool_names.txt, pool_golden.txt and pool_parameters.txt.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.official import golden_image, golden_weight

TINY = ((1, 1, 2, 1), (16, 32, 48, 64))
TOY = ((1, 2, 1, 1), (8, 16, 20, 32))


class Embed(nn.Module):
    def __init__(self, before: int, dim: int, size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, dim, size, stride, size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Mixer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return self.mix((F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x).permute(0, 2, 3, 1))


class Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.mixer, self.norm2 = nn.LayerNorm(dim, 1e-6), Mixer(dim), nn.LayerNorm(dim, 1e-6)
        layers = [("fc1", nn.Linear(dim, 4 * dim)), ("act", nn.GELU()), ("fc2", nn.Linear(4 * dim, dim))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PoolNet(nn.Module):
    def __init__(self, depths: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__()
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            embed = Embed((3, *dims)[i], dim, *((7, 4) if i == 0 else (3, 2)))
            setattr(self, f"embed{i + 1}", embed)
            setattr(self, f"layer{i + 1}", nn.Sequential(*(Layer(dim) for _ in range(depth))))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(dim, 1e-6))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for i in "1234":
            x = getattr(self, f"norm{i}")(getattr(self, f"layer{i}")(getattr(self, f"embed{i}")(x)))
            x = x.permute(0, 3, 1, 2)
            levels.append(x)
        return levels


@torch.no_grad()
def main(folder: Path) -> None:
    torch.manual_seed(0)
    toy = PoolNet(*TOY).eval()
    for parameter in toy.parameters():
        parameter.normal_(std=0.3)
    arrays = {f"state/{name}": value for name, value in toy.state_dict().items()}
    for i, size in enumerate([(64, 64), (70, 90)]):
        arrays[f"input{i}"] = torch.randn(1, 3, *size)
        arrays |= {f"feature{i}_{level}": value for level, value in enumerate(toy(arrays[f"input{i}"]))}
    np.savez(folder / "pool.npz", **{name: value.numpy() for name, value in arrays.items()})

    tiny = PoolNet(*TINY).eval()
    shapes = {name: value.shape for name, value in tiny.state_dict().items()}
    lines = [f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()]
    (folder / "pool_names.txt").write_text("# From the official code.\n\n[tiny official]\n" + "\n".join(lines) + "\n")

    tiny.load_state_dict({name: golden_weight(name, tuple(shape)) for name, shape in shapes.items()})
    golden = []
    for level in tiny(golden_image(128, 160)):
        _, channels, height, width = level.shape
        picked = level[0, 0, 0, 0], level[0, channels // 2, height // 2, width // 2], level[0, -1, -1, -1]
        golden.append(tuple(float(f"{x:.6g}") for x in (level.mean(), level.std(correction=0), *picked)))
    (folder / "pool_golden.txt").write_text(f'    golden={{("tiny", (128, 160)): {golden}}},\n')
    count = sum(parameter.numel() for parameter in tiny.parameters())
    (folder / "pool_parameters.txt").write_text(f'    parameters={{"tiny": {count:_}}},\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
