"""Predictions in files, as ``test --out`` and ``predict`` write them. No code in a file is run."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm_vitbackbones.data.json_files import read_json
from mm_vitbackbones.errors import UserError, counted, shorten
from mm_vitbackbones.files import why_no_file

Results = list[dict[str, Any]]
"""Detections in COCO's results format."""


def read_pickle(path: Path) -> list[Mapping[str, Any]]:
    """The list of a pickled file of ``test --out``: a dict for each image.

    Raises:
        UserError: it is no such file, or asks for anything but arrays, tensors and plain data.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            content = _Plain(file).load()
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # pickle can raise anything for a damaged file
        raise UserError(f"{path} is no pickled file of predictions: {type(error).__name__}: {error}") from None
    if not isinstance(content, list) or not all(isinstance(each, Mapping) for each in content):
        raise UserError(f"{path} is no list with a dict for each image, as `test --out FILE.pkl` writes it")
    return content


def check_file(path: Path) -> None:
    """Check that there is a file.

    Raises:
        UserError: if not.
    """
    if kind := why_no_file(path):
        raise UserError(f"{path} is {kind}, and no file")
    if not path.is_file():
        raise UserError(f"there is no file {path}")


class _Plain(pickle.Unpickler):
    """Loads arrays, tensors and plain data, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("numpy", "dtype"): np.dtype,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy.core.multiarray", "_reconstruct"): np.ndarray((0,)).__reduce__()[0],
            ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
            ("numpy.core.numeric", "_frombuffer"): _from_buffer,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _load_storage,
            ("torch", "device"): torch.device,
            ("torch", "Size"): torch.Size,
            ("_codecs", "encode"): _as_latin1,
        }
        if (module, name) not in known:
            raise UserError(f"asks for {module}.{name}, and predictions are arrays, tensors and plain data alone")
        return known[module, name]


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _as_latin1(text: str, encoding: str) -> bytes:
    """How pickles of the second protocol write bytes."""
    return text.encode("latin1")


def _load_storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def of_samples(samples: Sequence[Mapping[str, Any]], categories: Sequence[Any], path: Path) -> dict[str, Results]:
    """Boxes (``bbox``) of the samples that mmdet dumps, and masks (``segm``) if there are any.

    Args:
        categories: the id of each label.

    Raises:
        UserError: they are no detections, or of other classes.
    """
    boxes: Results = []
    masks: Results = []
    for sample in samples:
        found = sample.get("pred_instances")
        if found is None or "img_id" not in sample or not {"bboxes", "labels", "scores"} <= set(found):
            raise UserError(f"{path} holds no detections, as `test --out FILE.pkl` writes them for a detector")
        corners = np.array(found["bboxes"], dtype=np.float32).reshape(-1, 4)
        # As mmdet's CocoMetric: in 32 bits, then as Python's numbers.
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
        labels, scores = np.array(found["labels"]).tolist(), np.array(found["scores"], dtype=np.float32).tolist()
        shapes = found.get("masks")
        mask_scores = np.array(found.get("mask_scores", scores), dtype=np.float32).tolist()
        for place, (box, label, score) in enumerate(zip(sides, labels, scores, strict=True)):
            if not 0 <= label < len(categories):
                raise UserError(
                    f"{path} has the label {label}, and the data set {counted(len(categories), 'class', 'classes')}"
                )
            entry = {"image_id": sample["img_id"], "category_id": categories[label]}
            boxes.append({**entry, "bbox": box, "score": score})
            if shapes is not None:
                masks.append({**entry, "segmentation": _code(shapes[place]), "score": mask_scores[place]})
    return {"bbox": boxes} | ({"segm": masks} if masks else {})


def _code(mask: Any) -> Any:
    """A mask in COCO's run-length code, which pycocotools takes as bytes."""
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        return {"size": [*mask["size"]], "counts": counts.encode() if isinstance(counts, str) else counts}
    return mask


