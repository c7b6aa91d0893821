"""CONTRIBUTING's way to a new family, step by step in a copy of the repository, with the toy family in family/."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.pages import blocks, path_of
from helpers.paths import ROOT

FILES = Path(__file__).parent / "family"
TOYS = "tests/helpers/toys/pool.py"
NAMES = {"<family>": "pool", "<Family>": "Pool", "<method>": "retinanet", "<size>": "t", "<dataset>": "coco"}
"""What the guide's words in angle brackets are here."""

CONFIG = """# RetinaNet with Pool-Tiny on COCO 2017, 1x schedule: 12 epochs, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/retinanet_pool_t_coco.py 8
# No published result: by PVT's recipe, untested.
_base_ = [
    "_base_/models/retinanet.py",
    "_base_/datasets/coco_detection.py",
    "_base_/optimizers/adamw.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.Pool", arch="tiny"),
    neck=dict(in_channels=[32, 48, 64]),
)
"""


class Copy:
    """A copy of the repository. It knows which of its files were written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written: set[str] = set()

    def write(self, name: str, text: str) -> None:
        assert not (self.root / name).exists()
        (self.root / name).write_text(text)
        self.written.add(name)

    def insert(self, name: str, before: str, text: str) -> None:
        """Put text in front of the only place of another one."""
        content = (self.root / name).read_text()
        assert content.count(before) == 1, f"{before!r} in {name}"
        (self.root / name).write_text(content.replace(before, text + before))
        self.written.add(name)

    def add(self, name: str, entry: str, text: str) -> None:
        """Put lines at the beginning of a table, whose first line ends like ``entry``."""
        content = (self.root / name).read_text()
        found = re.search(rf"^{entry}\b.*[\[({{](  #.*)?\n", content, flags=re.MULTILINE)
        assert found, f"{entry} in {name}"
        (self.root / name).write_text(content[: found.end()] + text + content[found.end() :])
        self.written.add(name)

    def run(self, *command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": f"{self.root}{os.pathsep}{self.root / 'tests'}"}
        environment.pop("PYTEST_ADDOPTS", None)
        done = subprocess.run(
            [sys.executable, *command], cwd=self.root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def step_1(copy: Copy) -> None:
    copy.write("mm_vitbackbones/backbones/pool.py", (FILES / "pool.py").read_text())
    place = "mm_vitbackbones/backbones/__init__.py"
    copy.insert(place, "from mm_vitbackbones.backbones.pvt import", "from mm_vitbackbones.backbones.pool import Pool\n")
    copy.insert(place, '"Swin"', '"Pool", ')


def step_2(copy: Copy) -> None:
    copy.write("mm_vitbackbones/checkpoints/tables/pool.py", (FILES / "pool_table.py").read_text())
    # It is not on the list of other networks.


def step_3(copy: Copy) -> None:
    copy.run(str(FILES / "official.py"), str(copy.root / "tests/data"))
    copy.written.add("tests/data/pool.npz")
    copy.write(TOYS, (FILES / "pool_toys.py").read_text())


def step_4(copy: Copy) -> None:
    made = copy.root / "tests/data"
    copy.written.add("tests/data/pool_names.txt")
    # The other values are in the file of step 4.
    copy.insert(TOYS, ")\n", "".join((made / f"pool_{name}.txt").read_text() for name in ("parameters", "golden")))


def step_5(copy: Copy) -> None:
    copy.write("configs/retinanet_pool_t_coco.py", CONFIG)
    copy.add("tests/configs/test_detection.py", "ZOO", '    "retinanet_pool_t_coco": (0.1, None, ()),\n')


def step_6(copy: Copy) -> None:
    figures = [described(copy, side) for side in ("224", "512")]
    (millions, small), (_, large) = figures
    name, paper = "`mm_vitbackbones.Pool`", "[Nobody 2021](https://arxiv.org/abs/2100.00001)"
    cost = f"{float(millions):.1f} (0.2) | {float(small):.2f} (0.1) | {float(large):.1f}"
    row = f"| {name} | `tiny` | 16, 32, 48, 64 | {cost} | 71.5 | {paper} |\n"
    copy.insert("docs/backbones.md", "| `mm_vitbackbones.Swin` |", row)
    copy.insert("docs/backbones.md", "**Those of MiT", "The weights of Pool are under Apache-2.0.\n")
    figures_of_all = f"{float(millions):.1f} to {float(millions):.1f} | 71.5 to 71.5"
    row = f"| {name} | 1, `tiny` | {figures_of_all} | Apache-2.0 | {paper} |\n"
    copy.insert("README.md", "| `mm_vitbackbones.Swin` |", row)
    copy.insert("CHANGELOG.md", "- `PVT` (tiny,", "- `Pool` (tiny).\n")


def described(copy: Copy, side: str) -> tuple[str, str]:
    """Millions of parameters and G of multiply-adds."""
    said = copy.run("-m", "mm_vitbackbones", "describe", "Pool", "--size", side)
    found = re.search(r"([\d.]+) M .*?([\d.]+) G", said, flags=re.DOTALL)
    assert found, said
    return found[1], found[2]


def step_7(copy: Copy) -> None:
    """The command of the guide is all of it."""


STEPS: list[Callable[[Copy], None]] = [step_1, step_2, step_3, step_4, step_5, step_6, step_7]


def guide() -> str:
    text = path_of("CONTRIBUTING.md").read_text("utf-8").partition("## Add a family")[2]
    for word, name in NAMES.items():
        text = text.replace(word, name)
    return text


def steps() -> list[str]:
    return re.split(r"^\d+\. ", guide(), flags=re.MULTILINE)[1:]


NAMED_ONLY = ("docs/published.json", "tests/helpers/official.py", "docs/configs.md", "tools/benchmark.py")
OF_ATTENTION = ("tests/inspection/test_attention.py",)
"""What a family has to do with whose attention layers are its own. This one has none."""


def places(step: str) -> set[str]:
    """The files that a step names, as paths from the root of the repository."""
    found = re.findall(r"`((?:mm_vitbackbones|tests|configs|docs|tools)/[\w./]+\.\w+|[A-Z]+\.md)`", step)
    return {*found} - {*NAMED_ONLY, *OF_ATTENTION}


def test_the_script_has_the_steps_of_the_guide() -> None:
    assert len(steps()) == len(STEPS)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("CONTRIBUTING.md") if block.text in guide_blocks() for line in block.commands]
    for word, name in NAMES.items():
        lines = [line.replace(word, name) for line in lines]
    return [re.findall(r'"[^"]*"|\S+', line) for line in lines]


def guide_blocks() -> str:
    return path_of("CONTRIBUTING.md").read_text("utf-8").partition("## Add a family")[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the model zoo is made, too
@pytest.mark.mmdet
@pytest.mark.mmseg
def test_a_family_is_added_by_the_steps_of_the_guide(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    root = tmp_path / "copy"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    copy = Copy(root)
    for text, follow in zip(steps(), STEPS, strict=True):
        copy.written.clear()
        follow(copy)
        assert copy.written == places(text), text
    (making, testing) = commands()
    copy.run(*making[1:])
    assert "retinanet_pool_t_coco" in (root / "docs/model_zoo.md").read_text()
    said = copy.run(*(word.strip('"') for word in testing[1:]), "-q", "-p", "no:cacheprovider")
    passed = re.search(r"(\d+) passed", said)
    assert passed
    assert int(passed[1]) > 200
