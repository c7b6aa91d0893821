"""``new_config``: a config that fits the user's own data, in at most 25 lines."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed
from PIL import Image

from mm_vitbackbones.backbones import PVTv2
from mm_vitbackbones.checkpoints.recognise import FAMILIES
from mm_vitbackbones.cli import predict, train
from mm_vitbackbones.cli.config import load_config, use_local_norms
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.new_config import HEADS, main, option_of, places_in, plan_of, sizes_of
from mm_vitbackbones.data.own import OwnData, Split, objects_in
from mm_vitbackbones.errors import UserError

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]

BACKBONES = {"detection": "pvt_v2_b0", "instance": "swin_tiny", "segmentation": "mit_b0"}
QUICK = ("retinanet", "segformer")
WIDTH, HEIGHT = 96, 64


def write_objects(root: Path, count: int = 8) -> Path:
    """Objects of two classes, whose order in the file is not that of their ids."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        tables: dict[str, list[dict]] = {"images": [], "annotations": []}
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            x, y, w, h = 5 + i, 10 + i, 40, 30
            pixels[y : y + h, x : x + w, i % 2] = 250
            name = f"{split}_{i}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            tables["images"].append(dict(id=i, file_name=name, width=WIDTH, height=HEIGHT))
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            tables["annotations"].append(
                dict(id=i + 1, image_id=i, category_id=1 + i % 2, bbox=[x, y, w, h], area=w * h, iscrowd=0)
                | dict(segmentation=[polygon])
            )
        categories = [dict(id=2, name="pear's"), dict(id=1, name='"apple"')]
        (root / f"annotations/{split}.json").write_text(json.dumps({**tables, "categories": categories}))
    return root


