"""Save the predictions of a test in a file."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from mm_vitbackbones import libraries
from mm_vitbackbones.engine.metrics import DumpLabelMaps
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import type_name


def dump_predictions(cfg: Config, out: Path, scratch: Path) -> None:
    """Have the evaluators write the predictions of a test to the folder ``scratch``, in the format of ``out``."""
    for path in (out, out.with_suffix(".segm.json")):
        if path.exists():
            raise UserError(f"--out {path} exists and is not overwritten: name another file, or remove it")
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
    out.parent.mkdir(parents=True, exist_ok=True)


def keep_predictions(out: Path, scratch: Path) -> None:
    """Move the files that ``dump_predictions`` requested to their destination."""
    made = {
        "predictions.pkl": out,
        "predictions.bbox.json": out,
        "predictions.segm.json": out.with_suffix(".segm.json"),
    }
    for name, target in made.items():
        if (source := scratch / name).is_file():
            with target.open("xb") as file:  # never overwrite a file that was created meanwhile
                file.write(source.read_bytes())
