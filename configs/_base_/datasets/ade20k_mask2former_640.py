# ADE20K for Mask2Former at 640 pixels: as ade20k_mask2former.py, with crops of 640x640 and all sides in proportion.
_base_ = "ade20k_mask2former.py"

crop_size = (640, 640)
any_length = dict(_base_.any_length, scales=[640 * tenths // 10 for tenths in range(5, 21)], max_size=2560)


def enlarged(steps):
    """The steps of a test, with both sides at 640 for 512. ``scale`` is (longer side, shorter side)."""
    return [
        dict(step, scale=tuple(side * 640 // 512 for side in step["scale"])) if "scale" in step else step
        for step in steps
    ]


train_pipeline = [dict(step, crop_size=crop_size) if "crop_size" in step else step for step in _base_.train_pipeline]
train_pipeline[train_pipeline.index(_base_.any_length)] = any_length
test_pipeline = enlarged(_base_.unaligned_test_pipeline)
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(type="TestTimeAug", transforms=[enlarged(steps) for steps in _base_.tta_pipeline[1].transforms]),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
