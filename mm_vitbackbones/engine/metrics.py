"""Metrics of testing that MMEngine lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import DumpResults
from mmengine.registry import METRICS


@METRICS.register_module()
class DumpLabelMaps(DumpResults):
    """Pickles segmentations as a list of dicts: ``img_path``, and ``labels``, (H, W) uint16, of the image's own size.

    MMEngine's own dump keeps the scores of all classes too: a gigabyte for every ten images of ADE20K.
    """

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            labels = sample["pred_sem_seg"]["data"][0].cpu().numpy().astype(np.uint16)
            self.results.append({"img_path": sample["img_path"], "labels": labels})
