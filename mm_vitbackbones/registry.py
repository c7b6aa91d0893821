"""Child registries of MMEngine's, under the scope ``mm_vitbackbones``.

MMEngine imports ``<scope>.registry`` by itself when it meets a name such as ``mm_vitbackbones.PVT``, so that
these names work in any OpenMMLab config without ``custom_imports``. The classes themselves are imported from
``locations`` at the first look-up.
"""

import importlib
from typing import Any, ClassVar

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry


class _Models(Registry):
    """A registry that imports a class that needs more than MMEngine at the first look-up of its name."""

    on_demand: ClassVar[dict[str, str]] = {
        "BandedEncoderDecoder": "mm_vitbackbones.segmentors.banded",
        "SegFormerHead": "mm_vitbackbones.heads.segformer",
    }

    def get(self, key: str) -> Any:
        if module := self.on_demand.get(key.rpartition(".")[2]):
            importlib.import_module(module)
        return super().get(key)


MODELS = _Models("model", parent=MMENGINE_MODELS, scope="mm_vitbackbones", locations=["mm_vitbackbones.backbones"])
BACKBONES = MODELS
"""The conventional alias: ``@BACKBONES.register_module()`` on a family."""

HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="mm_vitbackbones", locations=["mm_vitbackbones.engine.hooks"])
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
