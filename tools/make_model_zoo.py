"""Make docs/model_zoo.md and the metafiles from the configs: python tools/make_model_zoo.py [--check]."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from torch import nn

from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.build import families
from mm_vitbackbones.checkpoints.published import FILES, files_of, resolve
from mm_vitbackbones.cli.arguments import Parser, run
from mm_vitbackbones.cli.describe import Description, Level, describe
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import tracked, write_whole
from mm_vitbackbones.measuring import multiply_adds

SIZES = {"detection": (800, 1280), "segmentation": (512, 512)}
"""Height and width of the image that costs are counted for."""

PROPOSALS, DETECTIONS = 1000, 100
"""How many boxes the second stage of a detector is counted for, and how many masks."""

TOLERANCE = 0.01
"""How far a counted number of parameters may be from a published one without a stated reason."""

REASONS = {
    "segformer_mit_b0_ade20k": "published as 3.4 + 0.4 M",
    "segformer_mit_b1_ade20k": "published as 13.1 + 0.6 M",
    **{
        f"cascade_mask_rcnn_mvit_v2_{name}_3x_coco": "published with one head for the masks of all stages"
        for name in ("t", "s", "b", "b_in21k")
    },
}
"""Why a counted number of parameters differs by more from the published one."""

METHODS = {
    "RetinaNet": "RetinaNet",
    "MaskRCNN": "Mask R-CNN",
    "CascadeRCNN": "Cascade Mask R-CNN",
    "SegFormerHead": "SegFormer",
    "FPNHead": "Semantic FPN",
    "UPerHead": "UPerNet",
    "DPTHead": "DPT",
    "LinearHead": "Linear probe",
    "DINO": "DINO",
    "Mask2Former": "Mask2Former",
    "Mask2FormerHead": "Mask2Former",
    "YOLOF": "YOLOF",
}


@dataclass(frozen=True)
class Entry:
    """One config: what it costs, counted here, and what was published of it."""

    name: str
    family: str
    arch: str
    method: str
    task: str
    dataset: str
    backbone_parameters: int
    backbone_multiply_adds: int
    parameters: int
    multiply_adds: int
    checkpoint: str
    published: Mapping[str, Any]
    is_measured: bool
    """Whether the page of the embedded sets has its results."""

    @property
    def status(self) -> str:
        if self.is_measured:
            return "[measured here](embedded_data.md)"
        return "published" if self.published.get("results") else "untested"


def collect(configs: Path, published: Path) -> list[Entry]:
    """All configs of a folder that git knows, with the results of a JSON file.

    Raises:
        UserError: if the file has results of a config that does not exist.
    """
    results = json.loads(published.read_text(encoding="utf-8"))
    paths = [path for path in tracked(configs) if path.parent == configs and path.suffix == ".py"]
    if unknown := sorted(results.keys() - {path.stem for path in paths}):
        raise UserError(f"{published} has results of {unknown[0]}, and there is no such config in {configs}")
    return [make_entry(path, results.get(path.stem, {})) for path in paths]


def make_entry(path: Path, published: Mapping[str, Any]) -> Entry:
    """Counts what a config costs, without allocating its weights."""
    cfg = Config.fromfile(path)
    task = "segmentation" if cfg.default_scope == "mmseg" else "detection"
    cfg.model.backbone.pop("adapters", None)  # `convert_checkpoint --merge` makes them a part of the weights
    backbone = cfg.model.backbone.to_dict()
    alone = cost_of(json.dumps(backbone), SIZES[task])
    parameters, multiply_adds = count(cfg, SIZES[task])
    kind = cfg.model.type if task == "detection" else cfg.model.decode_head.type.rpartition(".")[2]
    return Entry(
        name=path.stem,
        family=backbone["type"].removeprefix("mm_vitbackbones."),
        arch=backbone["arch"],
        method=METHODS[kind],
        task=task,
        dataset=path.stem.rpartition("_")[2],
        backbone_parameters=alone.parameters,
        backbone_multiply_adds=alone.multiply_adds,
        parameters=parameters,
        multiply_adds=multiply_adds,
        checkpoint=_checkpoint(backbone),
        published=published,
        is_measured=is_measured(path.stem, (path.parent.parent / "docs/embedded_data.md").read_text(encoding="utf-8")),
    )


def is_measured(name: str, page: str) -> bool:
    """Whether a page has a config's results: a row of its name with numbers, or, where it has no row, its command."""
    rows = re.findall(rf"^\| `{name}` \|(.*)$", page, flags=re.MULTILINE)
    if rows:
        return any("not measured" not in row for row in rows)
    return f"configs/{name}.py" in page


