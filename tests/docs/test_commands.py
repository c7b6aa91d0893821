"""The commands and programs of the documentation run as they are written, page by page, in one folder.

A page is run from top to bottom as a reader would do it, on the small data of helpers/reader.py:

- ``bash``: each line is run, or stands in ``NOT_RUN`` with the reason. A training stops after one epoch or iteration.
- ``python`` with a file name in its first line is that file. A config that no command names is read by ``describe``.
- Any other ``python`` is run; a page's programs share their names.

Trainings, tests and predictions take minutes: the default run leaves them out.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from helpers.pages import PAGES, Block, blocks
from helpers.runs import run_line

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mm_vitbackbones.checkpoints import published
from mm_vitbackbones.cli.arguments import config_file
from mm_vitbackbones.cli.config import read_config
from mm_vitbackbones.nodes import type_name

pytestmark = [pytest.mark.mmdet, pytest.mark.mmseg, pytest.mark.xdist_group("docs")]

NOT_RUN = {
    r"pip (install|download) ": "fetches packages",
    r"pip uninstall ": "changes the environment",
    r"make ": "sets up an environment of its own, and runs the tests or the demo",
    r"source \.venv/": "is of the environment that make has set up",
    r"\.venv/bin/pre-commit install": "changes the repository",
    r"CFLAGS=.* MMCV_WITH_OPS=1 pip install ": "compiles mmcv",
    r"python (tools/make_model_zoo.py|-m pytest )": "is run by tests/docs/test_contributing.py, in a copy",
    r"python tools/setup/make_hashes\.py": "asks the package index",
    r"sed -n .* constraints\.txt ": "writes what the next line reads",
    r"(PYTHONPATH=\S+ )?python tools/benchmark\.py ": "takes minutes or a GPU; tests/tools/ has toys",
    r"(torchrun --nnodes|srun --nodes) 2 ": "needs two machines",
    r"torchrun --nproc_per_node 8 ": "needs eight GPUs; tests/test_main.py starts two processes",
}
"""How lines begin that are not run here, and why."""

LONG = ("train", "test", "predict", "look", "analyze", "export")
"""Commands that take seconds or minutes."""

EXPORTS = "docs/export.md"
"""Its programs run the files of its commands, which take minutes, and need packages that `make setup` leaves out."""

WITH_CODE = [page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))]


def reason(line: str) -> str | None:
    """The entry of ``NOT_RUN`` that a line falls under."""
    return next((start for start in NOT_RUN if re.match(start, line)), None)


def command_of(line: str) -> str:
    found = re.match(r"(?:PYTHONPATH=\S+ )?python (?:-m mm_vitbackbones|tools/(?=\w+\.py)) ?(\w+)", line)
    return found[1] if found else ""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.reader import write_checkpoints, write_data, write_weights

    root = tmp_path_factory.mktemp("reader")
    write_data(root / "here")
    write_weights(root / "home", root / "here")
    write_checkpoints(root / "here")
    return root


class Reader:
    """Somebody who types what a page says, in a folder with data."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.names: dict[str, object] = {"__name__": "__main__"}

    def reads(self, block: Block, everything: bool) -> None:
        if block.language == "python" and block.file_name:
            (self.folder / block.file_name).write_text(block.text)
            if "_base_" in block.text and not any(
                block.file_name in line for line in self.lines(block.page, everything)
            ):
                self.types(f"python -m mm_vitbackbones describe ./{block.file_name}", block)
        elif block.language == "python":
            exec(compile(block.text, block.where, "exec"), self.names)
        for line in block.commands:
            if line in self.lines(block.page, everything):
                self.types(line, block)
            elif command_of(line) == "train" and not reason(line):
                self.check_weights(line, block)

    @staticmethod
    def lines(page: str, everything: bool) -> list[str]:
        """What is run of a page."""
        lines = [line for block in blocks(page) for line in block.commands if not reason(line)]
        return lines if everything else [line for line in lines if command_of(line) not in LONG]

    def types(self, line: str, block: Block) -> None:
        line = re.sub(r"\s+#.*", "", line)
        if command_of(line) == "train":
            line = self.shortened(line)
        outcome = run_line(line, self.folder, TORCH_HOME=str(self.home))
        assert outcome.returncode == 0, f"{block.where}: {line}\n{outcome.stdout[-2000:]}\n{outcome.stderr[-2000:]}"
        self.keep_checkpoints()

    def check_weights(self, line: str, block: Block) -> None:
        """What a training downloads is there already."""
        from helpers.reader import downloaded

        backbone = read_config(self.folder / config_file(line.split()[4])).model.backbone
        checkpoint = (backbone.get("init_cfg") or {}).get("checkpoint")
        url = str(published.resolve(checkpoint, type_name(backbone), backbone.arch)) if checkpoint else ""
        assert "://" not in url or downloaded(url, self.home).is_file(), f"{block.where}: {line}: {url}"

    def shortened(self, line: str) -> str:
        """A training of one epoch or iteration, or of one more."""
        end = 2 if "--resume" in line else 1
        cfg = read_config(self.folder / config_file(line.split()[4]))
        unit = "epochs" if "max_epochs" in cfg.train_cfg else "iters"
        cut = f"train_cfg.max_{unit}={end} train_cfg.val_interval={end}"
        if unit == "iters":
            cut += " default_hooks.checkpoint.interval=1"
        return f"{line} {'' if '--cfg-options' in line else '--cfg-options '}{cut}"

    def keep_checkpoints(self) -> None:
        """Give the only checkpoint of a shortened training the names of what the whole one would end with, too."""
        for note in self.folder.glob("work_dirs/*/last_checkpoint"):
            last = Path(note.read_text())
            for name in ("epoch_12.pth", "iter_40000.pth"):
                named = note.parent / name
                if last.stem.partition("_")[0] == name.partition("_")[0] and not named.exists():
                    named.unlink(missing_ok=True)  # a link to a checkpoint that was removed
                    named.symlink_to(last)


@pytest.fixture
def reader(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    folder = tmp_path / "here"
    shutil.copytree(template / "here", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TORCH_HOME", str(template / "home"))
    return Reader(folder, template / "home")


@pytest.mark.parametrize("page", [page for page in WITH_CODE if page != EXPORTS])
def test_commands_and_programs_of_a_page_run_as_written(page: str, reader: Reader) -> None:
    for block in blocks(page):
        reader.reads(block, everything=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # trainings of several recipes at their own size
@pytest.mark.parametrize("page", WITH_CODE)
def test_a_whole_page_runs_as_written(page: str, reader: Reader) -> None:
    if page == EXPORTS:
        pytest.importorskip("onnxruntime")
    for block in blocks(page):
        reader.reads(block, everything=True)


def test_what_the_page_of_exports_reads_is_there(reader: Reader) -> None:
    files = []
    for block in blocks(EXPORTS):
        files += [word for line in block.commands for word in line.split() if word.endswith(".pth")]
        files += re.findall(r'imread\("(.*?)"', block.text)
    assert len(files) == 3
    assert [file for file in files if not (reader.folder / file).is_file()] == []


@pytest.mark.parametrize("page", WITH_CODE)
def test_every_line_is_run_or_is_known_not_to_be(page: str) -> None:
    lines = [line for block in blocks(page) for line in block.commands]
    assert [line for line in lines if not reason(line) and not command_of(line)] == []


def test_every_reason_is_of_a_line() -> None:
    lines = [line for page in WITH_CODE for block in blocks(page) for line in block.commands]
    assert {reason(line) for line in lines} - {None} == set(NOT_RUN)
