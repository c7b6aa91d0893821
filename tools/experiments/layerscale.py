"""Depth against layer scale, in miniature: ``python -m tools.experiments.layerscale --out docs``.

CaiT of depth 6, 12 and 24 at toy width learns to name the objects of ``mini`` in crops of 32x32 pixels, with layer
scale by the paper's rule and without it. Measured are the gradients of each block's result and of its weights.
docs/layerscale.md says what came out.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.backbones import CaiT
from mm_vitbackbones.canvas import new_figure
from mm_vitbackbones.data import mini
from mm_vitbackbones.files import write_whole
from mm_vitbackbones.layers import Block

SIDE, PATCH = 32, 4
DEPTHS = (6, 12, 24)
WIDTH, HEADS = 48, 4
BATCH, RATE, DECAY, WARMUP = 16, 1e-3, 0.05, 20
"""Of AdamW: images of a step, the highest rate, weight decay, and steps in which the rate rises."""
FIRST = 10
"""Steps that count as the first ones, and as the last ones."""

Crops = tuple[Tensor, Tensor]
"""Images (N, 3, SIDE, SIDE) and their labels (N,)."""


def crops(split: str, scenes: int) -> Crops:
    """The objects of the first scenes of a split of ``mini``, each in a square of its own."""
    images, labels = [], []
    for index in range(scenes):
        scene = mini.draw_scene(split, index)
        for instance in scene.instances:
            if not instance.crowd:
                images.append(square(in_colour(scene.image), mini.to_box(instance.mask)))
                labels.append(instance.thing)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (pixels - 127.5) / 64, torch.tensor(labels)


def in_colour(image: np.ndarray) -> np.ndarray:
    """(H, W, 3), of a scene in any form."""
    return np.stack([image] * 3, axis=-1) if image.ndim == 2 else image[..., :3]


def square(image: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The square around a box, as far as the image goes, at SIDE x SIDE pixels."""
    x, y, width, height = box
    half = max(width, height) / 2
    rows = slice(max(0, round(y + height / 2 - half)), round(y + height / 2 + half))
    columns = slice(max(0, round(x + width / 2 - half)), round(x + width / 2 + half))
    return cv2.resize(image[rows, columns], (SIDE, SIDE), interpolation=cv2.INTER_AREA)


class Classifier(nn.Module):
    """The mean of CaiT's patches after its last block, and a linear map.

    Args:
        scaled: with layer scale as CaiT has it for this depth; otherwise all factors are one, and stay so.
    """

    def __init__(self, depth: int, scaled: bool, classes: int, width: int = WIDTH) -> None:
        super().__init__()
        arch = dict(dim=width, num_heads=HEADS, depth=depth, patch_size=PATCH, pretrain_grid=SIDE // PATCH)
        self.backbone = CaiT(arch, taps=(-1,), pyramid=None, final_norm=True)
        self.head = nn.Linear(width, classes)
        if not scaled:
            for block in self.blocks:
                for scale in (block.ls1, block.ls2):
                    cast(Any, scale).gamma.requires_grad_(False).fill_(1)

    @property
    def blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.backbone.blocks]

    def forward(self, image: Tensor) -> Tensor:
        (map,) = self.backbone(image)
        return self.head(map.mean((2, 3)))


class GradientNorms:
    """The norm of the gradient of what each block returns, of the latest backward pass."""

    def __init__(self, network: Classifier) -> None:
        self.of_results = [0.0] * len(network.blocks)
        for index, block in enumerate(network.blocks):
            block.register_forward_hook(self._watch(index))

    def _watch(self, index: int) -> Callable[..., None]:
        def keep(gradient: Tensor) -> None:
            self.of_results[index] = float(gradient.norm())

        def after(block: nn.Module, inputs: Any, result: Tensor) -> None:
            if result.requires_grad:
                result.register_hook(keep)

        return after


def norm_of_weights(block: Block) -> float:
    """Of the gradients of its linear maps together."""
    maps = [part for part in block.modules() if isinstance(part, nn.Linear)]
    return float(torch.stack([cast(Tensor, part.weight.grad).norm() for part in maps]).norm())


@dataclass
class Run:
    """What one training has shown."""

    depth: int
    scaled: bool
    seed: int
    losses: list[float]
    of_results: list[list[float]]
    """For each step and block, the norm of the gradient of the block's result."""
    of_weights: list[list[float]]
    """The same of the block's weights."""
    accuracy: float = 0.0
    """Share of the held-out crops that are named rightly."""
    factors: float = 0.0
    """The mean of the absolute factors of layer scale at the end."""

    @property
    def name(self) -> str:
        return "with layer scale" if self.scaled else "without"


def rate(step: int, steps: int) -> float:
    """Of learning: it rises in the first steps, and falls along half a cosine."""
    return RATE * min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)


