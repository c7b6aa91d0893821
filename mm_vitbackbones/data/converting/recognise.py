"""Which program a folder comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mm_vitbackbones.data.converting import masks, yolo
from mm_vitbackbones.data.converting.coco_export import is_coco, load
from mm_vitbackbones.data.converting.labelme import is_labelme
from mm_vitbackbones.data.converting.sources import files_in, images_in
from mm_vitbackbones.errors import UserError

FORMATS = {
    "yolo": "yolo",
    "voc": "voc",
    "coco": "coco",
    "cvat": "coco",
    "labelstudio": "coco",
    "roboflow": "coco",
    "labelme": "labelme",
    "masks": "masks",
}
"""The words of ``--format``, and which reader each means: CVAT, Label Studio and Roboflow export COCO JSON."""

LOOKED_AT = 20
"""So many files of a kind are opened."""


def recognise(source: Path) -> str:
    """The format of a folder, or of the folder that a file describes.

    Raises:
        UserError: none, or several, of the formats are there.
    """
    hints: list[str] = []
    found = [name for name in ("coco", "labelme", "voc", "yolo", "masks") if _is(name, source, hints)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{source} holds data of several formats: choose one with --format {' or --format '.join(found)}"
        )
    hint = "; ".join(hints) or (
        "looked for COCO JSON, JSON of labelme, XML of Pascal VOC, YOLO's data.yaml or classes.txt with labels/*.txt, "
        "and for masks next to images"
    )
    raise UserError(f"{source}: no format was recognised: {hint}")


def _is(name: str, source: Path, hints: list[str]) -> bool:
    if name in ("coco", "labelme"):
        files = [source] if source.is_file() else files_in(source, (".json",))
        test = is_coco if name == "coco" else is_labelme
        return any(test(content) or _hint(content, hints) for content in map(load, files[:LOOKED_AT]))
    if source.is_file():
        return name == "yolo" and source.suffix.lower() in (".yaml", ".yml")
    if name == "voc":
        return any(_is_voc(file, hints) for file in files_in(source, (".xml",))[:LOOKED_AT])
    if name == "yolo":
        if yolo.find_yaml(source):
            return True
        labels = any(yolo.label_file(image) for image in images_in(source)[:LOOKED_AT])
        if labels and not yolo.find_names(source):
            hints.append(
                "it looks like YOLO without the names of the classes: write them into data.yaml or classes.txt"
            )
        return labels and yolo.find_names(source) is not None
    return masks.is_masks(source)


def _hint(content: Any, hints: list[str]) -> bool:
    if isinstance(content, list) and content and isinstance(content[0], dict) and "annotations" in content[0]:
        hint = "it holds Label Studio's own JSON: export it as COCO"
        hints += [hint] if hint not in hints else []
    return False


def _is_voc(file: Path, hints: list[str]) -> bool:
    try:
        tag = ElementTree.parse(file).getroot().tag
    except (ElementTree.ParseError, OSError, ValueError):
        return False
    if tag == "annotations":
        hints.append(f"{file.name} is CVAT's own XML: export the task as 'COCO 1.0' or as 'Segmentation mask 1.1'")
    return tag == "annotation"
