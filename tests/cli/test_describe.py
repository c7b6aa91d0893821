"""Counted parameters and multiply-adds against the published figures."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import torch.nn.functional as F

from helpers.counting import counted_together
from helpers.paths import CONFIGS
from mm_vitbackbones.build import families
from mm_vitbackbones.cli import describe as describe_command
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.describe import Description, Level, describe
from mm_vitbackbones.measuring import multiply_adds
from mm_vitbackbones.registry import BACKBONES

pytestmark = pytest.mark.xdist_group("describe")

# type and arch: millions of parameters as the papers print them for the classifier, and those of the classifier
# alone; multiply-adds in G of the dense form for 512x512 and for 800x1280, as the authors' code gives them.
PUBLISHED = {
    ("PVT", "tiny"): (13.2, 0.5145, 11.74, 69.49),
    ("PVT", "small"): (24.5, 0.5145, 23.03, 134.14),
    ("PVT", "medium"): (44.2, 0.5145, 39.51, 221.39),
    ("PVT", "large"): (61.4, 0.5145, 58.08, 323.26),
    ("PVTv2", "b0"): (3.7, 0.257, 3.80, 26.64),
    ("PVTv2", "b1"): (14.0, 0.513, 12.69, 73.21),
    ("PVTv2", "b2_li"): (22.6, 0.513, 19.40, 75.14),
    ("PVTv2", "b2"): (25.4, 0.513, 24.18, 138.65),
    ("PVTv2", "b3"): (45.2, 0.513, 40.81, 226.45),
    ("PVTv2", "b4"): (62.6, 0.513, 59.63, 329.32),
    ("PVTv2", "b5"): (82.0, 0.513, 69.41, 386.16),
}
# Multiply-adds in G of other dense forms for 512x512 and for 800x1280.
DENSE = {
    ("MiT", "b0"): (3.20, 24.32),
    ("MiT", "b1"): (10.43, 64.37),
    ("MiT", "b2"): (20.24, 123.23),
    ("MiT", "b3"): (36.86, 211.03),
    ("MiT", "b4"): (53.47, 305.22),
    ("MiT", "b5"): (69.41, 386.16),
    ("Swin", "tiny"): (25.50, 95.56),
    ("Swin", "small"): (49.22, 187.60),
    ("Swin", "base"): (86.84, 331.06),
    ("Swin", "large"): (193.91, 739.37),
    ("Swin", "base_w12"): (93.37, 357.75),
    ("Swin", "large_w12"): (205.65, 788.19),
}
# Multiply-adds in G of the whole classifiers for 224x224.
CLASSIFIERS = {
    ("PVTv2", "b0"): 0.566,
    ("PVTv2", "b1"): 2.11,
    ("PVTv2", "b2_li"): 3.89,
    ("PVTv2", "b2"): 4.03,
    ("PVTv2", "b3"): 6.90,
    ("PVTv2", "b4"): 10.10,
    ("PVTv2", "b5"): 11.72,
    ("PiT", "ti"): 0.70,
    ("PiT", "xs"): 1.40,
    ("PiT", "s"): 2.87,
    ("PiT", "b"): 12.40,
}


@functools.cache
def described(family: str, arch: str, height: int = 512, width: int = 512, published: bool = False) -> Description:
    """A variant in its dense form or, where there are two, in the published one."""
    form = dict(stem="published", out_indices=(1, 2, 3)) if published and family == "PiT" else {}
    with counted_together():
        return describe(dict(type=family, arch=arch, **form), (height, width))


def test_size_is_512_unless_given():
    assert describe(dict(type="PVTv2", arch="b0")) == described("PVTv2", "b0", 512, 512)


@pytest.mark.parametrize(("family", "arch"), PUBLISHED)
def test_published_figures_of_dense_forms(family, arch):
    parameters, classifier, at_512, at_800 = PUBLISHED[family, arch]
    found = described(family, arch)
    assert found.size == (512, 512)
    assert found.parameters / 1e6 + classifier == pytest.approx(parameters, abs=0.051)
    assert found.multiply_adds / 1e9 == pytest.approx(at_512, abs=0.0051)
    assert described(family, arch, 800, 1280).multiply_adds / 1e9 == pytest.approx(at_800, abs=0.0051)


@pytest.mark.parametrize(("family", "arch"), DENSE)
def test_published_multiply_adds_of_other_dense_forms(family, arch):
    at_512, at_800 = DENSE[family, arch]
    assert described(family, arch).multiply_adds / 1e9 == pytest.approx(at_512, abs=0.0056)
    assert described(family, arch, 800, 1280).multiply_adds / 1e9 == pytest.approx(at_800, abs=0.0056)


@pytest.mark.parametrize(("family", "arch"), CLASSIFIERS)
def test_published_figures_at_224(family, arch):
    found = described(family, arch, 224, 224, published=True)
    head = found.levels[-1].channels * 1000
    assert (found.multiply_adds + head) / 1e9 == pytest.approx(CLASSIFIERS[family, arch], abs=0.0055)


def page_rows() -> list[tuple[str, str, list[str]]]:
    """Family, arch and cells of each row of the table in docs/backbones.md."""
    rows, family = [], ""
    for line in (CONFIGS.parent / "docs/backbones.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and re.match(r"`[a-z0-9]\w*`", cells[1]) and "(" in cells[3]:
            family = cells[0].strip("`").removeprefix("mm_vitbackbones.") or family
            rows.append((family, cells[1].split("`")[1], cells))
    return rows


def test_the_page_lists_every_arch():
    listed = {(family, arch) for family, _, cells in page_rows() for arch in re.findall(r"`(\w+)`", cells[1])}
    assert listed == {(name, arch) for name, cls in families().items() for arch in cls.archs}


@pytest.mark.parametrize(("family", "arch", "cells"), page_rows(), ids=lambda v: v if isinstance(v, str) else "")
def test_listed_figures_are_the_counted_ones(family, arch, cells):
    side = 384 if " at 384" in cells[4] else 224
    dense, small = described(family, arch), described(family, arch, side, side, published=True)
    assert cells[2] == ", ".join(str(level.channels) for level in dense.levels)
    figures = [float(cell.split()[0]) for cell in cells[3:6]]
    measured = [dense.parameters / 1e6, small.multiply_adds / 1e9, dense.multiply_adds / 1e9]
    assert figures == pytest.approx(measured, abs=0.051, rel=0)
    assert figures[1] == pytest.approx(measured[1], abs=0.0051)


def test_operators_that_are_alike_are_counted_each_time_and_give_what_they_give_alone():
    def results(device: str) -> list[torch.Tensor]:
        x, weight = torch.empty(3, 4, device=device), torch.empty(4, 4, device=device)
        first = x @ weight
        again = x @ weight
        turned = weight.t() @ x.t()
        whole = torch.ones(3, 4, dtype=torch.int64, device=device)
        again += torch.ones_like(again)
        return [first, again, turned, whole + 1, whole + 1.0, whole + True, *turned.chunk(2), *turned.max(dim=0)]

    def kinds(tensors: list[torch.Tensor]) -> list[tuple]:
        return [(x.shape, x.stride(), x.dtype) for x in tensors]

    for device in ("meta", "cpu"):
        found: list[torch.Tensor] = []
        assert multiply_adds(lambda device=device, found=found: found.extend(results(device))) == 3 * 3 * 4 * 4
        assert kinds(found) == kinds(results("cpu"))
        assert {x.device.type for x in found} == {device}


def test_attention_is_counted_and_nothing_is_allocated():
    class OneAttention(torch.nn.Module):
        in_channels, out_indices, channels, strides = 16, (0,), (16,), (1,)

        def forward(self, image):
            assert image.is_meta
            tokens = image.flatten(2).transpose(1, 2).unflatten(-1, (2, 8)).transpose(1, 2)
            return (F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(2, 3).reshape_as(image),)

    try:
        BACKBONES.register_module(module=lambda init_cfg: OneAttention(), name="OneAttention")
        assert describe(dict(type="OneAttention"), (5, 6)).multiply_adds == 2 * 30 * 30 * 16
    finally:
        BACKBONES.module_dict.pop("OneAttention")


def test_levels_are_as_declared():
    found = describe(dict(type="PiT", arch="b", out_indices=(0, 2)), (65, 130))
    assert found.levels == (Level(0, 256, 4, 17, 33), Level(2, 512, 16, 5, 9))


@pytest.mark.parametrize(("name", "code"), [("mm_vitbackbones.PVT", 0), ("PVT", 2), ("mmdet.PVT", 2)])
def test_a_class_of_another_scope_is_not_taken_for_ours(name, code, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        f"default_scope = 'mmdet'\nmodel = dict(backbone=dict(type='{name}', arch='tiny'))\n"
    )
    assert run(describe_command.main, [str(tmp_path / "mine.py"), "--size", "64"]) == code
    assert f"model.backbone is {name!r}, and none of" in capsys.readouterr().err or code == 0


def test_a_backbone_by_name_and_by_config(capsys):
    assert run(describe_command.main, ["PVTv2", "--arch", "b2", "--size", "224"]) == 0
    by_name = capsys.readouterr().out
    for part in ("PVTv2 b2, image 224x224", "24.85 M (24,849,856)", "4.03 G", "    3       512      32  7x7"):
        assert part in by_name
    config = CONFIGS / "retinanet_pvt_v2_b2_coco.py"
    assert run(describe_command.main, [str(config), "--size", "224", "224"]) == 0
    by_config = capsys.readouterr().out
    assert by_config.splitlines()[0] == "retinanet_pvt_v2_b2_coco.py: PVTv2 b2, image 224x224"
    assert by_config.splitlines()[1:3] == by_name.splitlines()[1:3]
    assert run(describe_command.main, ["PVT"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if "image" in line] == [
        f"PVT {arch}" for arch in ("tiny", "small", "medium", "large")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PVTv3"], "there is no backbone and no recipe 'PVTv3'; did you mean"),
        (["Backbone"], "there is no backbone and no recipe 'Backbone'"),
        (["PVT", "--arch", "smal"], "did you mean 'small'"),
        (["PVT", "--arch", "tiny", "--size", "16"], "at least 32"),
        (["PVT", "--size", "1", "2", "3"], "--size takes"),
        (["no_such.py"], "there is no config no_such.py"),
        ([str(CONFIGS / "retinanet_pvt_s_coco.py"), "--arch", "tiny"], "--arch goes with"),
        ([str(CONFIGS / "_base_/default_runtime.py")], "model.backbone is None"),
    ],
)
def test_bad_targets_are_one_line(arguments, message, capsys):
    assert run(describe_command.main, arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
