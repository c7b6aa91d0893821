"""A detector's checkpoint with mmdet's own backbone, in the same config with ours: the same detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from helpers.recipes import load

pytest.importorskip("mmdet")


from mm_vitbackbones.cli import weights
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.cli.weights import load_weights
from mm_vitbackbones.engine.resume import read

pytestmark = [pytest.mark.mmdet, pytest.mark.parity]

# config, what our backbone needs to equal mmdet's, and mmdet's
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pvt": (
        "retinanet_pvt_t_mini",
        dict(norm_eps=1e-6),
        dict(type="PyramidVisionTransformer", num_layers=[2, 2, 2, 2], out_indices=(1, 2, 3)),
    ),
    "pvt_v2": (
        "retinanet_pvt_v2_b0_trees",
        dict(norm_eps=1e-6),
        dict(type="PyramidVisionTransformerV2", embed_dims=32, num_layers=[2, 2, 2, 2], out_indices=(1, 2, 3)),
    ),
    "swin": ("mask_rcnn_swin_t_mini", {}, dict(type="SwinTransformer")),
}


def with_theirs(cfg: Config, backbone: dict[str, Any]) -> torch.nn.Module:
    """The detector with mmdet's backbone; its random weights are spread, so that no two scores are nearly equal."""
    cfg.model.backbone = backbone
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_cls.weight"):
                parameter.mul_(8)
            elif name.startswith("backbone.") and "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def detect(model: torch.nn.Module, size: tuple[int, int]) -> Any:
    from mmdet.structures import DetDataSample

    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *size), dtype=np.uint8))
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        return model.eval().test_step(dict(inputs=[image], data_samples=[sample]))[0].pred_instances


@pytest.mark.parametrize("case", CASES)
def test_detections_equal_those_of_mmdets_backbone(case: str, tmp_path: Path) -> None:
    name, arguments, backbone = CASES[case]
    theirs = with_theirs(load(name), backbone)
    torch.save({"state_dict": theirs.state_dict(), "meta": {"epoch": 12}}, tmp_path / "mmdet.pth")
    cfg = load(name)
    cfg.model.backbone.update(arguments)
    ours = build_model(cfg)
    load_weights(ours, read(tmp_path / "mmdet.pth"), tmp_path / "mmdet.pth")
    expected, found = detect(theirs, (200, 264)), detect(ours, (200, 264))
    assert len(expected) > 10
    assert len(found) == len(expected)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=0, atol=1e-3)
    assert expected.scores.std() > 0.005
    if "masks" in expected:
        assert (found.masks != expected.masks).float().mean() < 1e-4


@pytest.mark.parametrize("norm_eps", [None, 1e-6])
def test_another_epsilon_of_mmdets_norms_is_reported(
    norm_eps: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, backbone = CASES["pvt_v2"]
    cfg, logged = load(name), list[str]()
    theirs = with_theirs(load(name), backbone)
    cfg.model.backbone.norm_eps = norm_eps
    monkeypatch.setattr(weights, "print_log", lambda message, **_: logged.append(message))
    load_weights(build_model(cfg), {"state_dict": theirs.state_dict()}, tmp_path / "mmdet.pth")
    assert any("model.backbone.norm_eps=1e-6" in message for message in logged) == (norm_eps is None)
