"""The pages of the documentation: their links, tables and blocks of code."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import io
import re

import pytest
from mmengine.registry import Registry

from helpers.pages import PAGES, anchors, blocks, inline, path_of, tables, targets, tokens
from helpers.paths import ROOT
from mm_vitbackbones import registry
from mm_vitbackbones.__main__ import COMMANDS
from mm_vitbackbones.build import families
from mm_vitbackbones.cli.look import SHOWN
from mm_vitbackbones.cli.new_config import HEADS
from mm_vitbackbones.data.converting.recognise import FORMATS

LANGUAGES = {"bash", "python", "text", "bibtex"}

PACKAGE = ROOT / "mm_vitbackbones"

REGISTRIES = [value for value in vars(registry).values() if isinstance(value, Registry)]

OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")

OF_OTHERS = {"--node_rank", "--stronglyTyped"}
"""Options of torchrun and TensorRT that stand in the text alone."""

FIGURE = re.compile(
    r"(?<![\w.])\d[\d.,]*\s(?:ms|s|seconds|minutes|min|[MG]iB|[MG]B)\b(?! and more)|\b(?:AP(?:50|75)?|mIoU)\s[*]*0\.\d+"
)
"""A time, a size of memory, or an accuracy."""

LABEL = re.compile(r"measured|published|\bpapers?\b|untested|not run", re.IGNORECASE)
"""What says where figures come from."""

NO_RESULTS = ("CHANGELOG.md", "SECURITY.md", "docs/benchmarks_notes.md")
"""Pages without figures of their own: limits, and what is part of docs/benchmarks.md."""

SAID_BY_OTHERS = {"pip check", "opencv-python", "The testing results of the whole dataset is empty"}
"""What the page on troubleshooting explains of other programs."""

VALUES = r"\.\.\.|No space left on device|mmcv and mmcv-lite|data/coco/|2\.5"
"""What messages have in their places."""


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    broken = []
    for target in targets(page):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        path = (path_of(page).parent / name if name else path_of(page)).resolve()
        if not path.exists() or (heading and heading not in anchors(str(path.relative_to(ROOT)))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_rendered_as_tables(page: str) -> None:
    """A row with too few cells is filled in silence, one with too many is cut; a broken table is shown as text."""
    text = [token.content for token in tokens(page) if token.type == "inline"]
    assert [content for content in text if content.startswith("|")] == []
    lines = path_of(page).read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == sum(len(table) + 1 for table in tables(page))  # and a rule below each head
    for start, line in enumerate(lines):
        if re.fullmatch(r"\|( --- \|)+", line):
            width, row = line.count("|"), start - 1
            while row < len(lines) and lines[row].startswith("|"):
                assert re.sub(r"\\\|", "", lines[row]).count("|") == width, f"{page}:{row + 1}"
                row += 1


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_code_say_their_language(page: str) -> None:
    assert [block.where for block in blocks(page) if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    code = " ".join(token.content for token in inline(page) if token.type == "code_inline")
    named = set(re.findall(r"python -m mm_vitbackbones (\w+)", code)) - {"COMMAND"}
    assert named - {*COMMANDS, "doctor", "help"} == set()
    for path in set(re.findall(r"tools/\w+\.(?:py|sh)", code)) - {"tools/COMMAND.py"}:
        assert (ROOT / path).is_file(), path


def test_the_readme_is_one_that_is_read() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    families = [line for line in lines if line.startswith("| `mm_vitbackbones.")]  # each adds a row
    assert len(families) >= 12
    assert len(lines) - len(families) <= 138


def test_the_numbers_on_the_first_page_are_measured_ones() -> None:
    claims = next(table for table in tables("README.md") if table[0][0] == "measured")[1:]
    assert len(claims) == 3
    measured = "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("benchmarks*.md"))
    numbers = {number for row in claims for cell in row[1:] for number in re.findall(r"(\d[\d.]*) (?:ms|MiB)", cell)}
    assert len(numbers) >= 6
    assert [number for number in numbers if f"| {number} |" not in measured] == []


def test_the_readme_has_a_row_for_each_family() -> None:
    rows = next(table for table in tables("README.md") if table[0][0] == "`type`")[1:]
    assert sorted(row[0] for row in rows) == sorted(f"`mm_vitbackbones.{name}`" for name in families())
    of_variants: dict[str, list[list[str]]] = {}
    for cells in next(table for table in tables("docs/backbones.md") if table[0][0] == "`type`")[1:]:
        of_variants.setdefault(cells[0] or [*of_variants][-1], []).append(cells)
    for kind, sizes, parameters, top1, _, paper in rows:
        variants = of_variants[kind]
        assert int(sizes.split(",")[0]) == sum(cells[1].count("`") // 2 for cells in variants)
        for cell, column in ((parameters, 3), (top1, 6)):
            every = [x for cells in variants for x in re.sub(r"\(.*?\)", "", cells[column]).split(", ")]
            known = [float(x) for x in every if x != "-"]
            assert cell == (f"{min(known)} to {max(known)}" if known else "-")
        assert paper == variants[0][7]


@functools.cache
def options(command: str) -> frozenset[str]:
    """The options that a command's help names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"mm_vitbackbones.cli.{COMMANDS[command][0]}").main(["--help"])
    return frozenset(OPTION.findall(said.getvalue()))


