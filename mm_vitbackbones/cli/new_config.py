"""Write a config that fits a data set of the user's own, the backbone and the device."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mm_vitbackbones import recipes
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.build import backbone_names
from mm_vitbackbones.cli import preflight
from mm_vitbackbones.cli.arguments import Parser, add_checks
from mm_vitbackbones.cli.config import load_config
from mm_vitbackbones.data.own import OwnData, objects_in, segments_in
from mm_vitbackbones.errors import UserError, counted, did_you_mean, printable
from mm_vitbackbones.files import write_new
from mm_vitbackbones.printing import print

SEGMENTATION = "segmentation"


OWN, RANDOM = {False: "own", True: "own_segmentation"}, {False: "small", True: "small_segmentation"}
"""Optimizers from pretrained and from random weights, by whether the task is segmentation."""


@dataclass(frozen=True)
class Head:
    """What a config needs to know of a detector or a segmentor."""

    title: str
    task: str
    model: tuple[str, ...]
    """The lines of ``model`` that follow from the backbone and the classes. ``CHANNELS`` stands for those of all
    levels that the model takes, ``THIRD`` for those of the third of four, ``QUERIES`` for the most that all images
    have places for."""
    levels: tuple[int, ...] = (0, 1, 2, 3)
    """The levels of the backbone that it takes."""
    norms: tuple[str, ...] = ()
    """The lines of ``model`` that get norms for a training from random weights."""
    optimizers: tuple[str, str] | None = None
    """The parts of recipes from pretrained and from random weights, if they are not those of the task."""

    @property
    def data(self) -> str:
        """The part of recipes for its data."""
        return "own_segmentation" if self.task == SEGMENTATION else f"coco_{self.task}"

    def optimizer(self, scratch: bool) -> str:
        """The part of recipes for its optimizer."""
        segmentation = self.task == SEGMENTATION
        return (self.optimizers or (OWN[segmentation], RANDOM[segmentation]))[scratch]


NORM = 'norm_cfg=dict(type="GN", num_groups=32)'
QUERIES, FOUND = 900, 300
"""The most queries of DINO, and the most objects that it finds in an image."""

_NECK = "neck=dict(in_channels=CHANNELS)"
_DENSE = "bbox_head=dict(num_classes=len(classes))"
_CROPS = "data_preprocessor=dict(size=crop_size)"
_MASKS = "loss_cls=dict(class_weight=[1.0] * len(classes) + [0.1])"

HEADS = {
    "retinanet": Head("RetinaNet", "detection", (_NECK, _DENSE), (1, 2, 3), norms=(_NECK, _DENSE)),
    "faster_rcnn": Head(
        "Faster R-CNN", "detection", (_NECK, "roi_head=dict(bbox_head=dict(num_classes=len(classes)))"), norms=(_NECK,)
    ),
    "fcos": Head("FCOS", "detection", (_NECK, _DENSE), (1, 2, 3), norms=(_NECK, _DENSE)),
    "dino": Head(
        "DINO",
        "detection",
        (_NECK, f"{_DENSE}, num_queries=QUERIES, test_cfg=dict(max_per_img=FOUND)"),
        (1, 2, 3),
        optimizers=("dino", "small_dino"),
    ),
    "mask_rcnn": Head(
        "Mask R-CNN",
        "instance",
        (
            _NECK,
            "roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes)))",
        ),
        norms=(_NECK,),
    ),
    "mask2former": Head(
        "Mask2Former",
        "instance",
        (
            f"panoptic_head=dict(in_channels=CHANNELS, num_things_classes=len(classes), {_MASKS})",
            "panoptic_fusion_head=dict(num_things_classes=len(classes))",
        ),
        optimizers=("mask2former", "small_mask2former"),
    ),
    "segformer": Head(
        "SegFormer",
        SEGMENTATION,
        (_CROPS, "decode_head=dict(in_channels=CHANNELS, channels=256, num_classes=len(classes))"),
    ),
    "upernet": Head(
        "UPerNet",
        SEGMENTATION,
        (
            _CROPS,
            "decode_head=dict(in_channels=CHANNELS, num_classes=len(classes))",
            "auxiliary_head=dict(in_channels=THIRD, num_classes=len(classes))",
        ),
    ),
    "mask2former_segmentation": Head(
        "Mask2Former",
        SEGMENTATION,
        (_CROPS, f"decode_head=dict(in_channels=CHANNELS, num_classes=len(classes), {_MASKS})"),
        optimizers=("mask2former", "small_mask2former"),
    ),
}
"""The heads by the parts of recipes for their models. The first of a task is its default."""

TASKS = tuple(dict.fromkeys(head.task for head in HEADS.values()))

LARGEST = {False: (1333, 800), True: (2048, 1024)}
"""The longer and the shorter side that images are reduced to, of detection and of segmentation."""

CROP = 512
"""The side of the largest crops, for segmentation."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a training."""

    batch: int
    rate: float
    epoch: int
    """Iterations in an epoch."""
    length: int
    """Epochs of a detector, iterations of a segmentor."""
    warm_up: int
    """Iterations."""
    interval: int
    """Epochs or iterations from one validation to the next."""


