"""Child registries of MMEngine's, under the scope ``mm_vitbackbones``.

MMEngine imports ``<scope>.registry`` by itself when it meets a name such as ``mm_vitbackbones.PVT``, so that
these names work in any OpenMMLab config without ``custom_imports``. The classes themselves are imported from
``locations`` at the first look-up.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from mm_vitbackbones.nodes import is_pretrained


class _Models(Registry):
    """A registry that imports a class that needs more than MMEngine at the first look-up of its name."""

    on_demand: ClassVar[dict[str, str]] = {
        "BandedEncoderDecoder": "mm_vitbackbones.segmentors.banded",
        "DPTHead": "mm_vitbackbones.heads.dpt",
        "LinearHead": "mm_vitbackbones.heads.linear",
        "LN2d": "mm_vitbackbones.heads.vitdet",
        "MaxPoolLevel": "mm_vitbackbones.necks.pyramid",
        "MultichannelDetDataPreprocessor": "mm_vitbackbones.engine.det_preprocessor",
        "ResizeFeaturePyramid": "mm_vitbackbones.necks.pyramid",
        "SegFormerHead": "mm_vitbackbones.heads.segformer",
        "SimpleFeaturePyramid": "mm_vitbackbones.necks.pyramid",
        "TapsFeaturePyramid": "mm_vitbackbones.necks.pyramid",
    }

    def get(self, key: str) -> Any:
        if module := self.on_demand.get(key.rpartition(".")[2]):
            importlib.import_module(module)
        return super().get(key)


MODELS = _Models("model", parent=MMENGINE_MODELS, scope="mm_vitbackbones", locations=["mm_vitbackbones.backbones"])
BACKBONES = MODELS
"""The conventional alias: ``@BACKBONES.register_module()`` on a family."""

HOOKS = Registry(
    "hook",
    parent=MMENGINE_HOOKS,
    scope="mm_vitbackbones",
    locations=["mm_vitbackbones.engine.hooks", "mm_vitbackbones.engine.saving"],
)
MODEL_WRAPPERS = Registry(
    "model_wrapper",
    parent=MMENGINE_MODEL_WRAPPERS,
    scope="mm_vitbackbones",
    locations=["mm_vitbackbones.engine.sharding"],
)
TRANSFORMS = Registry(
    "transform",
    parent=MMENGINE_TRANSFORMS,
    scope="mm_vitbackbones",
    locations=["mm_vitbackbones.engine.multichannel"],
)
WEIGHT_INITIALIZERS = Registry(
    "weight initializer",
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope="mm_vitbackbones",
    locations=["mm_vitbackbones.backbones.from_scratch", "mm_vitbackbones.checkpoints.initialiser"],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="mm_vitbackbones",
    locations=["mm_vitbackbones.engine.layer_decay"],
)


def init_weights(module: Any, by_mmengine: Callable[[], None]) -> None:
    """``init_weights`` of a module whose files this package reads. MMEngine would load what it can of a file and leave
    the rest as it is.

    Args:
        module: a module of MMEngine's kind, with an ``init_cfg``.
        by_mmengine: MMEngine's own ``init_weights`` of it, for everything but files. Files come last.
    """
    given = module.init_cfg
    every = [given] if isinstance(given, Mapping) else [*(given or [])]
    files = [each for each in every if is_pretrained(each)]
    if not files or module._is_init:  # MMEngine logs a second call, and does nothing in it
        by_mmengine()
        return
    if len(files) < len(every):
        module.init_cfg = [each for each in every if not is_pretrained(each)]
        try:
            by_mmengine()
        finally:
            module.init_cfg = given
            module._is_init = False  # the files are not loaded yet
    for each in files:
        # By our own registry, whatever the default scope is.
        WEIGHT_INITIALIZERS.get("Pretrained")(**{key: value for key, value in each.items() if key != "type"})(module)
    module._is_init = True
