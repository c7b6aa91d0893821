"""How configs are written: short, without addresses, over parts, with a first comment that says what each is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from helpers.paths import CONFIGS, TEST_CONFIGS, recipe_files, tracked_configs
from mm_vitbackbones.cli.new_config import HEADS, parts_of

MOST_LINES = 14
"""Of a config, without its first comment."""


def recipes() -> list[Path]:
    found = recipe_files()
    assert len(found) > 90
    return found


def parts() -> list[Path]:
    return [path for path in tracked_configs() if CONFIGS / "_base_" in path.parents]


def bases_of(path: Path) -> list[Path]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            given = ast.literal_eval(node.value)
            return [path.parent / base for base in ([given] if isinstance(given, str) else given)]
    return []


def header(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def test_recipes_are_short() -> None:
    lines = {path.stem: len(path.read_text().splitlines()) - len(header(path)) for path in recipes()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_config_has_an_address() -> None:
    files = [*tracked_configs(), *TEST_CONFIGS.glob("*.py")]
    assert [path.name for path in files if "://" in path.read_text()] == []


def test_recipes_are_of_methods_that_a_module_of_tests_knows() -> None:
    methods = {re.match("cascade_mask_rcnn|mask_rcnn|[a-z0-9]+", path.stem)[0] for path in recipes()}
    detectors = {"retinanet", "mask_rcnn", "cascade_mask_rcnn", "dino", "mask2former", "yolof"}
    assert methods == {*detectors, "segformer", "fpn", "upernet", "dpt", "linear"}


def test_recipes_inherit_from_parts_and_a_part_from_one_other_at_most() -> None:
    for path in recipes():
        assert all(base in parts() for base in bases_of(path)), path
    for path in parts():
        assert len(bases_of(path)) <= 1, path
        assert all(base.parent == path.parent for base in bases_of(path)), path


def test_every_part_is_used() -> None:
    used = {base.resolve() for path in [*recipes(), *parts()] for base in bases_of(path)}
    for name in HEADS:
        used |= {CONFIGS / f"_base_/{part}.py" for scratch in (False, True) for part in parts_of(name, scratch)}
    assert {path for path in parts() if path.resolve() not in used} == set()


def test_first_comment_says_what_it_is_the_command_and_the_published_result() -> None:
    for path in recipes():
        what, command, result, *_ = header(path)
        assert re.match(r"# \S.* (on|of) ", what), path
        assert command.startswith("#   "), path
        assert f" configs/{path.name}" in command, path
        assert re.match(r"# (Published \(.+\bnot measured here\): |No published result: )", result), path