def main(argv: list[str]) -> None:
    """``python -m mm_vitbackbones new_config``: write a config for the user's own data.

    Raises:
        UserError: the data, the backbone or the weights are not there or do not fit, or the file is there already.
    """
    args = arguments(argv)
    part = chosen_head(args.task, args.head)
    head = HEADS[part]
    family, arch = chosen_backbone(args.backbone)
    files = {"train": args.train, "val": args.val}
    given = [option for option in ("train", "val", "images") if getattr(args, option)]
    if given and head.task == SEGMENTATION:
        raise UserError(f"--{given[0]} is for detection: segmentation takes images/ and masks/ of --data")
    data = _data_in(args.data, head, files, args.images)
    out = args.out or Path(f"{re.sub(r'[^0-9A-Za-z_]+', '_', data.name)}_{option_of(part)}_{args.backbone}.py")
    if out.suffix != ".py":
        raise UserError(f"--out {out}: a config ends in .py")
    if out.exists():
        raise UserError(f"{out} is there already, and nothing is overwritten: name another file with --out")
    plan = plan_of(data, head, args.init == "none", args.batch, device_memory())
    text = config_text(part, data, plan, (family, arch), args.init, out)
    if not args.skip_checks:
        check(text, out.name)
    write_new(out, text.encode())
    print(f"{head.title} for {counted(len(data.classes), 'class', 'classes')}: {describe(plan, head)}")
    print(f"wrote {out}; train with: {_command(out)}")


DEFAULT_BACKBONE = "pvt_v2_b2"
"""Of the config that is written next to converted data."""


def write_next_to(folder: Path, task: str) -> str:
    """A config with the task's first head, written into a folder of data; returns how to train with it.

    Raises:
        UserError: the data do not fit, for example without images to measure on.
        OutputError: it cannot be written.
    """
    part = chosen_head(task, None)
    head = HEADS[part]
    data = _data_in(folder, head, {"train": None, "val": None}, None)
    out = folder / f"{option_of(part)}_{DEFAULT_BACKBONE}.py"
    plan = plan_of(data, head, scratch=False, memory=device_memory())
    text = config_text(part, data, plan, chosen_backbone(DEFAULT_BACKBONE), "imagenet1k", out)
    write_new(out, text.encode())
    return _command(out)


