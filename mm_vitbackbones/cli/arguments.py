"""What the command lines of all tools share: a parser, common arguments, and the exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import DictAction

from mm_vitbackbones import recipes
from mm_vitbackbones.data.image_files import bounded_pillow
from mm_vitbackbones.encoding import use_utf8
from mm_vitbackbones.errors import CheckpointError, DataError, UserError
from mm_vitbackbones.printing import print, printable_logs


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, as the tools do. It names the command as the user typed it:
    ``tools/train.py`` or ``python -m mm_vitbackbones train``."""

    def __init__(self, *, prog: str, **arguments: Any) -> None:
        if Path(sys.argv[0]).name == "__main__.py":
            prog = f"python -m mm_vitbackbones {Path(prog).stem}"
        elif prog.endswith(".py"):
            prog = f"tools/{Path(prog).name}"
        super().__init__(prog=prog, **arguments)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a tool on its arguments and return its exit code: 0; 2 and one line on stderr for a ``UserError``; 130 after
    Ctrl-C.

    A ``CheckpointError`` is handled in the same way; it may be raised as late as when weights are initialised. Any
    other exception passes through. In a distributed run only the first process prints, except for a ``DataError``.
    """
    if argv is None:
        use_utf8()
    try:
        words = sys.argv[1:] if argv is None else argv
        with printable_logs([*words, os.environ.get("PWD", "")]), bounded_pillow():
            main(words)
    except (UserError, CheckpointError) as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, DataError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write("\nended by Ctrl-C\n")  # a line of its own, after the terminal's ^C
        return 128 + signal.SIGINT
    return 0


class _Options(DictAction):
    """MMEngine's ``key=value`` options, with readable errors."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for option in values:
            if not option.partition("=")[0] or "=" not in option:
                raise UserError(f"--cfg-options takes key=value, such as train_cfg.max_epochs=6, and not {option!r}")
            if option.count("(") != option.count(")") or option.count("[") != option.count("]"):
                raise UserError(f"--cfg-options {option!r}: the brackets do not match")
            try:
                self._parse_iterable(option.partition("=")[2])
            except RecursionError:  # MMEngine looks for the end of the same list again and again
                raise UserError(
                    f"--cfg-options {option!r}: values are numbers, words, lists and tuples of these; write others "
                    "into a config"
                ) from None
        super().__call__(parser, namespace, values, option_string)


def add_common(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="where logs and checkpoints go (work_dirs/<config name>)"
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="how the processes of a distributed run were started; torchrun is detected automatically",
    )
    add_options(parser)
    add_verbose(parser)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verbose", action="store_true", help="show all log messages and the libraries' warnings on the console"
    )


def add_checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-checks",
        action="store_true",
        help="begin without looking at the config and its data first: a way past an error that is none",
    )


def add_bands(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bands",
        type=_band,
        nargs=3,
        metavar=("RED", "GREEN", "BLUE"),
        help="the bands of an image that are drawn as red, green and blue, numbered from 1, such as 3 2 1",
    )


def _band(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"bands are numbered from 1, and {text!r} is none")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    import torch

    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=_device, default=default, help="cuda, cuda:1, cpu")


def _device(text: str) -> str:
    """The name of a device that torch computes on.

    Raises:
        UserError: it does not.
    """
    import torch

    if text.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {text}: there is no GPU that torch can use")
    try:
        torch.zeros(1, device=text).cpu()
    except RuntimeError:
        raise UserError(f"--device {text}: torch cannot compute on it here: give cpu, cuda, cuda:1, ...") from None
    return text


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        type=config_file,
        metavar="CONFIG",
        help="a recipe by its name, such as retinanet_pvt_s_coco, or the path of a config file",
    )


def config_file(text: str) -> Path:
    """The file that a config argument stands for: a bare name is a recipe, anything else is a path.

    Raises:
        UserError: no recipe has this bare name.
    """
    if Path(text).name != text or Path(text).suffix:
        return Path(text)
    try:
        return Path(recipes.recipe(text))
    except UserError as error:
        own = next((file for file in (Path(f"{text}.py"), Path(text)) if file.is_file()), None)
        hint = f"; for the file give its path: {own if own.suffix else Path('.', own)}" if own else ""
        raise UserError(f"{error}{hint}") from None


def add_checkpoint(parser: argparse.ArgumentParser, kinds: str) -> None:
    """``kinds`` says which files the command takes."""
    parser.add_argument(
        "checkpoint",
        type=checkpoint_file,
        metavar="CHECKPOINT",
        help=f"a .pth file, {kinds}, or its https address; or the work dir of a training, for its last checkpoint",
    )


def checkpoint_file(text: str) -> Path | str:
    """The file that a checkpoint argument stands for. An address stays what it is, and so does a folder without
    checkpoints of a training."""
    from mm_vitbackbones.engine.resume import latest_checkpoint

    if "://" in text:
        return text
    path = Path(text)
    if path.is_dir():
        with contextlib.suppress(UserError):
            return latest_checkpoint(path)
    return path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        default={},
        metavar="KEY=VALUE",
        help="change entries of the config: train_cfg.max_epochs=6 model.backbone.arch=tiny",
    )


def is_filled(out: Path) -> bool:
    """Whether something is in a folder, or in its place."""
    return any(out.iterdir()) if out.is_dir() else os.path.lexists(out)


def check_new(out: Path) -> None:
    """Check that the folder of ``--out`` is empty or not there.

    Raises:
        UserError: otherwise.
    """
    if is_filled(out):
        raise UserError(f"--out {out} is there already, and nothing is overwritten: name another folder, or empty it")