@functools.cache
def all_options() -> frozenset[str]:
    """Those of all commands, and of the maintainers' programs."""
    of_tools = (OPTION.findall(path.read_text("utf-8")) for path in (ROOT / "tools").rglob("*.py"))
    return frozenset().union(*map(options, COMMANDS), *of_tools, OF_OTHERS)


def code(page: str) -> list[str]:
    """Inline code, and the lines of shells."""
    lines = [line for block in blocks(page) for line in block.commands]
    shown = [line for block in blocks(page) if block.language == "text" for line in block.text.splitlines()]
    return [token.content for token in inline(page) if token.type == "code_inline"] + lines + shown


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page: str) -> None:
    unknown = []
    for words in code(page):
        _, launched, rest = words.rpartition("-m mm_vitbackbones ")  # what is left of it are options of launchers
        named = re.match(r"(?:.*\btools/)?(\w+)", rest)
        known = options(named[1]) if named and named[1] in COMMANDS else all_options()
        if launched or not re.match(r"pip |make |srun |#SBATCH |trtexec |CFLAGS=", words):
            unknown += [f"{option} in {words}" for option in OPTION.findall(rest) if option not in known]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_of_the_package_in_the_text_exist(page: str) -> None:
    missing = []
    for words in code(page):
        for path in re.findall(r"(?<![\w/.*-])(?:\w+/)+\w+(?:\.\w+)+", words):
            folder = path.split("/")[0]
            ours = (ROOT / folder).is_dir() or (path.endswith(".py") and (PACKAGE / folder).is_dir())
            if ours and "COMMAND" not in path and not ((ROOT / path).exists() or (PACKAGE / path).exists()):
                missing.append(path)
        missing += [name for name in re.findall(r"\bmm_vitbackbones((?:\.\w+)+)\b", words) if not is_there(name)]
    assert missing == []


def is_there(name: str) -> bool:
    """Whether the package has what is named, such as ``.adapters.split``, or one of its registries ``.Swin``."""
    *modules, last = name.removeprefix(".").split(".")
    with contextlib.suppress(ImportError):
        if hasattr(importlib.import_module(".".join(["mm_vitbackbones", *modules])), last):
            return True
    if (PACKAGE / "/".join([*modules, f"{last}.py"])).is_file():
        return True
    return not modules and any(each.get(f"mm_vitbackbones.{last}") is not None for each in REGISTRIES)


@pytest.mark.parametrize("page", PAGES)
def test_recipes_in_the_text_exist(page: str) -> None:
    known = {path.stem for path in (*ROOT.glob("configs/*.py"), *ROOT.glob("tests/helpers/configs/*.py"))}
    named = re.findall(r"(?<![\w./:-])[a-z]\w+_\w+_(?:coco|ade20k|mini|trees)\b(?![-/])", "\n".join(code(page)))
    assert {*named} - known == set()


