"""Say what a trained model gets wrong: the implementation of ``tools/analyze.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mm_vitbackbones import libraries
from mm_vitbackbones.analysis.comparing import RESAMPLES
from mm_vitbackbones.cli import analysis, preflight, test
from mm_vitbackbones.cli.arguments import Parser, add_checks, add_options, add_verbose, checkpoint_file, config_file
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.errors import UserError

FILES = (".pkl", ".json")
"""The suffixes of files of predictions."""


def analyze_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="analyze.py",
        description="Write a page on what a detector or segmentor gets wrong, and its tables as CSV and JSON.",
    )
    parser.add_argument(
        "config",
        type=config_file,
        nargs="?",
        metavar="CONFIG",
        help="a recipe by its name, or the path of a config file; with --logs alone it is left out",
    )
    parser.add_argument(
        "predictions",
        nargs="?",
        metavar="CHECKPOINT|PREDICTIONS",
        help="a .pth file, or the work dir of a training, which is tested first; or predictions on the test set: what "
        "`test --out` has written (.pkl or .json), or predictions.json of `predict`",
    )
    parser.add_argument("--against", metavar="OTHER", help="another checkpoint or file of predictions, to compare with")
    parser.add_argument(
        "--logs",
        type=Path,
        nargs="+",
        default=[],
        metavar="WORK_DIR",
        help="work dirs of trainings, whose curves are drawn in one figure",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where analysis.html and the tables go; analysis/<config name> by default. Nothing is overwritten",
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        metavar="SCORE",
        help="the least score in the confusion of classes and on images; by default the one with the best F1",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=RESAMPLES,
        metavar="N",
        help=f"draws of images for the intervals of --against ({RESAMPLES})",
    )
    add_checks(parser)
    add_options(parser)
    add_verbose(parser)
    args = parser.parse_args(argv)
    if args.config is None and not args.logs:
        raise UserError(f"give CONFIG and CHECKPOINT or PREDICTIONS, or --logs WORK_DIR (see {parser.prog} --help)")
    if args.config is not None and args.predictions is None:
        raise UserError(f"CHECKPOINT or PREDICTIONS is missing (see {parser.prog} --help)")
    if args.against is not None and args.predictions is None:
        raise UserError("--against compares predictions, and there are none: give CONFIG and CHECKPOINT or PREDICTIONS")
    if args.resamples < 1:
        raise UserError(f"--resamples {args.resamples}: at least 1 draw is needed")
    return args


def main(argv: list[str]) -> None:
    """tools/analyze.py. See ``analyze_arguments`` for the command line."""
    args = analyze_arguments(argv)
    out = args.out or Path("analysis", args.config.stem if args.config else args.logs[0].name)
    analysis.check_folder(out)
    if args.config is None:
        path = analysis.make_page(Config(), "Trainings", None, out, logs=args.logs)
    else:
        path = _analyze(args, out)
    print_log(f"analysis: {path}", logger="current")


def _analyze(args: argparse.Namespace, out: Path) -> Path:
    cfg = load_config(args.config, args.cfg_options)
    for given in filter(None, (args.predictions, args.against)):
        if Path(given).suffix in FILES and not Path(given).is_file():
            raise UserError(f"there is no file {given}")
    libraries.use(libraries.scope_of(cfg))
    made = [given for given in (args.predictions, args.against) if given and Path(given).suffix in FILES]
    if len(made) == 1 + bool(args.against):  # otherwise a test checks the same
        preflight.check_or_skip(cfg, ["test"], skip=args.skip_checks)
    runs = []
    for given, name in ((args.predictions, "predictions"), (args.against, "against")):
        if given:
            runs.append((given, _predictions(args, given, out, name)))
    with Console(args.verbose):
        return analysis.make_page(
            load_config(args.config, args.cfg_options),
            f"{args.config.stem}: what it gets wrong",
            runs[0],
            out,
            runs[1] if args.against else None,
            args.logs,
            args.score_thr,
            args.resamples,
        )


def _predictions(args: argparse.Namespace, given: str, out: Path, name: str) -> Path:
    """The file of predictions that was given, or one of a test of the checkpoint, which is kept in ``out``."""
    if Path(given).suffix in FILES:
        return Path(given)
    target = out / f"{name}.pkl"
    tested = test.test_arguments(["./config.py", "checkpoint.pth"])
    tested.config, tested.checkpoint = args.config, checkpoint_file(given)
    tested.out, tested.work_dir = target, out / f"test_{name}"
    tested.cfg_options, tested.skip_checks, tested.verbose = args.cfg_options, args.skip_checks, args.verbose
    with Console(args.verbose) as console:
        test.evaluate(tested, console)
    return target
