# Mask2Former (Cheng et al. 2022) for semantic segmentation, as MMSegmentation has it: one mask for each class of an
# image. It takes parts of MMDetection.
_base_ = "mask2former.py"

tta_model = dict(type="SegTTAModel")

model = dict(
    _delete_=True,
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=_base_.model.data_preprocessor.mean,
        std=_base_.model.data_preprocessor.std,
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=_base_.model.backbone,
    decode_head=dict(
        _base_.head,
        num_classes=150,
        align_corners=False,
        loss_cls=dict(_base_.loss_cls, class_weight=[1.0] * 150 + [0.1]),  # "no object" is the last
        train_cfg=_base_.matching,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
