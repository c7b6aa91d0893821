# Mask R-CNN with Swin-Tiny, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/mask_rcnn_swin_t_mini.py
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/mask_rcnn.py",
    "_base_/datasets/mini_instance.py",
    "_base_/schedules/adamw_cosine_small.py",
    "_base_/default_runtime.py",
]

# Objects are 17 to 140 pixels wide: four levels, anchors from 24 pixels, small heads.
norm_cfg = dict(type="GN", num_groups=16, requires_grad=True)
model = dict(
    backbone=dict(
        type="mm_vitbackbones.Swin",
        arch="tiny",
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    neck=dict(in_channels=[96, 192, 384, 768], out_channels=128, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=128, feat_channels=128, anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=128),
        mask_head=dict(num_convs=2, in_channels=128, conv_out_channels=128, num_classes=5, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=250, max_per_img=100),
        rcnn=dict(sampler=dict(num=48)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=250, max_per_img=100), rcnn=dict(max_per_img=50)),
)

# Seven epochs are what fits into a dozen minutes.
train_cfg = dict(max_epochs=7, val_interval=7)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", T_max=7, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]

default_hooks = dict(logger=dict(interval=20))
log_processor = dict(window_size=20)
