"""Save the predictions of a test in a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mm_vitbackbones import libraries
from mm_vitbackbones.engine.metrics import DumpLabelMaps
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import check_room, make_folder, move_new, scratch_in
from mm_vitbackbones.nodes import type_name

SMALLEST = 2**20
"""Bytes that have to be free for results."""


@contextlib.contextmanager
def scratch_next_to(out: Path | None) -> Iterator[Path]:
    """A folder for the files of a test, on the disk of ``out``, to which they are moved. It is removed at the end.

    Raises:
        OutputError: nothing can be written next to ``out``.
    """
    if out is None:
        yield Path()
        return
    check_room(out.parent, f"--out {out}", SMALLEST)
    make_folder(out.parent)
    with scratch_in(out.parent) as folder:
        yield folder


def check_new(out: Path) -> None:
    """Check that no file would be overwritten.

    Raises:
        UserError: one would be.
    """
    for path in (out, out.with_suffix(".segm.json")):
        if path.exists():
            raise UserError(f"--out {path} exists and is not overwritten: name another file, or remove it")


def dump_predictions(cfg: Config, out: Path, scratch: Path) -> None:
    """Have the evaluators write the predictions of a test to the folder ``scratch``, in the format of ``out``."""
    evaluators = cfg.get("test_evaluator") or []
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    if out.suffix == ".pkl":
        dump = {"mmdet": "DumpDetResults", "mmseg": DumpLabelMaps.__name__}.get(libraries.scope_of(cfg), "DumpResults")
        cfg.test_evaluator = [*evaluators, {"type": dump, "out_file_path": str(scratch / "predictions.pkl")}]
    elif out.suffix == ".json":
        coco = [evaluator for evaluator in evaluators if type_name(evaluator).endswith("CocoMetric")]
        if not coco:
            raise UserError(f"--out {out}: COCO's format needs a CocoMetric in test_evaluator; write a .pkl instead")
        coco[0]["outfile_prefix"] = str(scratch / "predictions")
    else:
        raise UserError(f"--out {out}: the name has to end in .json (COCO's results format) or .pkl")


def keep_predictions(out: Path, scratch: Path) -> None:
    """Move the files that ``dump_predictions`` requested to their destination."""
    made = {
        "predictions.pkl": out,
        "predictions.bbox.json": out,
        "predictions.segm.json": out.with_suffix(".segm.json"),
    }
    for name, target in made.items():
        if (source := scratch / name).is_file():
            try:
                move_new(source, target)  # never in place of a file that was made meanwhile
            except FileExistsError:
                raise UserError(
                    f"--out {target} was made meanwhile, and is not overwritten: name another file"
                ) from None
