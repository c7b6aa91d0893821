"""tools/look.py: what a network sees, as files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch

from helpers.paths import CONFIGS

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli import look
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.subject import Subject, looks_like_checkpoint, map_of, with_map

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("predict")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    return path


def looked(*arguments: Any) -> int:
    return run(look.main, [*map(str, arguments)])


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


ANY = ("--cfg-options", "model.test_cfg.score_thr=0.0")


@pytest.mark.parametrize(
    ("what", "made"),
    [
        (["attention"], ["photo_attention.npz", "photo_attention.png"]),
        (["distance"], ["distance.csv", "distance.png"]),
        (["receptive-field"], ["receptive_field.csv", "receptive_field.npz", "receptive_field.png"]),
        (["features"], ["photo_features.png"]),
        (["similarity", "--level", 1], ["photo_similarity.png", "similarity.npz"]),
        (["cam", *ANY], ["photo_cam.npz", "photo_cam.png"]),
        (["cam", "--method", "score", "--channels", 2, *ANY], ["photo_cam.npz", "photo_cam.png"]),
    ],
    ids=lambda value: "-".join(map(str, value[:3])),
)
def test_a_detector_is_looked_into(what, made, detector, image, tmp_path) -> None:
    assert looked(*detector, image, "--show", *what, "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out") == made


@pytest.mark.parametrize("what", ["attention", "receptive-field", "cam"])
def test_a_segmentor_is_looked_into(what, segmentor, image, tmp_path) -> None:
    assert looked(*segmentor, image, "--show", what, "--out", tmp_path / "out") == 0
    assert len(files(tmp_path / "out")) >= 2


def test_attention_of_a_click_is_that_of_the_query_there(detector, image, tmp_path) -> None:
    """The image is enlarged by 1.2, to 72 x 96: pixel (70, 50) is in row 1 and column 2 of cells of 32."""
    from mm_vitbackbones.inspection.attention import look as look_at

    assert looked(*detector, image, "--show", "attention", "--at", 70, 50, "--out", tmp_path / "out") == 0
    subject = Subject(str(detector[0]), detector[1])
    view = subject.view(image, "photo")
    last = look_at(subject.backbone, view.inputs, lambda seen: seen.shares)[-1]
    rows = last.rows(torch.tensor([1 * last.queries.size[1] + 2]))[0, :, 0]
    with np.load(tmp_path / "out/photo_attention.npz") as arrays:
        found = arrays[[*arrays][-1]]
    np.testing.assert_allclose(found.reshape(len(found), -1), rows.numpy(), rtol=1e-5)


def test_several_networks_are_in_one_table(image, tmp_path) -> None:
    arguments = ("pvt_v2_b0", image, "--show", "entropy", "--random", "--size", 64, "--against", "mit_b0")
    assert looked(*arguments, "--out", tmp_path / "out") == 0
    rows = [*csv.DictReader((tmp_path / "out/entropy.csv").read_text().splitlines())]
    assert {row["network"] for row in rows} == {"pvt_v2_b0", "mit_b0"}
    of_one = [row for row in rows if row["network"] == "mit_b0"]
    assert [int(row["layer"]) for row in of_one if row["head"] == "0"] == [*range(8)]
    assert all(0 < float(row["entropy"]) <= np.log(int(row["keys"])) + 1e-5 for row in rows)


def test_the_mean_over_images_is_their_mean(image, tmp_path) -> None:
    other = tmp_path / "other.png"
    cv2.imwrite(str(other), np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    values = []
    for number, images in enumerate(([image], [other], [image, other])):
        torch.manual_seed(0)
        out = tmp_path / f"out{number}"
        arguments = ("mit_b0", *images, "--show", "distance", "--random", "--size", 64, "--out", out)
        assert looked(*arguments) == 0
        values.append(
            [float(row["distance"]) for row in csv.DictReader((out / "distance.csv").read_text().splitlines())]
        )
    np.testing.assert_allclose(values[2], np.mean(values[:2], axis=0), rtol=1e-4)


WRONG = [
    (["pvt_v2_b9", "IMAGE", "--show", "features"], "mean the backbone 'pvt_v2_b5'"),
    (["pvt_v2_b0", "IMAGE", "--show", "cam", "--random"], "no classes"),
    (["xcit_nano_12_p16", "IMAGE", "--show", "attention", "--random"], "over channels"),
    (["pvt_v2_b0", "IMAGE", "--show", "attention", "--random", "--at", "500", "3"], "not in photo, which has 80 x 60"),
    (["pvt_v2_b0", "IMAGE", "--show", "attention", "--random", "--layers", "8"], "there are 8 attention layers"),
    (["pvt_v2_b0", "IMAGE", "--show", "features", "--random", "--level", "4"], "has level 0, level 1, level 2"),
    (["pvt_v2_b0", "nothing.png", "--show", "features", "--random"], "no image or folder nothing.png"),
    (["pvt_v2_b0", "weights.pth", "--show", "features"], "no image to look at"),
    (["pvt_v2_b0", "weights.pth", "IMAGE", "--show", "features", "--random"], "two kinds of weights"),
    (["pvt_v2_b0", "IMAGE", "--show", "features", "--random", "--against", "mit_b0"], "not of features"),
    (["pvt_v2_b0", "IMAGE", "--show", "features", "--random", "--cfg-options", "a=1"], "name of a backbone"),
    (["DETECTOR", "IMAGE", "--show", "features", "--size", "64"], "the config"),
    (["DETECTOR", "IMAGE", "--show", "cam", "--class", "cow"], "there are ball, beetle"),
    (["DETECTOR", "IMAGE", "--show", "cam", "--detection", "9999"], "detections, and no number 9999"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_what_does_not_fit_is_said_in_one_line(words, message, detector, image, tmp_path, capsys) -> None:
    places = {"IMAGE": [image], "DETECTOR": [*detector] if "--size" not in words else [detector[0]]}
    arguments = [part for word in words for part in places.get(word, [word])]
    assert looked(*arguments, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(image, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert looked("pvt_v2_b0", image, "--show", "features", "--random", "--out", out) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert files(out) == ["mine.txt"]


def test_a_word_is_a_checkpoint_or_an_image(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/iter_2.pth").touch()
    (tmp_path / "run/last_checkpoint").write_text(str(tmp_path / "run/iter_2.pth"))
    known = ["a.pth", "https://host/a.pth", str(tmp_path / "run")]
    assert [looks_like_checkpoint(word) for word in known] == [True] * 3
    assert [looks_like_checkpoint(word) for word in ("a.png", "b.tif", str(tmp_path / "photos"))] == [False] * 3


def test_a_detection_of_a_class_is_the_one_that_is_drawn(detector, image, tmp_path, capsys) -> None:
    arguments = (*detector, image, "--show", "cam", "--class", "crate", "--out", tmp_path / "out", *ANY)
    assert looked(*arguments) == 0
    assert "photo: crate, score" in capsys.readouterr().out


def test_an_image_without_the_class_is_skipped(segmentor, image, tmp_path, capsys) -> None:
    """The second image is one colour. Found are classes of pixels that the first has, and it does not."""
    subject = Subject(str(segmentor[0]), segmentor[1])
    flat = tmp_path / "flat.png"
    cv2.imwrite(str(flat), np.full((60, 80, 3), 128, np.uint8))
    labels = []
    for path in (image, flat):
        view = subject.view(path, path.stem)
        labels.append(
            {*subject.model.encode_decode(view.inputs, [view.sample.metainfo])[0].argmax(0).unique().tolist()}
        )
    (number, *_) = labels[0] - labels[1]
    arguments = (*segmentor, image, flat, "--show", "cam", "--class", number, "--out", tmp_path / "out")
    assert looked(*arguments) == 0
    assert files(tmp_path / "out") == ["photo_cam.npz", "photo_cam.png"]
    assert f"skipped flat: no pixel of it has the class {number}" in capsys.readouterr().err


SMALL = """
_base_ = "{configs}/{recipe}.py"
pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(128, 96), keep_ratio=True), dict(type="{pack}")]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
model = dict({model})
"""
SMALLER = {
    "dino_pvt_v2_b2_coco": """num_queries=20, backbone=dict(arch="b0"), neck=dict(in_channels=[64, 160, 256]),
        encoder=dict(num_layers=1), decoder=dict(num_layers=1)""",
    "cascade_mask_rcnn_pvt_v2_b2_3x_coco": """backbone=dict(arch="b0"), neck=dict(in_channels=[32, 64, 160, 256]),
        test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5))""",
    "mask2former_swin_t_coco": """panoptic_head=dict(num_queries=10, pixel_decoder=dict(encoder=dict(num_layers=1))),
        test_cfg=dict(max_per_image=5)""",
    "mask2former_mit_b2_ade20k": """backbone=dict(arch="b0"), decode_head=dict(in_channels=[32, 64, 160, 256],
        num_queries=10, pixel_decoder=dict(encoder=dict(num_layers=1)))""",
    "dpt_vit_l_ade20k": """backbone=dict(arch="tiny"),
        decode_head=dict(in_channels=[192] * 4, widths=(24, 48, 96, 96), channels=32)""",
}
HEADS = {
    "dino_pvt_v2_b2_coco": ([], ["bbox_head"]),
    "cascade_mask_rcnn_pvt_v2_b2_3x_coco": ([f"rpn_head {i}" for i in range(5)], []),
    "mask2former_swin_t_coco": ([], ["panoptic_head"]),
    "mask2former_mit_b2_ade20k": ([], ["decode_head"]),
    "dpt_vit_l_ade20k": (["decode_head"], []),
}
"""Of a head, the maps that have a field, and the heads without one."""


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # of mmdet's mask heads
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=() if name.startswith("dpt") else pytest.mark.slow) for name in SMALLER],
)
def test_cam_of_every_kind_of_head_has_the_gradient_of_its_score(recipe, image, tmp_path, monkeypatch) -> None:
    """Against the difference that a small step of all of the level makes. In a detector of two stages, the boxes of the
    first one move with the level, which is no part of the gradient."""
    path = tmp_path / f"{recipe}.py"
    pack = "PackSegInputs" if "ade20k" in recipe else "PackDetInputs"
    path.write_text(SMALL.format(configs=CONFIGS, recipe=recipe, model=SMALLER[recipe], pack=pack))
    torch.manual_seed(0)
    subject = Subject(str(path), random=True)
    view = subject.view(image, "photo")
    two_stages = recipe.startswith("cascade")
    if not two_stages:  # mmcv's NMS takes no doubles
        subject.model.double()
        view = view._replace(inputs=view.inputs.double())
    args = look.look_arguments([str(path), str(image), "--show", "cam"])
    found: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(
        look.cam, "grad_cam", lambda level, gradient: found.update(level=level, gradient=gradient) or level
    )
    with subject.in_scope():
        target: Any = (look._Detection if subject.kind == "detector" else look._Class)(subject, view, args)
        name, _, score = look._cam(subject, view, target, args)
        step = torch.randn(found["level"].shape).to(found["level"]) * 1e-6
        place = [*subject.levels(view.inputs)].index(name)

        def score_after(sign: int) -> float:
            def moved(_: Any, __: Any, levels: Any) -> Any:
                return [
                    with_map(each, map_of(each) + sign * step) if i == place else each for i, each in enumerate(levels)
                ]

            handle = subject.backbone.register_forward_hook(moved)
            with torch.no_grad():
                after = float(target.score(view.inputs))
            handle.remove()
            return after

        assert score > 0
        assert found["gradient"].abs().sum() > 0
        if not two_stages:
            expected = (score_after(1) - score_after(-1)) / 2
            assert float((found["gradient"] * step).sum()) == pytest.approx(expected, rel=1e-4, abs=0)
        maps, none = HEADS[recipe]
        with torch.no_grad():
            assert [each for each in subject.all_maps(view.inputs) if "head" in each] == maps
        assert subject.heads_without_maps() == none


def test_random_weights_of_a_whole_model_are_drawn_and_not_what_was_in_memory(tmp_path, monkeypatch) -> None:
    """mmdet's DINO makes an empty parameter and fills it in ``init_weights``."""
    path = tmp_path / "dino.py"
    recipe = "dino_pvt_v2_b2_coco"
    path.write_text(SMALL.format(configs=CONFIGS, recipe=recipe, model=SMALLER[recipe], pack="PackDetInputs"))
    from mmdet.models import DINO

    made = DINO._init_layers

    def init_layers(model: Any) -> None:
        made(model)
        model.level_embed.data.fill_(torch.nan)  # what memory may hold

    monkeypatch.setattr(DINO, "_init_layers", init_layers)
    subject = Subject(str(path), random=True)
    assert not any(value.isnan().any() for value in subject.model.state_dict().values())
    assert subject.heads_without_maps() == ["bbox_head"]


def test_a_map_is_replaced_in_what_a_backbone_returns_of_a_level() -> None:
    class Tap(NamedTuple):
        map: torch.Tensor
        token: torch.Tensor

    old, new, token = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    for level in (Tap(old, token), (old, token), [old, token]):
        replaced = with_map(level, new)
        assert type(replaced) is type(level)
        assert (replaced[0], replaced[1]) == (new, token)
    assert with_map(old, new) is new
