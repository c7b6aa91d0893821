"""Pictures and numbers of what a network sees: the implementation of ``tools/look.py``."""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.cli.arguments import Parser, add_device, add_options, add_verbose, check_new, checkpoint_file
from mm_vitbackbones.cli.predict import find_images
from mm_vitbackbones.cli.subject import Subject, View, looks_like_checkpoint, map_of, with_map
from mm_vitbackbones.engine.console import Console
from mm_vitbackbones.engine.drawing import class_name
from mm_vitbackbones.errors import UserError, counted, printable
from mm_vitbackbones.files import to_csv, to_png, write_files
from mm_vitbackbones.inspection import cam, drawing
from mm_vitbackbones.inspection.attention import MOST, Seen, look, spread
from mm_vitbackbones.inspection.features import principal_colours, similarities
from mm_vitbackbones.inspection.fields import SHARES, Field, areas, mean_field, receptive_fields
from mm_vitbackbones.ops.looking import Lattice
from mm_vitbackbones.printing import print

UNITS = {"distance": "attention distance, of the map's size", "entropy": "attention entropy, nats"}


def main(argv: list[str]) -> None:
    """tools/look.py. See ``look_arguments`` for the command line.

    Raises:
        UserError: something that was given does not fit.
    """
    args = look_arguments(argv)
    with Console(args.verbose):
        _look(args)


def _look(args: argparse.Namespace) -> None:
    checkpoint, given = None, args.images
    if looks_like_checkpoint(given[0]):
        checkpoint, given = checkpoint_file(given[0]), given[1:]
        if args.random:
            raise UserError(f"--random and {checkpoint} are two kinds of weights: give one of them")
    if not given:
        raise UserError(f"there is no image to look at: give one after {args.images[0]}")
    out = args.out or Path("looks", f"{Path(args.target).stem}-{args.show}")
    check_new(out)
    if args.against and args.show not in UNITS:
        raise UserError(f"--against puts several networks in one plot of {' or '.join(UNITS)}, not of {args.show}")
    images, broken = find_images([Path(path) for path in given])
    if broken:
        raise UserError(f"{broken[0]} is no image, and a mean without it is another one: leave it out")
    subject = Subject(args.target, checkpoint, args.random, args.device, args.cfg_options, args.size)
    results = Results(out)
    with subject.in_scope():
        SHOWN[args.show](subject, images, args, results)
    results.write()
    print_log(f"{args.show} of {counted(len(images), 'image')}: {out}", logger="current")


