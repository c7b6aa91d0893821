"""Labels out of bands of rows against MMSegmentation's own way, over whole maps of scores."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

pytest.importorskip("mmseg")

from mmseg.structures import SegDataSample

from mm_vitbackbones.measuring import peak_bytes
from mm_vitbackbones.registry import MODELS
from mm_vitbackbones.segmentors import banded

pytestmark = pytest.mark.mmseg


def build(align_corners: bool = False, classes: int = 6) -> torch.nn.Module:
    torch.manual_seed(0)
    spec = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2))
    head = dict(in_channels=[8, 8, 16, 16], channels=16, num_classes=classes, align_corners=align_corners)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(
            dict(
                type="mm_vitbackbones.BandedEncoderDecoder",
                data_preprocessor=dict(type="SegDataPreProcessor", test_cfg=dict(size_divisor=32)),
                backbone=dict(type="mm_vitbackbones.MiT", arch=spec),
                decode_head=dict(type="mm_vitbackbones.SegFormerHead", **head),
                test_cfg=ConfigDict(mode="whole", logits=False),
            )
        )
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    return model.eval()


def batch(shapes: list[tuple[int, int]], original: list[tuple[int, int]]) -> dict:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randint(0, 255, (3, *shape), dtype=torch.uint8, generator=generator) for shape in shapes]
    metas = [dict(img_shape=a, ori_shape=b) for a, b in zip(shapes, original, strict=True)]
    return dict(inputs=inputs, data_samples=[SegDataSample(metainfo=meta) for meta in metas])


def predict(model: torch.nn.Module, data: dict) -> SegDataSample:
    given = model.data_preprocessor(data)
    return model.predict(given["inputs"].double(), given["data_samples"])[0]


@pytest.mark.filterwarnings("ignore:When align_corners=True")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "original"),
    [((64, 96), (64, 96)), ((50, 70), (50, 70)), ((50, 70), (123, 171)), ((100, 75), (61, 44))],
    ids=["divisible", "padded", "enlarged", "shrunk"],
)
def test_labels_are_those_of_whole_maps(monkeypatch, align_corners, shape, original):
    monkeypatch.setattr(banded, "BAND_BYTES", 7 * 6 * 128 * 8)
    model = build(align_corners).double()
    with torch.no_grad():
        lean = predict(model, batch([shape], [original]))
        model.test_cfg.pop("logits")
        whole = predict(model, batch([shape], [original]))
    assert "seg_logits" not in lean
    assert lean.pred_sem_seg.data.shape == (1, *original)
    assert lean.pred_sem_seg.data.unique().numel() > 1
    assert torch.equal(lean.pred_sem_seg.data, whole.pred_sem_seg.data)


def test_scores_of_bands_are_those_of_whole_maps(monkeypatch):
    monkeypatch.setattr(banded, "BAND_BYTES", 5 * 6 * 171 * 4)
    model, data = build(), batch([(50, 70)], [(123, 171)])
    with torch.no_grad():
        given = model.data_preprocessor(data)
        meta = given["data_samples"][0].metainfo
        scores = model.decode_head(model.extract_feat(given["inputs"]))[0]
        bands = [*model.bands(scores, tuple(given["inputs"].shape[2:]), meta)]
        model.test_cfg.pop("logits")
        whole = model.predict(given["inputs"], given["data_samples"])[0].seg_logits.data
    assert len(bands) > 10
    torch.testing.assert_close(torch.cat(bands, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_batch_entries_keep_their_original_sizes():
    model = build()
    with torch.no_grad():
        samples = model.test_step(batch([(64, 64), (64, 64)], [(64, 64), (90, 33)]))
    assert [tuple(s.pred_sem_seg.data.shape) for s in samples] == [(1, 64, 64), (1, 90, 33)]


def test_whole_maps_of_scores_are_never_held(monkeypatch):
    monkeypatch.setattr(banded, "BAND_BYTES", 2**18)
    model = build(classes=150)
    with torch.no_grad():
        given = model.data_preprocessor(batch([(64, 64)], [(256, 256)]))

        def run():
            with torch.no_grad():
                return model.predict(given["inputs"], given["data_samples"])

        run()
        lean = peak_bytes(run)
        model.test_cfg.pop("logits")
        run()
        whole = peak_bytes(run)
    scores = 150 * 256 * 256 * 4
    assert lean < 0.1 * scores < scores < whole
