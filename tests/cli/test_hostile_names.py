"""Names that steer a terminal, break a line, lead out of their folder or look like code, through every command.

They are names of folders, configs, checkpoints, images and classes, and keys of checkpoints. Whatever a command does
with them, nothing of them reaches the terminal or a log as it is, nothing is written elsewhere, and it ends in order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from PIL import Image

from helpers.paths import CONFIGS, TEST_CONFIGS
from helpers.toys import TOYS
from mm_vitbackbones import __main__ as door

NAMES = {
    "escapes": "\x1b]0;title\x07\x1b[2J\x9b31ma",
    "line ends": "a\nerror: all is lost\rb",
    "bidi": "a\u202egnp\u2066\u200fb",
    "quotes": "a'b\"c`d$(touch pwned)\\",
    "formula": "$\\frac{a$_",
    "percent": "100%s%d%n{a}{0}%(b)s",
    "template": "x'{{$HOME:a\"}}{{ fileDirname }}{{_base_.b}}",
    "code": "a\nopen('pwned', 'w')#\"\"\"'''",
    "dashes": "--help -rf",
    "dots": "..a..",
    "long": "n" * 245,
    "bytes": "a\udcffb",
    "glob": "a[0-9]*?{b,c}",
}
ALL = "".join(name for kind, name in NAMES.items() if kind != "long")
HARMLESS = "\n\t\u00a0\u3000\u200c\u200d"

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg]


@pytest.fixture(autouse=True)
def own_scope(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MMEngine keeps the default scope, which a command sets, its loggers, and its visualizers, which write into the
    folder of their first run, for the whole process."""
    for singleton in (DefaultScope, MMLogger, Visualizer, *Visualizer.__subclasses__()):
        monkeypatch.setattr(singleton, "_instance_dict", OrderedDict())
    yield
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()


def check_inert(text: str) -> None:
    assert [c for c in text if not c.isprintable() and c not in HARMLESS] == []
    assert [line for line in text.splitlines() if line.startswith(("error: all is lost", "open("))] == []


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Runs a command in ``tmp_path/work``, checks what it prints, and returns that."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: Any, code: int = 0) -> str:
        try:
            found = door.main([*map(str, arguments)])
        except SystemExit as error:
            found = error.code
        out, err = capfd.readouterr()
        check_inert(out + err)
        assert found == code, out + err
        assert code == 0 or (err.startswith("error: ") and err.count("\n") == 1), err
        return out + err

    yield run
    assert os.listdir(tmp_path) == ["work"]
    assert not list(tmp_path.rglob("pwned"))


def image_name(number: int, name: str) -> str:
    """Annotations name their images, with ``\\`` between folders if Windows wrote them, and in Unicode."""
    return f"{number}{name}".replace("\\", "")[:245].encode("utf-8", "replace").decode() + ".png"


def noise(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)


def class_names(name: str) -> list[str]:
    return [name, f"../{name}", f"/etc/{name}", "plain"]


def write_labelme(source: Path, name: str) -> None:
    """Objects of four classes, in eight images."""
    for number in range(8):
        image = image_name(number, name)
        noise(source / image)
        shape = dict(label=class_names(name)[number % 4], shape_type="rectangle", points=[[10, 10], [30, 30]])
        content = dict(version="5.0", imagePath=image, imageWidth=50, imageHeight=40, imageData=None, shapes=[shape])
        (source / image).with_suffix(".json").write_text(json.dumps(content))


