"""Files of annotations, masks and images that are broken at any byte, or ask for memory: each is read or refused in one
line, within a bound of time and memory, and nothing is written outside of the output folder."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import os
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import broken_files, coco
from helpers.broken_files import FORMATS, one_of, png
from helpers.fuzzing import HANG, MEMORY, OUT, READ, REFUSED, campaign, refusal
from helpers.runs import write_config

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mm_vitbackbones import libraries
from mm_vitbackbones.cli import check_data, convert_dataset, predict
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.launch import loading_errors
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.data import masks
from mm_vitbackbones.data.reading import ImageReader, reason
from mm_vitbackbones.data.sizes import SizeReader
from mm_vitbackbones.errors import DataError, UserError

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]

FORMS = (
    "values of COCO JSON",
    "masks of COCO JSON",
    "bytes of COCO JSON",
    "bytes of an index mask",
    "header of an index mask",
    "bytes of images",
    "header of images",
    "bytes of bands",
    "header of bands",
)

DETECTOR = """
_base_ = "tiny_detector.py"
model = dict(
    data_preprocessor=dict(mean=[100] * {channels}, std=[50] * {channels}, bgr_to_rgb=False, **{preprocessor}),
    backbone=dict(in_channels={channels}),
    bbox_head=dict(num_classes=2),
)
load = {load}
keep = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
resize = dict(type="Resize", scale=(96, 96), keep_ratio=True)
annotations = dict(type="LoadAnnotations", with_bbox=True)
files = dict(
    _delete_=True,
    type="CocoDataset",
    data_root="data",
    ann_file="boxes.json",
    data_prefix=dict(img="images"),
    metainfo=dict(classes=("cat", "dog")),
)
train_dataloader = dict(dataset=dict(pipeline=[load, annotations, resize, dict(type="PackDetInputs")], **files))
val_dataloader = dict(
    dataset=dict(test_mode=True, pipeline=[load, resize, dict(type="PackDetInputs", meta_keys=keep)], **files)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="data/boxes.json")
