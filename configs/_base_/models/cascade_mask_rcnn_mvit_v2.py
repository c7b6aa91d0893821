# Cascade Mask R-CNN of MViTv2 (Li et al. 2022): the stages of cascade_mask_rcnn_vitdet.py, with what that says of
# them, on an FPN; batch norms in the heads of boxes and masks.
_base_ = "cascade_mask_rcnn_vitdet.py"

norm_cfg = dict(_delete_=True, type="SyncBN", requires_grad=True)
stages = [dict(head, norm_cfg=dict(type="SyncBN", requires_grad=True)) for head in _base_.model.roi_head.bbox_head]
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type="mm_vitbackbones.MViTv2",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="imagenet1k"),
    ),
    neck=dict(_delete_=True, type="FPN", in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5),
    roi_head=dict(bbox_head=stages, mask_head=dict(norm_cfg=norm_cfg)),
)
