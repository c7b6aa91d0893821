"""What is said of a config's parts before anything is built."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mm_vitbackbones.backbones import PVT
from mm_vitbackbones.cli.preflight import check_hooks, check_outputs, check_pretrained, check_types, has_masks
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


SOFTMAX, SIGMOID = dict(type="CrossEntropyLoss"), dict(type="CrossEntropyLoss", use_sigmoid=True)


@pytest.mark.parametrize(
    ("head", "learns"),
    [
        (dict(num_classes=1, loss_decode=SOFTMAX), False),
        (dict(num_classes=1), False),  # the head's own default
        (dict(num_classes=1, loss_decode=[SOFTMAX, SOFTMAX]), False),
        (dict(num_classes=2, out_channels=1, loss_decode=SOFTMAX), False),
        (dict(num_classes=1, loss_decode=SIGMOID), True),
        (dict(num_classes=2, out_channels=1, loss_decode=SIGMOID), True),
        (dict(num_classes=1, loss_decode=[SOFTMAX, dict(type="DiceLoss")]), True),
        (dict(num_classes=2, loss_decode=SOFTMAX), True),
    ],
)
@pytest.mark.parametrize("where", ["decode_head", "auxiliary_head[0]"])
def test_softmax_over_one_output_is_refused(head: dict[str, Any], learns: bool, where: str) -> None:
    pytest.importorskip("mmseg")
    head = dict(type="FCNHead", **head)
    model = {"decode_head": head} if where == "decode_head" else {"auxiliary_head": [head]}
    with DefaultScope.overwrite_default_scope("mmseg"):
        if learns:
            check_outputs(model)
            return
        with pytest.raises(UserError) as caught:
            check_outputs(model)
    assert str(caught.value).startswith(f"model.{where} has one output, and the softmax of one output is always 1")


def test_one_class_of_a_detector_is_fine() -> None:
    pytest.importorskip("mmdet")
    with DefaultScope.overwrite_default_scope("mmdet"):
        check_outputs({"bbox_head": dict(type="Shared2FCBBoxHead", num_classes=1, loss_cls=SOFTMAX)})


def test_unknown_types_of_a_data_set_are_refused_with_the_nearest() -> None:
    pytest.importorskip("mmseg")
    dataset = dict(type="BaseSegDataset", pipeline=[dict(type="LoadAnnotations"), lambda results: results])
    with DefaultScope.overwrite_default_scope("mmseg"):
        check_types(dataset, "train_dataloader", "mmseg")
        with pytest.raises(UserError, match=r"train_dataloader: type='PackSegInput' .*'PackSegInputs'"):
            check_types(dict(dataset, pipeline=[dict(type="PackSegInput")]), "train_dataloader", "mmseg")
        with pytest.raises(UserError, match=r"type='ADE20Dataset' .*'ADE20KDataset'"):
            check_types(dict(dataset, type="ADE20Dataset"), "train_dataloader", "mmseg")


def test_masks_are_looked_for_in_every_data_set_of_segmentation() -> None:
    pytest.importorskip("mmseg")
    with DefaultScope.overwrite_default_scope("mmseg"):
        assert has_masks(dict(type="ADE20KDataset"))  # its folders may be the class's own
        assert has_masks(dict(type="Own", data_prefix=dict(img_path="a", seg_map_path="b")))
        assert not has_masks(dict(type="mmdet.CocoDataset", data_prefix=dict(img="a")))


def test_a_hook_that_is_text_is_refused() -> None:
    check_hooks(Config(dict(custom_hooks=[dict(type="EMAHook")])))
    check_hooks(Config(dict(custom_hooks=None)))
    with pytest.raises(UserError, match=r"custom_hooks\[0\] is the text \"dict\(type='EMAHook'\)\" and no dict"):
        check_hooks(Config(dict(custom_hooks=["dict(type='EMAHook')"])))
