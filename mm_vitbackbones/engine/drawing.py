"""Drawings of a run: its curves, and ground truth next to predictions. Images are (H, W, 3) uint8 arrays, BGR."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from mm_vitbackbones.canvas import figure_png, new_figure, text_size, white, write_text
from mm_vitbackbones.data.image_parts import parts, rows
from mm_vitbackbones.errors import UserError, printable

HEADLINES = ("mAP", "mAP_50", "mAP_75", "mIoU", "mAcc", "aAcc")
"""The metrics worth a curve where there are many, by the end of their names (coco/bbox_mAP_50)."""

EARLIER_LAYER = re.compile(r"d\d+\.")
"""How mmdet begins the names of losses after a layer of a decoder that is not the last: d0.loss_cls."""

SHORT_SIDE = 600
"""Images smaller than this are enlarged before drawing, so that the labels can be read."""

LONG_SIDE = 4000
"""No image is enlarged beyond this: of one that is a pixel high, the drawing would take gigabytes."""

CAPTION = 26
"""Height in pixels of the line above a drawing."""

SMALL = 0.4
"""The size of the names of classes."""

LONGEST_TITLE = 120
"""Characters of the title of curves."""


def draw_curves(losses: Sequence[dict[str, float]], metrics: Sequence[dict[str, float]], title: str) -> bytes:
    """A PNG with losses on the left and metrics on the right. A point is a dict of ``iter`` and named values.

    Of a decoder with a loss after each layer, the last layer is drawn. Losses or metrics that there are none of have no
    panel, and curves that are equal are drawn once, under the names of all.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(12, 4.5)
    title = printable(title)
    figure.suptitle(title if len(title) <= LONGEST_TITLE else f"{title[:LONGEST_TITLE]}...", parse_math=False)
    panels = [("loss", _curves(losses, lambda name: not EARLIER_LAYER.match(name)))]
    panels += [("metric on the validation set", _curves(metrics, lambda name: name.endswith(HEADLINES)))]
    panels = [(label, curves) for label, curves in panels if curves] or panels[:1]  # none is empty
    for axes, (label, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set(xlabel="iteration", ylabel=label)
        axes.grid(alpha=0.3)
        for place, (name, points) in enumerate(curves.items()):
            axes.plot(
                *zip(*points, strict=True),
                label=printable(name),
                linewidth=2 if place == 0 or name.split(" = ")[0] == "loss" else 1,
                marker="o" if len(points) == 1 or label != "loss" else None,
                markersize=7 if len(points) == 1 else 3,  # a single value has no line
            )
        if curves:
            legend = axes.legend(ncols=1 + len(curves) // 14)
            legend.set_in_layout(False)  # a long one takes no room from the curves
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    return figure_png(figure)


def _curves(points: Sequence[dict[str, float]], chosen: Callable[[str], Any]) -> dict[str, list[tuple[float, float]]]:
    """The curves of the names that are ``chosen``, or of all if none is, each once: a model with one loss logs it
    twice, as ``loss`` and by its own name."""
    names = list(dict.fromkeys(name for point in points for name in point if name != "iter"))
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in [name for name in names if chosen(name)] or names:
        drawn = [(point["iter"], point[name]) for point in points if name in point]
        same = next((known for known, others in curves.items() if others == drawn), None)
        if same is None:
            curves[name] = drawn
        else:
            curves = {f"{known} = {name}" if known == same else known: others for known, others in curves.items()}
    return curves


def draw_pair(
    image: np.ndarray, sample: Any, classes: Sequence[str] | None, palette: Any, score_thr: float
) -> np.ndarray:
    """Ground truth (left) next to predictions (right) of a data sample of mmdet or mmseg, drawn onto the image.

    What a sample lacks is not drawn; a side with nothing to draw is the image itself.
    """
    sides = [_side(image, sample, kind, classes, palette, score_thr) for kind in ("gt", "pred")]
    pair = np.hstack([sides[0][0], white(sides[0][0].shape[0], 4), sides[1][0]])
    return _over_legend(pair, sides[0][1] | sides[1][1], classes, palette)


def draw_prediction(
    image: np.ndarray, sample: Any, classes: Sequence[str] | None, palette: Any, score_thr: float
) -> np.ndarray:
    """The predictions of a data sample of mmdet or mmseg, drawn onto the (enlarged) image."""
    side, present = _side(image, sample, "pred", classes, palette, score_thr)
    return _over_legend(side, present, classes, palette)


def _side(
    image: np.ndarray, sample: Any, kind: str, classes: Sequence[str] | None, palette: Any, score_thr: float
) -> tuple[np.ndarray, set[int]]:
    """The image under a caption with what a sample has of one kind (gt or pred), and the labels that need a legend."""
    caption = {"gt": "ground truth", "pred": f"predictions, score >= {score_thr:g}"}[kind]
    scale = enlarged(*image.shape[:2])
    side = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    present: set[int] = set()
    if f"{kind}_sem_seg" in sample:
        caption = caption.partition(",")[0]
        labels = _array(getattr(sample, f"{kind}_sem_seg").data)[0]
        draw_labels(side, labels, classes, palette)
        present = {int(label) for label in np.unique(labels) if label != 255}
    if f"{kind}_instances" in sample and "bboxes" in getattr(sample, f"{kind}_instances"):
        instances = getattr(sample, f"{kind}_instances")
        boxes = _array(getattr(instances.bboxes, "tensor", instances.bboxes)).reshape(-1, 4)
        labels = _array(instances.labels)
        masks = _masks(instances, len(boxes))
        scores = _array(instances.scores) if "scores" in instances else None
        if scores is not None:
            order = [i for i in np.argsort(scores, kind="stable") if scores[i] >= score_thr]  # the best on top
            boxes, labels, scores = boxes[order], labels[order], scores[order]
            masks = [masks[i] for i in order]
        draw_masks(side, masks, labels, palette)
        draw_boxes(side, boxes * scale, labels, scores, classes, palette)
        caption = f"{caption}: {len(boxes)}"
    return _under_caption(side, caption), present


def enlarged(height: int, width: int) -> int:
    """How many times an image is enlarged: to ``SHORT_SIDE``, unless the long side of a thin one passes
    ``LONG_SIDE``."""
    return max(1, min(round(SHORT_SIDE / min(height, width)), LONG_SIDE // max(height, width)))


def _over_legend(drawing: np.ndarray, present: set[int], classes: Sequence[str] | None, palette: Any) -> np.ndarray:
    if not present:
        return drawing
    return np.vstack([drawing, draw_legend(sorted(present), classes, palette, drawing.shape[1])])


def _masks(instances: Any, count: int) -> list[np.ndarray | None]:
    """The masks (h, w) of instances, None for those without."""
    if "masks" not in instances:
        return [None] * count
    masks = instances.masks
    return list(masks.to_ndarray() if hasattr(masks, "to_ndarray") else _array(masks))


def draw_masks(image: np.ndarray, masks: Sequence[np.ndarray | None], labels: np.ndarray, palette: Any) -> None:
    """Blend masks (h, w) of instances over the image (H, W, 3), in the colours of their classes."""
    for mask, label in zip(masks, labels, strict=True):
        if mask is not None:
            region = cv2.resize(mask.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
            _blend(image, region, _color(int(label), palette))


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    classes: Sequence[str] | None,
    palette: Any,
) -> None:
    """Draw boxes (n, 4), corners x1 y1 x2 y2 in pixels, with class names and scores, onto the image."""
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        color = _color(int(label), palette)
        x1, y1, x2, y2 = (round(float(corner)) for corner in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), color, 2, cv2.LINE_AA)
        text = class_name(int(label), classes)
        _tag(image, text if scores is None else f"{text} {scores[index]:.2f}", x1, y1, color)


def draw_legend(labels: Sequence[int], classes: Sequence[str] | None, palette: Any, width: int) -> np.ndarray:
    """The colours of labels next to their names, in as many lines of this width as they need."""
    lines, x = [white(CAPTION, width)], 6
    for label in labels:
        text = class_name(label, classes)
        needed = 16 + text_size(text, SMALL)[0] + 14
        if x > 6 and x + needed > width:
            lines.append(white(CAPTION, width))
            x = 6
        cv2.rectangle(lines[-1], (x, 7), (x + 11, 18), _color(label, palette), cv2.FILLED)
        write_text(lines[-1], text, x + 16, 17, SMALL)
        x += needed
    return np.vstack(lines)


def draw_labels(image: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None, palette: Any) -> None:
    """Blend a label map (h, w), 255 for none, over the image (H, W, 3), and name each class where it is largest."""
    labels = cv2.resize(labels.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    present = [int(label) for label in np.unique(labels) if label != 255]
    for label in present:
        _blend(image, labels == label, _color(label, palette))
    for label in present:
        _, _, stats, centers = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8))
        x, y = centers[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))]
        _tag(image, class_name(label, classes), round(x), round(y), _color(label, palette))