def write_segments(root: Path, count: int = 4) -> Path:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[:, 40 + i :], labels[40:] = 1, 2
            pixels[labels == 1, 0], pixels[labels == 2, 1] = 250, 250
            Image.fromarray(pixels).save(root / f"images/{split}/{i}.jpg")
            Image.fromarray(labels).save(root / f"masks/{split}/{i}.png")
    (root / "classes.txt").write_text("grass\nsand\nwater\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_objects(root / "shop")
    write_segments(root / "land")
    return root


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the data; configs are written into ``tmp_path``."""
    monkeypatch.chdir(folder)
    return tmp_path


def given(head: str, /, **options: str) -> list[str]:
    task = HEADS[head].task
    data = "land" if task == "segmentation" else "shop"
    every = {"data": data, "task": task, "backbone": BACKBONES[task], "head": option_of(head)} | options
    return [word for key, value in every.items() for word in (f"--{key}", value)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("init", ["imagenet1k", "none"])
def test_written_config_passes_the_checks_of_training(head: str, init: str, here: Path) -> None:
    out = here / "own.py"
    main(given(head, init=init, out=str(out)))  # which checks it as `train` does
    assert len(out.read_text().splitlines()) <= 25
    cfg = load_config(out, {})
    data = cfg.train_dataloader.dataset
    classes = ("grass", "sand", "water") if HEADS[head].task == "segmentation" else ("pear's", '"apple"')
    assert data.metainfo.classes == classes == cfg.val_dataloader.dataset.metainfo.classes
    assert next(step.scale for step in data.pipeline if "Resize" in step.type) == (WIDTH, HEIGHT)
    weights = cfg.model.backbone.init_cfg
    assert weights == (
        [dict(type="mm_vitbackbones.FromScratch")] if init == "none" else dict(type="Pretrained", checkpoint=init)
    )


@pytest.mark.parametrize(
    "head",
    [head if head in QUICK else pytest.param(head, marks=pytest.mark.slow) for head in HEADS],
)
def test_random_weights_learn_in_a_few_steps(head: str, here: Path) -> None:
    out = here / "own.py"
    main(given(head, init="none", out=str(out)))
    cfg = load_config(out, {})
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    use_local_norms(cfg, distributed=False)
    set_random_seed(0)  # of the pipelines, too
    losses = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
        model.init_weights()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), 20):
            losses.append(model.train_step(batch, wrapper)["loss"].item())
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def official_file(path: Path) -> dict[str, torch.Tensor]:
    """A file as PVTv2's authors publish them, with random weights of b0. Returns these by our names."""
    backbone = PVTv2("b0")
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    weights = backbone.state_dict()
    official = FAMILIES["PVTv2"].layout("official").to_theirs(weights)[0]
    assert not official.keys() & weights.keys()
    torch.save({**official, "head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}, path)
    return weights


def test_weights_of_a_file_are_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = official_file(here / "official.pth")
    out, work = here / "own.py", here / "work"
    main(given("retinanet", init=str(here / "official.pth"), out=str(out)))
    taken: dict[str, torch.Tensor] = {}
    before_train = RuntimeInfoHook.before_train

    def watch(self: RuntimeInfoHook, runner: Runner) -> None:
        taken.update({key: value.clone() for key, value in runner.model.backbone.state_dict().items()})
        before_train(self, runner)

    monkeypatch.setattr(RuntimeInfoHook, "before_train", watch)
    one = ["train_cfg.max_epochs=1", "train_dataloader.batch_size=8", "val_dataloader=None", "val_evaluator=None"]
    one += ["val_cfg=None", "train_dataloader.num_workers=0", "default_hooks.curves=None"]
    train.main([str(out), "--work-dir", str(work), "--cfg-options", *one])
    assert {key for key, value in taken.items() if not torch.equal(value, weights[key])} == set()
    assert taken.keys() <= weights.keys()
    trained = torch.load(work / "epoch_1.pth", weights_only=False)
    assert trained["meta"]["iter"] == 1
    changed = [key for key in taken if not torch.equal(trained["state_dict"][f"backbone.{key}"], weights[key])]
    assert len(changed) > len(taken) / 2
    close = [(trained["state_dict"][f"backbone.{key}"] - weights[key]).abs().max() < 1e-3 for key in taken]
    assert all(close)  # a step of the rate away from the file


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_run_trains_measures_and_predicts(head: str, here: Path) -> None:
    out, work, task = here / "own.py", here / "work", HEADS[head].task
    main(given(head, init="none", backbone="pvt_v2_b0", out=str(out)))
    short = ["val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False", "train_cfg.val_interval=1"]
    short += ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
    length = "train_cfg.max_iters=1" if task == "segmentation" else "train_cfg.max_epochs=1"
    train.main([str(out), "--work-dir", str(work), "--cfg-options", length, *short])
    measured = json.loads((work / "curves.json").read_text())["metrics"][-1]
    assert measured["iter"] > 0
    if "former" in head or head == "dino":  # others find nothing yet
        assert {"detection": "coco/bbox_mAP", "instance": "coco/segm_mAP", "segmentation": "mIoU"}[task] in measured
    checkpoint = next(path for path in work.glob("*_1.pth") if not path.name.startswith("best"))
    images = "land/images/val" if task == "segmentation" else "shop/images"
    predict.main([str(out), str(checkpoint), images, "--out", str(here / "drawn"), "--device", "cpu"])
    drawn = [path for path in (here / "drawn").glob("*.png") if not path.stem.endswith("_labels")]
    assert len(drawn) == len([*Path(images).iterdir()])


def test_an_existing_file_is_not_overwritten(here: Path) -> None:
    out = here / "own.py"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there already, and nothing is overwritten"):
        main(given("retinanet", out=str(out)))
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "nowhere"}, "--data nowhere: there is no such folder"),
        ({"data": "land"}, r"there is no land/annotations/train.json: name it with --train FILE"),
        ({"head": "segformer"}, "for --task detection there are retinanet, faster_rcnn, fcos, dino"),
        ({"backbone": "pvt_v2_b9"}, "there is no backbone 'pvt_v2_b9'; did you mean 'pvt_v2_b5'"),
        ({"init": "imagenet22k"}, "'imagenet22k' names no weights: of PVTv2 b0 there are 'imagenet1k'"),
        ({"init": "weights.pth"}, "model.backbone.init_cfg.checkpoint: no file weights.pth"),
        ({"out": "own.txt"}, "--out own.txt: a config ends in .py"),
        ({"batch": "0"}, "a step has at least one image"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(changed: dict[str, str], message: str, here: Path) -> None:
    with pytest.raises(UserError, match=message):
        main(given("retinanet", **{"out": str(here / "own.py"), **changed}))
    assert not [*here.iterdir()]


def own(images: int, size: tuple[int, int] = (640, 480)) -> OwnData:
    return OwnData(
        Path("shop"), ("a",), {split: Split(f"{split}.json", "images", images) for split in ("train", "val")}, size
    )


@pytest.mark.parametrize("images", [1, 8, 120, 5000, 200_000])
@pytest.mark.parametrize("head", ["retinanet", "segformer"])
@pytest.mark.parametrize("memory", [None, 8.0, 80.0])
def test_warm_up_is_a_small_part_of_any_run(images: int, head: str, memory: float | None) -> None:
    plan = plan_of(own(images), HEADS[head], scratch=False, memory=memory)
    iterations = plan.length * (plan.epoch if head == "retinanet" else 1)
    assert 1 <= plan.warm_up <= max(1, iterations / 20)
    assert 1 <= plan.batch <= max(images, 1)
    assert iterations >= 100


@pytest.mark.parametrize(
    ("head", "images", "length"),
    [
        ("retinanet", 8, 100),  # epochs, of 4 iterations
        ("retinanet", 100, 40),
        ("retinanet", 5000, 12),
        ("segformer", 8, 1000),  # iterations
        ("segformer", 1000, 20_000),
        ("segformer", 200_000, 40_000),
    ],
)
def test_the_length_follows_the_images(head: str, images: int, length: int) -> None:
    plans = [plan_of(own(images), HEADS[head], scratch=scratch) for scratch in (False, True)]
    assert [plan.length for plan in plans] == [length, 2 * length]


def test_batch_and_rate_follow_the_memory() -> None:
    small, large = (plan_of(own(1000), HEADS["retinanet"], False, memory=memory) for memory in (None, 80.0))
    assert (small.batch, large.batch) == (2, 16)
    assert large.rate == pytest.approx(small.rate * 8**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("size", "segmentation", "scale", "crop"),
    [
        ((640, 480), False, (640, 480), 480),
        ((100, 70), False, (96, 64), 64),
        ((4000, 3000), False, (1067, 800), 512),
        ((4000, 1000), False, (1333, 333), 320),
        ((2048, 1024), True, (2048, 1024), 512),
        ((300, 200), True, (288, 192), 192),
    ],
)
def test_sizes_follow_the_images(size: tuple, segmentation: bool, scale: tuple, crop: int) -> None:
    assert sizes_of(own(8, size), segmentation) == (scale, crop)


@pytest.mark.parametrize(
    ("sizes", "places"),
    [
        (set(), 80 * 60 + 40 * 30 + 20 * 15 + 10 * 8),
        ({(640, 480), (1280, 960)}, 80 * 60 + 40 * 30 + 20 * 15 + 10 * 8),
        ({(640, 480), (2000, 100)}, 80 * 4 + 40 * 2 + 20 + 10),  # 640x32
        ({(320, 10)}, 80 * 4 + 40 * 2 + 20 + 10),  # 640x20, padded to 32
    ],
)
def test_the_narrowest_image_has_a_place_for_each_query(sizes: set, places: int) -> None:
    assert places_in(dataclasses.replace(own(8), sizes=frozenset(sizes)), (640, 480)) == places


def test_sizes_are_those_of_all_images(here: Path) -> None:
    folder = write_objects(here / "wide", count=2)
    path = folder / "annotations/val.json"
    content = json.loads(path.read_text())
    content["images"][0]["width"], content["images"][0]["height"] = 30, 300
    path.write_text(json.dumps(content))
    data = objects_in(folder, {}, None, masks=False)
    assert data.sizes == {(WIDTH, HEIGHT), (300, 30)}