test_evaluator = val_evaluator
"""

SEGMENTOR = """
_base_ = "tiny_segmentor.py"
model = dict(
    data_preprocessor=dict(mean=[100] * {channels}, std=[50] * {channels}, bgr_to_rgb=False),
    backbone=dict(in_channels={channels}),
    decode_head=dict(num_classes=4),
)
load = {load}
resize = dict(type="Resize", scale=(96, 96), keep_ratio=True)
pack = dict(type="PackSegInputs")
files = dict(
    _delete_=True,
    type="BaseSegDataset",
    data_root="data",
    data_prefix=dict(img_path="images", seg_map_path="masks"),
    img_suffix="{suffix}",
    seg_map_suffix="{mask}",
    metainfo=dict(classes=("a", "b", "c", "d")),
)
train_dataloader = dict(dataset=dict(pipeline=[load, dict(type="LoadAnnotations"), resize, pack], **files))
val_dataloader = dict(dataset=dict(pipeline=[load, resize, dict(type="LoadAnnotations"), pack], **files))
test_dataloader = val_dataloader
num_classes = 4
"""

PLAIN, BANDS = 'dict(type="LoadImageFromFile")', 'dict(type="mm_vitbackbones.LoadMultichannelImage")'
PREPROCESSOR = 'dict(type="mm_vitbackbones.MultichannelDetDataPreprocessor")'
MASKS = (("PNG", ".png"), ("TIFF", ".tif"), ("BMP", ".bmp"))


class Campaign:
    """Writes and reads the inputs of seeds.

    Args:
        folder: where configs and checkpoints are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("tiny_detector", "tiny_segmentor"):
            write_config(name, Path("data"), folder)
        for with_masks in (False, True):
            coco.config(Path("data"), with_masks).dump(folder / f"boxes_{with_masks}.py")
        for channels, load, suffixes in ((3, PLAIN, [suffix for _, suffix in FORMATS]), (6, BANDS, [".npy", ".tif"])):
            detector = DETECTOR.replace("{preprocessor}", PREPROCESSOR if channels == 6 else "dict()")
            self.write(f"detector_{channels}", detector, channels=f"{channels}", load=load)
            for suffix, (_, mask) in itertools.product(suffixes, MASKS):
                name = f"segmentor_{channels}{suffix}{mask}"
                self.write(name, SEGMENTOR, channels=f"{channels}", load=load, suffix=suffix, mask=mask)
            for name in (f"detector_{channels}", f"segmentor_{channels}{suffix}{mask}"):
                model = build_model(load_config(folder / f"{name}.py", {}))
                torch.save({"state_dict": model.state_dict()}, self.checkpoint(name))
        self.configs = {path: load_config(path, {}) for path in folder.glob("*_*.py") if "tiny" not in path.name}

    def write(self, name: str, text: str, **values: str) -> None:
        for key, value in values.items():
            text = text.replace(f"{{{key}}}", value)
        (self.folder / f"{name}.py").write_text(text)

    def checkpoint(self, config: str) -> Path:
        return self.folder / f"{config.partition('.')[0]}.pth"

    def make(self, seed: int, place: Path) -> str:
        """Write the input of a seed.

        Returns:
            its form, one of ``FORMS``, and after a slash how it is read.
        """
        rng, form = np.random.default_rng(seed), FORMS[seed % len(FORMS)]
        data = place / "data"
        (data / "masks").mkdir(parents=True)
        way, _, what = form.partition(" of ")
        if what == "COCO JSON":
            coco.write_images(data)
            (data / "boxes.json").write_bytes(broken_files.annotation_file(rng, way))
            return f"{form}/{one_of(rng, ('boxes_False', 'boxes_True'))}"
        (data / "images").mkdir()
        images = [(kind, suffix) for kind, suffix in FORMATS if what == "images" or suffix == ".png"]
        kind, suffix = one_of(rng, images)
        mask_kind, mask_suffix = one_of(rng, MASKS if "mask" in what else MASKS[:1])
        if what == "bands":
            suffix = one_of(rng, (".npy", ".tif"))
        broken = int(one_of(rng, (1, 2)))
        (data / "classes.txt").write_text("a\nb\nc\nd\n")
        for number in range(3):
            path, mask = data / f"images/{number}{suffix}", data / f"masks/{number}{mask_suffix}"
            if what == "bands" and number < broken:
                broken_files.bands(rng, path, way == "header")
            elif what == "bands":
                self.whole_bands(path)
            else:
                path.write_bytes(whole(kind))
                if what == "images" and number < broken:
                    path.write_bytes(changed(rng, way, kind))
            mask.write_bytes(whole(mask_kind, channels=1))
            if "mask" in what and number < broken:
                mask.write_bytes(changed(rng, way, mask_kind, channels=1))
        write_boxes(data, [f"{number}{suffix}" for number in range(3)])
        channels = 6 if what == "bands" else 3
        is_mask = "mask" in what or rng.random() < 0.4
        return f"{form}/" + (f"segmentor_{channels}{suffix}{mask_suffix}" if is_mask else f"detector_{channels}")

    def whole_bands(self, path: Path) -> None:
        values = np.random.default_rng(0).normal(100, 50, (16, 20, 6)).astype(np.float32)
        if path.suffix == ".npy":
            np.save(path, values)
        else:
            broken_files.write_tiff(path, [values[..., band] for band in range(6)])

    def read(self, place: Path, form: str) -> str:
        """Read an input by the commands that its form has. It is a process of its own."""
        for reader in (check_data, predict):  # reading a config takes longer than the rest
            reader.load_config = lambda path, options: copy.deepcopy(self.configs[path])  # type: ignore[attr-defined]
        form, _, name = form.partition("/")
        config = self.folder / f"{name}.py"
        try:
            said = [command(check_data.main, config, "--check-all")]
            if said[0] == READ or "COCO" not in form:
                said.append(load_for_training(self.configs[config], config, whole=said[0] == READ))
            if "COCO" in form or "mask" in form:
                words = (
                    ["--format", "coco"] if "COCO" in form else ["--format", "masks", "--classes", "data/classes.txt"]
                )
                said.append(command(convert_dataset.main, "data", OUT, *words, "--val", "0", "--copy"))
            else:
                said.append(command(check_data.main, config, "--statistics"))
                said.append(self.predict(place, config))
        except BaseException as error:  # the process goes on
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{name}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        if wrong := [each for each in said if each not in (READ, REFUSED)]:
            return f"{name}: {wrong}"
        return said[0]

    def predict(self, place: Path, config: Path) -> str:
        """Predict by images of which the last one is whole."""
        words = ("--device", "cpu", "--out", OUT)
        outcome = command(predict.main, config, self.checkpoint(config.name), "data/images", *words, codes=(0, 1))
        if outcome == READ and not [*(place / OUT).glob("2.png")]:
            return f"predict has no result of a whole image: {[*(place / OUT).iterdir()]}"
        return outcome


