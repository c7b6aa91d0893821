"""Our networks against the official ones: recorded features of toy-size networks, golden values of whole ones."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from helpers.official import golden_image, golden_weight, load_fixture, relative_error
from helpers.toys import BY_FAMILY, RECORDED, TOYS
from mm_vitbackbones.backbones import PVT, PiT
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES

GOLDEN = {(family.network, *of): levels for family in BY_FAMILY.values() for of, levels in family.golden.items()}

SHARED_AGAIN = r"\.(cpe|crpe)\.|\.mlp[34]\."


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_features_of_the_official_networks(name, grad):
    fixture = load_fixture(name)
    backbone = TOYS[name].official().eval()
    load_pretrained(backbone, fixture.state)
    for image, features in zip(fixture.inputs, fixture.features, strict=True):
        with torch.set_grad_enabled(grad):
            outputs = backbone(image)
        for output, feature in zip(outputs, features, strict=True):
            assert output.shape == feature.shape
            assert relative_error(output, feature) <= 1e-5


@pytest.mark.parametrize("name", RECORDED)
def test_training_gives_the_same_features_and_finite_gradients(name):
    fixture = load_fixture(name)
    backbone = TOYS[name].official().train()
    load_pretrained(backbone, fixture.state)
    outputs = backbone(fixture.inputs[-1])
    for output, feature in zip(outputs, fixture.features[-1], strict=True):
        assert relative_error(output, feature) <= 1e-5
    sum(output.square().sum() for output in outputs).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in backbone.parameters())


@pytest.mark.parametrize(("family", "arch", "size"), GOLDEN, ids=lambda v: getattr(v, "__name__", str(v)))
def test_golden_values_of_the_official_networks(family, arch, size):
    published = dict(stem="published", out_indices=(1, 2, 3)) if family is PiT else {}
    backbone = family(arch=arch, **published).eval()
    layout = next(layout for layout in FAMILIES[family.__name__].layouts if layout.name == "official")
    names, unknown = layout.to_theirs(backbone.state_dict())
    assert not unknown
    # What blocks share has its value by the stage's name, without the names that each block has for it.
    shapes = {
        name: tuple(value.shape)
        for name, value in names.items()
        if value.is_floating_point() and not re.search(SHARED_AGAIN, name)
    }
    if family is PVT:
        shapes["pos_embed4"] = (1, 50, 512)  # with the class token's row, as published
    load_pretrained(backbone, {name: golden_weight(name, shape) for name, shape in shapes.items()})
    with torch.no_grad():
        outputs = backbone(golden_image(*size))
    for output, (mean, std, *elements) in zip(outputs, GOLDEN[family, arch, size], strict=True):
        _, channels, height, width = output.shape
        rel = 2e-5 if std > 100 else 0  # CoaT's parallel blocks amplify these weights; six digits are recorded
        assert float(output.mean()) == pytest.approx(mean, abs=2e-5, rel=rel)
        assert float(output.std(correction=0)) == pytest.approx(std, abs=2e-5, rel=rel)
        actual = [output[0, 0, 0, 0], output[0, channels // 2, height // 2, width // 2], output[0, -1, -1, -1]]
        assert [float(value) for value in actual] == pytest.approx(elements, abs=1e-4, rel=rel)


def test_the_aligned_pit_is_the_published_one_on_the_padded_image():
    """With 4 pixels of zeros on all sides, 28x28 published patches have their centres at 8i + 4."""
    fixture = load_fixture("pit")
    aligned, published = TOYS["pit"].official(stem="aligned").eval(), TOYS["pit"].official().eval()
    load_pretrained(aligned, fixture.state)
    load_pretrained(published, fixture.state)
    image = torch.randn(2, 3, 92, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = aligned(image)
        # Up to a multiple of 8 pixels at the bottom, then half of what a patch is larger than its step.
        expected = published(F.pad(image, (4, 4, 4, 4 + 4)))
    for output, feature in zip(outputs, expected, strict=True):
        assert output.shape == feature.shape
        assert relative_error(output, feature) <= 1e-5
