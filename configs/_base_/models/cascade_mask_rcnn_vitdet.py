# Cascade Mask R-CNN of ViTDet: mask_rcnn_vitdet.py with three stages, whose boxes are the same for all classes. As in
# all of MMDetection's cascades, stages have weights of 1, 0.5 and 0.25, and a mask head each. The official code weights
# them equally, divides by three what they pass back to the levels, and has one mask head.
_base_ = "mask_rcnn_vitdet.py"

first = _base_.model.roi_head.bbox_head
training = _base_.model.train_cfg.rcnn
model = dict(
    type="CascadeRCNN",
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(
                first,
                reg_class_agnostic=True,
                bbox_coder=dict(first.bbox_coder, target_stds=[std, std, 2 * std, 2 * std]),
            )
            for std in (1 / 10, 1 / 20, 1 / 30)
        ],
    ),
    train_cfg=dict(
        rcnn=[
            dict(training, assigner=dict(training.assigner, match_low_quality=False, **dict.fromkeys(limits, iou)))
            for limits in [("pos_iou_thr", "neg_iou_thr", "min_pos_iou")]
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
)
