# What the segmentors share: images in, a pretrained backbone, and a head for ADE20K's 150 classes.
tta_model = dict(type="SegTTAModel")

model = dict(
    type="mm_vitbackbones.BandedEncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(drop_path_rate=0.1, init_cfg=dict(type="Pretrained", checkpoint="imagenet1k")),
    decode_head=dict(
        num_classes=150,
        dropout_ratio=0.1,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole", logits=False),  # labels alone
)