def read_coco_results(path: Path, truth: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Results]:
    """Detections of a JSON file: COCO's results format, as of ``test --out FILE.json``, with masks in
    ``FILE.segm.json`` next to it if that exists; or ``predictions.json`` of ``predict``.

    Raises:
        UserError: it is neither, or of other images or classes.
    """
    content = _json(path)
    if isinstance(content, Mapping):
        return _of_predict(path, content, truth)
    boxes = _checked(path, content, truth)
    found = {"bbox": [each for each in boxes if "bbox" in each]}
    of_masks = path.with_suffix(".segm.json")
    masks = _checked(of_masks, _json(of_masks), truth) if of_masks.is_file() else boxes
    masks = [{**each, "segmentation": _code(each["segmentation"])} for each in masks if "segmentation" in each]
    found |= {"segm": masks} if masks else {}
    return {kind: each for kind, each in found.items() if each or kind == "bbox"}


def _json(path: Path) -> Any:
    check_file(path)
    try:
        return read_json(path)[0]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _checked(path: Path, content: Any, truth: Mapping[str, Any]) -> Results:
    """The entries of a list of results, once their images and categories are known to be there."""
    if not isinstance(content, list):
        raise UserError(f"{path} is no list of results in COCO's format")
    images = {each["id"] for each in truth["images"]}
    categories = {each["id"] for each in truth["categories"]}
    for each in content:
        if not isinstance(each, dict) or not {"image_id", "category_id", "score"} <= each.keys():
            raise UserError(f"{path}: {str(each)[:80]!r} is no result in COCO's format: image_id, category_id, score")
        if not isinstance(each["score"], (int, float)) or ("bbox" in each and not _is_box(each["bbox"])):
            raise UserError(f"{path}: {str(each)[:80]!r} has no score, or no box of four numbers")
        for key, known in (("image_id", images), ("category_id", categories)):
            if not isinstance(each[key], (int, str)) or each[key] not in known:
                raise UserError(f"{path}: {key}={each[key]!r} is not in the ground truth: it is of another data set")
    return content


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(each, (int, float)) for each in box)


def _of_predict(path: Path, content: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Results]:
    """Those of ``predict``, whose images and categories have numbers of their own: they are known by their names."""
    if not all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories")):
        raise UserError(f"{path} has no images, annotations and categories, as `predict` writes them")
    by_name: dict[str, Any] = {}
    doubled = set()
    for each in truth["images"]:
        name = os.path.basename(str(each["file_name"]))
        doubled |= {name} & by_name.keys()
        by_name[name] = each["id"]
    categories = {each["name"]: each["id"] for each in truth["categories"]}
    images: dict[Any, Any] = {}
    lacking: list[str] = []
    for each in content["images"]:
        name = os.path.basename(str(each["file_name"]))
        if name in doubled:
            raise UserError(
                f"{path}: two images of the ground truth have the name {name!r}: give a file of `test --out`"
            )
        if name in by_name:
            images[each["id"]] = by_name[name]
        else:
            lacking.append(name)
    if lacking:
        raise UserError(
            f"{path}: the ground truth has no image {shorten(lacking, 3)}: predict on those of the test set"
        )
    if missing := sorted({str(each["name"]) for each in content["categories"]} - {*map(str, categories)}):
        raise UserError(f"{path}: the ground truth has no class {shorten(missing, 3)}")
    kinds = {each["id"]: categories[each["name"]] for each in content["categories"]}
    found: Results = []
    for each in content["annotations"]:
        entry = {"image_id": images.get(each.get("image_id")), "category_id": kinds.get(each.get("category_id"))}
        found.append({**each, **entry})
    found = _checked(path, found, truth)
    masks = [{**each, "segmentation": _code(each["segmentation"])} for each in found if "segmentation" in each]
    return {"bbox": found} | ({"segm": masks} if masks else {})


def label_maps(samples: Sequence[Mapping[str, Any]], path: Path) -> dict[str, np.ndarray]:
    """Label maps (H, W) by the paths of their images.

    Raises:
        UserError: they are none.
    """
    found = {}
    for sample in samples:
        labels = sample.get("labels")
        if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "ui":
            raise UserError(f"{path} holds no label maps, as `test --out FILE.pkl` writes them for a segmentor")
        found[str(sample.get("img_path"))] = labels
    return found
