"""``export``: a network to a file, with metadata, and a check of that file."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mm_vitbackbones
from mm_vitbackbones.errors import OutputError, UserError
from mm_vitbackbones.exporting import onnx_files, packages, programs
from mm_vitbackbones.exporting.checking import TOLERANCE, Checked, check, in_short, noise, unseen
from mm_vitbackbones.exporting.half import Half
from mm_vitbackbones.exporting.networks import Network, network_of, outputs_of
from mm_vitbackbones.exporting.parts import evaluating, uncollected
from mm_vitbackbones.exporting.programs import SMALLEST
from mm_vitbackbones.files import check_room, make_folder, move_new, scratch_in, size_words

KINDS = {"onnx": ".onnx", "torch-export": ".pt2"}
"""What can be written, and the ending of each."""

TRACED = {True: (512, 512), False: (161, 225)}
"""The size to trace with, of a fixed size and of free ones: odd, so that nothing fits by chance."""


class ExportMismatch(UserError):
    """A file that does not compute what its network does. It is not kept."""

    def __init__(self, done: Export) -> None:
        worst = max(done.checked, key=lambda each: each.error)
        much = f"by {worst.error:.1e} of the largest value, " if math.isfinite(worst.error) else ""
        where = f"at {worst.size[1]}x{worst.size[2]}"
        what = worst.what or f"more than {done.tolerance:g}"
        super().__init__(f"the file differs from the network {much}{where} ({what}): it is not kept")
        self.done = done


@dataclass(frozen=True)
class Export:
    """A file that was written, and what came out when it was run. As text, some lines."""

    path: Path
    to: str
    seconds: float
    """From the trace to the written file, by the clock on the wall."""
    cpu_seconds: float
    """The same by the clock of this process: of all its threads, and without the time that other programs took."""
    nodes: int
    bytes: int
    weights: int
    """Bytes of the network's parameters and buffers, in the precision of the file."""
    checked: tuple[Checked, ...]
    tolerance: float
    opset: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """The largest of all sizes."""
        return max(each.error for each in self.checked)

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        opset = f", opset {self.opset}" if self.opset else ""
        share = f"{self.bytes / self.weights - 1:+.1%}" if self.weights else ""
        return "\n".join(
            [
                f"{self.path}: {self.to}{opset}, {self.nodes} nodes, {size_words(self.bytes)} "
                f"(weights {size_words(self.weights)}, {share}), written in {self.seconds:.1f} s",
                "  size       batch   error / maximum (the first size was traced)",
                *(f"  {each}" for each in self.checked),
                *(f"  note: {note}" for note in self.notes),
            ]
        )


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    to: str = "onnx",
    size: Sequence[int] | None = None,
    fixed: bool = False,
    opset: int | None = None,
    half: bool = False,
    with_nms: bool = False,
    labels: bool = False,
    preprocess: bool = False,
    classes: Sequence[str] | None = None,
    tolerance: float | None = None,
    force: bool = False,
) -> Export:
    """Write a backbone, or a detector or segmentor of MMDetection or MMSegmentation, to a file, and check that file.

    The file is run, by onnxruntime or as a loaded program, at the traced size and at five others, and compared with the
    module. Only a file that is right gets its name.

    Args:
        module: not changed; put into eval mode for the time of the call.
        path: of the file.
        to: ``"onnx"`` or ``"torch-export"``.
        size: height and width of the image that the network is traced with; 512x512 for a fixed size, and an odd one
            otherwise.
        fixed: the file takes one image of this size alone. Otherwise batch, height and width are free, from 32 pixels.
        opset: of ONNX, 20 by default.
        half: weights and products in fp16, norms and softmax in fp32. Image and results stay in fp32.
        with_nms: of a detector: boxes, scores and labels after non-maximum suppression, and not the maps of its head.
        labels: of a segmentor: the label of each pixel, and not the scores of all classes.
        preprocess: the file takes the values of an image file (0 to 255) and normalises them itself.
        classes: names for the metadata.
        tolerance: the largest error that is right, as a part of the largest value; 1e-4, or 2e-2 in half precision.
        force: take the place of a file that is there already.

    Raises:
        UserError: a package is missing, or an argument or the module is none that can be exported.
        ExportMismatch: (a UserError) the file computes something else.
        OutputError: it cannot be written.
    """
    path = Path(path)
    if to not in KINDS:
        raise UserError(f"to={to!r}: give one of {', '.join(map(repr, KINDS))}")
    if size is not None and (len(size) != 2 or min(size) < SMALLEST):
        raise UserError(f"size={tuple(size)!r}: give a height and a width of at least {SMALLEST} pixels")
    if tolerance is not None and not tolerance > 0:
        raise UserError(f"tolerance={tolerance:g}: give a number above 0, such as {TOLERANCE[half]:g}")
    if to != "onnx" and opset is not None:
        raise UserError(f"opset={opset}: only ONNX has opsets: leave it out, or write to 'onnx'")
    packages.check(to)
    if to == "onnx":
        opset = onnx_files.OPSET if opset is None else opset
        newest = packages.newest_opset()
        if not 18 <= opset <= newest:
            raise UserError(
                f"opset={opset}: PyTorch's exporter writes 18 and newer, and the installed onnx has {newest}"
            )
    check_new(path, to, force)
    network = network_of(module, with_nms, labels, preprocess)
    if size is None:
        size = [max(side, network.smallest) for side in TRACED[fixed]]
    elif min(size) < network.smallest:
        raise UserError(
            f"size={tuple(size)!r}: {type(module).__name__} has {network.facts['queries']} queries, and images with a "
            f"side below {network.smallest} pixels may have fewer places for them: give sides of at least "
            f"{network.smallest}, or train with fewer num_queries"
        )
    tensors = {t.data_ptr(): t for t in (*network.module.parameters(), *network.module.buffers())}
    copies = (2 if to == "torch-export" else 1) / (2 if half else 1)  # a program is compressed by a copy
    check_room(path.parent, f"the file {path.name}", int(sum(t.nbytes for t in tensors.values()) * copies))
    with evaluating(network.module):
        _try(network, (1, int(size[0]), int(size[1])))
        return _write(network, path, to, (int(size[0]), int(size[1])), fixed, opset, half, classes, tolerance, force)