def _checkpoint(backbone: Mapping[str, Any]) -> str:
    """The URL of the pretrained weights of a backbone's config, or of the page of their licence; empty without any."""
    init_cfg = backbone.get("init_cfg")
    if not isinstance(init_cfg, Mapping) or init_cfg.get("type") != "Pretrained":
        return ""
    family = backbone["type"].removeprefix("mm_vitbackbones.")
    record = files_of(family, backbone["arch"]).get(init_cfg.get("checkpoint", ""))
    return record.url if record else os.fspath(resolve(init_cfg.get("checkpoint"), family, backbone["arch"]))


def count(cfg: Config, size: tuple[int, int]) -> tuple[int, int]:
    """Parameters and multiply-adds of a detector or segmentor for one image (height, width).

    Of a detector in two stages the second one is counted for 1,000 proposals, and its masks for 100 detections.
    """
    backbone = cfg.model.backbone.to_dict()
    model = build_model(cfg, "meta").eval().requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    alone = cost_of(json.dumps(backbone), size)
    model.backbone = _Given(alone.levels, backbone.get("with_class_token", False))
    with torch.device("meta"), torch.no_grad():
        rest = multiply_adds(lambda: _run(model, torch.empty(1, 3, *size)))
    return parameters, alone.multiply_adds + rest


@functools.cache
def cost_of(backbone: str, size: tuple[int, int]) -> Description:
    """What a backbone's config, as JSON, costs. Many configs have the same."""
    return describe(json.loads(backbone), size)


class _Given(nn.Module):
    """In place of a backbone that is counted already: gives its levels, with a class token each if asked."""

    def __init__(self, levels: Iterable[Level], with_class_token: bool) -> None:
        super().__init__()
        self.levels, self.with_class_token = levels, with_class_token

    def forward(self, image: torch.Tensor) -> list[Any]:
        maps = [torch.empty(len(image), x.channels, x.height, x.width) for x in self.levels]
        return [(map, torch.empty(map.shape[:2])) for map in maps] if self.with_class_token else maps


def _run(model: Any, image: torch.Tensor) -> None:
    features = model.extract_feat(image)
    if hasattr(model, "encoder"):
        _run_dino(model, features)
        return
    if (head := _mask2former_in(model)) is not None:
        _run_mask2former(head, features)
        return
    if hasattr(model, "decode_head"):
        model.decode_head(features)
        return
    if not hasattr(model, "roi_head"):
        model.bbox_head(features)
        return
    model.rpn_head(features)
    roi = model.roi_head
    heads = roi.bbox_head if isinstance(roi.bbox_head, nn.ModuleList) else [roi.bbox_head]
    width = features[0].shape[1]
    for head in heads:
        head(torch.empty(PROPOSALS, width, 7, 7))
    for head in roi.mask_head if isinstance(roi.mask_head, nn.ModuleList) else [roi.mask_head]:
        head(torch.empty(DETECTIONS, width, 14, 14))  # a cascade averages the masks of its stages


def _run_dino(model: Any, maps: Sequence[torch.Tensor]) -> None:
    """DINO on the maps of its neck. Its own way into the encoder reads sizes out of tensors, which have none here."""
    shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    ratios = torch.empty(len(maps[0]), len(maps), 2)
    with _attention_without_samples():
        given = dict(spatial_shapes=shapes, level_start_index=None, valid_ratios=ratios)
        encoded = model.forward_encoder(feat=tokens, feat_mask=None, feat_pos=tokens, **given)
        decoder, head = model.pre_decoder(**encoded)
        decoded = model.forward_decoder(**decoder, memory_mask=None, **given)
        model.bbox_head(**decoded, **head)


def _mask2former_in(model: Any) -> Any:
    """The head of a Mask2Former, which is a part of the detector or of the segmentor; None in other models."""
    heads = (getattr(model, name, None) for name in ("panoptic_head", "decode_head"))
    return next((head for head in heads if hasattr(head, "pixel_decoder")), None)


def _run_mask2former(head: Any, maps: Sequence[torch.Tensor]) -> None:
    """Mask2Former's head. Its pixel decoder reads sizes out of tensors, so its layers are called one by one."""
    decoder = head.pixel_decoder
    levels = [project(x) for project, x in zip(decoder.input_convs, reversed(maps), strict=False)]
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
    with _attention_without_samples():
        for layer in decoder.encoder.layers:
            tokens = layer(query=tokens, query_pos=tokens, key_padding_mask=None)
    finest = levels[-1]
    for lateral, output, x in zip(decoder.lateral_convs, decoder.output_convs, maps, strict=False):
        finest = output(lateral(x))
    masks = decoder.mask_feature(finest)
    with mock.patch.object(decoder, "forward", return_value=(masks, levels)):
        head(maps, None)


