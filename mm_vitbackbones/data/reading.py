"""Images and label maps as the pipeline of a data set reads them.

A pipeline may have a loading transform of the user's own: for several bands, for another file format, for another
orientation. So everything that looks at an image asks the pipeline, and not a reader of its own.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.registry import DATASETS, TRANSFORMS

from mm_vitbackbones import limits
from mm_vitbackbones.data.image_files import why_unreadable
from mm_vitbackbones.errors import UserError, shorten
from mm_vitbackbones.libraries import look_up
from mm_vitbackbones.nodes import type_name

LIBRARIES = ("mm_vitbackbones", "mmcv", "mmdet", "mmengine", "mmseg")
"""The packages whose transforms are known. Every other transform is the user's own."""


IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of image files."""

OF_BANDS = (".npy", ".tif", ".tiff")
"""Suffixes of files that hold any number of bands."""

GROUND_TRUTH = ("instances", "seg_map_path", "seg_fields", "label_map", "reduce_zero_label")
"""What a data set says about the ground truth of an image."""

MOST = 300
"""Characters that are kept of another library's message."""


class UnreadableImage(UserError):
    """An image that its pipeline cannot load. The message says why, without the image's name."""


class LeftOutImage(UnreadableImage):
    """An image for which a pipeline gives nothing: the data set takes another one in its place."""


class LabelMap(NamedTuple):
    """A label map, as a pipeline loads it with its image."""

    image: tuple[int, ...]
    """Shape of the image when it was loaded."""
    loaded: tuple[int, ...]
    """Shape of the label map when it was loaded."""
    labels: np.ndarray
    """The labels that the run gets. A step of the user's own may have given them another shape."""


class ImageReader:
    """The first steps of a pipeline, up to the one that loads what is asked for.

    Args:
        pipeline: transforms, or their configs. These are built in the default scope, when they are first needed: later
            steps never are.
    """

    def __init__(self, pipeline: Sequence[Any]) -> None:
        self._steps = [*pipeline]
        self._last_own = max((index for index, step in enumerate(pipeline) if is_own(step)), default=-1)

    def __call__(self, info: Mapping[str, Any], as_used: bool = False) -> np.ndarray:
        """The image of a data set's entry, (height, width) or (height, width, channels), of the loader's own type.

        Args:
            info: what the data set says about an image, ``img_path`` above all.
            as_used: after the last step of the user's own, which may change values.

        Raises:
            UnreadableImage: a step cannot do its work, or none of them loads an image.
        """
        image = None
        for index, results in enumerate(self._results(info)):
            if isinstance(found := results.get("img"), np.ndarray):
                image = found
            if image is not None and (not as_used or index >= self._last_own):
                return image
        raise UnreadableImage("no step of its pipeline loads an image")

    def whole(self, info: Mapping[str, Any]) -> tuple[np.ndarray, Any]:
        """The image as it was loaded, and what the whole pipeline gives for the entry.

        A step of the user's own that needs ground truth, which the entry lacks, is left out.

        Raises:
            UnreadableImage: a step cannot do its work, or none of them loads an image.
        """
        image = None
        for results in self._results(info, optional=[name for name in GROUND_TRUTH if name not in info]):
            if image is None and isinstance(loaded := results.get("img"), np.ndarray):
                image = loaded.copy()  # a later step may write into it
        if image is None:
            raise UnreadableImage("no step of its pipeline loads an image")
        return image, results

    def labels(self, info: Mapping[str, Any]) -> LabelMap | None:
        """The label map of an entry, after the last step of the user's own, which may change labels.

        Returns:
            None, if no step loads a label map.

        Raises:
            UnreadableImage: a step cannot do its work, or none of them loads an image.
        """
        image = loaded = labels = None
        for index, results in enumerate(self._results(info)):
            if image is None and isinstance(found := results.get("img"), np.ndarray):
                image = found.shape
            if isinstance(found := results.get("gt_seg_map"), np.ndarray):
                loaded, labels = loaded or found.shape, found
            if image is not None and loaded is not None and index >= self._last_own:
                break
        if image is None:
            raise UnreadableImage("no step of its pipeline loads an image")
        return None if loaded is None or labels is None else LabelMap(image, loaded, labels)

    def _results(self, info: Mapping[str, Any], optional: Sequence[str] = ()) -> Iterator[Any]:
        """What each step gives, in order. The entry itself is not changed.

        Args:
            optional: entries of ``info`` that a step may miss. It is left out then.
        """
        for key, what in (("img_path", ""), ("seg_map_path", "its mask: ")):
            path = info.get(key)
            if isinstance(path, str) and (why := why_unreadable(path)):
                raise UnreadableImage(f"{what}{why}")
        results: Any = copy.deepcopy(dict(info))
        for index in range(len(self._steps)):
            step = self._step(index)
            try:
                results = step(results)
            except Exception as error:  # a transform can raise anything
                if isinstance(error, KeyError) and error.args[0] in optional:
                    continue
                path = str(info.get("img_path"))
                bands = path.lower().endswith(OF_BANDS) and type_name(transform_class(step)) == "LoadImageFromFile"
                hint = "; dict(type='mm_vitbackbones.LoadMultichannelImage') loads images of bands" * bands
                raise UnreadableImage(reason(error).removesuffix(f": {path}") + hint) from None
            if results is None:
                raise LeftOutImage("its pipeline gives nothing for it")
            yield results

    def _step(self, index: int) -> Callable[[Any], Any]:
        step = self._steps[index]
        if isinstance(step, Mapping):
            try:
                step = self._steps[index] = TRANSFORMS.build(step)
            except Exception as error:  # arguments that a class does not take
                raise UserError(f"a step of a pipeline, {step}, cannot be built: {reason(error)}") from None
        return step


