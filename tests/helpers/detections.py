"""Small sets of objects and detections, in COCO's formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Truth = dict[str, Any]
Results = list[dict[str, Any]]


def truth_of(objects: Sequence[tuple[int, int, Sequence[float]]], images: int, classes: str = "abc") -> Truth:
    """Objects as (image, label, box): images are numbered from 1, labels from 0, boxes are x y width height."""
    annotations = [
        dict(id=i, image_id=image, category_id=label + 1, bbox=[*box], area=box[2] * box[3], iscrowd=0)
        for i, (image, label, box) in enumerate(objects)  # the first id is 0, which pycocotools takes for none
    ]
    return dict(
        images=[dict(id=i + 1, width=200, height=200, file_name=f"{i}.png") for i in range(images)],
        annotations=annotations,
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(classes)],
    )


def found_of(detections: Sequence[tuple[int, int, float, Sequence[float]]]) -> Results:
    """Detections as (image, label, score, box)."""
    return [dict(image_id=i, category_id=label + 1, score=s, bbox=[*box]) for i, label, s, box in detections]


def random_set(seed: int, images: int = 12, classes: str = "abc") -> tuple[Truth, Results]:
    """Objects, and detections near them or anywhere, some of them of other classes."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 6)):
            label, box = int(rng.integers(len(classes))), [*rng.uniform(0, 140, 2), *rng.uniform(15, 60, 2)]
            objects.append((image, label, [float(side) for side in box]))
            for _ in range(rng.integers(0, 4)):
                moved = np.array(box) + rng.normal(0, rng.choice([2, 12]), 4)
                moved[2:] = np.maximum(moved[2:], 4)
                other = int(label if rng.random() < 0.7 else rng.integers(len(classes)))
                detections.append((image, other, float(rng.random()), [float(side) for side in moved]))
        for _ in range(rng.integers(0, 3)):
            box = [*rng.uniform(0, 140, 2), *rng.uniform(15, 60, 2)]
            detections.append((image, int(rng.integers(len(classes))), float(rng.random()), [*map(float, box)]))
    return truth_of(objects, images, classes), found_of(detections)
