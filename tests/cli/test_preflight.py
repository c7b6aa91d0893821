"""What is said of a config's pretrained weights before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from mm_vitbackbones.backbones import PVT
from mm_vitbackbones.cli.preflight import check_pretrained
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.registry import BACKBONES


def backbone(checkpoint: Any, **arguments: Any) -> dict[str, Any]:
    arguments = {"type": "mm_vitbackbones.PVT", "arch": "tiny", **arguments}
    return {"backbone": dict(arguments, init_cfg=dict(type="Pretrained", checkpoint=checkpoint))}


@pytest.mark.parametrize("checkpoint", ["imagenet1k", "https://example.org/pvt_tiny.pth"])
def test_a_published_name_and_a_url_are_no_local_files(checkpoint: str) -> None:
    check_pretrained(backbone(checkpoint))


@pytest.mark.parametrize("checkpoint", [None, "imagenet22k"])
def test_a_config_without_a_file_lists_what_there_is(checkpoint: str | None) -> None:
    with pytest.raises(UserError) as caught:
        check_pretrained(backbone(checkpoint))
    assert str(caught.value).startswith(f"model.backbone.init_cfg.checkpoint: checkpoint={checkpoint!r} names no")
    assert "of PVT tiny there are 'imagenet1k'" in str(caught.value)


def test_the_arch_that_counts_is_the_one_that_is_built() -> None:
    config = backbone("imagenet22k", type="mm_vitbackbones.Swin")
    del config["backbone"]["arch"]
    check_pretrained(config)  # tiny, by default
    with pytest.raises(UserError, match="of Swin base_w12 there are 'imagenet1k_384'"):
        check_pretrained(backbone("imagenet22k", type="mm_vitbackbones.Swin", arch="base_w12"))
    spec = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
    with pytest.raises(UserError, match="of this PVT no published file is known"):
        check_pretrained(backbone("imagenet1k", arch=spec))


def test_a_list_of_initialisations_is_looked_into() -> None:
    config = backbone("imagenet1k")
    config["backbone"]["init_cfg"] = [dict(type="Constant"), config["backbone"]["init_cfg"]]
    check_pretrained(config)
    config["backbone"]["init_cfg"][1]["checkpoint"] = "imagenet22k"
    with pytest.raises(UserError, match=r"init_cfg\[1\]\.checkpoint: .*of PVT tiny there are"):
        check_pretrained(config)


def test_a_class_derived_from_ours_has_its_names_and_a_foreign_one_has_none() -> None:
    class Mine(PVT):
        pass

    class Foreign:
        pass

    try:
        BACKBONES.register_module(module=Mine, name="Mine")
        BACKBONES.register_module(module=Foreign, name="Foreign")
        check_pretrained(backbone("imagenet1k", type="mm_vitbackbones.Mine"))
        with pytest.raises(UserError, match=r"init_cfg\.checkpoint: no file imagenet1k"):
            check_pretrained(backbone("imagenet1k", type="mm_vitbackbones.Foreign"))
    finally:
        BACKBONES.module_dict.pop("Mine")
        BACKBONES.module_dict.pop("Foreign")
