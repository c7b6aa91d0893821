"""Every family by its name in a config of MMDetection and of MMSegmentation, in an interpreter that has imported
nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from helpers.toys import TOYS

COMMON = """
import json
import sys
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

def backbone(family, arch):
    return dict(type="mm_vitbackbones." + family, arch=json.loads(arch))

def channels(config):
    from mmengine.registry import MODELS
    return [*MODELS.build(config).channels]
"""

DETECTOR = """
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

def build(family, arch):
    return MODELS.build(Config(dict(
        type="RetinaNet",
        data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
        backbone=backbone(family, arch),
        neck=dict(type="FPN", in_channels=channels(backbone(family, arch)), out_channels=16, num_outs=5),
        bbox_head=dict(type="RetinaHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1,
                       anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=4,
                                             scales_per_octave=1, strides=[4, 8, 16, 32, 64])),
        train_cfg=dict(assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4), allowed_border=-1,
                       pos_weight=-1),
        test_cfg=dict(score_thr=0.0, nms_pre=10, max_per_img=5, nms=dict(type="nms", iou_threshold=0.5)),
    )))

def sample():
    boxes = InstanceData(bboxes=torch.tensor([[4.0, 4.0, 40.0, 30.0]]), labels=torch.tensor([1]))
    sizes = dict(img_shape=(50, 70), ori_shape=(50, 70), scale_factor=(1.0, 1.0))
    return DetDataSample(metainfo=sizes, gt_instances=boxes)

def check(result):
    assert len(result.pred_instances) == 5 and result.pred_instances.bboxes.isfinite().all()
"""

SEGMENTOR = """
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

def build(family, arch):
    return MODELS.build(Config(dict(
        type="EncoderDecoder",
        data_preprocessor=dict(type="SegDataPreProcessor", size_divisor=32, test_cfg=dict(size_divisor=32)),
        backbone=backbone(family, arch),
        neck=dict(type="FPN", in_channels=channels(backbone(family, arch)), out_channels=16, num_outs=4),
        decode_head=dict(type="FPNHead", in_channels=[16] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
                         channels=16, num_classes=3, norm_cfg=dict(type="GN", num_groups=4), dropout_ratio=0.0),
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )))

def sample():
    labels = PixelData(data=torch.randint(0, 3, (1, 50, 70)))
    return SegDataSample(metainfo=dict(img_shape=(50, 70), ori_shape=(50, 70)), gt_sem_seg=labels)

def check(result):
    assert result.pred_sem_seg.data.shape == (1, 50, 70) and result.seg_logits.data.isfinite().all()
"""

USE = """
init_default_scope(sys.argv[1])
for pair in sys.argv[2:]:
    model = build(*pair.split(maxsplit=1))
    batch = lambda: dict(inputs=[torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8)], data_samples=[sample()])
    data = model.data_preprocessor(batch(), training=True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    check(model.eval().test_step(batch())[0])
    print(pair, "ok")
"""


@pytest.mark.parametrize(
    ("library", "definitions"),
    [
        pytest.param("mmdet", DETECTOR, marks=pytest.mark.mmdet),
        pytest.param("mmseg", SEGMENTOR, marks=pytest.mark.mmseg),
    ],
    ids=["mmdet", "mmseg"],
)
def test_training_and_test_step_of_every_family(library: str, definitions: str) -> None:
    pytest.importorskip(library)
    pairs = [f"{toy.family.__name__} {json.dumps(toy.arch)}" for toy in TOYS.values()]
    script = COMMON + definitions + USE
    run = subprocess.run([sys.executable, "-c", script, library, *pairs], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert [line for line in run.stdout.splitlines() if line.endswith(" ok")] == [f"{pair} ok" for pair in pairs]
