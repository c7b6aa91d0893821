"""The number of classes of heads that count things and stuff, and of the weights of losses."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones import recipes
from mm_vitbackbones.cli import preflight
from mm_vitbackbones.cli.classes import check_num_classes
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.errors import UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]

SOFTMAX = dict(type="CrossEntropyLoss", use_sigmoid=False)
TWO = {"num_things_classes": 2, "num_stuff_classes": 0}


def panoptic(**head: Any) -> dict[str, Any]:
    weights = dict(SOFTMAX, class_weight=[1.0, 1.0, 0.1])
    return {"panoptic_head": {**TWO, "loss_cls": weights, **head}, "panoptic_fusion_head": dict(TWO)}


@pytest.mark.parametrize(
    "model",
    [
        panoptic(),
        panoptic(num_things_classes=1, num_stuff_classes=1),
        {"decode_head": {"num_classes": 2, "loss_cls": dict(SOFTMAX, class_weight=[1.0, 1.0, 0.1])}},
        {"decode_head": {"num_classes": 2, "loss_decode": [dict(SOFTMAX, class_weight=[1.0, 3.0])]}},
        {"bbox_head": {"num_classes": 2, "loss_cls": dict(type="CrossEntropyLoss", use_sigmoid=True, class_weight=1)}},
    ],
)
def test_right_numbers_pass(model: dict[str, Any]) -> None:
    check_num_classes(model, 2, "train_dataloader")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            panoptic(num_things_classes=80),
            r"model\.panoptic_head has 80 classes of things and 0 of stuff, .* set m",
        ),
        (panoptic(num_stuff_classes=53), r"2 classes of things and 53 of stuff, but the data set of t has 2 classes"),
        (panoptic() | {"panoptic_fusion_head": dict(TWO, num_things_classes=3)}, r"model\.panoptic_fusion_head has 3"),
        (
            panoptic(loss_cls=dict(SOFTMAX, class_weight=[1.0, 1.0])),
            "has 2 weights, and for 2 classes there have to be 3, the last",
        ),
        (
            {"decode_head": {"num_classes": 2, "loss_decode": [dict(SOFTMAX, class_weight=[1.0] * 3)]}},
            r"model\.decode_head\.loss_decode\.class_weight has 3 weights, and for 2 classes there have to be 2$",
        ),
    ],
)
def test_wrong_numbers_end_in_one_line(model: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_num_classes(model, 2, "t")
    assert "\n" not in str(caught.value)


def own(folder: Path, part: str) -> Path:
    path = folder / "own.py"
    runtime = "segmentation_runtime" if part.endswith("segmentation") else "default_runtime"
    bases = [recipes.recipe(f"_base_/{name}.py") for name in (f"models/{part}", runtime)]
    path.write_text(f"_base_ = {bases}\nnum_classes = 0\n")
    return path


def test_the_option_sets_things_and_their_weights(tmp_path: Path) -> None:
    model = load_config(own(tmp_path, "mask2former"), {"num_classes": 4}).model
    assert model.panoptic_head.num_things_classes == model.panoptic_fusion_head.num_things_classes == 4
    assert model.panoptic_head.loss_cls.class_weight == [1.0] * 4 + [0.1]
    check_num_classes(model, 4, "t")
    model = load_config(own(tmp_path, "mask2former_segmentation"), {"num_classes": 4}).model
    assert model.decode_head.loss_cls.class_weight == [1.0] * 4 + [0.1]
    check_num_classes(model, 4, "t")


@pytest.mark.parametrize("weights", [[3.0, 1.0, 0.1], [2.0] * 80 + [0.5]])
def test_weights_that_are_given_with_the_option_stay(tmp_path: Path, weights: list[float]) -> None:
    key = "model.panoptic_head.loss_cls.class_weight"
    given = load_config(own(tmp_path, "mask2former"), {"num_classes": 2, key: weights})
    assert given.model.panoptic_head.loss_cls.class_weight == weights


def test_a_segmentor_with_parts_of_mmdet_needs_mmdet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(own(tmp_path, "mask2former_segmentation"), {"num_classes": 2})
    preflight.check(copy.deepcopy(cfg), [])
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with pytest.raises(UserError, match="this config needs mmdet, which cannot be imported"):
        preflight.check(cfg, [])