@contextlib.contextmanager
def naming(info: Mapping[str, Any], where: str) -> Iterator[None]:
    """Name the image of a data set's entry in the error of one that cannot be loaded.

    Raises:
        UserError: in place of ``UnreadableImage``. A ``LeftOutImage`` stays: it is no error.
    """
    try:
        yield
    except LeftOutImage:
        raise
    except UnreadableImage as error:
        raise UserError(f"{where}: {info.get('img_path')} cannot be loaded: {error}") from None


def list_dataset(dataset: Mapping[str, Any], where: str) -> Any:
    """A data set of a config without its pipeline: it lists its files by its own rules, and reads no image.

    Raises:
        UserError: it cannot be built.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            return DATASETS.build({**dataset, "pipeline": [], "serialize_data": False})
    except Exception as error:  # a class of the user's own can raise anything
        if missing := _unknown_classes(dataset):
            raise UserError(
                f"{where}: {type_name(dataset)} has classes of its own, and {shorten(missing, 3)} not among them: for "
                "classes of your own use type='BaseSegDataset', with reduce_zero_label=True only if 0 in masks is none"
            ) from None
        raise UserError(f"{where}: the data set cannot be built: {reason(error)}") from None


def _unknown_classes(dataset: Mapping[str, Any]) -> list[str]:
    """The class names of a config that a data set of MMSegmentation with classes of its own lacks: it takes a part of
    these alone."""
    kind = look_up(DATASETS, dataset.get("type"))
    if "BaseSegDataset" not in (each.__name__ for each in getattr(kind, "__mro__", ())):
        return []
    own, given = getattr(kind, "METAINFO", {}).get("classes"), (dataset.get("metainfo") or {}).get("classes")
    return [repr(name) for name in given if name not in own] if own and isinstance(given, (list, tuple)) else []


def is_local(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set's files are on this machine."""
    return (dataset.get("backend_args") or {}).get("backend", "local") == "local"


def transform_class(step: Any) -> Any:
    """The class of a transform or of its config, in the default scope; None for an unknown name."""
    return look_up(TRANSFORMS, step.get("type")) if isinstance(step, Mapping) else type(step)


def of_library(kind: Any) -> bool:
    """Whether a class is one of the libraries', and not the user's own."""
    return getattr(kind, "__module__", "").partition(".")[0] in LIBRARIES


def is_own(step: Any) -> bool:
    """Whether a transform, or its config, is the user's own."""
    return not of_library(transform_class(step))


def reason(error: Exception) -> str:
    """An exception in a few words of one line."""
    words = textwrap.shorten(str(error), MOST, placeholder=" ...")
    if why := too_large(words):
        return why
    if isinstance(error, cv2.error) and "!buf.empty()" in words:
        return "it is empty"
    return (
        words
        if isinstance(error, (OSError, AssertionError, UserError)) and words
        else f"{type(error).__name__}: {words}"
    )


def too_large(words: str) -> str:
    """Why OpenCV or Pillow refuses an image, from the message of its error; empty if its size is not why."""
    if "IO_MAX_IMAGE" not in words and "decompression bomb" not in words:
        return ""
    most = os.environ.get(limits.OPENCV, "")
    own = f", or {limits.OPENCV}={most} forbids it" if most not in ("", str(limits.PIXELS.value)) else ""
    return f"it has more pixels than the limit of {limits.PIXELS.value:,}{own}; {limits.how_to_raise()}"