class Results:
    """Files of a look, which are written once all of them are made."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.files: dict[str, bytes] = {}

    def picture(self, name: str, image: np.ndarray) -> None:
        self.files[f"{name}.png"] = to_png(image)

    def table(self, name: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.files[f"{name}.csv"] = to_csv(head, rows)

    def arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        self.files[f"{name}.npz"] = content.getvalue()

    def write(self) -> None:
        write_files(self.out, self.files)


Images = Sequence[tuple[Path, str]]


def _views(subject: Subject, images: Images) -> list[View]:
    return [subject.view(path, name, index) for index, (path, name) in enumerate(images)]


def _place(args: argparse.Namespace, view: View) -> tuple[float, float]:
    """The pixel of the input that ``--at`` means; without it the middle of the image.

    Raises:
        UserError: it is not in the image.
    """
    height, width = view.drawn.shape[:2]
    if args.at is None:
        return width / 2, height / 2
    x, y = ((pixel + 0.5) * scale for pixel, scale in zip(args.at, view.scale, strict=True))
    if not (0 <= x < width and 0 <= y < height):
        sizes = " x ".join(f"{side / scale:.0f}" for side, scale in zip((width, height), view.scale, strict=True))
        raise UserError(
            f"--at {args.at[0]:g} {args.at[1]:g} is not in {printable(view.name)}, which has {sizes} pixels"
        )
    return x, y


def _backbone(subject: Subject) -> Backbone:
    if not isinstance(subject.backbone, Backbone):
        raise UserError(
            f"the backbone is {type(subject.backbone).__name__}, and attention can be looked at in those of this "
            "package: look at similarity, features, receptive-field or cam"
        )
    return subject.backbone


# ---- attention


def show_attention(subject: Subject, images: Images, args: argparse.Namespace, results: Results) -> None:
    backbone = _backbone(subject)
    chosen = _layers(backbone, args.layers)
    for view in _views(subject, images):
        x, y = _place(args, view)

        def see(seen: Seen, x: float = x, y: float = y) -> Any:
            if seen.number not in chosen:
                return None
            shares = seen.shares
            found: dict[str, tuple[Tensor, Lattice, float]] = {}
            assert shares.keys is not None
            if shares.others:
                found["class token"] = seen.maps(torch.tensor([0]))[0, :, 0].cpu(), shares.keys, seen.stride
            if shares.num_queries > shares.others:
                query = seen.query_at(x, y)
                found["place"] = seen.maps(torch.tensor([query]))[0, :, 0].cpu(), shares.keys, seen.stride
                if (joined := seen.joined(query)) is not None:
                    found["all windows"] = joined[0].cpu(), shares.keys, seen.stride
            return seen.layer.name, found

        seen = [one for one in look(backbone, view.inputs, see) if one is not None]
        marked = drawing.cross(view.drawn, x, y)
        lines, arrays = [], {}
        for kind in ("place", "all windows", "class token"):
            for name, found in seen:
                if kind in found:
                    maps, cells, stride = found[kind]
                    image = view.drawn if kind == "class token" else marked
                    lines.append(_line(f"{name}, {kind}", image, maps, cells, stride))
                    arrays[f"{name} {kind}"] = maps.numpy()
        results.picture(f"{view.name}_attention", drawing.sheet(lines))
        results.arrays(f"{view.name}_attention", arrays)


def _line(name: str, image: np.ndarray, maps: Tensor, cells: Lattice, stride: float) -> list[tuple[str, np.ndarray]]:
    """The mean over heads and each head of an attention (h, H', W'), over the image."""
    every = [("mean", maps.mean(0)), *((f"head {i}", head) for i, head in enumerate(maps))]
    low = float(maps.min()) if float(maps.min()) < 0 else 0.0
    panels = [(name, image)]
    for caption, map in every:
        values = drawing.over_pixels(map, cells, stride, image.shape[:2])
        high = float(map.max())
        panels.append((f"{caption}, to {high:.3g}", drawing.heat(image, values, low, high)))
    return panels


def _layers(backbone: Backbone, asked: Sequence[int] | None) -> list[int]:
    """The numbers of the attention layers to show: those asked for, or the last of each stage; where each block is a
    stage, the ends of the four quarters."""
    layers = backbone.attentions()
    if asked:
        if wrong := [i for i in asked if i not in range(-len(layers), len(layers))]:
            raise UserError(f"--layers {wrong[0]}: there are {len(layers)} attention layers, counted from 0")
        return [i % len(layers) for i in asked]
    last = [i for i, layer in enumerate(layers) if i + 1 == len(layers) or layers[i + 1].stage != layer.stage]
    return last if len(last) <= 6 else sorted({len(layers) * quarter // 4 - 1 for quarter in range(1, 5)})


def show_spread(subject: Subject, images: Images, args: argparse.Namespace, results: Results) -> None:
    """Distance or entropy of all networks."""
    networks: dict[str, Subject] = {subject.name: subject}
    for words in args.against or ():
        target, weights = words[0], words[1] if len(words) > 1 else None
        if len(words) > 2:
            raise UserError(f"--against takes a network and its checkpoint, and not {' '.join(words)}")
        other = Subject(
            target,
            None if weights is None else checkpoint_file(weights),
            args.random and weights is None,
            args.device,
            size=args.size if target in _names() else None,
        )
        name, number = other.name, 2
        while name in networks:
            name, number = f"{other.name} ({number})", number + 1
        networks[name] = other
    curves: dict[str, list[list[float]]] = {}
    rows = []
    for network, one in networks.items():
        backbone = _backbone(one)
        sums: list[list[Any]] = []
        with one.in_scope():
            for index, (path, name) in enumerate(images):
                view = one.view(path, name, index)
                found = look(backbone, view.inputs, lambda seen: (seen, spread(seen.shares, args.weights)))
                found = [(seen.layer, one_spread) for seen, one_spread in found if one_spread is not None]
                sums = sums or [[] for _ in found]
                for column, entry in zip(sums, found, strict=True):
                    column.append(entry)
        curves[network] = []
        for number, column in enumerate(sums):
            layer = column[0][0]
            means = {
                unit: torch.stack([getattr(entry, unit) for _, entry in column]).mean(0).tolist() for unit in UNITS
            }
            keys, queries = max(entry.keys for _, entry in column), max(entry.queries for _, entry in column)
            curves[network].append(means[args.show])
            rows += [
                (network, number, layer.name, layer.stage, head, f"{distance:.6g}", f"{entropy:.6g}", keys, queries)
                for head, (distance, entropy) in enumerate(zip(means["distance"], means["entropy"], strict=True))
            ]
    head = ("network", "layer", "name", "stage", "head", "distance", "entropy", "keys", "queries")
    results.table(args.show, head, rows)
    results.files[f"{args.show}.png"] = drawing.lines_by_layer(curves, UNITS[args.show])
    for network, layers in curves.items():
        line = ", ".join(f"{np.mean(heads):.3g}" for heads in layers)
        print(f"{network}: {args.show} by layer {line}")


def _names() -> Any:
    from mm_vitbackbones.build import backbone_names

    return backbone_names()


# ---- receptive fields


def show_fields(subject: Subject, images: Images, args: argparse.Namespace, results: Results) -> None:
    found: dict[str, list[Field]] = {}
    for index, (path, name) in enumerate(images):
        view = subject.view(path, name, index)
        run: Callable[[Tensor], dict[str, Tensor]] = subject.all_maps
        for where, field in receptive_fields(run, view.inputs, subject.strides()).items():
            found.setdefault(where, []).append(field)
    drawn, rows = {}, []
    for where, fields in found.items():
        field = mean_field(fields)
        numbers = areas(field)
        drawn[where] = (field.energy.numpy(), numbers)
        pixels = field.energy.numel()
        rows.append((where, *numbers, f"{numbers[-1] / pixels:.4g}"))
        print(f"{where}: {', '.join(f'{100 * s:g}% in {n:,} pixels' for s, n in zip(SHARES, numbers, strict=True))}")
    for head in subject.heads_without_maps():
        print(f"{head}: no field, as it makes its scores of more than the maps", file=sys.stderr)
    last = f"share of the image at {100 * SHARES[-1]:g}%"
    results.table("receptive_field", ("map", *(f"pixels at {100 * share:g}%" for share in SHARES), last), rows)
    results.files["receptive_field.png"] = drawing.fields(drawn, SHARES)
    results.arrays("receptive_field", {where: energy.astype(np.float32) for where, (energy, _) in drawn.items()})


# ---- features


def _level(subject: Subject, maps: dict[str, Tensor], asked: int | None) -> str:
    """The name of the level that was asked for; the last one if none was."""
    names = [name for name in maps if name.startswith("level ")]
    if asked is None:
        return names[-1]
    if f"level {asked}" not in names:
        raise UserError(f"--level {asked}: {subject.name} has {', '.join(names)}")
    return f"level {asked}"


class _LevelOf:
    """One level of each image, and where its cells are."""

    def __init__(self, subject: Subject, images: Images, asked: int | None) -> None:
        self.views = _views(subject, images)
        self.maps: list[Tensor] = []
        for view in self.views:
            with torch.no_grad():
                maps = subject.levels(view.inputs)
            self.name = _level(subject, maps, asked)
            self.maps.append(maps[self.name][0].detach().cpu().float())
        map, inputs = self.maps[0], self.views[0].inputs
        known = subject.strides().get(self.name)
        self.stride = known or max(inputs.shape[2] / map.shape[1], inputs.shape[3] / map.shape[2])

    def pixels(self, map: Tensor, view: View) -> np.ndarray:
        return drawing.over_pixels(map, Lattice((map.shape[0], map.shape[1])), self.stride, view.drawn.shape[:2])


def show_features(subject: Subject, images: Images, args: argparse.Namespace, results: Results) -> None:
    level = _LevelOf(subject, images, args.level)
    for view, colours in zip(level.views, principal_colours(level.maps), strict=True):
        parts = [level.pixels(colours[..., i], view) for i in (2, 1, 0)]
        drawn = (255 * np.stack(parts, axis=-1)).round().astype(np.uint8)
        caption = f"{subject.name}, {level.name}: three components"
        results.picture(f"{view.name}_features", drawing.sheet([[(view.name, view.drawn), (caption, drawn)]]))


def show_similarity(subject: Subject, images: Images, args: argparse.Namespace, results: Results) -> None:
    level = _LevelOf(subject, images, args.level)
    x, y = _place(args, level.views[0])
    rows, columns = level.maps[0].shape[1:]
    row, column = min(int(y / level.stride), rows - 1), min(int(x / level.stride), columns - 1)
    found = similarities(level.maps, row, column)
    for index, (view, map) in enumerate(zip(level.views, found, strict=True)):
        image = view.drawn if index else drawing.cross(view.drawn, x, y)
        values = level.pixels(map, view)
        caption = f"{subject.name}, {level.name}: cosine, {float(map.min()):.2f} to {float(map.max()):.2f}"
        drawn = drawing.heat(view.drawn, values, max(0.0, float(map.min())), 1.0)
        results.picture(f"{view.name}_similarity", drawing.sheet([[(view.name, image), (caption, drawn)]]))
    results.arrays("similarity", {view.name: map.numpy() for view, map in zip(level.views, found, strict=True)})


# ---- what a prediction rests on


def show_cam(subject: Subject, images: Images, args: argparse.Namespace, results: Results) -> None:
    if subject.kind == "backbone":
        raise UserError(f"{args.target} is a backbone, which has no classes: cam needs the config of a whole model")
    for view in _views(subject, images):
        try:
            target: Any = (_Detection if subject.kind == "detector" else _Class)(subject, view, args)
        except NothingFound as error:
            if len(images) == 1:
                raise
            print(f"skipped {error}", file=sys.stderr)
            continue
        level, map, score = _cam(subject, view, target, args)
        known = subject.strides().get(level)
        stride = known or max(view.inputs.shape[2] / map.shape[0], view.inputs.shape[3] / map.shape[1])
        values = drawing.over_pixels(map, Lattice((map.shape[0], map.shape[1])), stride, view.drawn.shape[:2])
        drawn = target.draw(drawing.heat(view.drawn, values))
        caption = f"{target.name} {score:.2f}, {args.method}-CAM of {level}"
        results.picture(f"{view.name}_cam", drawing.sheet([[(view.name, target.draw(view.drawn)), (caption, drawn)]]))
        results.arrays(f"{view.name}_cam", {level: map.numpy()})
        print(f"{printable(view.name)}: {target.name}, score {score:.3f}, {level}")
    if not results.files:
        raise UserError("no image has what was chosen: leave out --class, --detection or --at")


def _cam(subject: Subject, view: View, target: Any, args: argparse.Namespace) -> tuple[str, Tensor, float]:
    """The level that is looked at, its map (H, W), and the score of the target."""
    maps: dict[str, Tensor] = {}

    def begin_here(_: Any, __: Any, found: Any) -> Any:
        """The levels as leaves, so that no gradient passes through the backbone."""
        found = found if isinstance(found, (tuple, list)) else (found,)
        numbers = getattr(subject.backbone, "out_indices", range(len(found)))
        outputs = []
        for number, level in zip(numbers, found, strict=True):
            leaf = maps[f"level {number}"] = map_of(level).clone().requires_grad_()
            outputs.append(with_map(level, leaf))
        return tuple(outputs)

    handle = subject.backbone.register_forward_hook(begin_here)
    try:
        with torch.enable_grad(), _Attached(), warnings.catch_warnings():
            # Of mmdet's mask heads, about its own code; here it would seem to be about this file.
            warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
            score = target.score(view.inputs)
    finally:
        handle.remove()
    if not score.requires_grad:
        raise UserError(f"the score of {target.name} has no gradient: try --method score")
    gradients = torch.autograd.grad(score, [*maps.values()], allow_unused=True)
    of = {
        name: torch.zeros_like(map) if gradient is None else gradient
        for (name, map), gradient in zip(maps.items(), gradients, strict=True)
    }
    # That on which the score depends most.
    strongest = max(maps, key=lambda name: float((of[name] * maps[name].detach()).abs().sum()))
    value = float(score.detach())
    level = strongest if args.level is None else _level(subject, maps, args.level)
    map = maps[level][0].detach()
    if args.method == "grad":
        return level, cam.grad_cam(map, of[level][0]).cpu(), value

    def again(inputs: Tensor) -> float:
        with torch.no_grad():
            return float(target.score(inputs))

    return level, cam.score_cam(map, view.inputs, again, args.channels).cpu(), value


class NothingFound(UserError):
    """An image without what was chosen."""


class _Attached(TorchFunctionMode):
    """Within it, nothing is detached: mmdet's heads detach the scores that they predict with."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function is Tensor.detach else function(*args, **(kwargs or {}))


