"""Our networks against the official ones: recorded features of toy-size networks, golden values of whole ones."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from helpers.official import golden_image, golden_weight, load_fixture, relative_error
from helpers.toys import RECORDED, TOYS
from mm_vitbackbones.backbones import PVT, CoaT, MiT, PiT, PVTv2, Swin
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.recognise import FAMILIES

# mean, population standard deviation, and the elements [0, 0, 0, 0], [0, C//2, H//2, W//2], [0, -1, -1, -1] of each
# level, as the authors' code (for PiT) and their dense code (for the others) give them for an image of this size.
GOLDEN = {
    (CoaT, "lite_tiny", (128, 160)): [
        (-0.0268535, 3.52164, -2.43494, -2.26293, -2.17971),
        (-0.0660351, 3.25601, -0.914822, -1.63297, 1.38761),
        (-0.033502, 3.08721, -3.20051, -1.31836, 5.62177),
        (-0.0359849, 2.88291, 0.129763, -6.49556, -3.79994),
    ],
    (CoaT, "tiny", (128, 160)): [
        (-0.00677053, 3.3345, 0.829315, 1.56351, -0.362149),
        (-286.602, 3840.72, 145.669, -45.0431, -14.131),
        (5.42513, 829.994, 10.3015, -516.293, 26.8287),
        (-4.68765, 450.413, 49.5765, -11.0696, 20.2518),
    ],
    (PVT, "tiny", (128, 160)): [
        (0.101043, 1.48045, -0.41218, -1.81596, 0.682162),
        (-0.0525269, 1.61555, -1.2355, -0.391113, 0.0537295),
        (-0.0399286, 1.93097, -1.71993, -0.314054, 0.00780907),
        (-0.00502605, 1.95473, -2.43295, 0.75816, -0.422008),
    ],
    (PVTv2, "b0", (128, 160)): [
        (0.00582407, 1.00504, -1.36106, 0.0664353, 0.714336),
        (0.00182212, 1.00294, -0.68079, -2.5308, 1.21581),
        (0.000739462, 0.998176, -0.198225, 0.856686, 1.30078),
        (-0.00510559, 1.00769, -0.462036, 0.963351, -1.24606),
    ],
    (PVTv2, "b2_li", (128, 160)): [
        (0.0056865, 1.01047, -1.54222, -0.799049, -0.524179),
        (0.00060587, 1.00487, -0.237401, -2.32414, 1.11691),
        (-0.00330482, 0.994193, -0.455284, -0.0735156, 0.880428),
        (0.000803479, 1.00479, 0.458459, -1.03644, -0.636448),
    ],
    (MiT, "b0", (128, 160)): [
        (0.00320481, 1.01568, -1.29001, 0.395065, 1.0498),
        (0.00236004, 0.997464, 0.333381, -0.639095, -0.461327),
        (0.000797111, 1.00221, 0.207271, 0.845313, 0.45469),
        (-0.00411594, 0.998844, -0.480134, 1.07764, -1.12451),
    ],
    (MiT, "b0", (130, 165)): [
        (0.010199, 1.01586, 1.51615, -0.769339, -0.544479),
        (-0.00089886, 0.99971, 0.518343, -0.440262, -1.51944),
        (0.00268683, 0.98972, 0.404306, -0.693525, -0.336041),
        (-0.00227916, 1.00749, 0.00506519, 0.534394, -0.466935),
    ],
    (PiT, "ti", (224, 224)): [
        (-0.189082, 1.16201, -0.0257937, 0.903083, 2.01985),
        (-0.232227, 2.75705, -4.64876, -4.32033, -2.82999),
        (-0.0784641, 3.19918, 3.25482, -2.5738, -3.74628),
    ],
    (Swin, "tiny", (128, 160)): [
        (0.00836523, 0.99433, 0.00594268, -0.967311, 1.02365),
        (0.00559938, 1.00487, 0.409309, -0.717527, -0.00149185),
        (-0.00249709, 1.00876, -0.868779, 1.36329, -0.409074),
        (0.00208088, 1.00043, 1.54167, 0.0270249, 0.855238),
    ],
    (Swin, "tiny", (130, 165)): [
        (0.00861164, 0.994313, -0.0665889, -1.57951, 1.08936),
        (0.00640199, 1.00551, -0.66939, -1.38361, -0.756622),
        (-0.00292475, 1.00736, -0.0775049, 0.801413, -0.154375),
        (0.000917597, 1.00104, 1.41733, 0.612394, -0.21362),
    ],
}

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
