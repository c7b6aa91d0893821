"""Every field of every spec and every argument of every family takes what its type says, and nothing else."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from helpers.junk import JUNK, NO_BOOL, NO_INTEGER, NO_LIST, NO_NUMBER
from helpers.toys import BY_FAMILY, TOYS
from mm_vitbackbones.backbones import PVT, MiT, PiT, PVTv2, Swin
from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.build import build_backbone, families
from mm_vitbackbones.errors import ArgumentError

ONE_OF_EACH = {name: next(iter(family.toys.values())) for name, family in BY_FAMILY.items()}
"""A toy of each family."""

WRONG = {
    "in_channels": (*NO_INTEGER, 0, -1),
    "out_indices": (*NO_LIST, (), (0, 0), (1, 0), (0, 9), (-1,)),
    "frozen_stages": (*NO_INTEGER, -2, 99),
    "norm_eval": NO_BOOL,
    "with_cp": (*JUNK, 1, "blocks", [True]),
    "drop_path_rate": (*NO_NUMBER, -0.1, 1, 1.0),
    "norm_eps": tuple(value for value in (*NO_NUMBER, 0, -1e-6) if value is not None),
    "stem": (*JUNK, True, "official", ["aligned"]),
    "taps": (*NO_LIST, (), (0, 0), (1, 0), (0, 9), (-9,)),
    "pyramid": (*JUNK[1:], True, "pyramids", ["simple"]),
    "final_norm": NO_BOOL,
    "with_class_token": NO_BOOL,
    "patch_size": (*NO_INTEGER, 0, -1),
    "init_cfg": ("pvt.pth", 3, {}, dict(checkpoint="pvt.pth"), ["pvt.pth"], [dict(type="Constant"), {}]),
    "adapters": (*JUNK[1:3], *JUNK[4:], True, [8], dict(ranks=4), dict(rank=0), dict(rank=8.0), dict(alpha=0)),
    "arch": tuple(
        value for value in (*JUNK, True, 3, ["tiny"], PVT, torch.zeros(1)) if value is not None and value != {}
    ),
}
"""Values that each argument of several families has no use for."""


def wrong(family: str) -> dict[str, Sequence[Any]]:
    return {**WRONG, **BY_FAMILY[family].wrong}


def test_the_table_has_every_argument_of_every_family() -> None:
    used = set()
    for name, family in families().items():
        known = inspect.signature(family).parameters.keys()
        assert known <= wrong(name).keys()
        assert BY_FAMILY[name].wrong.keys() <= known
        used |= known
    assert used >= WRONG.keys()


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family, toy in ONE_OF_EACH.items() for name in inspect.signature(toy.family).parameters],
)
def test_a_value_of_another_type_is_one_line_that_names_the_argument(family: str, name: str) -> None:
    toy = ONE_OF_EACH[family]
    default = inspect.signature(toy.family).parameters[name].default
    for value in wrong(family)[name]:
        if value is None and default is None:
            continue
        with pytest.raises(ArgumentError) as caught:
            toy(**{name: value})
        said = str(caught.value)
        assert name in said, value
        assert "\n" not in said, value


def wrong_fields(spec: type) -> Iterator[tuple[str, Any]]:
    """Values that each field of a spec has no use for, by its type."""
    hints = get_type_hints(spec, include_extras=True)
    for field in dataclasses.fields(spec):
        hint, bounds = hints[field.name], []
        optional = type(None) in get_args(hint)
        if optional:
            hint = next(each for each in get_args(hint) if each is not type(None))
        if hasattr(hint, "__metadata__"):
            hint, *bounds = get_args(hint)
        if get_origin(hint) is tuple:
            of_stages = () if optional else ((1, 1), (1,) * 7, (8, 8, 0, 8), (8, 8, -8, 8))
            values = (*NO_LIST, *of_stages, (8.0,) * 3, (8.0,) * 4)
        elif hint is int:
            values = (*NO_INTEGER, (bounds[0].bound if bounds else 1) - 1)
        elif hint is float:
            values = (*NO_NUMBER, 0, -1.0)
        else:
            assert hint is bool, f"{field.name}: say here what is wrong for a {hint}"
            values = NO_BOOL
        yield from ((field.name, value) for value in values if value is not None or not optional)


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_a_field_of_another_type_is_one_line_that_names_the_field(family: str) -> None:
    toy = ONE_OF_EACH[family]
    for name, value in wrong_fields(toy.family.spec_type):
        for make in (toy.family.resolve_arch, lambda arch, kind=toy.family.spec_type: kind(**arch)):
            with pytest.raises(ArgumentError) as caught:
                make({**toy.arch, name: value})
            said = str(caught.value)
            assert said.startswith(f"{name}="), value
            assert "\n" not in said, value


@pytest.mark.parametrize(
    ("family", "arch", "message"),
    [
        (PVT, dict(depths=(1, 1, 1, 1), depth=3), r"no field \['depth'\]; did you mean 'depths'"),
        (PVT, dict(dims=(8, 8, 8, 8)), "arch of PVT: give depths"),
        (PiT, {}, "arch of PiT: give dims and num_heads"),
        (PVT, {3: 4}, r"no field \['3'\]"),
        (PVT, dict(depths=(1, 1, 1, 1), pretrain_grid=7), "pretrain_grid=7: give an integer of at least 8"),
        (Swin, dict(depths=(2, 2, 2, 2), window_size=1), "window_size=1: give an integer of at least 2"),
        (PVT, dict(depths=(1, 1, 1)), "give positive integers, one for each of 4 stages"),
        (PVT, MiT.archs["b0"], "PVT has no arch Arch"),
    ],
    ids=str,
)
def test_what_a_spec_takes_is_said(family: type[Backbone], arch: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        family(arch=arch)


def test_what_is_right_is_taken() -> None:
    with torch.device("meta"):
        integer = np.int64(1)
        spec = dict(TOYS["pvt"].arch, depths=[1, integer, 1, 1], dims=range(8, 40, 8), num_heads=[1, 1, 1, 1])
        backbone = PVT(arch=spec, out_indices=[integer, 3], in_channels=np.int32(4), drop_path_rate=0, norm_eps=1e-6)
        assert backbone.arch.dims == (8, 16, 24, 32)
        assert backbone.arch == PVT.spec_type(**spec)
        hash(backbone.arch)
        assert PVT(arch=backbone.arch, out_indices=range(4), drop_path_rate=np.float32(0.5)).channels == (8, 16, 24, 32)
        for init_cfg in (None, [], dict(type="Constant", val=0), [dict(type="mm_vitbackbones.FromScratch")]):
            TOYS["pvt"](init_cfg=init_cfg)


OLD = [
    ("PVT", dict(pretrained="pvt.pth"), "use init_cfg=dict(type='Pretrained', checkpoint='pvt.pth')"),
    ("PVT", dict(pretrained=None), "'pretrained': leave it out"),
    ("Swin", dict(use_checkpoint=True), "it is called with_cp here"),
    ("Swin", dict(embed_dims=96), "given by arch: one of tiny, small, base, large, base_w12, large_w12, or dict(dims="),
    ("Swin", dict(window_size=7), "given by arch"),
    ("PVTv2", dict(num_layers=[2, 2, 2, 2]), "dict(depths="),
    ("Swin", dict(convert_weights=True), "leave it out, as the layout of a file is recognised"),
    ("MiT", dict(style="pytorch"), "leave it out, as it is an argument of ResNet"),
    ("CoaT", dict(colour=1), "it takes arch, in_channels, out_indices"),
    ("PiT", dict(out_indexes=(1, 2)), "did you mean 'out_indices'"),
    ("PVT", dict(frozen_stage=1), "it is called frozen_stages here"),
]
"""Arguments that a family does not have: of old configs, of other implementations, and misspelt."""


@pytest.mark.parametrize(("family", "arguments", "message"), OLD, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("of_a_config", [True, False])
def test_an_argument_that_does_not_exist_is_one_line(
    of_a_config: bool, family: str, arguments: Any, message: str
) -> None:
    build = MODELS.build if of_a_config else lambda config: families()[family](**arguments)
    with pytest.raises(ArgumentError) as caught:
        build(dict(type=f"mm_vitbackbones.{family}", **arguments))
    said = str(caught.value)
    assert said.startswith(f"{family} has no argument {next(iter(arguments))!r}: ")
    assert message in said
    assert "\n" not in said


def test_every_argument_that_does_not_exist_is_named_at_once() -> None:
    with pytest.raises(ArgumentError, match=r"'pretrained': use .*; 'style': leave it out"):
        PVTv2(pretrained="x.pth", style="pytorch")
    with pytest.raises(ArgumentError, match="too many positional"):
        PVT(*range(20))
    with pytest.raises(ArgumentError, match="has no argument 'pretraned'"):
        build_backbone("pvt_tiny", pretraned=True)
    with pytest.raises(ArgumentError, match="'pvt_tiny' says the arch"):
        build_backbone("pvt_tiny", arch="small")


def test_signatures_and_classes_of_the_users_own_stay_as_they_are() -> None:
    parameters = inspect.signature(PVT).parameters
    assert [*parameters][:3] == ["arch", "in_channels", "out_indices"]
    assert parameters["drop_path_rate"].default == 0.1

    class Mine(PVT):
        def __init__(self, width: int, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.width = width

    with torch.device("meta"):
        assert Mine(width=2.5, arch="tiny").width == 2.5
        with pytest.raises(ArgumentError, match="Mine has no argument 'archs': did you mean 'arch'"):
            Mine(width=1, archs="tiny")
