"""The small experiment with layer scale: what it trains and what it measures, on a toy of a toy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mm_vitbackbones.data import mini
from tools.experiments import layerscale
from tools.experiments.layerscale import Classifier, Run


@pytest.fixture
def crops(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Bright and dark images."""
    monkeypatch.setattr(layerscale, "BATCH", 8)
    monkeypatch.setattr(layerscale, "WARMUP", 2)
    labels = torch.arange(16) % 2
    return torch.randn(16, 3, 32, 32) * 0.1 + (2.0 * labels - 1).view(-1, 1, 1, 1), labels


def trained(crops: tuple[Tensor, Tensor], scaled: bool, steps: int = 12) -> tuple[Classifier, Run]:
    torch.manual_seed(0)
    network = Classifier(2, scaled, classes=2, width=16)
    return network, layerscale.train(network, crops, steps, 0, scaled)


def test_networks_differ_in_layer_scale_alone() -> None:
    states = []
    for scaled in (True, False):
        torch.manual_seed(0)
        states.append(Classifier(2, scaled, classes=2, width=16).state_dict())
    for name, tensor in states[0].items():
        if name.endswith("gamma"):
            assert tensor.eq(0.1).all()
            assert states[1][name].eq(1).all()
        else:
            assert torch.equal(tensor, states[1][name])


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
def test_a_training_learns_and_measures_each_block(crops: tuple[Tensor, Tensor], scaled: bool) -> None:
    network, run = trained(crops, scaled)
    assert run.losses[-1] < run.losses[0]
    assert layerscale.accuracy(network, crops) == 1
    for norms in (run.of_results, run.of_weights):
        assert torch.tensor(norms).shape == (12, 2)
        assert all(norm > 0 for step in norms for norm in step)
    assert (run.factors == 1) is not scaled


def test_gradients_are_those_of_the_results_of_blocks(crops: tuple[Tensor, Tensor]) -> None:
    network, images = Classifier(2, True, classes=2, width=16).train(), crops[0]
    norms = layerscale.GradientNorms(network)
    F.cross_entropy(network(images), crops[1]).backward()
    levels = network.backbone.features(images, blocks=[0, 1])
    grid = levels[1].grid
    loss = F.cross_entropy(network.head(network.backbone.norm(grid).mean((1, 2))), crops[1])
    (expected,) = torch.autograd.grad(loss, grid)
    assert norms.of_results[1] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert norms.of_results[0] != norms.of_results[1]
    block = network.blocks[0]
    weights = [block.attn.qkv, block.attn.proj_l, block.attn.proj_w, block.attn.proj, block.ffn.fc1, block.ffn.fc2]
    squares = sum(float(part.weight.grad.square().sum()) for part in weights)
    assert layerscale.norm_of_weights(block) == pytest.approx(squares**0.5, rel=1e-4)


def test_crops_show_the_objects_of_the_scenes() -> None:
    images, labels = layerscale.crops("smoke", 2)
    instances = [x for index in range(2) for x in mini.draw_scene("smoke", index).instances if not x.crowd]
    assert labels.tolist() == [instance.thing for instance in instances]
    assert images.shape == (len(instances), 3, 32, 32)
    assert images.abs().max() <= 2


def test_the_table_holds_every_network() -> None:
    norms = [[4.0, 2.0, 1.0]] * 20
    runs = [Run(3, scaled, seed, [0.5] * 20, norms, norms, 0.75, 0.1) for seed in (0, 1) for scaled in (True, False)]
    lines = layerscale.table(runs).splitlines()
    assert lines[2] == "| 3 | with layer scale | 4.00 | 4.00 | 0.50 0.50 | 75 75 | 0.100 0.100 |"
    assert len(lines) == 4