def test_every_command_and_every_choice_is_on_a_page() -> None:
    text = {page: " ".join(code(page)) for page in PAGES}
    everywhere = " ".join(text.values())
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", everywhere)] == []
    heads = {name.removesuffix("_segmentation") for name in HEADS}
    for page, choices in (("docs/own_data.md", FORMATS), ("docs/own_data.md", heads), ("docs/look.md", SHOWN)):
        assert {*choices} - {*text[page].split()} == set(), page


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NO_RESULTS])
def test_figures_say_where_they_come_from(page: str) -> None:
    """Measured here, from a paper, published elsewhere, or not run: in the section, or for all in the first lines."""
    first, *sections = re.split(r"(?m)^(?=## )", path_of(page).read_text("utf-8"))
    if re.search(r"(?:every|all) figures?\b[^.]*\bmeasured", first, re.IGNORECASE):
        return
    bare = [section for section in (first, *sections) if not LABEL.search(section)]
    found = {f"{section.splitlines()[0]}: {figure}" for section in bare for figure in FIGURE.findall(section)}
    assert found == set()


def row_of(page: str, section: str, *cells: str) -> list[str]:
    """The first row of a section of a page that begins with these cells, which may be marked."""
    text = path_of(page).read_text("utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip(" \\*") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return next(row for row in rows if row[: len(cells)] == [*cells])


def test_the_sentence_on_the_first_page_has_the_numbers_of_its_rows() -> None:
    text = " ".join(path_of("README.md").read_text("utf-8").split())
    case = ("PVTv2-B2", "800x1344", "forward")
    ours, mmdet, timm = (row_of("docs/benchmarks.md", *case, name)[5] for name in ("ours", "mmdet", "timm"))
    assert f"With huge pages in the allocator, the first is {ours} ms against {mmdet} ms and {timm} ms." in text
    inference = ("docs/benchmarks_gpu.md", "PVTv2-B2", "800x1344 batch 1")
    ours, timm = (row_of(*inference, name)[6] for name in ("ours", "timm"))
    assert f"takes {ours} ms [as a CUDA graph](docs/backbones.md#in-a-cuda-graph), timm's {timm} ms;" in text


def test_the_guide_for_contributors_names_each_part_of_the_package() -> None:
    named = set(re.findall(r"`(\w+)(?:/|\.py)`", path_of("CONTRIBUTING.md").read_text("utf-8")))
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - named == {"__init__", "__main__"}


def test_messages_that_are_explained_are_those_of_the_package() -> None:
    """The first columns of the tables of troubleshooting; three dots stand for anything."""
    source = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message on several lines
    said = [row[0] for table in tables("docs/troubleshooting.md") for row in table[1:]]
    quoted = [words for cell in said for words in re.findall(r"`([^`]+)`", cell) if words not in SAID_BY_OTHERS]
    parts = {part.strip(" ,:") for words in quoted for part in re.split(VALUES, words)} - {""}
    assert len(parts) > 10
    assert [part for part in parts if part not in source] == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_in_plain_words(page: str) -> None:
    words = r"but for|mend(?:s|ed)?|told|beside|dear|anew|parted|gone back through"
    text = " ".join(token.content for token in tokens(page) if token.type == "inline")
    assert re.findall(rf"(?<![\w`-])(?:{words})(?![\w`-])", text) == []


def parts_of(page: str) -> list[tuple[str, dict[str, ast.expr]]]:
    """The parts of configs in the programs of a page that are of this package: their types and arguments."""
    programs = [ast.parse(block.text) for block in blocks(page) if block.language == "python"]
    calls = [node for program in programs for node in ast.walk(program) if isinstance(node, ast.Call)]
    dicts = [{each.arg: each.value for each in call.keywords if each.arg} for call in calls]
    named = [(str(getattr(arguments.get("type"), "value", "")), arguments) for arguments in dicts]
    return [(name, arguments) for name, arguments in named if name.startswith("mm_vitbackbones.")]


@pytest.mark.parametrize("page", [page for page in PAGES if parts_of(page)])
def test_parts_in_programs_take_the_arguments_that_they_are_given(page: str) -> None:
    wrong = []
    for name, arguments in parts_of(page):
        kind = next(found for each in REGISTRIES if (found := each.get(name)) is not None)
        taken = inspect.signature(kind).parameters
        if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
            wrong += [f"{name}({key})" for key in arguments if key not in (*taken, "type", "_delete_")]
        arch = getattr(arguments.get("arch"), "value", None)
        wrong += [f"{name}: {arch}"] if arch is not None and arch not in kind.archs else []
    assert wrong == []
