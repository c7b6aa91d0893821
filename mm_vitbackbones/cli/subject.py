"""A network to look into: a backbone by its name, or the detector or segmentor of a config, and images as it sees
them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mm_vitbackbones import libraries
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.build import backbone_names, build_backbone
from mm_vitbackbones.cli import datasets, preflight
from mm_vitbackbones.cli.arguments import checkpoint_file, config_file
from mm_vitbackbones.cli.config import load_config, use_local_norms
from mm_vitbackbones.cli.launch import registry_errors
from mm_vitbackbones.cli.model import build_model, without_pretrained
from mm_vitbackbones.cli.predict import inference_steps
from mm_vitbackbones.cli.weights import load_weights
from mm_vitbackbones.data.image_files import why_unreadable
from mm_vitbackbones.data.reading import ImageReader, UnreadableImage, is_own
from mm_vitbackbones.data.values import check_channels
from mm_vitbackbones.engine.drawing import displayable
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.errors import UserError, did_you_mean

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for a backbone without a config."""


class View(NamedTuple):
    """An image as the network sees it."""

    name: str
    drawn: np.ndarray
    """What the image fills of the input, (h, w, 3), BGR, uint8."""
    inputs: Tensor
    """(1, C, H, W): normalised and perhaps padded at the right and bottom."""
    scale: tuple[float, float]
    """Pixels of the input for a pixel of the file, in x and in y."""
    sample: Any = None
    """mmdet's or mmseg's data sample."""