@contextlib.contextmanager
def _attention_without_samples() -> Iterator[None]:
    """Deformable attention of its linear maps alone: it samples by no convolution and no product of matrices."""
    from mmcv.ops import MultiScaleDeformableAttention

    def forward(self: Any, query: torch.Tensor, *args: Any, value: Any = None, **kwargs: Any) -> torch.Tensor:
        self.sampling_offsets(query)
        self.attention_weights(query)
        values = self.value_proj(query if value is None else value)
        return self.output_proj(values.new_empty(query.shape))

    with mock.patch.object(MultiScaleDeformableAttention, "forward", forward):
        yield


def differing(entries: Iterable[Entry]) -> list[str]:
    """The configs whose counted parameters are not the published ones, and for which no reason is stated."""
    return [
        f"{entry.name}: {entry.parameters / 1e6:.2f} M counted, {entry.published['parameters']} M published"
        for entry in entries
        if "parameters" in entry.published
        and entry.name not in REASONS
        # A published number is rounded to its last digit.
        and abs(entry.parameters / 1e6 - entry.published["parameters"])
        > max(TOLERANCE * entry.published["parameters"], 0.51 if isinstance(entry.published["parameters"], int) else 0)
    ]


def page(entries: list[Entry], order: Sequence[str]) -> str:
    """docs/model_zoo.md, with the weights of the families in this order."""
    parts = [HEAD]
    for task, title in (("detection", "Detection on COCO"), ("segmentation", "Segmentation on ADE20K")):
        height, width = SIZES[task]
        parts.append(f"\n## {title}\n")
        of_task = [entry for entry in entries if entry.task == task and entry.dataset not in ("mini", "trees")]
        for method in dict.fromkeys(METHODS.values()):
            if found := [entry for entry in of_task if entry.method == method]:
                parts.append(f"\n### {method}\n\n" + _table(found, f"{height}x{width}"))
    small = [entry for entry in entries if entry.dataset in ("mini", "trees")]
    parts.append("\n## The embedded sets\n\nFor trying things out, from random weights; no benchmarks.\n\n")
    parts.append(_table(small, "512x512 (segmentation) or 800x1280"))
    parts.append("\n## Pretrained weights\n\n" + WEIGHTS + _weights(order))
    return "".join(parts)


HEAD = """# Model zoo

Made by `tools/make_model_zoo.py` from the configs, `docs/published.json` and the records in
`mm_vitbackbones/checkpoints/tables/`: do not edit.

**Nothing of COCO and ADE20K was trained here.** Results are those that were published, with their source: papers, the
authors' repositories, third parties. "untested" marks configs without a published result. Parameters and multiply-adds
are **counted here** (`tools/describe.py`), and in brackets as published: of the backbone and of the whole network, for
one image of the size in the table's head; a second stage for 1,000 proposals and its masks for 100 detections; of
deformable attention its linear maps. mIoU is of one scale, and after the slash of six scales and flips (`--tta`).
"""