def _blend(image: np.ndarray, region: np.ndarray, color: tuple[int, int, int]) -> None:
    """Mix the pixels (H, W, 3) of a region (H, W) with a colour, half and half."""
    for chosen in rows(image):
        part, inside = image[chosen], region[chosen]
        part[inside] = (0.5 * part[inside] + 0.5 * np.array(color)).astype(np.uint8)


def displayable(image: np.ndarray, bands: Sequence[int] | None = None) -> np.ndarray:
    """An image of any loader as (H, W, 3), BGR, uint8.

    Values that 8 bits can hold stay as they are; others are stretched, the smallest to 0, the largest to 255. Of more
    than three channels the first three are taken, of two the first.

    Args:
        image: (H, W) or (H, W, C), of any type. What is not finite becomes black.
        bands: those that become red, green and blue, numbered from 1.

    Raises:
        UserError: it has another shape, or lacks a band.
    """
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or 0 in image.shape:
        raise UserError(f"an image of the shape {image.shape} cannot be drawn: it has to be (H, W) or (H, W, channels)")
    if bands is not None:
        if max(bands) > image.shape[2]:
            raise UserError(f"--bands {' '.join(map(str, bands))}: the image has {image.shape[2]} bands")
        image = image[..., [band - 1 for band in reversed(bands)]]
    image = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    low, high, fractions = np.inf, -np.inf, False
    for part in parts(image):
        values = part[np.isfinite(part)].astype(np.float64)
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
        fractions = fractions or bool((values != values.round()).any())
    low, high = (low, high) if low <= high else (0, 0)  # nothing is finite
    scale = 255 / ((high - low) or 1) if low < 0 or high > 255 or fractions else None
    drawn = np.empty(image.shape, np.uint8)
    for chosen in rows(image):
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            values = image[chosen].astype(np.float64)
        values[~np.isfinite(values)] = low
        drawn[chosen] = (values if scale is None else (values - low) * scale).round().astype(np.uint8)
    return drawn