def _data_in(folder: Path, head: Head, files: dict[str, Path | None], images: Path | None) -> OwnData:
    if head.task == SEGMENTATION:
        return segments_in(folder)
    return objects_in(folder, files, images, masks=head.task == "instance")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="new_config.py", description="Write a config of at most 25 lines that fits your data.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data set")
    parser.add_argument("--task", choices=TASKS, required=True, help="boxes, boxes and masks, or labels of pixels")
    parser.add_argument("--backbone", required=True, metavar="NAME", help="such as pvt_v2_b2, swin_tiny or mit_b0")
    parser.add_argument(
        "--head",
        metavar="NAME",
        help=f"one of {', '.join(dict.fromkeys(map(option_of, HEADS)))}; the first of the task by default",
    )
    parser.add_argument(
        "--init",
        default="imagenet1k",
        metavar="NAME|FILE|none",
        help="where the backbone's weights come from: a published name (imagenet1k), a file, or none: random",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the .py file to write (./DATA_HEAD_BACKBONE.py)")
    parser.add_argument("--train", type=Path, metavar="FILE", help="COCO file of the training (annotations/train.json)")
    parser.add_argument("--val", type=Path, metavar="FILE", help="COCO file of the validation (annotations/val.json)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images of both COCO files")
    parser.add_argument("--batch", type=int, metavar="N", help="images in a step, instead of what fits this device")
    add_checks(parser)
    args = parser.parse_args(argv)
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch {args.batch}: a step has at least one image")
    return args


def option_of(part: str) -> str:
    """The name that ``--head`` takes. A part for the second of two tasks has that of the task at its end."""
    return part.removesuffix(f"_{HEADS[part].task}")


def chosen_head(task: str, name: str | None) -> str:
    """The part of recipes of the head of this name, or of the default of a task.

    Raises:
        UserError: if there is none of this name for the task.
    """
    known = {option_of(part): part for part, head in HEADS.items() if head.task == task}
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise UserError(f"--head {name}: for --task {task} there are {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def chosen_backbone(name: str) -> tuple[type[Backbone], str]:
    """Family and arch of a backbone's name.

    Raises:
        UserError: if there is none, with the nearest ones.
    """
    known = backbone_names()
    if name not in known:
        raise UserError(
            f"there is no backbone {name!r}{did_you_mean(name, known) or '; known are ' + ', '.join(known)}"
        )
    return known[name]


def device_memory() -> float | None:
    """GiB of the first GPU's memory; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30


def plan_of(data: OwnData, head: Head, scratch: bool, batch: int | None = None, memory: float | None = None) -> Plan:
    """Batch, learning rate and schedule for so many images on this device.

    A run of detection has 2,000 iterations, but 12 to 100 epochs; one of segmentation 40 epochs, but 1,000 to 40,000
    iterations. From random weights, both are twice as long.

    Args:
        data: the data set.
        head: what is trained.
        scratch: whether the weights are random.
        batch: images in a step; None for what fits the memory.
        memory: GiB of a GPU; None for a CPU.
    """
    segmentation, images = head.task == SEGMENTATION, data.splits["train"].count
    if batch is None:
        fits = (memory or 0) / (2 if segmentation else 4)
        batch = min(16, max(2, 2 ** math.floor(math.log2(max(1.0, fits)))), max(1, images))
    epoch = max(1, images // batch if segmentation else -(-images // batch))
    more = 2 if scratch else 1
    # The rates are for a batch of 16 from pretrained weights, and of 2 and 4 from random ones. Adam's goes by the root.
    reference = (4 if segmentation else 2) if scratch else 16
    rate = (5e-4 if scratch else 1e-4) * math.sqrt(batch / reference)
    if segmentation:
        length = min(40_000, max(1000, 40 * epoch)) * more
        length = -(-length // 100) * 100
        total, interval = length, length // 10
    else:
        length = min(100, max(12, math.ceil(2000 / epoch))) * more
        total, interval = length * epoch, max(1, length // 10)
    return Plan(batch, float(f"{rate:.1e}"), epoch, length, min(500, max(1, total // 20)), interval)


def sizes_of(data: OwnData, segmentation: bool) -> tuple[tuple[int, int], int]:
    """The size that images are resized to (longer side, shorter side), and the side of the crops out of them."""
    factor = min(1.0, *(most / side for most, side in zip(LARGEST[segmentation], data.size, strict=True)))
    if factor < 1:
        return _pair(data.size, factor), min(CROP, _multiple(data.size[1] * factor))
    scale = (_multiple(data.size[0]), _multiple(data.size[1]))
    return scale, min(CROP, scale[1])


def _pair(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return round(size[0] * factor), round(size[1] * factor)


def _multiple(side: float) -> int:
    """A side as the backbones take it: a multiple of 32, at least 64."""
    return max(64, round(side / 32) * 32)


def places_in(data: OwnData, scale: tuple[int, int]) -> int:
    """The places in the four levels of DINO (strides 8 to 64) of the smallest image after it is resized to a scale.

    Images are padded to a multiple of 32. A query of DINO begins at a place of its own.
    """

    def places(size: tuple[int, int]) -> int:
        factor = min(most / side for most, side in zip(scale, size, strict=True))
        width, height = (max(1, math.ceil(round(side * factor) / 32)) * 32 for side in size)
        return sum(math.ceil(width / stride) * math.ceil(height / stride) for stride in (8, 16, 32, 64))

    return min(map(places, data.sizes or {data.size}))


def config_text(
    part: str, data: OwnData, plan: Plan, backbone: tuple[type[Backbone], str], init: str, out: Path
) -> str:
    """The text of the config."""
    head, scratch = HEADS[part], init == "none"
    segmentation = head.task == SEGMENTATION
    scale, crop = sizes_of(data, segmentation)
    quoted, names = (", ".join(map(_text, each)) for each in (parts_of(part, scratch), data.classes))
    train, val = data.splits["train"], data.splits["val"]
    lines = [
        f"# {head.title} with {backbone[0].__name__} {backbone[1]} on {printable(data.name)}: "
        f"{counted(train.count, 'image')} to learn from, {val.count:,} to measure.",
        f"#   {printable(_command(out))}",
        f'_base_ = [__import__("mm_vitbackbones").recipe(f"_base_/{{part}}.py") for part in (\n    {quoted},\n)]',
        f"data_root = {_text(data.root.as_posix() + '/')}",
        f"classes = ({names}{',' * (len(data.classes) == 1)})  # in the order of the file",
    ]
    if segmentation:
        lines.append(
            f"scale, crop_size = {scale}, {(crop, crop)}  # of images: longer side, shorter side; and of crops"
        )
        resized = (
            'dict(step, **{key: size for key, size in (("scale", scale), ("crop_size", crop_size)) if key in step})'
        )
    else:
        lines.append(f"scale = {scale}  # of images: longer side, shorter side")
        resized = 'dict(step, scale=scale) if "scale" in step else step'
    lines.append("own = dict(data_root=data_root, metainfo=dict(classes=classes))")
    for split, files in data.splits.items():
        steps = "train_pipeline" if split == "train" else "test_pipeline"
        lines.append(f"{steps} = [{resized} for step in _base_.{steps}]")
        if segmentation:
            prefix = f"img_path={_text(files.images)}, seg_map_path={_text(files.labels)}"
            where = f"data_prefix=dict({prefix}), img_suffix={_text(files.suffix)}"
        else:
            where = f"ann_file={_text(files.labels)}, data_prefix=dict(img={_text(files.images + '/')})"
            where += ", filter_cfg=dict(min_size=1)" if split == "train" else ""
        batch = f"batch_size={plan.batch}, " if split == "train" else ""
        lines.append(f"{split}_dataloader = dict({batch}dataset=dict(**own, {where}, pipeline={steps}))")
    lines.append("test_dataloader = val_dataloader")
    if not segmentation:
        before = "" if Path(val.labels).is_absolute() else "data_root + "
        lines += [f"val_evaluator = dict(ann_file={before}{_text(val.labels)})", "test_evaluator = val_evaluator"]
    weights = (
        '[dict(type="mm_vitbackbones.FromScratch")]'
        if scratch
        else f'dict(type="Pretrained", checkpoint={_text(init)})'
    )
    lines.append("model = dict(")
    kind = f'type="mm_vitbackbones.{backbone[0].__name__}", arch={_text(backbone[1])}'
    lines.append(f"    backbone=dict({kind}, init_cfg={weights}),")
    channels = channels_of(*backbone, head.levels)
    for line in head.model:
        filled = line.replace("CHANNELS", str([*channels])).replace("THIRD", str(channels[-2]))
        if "QUERIES" in line:
            queries = min(QUERIES, places_in(data, scale))
            filled = filled.replace("QUERIES", str(queries)).replace("FOUND", str(min(FOUND, queries)))
        if scratch and line in head.norms:  # random weights need norms to bear the rate
            filled = f"{filled[:-1]}, {NORM})"
        lines.append(f"    {filled},")
    lines += [
        ")",
        f"optim_wrapper = dict(optimizer=dict(lr={plan.rate:g}))  # for {counted(plan.batch, 'image')} in a step",
    ]
    if segmentation:
        lines.append(f"train_cfg = dict(max_iters={plan.length}, val_interval={plan.interval})")
        lines.append(f"default_hooks = dict(checkpoint=dict(interval={plan.interval}))")
    else:
        each = f"{counted(plan.epoch, 'iteration')} each"
        lines.append(f"train_cfg = dict(max_epochs={plan.length}, val_interval={plan.interval})  # of {each}")
    lines += [
        f"param_scheduler = [dict(_base_.param_scheduler[0], end={plan.warm_up}), _base_.param_scheduler[1]]",
        f"auto_scale_lr = dict(base_batch_size={plan.batch})",
    ]
    return recipes.without_templates("\n".join(lines) + "\n")


def parts_of(part: str, scratch: bool) -> list[str]:
    """The parts of recipes that a config with this head inherits from."""
    head = HEADS[part]
    segmentation = head.task == SEGMENTATION
    return [
        f"models/{part}",
        f"datasets/{head.data}",
        f"optimizers/{head.optimizer(scratch)}",
        "schedules/own_iterations" if segmentation else "schedules/own_epochs",
        "segmentation_runtime_small" if segmentation else "default_runtime_small",
    ]


def _command(out: Path) -> str:
    """How to train with the config. A name without a folder would be that of a recipe."""
    return f"python -m mm_vitbackbones train {shlex.quote(str(out) if out.parent != Path() else f'./{out}')}"


def _text(value: str) -> str:
    """A text as Python has it, in double quotes where it can be."""
    return repr(value) if '"' in value or "\\" in value else '"' + repr(value)[1:-1].replace("\\'", "'") + '"'


def channels_of(family: type[Backbone], arch: str, levels: Sequence[int]) -> tuple[int, ...]:
    """The channels of these levels of a backbone.

    Raises:
        UserError: if it has not that many levels.
    """
    try:
        with torch.device("meta"):
            return tuple(family(arch=arch, out_indices=tuple(levels)).channels)  # type: ignore[call-arg]
    except ValueError as error:
        raise UserError(f"{family.__name__} {arch}: {error}") from None


def check(text: str, name: str) -> None:
    """Check a config's text as the other commands check a config before they begin.

    Raises:
        UserError: for the first thing that does not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(text, encoding="utf-8")
        cfg = load_config(path, {})
    preflight.check_or_skip(cfg, ["train", "val"])


def describe(plan: Plan, head: Head) -> str:
    """The plan in a few words."""
    unit = f"{plan.length:,} iterations" if head.task == SEGMENTATION else f"{plan.length} epochs of {plan.epoch:,}"
    return f"{unit}, batch {plan.batch}, learning rate {plan.rate:g}, warm-up of {counted(plan.warm_up, 'iteration')}"