def _class_number(subject: Subject, asked: str) -> int:
    """The number of a class by its name or number."""
    names = [*(subject.classes or ())]
    if asked in names:
        return names.index(asked)
    if asked.isdecimal() and (not names or int(asked) < len(names)):
        return int(asked)
    known = f": there are {', '.join(map(printable, names[:20]))}" if names else ": the config names no classes"
    raise UserError(f"--class {asked} is no class{known}")


class _Detection:
    """A detection of a detector, and its score for other inputs: that of the best one of the class, times how much it
    overlaps."""

    def __init__(self, subject: Subject, view: View, args: argparse.Namespace) -> None:
        self.subject, self.view = subject, view
        with torch.no_grad():
            boxes, scores, labels = self._predict(view.inputs)
        chosen = torch.arange(len(scores))
        of_class = ""
        if args.class_name is not None:
            number = _class_number(subject, args.class_name)
            chosen, of_class = chosen[(labels == number).cpu()], f" of class {args.class_name}"
        if args.at is not None:
            x, y = _place(args, view)
            inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
            chosen, of_class = chosen[inside.cpu()[chosen]], f"{of_class} at {args.at[0]:g} {args.at[1]:g}"
        if args.detection >= len(chosen):
            raise NothingFound(
                f"{printable(view.name)}: it has {counted(len(chosen), 'detection')}{of_class}, "
                f"and no number {args.detection}"
            )
        one = chosen[scores.cpu()[chosen].argsort(descending=True, stable=True)[args.detection]]
        self.box, self.label = boxes[one], int(labels[one])
        self.name = class_name(self.label, subject.classes)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sample = self.view.sample.new()
        sample.set_metainfo(self.view.sample.metainfo)
        found = self.subject.model.predict(inputs, [sample], rescale=False)[0].pred_instances
        return getattr(found.bboxes, "tensor", found.bboxes), found.scores, found.labels

    def score(self, inputs: Tensor) -> Tensor:
        boxes, scores, labels = self._predict(inputs)
        with torch.no_grad():
            overlaps = _overlaps(self.box, boxes) * (labels == self.label)
            best = (overlaps * scores).argmax() if len(scores) else 0
        return scores[best] * overlaps[best] if len(scores) else scores.sum()

    def draw(self, image: np.ndarray) -> np.ndarray:
        drawn = image.copy()
        x1, y1, x2, y2 = (round(float(corner)) for corner in self.box)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), (80, 255, 80), max(2, image.shape[1] // 300), cv2.LINE_AA)
        return drawn


def _overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box (4,) with boxes (n, 4)."""
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    both = sides.prod(1)
    one, others = (box[2:] - box[:2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return both / (one + others - both).clamp(min=1e-12)


class _Class:
    """A class of a segmentor. Its score is the mean of the class's logits over the pixels that have it."""

    def __init__(self, subject: Subject, view: View, args: argparse.Namespace) -> None:
        self.subject, self.view = subject, view
        with torch.no_grad():
            logits = self._logits(view.inputs)
        height, width = view.drawn.shape[:2]
        labels = logits.argmax(0) if len(logits) > 1 else (logits[0] > 0).long()
        inside = labels[:height, :width]
        if args.class_name is not None:
            self.label = _class_number(subject, args.class_name)
        elif args.at is not None:
            x, y = _place(args, view)
            self.label = int(inside[int(y), int(x)])
        else:
            self.label = int(inside.flatten().mode()[0])
        self.region = torch.zeros_like(labels, dtype=torch.bool)
        self.region[:height, :width] = inside == self.label
        if not self.region.any():
            raise NothingFound(f"{printable(view.name)}: no pixel of it has the class {args.class_name}")
        self.channel = min(self.label, len(logits) - 1)
        self.name = class_name(self.label, subject.classes)

    def _logits(self, inputs: Tensor) -> Tensor:
        return self.subject.model.encode_decode(inputs, [self.view.sample.metainfo])[0]

    def score(self, inputs: Tensor) -> Tensor:
        return self._logits(inputs)[self.channel][self.region].mean()

    def draw(self, image: np.ndarray) -> np.ndarray:
        drawn = image.copy()
        region = self.region[: image.shape[0], : image.shape[1]].cpu().numpy().astype(np.uint8)
        lines, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(drawn, lines, -1, (80, 255, 80), max(1, image.shape[1] // 400), cv2.LINE_AA)
        return drawn


SHOWN: dict[str, Callable[[Subject, Images, argparse.Namespace, Results], None]] = {
    "attention": show_attention,
    "distance": show_spread,
    "entropy": show_spread,
    "receptive-field": show_fields,
    "features": show_features,
    "similarity": show_similarity,
    "cam": show_cam,
}


def look_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="look.py", description="Pictures and numbers of what a network sees in images.")
    parser.add_argument(
        "target",
        metavar="CONFIG|ARCH",
        help="a recipe by its name, the path of a config file, or a backbone's name, such as pvt_v2_b0",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="[CHECKPOINT] IMAGE",
        help="a .pth file, its address or a work dir, then images, or folders of them. Without a checkpoint: the "
        "published weights of a backbone, or those that the config begins with",
    )
    parser.add_argument("--show", required=True, choices=[*SHOWN], help="what to look at")
    parser.add_argument(
        "--at", type=float, nargs=2, metavar=("X", "Y"), help="a pixel of the image, from 0 (its middle by default)"
    )
    parser.add_argument(
        "--layers", type=int, nargs="+", metavar="N", help="attention layers to show, from 0 (the last of each stage)"
    )
    parser.add_argument(
        "--level", type=int, metavar="N", help="level of the backbone (the last; for cam the strongest)"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        action="append",
        metavar="CONFIG|ARCH",
        help="another network, and its checkpoint, in the same plot of distance or entropy; may be repeated",
    )
    parser.add_argument(
        "--all-queries",
        dest="weights",
        action="store_const",
        const=None,
        default=MOST,
        help="distance and entropy of all queries; in large layers some, at even steps, stand for all otherwise",
    )
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="cam of this class, by name or number")
    parser.add_argument("--detection", type=_count, default=0, metavar="N", help="cam of the N-th best detection (0)")
    parser.add_argument("--method", choices=("grad", "score"), default="grad", help="how cam weights channels (grad)")
    parser.add_argument(
        "--channels", type=_count, default=32, metavar="N", help="channels of --method score, a run each (32)"
    )
    parser.add_argument("--size", type=_count, nargs="+", metavar="SIDE", help="resize images to height and width")
    parser.add_argument("--random", action="store_true", help="random weights in place of published ones")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files go (looks/<name>-<what>). Nothing is overwritten"
    )
    add_device(parser)
    add_options(parser)
    add_verbose(parser)
    args = parser.parse_args(argv)
    if args.size and (len(args.size) > 2 or min(args.size) < 1):
        raise UserError("--size takes a height and a width, or one number for both")
    return args


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return int(text)