def check_new(path: Path, to: str, force: bool) -> None:
    """Check that a file may get this name.

    Raises:
        UserError: otherwise.
    """
    try:
        os.lstat(path)
        there = True
    except FileNotFoundError:
        there = False
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{str(path)[:80]!r} cannot be the name of a file: {why}") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file")
    if there and not force:
        raise _taken(path)
    other = next((kind for kind, ending in KINDS.items() if kind != to and path.suffix == ending), None)
    if other:
        raise UserError(f"{path} has the ending of {other}, and this is {to}: name it {path.stem}{KINDS[to]}")


def _taken(path: Path) -> UserError:
    return UserError(f"{path} is there already, and is not overwritten: give another name, or --force (force=True)")


def _try(network: Network, size: tuple[int, int, int]) -> None:
    """Run a network once, before PyTorch's exporter does, whose errors are longer.

    Raises:
        UserError: it cannot.
    """
    where = f"an image of {size[1]}x{size[2]}"
    try:
        outputs_of(network, noise(network, size))
    except UserError:
        raise
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise UserError(f"{where} needs more memory than there is: give a smaller size") from None
        raise UserError(f"the network fails on {where}: {in_short(error)}") from error


def _write(
    network: Network,
    path: Path,
    to: str,
    size: tuple[int, int],
    fixed: bool,
    opset: int | None,
    half: bool,
    classes: Sequence[str] | None,
    tolerance: float | None,
    force: bool,
) -> Export:
    traced = (1 if fixed else 2, *size)
    made = replace(network, module=Half(network.module).eval()) if half else network
    start, cpu_start = time.perf_counter(), time.process_time()
    with _exporter("cannot be traced"), uncollected():
        program = programs.trace(made.module, noise(made, traced), fixed, network.smallest)
    metadata = metadata_of(network, size, fixed, half, classes)
    weights = _bytes(made.module)
    make_folder(path.parent.absolute())
    with scratch_in(path.parent.absolute()) as scratch:
        draft = scratch / path.name
        if opset is not None:
            with _exporter("cannot be written as ONNX"), uncollected():
                nodes, files = onnx_files.write(program, draft, network.outputs, opset, metadata)
        else:
            nodes, files = programs.write(program, draft, metadata), [draft]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        with _exporter("has a file that cannot be loaded again", "another opset" if opset else "a fixed size"):
            watched = network.kind == "detector"
            run: Any = onnx_files.Session(draft, watched) if to == "onnx" else programs.Loaded(draft)
        done = Export(
            path,
            to,
            seconds,
            cpu_seconds,
            nodes,
            sum(file.stat().st_size for file in files),
            weights,
            tuple(check(network, run, [traced] if fixed else [traced, *unseen(network)], half, tolerance)),
            TOLERANCE[half] if tolerance is None else tolerance,
            opset,
            network.notes,
        )
        del run
        if not done.right:
            raise ExportMismatch(done)
        targets = [path.with_name(file.name) for file in files]
        for target in targets:
            if os.path.lexists(target) and not force:
                raise _taken(target)
        for file in files:
            _place(file, path.with_name(file.name), force)
    return done


@contextlib.contextmanager
def _exporter(what: str, instead: str = "a fixed size, or the backbone alone") -> Iterator[None]:
    """Within it, what PyTorch's exporter or a runtime raises becomes one line.

    Raises:
        UserError: instead of other exceptions, which it has as its cause.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # they raise errors of their own
        kind = type(error).__name__
        raise UserError(f"the network {what} ({kind}: {in_short(error)}): try {instead}") from error


def _place(file: Path, path: Path, force: bool) -> None:
    if force:
        try:
            os.replace(file, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from None
        return
    try:
        move_new(file, path)
    except FileExistsError:
        raise _taken(path) from None


def _bytes(module: nn.Module) -> int:
    """Of a network's parameters and of the buffers that it is saved with, each once."""
    saved = module.state_dict(keep_vars=True).values()
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in saved}.values())


def metadata_of(
    network: Network, size: tuple[int, int], fixed: bool, half: bool, classes: Sequence[str] | None
) -> dict[str, Any]:
    """What stands in a file besides the network, as plain data."""
    how = network.preprocessing
    return {
        "producer": f"mm_vitbackbones {mm_vitbackbones.__version__}",
        "kind": network.kind,
        "inputs": ["image"],
        "outputs": [*network.outputs],
        "classes": None if classes is None else [*classes],
        "image": {
            "channels": network.channels,
            "order": how.order,
            "size": [*size] if fixed else None,
            "smallest_side": network.smallest,
            "mean": [*how.mean],
            "std": [*how.std],
            "normalised_inside": how.inside,
            "padded_inside_to_multiples_of": how.divisor,
        },
        "precision": "fp16, norms and softmax in fp32" if half else "fp32",
        "traced_size": [*size],
        **network.facts,
    }


def threads() -> int:
    """What PyTorch and onnxruntime run with."""
    return torch.get_num_threads()