def whole(kind: str, channels: int = 3) -> bytes:
    values = np.random.default_rng(0).integers(0, 4 if channels == 1 else 256, (16, 20, channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values.squeeze(2) if channels == 1 else values).save(file, kind)
    return file.getvalue()


def changed(rng: np.random.Generator, way: str, kind: str, channels: int = 3) -> bytes:
    content = broken_files.image(rng, kind, channels)
    if way == "header":
        return broken_files.change_header(rng, kind, content)
    return broken_files.change_bytes(rng, content)


def write_boxes(root: Path, names: list[str]) -> None:
    """An annotation file that is right: an object in each image of 20 x 16 pixels."""
    found = [
        dict(id=i + 1, image_id=i, category_id=1, bbox=[2, 2, 8, 8], area=64, iscrowd=0) for i in range(len(names))
    ]
    images = [dict(id=i, file_name=name, width=20, height=16) for i, name in enumerate(names)]
    content = dict(images=images, annotations=found, categories=[dict(id=1, name="cat"), dict(id=2, name="dog")])
    (root / "boxes.json").write_text(json.dumps(content))


def command(main: Callable[[list[str]], None], *arguments: Any, codes: tuple[int, ...] = (0,)) -> str:
    """What a command says of an input.

    Args:
        codes: the exit codes of an input that is read.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(main, [*map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
    said = err.getvalue()
    outcome = READ if code in codes else refusal("\n".join(line for line in said.splitlines() if line[:7] == "error: "))
    if code not in (2, *codes) or "Traceback" in said or refusal(f"{said}.", most=50) != REFUSED:
        return f"{main.__module__} ended with {code}: {said}"
    return outcome


def load_for_training(cfg: Config, config: Path, whole: bool) -> str:
    """Load all that a training would.

    Args:
        whole: nothing wrong was found in the data.
    """
    libraries.use(libraries.scope_of(cfg))
    try:
        with loading_errors(config), DefaultScope.overwrite_default_scope(libraries.scope_of(cfg)):
            with contextlib.redirect_stdout(io.StringIO()):
                dataset = DATASETS.build(copy.deepcopy({**cfg.train_dataloader.dataset, "serialize_data": False}))
            for index in range(len(dataset)):
                try:
                    assert dataset[index]["inputs"].numel()
                except Exception:
                    if whole:
                        raise
    except DataError as error:
        return f"training: {error}" if whole else refusal(str(error))
    return READ


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("campaign"))


def results_of(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """How many inputs of each form were read and refused."""
    found: dict[str, dict[str, int]] = {form: {READ: 0, REFUSED: 0} for form in FORMS}
    for (form, result), count in counts.items():
        known = found[form.partition("/")[0]]
        known[result] = known.get(result, 0) + count
    return found


def test_changed_files_are_read_or_refused(made: Campaign, tmp_path: Path) -> None:
    counts, wrong = campaign(tmp_path, made.make, made.read, seconds=20, inputs=45)
    assert not wrong
    assert sum(counts.values()) > 20
    assert {result for _, result in counts} == {READ, REFUSED}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_changed_files_are_read_or_refused_for_ten_minutes(made: Campaign, tmp_path: Path) -> None:
    counts, wrong = campaign(tmp_path, made.make, made.read, seconds=600, begin=10**6)
    print(sum(counts.values()), "inputs:", results_of(counts))
    assert not wrong
    assert all(found[READ] and found[REFUSED] for found in results_of(counts).values())


@contextlib.contextmanager
def bounded(case: str) -> Iterator[None]:
    """Fail after so many seconds, and where so much more memory is asked for at once. A ``UserError`` is an answer."""
    overdue, outcome = [], REFUSED

    def late(*_: Any) -> None:
        overdue.append(case)
        raise AssertionError(f"{case}: no answer within {HANG} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, HANG, 1)  # again and again, where a reader takes the error for one of a file
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    try:
        yield
    except UserError as error:
        outcome = refusal(str(error))
    except Exception as error:
        error.add_note(case)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
    assert not overdue, f"{case}: no answer within {HANG} s"
    assert outcome == REFUSED, case


class Listed:
    """What is asked of a data set of segmentation."""

    def __init__(self) -> None:
        self.metainfo = {"classes": tuple(map(str, range(255)))}


@pytest.mark.parametrize(
    ("width", "height"), [(16000, 16000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)], ids=["large", "largest", "wide"]
)
def test_a_small_file_of_a_large_image_is_refused_before_it_is_loaded(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries.use("mmseg")
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height))
    steps = [dict(type="LoadImageFromFile")]
    listed = masks.Masks([*steps, dict(type="LoadAnnotations")], Listed(), "train_dataloader", every=False)
    info = {"img_path": str(path), "seg_map_path": str(path)}
    expected = rf"it has {width * height:,} pixels, and the limit is 134,217,728; .*MM_VITBACKBONES_LIMITS=10"
    for refuse in (
        lambda: ImageReader(steps)(info),
        lambda: SizeReader(steps)(info, whole=False),
        lambda: listed.labels(info),
        lambda: convert_dataset.masks.loaded_size(path),
    ):
        with bounded("large"), pytest.raises(UserError, match=expected):
            refuse()


@pytest.mark.parametrize("name", ["a.png", "a.json", "a.txt", "a.xml", "classes.txt"])
def test_a_named_pipe_among_the_files_is_not_waited_for(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    coco.write_images(source)
    os.mkfifo(source / "images" / name)
    for kind in ("coco", "yolo", "voc", "labelme", "masks"):
        with bounded(kind), contextlib.suppress(UserError):
            convert_dataset.main([str(source), str(tmp_path / "out"), "--format", kind])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with bounded("read"), pytest.raises(UserError, match="it is a named pipe, and no file"):
        ImageReader([dict(type="LoadImageFromFile")])({"img_path": str(source / "images" / name)})


def test_bounds_are_seen() -> None:
    with pytest.raises(MemoryError), bounded("memory"):
        bytearray(2 * MEMORY)
    with pytest.raises(AssertionError, match="memory"), bounded("memory"):
        raise UserError(reason(MemoryError()))