def _table(entries: list[Entry], size: str) -> str:
    rows = [
        f"| config | backbone: M, G at {size} | whole: M | whole: G | result | source | status |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows += map(row, entries)
    return "\n".join(rows) + "\n"


def row(entry: Entry) -> str:
    """The line of a config on the page."""
    printed = entry.published
    cells = [
        f"[{entry.name}](../configs/{entry.name}.py)",
        f"{entry.backbone_parameters / 1e6:.2f}, {entry.backbone_multiply_adds / 1e9:.1f}",
        f"{entry.parameters / 1e6:.2f}" + _in_brackets(printed.get("parameters")),
        f"{entry.multiply_adds / 1e9:.0f}" + _in_brackets(printed.get("multiply_adds")),
        _result(printed.get("results", {})),
        printed.get("source", ""),
        entry.status,
    ]
    return "| " + " | ".join(cell or "-" for cell in cells) + " |"


def _in_brackets(value: Any) -> str:
    return "" if value is None else f" ({value})"


def _result(results: Mapping[str, float]) -> str:
    if "mIoU" in results:
        return f"mIoU {results['mIoU']}" + (f" / {results['mIoU, --tta']}" if "mIoU, --tta" in results else "")
    return ", ".join(f"{name} {value}" for name, value in results.items())


WEIGHTS = """The names go into a config, `init_cfg=dict(type="Pretrained", checkpoint="imagenet1k")`, and into
`build_backbone("swin_tiny", pretrained="imagenet22k")`. The first name of an arch is its default. Top-1 is ImageNet-1k
accuracy as published.

"""


def _weights(order: Sequence[str]) -> str:
    rows = [
        "| backbone | name | trained on | pixels | top-1 | file | published by | licence |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for file in sorted(FILES, key=lambda file: order.index(file.family)):
        cells = [f"{file.family} {file.arch}", f"`{file.name}`", file.data, file.size, file.top1 or "-"]
        cells += [f"[{file.file_name}]({file.url})", file.source, file.licence]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def order_of_families(backbones: str) -> list[str]:
    """The families in the order of docs/backbones.md.

    Raises:
        UserError: if the page has no row of a family.
    """
    order = list(dict.fromkeys(re.findall(r"^\| `mm_vitbackbones\.(\w+)` \|", backbones, flags=re.MULTILINE)))
    if missing := sorted({*families()} - {*order}):
        raise UserError(f"docs/backbones.md has no row of {', '.join(missing)}: write one for each variant")
    return order


def paper_of(family: type[Backbone]) -> tuple[str, str]:
    """Title and address of a family's paper, from the first lines of its file."""
    text = sys.modules[family.__module__].__doc__ or ""
    title, number = re.match(r"(.+?)(?: \(.+\))?\.\n", text), re.search(r"arXiv:(\d+\.\d+)", text)
    if not (title and number):
        raise ValueError(f"the file of {family.__name__} does not begin with its paper's title, and arXiv:NUMBER")
    return title[1], f"https://arxiv.org/abs/{number[1]}"


def metafile(family: str, entries: list[Entry]) -> str:
    """The entries of one family in the form of OpenMMLab's metafiles."""
    title, url = paper_of(families()[family])
    lines = [
        "# Made by tools/make_model_zoo.py: do not edit.",
        "Collections:",
        f"  - Name: {family}",
        "    Paper:",
        f"      Title: {json.dumps(title)}",
        f"      URL: {url}",
        "    README: docs/model_zoo.md",
        "    License: Apache-2.0",
        "Models:",
    ]
    return "\n".join([*lines, *map(record, entries)]) + "\n"


def record(entry: Entry) -> str:
    """The lines of a config in the metafile of its family."""
    lines = [
        f"  - Name: {entry.name}",
        f"    In Collection: {entry.family}",
        f"    Config: configs/{entry.name}.py",
        "    Metadata:",
        f"      Parameters: {entry.parameters}",
        f"      FLOPs: {entry.multiply_adds}",
        f"      Training Data: {'COCO' if entry.task == 'detection' else 'ADE20K'}",
    ]
    if entry.checkpoint:
        lines += [f"      Pretrained Weights: {entry.checkpoint}"]
    if results := entry.published.get("results"):
        lines += ["    Results:", *_metafile_results(entry, results)]
    return "\n".join(lines)


def _metafile_results(entry: Entry, results: Mapping[str, float]) -> list[str]:
    dataset = "COCO" if entry.task == "detection" else "ADE20K"
    tasks = {"box AP": "Object Detection", "mask AP": "Instance Segmentation", "mIoU": "Semantic Segmentation"}
    lines = []
    for name, value in results.items():
        if name in tasks:
            lines += [f"      - Task: {tasks[name]}", f"        Dataset: {dataset}", "        Metrics:"]
            lines += [f"          {name}: {value}"]
            if f"{name}, --tta" in results:
                lines += [f"          {name}(ms+flip): {results[f'{name}, --tta']}"]
    return lines


def files(root: Path) -> dict[Path, str]:
    """Everything that is made of the configs, by where it belongs.

    Raises:
        UserError: if counted parameters are not the published ones, or the page of backbones lacks a family.
    """
    order = order_of_families((root / "docs/backbones.md").read_text(encoding="utf-8"))
    entries = collect(root / "configs", root / "docs/published.json")
    if wrong := differing(entries):
        raise UserError(f"parameters are not the published ones: {'; '.join(wrong)}: fix the config, or state why")
    made = {root / "docs/model_zoo.md": page(entries, order)}
    big = [entry for entry in entries if entry.dataset not in ("mini", "trees")]
    with_recipes = [family for family in families() if any(entry.family == family for entry in big)]
    for family in with_recipes:
        name = root / f"configs/metafiles/{family.lower()}.yml"
        made[name] = metafile(family, [entry for entry in big if entry.family == family])
    index = "".join(f"  - configs/metafiles/{family.lower()}.yml\n" for family in with_recipes)
    made[root / "model-index.yml"] = f"# Made by tools/make_model_zoo.py: do not edit.\nImport:\n{index}"
    return made


def main(argv: list[str]) -> None:
    """The command line of tools/make_model_zoo.py.

    Raises:
        UserError: with ``--check``, if a file is not what would be made.
    """
    parser = Parser(prog="make_model_zoo.py", description="Make the model zoo page and the metafiles.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 if something is stale")
    args = parser.parse_args(argv)
    root = Path(__file__).parents[1]
    for path, text in files(root).items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if args.check:
            raise UserError(f"{path.relative_to(root)} is stale: run tools/make_model_zoo.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
        print(f"wrote {path.relative_to(root)}")


if __name__ == "__main__":
    raise SystemExit(run(main))