def _tag(image: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    """Small text on a patch of the class's colour, above the point (x, y) and inside the image."""
    width, height, base = text_size(text, SMALL)
    x = max(0, min(x, image.shape[1] - width - 4))
    y = max(height + base + 2, y)
    cv2.rectangle(image, (x, y - height - base - 2), (x + width + 4, y), color, cv2.FILLED)
    dark = np.dot(color, (0.114, 0.587, 0.299)) < 140
    ink = (255, 255, 255) if dark else (0, 0, 0)
    write_text(image, text, x + 2, y - base, SMALL, ink)


def _under_caption(image: np.ndarray, caption: str) -> np.ndarray:
    line = white(CAPTION, image.shape[1])
    write_text(line, caption, 6, CAPTION - 8, 0.5)
    return np.vstack([line, image])


def class_name(label: int, classes: Sequence[str] | None) -> str:
    """The name of a label, as it can be shown, also where the data set has none for it."""
    return printable(classes[label]) if classes is not None and label < len(classes) else f"class {label}"


def _color(label: int, palette: Any) -> tuple[int, int, int]:
    """The data set's own colour (RGB there, BGR here), else hues a golden angle apart, so that no two are close."""
    if palette is not None and label < len(palette):
        red, green, blue = palette[label]
    else:
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * 0.381966 % 1.0, 0.75, 0.95))
    return int(blue), int(green), int(red)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