def walk_of_data(name: str, command: Callable[..., str]) -> None:
    """From foreign data to a config: ``convert_dataset``, ``check_data``, ``new_config``, ``describe``."""
    source, out = Path(f"source{name}"[:200]), Path(f"out{name}"[:200])
    write_labelme(source, name)
    command("convert_dataset", source, out, "--copy")
    (written,) = out.glob("*.py")
    check_inert(written.read_text())
    command("check_data", written)
    own = out / f"{f'own{name}'[:240]}.py"
    options = ["--task", "detection", "--backbone", "pvt_v2_b0", "--init", "none"]
    command("new_config", "--data", out, *options, "--out", own)
    check_inert(own.read_text())
    command("describe", own, "--size", "64")
    content = json.loads((out / "annotations/train.json").read_text())
    names = {category["name"] for category in content["categories"]}
    assert names == {*class_names(name)}
    from mm_vitbackbones.cli.config import read_config

    assert {*read_config(own).train_dataloader.dataset.metainfo.classes} == names


@pytest.mark.parametrize("kind", ["line ends", "template", "code", "all"])
def test_a_folder_and_classes_of_such_names_become_a_config_that_is_read(
    kind: str, command: Callable[..., str]
) -> None:
    walk_of_data(ALL if kind == "all" else NAMES[kind], command)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_folders_and_classes_of_all_such_names_become_configs(kind: str, command: Callable[..., str]) -> None:
    walk_of_data(NAMES[kind], command)


def test_classes_of_masks_become_a_config_that_is_read(command: Callable[..., str]) -> None:
    """A line of ``classes.txt`` is a class, so that there are no line ends in these."""
    name = "".join(c for c in ALL if c not in "\n\r\x9b\udcff")
    source = Path("source")
    for number in range(8):
        noise(source / "images" / image_name(number, name))
        mask = source / "masks" / image_name(number, name)
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.arange(2000, dtype=np.uint8).reshape(40, 50) % 4).save(mask)
    Path("classes").write_text("".join(f"{each}\n" for each in class_names(name)))
    command("convert_dataset", source, "out", "--classes", "classes", "--copy")
    (written,) = Path("out").glob("*.py")
    check_inert(written.read_text())
    command("check_data", written)