def train(network: Classifier, data: Crops, steps: int, seed: int, scaled: bool) -> Run:
    """Trains a network with AdamW on random crops, of which half are mirrored."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    norms, blocks = GradientNorms(network), network.blocks
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE, weight_decay=DECAY)
    run = Run(len(blocks), scaled, seed, [], [], [])
    network.train()
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        mirrored = (torch.rand(BATCH, generator=generator) < 0.5).view(-1, 1, 1, 1)
        batch = torch.where(mirrored, images[chosen].flip(3), images[chosen])
        loss = F.cross_entropy(network(batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        optimizer.step()
        run.losses.append(float(loss.detach()))
        run.of_results.append([*norms.of_results])
        run.of_weights.append([norm_of_weights(block) for block in blocks])
    factors = [cast(Any, scale).gamma.detach() for block in blocks for scale in (block.ls1, block.ls2)]
    run.factors = float(torch.cat(factors).abs().mean())
    return run


@torch.no_grad()
def accuracy(network: Classifier, data: Crops) -> float:
    """The share of crops that are named rightly."""
    network.eval()
    right = [network(x).argmax(1) == y for x, y in zip(*(part.split(BATCH) for part in data), strict=True)]
    return float(torch.cat(right).float().mean())


# ---- what is shown


def mean_of_blocks(runs: Sequence[Run], field: str, steps: slice) -> list[float]:
    """Of each block, the geometric mean over steps and seeds."""
    logs = torch.tensor([getattr(run, field)[steps] for run in runs]).clamp_min(1e-30).log()
    return logs.mean((0, 1)).exp().tolist()


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seeds alone."""
    keys = dict.fromkeys((run.depth, run.scaled) for run in runs)
    return [[run for run in runs if (run.depth, run.scaled) == key] for key in keys]


def table(runs: Sequence[Run], first: int = FIRST) -> str:
    """In Markdown."""
    lines = [
        "| depth | layer scale | first / last, first steps | later | loss at the end | held out, % | factors |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for group in groups(runs):
        ratios = []
        for steps in (slice(0, first), slice(first, None)):
            norms = mean_of_blocks(group, "of_results", steps)
            ratios.append(f"{norms[0] / norms[-1]:.2f}")
        tail = [sum(run.losses[-first:]) / first for run in group]
        held_out = [100 * run.accuracy for run in group]
        cells = [
            str(group[0].depth),
            group[0].name,
            *ratios,
            " ".join(f"{loss:.2f}" for loss in tail),
            " ".join(f"{share:.0f}" for share in held_out),
            " ".join(f"{run.factors:.3f}" for run in group),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(runs: Sequence[Run], path: Path) -> None:
    """The gradients of the blocks' results and weights against the block, at all depths, as a PNG file."""
    depths = [*dict.fromkeys(run.depth for run in runs)]
    figure = new_figure(3 * len(depths), 4.4)
    panels = figure.subplots(2, len(depths), squeeze=False, sharey="row")
    for group in groups(runs):
        column = depths.index(group[0].depth)
        for row, (field, what) in enumerate((("of_results", "results"), ("of_weights", "weights"))):
            panel = panels[row][column]
            for steps, style in ((slice(0, FIRST), ":"), (slice(FIRST, None), "-")):
                label = f"{group[0].name}{', first steps' if style == ':' else ''}"
                colour = "C0" if group[0].scaled else "C3"
                norms = mean_of_blocks(group, field, steps)
                panel.plot(range(1, len(norms) + 1), norms, style, color=colour, label=label, linewidth=1.2)
            panel.set_yscale("log")
            panel.tick_params(labelsize=7)
            if row == 0:
                panel.set_title(f"{group[0].depth} blocks", fontsize=9)
            else:
                panel.set_xlabel("block", fontsize=8)
            if column == 0:
                panel.set_ylabel(f"gradient of the {what}", fontsize=8)
    panels[0][0].legend(fontsize=6)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=75)
    write_whole(path, stream.getvalue())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Gradients by depth with layer scale and without, in miniature.")
    parser.add_argument("--steps", type=int, default=350, help="of each training (350)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each network (2)")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the plot goes: layerscale.png")
    args = parser.parse_args(argv)
    data, held_out = crops("training", mini.SPLITS["training"]), crops("validation", mini.SPLITS["validation"])
    print(f"{len(data[1])} crops to learn from, {len(held_out[1])} held out, {torch.get_num_threads()} thread(s)")
    runs = []
    for seed in range(args.seeds):
        for depth in args.depths:
            for scaled in (True, False):
                torch.manual_seed(seed)  # the same weights with layer scale and without
                network, start = Classifier(depth, scaled, len(mini.THINGS)), time.thread_time()
                run = train(network, data, args.steps, seed, scaled)
                run.accuracy = accuracy(network, held_out)
                runs.append(run)
                seconds = time.thread_time() - start
                print(f"{depth} {run.name}: {run.losses[-1]:.2f}, {run.accuracy:.2f}, {seconds:.0f} s", flush=True)
    print(table(runs))
    if args.out:
        plot(runs, args.out / "layerscale.png")


if __name__ == "__main__":
    main()
