"""Errors in the masks of a segmentation data set, found on the CPU before a run begins.

MMSegmentation would wrap a wrong label to 255 in silence, or end in an illegal memory access on the GPU.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from mm_vitbackbones.data.mask_files import read_mask
from mm_vitbackbones.data.reading import (
    IMAGES,
    ImageReader,
    LeftOutImage,
    UnreadableImage,
    is_local,
    is_own,
    list_dataset,
    transform_class,
)
from mm_vitbackbones.data.sizes import SizeReader
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.progress import track

SAMPLE = 200
"""How many masks a sample has, spread evenly over the data set."""

IGNORED = 255
"""The label that the library's loader gives to a pixel without a class."""

WRAPPED = (-1, 2**16 - 1)
"""Values of wider masks that mean "ignored" to many programs. The loader's conversion to 8 bits makes them 255."""


def check_masks(dataset: Mapping[str, Any], where: str, every: bool = False) -> None:
    """Check the masks of a data set's config, a sample or every one.

    Data on another machine, and a pipeline without masks, as for a test without ground truth, are not checked.

    Raises:
        UserError: for an image without a mask, or a mask that is no PNG-like map of labels, is not of its image's size,
            or has labels that are no class; for masks that leave nothing to learn.
    """
    if not is_local(dataset):
        return
    listed = list_dataset(dataset, where)
    pairs = [listed.get_data_info(i) for i in range(len(listed))]
    if not pairs:
        raise UserError(f"{where}: no image *{listed.img_suffix} in {listed.data_prefix.get('img_path')}")
    if "seg_map_path" not in pairs[0]:
        return
    check_files(pairs, listed, where)
    masks = Masks(dataset.get("pipeline") or (), listed, where, every)
    if not masks.loads_any(pairs[0]):
        return
    some = pairs if every else pairs[:: max(1, len(pairs) // SAMPLE)]
    present: Counter[int] = Counter()
    for pair in track(some, f"{where}: looking at masks") if every else some:
        present.update(masks.labels(pair))
    if masks.is_empty(present):  # if others are not, the sample is no good one
        chosen = {pair["seg_map_path"] for pair in some}
        for pair in (pair for pair in pairs if pair["seg_map_path"] not in chosen):
            present.update(masks.labels(pair))
            if not masks.is_empty(present):
                break
        else:
            raise UserError(f"{where}: {masks.why_empty(present)}")
    absent = [name for label, name in enumerate(masks.classes) if label not in present]
    if absent:
        share = f"the {len(some)} masks" if every else f"{len(some)} of {len(pairs)} masks"
        hint = masks.hint_of_zero(present)
        _warn(
            f"{where}: {share} hold no pixel of {', '.join(map(str, absent[:10]))}{' ...' * (len(absent) > 10)}{hint}"
        )


def check_files(pairs: Sequence[Mapping[str, Any]], listed: Any, where: str) -> None:
    """Check that every image and its mask exist. Images and masks that are never read are reported."""
    for key, what in (("img_path", "images are"), ("seg_map_path", "masks are")):
        missing = [pair[key] for pair in pairs if not Path(pair[key]).exists()]
        if missing:
            raise UserError(
                f"{where}: {len(missing)} of {len(pairs)} {what} missing, the first is {missing[0]} (the names of an "
                "image and its mask are the same, up to img_suffix and seg_map_suffix of the dataset)"
            )
    if listed.ann_file or getattr(listed, "_indices", None) is not None:
        return  # some of the files are chosen
    known = {os.path.normpath(pair[key]) for pair in pairs for key in ("img_path", "seg_map_path")}
    images = _files(listed.data_prefix.get("img_path"), IMAGES)
    masks = _files(listed.data_prefix.get("seg_map_path"), (listed.seg_map_suffix.lower(),))
    if unread := sorted({*images, *masks} - known):
        _warn(f"{where}: images or masks that are not read, as they are no pair: {len(unread)}, such as {unread[0]}")


def _files(folder: str | None, suffixes: tuple[str, ...]) -> Iterable[str]:
    """The files in a folder, and in those inside it, whose names end in one of the suffixes."""
    for inside, _, names in os.walk(folder) if folder else ():
        for name in names:
            if name.lower().endswith(suffixes):
                yield os.path.normpath(os.path.join(inside, name))


class Masks:
    """The masks of a data set, as its pipeline loads them.

    Args:
        pipeline: transforms, or their configs.
        listed: the data set.
        where: the dataloaders that have the data set, for messages.
        every: read images whole, and not only their headers.
    """

    def __init__(self, pipeline: Sequence[Any], listed: Any, where: str, every: bool) -> None:
        self.where = where
        self.classes: Sequence[str] = listed.metainfo.get("classes") or ()
        self.ignore_index = getattr(listed, "ignore_index", IGNORED)
        self.reduces_zero = bool(getattr(listed, "reduce_zero_label", False))
        self.label_map: Mapping[int, int] = getattr(listed, "label_map", None) or {}
        self._own = any(map(is_own, pipeline))
        plain = [step for step in pipeline if is_plain(step)]
        self._plain = bool(plain) and not self._own
        self._every = every
        self._read = ImageReader(pipeline)
        self._size_of = SizeReader(pipeline)
        self._table = label_table(self.reduces_zero, self.label_map) if self._plain else np.arange(256)
        for step in plain:
            asked = step.get("reduce_zero_label")
            if asked is not None and asked != self.reduces_zero:
                raise UserError(
                    f"{where}: LoadAnnotations has reduce_zero_label={asked}, and the dataset {self.reduces_zero}: "
                    "set it in the dataset alone"
                )

    def loads_any(self, pair: Mapping[str, Any]) -> bool:
        """Whether the pipeline loads masks at all. In training it has to."""
        if self._plain or self._load(pair) is not None:
            return True
        if "train" in self.where and not self._own:
            raise UserError(f"{self.where}: no step of the pipeline loads masks: add dict(type='LoadAnnotations')")
        return False

    def labels(self, pair: Mapping[str, Any]) -> Counter[int]:
        """How many pixels of each label the mask of an image has.

        Raises:
            UserError: the mask cannot be right.
        """
        path = pair["seg_map_path"]
        if self._plain:
            values = self._values(path)
            if (image := self._image_size(pair)) is None:
                return Counter()
            self._check_size(path, values.shape, image)
            return self._labels(path, values)
        found = self._load(pair)
        if found is None:
            return Counter()
        if len(found.loaded) == 2:
            self._check_size(path, found.loaded, found.image)
        return self._labels(path, found.labels)

    def is_empty(self, present: Mapping[int, int]) -> bool:
        """Whether labels leave nothing to learn: all pixels are ignored, or all but those of one of two classes."""
        return {*present} <= {self.ignore_index} or self._lacks_second(present) or self._ignores_first(present)

    def _ignores_first(self, present: Mapping[int, int]) -> bool:
        """Whether masks of two classes for training look like 0 and 1, of which ``reduce_zero_label`` ignores 0."""
        for_training = "train" in self.where and self.reduces_zero
        return for_training and len(self.classes) == 2 and {*present} == {0, self.ignore_index}

    def hint_of_zero(self, present: Mapping[int, int]) -> str:
        """What to do where masks may count from 0, and ``reduce_zero_label`` takes 0 from them: the last class, with
        the number that only masks that count from 1 hold, has no pixel, and pixels are ignored."""
        first = self.reduces_zero and self.ignore_index in present and len(self.classes) - 1 not in present
        if not first or self.label_map:
            return ""
        share = 100 * present[self.ignore_index] / sum(present.values())
        return (
            f"; reduce_zero_label=True ignores 0, with 255 {share:.0f} % of all pixels: set it to False in the "
            "dataset, if 0 is the first class"
        )

    def _lacks_second(self, present: Mapping[int, int]) -> bool:
        """Whether masks of two classes look like 0 and 255, black and white."""
        as_saved = not self.reduces_zero and not self.label_map
        return as_saved and len(self.classes) == 2 and {*present} == {0, self.ignore_index}

    def why_empty(self, present: Mapping[int, int]) -> str:
        """What is wrong with masks that leave nothing to learn, and what to do."""
        if self._lacks_second(present):
            first, second = self.classes
            return (
                f"all masks hold 0 and {self.ignore_index}, and {self.ignore_index} is the label that is ignored, so "
                f"the class {second!r} has no pixel: save masks with 0 for {first!r} and 1 for {second!r}"
            )
        if self._ignores_first(present):
            return (
                f"all pixels that are not ignored are of one class, {self.classes[0]!r}, as reduce_zero_label=True "
                "ignores 0 in masks: set it to False in the dataset, if 0 is the first class"
            )
        return (
            "no pixel of all masks has a class, all are ignored: save for each pixel the number of its class, "
            f"{self._expected()}"
        )

    def _load(self, pair: Mapping[str, Any]) -> Any:
        """What the pipeline gives; None for an image that is left out."""
        try:
            return self._read.labels(pair)
        except LeftOutImage:
            return None
        except UnreadableImage as error:
            raise UserError(
                f"{self.where}: {pair['img_path']} and its mask {pair['seg_map_path']} cannot be loaded: {error}"
            ) from None

    def _values(self, path: str) -> np.ndarray:
        """The values of a mask's file, before the library's loader makes them 8 bits wide."""
        values, _ = read_mask(path, self.where)
        if values.ndim != 2:
            raise UserError(
                f"{self.where}: {path} has {values.shape[2]} channels: a mask has one, which holds the number of each "
                "pixel's class, and no colours"
            )
        if min(values.shape) == 1:
            raise UserError(f"{self.where}: {path} is one pixel wide or high, and its loader would drop that side")
        return values

    def _image_size(self, pair: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Height and width of an image as its loader returns it; None for an image that is left out."""
        try:
            return self._size_of(pair, whole=self._every)
        except LeftOutImage:
            return None
        except UnreadableImage as error:
            raise UserError(f"{self.where}: {pair['img_path']} cannot be read: {error}") from None

    def _check_size(self, path: str, mask: tuple[int, ...], image: tuple[int, ...]) -> None:
        if mask != image[:2]:
            raise UserError(
                f"{self.where}: {path} is {mask[1]}x{mask[0]}, and its image {image[1]}x{image[0]} (width x height): "
                "they have to be equal"
            )

    def _labels(self, path: str, values: np.ndarray) -> Counter[int]:
        labels: Counter[int] = Counter()
        wrong = []
        count = len(self.classes)
        for value, pixels in zip(*np.unique(values, return_counts=True), strict=True):
            label = self._label(value)
            if label is None:
                wrong.append(f"{value} ({pixels} pixels)")
            else:
                labels[label] += int(pixels)
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            from_one = self._plain and not self.reduces_zero and not self.label_map and len(wrong) == 1
            hint = ""
            if from_one and count in values and count == 1:
                hint = f", or name the background as the first of two classes, ('background', {self.classes[0]!r})"
            elif from_one and count in values:
                hint = f", or set reduce_zero_label=True of the dataset, if its masks hold 1 to {count} for the classes"
            raise UserError(
                f"{self.where}: {path} has the labels {', '.join(wrong[:5])}{more}, and the "
                f"{len(self.label_map) or count} classes are {self._expected()}: "
                f"fix the mask, or metainfo=dict(classes=(...)) of the dataset{hint}"
            )
        return labels

    def _label(self, value: Any) -> int | None:
        """The label of a value; None if it is neither a class nor ignored."""
        if self._plain and value in WRAPPED:
            value = IGNORED
        if not 0 <= value <= 255 or value != int(value):
            return None
        label = int(self._table[int(value)])
        return label if label < len(self.classes) or label == self.ignore_index else None

    def _expected(self) -> str:
        """The values that masks may have, in words."""
        if not self._plain:
            return f"0 to {len(self.classes) - 1} ({self.ignore_index} apart)"
        first, known = int(self.reduces_zero), len(self.label_map) or len(self.classes)
        zero = " and 0" if self.reduces_zero else " and"
        return f"{first} to {first + known - 1} ({self.ignore_index}{zero} reduce_zero_label={self.reduces_zero} apart)"


def label_table(reduce_zero: bool, label_map: Mapping[int, int]) -> np.ndarray:
    """The label of each value of a mask, 0 to 255, by the order of MMSegmentation's loader: zero is reduced first, and
    the map of classes is applied to what this gives."""
    reduced = np.arange(256)
    if reduce_zero:
        reduced = np.where((reduced == 0) | (reduced == 255), 255, reduced - 1)
    labels = reduced.copy()
    for old, new in label_map.items():
        labels[reduced == old] = new
    return labels


def is_plain(step: Any) -> bool:
    """Whether a transform's config is MMSegmentation's own loader of masks, which reads them with Pillow."""
    kind = transform_class(step)
    known = (getattr(kind, "__module__", ""), getattr(kind, "__name__", ""))
    return (
        isinstance(step, Mapping)
        and known == ("mmseg.datasets.transforms.loading", "LoadAnnotations")
        and step.get("imdecode_backend", "pillow") == "pillow"
        and is_local(step)
    )


def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)
