"""The recipes: the configs that come with the package, by name. Imports neither torch nor MMEngine.

An installed package has them under ``.mim/``, where OpenMMLab's packages have theirs; a source tree has them in
``configs/``, next to the package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mm_vitbackbones.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Summary:
    """What the first comment of a recipe says."""

    name: str
    what: str
    """Network, data and schedule."""
    result: str
    """The published result and who published it, or that there is none."""

    def __str__(self) -> str:
        return f"{self.name:<42}  {self.what}; {self.result}"


def folder() -> Path:
    """Where the recipes are."""
    installed = Path(__file__).parent / ".mim" / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def without_templates(text: str) -> str:
    """The text of a config that is written by a program, in which MMEngine fills in nothing.

    MMEngine replaces ``{{fileDirname}}`` or ``{{$HOME:default}}`` wherever it stands, before Python reads the file. In
    the name of a class or a folder, that would change the name, and could end the string that it is in.
    """
    return text.replace("{{", r"{\x7b")


def names() -> list[str]:
    """The names of all recipes, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("*.py"))


def recipe(name: str) -> str:
    """The path of a recipe, or of a part of recipes.

    A config in any folder inherits from a recipe by
    ``_base_ = __import__("mm_vitbackbones").recipe("retinanet_pvt_s_coco")``.

    Args:
        name: ``"retinanet_pvt_s_coco"``, with or without ``.py``, or a part such as ``"_base_/models/retinanet.py"``.

    Raises:
        UserError: if there is none of this name, with the nearest ones.
    """
    path = folder() / (name if name.endswith(".py") else f"{name}.py")
    if not path.is_file() or ".." in Path(name).parts or Path(name).is_absolute():
        near = did_you_mean(name.removesuffix(".py"), names())
        raise UserError(f"there is no recipe {name!r}{near or '; `python -m mm_vitbackbones configs` lists them'}")
    return str(path)


def summaries(words: Iterable[str] = ()) -> list[Summary]:
    """The recipes whose line in the list has all of these words, in upper or lower case."""
    folds = [word.lower() for word in words]
    found = (_summary(Path(recipe(name))) for name in names())
    return [summary for summary in found if all(fold in str(summary).lower() for fold in folds)]


def _summary(path: Path) -> Summary:
    lines = path.read_text(encoding="utf-8").splitlines()[:3]
    comment = [line.removeprefix("#").strip() if line.startswith("#") else "" for line in [*lines, "", "", ""]]
    what = comment[0].partition(":")[0].rstrip(".") or "a config without a first comment"
    published = re.fullmatch(r"Published \((.+?)[,;] .*?\): (.+?)(?:;.*|\.)", comment[2])
    return Summary(
        path.stem, what, f"published: {published[2]} ({published[1]})" if published else "no published result"
    )


def starting_point(name: str, file: str) -> str:
    """The text of a recipe as a file of the user's own, whose bases are found from any folder.

    Args:
        name: of the recipe.
        file: what the command in the first comment calls the new config.

    Raises:
        UserError: if there is no recipe of this name.
    """
    name = name.removesuffix(".py")
    text = Path(recipe(name)).read_text(encoding="utf-8")
    if name not in names():
        raise UserError(f"{name} is a part of recipes: without --out it is printed")
    assignment = next(
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_"
    )
    lines = text.splitlines()
    parts = "".join(f'        "{part}",\n' for part in ast.literal_eval(assignment.value))
    bases = (
        "# Each part is a file of the package; `python -m mm_vitbackbones config PART` prints it.\n"
        "_base_ = [\n"
        '    __import__("mm_vitbackbones").recipe(part)\n'
        f"    for part in (\n{parts}    )\n"
        "]"
    )
    before = [_command(line, name, file) for line in lines[: assignment.lineno - 1]]
    return "\n".join([*before, bases, *lines[assignment.end_lineno :]]) + "\n"


def _command(line: str, name: str, file: str) -> str:
    """A line of the first comment, with commands that need no source tree."""
    line = re.sub(
        r"tools/dist_train\.sh (\S+) (\d+)", r"torchrun --nproc_per_node \2 -m mm_vitbackbones train \1", line
    )
    line = re.sub(r"python tools/(\w+)\.py", r"python -m mm_vitbackbones \1", line)
    return line.replace(f"configs/{name}.py", file).replace("make demo, or: ", "")
