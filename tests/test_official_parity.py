"""Our networks beside the official ones: recorded features of toy-size networks, golden values of whole ones."""

from __future__ import annotations

import re

import pytest
import torch
from official import build_toy, golden_image, golden_weight, load_fixture, relative_error

from mm_vitbackbones.backbones import PVT, CoaT, PVTv2
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.families import FAMILIES

FIXTURES = ["coat", "coat_lite", "pvt", "pvt_v2", "pvt_v2_linear"]

# mean, population standard deviation, and the elements [0, 0, 0, 0], [0, C//2, H//2, W//2], [0, -1, -1, -1] of each
# level, as the authors' dense code gives them for an image of 128x160.
GOLDEN = {
    (CoaT, "lite_tiny"): [
        (-0.0268535, 3.52164, -2.43494, -2.26293, -2.17971),
        (-0.0660351, 3.25601, -0.914822, -1.63297, 1.38761),
        (-0.033502, 3.08721, -3.20051, -1.31836, 5.62177),
        (-0.0359849, 2.88291, 0.129763, -6.49556, -3.79994),
    ],
    (CoaT, "tiny"): [
        (-0.00677053, 3.3345, 0.829315, 1.56351, -0.362149),
        (-286.602, 3840.72, 145.669, -45.0431, -14.131),
        (5.42513, 829.994, 10.3015, -516.293, 26.8287),
        (-4.68765, 450.413, 49.5765, -11.0696, 20.2518),
    ],
    (PVT, "tiny"): [
        (0.101043, 1.48045, -0.41218, -1.81596, 0.682162),
        (-0.0525269, 1.61555, -1.2355, -0.391113, 0.0537295),
        (-0.0399286, 1.93097, -1.71993, -0.314054, 0.00780907),
        (-0.00502605, 1.95473, -2.43295, 0.75816, -0.422008),
    ],
    (PVTv2, "b0"): [
        (0.00582407, 1.00504, -1.36106, 0.0664353, 0.714336),
        (0.00182212, 1.00294, -0.68079, -2.5308, 1.21581),
        (0.000739462, 0.998176, -0.198225, 0.856686, 1.30078),
        (-0.00510559, 1.00769, -0.462036, 0.963351, -1.24606),
    ],
    (PVTv2, "b2_li"): [
        (0.0056865, 1.01047, -1.54222, -0.799049, -0.524179),
        (0.00060587, 1.00487, -0.237401, -2.32414, 1.11691),
        (-0.00330482, 0.994193, -0.455284, -0.0735156, 0.880428),
        (0.000803479, 1.00479, 0.458459, -1.03644, -0.636448),
    ],
}

SHARED_AGAIN = r"\.(cpe|crpe)\.|\.mlp[34]\."


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_features_of_the_official_networks(name, grad):
    fixture = load_fixture(name)
    backbone = build_toy(fixture).eval()
    load_pretrained(backbone, fixture.state)
    for image, features in zip(fixture.inputs, fixture.features, strict=True):
        with torch.set_grad_enabled(grad):
            outputs = backbone(image)
        for output, feature in zip(outputs, features, strict=True):
            assert output.shape == feature.shape
            assert relative_error(output, feature) <= 1e-5


@pytest.mark.parametrize("name", FIXTURES)
def test_training_gives_the_same_features_and_finite_gradients(name):
    fixture = load_fixture(name)
    backbone = build_toy(fixture).train()
    load_pretrained(backbone, fixture.state)
    outputs = backbone(fixture.inputs[1])
    for output, feature in zip(outputs, fixture.features[1], strict=True):
        assert relative_error(output, feature) <= 1e-5
    sum(output.square().sum() for output in outputs).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in backbone.parameters())


@pytest.mark.parametrize(("family", "arch"), GOLDEN, ids=lambda v: getattr(v, "__name__", v))
def test_golden_values(family, arch):
    backbone = family(arch=arch).eval()
    layout = next(layout for layout in FAMILIES[family.__name__].layouts if layout.name == "official")
    names, unknown = layout.to_theirs(backbone.state_dict())
    assert not unknown
    # What blocks share has its value by the stage's name, without the names that each block has for it.
    shapes = {name: tuple(value.shape) for name, value in names.items() if not re.search(SHARED_AGAIN, name)}
    if family is PVT:
        shapes["pos_embed4"] = (1, 50, 512)  # with the class token's row, as published
    load_pretrained(backbone, {name: golden_weight(name, shape) for name, shape in shapes.items()})
    with torch.no_grad():
        outputs = backbone(golden_image(128, 160))
    for output, (mean, std, *elements) in zip(outputs, GOLDEN[family, arch], strict=True):
        _, channels, height, width = output.shape
        rel = 2e-5 if std > 100 else 0  # CoaT's parallel blocks amplify these weights; six digits are recorded
        assert float(output.mean()) == pytest.approx(mean, abs=2e-5, rel=rel)
        assert float(output.std(correction=0)) == pytest.approx(std, abs=2e-5, rel=rel)
        actual = [output[0, 0, 0, 0], output[0, channels // 2, height // 2, width // 2], output[0, -1, -1, -1]]
        assert [float(value) for value in actual] == pytest.approx(elements, abs=1e-4, rel=rel)