ARGUMENTS: Sequence[Sequence[str]] = [
    ["NAME"],
    ["doctor", "NAME"],
    ["ops", "NAME"],
    ["prepare_data", "NAME"],
    ["configs", "NAME"],
    ["config", "NAME"],
    ["config", "../NAME", "--out", "a.py"],
    ["describe", "NAME"],
    ["describe", "pvt_tiny", "--arch", "NAME"],
    ["convert_dataset", "NAME", "out"],
    ["convert_checkpoint", "NAME", "out.pth"],
    ["check_data", "./NAME.py"],
    ["check_data", "segformer_mit_b0_mini", "--cfg-options", "NAME"],
    ["try_config", "NAME"],
    ["new_config", "--data", "NAME", "--task", "detection", "--backbone", "pvt_v2_b0"],
    ["new_config", "--data", ".", "--task", "detection", "--backbone", "NAME"],
    ["train", "NAME"],
    ["train", "segformer_mit_b0_mini", "--amp", "NAME"],
    ["test", "segformer_mit_b0_mini", "NAME.pth"],
    ["predict", "segformer_mit_b0_mini", "NAME.pth", "NAME"],
    ["analyze", "segformer_mit_b0_mini", "NAME.pkl"],
    ["analyze", "--logs", "./NAME"],
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_a_command_refuses_such_names_in_one_line(arguments: Sequence[str], command: Callable[..., str]) -> None:
    for name in (f"a{ALL}", "--\x1b[2J", NAMES["long"]):
        if arguments == ["NAME"] and name.startswith("--"):
            continue
        command(*(argument.replace("NAME", name) for argument in arguments), code=2)


def test_a_recipe_is_written_to_such_a_place(command: Callable[..., str]) -> None:
    name = f"a{ALL}"
    command("config", "segformer_mit_b0_mini", "--out", f"{name}.py")
    check_inert(Path(f"{name}.py").read_text())
    command("describe", f"./{name}.py", "--size", "64")


@pytest.mark.slow
def test_a_data_set_is_written_to_such_a_place(command: Callable[..., str]) -> None:
    command("prepare_data", "mini", "--out", f"a{ALL}")


def test_keys_of_such_names_are_escaped_in_a_conversion(command: Callable[..., str]) -> None:
    name = f"a{ALL}"
    state = TOYS["pvt"]().state_dict()
    file = Path(f"{name[:200]}.pth")
    for content in (
        {**state, name: torch.ones(2), f"../{name}": torch.ones(1)},
        {name: state},
        {"state_dict": {**state, f"head.{name}": torch.ones(1)}, name: {name: [name]}},
        {key.replace("block1", name): tensor for key, tensor in state.items()},
    ):
        torch.save(content, file)
        command("convert_checkpoint", file, "out.pth", "--force", code=2)


# ---- with trainings


def write_detector(name: str) -> Path:
    """A config of a small detector, and its data; all have such names."""
    root = Path(f"data{name}"[:200]).absolute()
    categories = [{"id": 1 + index, "name": each} for index, each in enumerate([*class_names(name), f"ring{name}"])]
    images, annotations = [], []
    for number in range(8):
        noise(root / "images" / image_name(number, name))
        images.append(dict(id=number, file_name=image_name(number, name), width=50, height=40))
        box = dict(bbox=[8, 8, 30, 30], area=900, iscrowd=0)
        annotations.append(dict(id=number + 1, image_id=number, category_id=number % 5 + 1, **box))
    (root / "annotations").mkdir()
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / "annotations/instances_smoke.json").write_text(json.dumps(content))
    text = (TEST_CONFIGS / "tiny_detector.py").read_text()
    classes = 'classes = ("ball", "beetle", "crate", "starfish", "ring")'
    assert classes in text
    own = f"{root}/annotations/instances_smoke.json"
    for old, new in (
        (classes, f"classes = {tuple(category['name'] for category in categories)!r}"),
        ('"{root}/annotations/instances_smoke.json"', repr(own)),
        ('"{root}"', repr(str(root))),
        ("{configs}", str(CONFIGS)),
        ("images/smoke/", "images/"),
        ("max_epochs=2", "max_epochs=1"),
        ("{{", r"{\x7b"),
    ):
        text = text.replace(old, new)
    config = root / f"{f'config{name}'[:240]}.py"
    config.write_text(text)
    return config


def walk_of_a_run(name: str, command: Callable[..., str]) -> None:
    config = write_detector(name)
    run, out = Path(f"run{name}"[:200]), Path(f"out{name}"[:200])
    command("train", config, "--work-dir", run)
    (dumped,) = run.glob("*.py")
    command("check_data", dumped)
    command("train", config, "--work-dir", run, "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    checkpoint = run / f"{f'weights{name}'[:240]}.pth"
    shutil.copy(run / "epoch_2.pth", checkpoint)
    drawings = run / f"drawings{name}"[:200]
    results = run / f"{f'results{name}'[:240]}.pkl"
    command("test", config, checkpoint, "--work-dir", run / "test", "--show-dir", drawings, "--out", results)
    assert len(list(drawings.rglob("*.png"))) == 8
    assert results.is_file()
    command("analyze", config, results, "--against", results, "--resamples", 2, "--logs", run, "--out", "page")
    for path in Path("page").iterdir():
        check_inert(path.read_text("utf-8"))
    command("predict", config, checkpoint, config.parent / "images", "--out", out)
    assert len(list(out.rglob("*.png"))) == 8
    command("try_config", config, "--size", "64")
    assert (run / "curves.png").is_file()
    logs = [path for path in run.rglob("*") if path.suffix in (".log", ".json") and path.is_file()]
    assert len(logs) > 4
    for path in logs:
        check_inert(path.read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [*NAMES, "all"])
def test_a_run_of_such_names_ends_well(kind: str, command: Callable[..., str]) -> None:
    walk_of_a_run(ALL if kind == "all" else NAMES[kind], command)
