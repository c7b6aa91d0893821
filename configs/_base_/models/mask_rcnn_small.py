# Mask R-CNN from random weights on objects of 17 to 140 pixels: four levels, anchors from 24 pixels, small heads.
_base_ = "mask_rcnn.py"

norm_cfg = dict(type="GN", num_groups=16, requires_grad=True)
model = dict(
    backbone=dict(drop_path_rate=0.0, init_cfg=None),
    neck=dict(out_channels=128, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=128, feat_channels=128, anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=256),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=1), out_channels=128),
        mask_head=dict(num_convs=2, in_channels=128, conv_out_channels=128, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=250, max_per_img=100),
        rcnn=dict(sampler=dict(num=48)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=250, max_per_img=100), rcnn=dict(max_per_img=50)),
)
