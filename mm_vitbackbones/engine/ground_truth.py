"""Ground truth in COCO's format, as pycocotools can measure by it."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mm_vitbackbones.registry import HOOKS


@HOOKS.register_module()
class AnnotationIdsHook(Hook):
    """Renumbers the annotations of COCO metrics, in memory, where pycocotools would lose some by their ids.

    In pycocotools an object that was found is one whose detection stores its id, as a number other than 0. So an object
    of id 0 is never found, and an id that is no number ends in an error.
    """

    priority = "VERY_HIGH"

    def before_val(self, runner: Runner) -> None:
        self._renumber(runner, runner.val_evaluator)

    def before_test(self, runner: Runner) -> None:
        self._renumber(runner, runner.test_evaluator)

    def _renumber(self, runner: Runner, evaluator: Any) -> None:
        for metric in getattr(evaluator, "metrics", ()):
            truth = getattr(metric, "_coco_api", None)
            annotations = getattr(truth, "anns", None) or {}
            # Those of panoptic segmentation are lists, by other rules.
            if isinstance(next(iter(annotations.values()), None), dict) and (why := renumber(truth)):
                runner.logger.info(
                    f"annotation ids of {type(metric).__name__} are renumbered from 1 in memory, as {why}; the file is "
                    "as it was"
                )


def renumber(truth: Any) -> str:
    """Number the annotations of a pycocotools ``COCO`` from 1 where an id is 0 or no number.

    Returns:
        why that was necessary; empty if it was not, and nothing is changed.
    """
    why = next((why for key in truth.anns if (why := _unusable(key))), "")
    if why:
        truth.anns.clear()
        for number, annotation in enumerate(truth.dataset["annotations"], start=1):
            annotation["id"] = number  # the same dict is in the indices by image
            truth.anns[number] = annotation
    return why


def _unusable(key: Any) -> str:
    if isinstance(key, (int, float)):
        return "pycocotools takes 0 for no match" if key == 0 else ""
    return f"pycocotools cannot store {key!r}"
