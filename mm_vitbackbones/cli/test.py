"""Evaluate a checkpoint on the test set of a config."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mm_vitbackbones.cli import analysis, preflight
from mm_vitbackbones.cli.arguments import Parser, add_bands, add_checkpoint, add_checks, add_common
from mm_vitbackbones.cli.batches import without_workers
from mm_vitbackbones.cli.compiling import CompilingHook, add_compile, compile_backbones
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.cli.evaluators import check_results_prefix
from mm_vitbackbones.cli.launch import leaving_group, registry_errors, set_launcher
from mm_vitbackbones.cli.predictions import SMALLEST, check_new, dump_predictions, keep_predictions, scratch_next_to
from mm_vitbackbones.cli.weights import EvaluationRunner, unwrapped
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import check_room, make_folder, scratch_in


def test_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="test.py", description="Evaluate a checkpoint on the test set of an mmdet or mmseg config.")
    add_common(parser)
    add_checkpoint(parser, "as training writes them")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the predictions; FILE.json: a list in COCO's results format, boxes as [x, y, width, height] in "
        "pixels of the image (detection only; masks, if any, go to FILE.segm.json); FILE.pkl: a pickled list with one "
        "dict per image, of boxes, labels and scores, or of the label map. An existing file is never overwritten",
    )
    parser.add_argument(
        "--show-dir",
        type=Path,
        metavar="DIR",
        help="draw ground truth (left) next to predictions (right), one <image>_gt_pred.png per image",
    )
    parser.add_argument(
        "--show-score", type=float, default=0.3, metavar="SCORE", help="draw boxes with at least this score (0.3)"
    )
    parser.add_argument(
        "--analyze",
        action="store_true",
        help="at the end, write a page on what the model gets wrong: `analyze` does it for a file of predictions",
    )
    add_bands(parser)
    parser.add_argument("--tta", action="store_true", help="test at the sizes and flips of the config's tta_pipeline")
    add_compile(parser)
    add_checks(parser)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """tools/test.py: evaluate a checkpoint. See ``test_arguments`` for the command line."""
    args = test_arguments(argv)
    with leaving_group(), Console(args.verbose) as console:
        evaluate(args, console)


def evaluate(args: argparse.Namespace, console: Console) -> None:
    """Run the test of a command line, and write what it asks for."""
    cfg = load_config(args.config, args.cfg_options)
    # Not the training's own folder: there it would replace the dumped config.
    cfg.work_dir = str(args.work_dir or Path(cfg.get("work_dir") or Path("work_dirs", args.config.stem), "test"))
    if cfg.get("test_dataloader") is None or cfg.get("test_cfg") is None:
        raise UserError(f"{args.config} says nothing about testing: it needs test_dataloader and test_cfg")
    check_outputs(args, Path(cfg.work_dir))
    checkpoint = read(args.checkpoint)
    preflight.check_or_skip(cfg, ["test"], skip=args.skip_checks)
    if args.analyze:
        analysis.Data(load_config(args.config, args.cfg_options))  # what it refuses, it refuses before the test
    if args.tta:
        use_tta(cfg)
    cfg.load_from, cfg.resume = None, False
    if args.show_dir:
        drawings = {
            "type": "mm_vitbackbones.ImagesHook",
            "out_dir": str(args.show_dir),
            "score_thr": args.show_score,
            "bands": args.bands,
        }
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), drawings]
    with scratch_next_to(args.out) as scratch, _scratch_of_analysis(args, Path(cfg.work_dir)) as found:
        if args.out:
            dump_predictions(cfg, args.out, scratch)
        if args.analyze:
            dump_predictions(cfg, Path("predictions.pkl"), found)
        check_results_prefix(cfg, "test")
        set_launcher(cfg, args.launcher)
        without_workers(cfg)
        with registry_errors(args.config):
            runner = console.runner(cfg, EvaluationRunner)
            runner.use(checkpoint, args.checkpoint)
            if args.compile:
                runner.register_hook(CompilingHook(compile_backbones(unwrapped(runner))))
            runner.test()
        if args.out and runner.rank == 0:
            keep_predictions(args.out, scratch)
        if args.analyze and runner.rank == 0:
            page = analysis.make_page(
                load_config(args.config, args.cfg_options),
                f"{args.config.stem}: what it gets wrong",
                (str(args.checkpoint), found / "predictions.pkl"),
                Path(runner.log_dir, "analysis"),  # the folder of this run alone
            )
            runner.logger.info(f"analysis: {page}")
    if args.out:
        runner.logger.info(f"predictions: {args.out}")


@contextlib.contextmanager
def _scratch_of_analysis(args: argparse.Namespace, work_dir: Path) -> Iterator[Path]:
    """A folder for the predictions that are analysed, in the work dir; removed at the end."""
    if not args.analyze:
        yield Path()
        return
    make_folder(work_dir)
    with scratch_in(work_dir) as folder:
        yield folder


def check_outputs(args: argparse.Namespace, work_dir: Path) -> None:
    """Check, before the long work, that all can be written that a test writes.

    Raises:
        UserError: it cannot.
    """
    check_room(work_dir, f"--work-dir {work_dir}", SMALLEST)
    if args.out:
        check_new(args.out)
        check_room(args.out.parent, f"--out {args.out}", SMALLEST)
    if args.show_dir:
        if args.show_dir.exists() and not args.show_dir.is_dir():
            raise UserError(f"--show-dir {args.show_dir} is a file; name a folder")
        check_room(args.show_dir, f"--show-dir {args.show_dir}", SMALLEST)


def use_tta(cfg: Config) -> None:
    """Test at several sizes and flipped, and average, as the config says.

    Raises:
        UserError: if the config does not say how.
    """
    if missing := [name for name in ("tta_model", "tta_pipeline") if cfg.get(name) is None]:
        raise UserError(f"--tta needs {' and '.join(missing)} in the config: how to augment and how to average")
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:  # wrappers such as RepeatDataset
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    if cfg.model.get("test_cfg"):
        cfg.model.test_cfg.pop("logits", None)  # the logits are averaged
    averaging = cfg.tta_model.copy()  # in a plain dict, types that are classes could not be written to the log
    averaging.module = cfg.model
    cfg.model = averaging