class Subject:
    """A network with its weights, in eval mode and without gradients of its parameters.

    Args:
        target: a backbone's name, such as ``"pvt_v2_b0"``, a recipe's name, or the path of a config.
        checkpoint: a file or an address; None for the published weights, or those that the config begins with.
        random: leave the weights as they are drawn.
        options: that change the config.
        size: height and width to which images are resized, of a backbone without a config.

    Raises:
        UserError: there is no such network, or its weights cannot be had.
    """

    classes: Sequence[str] | None = None
    kind = "backbone"

    def __init__(
        self,
        target: str,
        checkpoint: Path | str | None = None,
        random: bool = False,
        device: str = "cpu",
        options: Mapping[str, Any] | None = None,
        size: Sequence[int] | None = None,
    ) -> None:
        self.name, self.device, self.size = Path(target).stem, device, size
        if target in backbone_names():
            if options:
                raise UserError(f"--cfg-options changes a config, and {target} is the name of a backbone")
            self.model: Any = _backbone(target, checkpoint, random)
            self.backbone: Any = self.model
        else:
            if size:
                raise UserError(f"--size is for a backbone by its name: the config {target} says the size by itself")
            self._from_config(_config_file(target), checkpoint, random, dict(options or {}))
        self.model.to(device).eval().requires_grad_(False)

    def _from_config(self, path: Path, checkpoint: Path | str | None, random: bool, options: dict[str, Any]) -> None:
        cfg = load_config(path, options)
        self.scope = libraries.scope_of(cfg)
        libraries.use(self.scope)
        pipeline = inference_steps(cfg)
        preflight.check_backbone(cfg.model)
        with registry_errors(path):
            if checkpoint is None:
                self.model = _with_initial_weights(cfg, self.scope, random)
            else:
                self.model = build_model(cfg)
        with DefaultScope.overwrite_default_scope(self.scope):
            dataset = next(iter(datasets.datasets_of(cfg.get("test_dataloader"))), None)
            self.classes = None if dataset is None else datasets.classes_of(dataset)
        if checkpoint is not None:
            load_weights(self.model, read(checkpoint), checkpoint)
        self.kind = "detector" if self.scope == "mmdet" else "segmentor"
        self._reader, self._preprocessor = ImageReader(pipeline), cfg.model.get("data_preprocessor") or {}
        self.own_loader = any(map(is_own, pipeline))
        if not isinstance(backbone := getattr(self.model, "backbone", None), nn.Module):
            raise UserError(f"{path}: the model has no backbone to look into")
        self.backbone = backbone

    def view(self, path: Path, name: str, index: int = 0) -> View:
        """An image file as the network sees it.

        Raises:
            UserError: it cannot be loaded, or the network does not take it.
        """
        try:
            return self._view(path, name) if self.kind == "backbone" else self._view_of_pipeline(path, name, index)
        except UnreadableImage as error:
            raise UserError(f"{path} cannot be loaded: {error}") from None

    def _view(self, path: Path, name: str) -> View:
        if why := why_unreadable(path):
            raise UnreadableImage(why)
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise UnreadableImage("it is no image that OpenCV reads")
        height, width = image.shape[:2]
        if self.size:
            shrinks = self.size[0] * self.size[-1] < height * width
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (self.size[-1], self.size[0]), interpolation=interpolation)
        inputs = torch.from_numpy(image[..., ::-1].astype(np.float32) / 255)
        inputs = ((inputs - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None].contiguous()
        return View(name, image, inputs.to(self.device), (image.shape[1] / width, image.shape[0] / height))

    def _view_of_pipeline(self, path: Path, name: str, index: int) -> View:
        with DefaultScope.overwrite_default_scope(self.scope):
            image, data = self._reader.whole({"img_path": str(path), "img_id": index})
            check_channels(data, self._preprocessor, getattr(self.backbone, "in_channels", None))
            data = self.model.data_preprocessor({key: [value] for key, value in data.items()}, False)
        inputs, sample = data["inputs"], data["data_samples"][0]
        height, width = (int(side) for side in sample.metainfo.get("img_shape", inputs.shape[2:])[:2])
        height, width = min(height, inputs.shape[2]), min(width, inputs.shape[3])
        drawn = cv2.resize(displayable(image), (width, height), interpolation=cv2.INTER_AREA)
        scale = width / image.shape[1], height / image.shape[0]
        return View(name, drawn, inputs, scale, sample)

    @contextmanager
    def in_scope(self) -> Iterator[None]:
        """Within it, the library's registries are those of the config."""
        if self.kind == "backbone":
            yield
            return
        with DefaultScope.overwrite_default_scope(self.scope):
            yield

    def levels(self, inputs: Tensor) -> dict[str, Tensor]:
        """The maps of the backbone's levels, (1, C, H, W) by name."""
        found = self.backbone(inputs)
        found = found if isinstance(found, (tuple, list)) else [found]
        numbers = getattr(self.backbone, "out_indices", range(len(found)))
        return {f"level {i}": map_of(level) for i, level in zip(numbers, found, strict=True)}

    def strides(self) -> dict[str, float]:
        """Pixels between the cells of levels, where the backbone says them."""
        if not isinstance(self.backbone, Backbone):
            return {}
        pairs = zip(self.backbone.out_indices, self.backbone.strides, strict=True)
        return {f"level {i}": float(stride) for i, stride in pairs}

    def all_maps(self, inputs: Tensor) -> dict[str, Tensor]:
        """``levels``, and what a neck and a dense head make of them."""
        if self.kind == "backbone":
            return self.levels(inputs)
        maps: dict[str, Tensor] = {}
        levels: list[Any] = []
        handle = self.backbone.register_forward_hook(lambda _, __, found: levels.append(found))
        try:
            with self.in_scope():
                features = self.model.extract_feat(inputs)
        finally:
            handle.remove()
        found = levels[0] if isinstance(levels[0], (tuple, list)) else [levels[0]]
        numbers = getattr(self.backbone, "out_indices", range(len(found)))
        maps |= {f"level {i}": map_of(level) for i, level in zip(numbers, found, strict=True)}
        if getattr(self.model, "neck", None) is not None:
            maps |= {f"neck {i}": map_of(feature) for i, feature in enumerate(features)}
        for name, head in self._heads():
            maps |= _of_head(name, head, features)
        return maps

    def _heads(self) -> list[tuple[str, nn.Module]]:
        """Those that the model has, by name."""
        names = ("bbox_head", "rpn_head", "panoptic_head", "decode_head")
        return [(name, head) for name in names if isinstance(head := getattr(self.model, name, None), nn.Module)]

    def heads_without_maps(self) -> list[str]:
        """The heads that make no maps of features alone, such as a decoder of queries."""
        return [name for name, head in self._heads() if not _takes_features_alone(head)]


def map_of(level: Any) -> Tensor:
    """Of what a network returns of a level: a map, or a map and a class token."""
    return level if isinstance(level, Tensor) else level[0]


def with_map(level: Any, map: Tensor) -> Any:
    """What a network returns of a level, with another map in it."""
    if isinstance(level, Tensor):
        return map
    others = (map, *level[1:])
    return type(level)(*others) if hasattr(level, "_fields") else type(level)(others)


def _of_head(name: str, head: nn.Module, features: Any) -> dict[str, Tensor]:
    """The maps that a head makes of features alone: of scores. A head that takes more has none."""
    if not _takes_features_alone(head):
        return {}
    found = head(features)
    found = found if isinstance(found, (tuple, list)) else [found]
    first = found[0] if isinstance(found[0], (tuple, list)) else [found[0]]
    maps = [map for map in first if isinstance(map, Tensor) and map.dim() == 4]
    return {f"{name} {i}" if len(maps) > 1 else name: map for i, map in enumerate(maps)}


def _takes_features_alone(head: nn.Module) -> bool:
    parameters = inspect.signature(head.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in parameters) == 1


def _backbone(name: str, checkpoint: Path | str | None, random: bool) -> Backbone:
    family, _ = backbone_names()[name]
    # A class token that only class attention has is there to be looked at.
    options = {"class_attention": True} if "class_attention" in inspect.signature(family).parameters else {}
    pretrained = None if random else True if checkpoint is None else str(checkpoint)
    return build_backbone(name, pretrained=pretrained, **options)


def _config_file(target: str) -> Path:
    try:
        return config_file(target)
    except UserError as error:
        near = did_you_mean(target, backbone_names())
        raise UserError(f"{error}{near.replace('mean', 'mean the backbone')}") from None


def _with_initial_weights(cfg: Any, scope: str, random: bool) -> Any:
    """The model of a config as a training begins; its backbone loads the file that the config names, unless ``random``.

    Some heads of mmdet have parameters that hold whatever was in memory until ``init_weights`` is called.
    """
    from mmengine.registry import MODELS

    libraries.load(scope)
    use_local_norms(cfg, distributed=False)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(without_pretrained(cfg.model) if random else cfg.model)
        model.init_weights()
    return model


def looks_like_checkpoint(text: str) -> bool:
    """Whether a command's word is a file or folder of weights, and not of images."""
    path = Path(text)
    if "://" in text or path.suffix.lower() in (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".npz", ".pkl"):
        return True
    if path.is_dir():
        return checkpoint_file(text) != path
    return False
