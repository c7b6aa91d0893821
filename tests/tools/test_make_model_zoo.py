"""The model zoo page is what the configs and the published results make of it."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch
from mmengine.config import Config

from helpers.paths import ROOT, recipe_files

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.measuring import multiply_adds
from tools import make_model_zoo as zoo

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("model_zoo")]


PAGE = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
STALE = "run tools/make_model_zoo.py"


@functools.cache
def entry(name: str) -> zoo.Entry:
    published = json.loads((ROOT / "docs/published.json").read_text())
    return zoo.make_entry(ROOT / f"configs/{name}.py", published.get(name, {}))


@pytest.mark.slow
def test_committed_pages_are_up_to_date():
    made = zoo.files(ROOT)
    stale = [str(path.relative_to(ROOT)) for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, STALE


@pytest.mark.parametrize(
    "name",
    [  # the first ones are counted by other tests, too
        "mask_rcnn_swin_t_coco",
        "cascade_mask_rcnn_swin_t_3x_coco",
        "fpn_pvt_t_ade20k",
        "fpn_pvt_v2_b2_ade20k",
        "segformer_mit_b2_ade20k",
        "retinanet_pvt_s_coco",
        "retinanet_cait_mini",
        "linear_dinov3_s_ade20k",
        "mask2former_swin_t_ade20k",
        "dino_pvt_v2_b2_coco",
    ],
)
def test_committed_entries_are_up_to_date(name):
    one = entry(name)
    assert zoo.row(one) in PAGE.splitlines(), STALE
    if one.dataset != "mini":
        metafile = (ROOT / f"configs/metafiles/{one.family.lower()}.yml").read_text(encoding="utf-8")
        assert zoo.record(one) + "\n" in metafile, STALE


def test_committed_weights_are_up_to_date():
    order = zoo.order_of_families((ROOT / "docs/backbones.md").read_text(encoding="utf-8"))
    assert PAGE.startswith(zoo.HEAD), STALE
    assert PAGE.partition(zoo.WEIGHTS)[2] == zoo.page([], order).partition(zoo.WEIGHTS)[2] != "", STALE


def test_every_config_is_on_the_page():
    for path in recipe_files():
        assert PAGE.count(f"(../configs/{path.name})") == 1
    assert "| untested |" in PAGE


@pytest.mark.parametrize(
    ("name", "giga"),
    [  # as published, in multiply-adds
        ("mask_rcnn_swin_t_coco", 267),
        ("cascade_mask_rcnn_swin_t_3x_coco", 745),
        ("fpn_pvt_t_ade20k", 33.2),
        ("fpn_pvt_v2_b2_ade20k", 45.8),
    ],
)
def test_whole_networks_cost_what_was_published(name, giga):
    assert entry(name).multiply_adds / 1e9 == pytest.approx(giga, rel=0.02)


def test_segformers_decoder_costs_less_than_published():
    # 62.4 with the map of 4E channels.
    assert entry("segformer_mit_b2_ade20k").multiply_adds / 1e9 < 0.45 * 62.4


@pytest.mark.filterwarnings("ignore:The arguments `dropout` in MultiheadAttention:DeprecationWarning")
@pytest.mark.parametrize("name", ["dino_pvt_v2_b2_coco", "mask2former_swin_t_coco"])
def test_transformers_by_their_layers_cost_what_they_do_as_a_whole(name):
    from mmdet.structures import DetDataSample

    cfg = Config.fromfile(ROOT / f"configs/{name}.py")
    if "num_queries" in cfg.model:
        cfg.model.num_queries = 60  # a small image has no places for 900
    model, image = build_model(cfg).eval(), torch.zeros(1, 3, 64, 96)
    sample = DetDataSample(metainfo=dict(img_shape=(64, 96), batch_input_shape=(64, 96)))
    with torch.no_grad():
        whole = multiply_adds(lambda: model(image, [sample], mode="tensor"))
        assert multiply_adds(lambda: zoo._run(model, image)) == whole > 1e9


def test_parameters_unlike_the_published_ones_are_reported():
    good = entry("retinanet_pvt_s_coco")
    assert zoo.differing([good]) == []
    bad = dataclasses.replace(good, parameters=int(1.02 * good.parameters))
    assert zoo.differing([bad]) == ["retinanet_pvt_s_coco: 34.91 M counted, 34.2 M published"]


def test_results_of_no_config_are_refused(tmp_path):
    (tmp_path / "published.json").write_text('{"retinanet_pvt_xl_coco": {}}')
    with pytest.raises(UserError, match="results of retinanet_pvt_xl_coco, and there is no such config"):
        zoo.collect(ROOT / "configs", tmp_path / "published.json")


def test_weights_are_in_the_order_of_the_page_of_backbones():
    rows = PAGE.partition("## Pretrained weights")[2].splitlines()
    listed = [row.split()[1] for row in rows if "](https://" in row]
    assert len(listed) == len(zoo.FILES)
    backbones = (ROOT / "docs/backbones.md").read_text(encoding="utf-8")
    assert list(dict.fromkeys(listed)) == zoo.order_of_families(backbones)
    with pytest.raises(UserError, match="has no row of Swin: write one for each variant"):
        zoo.order_of_families(backbones.replace("| `mm_vitbackbones.Swin` |", "| |"))


def test_metafiles_are_yaml_of_openmmlabs_form():
    import yaml

    index = yaml.safe_load((ROOT / "model-index.yml").read_text(encoding="utf-8"))
    for name in index["Import"]:
        content = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        (collection,) = content["Collections"]
        for model in content["Models"]:
            assert model["In Collection"] == collection["Name"]
            assert (ROOT / model["Config"]).is_file()
            for result in model.get("Results", ()):
                assert {"Task", "Dataset", "Metrics"} == result.keys()


@pytest.mark.parametrize(
    ("page", "status"),
    [
        ("| `retinanet_cait_mini` | **0.2** | 0.4 |\n", "[measured here](embedded_data.md)"),
        ("| `retinanet_cait_mini` | not measured | |\n", "untested"),
        ("`configs/retinanet_cait_mini.py`: AP 0.2\n", "[measured here](embedded_data.md)"),
        ("| `retinanet_cait_s_mini` | **0.2** | 0.4 |\n", "untested"),
    ],
    ids=["a row", "a row without numbers", "a sentence", "another recipe"],
)
def test_measured_is_a_recipe_with_results_on_the_page_of_embedded_sets(page, status):
    one = entry("retinanet_cait_mini")
    assert dataclasses.replace(one, is_measured=zoo.is_measured(one.name, page)).status == status
