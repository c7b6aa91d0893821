"""Exported files on real photographs: they give what tools/predict.py writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.exported import run_file
from helpers.paths import CONFIGS, ROOT
from helpers.runs import run_tool
from mm_vitbackbones import libraries
from mm_vitbackbones.cli import export as command
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.data import trees
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting.files import KINDS
from mm_vitbackbones.exporting.networks import network_of

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

pytestmark = [pytest.mark.slow, pytest.mark.mmdet, pytest.mark.mmseg]

SIDE = 400
"""Pixels of a tile's sides."""

SIZES = {
    "training/OSBS_029_x0000_y0000.png": (SIDE, SIDE),
    "training/SOAP_061_x0000_y0000.png": (301, SIDE),
    "validation/2019_YELL_2_541000_4977000_image_crop_x0400_y0400.png": (SIDE, 251),
}
"""Tiles of three photographs of `trees`, and the height and width that is cut out of each. Their longer side is the one
that the configs resize to, so that predictions and files see the same pixels."""

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photographs, of different places and sizes."""
    root, folder = ROOT / "data/trees", tmp_path_factory.mktemp("photographs")
    if not all((root / "images" / name).is_file() for name in SIZES):
        root = folder / "trees"
        try:
            trees.prepare(root)
        except UserError as error:
            if "could not fetch" not in str(error):
                raise
            pytest.skip(f"needs the data set trees: {error}")
    made = []
    for name, (height, width) in SIZES.items():
        image = cv2.imread(str(root / "images" / name))
        made.append(folder / Path(name).name)
        assert cv2.imwrite(str(made[-1]), image[:height, :width])
    return made


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe of `trees`, and random weights that find many boxes."""
    return with_weights("retinanet_pvt_v2_b0_trees", "bbox_head.retina_cls", 0.05, tmp_path_factory)


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe of `mini`, and random weights that find several classes."""
    return with_weights("segformer_mit_b0_mini", "decode_head.conv_seg", 1.0, tmp_path_factory)


def with_weights(recipe: str, last: str, deviation: float, folders: pytest.TempPathFactory) -> tuple[Path, Path]:
    model = built(CONFIGS / f"{recipe}.py")
    nn.init.normal_(model.get_submodule(last).weight, std=deviation)
    checkpoint = folders.mktemp(recipe) / "weights.pth"
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    return CONFIGS / f"{recipe}.py", checkpoint


def built(config: Path) -> Any:
    cfg = load_config(config, {})
    libraries.use(libraries.scope_of(cfg))
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    return model.eval()


def exported(network: tuple[Path, Path], path: Path, kind: str, option: str) -> Any:
    assert run(command.main, [*map(str, network), option, "--preprocess", "in", "--to", kind, "--out", str(path)]) == 0
    return run_file(path)


def predicted(network: tuple[Path, Path], photographs: list[Path], folder: Path, *options: object) -> Path:
    """The folder that tools/predict.py writes."""
    shutil.rmtree(folder, ignore_errors=True)
    done = run_tool("predict", *network, *photographs, "--out", folder, *options)
    assert done.returncode == 0, done.stderr
    return folder


def pixels(path: Path) -> Tensor:
    """(1, 3, H, W): red, green, blue, from 0 to 255."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))


@kinds
def test_file_of_a_detector_gives_the_boxes_of_photographs(
    kind: str, detector: tuple[Path, Path], photographs: list[Path], tmp_path: Path
) -> None:
    folder = predicted(detector, photographs, tmp_path / "found", "--score-thr", 0)
    file = exported(detector, tmp_path / f"toy{KINDS[kind]}", kind, "--with-nms")
    found = json.loads((folder / "predictions.json").read_text())
    for path, record in zip(photographs, found["images"], strict=True):
        assert Path(record["file_name"]).name == path.name
        expected = [each for each in found["annotations"] if each["image_id"] == record["id"]]
        boxes, scores, labels = (result[0] for result in file(pixels(path)))
        assert len(expected) == int((labels >= 0).sum()) > 20
        boxes[:, 2:] -= boxes[:, :2]
        count = len(expected)
        assert [each["category_id"] - 1 for each in expected] == labels[:count].tolist()
        wanted = torch.tensor([each["bbox"] for each in expected])
        torch.testing.assert_close(boxes[:count], wanted, rtol=0, atol=0.1)
        wanted = torch.tensor([each["score"] for each in expected])
        torch.testing.assert_close(scores[:count], wanted, rtol=0, atol=1e-4)


@kinds
def test_file_of_a_segmentor_gives_the_labels_of_photographs(
    kind: str, segmentor: tuple[Path, Path], photographs: list[Path], tmp_path: Path
) -> None:
    whole = f"test_dataloader.dataset.pipeline.1.scale=({SIDE}, {SIDE})"
    folder = predicted(segmentor, photographs, tmp_path / "found", "--cfg-options", whole)
    file = exported(segmentor, tmp_path / f"toy{KINDS[kind]}", kind, "--labels")
    model = built(segmentor[0])
    model.load_state_dict(torch.load(segmentor[1])["state_dict"])
    network = network_of(model, preprocess=True).module
    for path in photographs:
        image = pixels(path)
        (labels,) = file(image)
        expected = torch.from_numpy(cv2.imread(str(folder / f"{path.stem}_labels.png"), cv2.IMREAD_UNCHANGED)).long()
        assert len(expected.unique()) > 2
        with torch.no_grad():
            first, second = network(image)[0].topk(2, 0).values
        near = first - second < 1e-4 * first.abs().max()
        assert near.float().mean() < 0.01
        assert torch.equal(labels[0][~near], expected[~near])
